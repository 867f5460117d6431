"""Batch scores on a real Spark with real Delta tables: what the same scoring writes without Spark."""

from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_lib import registry, scoring, settings
from churn_lib.scoring import Scorer, call_list
from churn_lib.scoring.batch import Scored
from churn_lib.scoring.control import control_bucket, in_control_bucket
from churn_lib.tables import Tables
from churn_lib.tables.spark import SparkTables
from tests.scoring.test_batch import (
    CUSTOMERS,
    LABELLED,
    NEWEST,
    config,
    made_up,
    make_config,
    make_tables,
)

__all__ = ["config"]  # a fixture, made for this file once more


def written(store: Tables, done: Scored) -> pd.DataFrame:
    """The partition of gold.predictions that a run wrote, by customer."""
    rows = scoring.read_predictions(store, done.feature_date, done.model_version, done.version)
    return rows.to_pandas().sort_values("customer_id", ignore_index=True)


@pytest.fixture
def scorer(config: settings.Settings) -> Scorer:
    models = registry.connect(config)
    models.set_alias(registry.PRODUCTION, 1)
    return scoring.production(models)


@pytest.fixture
def on_spark(spark_tables: SparkTables) -> SparkTables:
    for day, labelled in ((LABELLED, True), (NEWEST, False)):
        rows = pa.Table.from_pandas(made_up(day, labelled), preserve_index=False)
        spark_tables.overwrite("gold.features", ibis.memtable(rows), {"feature_date": day})
    return spark_tables


def _scored(store: Tables, scorer: Scorer) -> Scored:
    return scoring.score(store, scoring.read_snapshot(store), scorer, "abc", control_share=0.25)


def test_spark_writes_the_probability_decile_decision_and_reasons_that_are_written_without_it(
    on_spark: SparkTables, scorer: Scorer, tmp_path: Path
) -> None:
    here = make_tables(make_config(tmp_path))
    expected = written(here, _scored(here, scorer))
    done = _scored(on_spark, scorer)
    found = written(on_spark, done)
    assert (done.customers, done.feature_date) == (CUSTOMERS, NEWEST)
    assert done.to_call == expected.contacted.sum() > 0
    assert done.to_call + done.control == expected.decision.sum() > done.to_call
    same = ["customer_id", "churn_probability", "decile", "tied", "decision"]
    same += ["contacted", "control_share", "model_version", "git_sha"]
    for name in same:
        assert found[name].tolist() == expected[name].tolist(), name
    for ours, theirs in zip(found.reasons, expected.reasons, strict=True):
        assert [each["feature"] for each in ours] == [each["feature"] for each in theirs]
        numbers = [(each["value"], each["contribution"]) for each in ours]
        np.testing.assert_allclose(
            numbers, [(each["value"], each["contribution"]) for each in theirs], rtol=1e-12
        )


def test_spark_holds_back_the_customers_that_python_does(spark_tables: SparkTables) -> None:
    names = ["00001", "Zoë", "", "Customer 17", "'; --", "日本", *map(str, range(500))]
    spark_tables.overwrite("gold.names", ibis.memtable({"customer_id": names}))
    rows = spark_tables.read("gold.names")
    for share in (0.0, 0.1, 0.5, 0.999):
        found = rows.mutate(held=control_bucket(rows.customer_id, share)).to_pandas()
        assert dict(zip(found.customer_id, found.held, strict=True)) == {
            name: in_control_bucket(name, share) for name in names
        }


def test_spark_adds_the_columns_of_the_control_to_a_table_that_has_none(
    on_spark: SparkTables, scorer: Scorer
) -> None:
    done = _scored(on_spark, scorer)
    older = on_spark.read("gold.predictions").drop("contacted", "control_share").to_pyarrow()
    on_spark.spark.sql("DROP TABLE gold.predictions")
    other = pa.array([7] * len(older), pa.int64())
    at = older.schema.get_field_index("model_version")
    former = older.set_column(at, "model_version", other)
    where = {"feature_date": NEWEST, "model_version": 7}
    on_spark.overwrite("gold.predictions", ibis.memtable(former), where)
    again = _scored(on_spark, scorer)
    assert (again.to_call, again.control) == (done.to_call, done.control)
    kept = scoring.read_predictions(on_spark, NEWEST, 7)
    assert kept.to_pandas()[["contacted", "control_share"]].isna().all(axis=None)
    assert call_list.call_list(kept, limit=1).to_call == done.to_call + done.control
