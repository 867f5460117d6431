"""Batch scores on a real Spark with real Delta tables: what the same scoring writes without Spark."""

from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_lib import registry, scoring, settings
from churn_lib.scoring import Scorer
from churn_lib.scoring.batch import Scored
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


def test_spark_writes_the_probability_decile_decision_and_reasons_that_are_written_without_it(
    on_spark: SparkTables, scorer: Scorer, tmp_path: Path
) -> None:
    here = make_tables(make_config(tmp_path))
    expected = written(here, scoring.score(here, scoring.read_snapshot(here), scorer, "abc"))
    done = scoring.score(on_spark, scoring.read_snapshot(on_spark), scorer, "abc")
    found = written(on_spark, done)
    assert (done.customers, done.feature_date) == (CUSTOMERS, NEWEST)
    assert done.to_call == expected.decision.sum() > 0
    same = ["customer_id", "churn_probability", "decile", "tied", "decision"]
    same += ["model_version", "git_sha"]
    for name in same:
        assert found[name].tolist() == expected[name].tolist(), name
    for ours, theirs in zip(found.reasons, expected.reasons, strict=True):
        assert [each["feature"] for each in ours] == [each["feature"] for each in theirs]
        numbers = [(each["value"], each["contribution"]) for each in ours]
        np.testing.assert_allclose(
            numbers, [(each["value"], each["contribution"]) for each in theirs], rtol=1e-12
        )
