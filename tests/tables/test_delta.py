"""Delta tables with two writers, and with one that is killed."""

import datetime
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pytest

from churn_lib.data import files
from churn_lib.data.files import SourceError
from churn_lib.tables import DeltaTables, TableError, exclusive_lock, try_lock

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


def write_new_tables(
    folder: Path, who: int, turn: "threading.Barrier", done: "multiprocessing.Queue[int]"
) -> None:
    tables = DeltaTables(folder)
    day = (MONDAY, TUESDAY)[who]
    for number in range(4):
        turn.wait(120)
        tables.overwrite(f"gold.partitioned_{number}", rows(who, day), {"day": day})
        tables.append(f"gold.appended_{number}", rows(who, day))
    done.put(who)


def test_two_writers_who_make_a_table_at_once_both_find_their_rows_in_it(tmp_path: Path) -> None:
    turn, done = SPAWN.Barrier(2), SPAWN.Queue()
    writers = [
        SPAWN.Process(target=write_new_tables, args=(tmp_path, who, turn, done)) for who in (0, 1)
    ]
    for writer in writers:
        writer.start()
    assert {done.get(timeout=120) for _ in writers} == {0, 1}
    for writer in writers:
        writer.join()
    tables = DeltaTables(tmp_path)
    for kind in ("partitioned", "appended"):
        for number in range(4):
            table = tables.read(f"gold.{kind}_{number}")
            assert table.count().to_pyarrow().as_py() == 2 * ROWS
            assert table.who.nunique().to_pyarrow().as_py() == 2


def test_rows_with_other_columns_are_refused_and_the_table_stays(tmp_path: Path) -> None:
    tables = DeltaTables(tmp_path)
    tables.append("gold.shared", rows(1, MONDAY))
    with pytest.raises(TableError, match=r"gold.shared has other columns"):
        tables.append("gold.shared", rows(1, MONDAY).mutate(more=ibis.literal(1)))
    assert tables.version("gold.shared") == 0


def test_retention_keeps_the_versions_it_is_told_to_keep(tmp_path: Path) -> None:
    tables = DeltaTables(tmp_path)
    for who in range(4):
        tables.overwrite("gold.shared", rows(who, MONDAY), {"day": MONDAY})
    tables.compact("gold.shared")
    tables.retain("gold.shared", days=0, keep=[1])
    found = {}
    for version in range(4):
        try:
            kept = tables.read("gold.shared", version).who.max().to_pyarrow().as_py()
        except Exception as error:  # whatever the engine says of a file that is gone
            kept = type(error)
        found[version] = kept
    assert (found[1], found[3]) == (1, 3)
    assert found[0] not in (0, 1, 2, 3)
    assert found[2] not in (0, 1, 2, 3)


# Delta's protocol has a bitmap say which rows are deleted: here the first, in Z85
FIRST_ROW = "^Bg9^0rr910000000000iXQKl0rr91000005c8Xg00000"


def edit_log(table: Path, action: str, **values: Any) -> None:
    """Have the one commit of a table say what another writer would have said."""
    log = table / "_delta_log" / "00000000000000000000.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for each in actions:
        each.get(action, {}).update(values)
    log.write_text("\n".join(map(json.dumps, actions)))


def test_a_table_is_refused_when_rows_are_deleted_beside_its_files_and_not_before(
    tmp_path: Path,
) -> None:
    tables = DeltaTables(tmp_path)
    tables.append("gold.shared", rows(1, MONDAY))
    path = tables.path("gold.shared")
    # Databricks switches the feature on for every table
    features = {key: ["deletionVectors"] for key in ("readerFeatures", "writerFeatures")}
    edit_log(path, "protocol", minReaderVersion=3, minWriterVersion=7, **features)
    assert tables.read("gold.shared").count().to_pyarrow().as_py() == ROWS
    inline = {"storageType": "i", "pathOrInlineDv": FIRST_ROW, "sizeInBytes": 34, "cardinality": 1}
    edit_log(path, "add", deletionVector=inline)
    with pytest.raises(TableError, match=r"gold.shared uses deletion vectors, .* as Parquet"):
        DeltaTables(tmp_path).read("gold.shared")
    with pytest.raises(SourceError, match=r"uses deletion vectors, .* as Parquet"):
        files.find(str(path))


SPILLS = """
import os, sys
from pathlib import Path
from churn_lib.tables import DeltaTables

connection = DeltaTables(Path(sys.argv[1])).connection
connection.raw_sql("SET memory_limit = '60MB'")
query = "SELECT count(*) FROM (SELECT md5(i::VARCHAR) AS k FROM range(1500000) t(i) GROUP BY k)"
print(connection.raw_sql(query).fetchone()[0])
print(any(Path(sys.argv[1]).glob(f".spill-{os.getpid()}-*")))
"""


def test_two_processes_that_spill_at_once_keep_out_of_each_others_way(tmp_path: Path) -> None:
    (tmp_path / ".spill-999999999-killed").mkdir()
    command = [sys.executable, "-c", SPILLS, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=300)[0].strip() for process in running]
    assert answers == ["1500000\nTrue"] * 2
    assert list(tmp_path.glob(".spill*")) == []


@pytest.mark.parametrize("above", ["who=7", "day=2020-01-01", "day=2020-01-01/who=7"])
def test_folders_above_a_store_do_not_change_what_its_tables_say(
    tmp_path: Path, above: str
) -> None:
    tables = DeltaTables(tmp_path / above / "tables")
    for day in (MONDAY, TUESDAY):
        tables.overwrite("gold.shared", rows(1, day), {"day": day})
    assert counts(tmp_path / above / "tables") == {(MONDAY, 1): ROWS, (TUESDAY, 1): ROWS}


