"""Delta tables with two writers, and with one that is killed."""

import datetime
import multiprocessing
import os
import signal
from pathlib import Path

import ibis
import pytest

from churn_lib.tables import DeltaTables

MONDAY, TUESDAY = datetime.date(2024, 1, 1), datetime.date(2024, 1, 2)
SPAWN = multiprocessing.get_context("spawn")
ROWS = 1_000


def rows(who: int, day: datetime.date) -> ibis.Table:
    return ibis.memtable({"who": [who] * ROWS}).mutate(day=ibis.literal(day))


def write_often(
    folder: Path, who: int, day: datetime.date, versions: "multiprocessing.Queue[int]"
) -> None:
    tables = DeltaTables(folder)
    for _ in range(8):
        versions.put(tables.overwrite("gold.shared", rows(who, day), {"day": day}))


def write_for_ever(folder: Path, started: "multiprocessing.Queue[int]") -> None:
    tables = DeltaTables(folder)
    who = 1
    while True:
        tables.overwrite("gold.shared", rows(who, MONDAY), {"day": MONDAY})
        started.put(who)
        who += 1


def counts(folder: Path) -> dict[tuple[datetime.date, int], int]:
    table = DeltaTables(folder).read("gold.shared")
    found = table.group_by(["day", "who"]).aggregate(rows=table.count()).to_pyarrow().to_pylist()
    return {(row["day"], row["who"]): row["rows"] for row in found}


@pytest.mark.parametrize("second_day", [MONDAY, TUESDAY], ids=["same partition", "two partitions"])
def test_two_writers_both_finish_and_each_partition_is_one_of_theirs(
    tmp_path: Path, second_day: datetime.date
) -> None:
    versions: multiprocessing.Queue[int] = SPAWN.Queue()
    writers = [
        SPAWN.Process(target=write_often, args=(tmp_path, who, day, versions))
        for who, day in enumerate((MONDAY, second_day))
    ]
    for writer in writers:
        writer.start()
    made = sorted(versions.get(timeout=120) for _ in range(16))
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert made == list(range(16))
    found = counts(tmp_path)
    assert {day for day, _ in found} == {MONDAY, second_day}
    assert len(found) == len({MONDAY, second_day})
    assert set(found.values()) == {ROWS}


def test_a_killed_writer_leaves_the_old_rows_or_the_new(tmp_path: Path) -> None:
    for _ in range(3):
        started: multiprocessing.Queue[int] = SPAWN.Queue()
        writer = SPAWN.Process(target=write_for_ever, args=(tmp_path, started))
        writer.start()
        for _ in range(5):
            started.get(timeout=120)
        assert writer.pid
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert list(counts(tmp_path).values()) == [ROWS]
        DeltaTables(tmp_path).overwrite("gold.shared", rows(0, MONDAY), {"day": MONDAY})
        assert counts(tmp_path) == {(MONDAY, 0): ROWS}
