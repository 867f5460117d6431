"""The whole pipeline on CDNOW: `churn pipeline`, beside the same notebooks as plain code and by papermill alone.

    python -m benchmarks.pipeline [--rounds 3]

- plain: the code cells of every task, one after the other, in one process that imports everything once. No
  report, no isolation: what the work itself costs.
- churn pipeline: the command, as it is typed.
- papermill: the command papermill for each task, a kernel that starts by itself, the report as a notebook.

Each has a new store, and they take turns; a row is the median of its rounds. CPU is of all processes.
"""

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from churn_lib.bundle import load, make_plan, run_plan
from churn_lib.bundle.execution import ExecutionError
from churn_lib.cli.jobs import PIPELINE

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@contextmanager
def surroundings(environment: dict[str, str], folder: Path) -> Iterator[None]:
    """What a kernel would have."""
    before, place = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        os.chdir(place)


def plain(
    notebook: Path, output: Path, parameters: dict[str, str], environment: dict[str, str], *_: Any
) -> None:
    """The code cells, here."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with surroundings(environment, notebook.parent):
        for cell in nbformat.read(notebook, as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, str(notebook), "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(parameters)


def papermill(
    notebook: Path, output: Path, parameters: dict[str, str], environment: dict[str, str], *_: Any
) -> None:
    """The command papermill."""
    given = [word for name, value in parameters.items() for word in ("-r", name, value)]
    command = [BIN / "papermill", "--no-progress-bar", "--cwd", notebook.parent, *given]
    done = subprocess.run(
        [*command, notebook, output], env={**environment, "PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        raise ExecutionError(done.stderr)


WAYS: dict[str, Callable[..., None]] = {"plain": plain, "papermill": papermill}


def run_by(way: str) -> None:
    """The jobs of the pipeline, in the project's own order; this process does nothing else."""
    settings = Path(os.environ["CHURN_SETTINGS"])
    bundle = load("local", ROOT)
    for job in PIPELINE:
        plan = make_plan(bundle, job, {})
        done = run_plan(plan, settings.parent / ".churn" / "runs", execute=WAYS[way])
        if not done.succeeded:
            sys.exit(str([task.error for task in done.tasks]))


def measure(way: str) -> tuple[float, float]:
    """Wall and CPU seconds of one pipeline in a store of its own."""
    with tempfile.TemporaryDirectory() as made:
        for name in ("settings.ini", "requirements.lock"):
            shutil.copy(ROOT / name, made)
        environment = {**os.environ, "CHURN_SETTINGS": f"{made}/settings.ini"}
        words = ["-m", "benchmarks.pipeline", "--way", way]
        command = (
            [BIN / "churn", "pipeline"] if way == "churn pipeline" else [BIN / "python", *words]
        )
        began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        stop = [BIN / "churn", "endpoint", "stop"]
        subprocess.run(stop, cwd=ROOT, env=environment, capture_output=True)
    if done.returncode:
        sys.exit(f"{way}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return wall, after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        run_by(given.way)
        return
    ways = ("plain", "churn pipeline", "papermill")
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(given.rounds):
        for way in ways:
            found[way].append(measure(way))
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {given.rounds} rounds")
    one = statistics.median(wall for wall, _ in found["plain"])
    for way, times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"  {way:16} {wall:6.1f} s wall {cpu:7.1f} s CPU {wall / one:6.2f} times plain")


if __name__ == "__main__":
    main()
