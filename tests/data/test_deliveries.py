"""Files that come twice, corrections, and what the commands say of them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pytest

from churn_lib import settings
from churn_lib.data import events
from churn_lib.data.deliveries import delivered
from churn_lib.data.loading import LoadError, load
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables
from tests.conftest import CHURN

ROOT = Path(__file__).parents[2]
ROWS = [f"e{n},c{n % 7},2024-03-{n % 28 + 1:02d} 10:00,p{n % 3}" for n in range(70)]
HEAD = "event_id,customer_id,event_ts,product_id\n"


@pytest.fixture
def config() -> Settings:
    loaded = settings.load("local", ROOT / "settings.ini")
    return loaded.updated({"data.max_rejected_share": 0.5})


@pytest.fixture
def store(tmp_path: Path) -> DeltaTables:
    return DeltaTables(tmp_path / "tables")


def written(tmp_path: Path, name: str, rows: list[str], head: str = HEAD) -> str:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + "\n".join(rows) + "\n")
    return str(path)


def stored(store: DeltaTables) -> pd.DataFrame:
    return store.read("bronze.events").to_pandas().set_index("event_id").sort_index()


def signups(store: DeltaTables) -> dict[str, str]:
    rows = store.read("bronze.customers").to_pandas()
    return {row.customer_id: f"{row.signup_ts:%m-%d}" for row in rows.itertuples()}


def test_a_file_is_known_under_another_name_and_by_the_load_that_brought_it(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    load(store, config, written(tmp_path, "monday.csv", ROWS))
    version = store.version("bronze.events")
    again = load(store, config, written(tmp_path, "x/copy.csv", ROWS), mode="append")
    assert (again.loaded, again.already_loaded, again.events) == (0, 70, 70)
    (left_out,) = again.left_out
    assert left_out.startswith("monday.csv on 20") and left_out.endswith("UTC (70 rows)")
    assert store.version("bronze.events") == version


def test_of_a_folder_the_new_files_are_loaded(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    written(tmp_path, "in/a.csv", ROWS[:30])
    load(store, config, str(tmp_path / "in"))
    written(tmp_path, "in/b.csv", ROWS[30:50])
    second = load(store, config, str(tmp_path / "in"), mode="append")
    assert (second.loaded, second.already_loaded, len(second.left_out)) == (20, 30, 1)
    written(tmp_path, "in/c.csv", ROWS[50:])
    third = load(store, config, str(tmp_path / "in"), mode="append")
    assert (third.loaded, third.already_loaded, len(third.left_out)) == (20, 50, 2)
    assert sorted(each.rows for each in delivered(store).values()) == [20, 20, 30]


def test_two_copies_in_one_folder_are_loaded_once(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    head, rows = "customer_id,event_ts\n", ["ann,2024-03-01", "bob,2024-03-02"]
    written(tmp_path, "in/a.csv", rows, head)
    written(tmp_path, "in/b.csv", rows, head)
    profile = load(store, config, str(tmp_path / "in"))
    assert (profile.events, profile.left_out) == (2, ("a.csv of this load",))


def test_the_same_content_in_folders_of_other_days_is_another_file(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    for day in ("2024-03-01", "2024-03-02"):
        written(tmp_path, f"in/event_ts={day}/a.csv", ["ann"], "customer_id\n")
    assert load(store, config, str(tmp_path / "in")).events == 2


def test_a_second_load_on_purpose_brings_back_what_was_deleted(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", ROWS)
    load(store, config, path)
    rows = store.read("bronze.events")
    store.overwrite("bronze.events", rows.filter(rows.event_id != "e7"), tags={"sample": ""})
    assert load(store, config, path, mode="append").loaded == 0
    again = load(store, config, path, mode="append", again=True)
    assert (again.loaded, again.already_loaded, again.left_out) == (1, 69, ())


def test_after_a_replacement_former_files_are_new_again(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    first, second = written(tmp_path, "a.csv", ROWS[:30]), written(tmp_path, "b.csv", ROWS[30:])
    load(store, config, first)
    load(store, config, second, mode="replace")
    assert [each.name for each in delivered(store).values()] == ["b.csv"]
    assert load(store, config, first, mode="append").loaded == 30


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"time_zone": "Europe/Berlin"}, "--time-zone UTC, now Europe/Berlin"),
        ({"mapping": ["product_id=event_id"]}, "--map none, now product_id=event_id"),
    ],
)
def test_a_file_that_is_read_otherwise_than_before_is_refused(
    options: dict[str, Any], named: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", ROWS)
    load(store, config, path)
    with pytest.raises(LoadError, match=named):
        load(store, config, path, mode="append", **options)
    assert len(stored(store)) == 70


def test_new_customers_bring_events_of_a_known_file_that_were_set_aside(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", ROWS)
    head, few = "customer_id,signup_ts\n", [f"c{n},2024-01-01" for n in range(4)]
    people = written(tmp_path, "people.csv", few, head)
    first = load(store, config, path, people)
    assert first.loaded == 40
    assert load(store, config, path, people, mode="append").left_out != ()
    everybody = written(tmp_path, "all.csv", [f"c{n},2024-01-01" for n in range(7)], head)
    second = load(store, config, path, everybody, mode="append")
    assert (second.loaded, second.events, second.left_out) == (30, 70, ())


def test_a_load_cut_off_before_its_bad_rows_were_set_aside_is_loaded_again(
    tmp_path: Path, store: DeltaTables, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(store, config, written(tmp_path, "a.csv", ROWS[:10]))
    path, append = written(tmp_path, "b.csv", [*ROWS[10:], "e99,,2024-03-01,p"]), DeltaTables.append

    def cut(self: DeltaTables, name: str, *given: Any, **more: Any) -> int:
        if name == "bronze.rejected":
            raise KeyboardInterrupt
        return append(self, name, *given, **more)

    monkeypatch.setattr(DeltaTables, "append", cut)
    with pytest.raises(KeyboardInterrupt):
        load(store, config, path, mode="append")
    monkeypatch.undo()
    second = load(store, config, path, mode="append")
    assert (second.left_out, second.already_loaded) == ((), 60)
    assert second.rejected == {"customer_id is missing": 1}
    assert store.read("bronze.rejected").count().to_pyarrow().as_py() == 1


def test_a_correction_replaces_the_events_it_names_and_leaves_all_others(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    load(store, config, written(tmp_path, "a.csv", ROWS))
    before = stored(store)
    rows = [
        "e3,c3,2024-03-30 10:00,other",
        "e4,c5,2024-03-05 10:00,p1",
        ROWS[5],
        "new,c1,2024-04-01 10:00,p",
    ]
    path = written(tmp_path, "b.csv", rows)
    with pytest.raises(LoadError, match="say --correct where the file is right"):
        load(store, config.updated({"data.max_rejected_share": 0.0}), path, mode="append")
    done = load(store, config, path, mode="append", correct=True)
    assert (done.corrected, done.loaded, done.already_loaded, done.events) == (2, 1, 1, 71)
    after = stored(store)
    assert (after.product_id["e3"], after.customer_id["e4"]) == ("other", "c5")
    same = before.index.difference(["e3", "e4"])
    pd.testing.assert_frame_equal(after.loc[same], before.loc[same])
    assert events.sample_of(store) == "" and not events.cut_off(store)
    again = load(store, config, path, mode="append", correct=True, again=True)
    assert (again.corrected, again.loaded, again.already_loaded) == (0, 0, 4)


def test_a_signup_follows_the_event_it_was_taken_from_and_no_other(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    rows = [
        "e1,ann,1999-03-01,p",
        "e2,ann,2024-03-05,p",
        "e3,bob,2024-03-02,p",
        "e4,eve,2024-03-03,p",
    ]
    load(store, config, written(tmp_path, "a.csv", rows))
    fix = ["e1,ann,2024-03-09,p", "e3,ann,2024-03-02,p"]  # a wrong year, a wrong customer
    load(store, config, written(tmp_path, "b.csv", fix), mode="append", correct=True)
    # ann has her corrected first event; bob stays a customer without one
    assert signups(store) == {"ann": "03-02", "bob": "03-02", "eve": "03-03"}


def test_a_signup_of_the_customers_file_stays_until_a_file_corrects_it(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    head = "customer_id,signup_ts\n"
    people = written(tmp_path, "people.csv", ["ann,2024-01-07"], head)
    load(store, config, written(tmp_path, "a.csv", ["e1,ann,2024-03-01,p"]), people)
    fix = written(tmp_path, "b.csv", ["e1,ann,2024-03-09,p"])
    load(store, config, fix, mode="append", correct=True)
    assert signups(store) == {"ann": "01-07"}
    later = written(tmp_path, "later.csv", ["ann,2024-02-08"], head)
    load(store, config, fix, later, mode="append", correct=True, again=True)
    assert signups(store) == {"ann": "02-08"}


def test_corrections_need_an_id_and_events_that_are_there(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", ["ann,2024-03-01"], "customer_id,event_ts\n")
    with pytest.raises(LoadError, match="say --append --correct"):
        load(store, config, path, correct=True)
    load(store, config, written(tmp_path, "b.csv", ROWS))
    with pytest.raises(LoadError, match="--correct needs event_id in the file"):
        load(store, config, path, mode="append", correct=True)


def test_a_store_of_a_former_release_knows_no_files_and_takes_them_as_ever(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", ROWS)
    load(store, config, path)
    for name in events.BRONZE:
        rows = ibis.memtable(store.read(name).to_pyarrow())
        store.overwrite(name, rows, tags={"load_id": "old", "source": "a.csv", "sample": ""})
    assert delivered(store) == {}
    again = load(store, config, path, mode="append")
    assert (again.loaded, again.already_loaded, again.left_out) == (0, 70, ())


def test_the_commands_say_what_was_left_out_corrected_and_changed(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    environment = {**os.environ, "CHURN_SETTINGS": str(tmp_path / "settings.ini")}

    def churn(*arguments: str) -> str:
        done = subprocess.run(
            [CHURN, "data", *arguments], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    path = written(tmp_path, "a.csv", ROWS)
    churn("load", "--events", path)
    printed = " ".join(churn("load", "--events", path, "--append").split())
    assert "Not loaded, the same content was loaded as a.csv on 20" in printed
    fixed = written(tmp_path, "b.csv", ["e3,c3,2024-03-04 10:00,other"])
    answer = json.loads(churn("load", "--events", fixed, "--append", "--correct", "--json"))
    assert (answer["corrected"], answer["loaded"], answer["changed_snapshots"]) == (1, 0, {})
    status = json.loads(churn("status", "--json"))
    assert {file["name"]: file["rows"] for file in status["files"]} == {"a.csv": 70, "b.csv": 1}
    gone = json.loads(churn("forget", "c3", "--json"))
    assert gone["rows"] == {"bronze.events": 10, "bronze.customers": 1}
