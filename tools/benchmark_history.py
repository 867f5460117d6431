"""Run every benchmark and append what it printed to its history.

`python -m tools.benchmark_history FOLDER`: each module of benchmarks/ is run as `python -m benchmarks.NAME`,
and FOLDER/NAME.jsonl gets a line with commit, time, exit code and output. The ratios within one line were
measured side by side; lines of different nights come from different machines.
"""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from churn_lib.job_context import git_sha

ROOT = Path(__file__).parent.parent


def names(root: Path) -> list[str]:
    """The benchmarks, those that can be run by name."""
    return sorted(
        path.stem
        for path in (root / "benchmarks").glob("*.py")
        if not path.stem.startswith("_") and "__main__" in path.read_text()
    )


def append(folder: Path, name: str, root: Path) -> int:
    """Run one benchmark and write its line; the exit code."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    commit = git_sha(root) or ""
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"commit": commit, "at": moment, "exit": run.returncode, "output": run.stdout}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a") as history:
        history.write(json.dumps(line) + "\n")
    print(f"== {name}\n{run.stdout}{run.stderr if run.returncode else ''}")
    return run.returncode


def main(folder: Path, root: Path = ROOT) -> int:
    """Run all; how many failed."""
    found = names(root)
    if not found:
        print("benchmarks/ has nothing to run")
        return 1
    return sum(append(folder, name, root) != 0 for name in found)


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
