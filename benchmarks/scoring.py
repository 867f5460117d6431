"""Batch scoring of made-up customers: time and memory against the same work done in one piece.

    python -m benchmarks.scoring
    python -m benchmarks.scoring --rows 10000000 --iterations 10   # memory alone

Three processes score the same table, one after the other. `predict` only asks the model, batch by
batch: what no scoring can do without. `streamed` is `churn_lib.scoring.batch.score`. `in one piece` reads the
snapshot into a data frame, and writes the predictions from one. The reasons are held against the
package shap in the same run where it is installed (`pip install shap`).
"""

import argparse
import datetime
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ibis
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from churn_lib.features import FEATURES
from churn_lib.model import ChurnModel
from churn_lib.scoring import Scorer, read_snapshot, score
from churn_lib.scoring.batch import score_batch
from churn_lib.scoring.reasons import explainer_of
from churn_lib.tables import DeltaTables
from churn_lib.training import SIGNATURE, make_estimator

DAY = datetime.date(2024, 7, 1)
ROWS_OF_SHAP = 5_000


def made_up(rows: int, seed: int) -> pd.DataFrame:
    """Features of customers who do not exist."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.exponential(10, (rows, len(FEATURES))), columns=FEATURES)


def trained(estimator: str, iterations: int = 200) -> ChurnModel:
    """A model of the project's own kind, on 50,000 made-up customers."""
    features = made_up(50_000, 0)
    signal = features.days_since_last_event - features.total_events + features.distinct_products / 2
    noise = np.random.default_rng(1).normal(0, 5, len(features))
    fresh = make_estimator(estimator, 0)
    if estimator == "hist_gradient_boosting":
        fresh.set_params(max_iter=iterations)
    return ChurnModel(fresh).fit(features, (signal + noise > 5).astype(int))


def prepare(folder: Path, rows: int, iterations: int) -> None:
    """A table of features and a saved model in `folder`."""
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.sklearn.save_model(
        trained("hist_gradient_boosting", iterations),
        folder / "model",
        signature=SIGNATURE,
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn"],
    )
    store = DeltaTables(folder / "tables")
    store.connection.raw_sql("SELECT setseed(0.5)")
    columns = ", ".join(f"-10 * ln(1 - random()) AS {name}" for name in FEATURES)
    made = store.connection.sql(
        f"SELECT printf('customer-%09d', range) AS customer_id, {columns}, "
        f"DATE '{DAY}' AS feature_date FROM range({rows})"
    )
    store.overwrite("gold.features", made, {"feature_date": DAY})


def opened(folder: Path) -> tuple[DeltaTables, Scorer]:
    """The table and the model that `prepare` left."""
    model = mlflow.pyfunc.load_model(str(folder / "model"))
    return DeltaTables(folder / "tables"), Scorer("benchmark", 1, model, 0.5, explainer_of(model))


def only_predict(folder: Path) -> None:
    """What no scoring can do without."""
    store, scorer = opened(folder)
    for batch in read_snapshot(store).rows.to_pyarrow_batches(chunk_size=131_072):
        scorer.model.predict(batch.to_pandas()[FEATURES])


def streamed(folder: Path) -> None:
    """The product."""
    store, scorer = opened(folder)
    score(store, read_snapshot(store), scorer, "benchmark")


def in_one_piece(folder: Path) -> None:
    """The same predictions by way of one data frame."""
    store, scorer = opened(folder)
    rows = read_snapshot(store).rows.to_pandas()
    scored = score_batch(scorer, rows)
    frame = pd.DataFrame({"id": rows.customer_id, "p": scored["churn_probability"].to_numpy()})
    order = frame.sort_values(["p", "id"], ascending=[False, True]).index
    decile = pd.Series(np.arange(len(frame)) * 10 // len(frame) + 1, index=order).sort_index()
    constant = {
        name: ibis.literal(value)
        for name, value in {
            "feature_date": DAY,
            "model_version": 1,
            "model_name": "benchmark",
            "git_sha": "benchmark",
        }.items()
    }
    for name, values in {
        "decile": decile.to_numpy(),
        "decision": (frame.p >= 0.5).astype("int64").to_numpy(),
        "scored_at": np.full(len(frame), np.datetime64("now", "us")),
    }.items():
        scored = scored.append_column(name, pa.array(values))
    written = ibis.memtable(scored).mutate(**constant)
    partition = {"feature_date": DAY, "model_version": 1}
    store.overwrite("gold.predictions_in_one_piece", written, partition)


WAYS = {"predict": only_predict, "streamed": streamed, "in one piece": in_one_piece}


def measure(way: str, folder: Path) -> dict[str, float]:
    """Seconds and peak memory of one way, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.scoring",
        "--measure",
        way,
        "--folder",
        str(folder),
    ]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(f"{way} failed with exit code {answer.returncode}:\n{answer.stderr}")
    return json.loads(answer.stdout.splitlines()[-1])


def report(way: str, folder: Path) -> None:
    """What `measure` reads."""
    opened(folder)  # imports and loading are not the matter
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    WAYS[way](folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB
    print(json.dumps({"seconds": seconds, "peak": peak / 1024, "rise": (peak - idle) / 1024}))


def reasons_table() -> Table | None:
    """Contributions of both estimators, against shap."""
    if importlib.util.find_spec("shap") is None:
        return None
    import shap

    table = Table("estimator", "microseconds a row", "shap", "ratio", "largest difference")
    rows = made_up(100_000, 2)
    for name in ("hist_gradient_boosting", "gradient_boosting"):
        model = trained(name)
        explainer = explainer_of(model)
        assert explainer is not None
        started = time.perf_counter()
        ours = explainer.contributions(rows)
        own_time = (time.perf_counter() - started) / len(rows)
        peer = model.estimator[-1] if name == "gradient_boosting" else model.estimator
        tree_shap = shap.TreeExplainer(peer)
        started = time.perf_counter()
        theirs = tree_shap.shap_values(rows.head(ROWS_OF_SHAP))
        peer_time = (time.perf_counter() - started) / ROWS_OF_SHAP
        cells = [f"{1e6 * own_time:.1f}", f"{1e6 * peer_time:.1f}", f"{peer_time / own_time:.1f}"]
        table.add_row(name, *cells, f"{np.abs(ours[:ROWS_OF_SHAP] - theirs).max():.1g}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000, help="customers to score")
    parser.add_argument(
        "--iterations",
        type=int,
        default=200,
        help="of boosting; few when memory alone is the matter",
    )
    parser.add_argument("--without", action="append", default=[], choices=WAYS, help="leave out")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        report(given.measure, given.folder)
        return
    console = Console()
    table = Table("way", "seconds", "times predict", "rows a second", "peak MiB", "rise MiB")
    with tempfile.TemporaryDirectory(prefix="churn-benchmark-") as name:
        prepare(Path(name), given.rows, given.iterations)
        found = {way: measure(way, Path(name)) for way in WAYS if way not in given.without}
    for way, cost in found.items():
        times = f"{cost['seconds'] / found['predict']['seconds']:.2f}" if "predict" in found else ""
        speed = f"{given.rows / cost['seconds']:,.0f}"
        memory = (f"{cost['peak']:,.0f}", f"{cost['rise']:,.0f}")
        table.add_row(way, f"{cost['seconds']:.1f}", times, speed, *memory)
    console.print(f"{given.rows:,} customers")
    console.print(table)
    console.print(reasons_table() or "shap is not installed: reasons are not compared")


if __name__ == "__main__":
    main()
