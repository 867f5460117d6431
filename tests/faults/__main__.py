"""Kill every step at its writes, run it again, and write the table for the documentation.

    python -m tests.faults [--most 12] [--step NAME] [--table FILE]

Without --most a step is killed at each of its writes, which takes hours.
"""

import argparse
import csv
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.points import survive
from tests.faults.shop import ROOT, Shop, steps

TABLE = ROOT / "nbs" / "explanations" / "faults.csv"


@dataclass
class Row:
    """A line of the table."""

    step: str
    writes: int  # of an undisturbed run
    killed: int  # runs
    as_undisturbed: int  # of these, after the step was run again
    wrong: str  # what was otherwise; empty when nothing was


def write(rows: list[Row], path: Path) -> None:
    """The whole table, or the one before."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        table = csv.DictWriter(file, list(Row.__dataclass_fields__), lineterminator="\n")
        table.writeheader()
        table.writerows(map(asdict, rows))
    part.replace(path)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--most", type=int, help="so many writes of each step, evenly spread")
    names = [step.name for step in steps(Path())]
    parser.add_argument("--step", choices=names, help="kill this one alone, and write no table")
    parser.add_argument("--table", type=Path, default=TABLE)
    return parser.parse_args(words)


def main() -> int:
    """Print a line for each step; 1 when something was lost."""
    given = arguments()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, Shop(Path(folder) / "shop") as shop:
        for step in steps(shop.folder):
            began = time.perf_counter()
            most = given.most if given.step in (None, step.name) else 0
            found = survive(shop, step, most)
            held = found.killed - len(found.wrong)
            lines = [
                f"write {number}: {line}" for number, lines in found.wrong.items() for line in lines
            ]
            rows.append(Row(step.name, found.writes, found.killed, held, "; ".join(lines)[:1000]))
            seconds = time.perf_counter() - began
            print(
                f"{step.name:24} {found.writes:5} writes {found.killed:5} killed {held:5} as undisturbed {seconds:7.1f} s"
            )
            for line in lines:
                print(f"    {line}")
            sys.stdout.flush()
            if not given.step:
                write(rows, given.table)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
