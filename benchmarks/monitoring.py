"""How long does drift of a million rows by ten columns take, beside Evidently in the same run?

    python -m benchmarks.monitoring --peer .cache/evidently/bin/python

Evidently is installed for this benchmark only, in an environment of its own, and its telemetry is off:

    python -m venv .cache/evidently
    .cache/evidently/bin/pip install evidently==0.7.23 "pandas<3" pyarrow

Both get the same two tables of numbers in memory, a baseline and a window, and compute what they offer
for every column: here six statistics, a profile and the verdict; there the preset for data drift.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from churn_lib.monitoring import drift
from churn_lib.monitoring.metrics import in_threads

PEER = """
import sys, time
import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset
window, baseline = (pd.read_parquet(path) for path in sys.argv[1:3])
best = float("inf")
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    Report([DataDriftPreset()]).run(window, baseline).dict()
    best = min(best, time.perf_counter() - began)
print(best)
"""


def population(rows: int, columns: int, seed: int) -> pd.DataFrame:
    """Half counts, half measurements, as features are."""
    rng = np.random.default_rng(seed)
    names = [f"column_{number}" for number in range(columns)]
    made = [
        rng.poisson(5, rows).astype(float) if number % 2 else rng.gamma(2, 3, rows)
        for number in range(columns)
    ]
    return pd.DataFrame(dict(zip(names, made, strict=True)))


def best_of(work: Callable[[], object], times: int) -> float:
    """Seconds of the quickest run."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def ours(window: pd.DataFrame, baseline: pd.DataFrame) -> pd.DataFrame:
    """Statistics, profile and verdict of every column."""

    def row(name: str) -> dict:
        now, then = drift.distribution(window[name]), drift.distribution(baseline[name])
        return {**drift.profile(now), **drift.compare(now, then)}

    rows = pd.DataFrame(in_threads(row, list(window), len(window)))
    return rows.assign(**drift.judge_columns(rows, 0.2, 0.15))


def peer(python: Path, window: pd.DataFrame, baseline: pd.DataFrame, times: int) -> float | None:
    """Seconds of Evidently; None when it cannot run."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("window.parquet", "baseline.parquet")]
        for frame, path in zip((window, baseline), paths, strict=True):
            frame.to_parquet(path)
        command = [str(python), "-c", PEER, *paths, str(times)]
        quiet = {**os.environ, "DO_NOT_TRACK": "1"}
        answer = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if answer.returncode:
        sys.stderr.write(answer.stderr[-800:])
        return None
    return float(answer.stdout.split()[-1])


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=10)
    parser.add_argument("--times", type=int, default=3, help="runs, of which the quickest counts")
    parser.add_argument("--peer", type=Path, help="a Python that has Evidently")
    given = parser.parse_args()
    window, baseline = (population(given.rows, given.columns, seed) for seed in (1, 2))
    mine = best_of(lambda: ours(window, baseline), given.times)
    print(f"{given.rows:,} rows by {given.columns} columns, window and baseline both")
    print("| | seconds | ratio |")
    print("|---|---|---|")
    print(f"| churn_lib.monitoring.drift | {mine:.2f} | 1.0 |")
    theirs = peer(given.peer, window, baseline, given.times) if given.peer else None
    result = (
        "not measured: pass --peer" if theirs is None else f"{theirs:.2f} | {theirs / mine:.1f}"
    )
    print(f"| Evidently, DataDriftPreset | {result} |")


if __name__ == "__main__":
    main()
