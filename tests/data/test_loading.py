"""A user's own files: what comes in, what is set aside, what is refused, and that nothing is half done."""

import datetime
import gzip
import json
import queue
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from churn_lib import cli, settings, tables
from churn_lib.cli import data
from churn_lib.data import events
from churn_lib.data.loading import Profile, load
from churn_lib.settings import ChurnError, Settings, SettingsError
from churn_lib.tables import DeltaTables

ROOT = Path(__file__).parents[2]
UUID = uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
GOOD = "customer_id,event_ts\n" + "".join(f"c{n % 7},2024-01-{n % 28 + 1:02d}\n" for n in range(70))


@pytest.fixture(scope="module")
def config() -> Settings:
    return settings.load("local", ROOT / "settings.ini")


@pytest.fixture
def store(tmp_path: Path) -> DeltaTables:
    return DeltaTables(tmp_path / "tables")


def written(tmp_path: Path, name: str, content: str | bytes) -> str:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def rows(store: DeltaTables, name: str) -> list[dict[str, Any]]:
    return store.read(name).to_pyarrow().to_pylist()


def frame(**more: Any) -> pd.DataFrame:
    times = pd.to_datetime(["2024-01-01T10:00:00Z", "2024-01-02T10:00:00Z"] * 10)
    numbers = range(20)
    return pd.DataFrame({"event_id": numbers, "customer_id": "ann", "event_ts": times, **more})


def as_csv(tmp_path: Path) -> str:
    return written(tmp_path, "in/a.csv", frame().to_csv(index=False))


def as_gzip(tmp_path: Path) -> str:
    return written(tmp_path, "in/a.csv.gz", gzip.compress(frame().to_csv(index=False).encode()))


def as_semicolons_with_mark(tmp_path: Path) -> str:
    text = "\ufeff" + frame().to_csv(index=False, sep=";", lineterminator="\r\n")
    return written(tmp_path, "in/a.csv", text)


