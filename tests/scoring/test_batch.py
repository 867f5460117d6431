"""Batch scores: what is written, when, by whom; and what a killed run leaves behind."""

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ibis
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from churn_lib import registry, scoring, settings, tables
from churn_lib.features import FEATURES
from churn_lib.model import ChurnModel
from churn_lib.scoring import call_list, reasons
from churn_lib.scoring.batch import ScoringError
from churn_lib.training import SIGNATURE

ROOT = Path(__file__).parents[2]
NEWEST, LABELLED = datetime.date(2024, 7, 1), datetime.date(2024, 4, 2)
CUSTOMERS = 3_000


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small models on few rows: threads that wait for each other would be most of the time."""
    with threadpool_limits(1):
        yield


def made_up(day: datetime.date, labelled: bool) -> pd.DataFrame:
    """One snapshot of gold.features; many customers are exactly alike."""
    rng = np.random.default_rng(day.toordinal())
    rows = pd.DataFrame(rng.integers(0, 6, (CUSTOMERS, len(FEATURES))), columns=FEATURES)
    rows["avg_events_per_day"] = rows["avg_events_per_day"] / 3
    churned = (rows.days_since_last_event + rng.normal(0, 1, CUSTOMERS) > 2).astype("int64")
    rows["churned"] = churned if labelled else pd.array([None] * CUSTOMERS, dtype="Int64")
    rows["customer_id"] = [f"c{number:05d}" for number in rng.permutation(CUSTOMERS)]
    rows["in_holdout_bucket"] = rng.uniform(size=CUSTOMERS) < 0.2
    return rows.assign(feature_date=day)


def make_tables(config: settings.Settings) -> tables.DeltaTables:
    store = tables.connect(config)
    for day, labelled in ((LABELLED, True), (NEWEST, False)):
        rows = pa.Table.from_pandas(made_up(day, labelled), preserve_index=False)
        store.overwrite("gold.features", ibis.memtable(rows), {"feature_date": day})
    return store


def register(models: registry.Registry, estimator: object, threshold: float) -> int:
    rows = made_up(LABELLED, labelled=True)
    model = ChurnModel(estimator, threshold).fit(rows[FEATURES].astype(float), rows.churned)
    logged = mlflow.sklearn.log_model(
        model,
        name="churn",
        signature=SIGNATURE,
        serialization_format="cloudpickle",
        pip_requirements=["scikit-learn"],
    )
    return models.register(logged.model_uri, {"decision_threshold": repr(threshold)})


def make_config(folder: Path) -> settings.Settings:
    (folder / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    return settings.load("local", folder / "settings.ini")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> settings.Settings:
    """A store with two snapshots and three versions of the model, the first at Production."""
    config = make_config(tmp_path_factory.mktemp("scoring"))
    make_tables(config)
    models = registry.connect(config)
    with mlflow.start_run():
        small = HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=8, random_state=0)
        assert register(models, small, 0.4) == 1
        assert register(models, clone(small).set_params(max_iter=10), 0.7) == 2
        bayes = make_pipeline(StandardScaler(), GaussianNB())
        assert register(models, bayes, 0.5) == 3
    models.set_alias(registry.PRODUCTION, 1)
    return config


@pytest.fixture
def store(config: settings.Settings, tmp_path: Path) -> tables.DeltaTables:
    """Tables of its own for each test."""
    return make_tables(make_config(tmp_path))


@pytest.fixture
def models(config: settings.Settings) -> registry.Registry:
    models = registry.connect(config)
    models.set_alias(registry.PRODUCTION, 1)
    return models


def test_predictions_are_the_registered_models_answers_row_by_row(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    done = scoring.score(store, scoring.read_snapshot(store), scoring.production(models), "abc")
    written = store.read("gold.predictions", done.version).to_pandas().set_index("customer_id")
    asked = made_up(NEWEST, labelled=False).set_index("customer_id")
    expected = models.load(1).predict(asked[FEATURES].astype(float))
    np.testing.assert_array_equal(written.loc[asked.index, "churn_probability"], expected)
    np.testing.assert_array_equal(
        written["decision"], (written["churn_probability"] >= 0.4).astype(int)
    )
    assert len(written) == CUSTOMERS == done.customers
    assert done.to_call == written["decision"].sum() > 0
    assert done.feature_date == NEWEST


def test_the_table_holds_what_others_read_from_it(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    before = datetime.datetime.now(datetime.UTC)
    scoring.score(store, scoring.read_snapshot(store), scoring.production(models), "abc")
    table = store.read("gold.predictions")
    assert {name: str(kind) for name, kind in table.schema().items()} == {
        "customer_id": "string",
        "feature_date": "date",
        "model_version": "int64",
        "model_name": "string",
        "churn_probability": "float64",
        "decile": "int64",
        "tied": "boolean",
        "decision": "int64",
        "contacted": "boolean",
        "control_share": "float64",
        "reasons": "array<struct<feature: string, value: float64, contribution: float64>>",
        "scored_at": "timestamp('UTC', 6)",
        "git_sha": "string",
        "backfilled": "boolean",
    }
    rows = table.to_pandas()
    assert set(rows.git_sha) == {"abc"}
    assert set(rows.model_name) == {"churn-prediction-gbm"}
    assert rows.scored_at.nunique() == 1
    assert before <= rows.scored_at.iloc[0] <= datetime.datetime.now(datetime.UTC)
    assert all(1 <= len(each) <= 3 for each in rows.reasons)
    commit = store.history("gold.predictions").tags.iloc[0]
    assert commit["git_sha"] == "abc"
    assert commit["delta_feature_version"] == str(store.version("gold.features"))


def test_batches_leave_no_trace_in_the_answers(
    store: tables.DeltaTables, models: registry.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, scorer = scoring.read_snapshot(store), scoring.production(models)
    first = scoring.score(store, snapshot, scorer, "abc").version
    monkeypatch.setattr(scoring.batch, "_BATCH", 311)
    reports: list[tuple[int, int]] = []
    progress = lambda done, total: reports.append((done, total))  # noqa: E731
    second = scoring.score(store, snapshot, scorer, "abc", progress).version
    whole, cut = (
        store.read("gold.predictions", version)
        .drop("scored_at")
        .order_by("customer_id")
        .to_pandas()
        for version in (first, second)
    )
    pd.testing.assert_frame_equal(whole, cut)
    assert reports[-1] == (CUSTOMERS, CUSTOMERS)
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})
    assert len(reports) > 5


def test_a_second_run_replaces_its_partition_and_no_other(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    def run(as_of: datetime.date | None, git_sha: str) -> None:
        snapshot = scoring.read_snapshot(store, as_of)
        scoring.score(store, snapshot, scoring.production(models), git_sha)

    run(None, "first")
    run(LABELLED, "earlier day")
    models.set_alias(registry.PRODUCTION, 2)
    run(None, "other version")
    models.set_alias(registry.PRODUCTION, 1)
    run(NEWEST, "again")
    table = store.read("gold.predictions")
    counted = table.group_by(["feature_date", "model_version", "git_sha"]).aggregate(
        n=table.count()
    )
    assert sorted(counted.to_pyarrow().to_pylist(), key=str) == sorted(
        [
            {"feature_date": day, "model_version": version, "git_sha": sha, "n": CUSTOMERS}
            for day, version, sha in (
                (LABELLED, 1, "earlier day"),
                (NEWEST, 1, "again"),
                (NEWEST, 2, "other version"),
            )
        ],
        key=str,
    )
    kept = scoring.read_predictions(store, NEWEST, 2).to_pandas()
    assert ((kept.churn_probability >= 0.7) == (kept.decision == 1)).all()


def test_a_model_of_another_make_scores_without_reasons(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    models.set_alias(registry.PRODUCTION, 3)
    scorer = scoring.production(models)
    assert scorer.reasons == "no reasons for StandardScaler + GaussianNB, the scores are complete"
    scoring.score(store, scoring.read_snapshot(store), scorer, "abc")
    rows = store.read("gold.predictions").to_pandas()
    assert len(rows) == CUSTOMERS
    assert rows.reasons.isna().all()
    shown = call_list.call_list(store.read("gold.predictions"), limit=5)
    assert shown.first.index.tolist() == [1, 2, 3, 4, 5]
    assert shown.first.churn_probability.is_monotonic_decreasing


def test_a_model_that_answers_no_probabilities_writes_nothing(store: tables.DeltaTables) -> None:
    class Broken:
        def predict(self, rows: pd.DataFrame) -> np.ndarray:
            answers = np.full(len(rows), 0.5)
            answers[-1] = np.nan
            return answers

    scorer = scoring.Scorer("m", 9, Broken(), 0.5, None)
    with pytest.raises(ScoringError, match="version 9 of m cannot score: 1 answers are not finite"):
        scoring.score(store, scoring.read_snapshot(store), scorer, "abc")
    assert not store.exists("gold.predictions")


def test_what_is_missing_is_named_with_what_makes_it(
    store: tables.DeltaTables, config: settings.Settings, tmp_path: Path
) -> None:
    with pytest.raises(
        ScoringError, match="no snapshot of 2020-01-01, it has 2024-04-02, 2024-07-01"
    ):
        scoring.read_snapshot(store, datetime.date(2020, 1, 1))
    registry.connect(config)
    nobody = registry.Registry("nobody")
    with pytest.raises(ScoringError, match="model nobody has no alias Production: run validation"):
        scoring.production(nobody)


PROBABILITIES = st.lists(st.sampled_from([0.0, 0.1, 0.1 + 1e-17, 1 / 3, 0.5, 1.0]), min_size=1)


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    st.one_of(PROBABILITIES, st.lists(st.floats(0, 1), min_size=1, max_size=60)),
    st.integers(0, 99),
)
@example([0.5] * 25, 0)
@example([0.30000000000000004, 0.3, 0.1 + 0.2, 0.29999999999999993] * 3, 1)
def test_deciles_are_those_of_sorting_everybody(probability: list[float], seed: int) -> None:
    count = len(probability)
    ids = [f"c{number:03d}" for number in np.random.default_rng(seed).permutation(count)]
    frame = pd.DataFrame({"customer_id": ids, "churn_probability": probability})
    found = (
        scoring.batch.with_decile(ibis.memtable(frame)).to_pandas().set_index("customer_id").decile
    )
    ordered = frame.sort_values(["churn_probability", "customer_id"], ascending=[False, True])
    share, rest = divmod(count, 10)
    sizes = [share + (number < rest) for number in range(10)]
    expected = pd.Series(np.repeat(range(1, 11), sizes), index=ordered.customer_id)
    assert found.sort_index().tolist() == expected.sort_index().tolist()


KILLED = """
import os, signal, sys
from pathlib import Path
from churn_lib import settings, tables
from churn_lib.scoring import batch as scoring
from churn_lib.registry import models as registry
from churn_lib.tables import delta as delta_tables