@pytest.mark.parametrize("folder", ["tables", "day=1999-01-01"])
def test_many_partitions_are_one_scan_and_give_what_each_alone_gives(
    tmp_path: Path, folder: str
) -> None:
    tables = DeltaTables(tmp_path / folder)
    days = [MONDAY + datetime.timedelta(days=n) for n in range(5)]
    for number, day in enumerate(days):
        frame = pd.DataFrame({"who": [f"c{number}"], "n": [number]})
        if number >= 3:
            frame["late"] = 0.5  # a column that came later
        tables.overwrite("gold.t", ibis.memtable(frame).mutate(day=ibis.literal(day)), {"day": day})
    read = tables.read("gold.t")
    scans = read.get_backend().raw_sql(f"EXPLAIN {ibis.to_sql(read)}").fetchall()[0][1]
    assert scans.count("Function:") == (1 if folder == "tables" else 5)
    found = read.order_by("n").to_pandas()
    assert [day.date() for day in found.day] == days and [*found.who] == [f"c{n}" for n in range(5)]
    assert found.late.isna().tolist() == [True, True, True, False, False]
    one = read.filter(read.day == days[2]).to_pandas()
    assert [*one.n] == [2]


def test_a_table_that_was_made_anew_under_the_same_version_is_read_anew(tmp_path: Path) -> None:
    tables = DeltaTables(tmp_path / "tables")
    for value in (1, 2):
        shutil.rmtree(tmp_path / "tables" / "gold", ignore_errors=True)
        tables.overwrite("gold.t", ibis.memtable({"n": [value]}))
        assert tables.read("gold.t").n.to_pyarrow().to_pylist() == [value]


@pytest.mark.parametrize(
    "shops", [["a b/c=d", "50 %", "O'Hara", "Köln", "shop=x"], ["NULL", "null"], ["007", "7"]]
)
def test_values_of_partitions_come_back_whatever_is_in_them(
    tmp_path: Path, shops: list[str]
) -> None:
    tables = DeltaTables(tmp_path)
    for shop in shops:
        tables.overwrite("gold.shops", ibis.memtable({"n": [1], "shop": [shop]}), {"shop": shop})
    assert sorted(tables.read("gold.shops").to_pyarrow()["shop"].to_pylist()) == sorted(shops)


HOLDS = """
import sys, time
from pathlib import Path
from churn_lib.tables import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_keeps_others_out_and_a_killed_process_gives_it_back(tmp_path: Path) -> None:
    lock, waited = tmp_path / "below" / "lock", []
    command = [sys.executable, "-c", HOLDS, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            assert try_lock(lock) is None
            with (
                pytest.raises(TimeoutError, match=r"held by another process for 0\.2 s"),
                exclusive_lock(lock, lambda: waited.append(1), 0.2),
            ):
                pass
            assert waited == [1]
        finally:
            holder.kill()
    with exclusive_lock(lock, lambda: waited.append(2), 30):
        assert waited == [1]


def _parquet(path: Path) -> set[str]:
    return {file.name for file in path.rglob("*.parquet") if "_delta_log" not in file.parts}


def test_retention_deletes_what_a_checkpoint_has_forgotten_and_killed_writers_have_left(
    tmp_path: Path,
) -> None:
    store = DeltaTables(tmp_path)
    for number in range(4):
        store.overwrite("gold.t", ibis.memtable({"n": [number]}))
    path, month = store.path("gold.t"), time.time() - 40 * 86_400
    old, young = path / "part-old.parquet", path / "part-young.parquet"
    for file in (old, young):
        file.write_bytes(b"of a killed writer")
    for file in (*path.glob("part-0*.parquet"), old):
        os.utime(file, (month, month))
    before = _parquet(path)
    store.retain("gold.t", days=30, keep=[1, 99])
    assert before - _parquet(path) == {old.name}  # the others were replaced a moment ago
    assert store.read("gold.t", 2).n.sum().to_pyarrow().as_py() == 2
    store.retain("gold.t", days=0, keep=[1])
    assert len(_parquet(path)) == 3  # of version 1 and the newest, and what is still being written
    assert store.read("gold.t", 1).n.sum().to_pyarrow().as_py() == 1
    version = store.version("gold.t")
    store.retain("gold.t", days=0, keep=[1])
    assert store.version("gold.t") == version


def test_commits_are_forgotten_where_nobody_asks_for_them(tmp_path: Path) -> None:
    store = DeltaTables(tmp_path)
    for number in range(30):
        store.append("gold.log", ibis.memtable({"n": [number]}))
    log = store.path("gold.log") / "_delta_log"
    for file in log.iterdir():
        os.utime(file, (time.time() - 40 * 86_400,) * 2)
    store.retain("gold.log", days=30, forget=True)
    assert len(list(log.glob("*.json"))) < 5
    store.append("gold.log", ibis.memtable({"n": [30]}))
    assert store.read("gold.log").n.sum().to_pyarrow().as_py() == sum(range(31))
    assert not store.history("gold.log").empty


def test_deleting_waits_for_no_writer_and_loses_nothing(tmp_path: Path) -> None:
    store = DeltaTables(tmp_path)
    store.append("gold.t", ibis.memtable({"n": [0, -1, -2]}))

    def append(number: int) -> None:
        DeltaTables(tmp_path).append("gold.t", ibis.memtable({"n": [number]}))

    with ThreadPoolExecutor() as pool:
        writing = [pool.submit(append, number) for number in range(1, 11)]
        for below in (-1, 0):
            store.delete("gold.t", f"n < {below}", {"why": "too old"})
        for each in writing:
            each.result()
    assert sorted(store.read("gold.t").n.to_pyarrow().to_pylist()) == list(range(11))
    assert {"why": "too old"} in list(store.history("gold.t").tags)
