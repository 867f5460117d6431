"""`python -m tests.days [--days N] [--folder FOLDER]`: live the days, and write their table and picture."""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.days import report, script
from tests.days.rehearsal import Day, fresh

TABLE = Path(__file__).parent.parent.parent / "nbs/explanations/rehearsal.csv"


def line(row: Day, seconds: float) -> str:
    """A day on the terminal."""
    alerts = ", ".join(sorted({each for found in row.alerts.values() for each in found})) or "-"
    notes = "; ".join([*row.happened, *row.failed])
    return f"{row.day:4d} {row.events:6d} events  {row.production}  {alerts:24s} {seconds:5.1f} s  {notes}"


def main() -> int:
    """Live them all; 1 when something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="two weeks, as `make test` does")
    parser.add_argument("--folder", type=Path, help="keep all that is made there")
    parser.add_argument("--table", type=Path, default=TABLE)
    given = parser.parse_args()
    days: list[Day] = []
    with tempfile.TemporaryDirectory() as made:
        folder = fresh(given.folder or Path(made) / "days")
        whole = script.short() if given.short else script.full()
        began = time.perf_counter()
        for row, rehearsal in script.live(whole, folder):
            sys.stdout.write(line(row, time.perf_counter() - began) + "\n")
            sys.stdout.writelines(f"     WRONG {each}\n" for each in row.wrong)
            sys.stdout.flush()
            days.append(row)
            with (folder / "days.jsonl").open("a") as log:
                log.write(json.dumps(dataclasses.asdict(row)) + "\n")
            if not given.short:
                report.write(rehearsal, given.table)
            began = time.perf_counter()
    found = [*script.unexplained(days, whole.causes)]
    sys.stdout.writelines(f"WRONG {each}\n" for each in found)
    return 1 if found or any(row.wrong for row in days) else 0


if __name__ == "__main__":
    sys.exit(main())