config = settings.load("local")
scoring._BATCH = 300
where = sys.argv[1]
store, scorer = tables.connect(config), scoring.production(registry.connect(settings.load("local", Path(sys.argv[2]))))

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "while scoring":
    scoring.score(store, scoring.read_snapshot(store), scorer, "killed", lambda done, total: done > total / 2 and die())
else:
    # the rows are read for the commit, which is not made yet
    stream = delta_tables._stream
    def half(*arguments):
        reader = stream(*arguments)
        def batches():
            yield reader.read_next_batch()
            die()
        import pyarrow
        return pyarrow.RecordBatchReader.from_batches(reader.schema, batches())
    delta_tables._stream = half
    scoring.score(store, scoring.read_snapshot(store), scorer, "killed")
"""


@pytest.mark.parametrize("where", ["while scoring", "while writing"])
def test_a_killed_run_leaves_the_former_predictions_and_the_next_one_ends_well(
    config: settings.Settings, models: registry.Registry, tmp_path: Path, where: str
) -> None:
    own = make_config(tmp_path)
    store = make_tables(own)
    snapshot, scorer = scoring.read_snapshot(store), scoring.production(models)
    scoring.score(store, snapshot, scorer, "former")
    command = [sys.executable, "-c", KILLED, where, str(config.root / "settings.ini")]
    environment = {**os.environ, "CHURN_SETTINGS": str(tmp_path / "settings.ini")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert set(store.read("gold.predictions").to_pandas().git_sha) == {"former"}
    scoring.score(store, snapshot, scorer, "next")
    rows = store.read("gold.predictions").to_pandas()
    assert set(rows.git_sha) == {"next"}
    assert len(rows) == CUSTOMERS


def churn(config: settings.Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["CHURN_SETTINGS"] = str(config.root / "settings.ini")
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [str(Path(sys.executable).parent / "churn"), *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def test_the_job_ends_in_a_report_with_the_list_and_the_charts(
    config: settings.Settings, models: registry.Registry
) -> None:
    answer = churn(
        config,
        "run",
        "scoring_job",
        "--only",
        "score_customers",
        "--param",
        "git_sha=abc",
        "--json",
    )
    assert answer.returncode == 0, answer.stderr + answer.stdout
    (task,) = json.loads(answer.stdout)["tasks"]
    store = tables.connect(config)
    written = scoring.read_predictions(store, NEWEST, 1).to_pandas()
    assert "version 1 of churn-prediction-gbm has no gate report" in task["values"].pop("warning")
    assert task["values"] == {
        "predictions_version": store.version("gold.predictions"),
        "feature_date": str(NEWEST),
        "model_version": 1,
        "customers": CUSTOMERS,
        "to_call": int(written.decision.sum()),
        "control": 0,
        "sentence": f"{CUSTOMERS:,} customers of {NEWEST} scored by version 1,"
        f" {int(written.decision.sum()):,} to contact.",
    }
    report = Path(task["notebook"]).with_suffix(".html").read_text()
    assert f"{CUSTOMERS:,} of {CUSTOMERS:,} customers" in report
    assert "customers to call" in report
    assert f"Gain on {LABELLED}" in report
    assert f"Lift on {LABELLED}" in report
    best = written.sort_values(["churn_probability", "customer_id"], ascending=[False, True])
    assert best.customer_id.iloc[0] in report


def test_the_job_without_a_model_at_production_fails_with_one_clear_line(tmp_path: Path) -> None:
    own = make_config(tmp_path)
    make_tables(own)
    answer = churn(own, "run", "scoring_job", "--only", "score_customers", "--param", "git_sha=abc")
    assert answer.returncode == 1
    assert "has no alias Production: run validation_job first" in " ".join(answer.stdout.split())


def test_charts_stand_on_labels_that_were_known_on_the_day_and_on_held_out_customers(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    features, scorer = store.read("gold.features"), scoring.production(models)
    report = call_list.gains_report(scorer, features, NEWEST, horizon_days=90)
    held_out = made_up(LABELLED, labelled=True).query("in_holdout_bucket")
    assert report.feature_date == LABELLED
    assert report.churned.sum() == held_out.churned.sum()
    np.testing.assert_array_equal(
        np.sort(report.probability),
        np.sort(models.load(1).predict(held_out[FEATURES].astype(float))),
    )
    day_before = LABELLED + datetime.timedelta(days=89)
    assert (
        call_list.gains_report(scorer, features, day_before, horizon_days=90).feature_date is None
    )


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_gain_is_the_mean_over_all_orders_of_equal_customers(seed: int, values: int) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.integers(0, values, 60) / values
    churned = rng.integers(0, 2, 60)
    churned[0] = 1
    curve = call_list.gain_curve(churned, probability)
    reached = np.zeros(61)
    for _ in range(200):
        order = np.lexsort([rng.uniform(size=60), -probability])
        reached[1:] += np.cumsum(churned[order]) / churned.sum() / 200
    found = np.interp(np.arange(61) / 60, curve["called"], curve["gain"])
    assert np.abs(found - reached).max() < 0.1
    assert found[-1] == pytest.approx(1)
    assert call_list.gains(churned, probability).lift.iloc[-1] == pytest.approx(1)


class Plain(mlflow.pyfunc.PythonModel):
    """A model of no flavor that MLflow could look into."""

    def predict(self, context: object, model_input: pd.DataFrame) -> np.ndarray:
        return np.where(model_input["days_since_last_event"] > 2, 0.75, 0.25)


def test_a_plain_pyfunc_is_scored_without_reasons_and_ties_are_counted(
    store: tables.DeltaTables, tmp_path: Path
) -> None:
    mlflow.pyfunc.save_model(tmp_path / "plain", python_model=Plain(), pip_requirements=[])
    model = mlflow.pyfunc.load_model(str(tmp_path / "plain"))
    explainer = reasons.explainer_of(model)
    scorer = scoring.Scorer("plain", 1, model, 0.5, explainer)
    done = scoring.score(store, scoring.read_snapshot(store), scorer, "abc")
    written = scoring.read_predictions(store, done.feature_date, 1)
    rows = written.to_pandas()
    assert explainer is None and rows.reasons.isna().all()
    assert done.to_call == int((rows.churn_probability == 0.75).sum())
    deciles = scoring.by_decile(written)
    expected = [
        rows[rows.decile == decile]
        .churn_probability.isin(rows[rows.decile != decile].churn_probability)
        .sum()
        for decile in deciles.index
    ]
    assert deciles.tied.tolist() == expected and sum(expected) > 0
    marked = rows.groupby("decile").tied.sum().reindex(deciles.index)
    assert marked.tolist() == expected


def test_predictions_from_before_a_column_was_added_stay_and_read_as_unknown(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    snapshot, scorer = scoring.read_snapshot(store), scoring.production(models)
    first = scoring.score(store, snapshot, scorer, "abc")
    added = ("tied", "contacted", "control_share")
    rows = store.read("gold.predictions").drop(*added).to_pyarrow()
    shutil.rmtree(store.path("gold.predictions"))
    former = {"feature_date": NEWEST, "model_version": first.model_version + 7}
    older = rows.to_pandas().assign(model_version=former["model_version"])
    store.overwrite("gold.predictions", ibis.memtable(older[list(rows.schema.names)]), former)
    unmarked = scoring.read_predictions(store, NEWEST, former["model_version"])
    assert call_list.call_list(unmarked).to_call == first.to_call
    again = scoring.score(store, snapshot, scorer, "abc", control_share=0.2)
    found = store.read("gold.predictions").to_pandas()
    assert found.groupby("model_version").size().tolist() == [CUSTOMERS, CUSTOMERS]
    for name in added:
        assert found[found.model_version == former["model_version"]][name].isna().all()
        assert found[found.model_version == first.model_version][name].notna().all()
    kept = scoring.read_predictions(store, NEWEST, former["model_version"])
    shown = call_list.call_list(kept)
    assert (shown.to_call, shown.control) == (first.to_call, 0)
    assert scoring.by_decile(kept).to_call.sum() == first.to_call
    assert again.to_call + again.control == first.to_call and again.control > 0
