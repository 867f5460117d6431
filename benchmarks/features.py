"""How long a snapshot takes, against a scan, DuckDB by hand, polars and pandas.

    python -m benchmarks.features --events 10_000_000 100_000_000

Every path runs in a process of its own and its answer is compared with ours. The paths take turns,
and a ratio is the median of the ratios inside a turn, so that a busy machine slows all alike. polars
needs `pip install -e .[benchmarks]`.
"""

import argparse
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psutil

from benchmarks.feature_paths import SHOWN
from churn_lib.data.simulation import Population, simulate_to
from churn_lib.tables import DeltaTables

ROOT = Path(__file__).parent.parent
COLUMNS = ("path", "wall s", "CPU s", "peak GB", "wall / scan", "CPU / scan", "CPU / ours")
Run = dict[str, float]  # seconds, cpu_seconds, peak_gb


def data(
    folder: Path,  # of all sizes
    events: int,  # about so many
) -> Path:  # folder of the Delta tables
    """Simulated events in time order, made once and kept."""
    tables = folder / f"events-{events}"
    if not (tables / "as_of").exists():
        sys.stdout.write(f"simulating {events:,} events\n")
        population = Population(max(events // 20, 1))
        done = simulate_to(DeltaTables(tables), population, replace=True)
        (tables / "as_of").write_text(str(population.end))
        sys.stdout.write(f"{done.events:,} events after {done.seconds:.0f} s\n")
    return tables


def run(path: str, tables: Path, answer: Path) -> Run:
    """One path in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.feature_paths", path, str(tables), str(answer)]
    environment = {**os.environ, "CHURN_SETTINGS": str(ROOT / "settings.ini")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"{path} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def differences(ours: Path, other: Path) -> int:
    """Customers whose features are not the same; decimals may differ in the last digits."""
    alike = [
        f"abs(a.{name} - b.{name}) <= 1e-9 * greatest(1, abs(a.{name}))"
        if name in ("silent_share", "avg_events_per_day", "engagement_score")
        else f"a.{name} = b.{name}"
        for name in SHOWN[1:]
    ]
    query = f"""SELECT count(*) FROM '{ours}' a FULL JOIN '{other}' b USING (customer_id)
        WHERE coalesce(NOT ({" AND ".join(alike)}), true)"""
    found = duckdb.sql(query).fetchone()
    assert found
    return found[0]


def paths_for(events: int, clustering: bool) -> Iterator[str]:
    """What is measured at a size: pandas only where its 300 bytes for each event fit in memory."""
    yield from ("scan", "ours", "raw SQL")
    if importlib.util.find_spec("polars"):
        yield "polars"
    else:
        sys.stdout.write("polars: not installed, pip install -e .[benchmarks]\n")
    if events * 600 < psutil.virtual_memory().available:
        yield "pandas"
    else:
        sys.stdout.write(f"pandas: {events:,} events do not fit in this machine's memory\n")
    if clustering:
        yield from ("cluster", "clustered")


def measure(tables: Path, paths: list[str], rounds: int) -> dict[str, list[Run]]:
    """All paths in turn, `rounds` times; every answer is compared."""
    runs: dict[str, list[Run]] = {path: [] for path in paths}
    with tempfile.TemporaryDirectory(dir=tables) as scratch:
        for _ in range(rounds):
            for path in paths:
                answer = Path(scratch) / f"{path}.parquet"
                runs[path].append(run(path, tables, answer))
                if answer.exists() and path != "ours":
                    found = differences(Path(scratch) / "ours.parquet", answer)
                    if found:
                        sys.exit(f"{path} and ours differ in {found} customers")
    return runs


def ratio(runs: dict[str, list[Run]], path: str, peer: str, what: str) -> float:
    """Median over the turns of one path's cost over a peer's."""
    pairs = zip(runs[path], runs[peer], strict=True)
    return statistics.median(one[what] / other[what] for one, other in pairs)


def table(runs: dict[str, list[Run]]) -> Iterator[str]:
    """Rows of a printed table."""
    yield "".join(f"{title:>13}" for title in COLUMNS)
    for path, measured in runs.items():
        wall, cpu, peak = (
            statistics.median(one[what] for one in measured)
            for what in ("seconds", "cpu_seconds", "peak_gb")
        )
        ratios = (
            ratio(runs, path, "scan", "seconds"),
            ratio(runs, path, "scan", "cpu_seconds"),
            ratio(runs, path, "ours", "cpu_seconds"),
        )
        numbers = (wall, cpu, peak, *ratios)
        yield f"{path:>13}" + "".join(f"{number:>13.2f}" for number in numbers)


def clustering(runs: dict[str, list[Run]]) -> str:
    """After how many snapshots sorting the events has paid."""
    cost, plain, sorted_ = (
        statistics.median(one["cpu_seconds"] for one in runs[path])
        for path in ("cluster", "ours", "clustered")
    )
    if sorted_ >= plain:
        return "clustering by customer never pays: a snapshot takes no less"
    return (
        f"clustering by customer pays after {math.ceil(cost / (plain - sorted_))} snapshots (CPU)"
    )


def main() -> None:
    """Measure every size, print a table for each, and how our path grows."""
    parser = argparse.ArgumentParser(prog="benchmarks.features", description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="turns of all paths")
    parser.add_argument("--clustering", action="store_true", help="cluster by customer, too")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "benchmarks")
    given = parser.parse_args()
    medians = {}
    for events in sorted(given.events):
        tables = data(given.folder, events)
        paths = list(paths_for(events, given.clustering))
        runs = measure(tables, paths, given.rounds)
        lines = [f"{events:,} events, {given.rounds} turns", *table(runs)]
        if given.clustering:
            lines.append(clustering(runs))
            shutil.rmtree(DeltaTables(tables).path("bronze.events_by_customer"))
        sys.stdout.write("\n".join(lines) + "\n\n")
        medians[events] = [
            statistics.median(one[what] for one in runs["ours"])
            for what in ("seconds", "cpu_seconds")
        ]
    if len(medians) > 1:
        (small, a), (large, b) = min(medians.items()), max(medians.items())
        powers = [math.log(y / x) / math.log(large / small) for x, y in zip(a, b, strict=True)]
        sys.stdout.write(
            f"ours grows with exponent {powers[0]:.2f} (wall), {powers[1]:.2f} (CPU)\n"
        )


if __name__ == "__main__":
    main()