def as_parquet(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    frame().to_parquet(tmp_path / "in/a.parquet")
    return str(tmp_path / "in/a.parquet")


def as_folder(tmp_path: Path) -> str:
    for number in range(2):
        part = frame().iloc[number * 10 : number * 10 + 10]
        written(tmp_path, f"in/day={number}/part.csv", part.to_csv(index=False))
    written(tmp_path, "in/_SUCCESS", "")
    written(tmp_path, "in/_log/other.csv", "a,b\n1,2\n")
    return str(tmp_path / "in")


def as_glob(tmp_path: Path) -> str:
    return as_folder(tmp_path) + "/day=*/*.csv"


def as_delta(tmp_path: Path) -> str:
    write_deltalake(tmp_path / "in", pa.Table.from_pandas(frame(), preserve_index=False))
    return str(tmp_path / "in")


FORMATS = [
    as_csv,
    as_gzip,
    as_semicolons_with_mark,
    as_parquet,
    as_folder,
    as_glob,
    as_delta,
]


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_the_same_events_come_out_of_every_format(
    make: Callable[[Path], str], tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    profile = load(store, config, make(tmp_path))
    assert (profile.events, profile.customers, profile.rejected) == (20, 1, {})
    found = sorted(rows(store, "bronze.events"), key=lambda row: int(row["event_id"]))
    ten = datetime.datetime(2024, 1, 1, 10, tzinfo=datetime.UTC)
    assert [row["event_id"] for row in found] == [str(number) for number in range(20)]
    assert found[0]["event_ts"] == ten
    assert found[1]["session_id"] == "ann-20240102"
    assert {row["product_id"] for row in found} == {None}
    assert rows(store, "bronze.customers") == [{"customer_id": "ann", "signup_ts": ten}]
    assert list(store.read("bronze.events").columns) == events.EVENTS.names


def test_times_are_read_in_their_zone_and_their_format(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(
        tmp_path, "a.csv", "customer_id,event_ts\na,31.03.2024 12:00\nb,01.01.2024 12:00\n"
    )
    load(store, config, path, time_zone="Europe/Berlin", time_format="%d.%m.%Y %H:%M")
    hours = {row["customer_id"]: row["event_ts"].hour for row in rows(store, "bronze.events")}
    assert hours == {"a": 10, "b": 11}  # summer time began that day


def test_offsets_win_over_the_time_zone(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    text = "customer_id,event_ts\na,2024-01-01T12:00:00+05:30\nb,2024-01-01T12:00:00Z\n"
    load(store, config, written(tmp_path, "a.csv", text), time_zone="America/New_York")
    hours = {row["customer_id"]: row["event_ts"].hour for row in rows(store, "bronze.events")}
    assert hours == {"a": 6, "b": 12}


def test_columns_are_mapped_by_settings_and_by_flag(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    text = "uid,when,sku\na,2024-01-01,x\na,2024-01-02,y\n"
    own = config.updated({"data.column_mapping": "customer_id=uid, event_ts=when"})
    people = written(tmp_path, "people.csv", "id,joined\na,2023-12-01\n")
    mapping = ["product_id=sku", "customers.customer_id=id", "signup_ts=joined"]
    path = written(tmp_path, "a.csv", text)
    profile = load(store, own, path, people, mapping=mapping)
    assert profile.events == 2
    assert {row["product_id"] for row in rows(store, "bronze.events")} == {"x", "y"}
    assert rows(store, "bronze.customers")[0]["signup_ts"].month == 12


def test_what_always_holds_of_the_files_stands_in_the_settings(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    given = {
        "data.column_mapping": "customer_id=bought by, event_ts=bought at",
        "data.time_zone": "Europe/Berlin",
        "data.time_format": "%d.%m.%Y %H:%M",
    }
    own = config.updated(given)
    load(store, own, written(tmp_path, "a.csv", "bought by;bought at\na;01.07.2024 12:30\n"))
    (row,) = rows(store, "bronze.events")
    assert row["event_ts"] == datetime.datetime(2024, 7, 1, 10, 30, tzinfo=datetime.UTC)
    # a flag wins, for a file that differs
    other = written(tmp_path, "b.csv", "bought by;bought at\na;2024-07-02T12:30\n")
    load(store, own, other, mode="append", time_format="iso", time_zone="UTC")
    assert max(row["event_ts"].hour for row in rows(store, "bronze.events")) == 12


@pytest.mark.parametrize(
    "value", ["customer_id=uid event_ts=when", "customer_id", "=uid", "a=,b=c"]
)
def test_a_mapping_of_another_form_is_refused_with_the_settings(tmp_path: Path, value: str) -> None:
    text = (ROOT / "settings.ini").read_text()
    line = f"data.column_mapping = {value}"
    text = text.replace("data.column_mapping =", line)
    (tmp_path / "settings.ini").write_text(text)
    with pytest.raises(SettingsError, match=r"data\.column_mapping.*put commas between the pairs"):
        settings.load("local", tmp_path / "settings.ini")


def test_each_bad_row_is_set_aside_with_its_reason_and_the_good_ones_come_in(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    bad = {
        "event_id is missing": ",a,2024-01-01,s,p",
        "customer_id is missing": "e1, ,2024-01-01,s,p",
        "event_ts is missing": "e2,a,,s,p",
        "event_ts is not a timestamp": "e3,a,yesterday,s,p",
        "event_ts is in the future": f"e4,a,{later:%Y-%m-%d %H:%M:%S},s,p",
        "event_id is repeated": "g1,a,2024-01-02,s,p",
        "event_id is repeated with other content": "g2,a,2024-01-02,s,p",
        "event_ts is before 1975": "e9,a,0024-01-01,s,p",
        "product_id holds a line end or another control character": "e10,a,2024-01-01,s,p\x07",
        "customer_id is a rounded number": "e11,1.23457E+12,2024-01-01,s,p",
        "customer_id is not in customers": "e5,ghost,2024-01-01,s,p",
        "event_ts is before signup_ts": "e6,a,2022-01-01,s,p",
        "not a row: too many columns": "e7,a,2024-01-01,s,p,x",
        "not a row: missing columns": "e8,a",
    }
    good = [f"g{n},a,2024-01-0{n % 9 + 1},s,p" for n in range(5)]
    text = "\n".join(["event_id,customer_id,event_ts,session_id,product_id", *good, *bad.values()])
    people = written(
        tmp_path,
        "people.csv",
        "customer_id,signup_ts\na,2023-01-01\na,2023-01-02\na,2023-01-01\nz,1970-01-01\n",
    )
    lenient = config.updated({"data.max_rejected_share": 0.9})
    profile = load(store, lenient, written(tmp_path, "a.csv", text + "\n"), people)
    assert profile.events == profile.loaded == 5
    expected = dict.fromkeys(bad, 1) | {
        "customer_id is repeated": 1,
        "customer_id is repeated with another signup_ts": 1,
        "signup_ts is at the start of 1970": 1,
    }
    assert profile.rejected == expected
    kept = rows(store, "bronze.rejected")
    assert {row["reason"] for row in kept} == set(expected)
    assert {row["table_name"] for row in kept} == {"events", "customers"}
    (line,) = (row for row in kept if row["reason"] == "not a row: too many columns")
    assert line["row"] == "e7,a,2024-01-01,s,p,x"
    assert line["line"] == 19


def test_appending_a_file_again_adds_nothing_and_a_later_one_only_what_is_new(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    first = load(store, config, written(tmp_path, "a.csv", GOOD))
    again = load(store, config, written(tmp_path, "a.csv", GOOD), mode="append")
    more = GOOD + "new,2024-02-01\nc1,2023-12-01\n"
    third = load(store, config, written(tmp_path, "b.csv", more), mode="append")
    assert (first.loaded, again.loaded, again.already_loaded) == (70, 0, 70)
    assert (third.loaded, third.already_loaded, third.events) == (2, 70, 72)
    signups = {row["customer_id"]: row["signup_ts"] for row in rows(store, "bronze.customers")}
    assert signups["c1"].month == 12
    assert "new" in signups


def test_loading_over_events_needs_a_word_and_replacing_keeps_the_old_version(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", GOOD)
    load(store, config, path)
    with pytest.raises(ChurnError, match=r"has 70 events already; say --append or --replace"):
        load(store, config, path)
    load(store, config, as_csv(tmp_path), mode="replace")
    assert store.read("bronze.events").count().to_pyarrow().as_py() == 20
    assert store.read("bronze.events", 0).count().to_pyarrow().as_py() == 70


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "nothing there": ("", "", "no such file or folder"),
    "an empty file": ("a.csv", "", "is empty"),
    "a header alone": ("a.csv", "customer_id,event_ts\n", "has a header and no rows"),
    "blank lines": ("a.csv", "\n\n\n", "is empty"),
    "no known name": ("a.json", "{}", "its name says no known format"),
    "an empty folder": ("empty/", "", "no .csv, .csv.gz or .parquet file"),
    "a missing column": ("a.csv", "customer_id,when\na,2024-01-01\n", "has no column 'event_ts'"),
    "a column twice": ("a.csv", "customer_id,event_ts,event_ts\na,1,2\n", "duplicates"),
    "no header": ("a.csv", "a,2024-01-01\nb,2024-01-02\n", "has no column 'customer_id'"),
    "binary": ("a.csv", b"customer_id,event_ts\n\x00\x01\x02\n", "not a CSV file but binary"),
    "Parquet called CSV": ("a.csv", b"PAR1 and so on\nPAR1", "is Parquet and not CSV"),
    "gzip called CSV": ("a.csv", gzip.compress(GOOD.encode()), "is gzip and not plain CSV"),
    "gzip in gzip": ("a.csv.gz", gzip.compress(gzip.compress(b"a\n")), "is gzip and not plain"),
    "a spreadsheet called CSV": (
        "a.csv",
        b"PK\x03\x04\x14\x00\x06",
        "is a zip archive or a spread",
    ),
    "UTF-16": ("a.csv", GOOD.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
    "a first line that is blank": ("a.csv", "\n" + GOOD, "begins with an empty line"),
    "a column twice but for case": (
        "a.csv",
        "customer_id,event_ts, Customer_ID\na,2024-01-01,b\n",
        "column 'customer_id' duplicates 'Customer_ID'",
    ),
    "days first": (
        "a.csv",
        "customer_id,event_ts\na,13/02/2024\n",
        'a.csv: {"customer_id":"a","event_ts":"13/02/2024","session_id":null,"product_id":null}; '
        "say how they are written with --time-format",
    ),
    "milliseconds": (
        "a.csv",
        "customer_id,event_ts\na,1700000000123\n",
        "looks like epoch_ms; write",
    ),
    "an open quote": (
        "a.csv",
        'customer_id,event_ts\na,"2024-01-01\n' + "a,2024-01-01\n" * 999,
        "only 0 of its 1,000 lines can be told apart as rows: a quote does not close, probably "
        "that in line 2; close or double the quotes",
    ),
    "an open quote in the header": (
        "a.csv",
        '"customer_id,event_ts\na,b\n',
        "header does not close",
    ),
    "a NUL byte far down": (
        "a.csv",
        GOOD * 2000 + "a\0b,2024-01-01\n",
        "NUL byte after line 142,000",
    ),
    "line ends and quotes mixed": (
        "a.csv",
        'customer_id,event_ts\r\n"a",2024-01-01\n"b",2024-01-01\r\n',
        "some of its lines end with CRLF and some with LF",
    ),
    "days of a spreadsheet": ("a.csv", "customer_id,event_ts\na,45292.5\n", "of a spreadsheet"),
    "years of two digits": ("a.csv", "customer_id,event_ts\na,24-01-02\n", "is before 1975"),
    "a zone that means several": (
        "a.csv",
        "customer_id,event_ts\na,2024-07-01 10:00 CST\n",
        "zones as +01:00 or Europe/Berlin",
    ),
    "a leap second": (
        "a.csv",
        "customer_id,event_ts\na,2016-12-31T23:59:60Z\n",
        "event_ts is not a timestamp",
    ),
    "the beginning of time": ("a.csv", "customer_id,event_ts\na,epoch\n", "is not a timestamp"),
    "latin-1": ("a.csv", (GOOD + "m\xfcller,2024-01-01\n" * 9).encode("latin-1"), "line 72: "),
    "words of databases for nothing": (
        "a.csv",
        "customer_id,event_ts\nNULL,2024-01-01\n\\N,2024-01-01\n",
        "customer_id is missing",
    ),
    "no Delta table": (
        "in/_delta_log/00000000000000000000.json",
        "{",
        "not a readable Delta table",
    ),
    "CSV called Parquet": ("a.parquet", GOOD, "not a readable Parquet file"),
    "an empty Parquet": ("a.parquet", b"", "is empty"),
    "CSV called gzip": ("a.csv.gz", GOOD, "not a whole gzip file"),
    "half a gzip": ("a.csv.gz", gzip.compress(GOOD.encode())[:-20], "not a whole gzip file"),
    "no text": ("a.csv", "cust\xe9,event_ts\n".encode("latin-1") + b"a,b\n", "not UTF-8"),
    "no times": (
        "a.csv",
        "customer_id,event_ts\na,hello\nb,world\n",
        "event_ts is not a timestamp",
    ),
    "no keys": ("a.csv", "customer_id,event_ts\n,2024-01-01\n", "customer_id is missing"),
    "seconds": ("a.csv", "customer_id,event_ts\na,1700000000\n", "event_ts is not a timestamp"),
    "all in the future": ("a.csv", "customer_id,event_ts\na,2999-01-01\n", "is in the future"),
    "broken lines": ("a.csv", GOOD + "a,b,c,d\n" * 30, "not a row: too many columns"),
    "formats mixed": ("mixed/", GOOD, "CSV and Parquet files are mixed"),
    "headers that differ": ("differ/", GOOD, "has another header than"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line_that_names_it_and_nothing_is_written(
    name: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    file, content, reason = BAD[name]
    path = tmp_path / "in" / file if file else tmp_path / "in" / "nowhere.csv"
    if file.endswith("/"):
        path.mkdir(parents=True)
        if content:
            written(tmp_path, f"in/{file}a.csv", content)
            other = "b.parquet" if file == "mixed/" else "b.csv"
            written(tmp_path, f"in/{file}{other}", "customer_id,other\na,b\n")
    elif file:
        written(tmp_path, f"in/{file}", content)
        path = path.parent.parent if "_delta_log" in file else path
    with pytest.raises(ChurnError) as refused:
        load(store, config, str(path))
    message = str(refused.value)
    assert reason in message
    assert str(path).rstrip("/") in message
    assert "\n" not in message
    assert len(message) < 600 + 2 * len(str(path))
    assert not list((tmp_path / "tables").rglob("*.parquet"))
    assert not list((tmp_path / "tables").glob(".loading-*"))


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("event_ts", range(20), "is BIGINT, not a timestamp (--time-format epoch_s or epoch_ms?)"),
        ("event_ts", [1.5] * 20, "column 'event_ts' is DOUBLE, not a timestamp"),
        ("customer_id", [1.5] * 20, "column 'customer_id' is DOUBLE, not text, and holds 1.5"),
        ("customer_id", [2.0**53] * 20, "is DOUBLE, not text, and holds 9007199254740992.0, which"),
        (
            "session_id",
            [Decimal("0.5")] * 20,
            "'session_id' is DECIMAL(1,1), not text, and holds 0.5",
        ),
        ("event_ts", [datetime.time(10)] * 20, "column 'event_ts' is TIME, not a timestamp"),
        ("customer_id", [True] * 20, "column 'customer_id' is BOOLEAN, not text"),
        ("customer_id", [["a"]] * 20, "column 'customer_id' is VARCHAR[], not text"),
        ("customer_id", [{"id": "a"}] * 20, "column 'customer_id' is STRUCT(id VARCHAR), not text"),
        ("customer_id", [b"a"] * 20, "column 'customer_id' is BLOB, not text"),
        ("customer_id", [Decimal("1.5")] * 20, "column 'customer_id' is DECIMAL(2,1), not text"),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(
    column: str,
    values: Any,
    reason: str,
    tmp_path: Path,
    store: DeltaTables,
    config: Settings,
) -> None:
    table = frame().assign(**{column: list(values)})
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), tmp_path / "a.parquet")
    with pytest.raises(ChurnError) as refused:
        load(store, config, str(tmp_path / "a.parquet"))
    assert reason in str(refused.value)
    assert not store.exists("bronze.events")


def test_a_misspelt_column_gets_the_flag_that_would_mend_it(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", "customer,event_ts\na,2024-01-01\n")
    with pytest.raises(ChurnError, match=r"--map customer_id=customer\?"):
        load(store, config, path)


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        (["customer_id=user", "customer_id=event_ts"], "mapped to both 'user' and 'event_ts'"),
        (["customer_id=user", "session_id=user"], "'user' stands for customer_id and session_id"),
        (["customer_id=user", "product_id=sku"], "has no column 'sku'"),
        (["user"], "is not of the form ours=theirs"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(
    mapping: list[str], reason: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", "user,event_ts\na,2024-01-01\n")
    with pytest.raises(ChurnError, match=re.escape(reason)):
        load(store, config, path, mapping=mapping)


def test_a_flag_wins_over_the_settings_and_names_are_found_in_any_case(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    own = config.updated({"data.column_mapping": "customer_id=account"})
    path = written(tmp_path, "a.csv", "ACCOUNT,User,EVENT_TS,SESSION_ID\na,b,2024-01-01,s\n")
    load(store, own, path, mapping=["customer_id=user"])
    (row,) = rows(store, "bronze.events")
    assert (row["customer_id"], row["session_id"]) == ("b", "s")


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_numbers_are_times_when_their_unit_is_said(
    unit: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    moment = datetime.datetime(2024, 2, 29, 23, 59, 59, 250_000, tzinfo=datetime.UTC)
    number = moment.timestamp() * {"s": 1, "ms": 1000, "us": 1_000_000}[unit]
    load(
        store,
        config,
        written(tmp_path, "a.csv", f"customer_id,event_ts\na,{number:.3f}\n"),
        time_format=f"epoch_{unit}",
        time_zone="Asia/Tokyo",
    )
    pq.write_table(pa.table({"customer_id": ["b"], "event_ts": [number]}), tmp_path / "b.parquet")
    load(store, config, str(tmp_path / "b.parquet"), mode="append", time_format=f"epoch_{unit}")
    assert {row["event_ts"] for row in rows(store, "bronze.events")} == {moment}


def test_keys_stay_what_they_are(tmp_path: Path, store: DeltaTables, config: Settings) -> None:
    text = (
        "customer_id, event_ts\n007, 2024-01-01\n 007 ,2024-01-02\n7,2024-01-01\nΩ李,2024-01-01\n"
    )
    load(store, config, written(tmp_path, "a.csv", text))
    assert {row["customer_id"] for row in rows(store, "bronze.customers")} == {"007", "7", "Ω李"}
    large = pa.array([Decimal(2**64), Decimal(7)], pa.decimal128(38, 0))
    for ids in (large, pa.array([2**64 - 1, 7], pa.uint64()), pa.array(["007", "7"])):
        table = pa.table({"customer_id": ids, "event_ts": ["2024-01-01"] * 2})
        pq.write_table(table, tmp_path / "a.parquet")
        load(store, config, str(tmp_path / "a.parquet"), mode="replace")
        found = {row["customer_id"] for row in rows(store, "bronze.customers")}
        assert found == {str(each) for each in ids.to_pylist()}


def test_names_of_files_and_folders_are_no_patterns_and_no_sql(
    tmp_path: Path, config: Settings
) -> None:
    store = DeltaTables(tmp_path / "O'Brien" / "tables")
    path = written(tmp_path, "it's [1].csv", GOOD)
    written(tmp_path, "it's 1.csv", GOOD.replace("c", "wrong").replace("wrongus", "cus"))
    profile = load(store, config, path)
    assert (profile.events, profile.customers) == (70, 7)


def test_a_partitioned_delta_table_brings_the_values_of_its_partitions(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    shops = ["north", "a b/c=d", "50 %", "O'Hara", None]
    days = [datetime.date(2024, 1, day) for day in range(1, 6)]
    table = pa.table({"customer_id": list("abcde"), "day": days, "shop": shops})
    write_deltalake(tmp_path / "in", table, partition_by=["day", "shop"])
    DeltaTable(tmp_path / "in").delete("shop = 'north'")  # its file stays, for older versions
    mapping = ["event_ts=day", "product_id=shop"]
    path = str(tmp_path / "in")
    load(store, config, path, mapping=mapping, time_zone="Europe/Berlin")
    found = sorted(rows(store, "bronze.events"), key=lambda row: row["customer_id"])
    assert [row["product_id"] for row in found] == shops[1:]
    assert [row["event_ts"].day for row in found] == [1, 2, 3, 4]
    assert {row["event_ts"].hour for row in found} == {23}
    with pytest.raises(ChurnError, match="is a Delta table; load one at a time, by its folder"):
        load(store, config, f"{path}/*/*/*.parquet", mode="replace", mapping=mapping)


def delta_log(
    folder: Path,
    features: list[str],
    configuration: dict[str, str] | None = None,
    reader: int = 3,
    **add: Any,
) -> Path:  # a Delta table of one file, with a log written by hand
    (folder / "_delta_log").mkdir(parents=True)
    frame(event_id=["e"] * 20).iloc[:1].to_parquet(folder / "a.parquet")
    types = {"event_id": "string", "customer_id": "string", "event_ts": "timestamp"}
    fields = [
        {"name": name, "type": kind, "nullable": True, "metadata": metadata}
        for number, (name, kind) in enumerate(types.items(), 1)
        for metadata in [
            {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": name}
        ]
    ]
    protocol: dict[str, Any] = {"minReaderVersion": reader, "minWriterVersion": 7}
    protocol |= {"writerFeatures": features}
    protocol |= {"readerFeatures": features} if reader == 3 else {"minWriterVersion": 5}
    if reader != 3:
        del protocol["writerFeatures"]
    size = (folder / "a.parquet").stat().st_size
    file = {"path": "a.parquet", "partitionValues": {}, "size": size, "dataChange": True}
    actions = [
        {"protocol": protocol},
        {
            "metaData": {
                "id": str(UUID),
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": fields}),
                "partitionColumns": [],
                "configuration": configuration or {},
                "createdTime": 1,
            }
        },
        {"add": file | {"modificationTime": 1} | add},
    ]
    log = "".join(json.dumps(action) + "\n" for action in actions)
    (folder / "_delta_log/00000000000000000000.json").write_text(log)
    return folder


DELETED = {"storageType": "u", "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA", "offset": 1}
MAPPED = {"delta.columnMapping.mode": "name"}
FEATURES: dict[str, tuple[list[str], dict[str, str], int, dict[str, Any], str]] = {
    "column mapping by name": (["columnMapping"], MAPPED, 3, {}, "column mapping"),
    "column mapping by name, legacy": ([], MAPPED, 2, {}, "column mapping"),
    "column mapping by id, legacy": (
        [],
        {"delta.columnMapping.mode": "id"},
        2,
        {},
        "column mapping",
    ),
    "type widening": (["typeWidening"], {}, 3, {}, "type widening"),
    "variants": (["variantType-preview"], {}, 3, {}, "variant type-preview"),
    "two of them": (["variantType", "typeWidening"], {}, 3, {}, "type widening, variant type"),
    "a feature of tomorrow": (["somethingNew"], {}, 3, {}, "somethingNew"),
    "a reader of tomorrow": ([], {}, 9, {}, "reader version 9"),
    "a catalog's table": (["catalogManaged"], {}, 3, {}, "catalog-managed"),
    "deleted rows": (
        ["deletionVectors"],
        {},
        3,
        {"deletionVector": DELETED | {"sizeInBytes": 36, "cardinality": 2}},
        "deletion vectors",
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_delta_table_is_refused_when_its_files_alone_do_not_say_all(
    name: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    features, configuration, reader, add, reason = FEATURES[name]
    path = delta_log(tmp_path / "in", features, configuration, reader, **add)
    with pytest.raises(ChurnError) as refused:
        load(store, config, str(path))
    assert reason in str(refused.value)
    assert str(path) in str(refused.value)
    assert "export it as Parquet" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_delta_table_is_loaded_when_its_features_ask_nothing_of_a_reader(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    features = ["deletionVectors", "timestampNtz", "v2Checkpoint"]
    path = delta_log(tmp_path / "in", features, {"delta.columnMapping.mode": "none"})
    assert load(store, config, str(path)).events == 1
    # the log begins with a checkpoint of the second kind, which names another file
    (path / "a.parquet").rename(path / "b.parquet")
    first = path / "_delta_log/00000000000000000000.json"
    actions = ['{"checkpointMetadata":{"version":1}}', first.read_text().replace("a.pa", "b.pa")]
    (path / f"_delta_log/00000000000000000001.checkpoint.{UUID}.json").write_text(
        "\n".join(actions)
    )
    (path / "_delta_log/00000000000000000001.json").write_text('{"commitInfo":{}}\n')
    first.unlink()
    assert load(store, config, str(path), mode="replace").events == 1


def test_a_delta_table_whose_files_are_gone_is_refused(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = Path(as_delta(tmp_path))
    next(path.glob("*.parquet")).unlink()
    with pytest.raises(ChurnError, match=r"its log names .* which is not there; restore it"):
        load(store, config, str(path))


@pytest.mark.parametrize("name", ["bronze.customers", "bronze.events", "bronze.rejected"])
def test_a_load_cut_off_before_any_write_is_noticed_or_whole_and_mended_by_the_same_command(
    name: str, tmp_path: Path, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient = config.updated({"data.max_rejected_share": 0.5})
    store = DeltaTables(tmp_path / "tables")
    load(store, lenient, written(tmp_path, "a.csv", GOOD + ",2024-01-01\n"))
    path = written(
        tmp_path, "b.csv", GOOD.replace("c", "d").replace("dustomer", "customer") + ",\n"
    )
    whole = DeltaTables.overwrite, DeltaTables.append

    class CutOff(BaseException):
        """What a crash is to the code."""

    def cut(write: Any) -> Any:
        def either(self: DeltaTables, table: str, *given: Any, **more: Any) -> int:
            if table == name:
                raise CutOff
            return write(self, table, *given, **more)

        return either

    monkeypatch.setattr(DeltaTables, "overwrite", cut(whole[0]))
    monkeypatch.setattr(DeltaTables, "append", cut(whole[1]))
    with pytest.raises(CutOff):
        load(store, lenient, path, mode="replace")
    monkeypatch.undo()
    if name == "bronze.events":  # customers of one load, events of another
        with pytest.raises(ChurnError, match="different loads"):
            events.ensure_bronze(store)
    else:
        events.ensure_bronze(store)
    load(store, lenient, path, mode="replace")
    events.ensure_bronze(store)
    assert {row["customer_id"][0] for row in rows(store, "bronze.events")} == {"d"}
    assert {row["customer_id"][0] for row in rows(store, "bronze.customers")} == {"d"}


def test_the_command_shows_a_profile_and_refuses_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = (ROOT / "settings.ini").read_text()
    monkeypatch.setenv("CHURN_SETTINGS", written(tmp_path, "settings.ini", own))
    path = written(tmp_path, "a.csv", GOOD)

    def churn(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["churn", "data", "load", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert churn("--events", path) == 0
    assert "70" in capsys.readouterr().out
    assert churn("--events", path, "--append", "--replace") == 2
    assert churn("--events", path) == 2
    assert churn("--events", path, "--replace", "--time-zone", "Mars/Base") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "time zone 'Mars/Base' (--time-zone or data.time_zone) is not known" in lines[-1]


def test_a_profile_counts_what_the_tables_hold(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    table = frame(product_id=[None, "p"] * 10)
    path = written(tmp_path, "a.csv", table.to_csv(index=False))
    profile = load(store, config, path)
    assert profile == Profile(
        load_id=events.last_load(store, "bronze.events")["load_id"],
        events=20,
        customers=1,
        first_event="2024-01-01 10:00:00+00",
        last_event="2024-01-02 10:00:00+00",
        nulls={"session_id": 0, "product_id": 10},
        duplicates=18,
        loaded=20,
        already_loaded=0,
        rejected={},
    )


def test_a_table_somebody_else_wrote_is_not_taken_for_half_a_load(store: DeltaTables) -> None:
    made, people = events.cdnow()
    store.overwrite("bronze.events", ibis.memtable(made.slice(0, 10)))
    store.overwrite("bronze.customers", ibis.memtable(people))
    assert events.ensure_bronze(store) == {"bronze.events": 0, "bronze.customers": 0}


KILLED = """
import os, signal, sys
from pathlib import Path
from churn_lib import settings
from churn_lib.data.loading import load
from churn_lib.tables import DeltaTables

def report(step, done):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

config = settings.load("local", Path(sys.argv[4]))
load(DeltaTables(Path(sys.argv[1])), config, sys.argv[2], mode="replace", report=report)
"""


@pytest.mark.parametrize("step", ["judging events", "writing bronze.events"])
def test_a_load_that_was_killed_is_tidied_up_by_the_next_which_ends_as_it_should(
    step: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    load(store, config, as_csv(tmp_path))
    path = written(tmp_path, "in/b.csv", GOOD)
    arguments = [str(store.folder), path, step, str(ROOT / "settings.ini")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(store.folder.glob(".loading-*"))
    assert store.read("bronze.events").count().to_pyarrow().as_py() == 20
    profile = load(store, config, path, mode="replace")
    assert (profile.events, profile.customers) == (70, 7)
    assert not list(store.folder.glob(".loading-*"))


def test_a_load_waits_for_another_of_the_same_tables_and_says_so(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    steps: queue.Queue[str] = queue.Queue()
    with ThreadPoolExecutor(1) as pool:
        with DeltaTables(store.folder).exclusive_lock(lambda: None):
            path = as_csv(tmp_path)
            going = pool.submit(
                load, store, config, path, report=lambda step, done: steps.put(step)
            )
            assert steps.get(timeout=60) == "waiting for another load"
            assert not store.exists("bronze.customers")
        assert going.result().events == 20


def test_an_append_that_brings_nothing_makes_no_version(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = as_csv(tmp_path)
    first = load(store, config, path)
    again = load(store, config, path, mode="append")
    assert (first.loaded, again.loaded, again.already_loaded) == (20, 0, 20)
    assert [store.version(name) for name in events.BRONZE] == [0, 0]
    later = frame(customer_id="bob").assign(event_id=range(20, 40))
    load(store, config, written(tmp_path, "in/b.csv", later.to_csv(index=False)), mode="append")
    assert [store.version(name) for name in events.BRONZE] == [1, 1]


def test_an_append_mends_what_a_crash_left_even_if_it_brings_nothing(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = as_csv(tmp_path)
    load(store, config, path)
    people = store.read("bronze.customers").to_pyarrow()
    store.overwrite("bronze.customers", ibis.memtable(people), tags={"load_id": "cut off"})
    assert events.cut_off(store)
    load(store, config, path, mode="append")
    assert not events.cut_off(store)


def test_a_table_without_its_other_half_is_named(store: DeltaTables) -> None:
    store.overwrite("bronze.events", ibis.memtable(events.cdnow()[0].slice(0, 10)))
    with pytest.raises(events.EventsError, match="customers is missing"):
        events.ensure_bronze(store)


def test_staging_and_production_take_no_sample(store: DeltaTables) -> None:
    with pytest.raises(events.EventsError, match="staging and production take no sample"):
        events.ensure_bronze(store, sample=False)
    assert store.names() == []


def test_numbers_in_another_unit_than_was_said_are_refused_with_the_one_they_look_like(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    seconds = 1_700_000_000
    for time_format, factor, seen in [
        ("epoch_ms", 1, "epoch_s"),
        ("epoch_us", 1, "epoch_s"),
        ("epoch_us", 1000, "epoch_ms"),
        ("epoch_s", 1000, "epoch_ms"),
        ("epoch_us", 1_000_000_000, "epoch_ns"),
    ]:
        table = frame().assign(event_ts=[(seconds + n * 3600) * factor for n in range(20)])
        path = written(tmp_path, "in/a.csv", table.to_csv(index=False))
        with pytest.raises(ChurnError, match=f"{seconds}0* looks like {seen}; .* --time-format$"):
            load(store, config, path, time_format=time_format)
    profile = load(store, config, path, time_format="epoch_ns")
    assert profile.first_event.startswith("2023-11-14")


def test_a_column_in_two_units_is_not_loaded_silently(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    numbers = [(1_704_067_200 + n * 3600) * (1 if n % 10 < 3 else 1000) for n in range(100)]
    text = "customer_id,event_ts\n" + "".join(
        f"c{n % 4},{each}\n" for n, each in enumerate(numbers)
    )
    path = written(tmp_path, "a.csv", text)
    with pytest.raises(
        ChurnError, match=r"30 of 100 rows .* event_ts is before 1975, as in .*epoch_s"
    ):
        load(store, config, path, time_format="epoch_ms")
    lenient = config.updated({"data.max_rejected_share": 0.3})
    profile = load(store, lenient, path, time_format="epoch_ms")
    assert (profile.loaded, profile.rejected) == (70, {"event_ts is before 1975": 30})
    # a customer's first event is one that came in
    assert {row["signup_ts"].year for row in rows(store, "bronze.customers")} == {2024}


def test_customers_may_write_times_otherwise_than_events(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", "customer_id,event_ts\na,1704067200000\n")
    people = written(tmp_path, "people.csv", "customer_id,signup_ts\na,1600000000\n")
    with pytest.raises(
        ChurnError, match=r"people.csv: .* signup_ts is at .* --customers-time-format"
    ):
        load(store, config, path, people, time_format="epoch_ms")
    load(store, config, path, people, time_format="epoch_ms", customers_time_format="epoch_s")
    assert rows(store, "bronze.customers")[0]["signup_ts"].year == 2020
    people = written(tmp_path, "people.csv", "customer_id,signup_ts\na,1968-05-01\n")
    again = {"mode": "replace", "time_format": "epoch_ms", "customers_time_format": "iso"}
    load(store, config, path, people, **again)
    assert rows(store, "bronze.customers")[0]["signup_ts"].year == 1968


def test_what_is_wrong_with_a_customer_is_not_blamed_on_the_events(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = written(tmp_path, "a.csv", GOOD)
    signups = "".join(f"c{n},2023-01-01\n" for n in range(1, 500))
    people = written(tmp_path, "people.csv", f"customer_id,signup_ts\n{signups}c0,soon\n")
    with pytest.raises(
        ChurnError, match=r"10 of 70 rows of events .* signup_ts is not a timestamp in"
    ):
        load(store, config, path, people)
    people = written(tmp_path, "people.csv", "customer_id,signup_ts\nc0,31.12.2023\n")
    with pytest.raises(ChurnError, match=r"people.csv: 1 of 1 rows of customers .* \{.*31.12.2023"):
        load(store, config, path, people)


TIMES: dict[str, tuple[str, str, str, str]] = {  # given, zone, format, UTC
    "a zone by name": ("2024-03-01 10:00 America/New_York", "UTC", "%Y-%m-%d %H:%M %Z", "15:00"),
    "a zone by name, ISO": ("2024-07-01 10:00:00 Europe/Berlin", "Asia/Tokyo", "", "08:00"),
    "UTC by name": ("2024-07-01 10:00:00 UTC", "Asia/Tokyo", "%Y-%m-%d %H:%M:%S %Z", "10:00"),
    "an offset": ("01.07.2024 10:00 +0530", "Asia/Tokyo", "%d.%m.%Y %H:%M %z", "04:30"),
    "Z as an offset": ("01.07.2024 10:00Z", "Asia/Tokyo", "%d.%m.%Y %H:%M%z", "10:00"),
    "a percent sign before z": ("2024-07-01 10:00 %z", "Asia/Tokyo", "%Y-%m-%d %H:%M %%z", "01:00"),
    "nanoseconds": ("2024-07-01 10:00:00.5", "Asia/Tokyo", "%Y-%m-%d %H:%M:%S.%n", "01:00"),
    "the second of two hours": ("2024-11-03 01:30", "America/New_York", "", "06:30"),
    "an hour that is none": ("2024-03-10 02:30", "America/New_York", "", "07:30"),
    "scientific seconds": ("1.7040744E9", "Asia/Tokyo", "epoch_s", "02:00"),
    "blanks around it": (" 2024-01-01 10:00 ", "UTC", "", "10:00"),
}


@pytest.mark.parametrize("name", TIMES)
def test_a_time_is_staged_as_the_instant_that_is_meant(
    name: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    given, zone, written_as, expected = TIMES[name]
    path = written(tmp_path, "a.csv", f"customer_id,event_ts\na,{given}\n")
    load(store, config, path, time_zone=zone, time_format=written_as)
    later = written(tmp_path, "b.csv", "customer_id,event_ts\na,2024-12-01T10:00:00Z\n")
    load(store, config, later, mode="append")
    first = min(row["event_ts"] for row in rows(store, "bronze.events"))
    assert first.strftime("%H:%M") == expected


def test_times_of_parquet_come_in_whatever_their_type(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    second = 1_704_067_200
    columns = {
        "s": pa.array([second], pa.timestamp("s")),
        "ns": pa.array([second * 10**9], pa.timestamp("ns")),
        "ns in a zone": pa.array([(second - 9 * 3600) * 10**9], pa.timestamp("ns", "Asia/Tokyo")),
        "date": pa.array([second // 86400], pa.date32()),
        "whole number": pa.array([20240101]),
        "text": pa.array(["2024-01-01"]),
    }
    for name, times in columns.items():
        pq.write_table(pa.table({"customer_id": ["a"], "event_ts": times}), tmp_path / "a.parquet")
        written_as = "%Y%m%d" if name in ("whole number", "text") else ""
        if name == "text":
            written_as = "%Y-%m-%d"
        profile = load(
            store,
            config,
            str(tmp_path / "a.parquet"),
            mode="replace",
            time_zone="Asia/Tokyo",
            time_format=written_as,
        )
        assert profile.first_event == "2023-12-31 15:00:00+00", name


def test_an_id_is_the_same_id_from_every_format_and_file(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    day = [datetime.date(2024, 1, 1)]
    same = {
        "42": [
            pa.array([42]),
            pa.array([42.0]),
            pa.array([42.0], pa.float32()),
            pa.array([Decimal("42.00")]),
            pa.array([" 42\t"]),
            pa.array(["42.0"]),
            pa.array(["42"]).dictionary_encode(),
        ],
        "0042": [pa.array(["0042"])],
        str(UUID): [pa.array([UUID.bytes], pa.uuid()), pa.array([str(UUID).upper()])],
        "\u00e9": [pa.array(["e\u0301"])],
    }
    for expected, arrays in same.items():
        text = f'customer_id,event_ts\n"{expected} ",2024-01-01\n'
        load(store, config, written(tmp_path, "a.csv", text), mode="replace")
        for each in arrays:
            pq.write_table(pa.table({"customer_id": each, "event_ts": day}), tmp_path / "a.parquet")
            again = load(store, config, str(tmp_path / "a.parquet"), mode="append")
            assert (again.loaded, again.already_loaded) == (0, 1), (expected, each.type)
        assert [row["customer_id"] for row in rows(store, "bronze.customers")] == [expected]


def test_what_stands_for_nothing_is_no_id(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    ids = ["", " ", "NULL", "null", "\\N", "NaN", "nan", "None", "<NA>", None, "Nan-1"]
    table = pa.table({"customer_id": ids, "event_ts": [datetime.date(2024, 1, 1)] * len(ids)})
    pq.write_table(table, tmp_path / "a.parquet")
    lenient = config.updated({"data.max_rejected_share": 0.95})
    profile = load(store, lenient, str(tmp_path / "a.parquet"))
    assert (profile.loaded, profile.rejected) == (1, {"customer_id is missing": 10})


def test_an_append_says_which_events_it_has_already_with_other_content(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    header = "event_id,customer_id,event_ts,session_id,product_id\n"
    first = header + "1,a,2024-01-01,,p\n2,a,2024-01-02,s,\n"
    load(store, config, written(tmp_path, "a.csv", first))
    again = load(store, config, written(tmp_path, "a.csv", first), mode="append")
    assert (again.loaded, again.already_loaded, again.rejected) == (0, 2, {})
    for changed in (
        "1,b,2024-01-01,,p",
        "1,a,2024-01-03,,p",
        "2,a,2024-01-02,t,",
        "1,a,2024-01-01,,",
    ):
        path = written(tmp_path, "b.csv", f"{header}{changed}\n3,a,2024-01-04,,p\n")
        with pytest.raises(ChurnError, match=r"bronze.events with other content.*--replace"):
            load(store, config, path, mode="append")
    lenient = config.updated({"data.max_rejected_share": 0.5})
    profile = load(store, lenient, path, mode="append")
    assert profile.rejected == {"event_id is in bronze.events with other content": 1}
    assert (profile.loaded, profile.already_loaded, profile.events) == (1, 0, 3)


def swallowing(opening: str, closing: str) -> str:  # 100 lines; those from 50 to 60 in one value
    lines = [f"c{n % 9},2024-01-{n % 28 + 1:02d},p{n}" for n in range(100)]
    lines[50], lines[60] = f"c0,2024-01-01,{opening}", f"c0,2024-01-01,{closing}"
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("column", ["product_id", "comment"])
@pytest.mark.parametrize(
    ("opening", "closing"), [('"19 inch', '"24 inch'), ('"19 inch', '24 inch"'), ('"19" rack', "p")]
)
def test_lines_that_an_open_quote_takes_along_are_counted_one_by_one(
    opening: str, closing: str, column: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    text = f"customer_id,event_ts,{column}\n{swallowing(opening, closing)}"
    path = written(tmp_path, "a.csv", text)
    lost = 1 if closing == "p" else 11
    if lost > 1:
        with pytest.raises(
            ChurnError, match=r"11 of 100 rows .* as in a.csv.*c0,2024-01-01.*19 inch"
        ):
            load(store, config, path)
    lenient = config.updated({"data.max_rejected_share": 0.2})
    profile = load(store, lenient, path)
    assert (profile.loaded, sum(profile.rejected.values())) == (100 - lost, lost)
    assert len(rows(store, "bronze.rejected")) == lost


def test_values_of_several_lines_that_nobody_reads_come_in(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    comments = [
        '"two\nlines, and a comma"',
        '"said ""so""\r\n\r\nthrice"',
        '19" rack',
        '""',
        "it's",
    ]
    lines = [f"a,2024-01-0{n + 1},{each}" for n, each in enumerate(comments)]
    for end in ("\n", "\r\n"):
        text = end.join(["customer_id,event_ts,comment", *lines, ""])
        profile = load(store, config, written(tmp_path, "a.csv", text), mode="replace")
        assert (profile.loaded, profile.rejected) == (5, {})


@pytest.mark.parametrize(
    "text",
    [
        "'customer_id','event_ts','product_id'\n'a','2024-01-01','x,''y'\n",
        "customer_id;event_ts;product_id\na;2024-01-01;'x,''y'\n",
        'customer_id,event_ts,product_id,note\na,2024-01-01,"x,\'y","a \\"b\\""\n',
    ],
)
def test_single_quotes_and_backslashes_quote_where_the_file_uses_them(
    text: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    load(store, config, written(tmp_path, "a.csv", text))
    (row,) = rows(store, "bronze.events")
    assert (row["customer_id"], row["product_id"]) == ("a", "x,'y")


@pytest.mark.parametrize(
    "ends", [["\n", "\r\n"], ["\r\n", "\n"], ["\r"], ["\n", "\r"], ["\r\n", "\r", "\n"]], ids=repr
)
def test_line_ends_of_every_kind_are_read(
    ends: list[str], tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    lines = GOOD.splitlines()
    text = "".join(line + ends[n % len(ends)] for n, line in enumerate(lines))
    profile = load(store, config, written(tmp_path, "a.csv", text))
    assert (profile.loaded, profile.customers, profile.rejected) == (70, 7, {})


@given(
    lines=st.lists(
        st.one_of(
            st.builds(
                "c{},2024-01-0{},{}".format, st.integers(0, 5), st.integers(1, 9), st.just("p")
            ),
            st.text("a1,\"'\\; c2024-", min_size=1, max_size=12),
            st.builds("c1,2024-01-01,{}".format, st.text('"x,', max_size=4)),
        ),
        min_size=1,
        max_size=12,
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
@example(lines=['c1,2024-01-01,"x""', '"'], end="\n", last=True)
@example(lines=['c1,2024-01-01,"x', "c2,2024-01-02,p", 'c3,2024-01-03,y"'], end="\r\n", last=False)
@hypothesis_settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_line_is_loaded_or_set_aside_whatever_is_in_it(
    lines: list[str],
    end: str,
    last: bool,
    tmp_path: Path,
    store: DeltaTables,
    config: Settings,
) -> None:
    good = "c9,2024-01-01,p"  # so that there is something to load
    text = end.join(["customer_id,event_ts,product_id", good, *lines]) + (end if last else "")
    lenient = config.updated({"data.max_rejected_share": 1.0})
    try:
        profile = load(store, lenient, written(tmp_path, "a.csv", text), mode="replace")
    except ChurnError as refused:
        assert "\n" not in str(refused)
        return
    assert profile.loaded + sum(profile.rejected.values()) == len(lines) + 1


def test_a_quote_that_takes_megabytes_along_is_refused(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    lines = [f"c{n % 4000},2024-03-01 10:00:00,{n:060d}" for n in range(100_000)]
    lines[50_000] = 'c1,2024-03-01 10:00:00,"19 inch'
    lenient = config.updated({"data.max_rejected_share": 1.0})
    path = written(tmp_path, "a.csv", "customer_id,event_ts,comment\n" + "\n".join(lines))
    with pytest.raises(
        ChurnError, match=r"lines can be told apart as rows: a quote does not close"
    ):
        load(store, lenient, path)


def test_what_a_load_could_not_read_is_not_counted_by_the_next(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    lenient = config.updated({"data.max_rejected_share": 0.1})
    first = load(store, lenient, written(tmp_path, "a.csv", GOOD + "a,b,c,d\n"))
    second = load(store, lenient, written(tmp_path, "a.csv", GOOD), mode="replace")
    assert (first.rejected, second.rejected) == ({"not a row: too many columns": 1}, {})


def test_thousands_of_columns_come_in(tmp_path: Path, store: DeltaTables, config: Settings) -> None:
    more = 3000
    header = ",".join(["customer_id", "event_ts", *(f"x{n}" for n in range(more))])
    lines = [f'c{n},2024-01-01{",1" * (more - 1)},"1"' for n in range(20)]
    profile = load(store, config, written(tmp_path, "a.csv", "\n".join([header, *lines])))
    assert (profile.loaded, profile.rejected) == (20, {})


def in_folders(folder: Path, kind: str) -> str:
    values = {"a%20b": "a b", "50%25": "50 %", "__HIVE_DEFAULT_PARTITION__": None}
    for number, value in enumerate(values):
        below = folder / "customer_id=above" / "in" / f"product_id={value}" / "customer_id=wrong"
        below.mkdir(parents=True)
        table = pd.DataFrame(
            {"customer_id": [f"c{number}"], "event_ts": pd.to_datetime(["2024-01-01T10:30Z"])}
        )
        if kind == "csv":
            table.to_csv(below / "a.csv", index=False)
        else:
            table.to_parquet(below / "a.parquet")
    return str(folder / "customer_id=above" / "in")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_folders_below_the_path_are_columns_that_the_files_do_not_have(
    kind: str, tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    path = in_folders(tmp_path, kind)
    for each in (path, f"{path}/product_id=*", f"{path}/*/*/*.{kind}"):
        load(store, config, each, mode="replace")
        found = {row["customer_id"]: row["product_id"] for row in rows(store, "bronze.events")}
        assert found == {"c0": "a b", "c1": "50%", "c2": None}
    load(store, config, f"{path}/product_id=a%20b", mode="replace")
    (row,) = rows(store, "bronze.events")
    assert (row["customer_id"], row["product_id"]) == ("c0", None)  # what was named is no column


def test_times_and_customers_may_be_in_the_folders_alone(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    for day in (1, 2):
        written(tmp_path, f"in/event_ts=2024-01-0{day}/customer_id=4%202/a.csv", "x,y\n1,2\n3,4\n")
    load(store, config, str(tmp_path / "in"))
    found = [(row["customer_id"], row["event_ts"].day) for row in rows(store, "bronze.events")]
    assert sorted(found) == [("4 2", 1), ("4 2", 1), ("4 2", 2), ("4 2", 2)]


def test_files_in_folders_of_different_columns_are_refused(
    tmp_path: Path, store: DeltaTables, config: Settings
) -> None:
    for folder in ("day=1", "month=2"):
        written(tmp_path, f"in/{folder}/a.csv", GOOD)
    with pytest.raises(ChurnError, match=r"is in folders month=\.\.\., but .* in day=\.\.\.; load"):
        load(store, config, str(tmp_path / "in"))
    written(tmp_path, "twice/day=1/day=2/a.csv", GOOD)
    with pytest.raises(ChurnError, match="column 'day' duplicates"):
        load(store, config, str(tmp_path / "twice"))


def test_a_job_waits_for_a_load_that_is_under_way(
    store: DeltaTables, capsys: pytest.CaptureFixture[str]
) -> None:
    made, people = events.cdnow()
    with ThreadPoolExecutor(1) as pool:
        with DeltaTables(store.folder).exclusive_lock(lambda: None):
            store.overwrite("bronze.customers", ibis.memtable(people), tags={"load_id": "a"})
            job = pool.submit(events.ensure_bronze, DeltaTables(store.folder))
            with pytest.raises(TimeoutError):
                job.result(timeout=1)
            store.overwrite("bronze.events", ibis.memtable(made), tags={"load_id": "a"})
        assert job.result(timeout=60) == {"bronze.events": 0, "bronze.customers": 0}
    assert "waiting for a load" in capsys.readouterr().out


def test_own_events_replace_a_sample_unasked_and_are_never_added_to_it(
    store: DeltaTables, config: Settings, tmp_path: Path
) -> None:
    events.ensure_bronze(store)
    (tmp_path / "CDNOW").mkdir()
    written(tmp_path, "CDNOW/orders.csv", GOOD)
    path = str(tmp_path / "CDNOW")
    with pytest.raises(
        ChurnError, match="holds the sample CDNOW, and nothing is added to a sample"
    ):
        load(store, config, path, mode="append")
    assert store.version("bronze.events") == 0
    profile = load(store, config, path)
    assert (profile.replaced, profile.loaded) == ("CDNOW", profile.events)
    assert store.read("bronze.events").count().to_pyarrow().as_py() == profile.events < 100
    # whatever the file is called
    assert events.sample_of(store) == ""
    with pytest.raises(ChurnError, match="say --append or --replace"):
        load(store, config, path)
    again = load(store, config, path, mode="append")
    assert (again.replaced, again.loaded, events.sample_of(store)) == ("", 0, "")


def test_a_load_says_which_day_is_today_and_which_sample_has_gone(
    tmp_path: Path, config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    settings_file = tmp_path / "settings.ini"
    settings_file.write_text((ROOT / "settings.ini").read_text())
    monkeypatch.setenv("CHURN_SETTINGS", str(settings_file))
    events.ensure_bronze(tables.connect(settings.load()))
    path = written(tmp_path, "orders.csv", GOOD)
    data.load(path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "the day after the last event." in printed
    assert "The sample CDNOW is replaced" in printed
