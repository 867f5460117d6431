"""The interface of tables on delta-rs and on a real Spark: one behaviour, and each reads the other."""

import datetime
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import ibis
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from churn_lib.tables import DeltaTables, TableChanged, TableError, Tables
from churn_lib.tables import spark as spark_tables_module
from churn_lib.tables.spark import SparkTables

UTC = datetime.UTC
MONDAY, TUESDAY = date(2024, 1, 1), date(2024, 1, 2)
MOMENT = datetime.datetime(2024, 1, 1, 23, 59, 59, 999_999, tzinfo=UTC)
ROWS = pa.schema(
    [
        ("customer_id", pa.string()),
        ("feature_date", pa.date32()),
        ("seen_at", pa.timestamp("us", tz="UTC")),
        ("number", pa.int64()),
        ("share", pa.float64()),
        ("known", pa.bool_()),
    ]
)


@pytest.fixture(params=["delta-rs", "spark"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Tables:
    """Tables of either kind, none there yet."""
    if request.param == "spark":
        return request.getfixturevalue("spark_tables")
    return DeltaTables(tmp_path)


def row(customer_id: str, day: date = MONDAY, **given: Any) -> dict[str, Any]:
    """One row of the contract; what is not given is null."""
    return {**dict.fromkeys(ROWS.names), "customer_id": customer_id, "feature_date": day, **given}


def rows(*given: dict[str, Any]) -> ibis.Table:
    return ibis.memtable(pa.Table.from_pylist(list(given), ROWS))


def held(store: Tables, name: str, version: int | None = None) -> list[dict[str, Any]]:
    """The rows of a table in the order of day, customer and number."""
    found = store.read(name, version).to_pyarrow()
    assert found.schema.types == ROWS.types
    order = ["feature_date", "customer_id", "number"]
    return found.sort_by([(column, "ascending") for column in order]).to_pylist()


def folder_of(spark_tables: SparkTables, name: str) -> str:
    detail = spark_tables.spark.sql(f"DESCRIBE DETAIL {spark_tables.full_name(name)}").collect()
    return urlparse(detail[0]["location"]).path


def test_a_partition_is_replaced_and_every_version_stays_readable(store: Tables) -> None:
    first, later, instead = row("a"), row("b", TUESDAY), row("c", number=1)
    by_day = [{"feature_date": day} for day in (MONDAY, TUESDAY, MONDAY)]
    versions = [
        store.overwrite("gold.t", rows(given), partition)
        for given, partition in zip((first, later, instead), by_day, strict=True)
    ]
    assert versions == [0, 1, 2]
    assert [held(store, "gold.t", version) for version in versions] == [
        [first],
        [first, later],
        [instead, later],
    ]
    assert held(store, "gold.t") == [instead, later]
    assert store.version("gold.t") == 2


def test_values_come_back_as_they_were_written(store: Tables) -> None:
    given = [
        row("", seen_at=MOMENT, number=-(2**63), share=0.1, known=False),
        row("O", number=0, share=-0.5),
        row("Ω 'quoted' \\ 🎈", seen_at=MOMENT.replace(microsecond=0), number=2**53 + 1),
    ]
    store.append("gold.t", rows(*given))
    assert held(store, "gold.t") == given


def test_appends_add_and_a_whole_overwrite_replaces_everything(store: Tables) -> None:
    store.append("gold.t", rows(row("a")), {"from": "first"})
    assert store.append("gold.t", rows(row("b")), {"from": "second"}) == 1
    assert held(store, "gold.t") == [row("a"), row("b")]
    assert store.overwrite("gold.t", rows(row("c"))) == 2
    assert held(store, "gold.t") == [row("c")]


def test_a_table_can_be_overwritten_from_what_it_held_itself(store: Tables) -> None:
    store.append("gold.t", rows(row("a", number=1), row("b", number=2)))
    before = store.read("gold.t")
    more = before.mutate(number=before.number + 10).filter(before.customer_id != "b")
    store.overwrite("gold.t", more.union(rows(row("c"))))
    assert held(store, "gold.t") == [row("a", number=11), row("c")]


def test_a_partition_may_have_any_text_in_its_value(store: Tables) -> None:
    odd = "O'Brien \\ 50 %"
    store.overwrite("gold.t", rows(row(odd)), {"customer_id": odd})
    store.overwrite("gold.t", rows(row("b")), {"customer_id": "b"})
    store.overwrite("gold.t", rows(row(odd, number=2)), {"customer_id": odd})
    assert held(store, "gold.t") == [row(odd, number=2), row("b")]


def test_history_tells_version_time_and_tags_newest_first(
    store: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        begin = datetime.datetime.now(UTC) - datetime.timedelta(seconds=2)
        store.overwrite("gold.t", rows(row("a")), {"feature_date": MONDAY}, {"git_sha": "abc"})
        store.append("gold.t", rows(row("b")), {"git_sha": "def", "note": 'a "quoted" Ω'})
        store.append("gold.t", rows(row("c")))
        history = store.history("gold.t")
        end = datetime.datetime.now(UTC) + datetime.timedelta(seconds=2)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert list(history.version) == [2, 1, 0]
    assert list(history.tags) == [
        {},
        {"git_sha": "def", "note": 'a "quoted" Ω'},
        {"git_sha": "abc"},
    ]
    assert all(begin <= moment <= end for moment in history.timestamp)


def test_compaction_leaves_fewer_files_and_the_same_rows(store: Tables) -> None:
    given = [row("a", number=number) for number in range(4)]
    for one in given:
        store.append("gold.t", rows(one))
    folder = folder_of(store, "gold.t") if isinstance(store, SparkTables) else store.path("gold.t")
    many = len(DeltaTable(folder).file_uris())
    assert store.compact("gold.t") == store.version("gold.t") > 3
    assert len(DeltaTable(folder).file_uris()) < many
    assert held(store, "gold.t") == given
    assert held(store, "gold.t", 1) == given[:2]


def test_rows_are_deleted_by_a_condition_and_stay_in_older_versions(store: Tables) -> None:
    for day in (MONDAY, TUESDAY):
        given = rows(row(str(day), number=1, feature_date=day))
        store.overwrite("gold.t", given, {"feature_date": day})
    before = store.version("gold.t")
    after = store.delete("gold.t", f"feature_date < '{TUESDAY}'", {"why": "too old"})
    assert after > before and store.version("gold.t") == after
    assert [each["feature_date"] for each in held(store, "gold.t")] == [TUESDAY]
    assert len(held(store, "gold.t", before)) == 2
    assert store.history("gold.t").tags.iloc[0] == {"why": "too old"}


def test_a_table_whose_history_nobody_asks_for_lets_the_platform_delete_it(
    spark_tables: SparkTables,
) -> None:
    spark_tables.append("gold.t", rows(row("a", number=1)))
    spark_tables.retain("gold.t", days=30, forget=True)
    version = spark_tables.version("gold.t")
    found = spark_tables.spark.sql("SHOW TBLPROPERTIES gold.t").collect()
    properties = {each["key"]: each["value"] for each in found}
    for name in ("delta.deletedFileRetentionDuration", "delta.logRetentionDuration"):
        assert properties[name] == "interval 30 days"
    spark_tables.retain("gold.t", days=30, forget=True)
    assert spark_tables.version("gold.t") == version  # written once


def test_retention_drops_old_versions_but_none_it_is_told_to_keep(
    store: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark_tables_module, "_MARGIN", datetime.timedelta(0))
    for number in range(4):
        store.overwrite("gold.t", rows(row("a", number=number)), {"feature_date": MONDAY})
    store.retain("gold.t", days=0, keep=[1])
    found = {}
    for version in range(4):
        try:
            found[version] = held(store, "gold.t", version)[0]["number"]
        except Exception:  # whatever the engine says of a file that is gone
            found[version] = None
    # Spark deletes by age: what is younger than a version to be kept stays with it
    later = 2 if isinstance(store, SparkTables) else None
    assert found == {0: None, 1: 1, 2: later, 3: 3}
    store.append("gold.t", rows(row("b")))
    assert held(store, "gold.t") == [row("a", number=3), row("b")]


def test_what_is_not_there_is_told_in_one_line(store: Tables) -> None:
    assert not store.exists("gold.t")
    for ask in (store.version, store.read, store.history, store.compact):
        with pytest.raises(TableError, match=r"t.* does not exist.*; run the job that writes it"):
            ask("gold.t")
    with pytest.raises(TableError, match=r"'t' is not of the form schema\.table"):
        store.exists("t")
    store.append("gold.t", rows(row("a")))
    assert store.exists("gold.t")
    for version in (1, -1):
        with pytest.raises(TableError, match=f"gold.t has no version {version}; it has 0 to 0"):
            store.read("gold.t", version)


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_rows_with_other_columns_are_refused_and_the_table_stays(
    store: Tables, change: str
) -> None:
    store.append("gold.t", rows(row("a")))
    more = rows(row("b")).mutate(more=ibis.literal(1))
    other = more if change == "more" else more.drop("more", "known")
    for write in (store.append, store.overwrite):
        with pytest.raises(TableError, match=r"gold.t has other columns"):
            write("gold.t", other)
    assert held(store, "gold.t") == [row("a")]
    assert store.version("gold.t") == 0


def test_rows_outside_the_partition_they_replace_are_refused(store: Tables) -> None:
    store.overwrite("gold.t", rows(row("a")), {"feature_date": MONDAY})
    with pytest.raises(Exception, match=r"outside the partition|failed validation"):
        store.overwrite("gold.t", rows(row("b", TUESDAY)), {"feature_date": MONDAY})
    with pytest.raises(TableError, match=r"feature_date = 1.5: use text"):
        store.overwrite("gold.t", rows(row("b")), {"feature_date": 1.5})
    assert held(store, "gold.t") == [row("a")]
    assert store.version("gold.t") == 0


def test_spark_refuses_values_of_another_type_in_one_line(spark_tables: SparkTables) -> None:
    spark_tables.append("gold.t", rows(row("a")))
    wrong = rows(row("b")).mutate(number=ibis.literal("ten"))
    with pytest.raises(
        TableError, match=r"gold.t: these rows have other types: .*number"
    ) as caught:
        spark_tables.append("gold.t", wrong)
    assert "\n" not in str(caught.value)
    assert held(spark_tables, "gold.t") == [row("a")]


@pytest.fixture
def second(store: Tables, spark_tables_of: Any) -> Tables:
    """The same tables, as another writer holds them."""
    return spark_tables_of(store)


@pytest.fixture
def spark_tables_of() -> Any:
    def another(store: Tables) -> Tables:
        if isinstance(store, SparkTables):
            return SparkTables(store.spark, store.catalog)
        assert isinstance(store, DeltaTables)
        return DeltaTables(store.folder)

    return another


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_two_appenders_both_succeed_from_the_first_write_on(
    store: Tables, second: Tables, pool: ThreadPoolExecutor
) -> None:
    def write(writer: Tables, who: str) -> list[int]:
        return [
            writer.append("gold.t", rows(row(who, number=number)), {"who": f"{who}{number}"})
            for number in range(3)
        ]

    made = list(pool.map(write, (store, second), "ab"))
    assert sorted(made[0] + made[1]) == list(range(6))
    assert held(store, "gold.t") == [row(who, number=n) for who in "ab" for n in range(3)]
    history = store.history("gold.t")
    tags = dict(zip(history.version, history.tags, strict=True))
    for who, versions in zip("ab", made, strict=True):
        assert [tags[version] for version in versions] == [{"who": f"{who}{n}"} for n in range(3)]


@pytest.mark.parametrize("days", [(MONDAY, MONDAY), (MONDAY, TUESDAY)], ids=["same", "two"])
def test_two_writers_of_partitions_both_finish_and_leave_whole_ones(
    store: Tables, second: Tables, pool: ThreadPoolExecutor, days: tuple[date, date]
) -> None:
    def write(writer: Tables, who: str, day: date) -> list[int]:
        given = [row(f"{who}{number}", day) for number in range(5)]
        partition = {"feature_date": day}
        return [writer.overwrite("gold.t", rows(*given), partition) for _ in range(3)]

    made = list(pool.map(write, (store, second), "ab", days))
    assert sorted(made[0] + made[1]) == list(range(6))
    left = {
        day: [r["customer_id"] for r in held(store, "gold.t") if r["feature_date"] == day]
        for day in set(days)
    }
    whole = {who: [f"{who}{number}" for number in range(5)] for who in "ab"}
    if days[0] == days[1]:
        assert left[MONDAY] in whole.values()
    else:
        assert left == {MONDAY: whole["a"], TUESDAY: whole["b"]}


def test_a_new_table_is_clustered_and_has_its_change_feed_on_and_keeps_both(
    spark_tables: SparkTables,
) -> None:
    spark_tables.overwrite("gold.t", rows(row("a")), {"feature_date": MONDAY})
    spark_tables.append("gold.t", rows(row("b", TUESDAY)))
    spark_tables.overwrite("gold.t", rows(row("c")), {"feature_date": MONDAY})
    spark_tables.overwrite("gold.t", rows(row("d")))
    spark_tables.retain("gold.t", days=1)
    assert held(spark_tables, "gold.t", 0) == [row("a")]  # younger than a day
    name = spark_tables.full_name("gold.t")
    assert name == "`spark_catalog`.`gold`.`t`"
    (detail,) = spark_tables.spark.sql(f"DESCRIBE DETAIL {name}").collect()
    assert detail["clusteringColumns"] == ["feature_date", "customer_id"]
    assert detail["properties"] == {
        "delta.enableChangeDataFeed": "true",
        "delta.logRetentionDuration": "interval 36500 days",
        "delta.deletedFileRetentionDuration": "interval 36500 days",
        "delta.dataSkippingNumIndexedCols": "-1",
    }
    changes = spark_tables.spark.sql(f"SELECT * FROM table_changes('{name}', 0)").collect()
    assert sorted((c["_commit_version"], c["_change_type"], c["customer_id"]) for c in changes) == [
        (0, "insert", "a"),
        (1, "insert", "b"),
        (2, "delete", "a"),
        (2, "insert", "c"),
        (3, "delete", "b"),
        (3, "delete", "c"),
        (3, "insert", "d"),
    ]


def test_a_failed_first_write_leaves_no_table(spark_tables: SparkTables) -> None:
    spark_tables.append("gold.source", rows(row("a"), row("b")))
    source = spark_tables.read("gold.source")
    broken = source.mutate(number=source.customer_id.cast("int64"))
    with pytest.raises(Exception, match="CAST_INVALID_INPUT"):
        spark_tables.append("gold.t", broken)
    assert not spark_tables.exists("gold.t")
    spark_tables.append("gold.t", rows(row("a")), {"git_sha": "abc"})
    assert list(spark_tables.history("gold.t").tags) == [{"git_sha": "abc"}]


def test_delta_rs_reads_and_continues_what_spark_wrote(
    spark_tables: SparkTables, tmp_path: Path
) -> None:
    given = [row("a", seen_at=MOMENT, number=1, share=0.25, known=True), row("b")]
    spark_tables.overwrite("gold.t", rows(*given), {"feature_date": MONDAY}, {"git_sha": "abc"})
    spark_tables.append("gold.t", rows(row("c", TUESDAY)))
    (tmp_path / "gold").mkdir()
    os.symlink(folder_of(spark_tables, "gold.t"), tmp_path / "gold" / "t")
    here = DeltaTables(tmp_path)
    assert held(here, "gold.t", 0) == given
    assert held(here, "gold.t") == [*given, row("c", TUESDAY)]


def test_spark_reads_what_delta_rs_wrote(spark_tables: SparkTables, tmp_path: Path) -> None:
    here = DeltaTables(tmp_path)
    given = [row("a", seen_at=MOMENT, number=1, share=0.25, known=True), row("b")]
    here.overwrite("gold.t", rows(*given), {"feature_date": MONDAY}, {"git_sha": "abc"})
    here.overwrite("gold.t", rows(row("c", TUESDAY)), {"feature_date": TUESDAY})
    spark_tables.spark.sql("CREATE SCHEMA gold")
    spark_tables.spark.sql(f"CREATE TABLE gold.t USING delta LOCATION '{here.path('gold.t')}'")
    assert held(spark_tables, "gold.t", 0) == given
    assert held(spark_tables, "gold.t") == [*given, row("c", TUESDAY)]
    spark_tables.overwrite("gold.t", rows(row("d")), {"feature_date": MONDAY})
    assert held(here, "gold.t") == [row("d"), row("c", TUESDAY)]


def test_an_append_that_rests_on_a_version_is_refused_when_another_came_first(
    store: Tables,
) -> None:
    first = store.append_if_unchanged("gold.moves", ibis.memtable({"move": [1]}), -1)
    with pytest.raises(TableChanged, match="no longer at version"):
        store.append_if_unchanged("gold.moves", ibis.memtable({"move": [9]}), -1)
    second = store.append_if_unchanged("gold.moves", ibis.memtable({"move": [2]}), first)
    with pytest.raises(TableChanged, match="no longer at version"):
        store.append_if_unchanged("gold.moves", ibis.memtable({"move": [3]}), first)
    assert store.version("gold.moves") == second
    assert sorted(store.read("gold.moves").to_pandas().move) == [1, 2]


def test_of_two_appends_that_rest_on_one_version_one_wins(store: Tables) -> None:
    version = store.append_if_unchanged("gold.moves", ibis.memtable({"move": [0]}), -1)

    def attempt(move: int) -> bool:
        # a connection of DuckDB serves one thread
        own = DeltaTables(store.folder) if isinstance(store, DeltaTables) else store
        try:
            own.append_if_unchanged("gold.moves", ibis.memtable({"move": [move]}), version)
        except TableChanged:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(attempt, (1, 2)))
    assert sorted(won) == [False, True]
    assert len(store.read("gold.moves").to_pandas()) == 2
