"""The features and the feature job on a real Spark: the values of DuckDB and of plain Python."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pyspark.sql.classic.dataframe import DataFrame

from churn_lib import settings as settings_module
from churn_lib import tables
from churn_lib.data import events as events_module
from churn_lib.features import FEATURES, LABEL, snapshot
from churn_lib.features.holdout import in_holdout_bucket
from churn_lib.tables import DeltaTables
from churn_lib.tables.spark import SparkTables
from tests.conftest import run_job
from tests.features.test_definitions import (
    CONFIG,
    CONNECTION,
    DAY,
    EVENT,
    LATER,
    MIDNIGHT,
    MOMENTS,
    described,
    oracle,
)

ROOT = Path(__file__).parents[2]
# many customers in one draw: a query of Spark costs seconds, whatever it counts
LIFE = st.tuples(st.lists(EVENT, max_size=12), MOMENTS)
IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LIVES = st.dictionaries(IDS, LIFE, min_size=20, max_size=60)
Life = tuple[list[dict[str, Any]], datetime.datetime]


def raw_tables(lives: dict[str, Life]) -> tuple[pa.Table, pa.Table]:
    """Events and customers of the contract."""
    owned = [{**event, "customer_id": name} for name, life in lives.items() for event in life[0]]
    events = [{"event_id": f"e{number}", **event} for number, event in enumerate(owned)]
    customers = [{"customer_id": name, "signup_ts": life[1]} for name, life in lives.items()]
    return (
        pa.Table.from_pylist(events, events_module.EVENTS),
        pa.Table.from_pylist(customers, events_module.CUSTOMERS),
    )


def expected(lives: dict[str, Life]) -> dict[str, dict[str, Any]]:
    """What the definitions say of every customer who had joined."""
    return {
        name: {
            **oracle([{**event, "customer_id": name} for event in events], signup, name),
            "feature_date": DAY,
        }
        for name, (events, signup) in lives.items()
        if signup <= MIDNIGHT
    }


def by_customer(found: pa.Table) -> dict[str, dict[str, Any]]:
    rows = {row.pop("customer_id"): row for row in found.to_pylist()}
    assert len(rows) == found.num_rows
    return rows


def on_spark(store: SparkTables, events: pa.Table, customers: pa.Table) -> pa.Table:
    """The snapshot of bronze tables, by way of the Delta table it is kept in."""
    raw = {"bronze.events": events, "bronze.customers": customers}
    read = {
        name: store.read(name, store.overwrite(name, ibis.memtable(rows)))
        for name, rows in raw.items()
    }
    rows = snapshot(read["bronze.events"], read["bronze.customers"], DAY, LATER, CONFIG)
    version = store.overwrite("gold.features", rows, {"feature_date": DAY})
    return store.read("gold.features", version).to_pyarrow()


@hypothesis_settings(
    max_examples=2,
    phases=[Phase.generate],  # shrinking would take many queries more
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(LIVES)
def equal_everywhere(store: SparkTables, lives: dict[str, Life]) -> None:
    events, customers = raw_tables(lives)
    spark = on_spark(store, events, customers)
    rows = snapshot(ibis.memtable(events), ibis.memtable(customers), DAY, LATER, CONFIG)
    duckdb = CONNECTION.to_pyarrow(rows)
    assert spark.schema.names == duckdb.schema.names == list(rows.columns)
    assert spark.schema.types == duckdb.schema.types
    found, wanted = by_customer(spark), expected(lives)
    assert found == by_customer(duckdb)
    assert found.keys() == wanted.keys()
    assert {name: described(row, wanted[name]) for name, row in found.items()} == wanted


def test_random_lives_have_the_features_of_duckdb_and_of_the_definitions(
    spark_tables: SparkTables,
) -> None:
    equal_everywhere(spark_tables)


def test_the_edges_of_every_window_are_where_the_definitions_put_them(
    spark_tables: SparkTables,
) -> None:
    lives: dict[str, Life] = {"nothing ever": ([], MIDNIGHT), "joins later": ([], MIDNIGHT)}
    lives["joins later"] = ([], MIDNIGHT + datetime.timedelta(microseconds=1))
    for days in (0, 1, 7, 8, 30, 31, 90, 91, -CONFIG.data.horizon_days):
        for microseconds in (-1_500_000, -1, 0, 1, 999_999):
            moment = MIDNIGHT - datetime.timedelta(days=days, microseconds=microseconds)
            event = {"event_ts": moment, "session_id": None, "product_id": None}
            long_ago = MIDNIGHT - datetime.timedelta(days=200, microseconds=1)
            lives[f"客 {days} {microseconds}"] = ([event], long_ago)
    found = by_customer(on_spark(spark_tables, *raw_tables(lives)))
    assert found == expected(lives)
    assert {row["recency_tier"] for row in found.values()} == {0, 1, 2, 3}
    assert {row[LABEL] for row in found.values()} == {0, 1}


@pytest.fixture(scope="module")
def cdnow() -> tuple[pa.Table, pa.Table]:
    """Every fifth customer of CDNOW."""
    events, customers = events_module.cdnow()
    chosen = customers.column("customer_id").take(list(range(0, customers.num_rows, 5)))
    return tuple(
        table.filter(pc.is_in(table["customer_id"], value_set=chosen.combine_chunks()))
        for table in (events, customers)
    )


def settings_of(folder: Path, catalog: str) -> settings_module.Settings:
    """The project's settings with a store in `folder` and another catalog."""
    text = (ROOT / "settings.ini").read_text()
    text = text.replace("catalog = churn_local", f"catalog = {catalog}")
    (folder / "settings.ini").write_text(text)
    return settings_module.load("local", folder / "settings.ini")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many rows each query of Spark brought into this process."""
    counts: list[int] = []

    def counting(name: str) -> Any:
        original = getattr(DataFrame, name)

        def fetch(self: DataFrame, *given: Any, **named: Any) -> Any:
            answer = original(self, *given, **named)
            answer = list(answer) if name == "toLocalIterator" else answer
            counts.append(len(answer))
            return answer

        return fetch

    for name in ("collect", "toPandas", "toArrow", "toLocalIterator"):
        monkeypatch.setattr(DataFrame, name, counting(name))
    yield counts


def test_the_feature_job_runs_on_spark_by_name_and_fetches_no_rows(
    cdnow: tuple[pa.Table, pa.Table],
    spark_tables: SparkTables,
    fetched: list[int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, catalog in ((here, "churn_local"), (there, "spark_catalog")):
        folder.mkdir()
        config = settings_of(folder, catalog)
        with monkeypatch.context() as context:
            if folder == there:
                context.setenv("DATABRICKS_RUNTIME_VERSION", "18.0")
            store = tables.connect(config)
            assert isinstance(store, SparkTables if folder == there else DeltaTables)
            for name, rows in zip(("bronze.events", "bronze.customers"), cdnow, strict=True):
                store.overwrite(name, ibis.memtable(rows))
            fetched.clear()
            context.setenv("CHURN_SETTINGS", str(folder / "settings.ini"))
            context.setenv("CHURN_TASK_VALUES", str(folder / "values"))
            values = run_job("01_feature_engineering", folder, context)
        assert values["feature_date"] == "1998-07-01"
        if folder == there:
            assert fetched and max(fetched) < 600 < cdnow[1].num_rows  # a row for each day
        found = store.read("gold.features", values["delta_feature_version"])
        result = found.select("customer_id", "feature_date", *FEATURES, LABEL, "in_holdout_bucket")
        order = [("feature_date", "ascending"), ("customer_id", "ascending")]
        if folder == here:
            wanted = result.to_pyarrow().sort_by(order)
        else:
            assert result.to_pyarrow().sort_by(order).equals(wanted)
    assert wanted.num_rows == 5 * cdnow[1].num_rows
    detail = spark_tables.spark.sql("DESCRIBE DETAIL spark_catalog.gold.features").collect()[0]
    assert detail["clusteringColumns"] == ["feature_date", "customer_id"]
    assert detail["properties"]["delta.enableChangeDataFeed"] == "true"
    tags = spark_tables.history("gold.features").tags
    assert all(own["git_sha"] == "abc123" for own in tags)
    share = CONFIG.data.holdout_share
    customers = dict.fromkeys(wanted["customer_id"].to_pylist())
    by_python = {name: in_holdout_bucket(name, share) for name in customers}
    by_spark = zip(
        wanted["customer_id"].to_pylist(), wanted["in_holdout_bucket"].to_pylist(), strict=True
    )
    assert dict(by_spark) == by_python
