"""Versions with other inputs than the code has now: each is watched with its own columns, against its own baseline."""

import datetime
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from churn_lib import registry
from churn_lib.features import FEATURES, feature_dates, rows_for
from churn_lib.features.declaration import Day
from churn_lib.features.definitions import DECLARED
from churn_lib.features.snapshots import TABLE, build
from churn_lib.monitoring import Verdict, databricks, monitor, report, requests
from churn_lib.monitoring.drift import distribution
from churn_lib.monitoring.integrity import check_columns, learn_relations
from churn_lib.monitoring.metrics import read_metrics, whole
from churn_lib.monitoring.windows import (
    COLUMN_CHECKS,
    DRIFT_METRICS,
    OUTCOMES,
    MonitoringError,
    is_numeric,
)
from churn_lib.settings import Settings
from churn_lib.testing import TODAY, customer_rows, scratch_settings, shop_tables
from churn_lib.training import train

LAST_WEEK = {"meaning": "events in the last 7 days", "unit": "events"}


def events_last_7d(events: ibis.Table, day: Day) -> ibis.Value:
    return events.count(where=events.event_ts > day.before(7))


def follow() -> None:
    """What a new process makes of the declarations, in this one."""
    FEATURES[:] = DECLARED.columns(retired=False)
    columns = [ColSpec(DataType.double, name) for name in FEATURES]
    train.SIGNATURE = ModelSignature(Schema(columns), train.SIGNATURE.outputs)


@pytest.fixture
def declared() -> Iterator[None]:
    """The declarations of the process, as they were afterwards."""
    before = dict(DECLARED)
    yield
    DECLARED.clear()
    DECLARED.update(before)
    follow()


def day(number: int) -> datetime.date:
    """A day of the shop, `number` days before its last."""
    return TODAY - datetime.timedelta(days=number)


class Shop:
    """A store whose features change, and what a user does with it."""

    def __init__(self, **changes: Any):
        self.settings: Settings = scratch_settings(changes={"data.snapshots": 2, **changes})
        self.tables = shop_tables(self.settings, 1_500)
        self.models = registry.connect(self.settings)

    def declare(self, name: str, **known: Any) -> None:
        """A feature comes, or changes."""
        if name in DECLARED:
            DECLARED[name] = replace(DECLARED[name], **known)
        else:
            DECLARED.declare(events_last_7d, name, **{**LAST_WEEK, **known})
        follow()

    def engineer(self, *days: datetime.date) -> None:
        """Snapshots by the declarations of now."""
        bronze = {name: self.tables.version(name) for name in ("bronze.events", "bronze.customers")}
        list(build(self.tables, bronze, list(days), TODAY, self.settings))

    def train(self) -> int:
        """A version at Production."""
        self.engineer(*feature_dates(TODAY, self.settings))
        version = self.tables.version(TABLE)
        data = train.read_data_set(self.tables.read(TABLE, version), version, self.settings)
        source = train.source(self.tables, version, self.settings)
        made = train.register(self.models, train.train(data, self.settings, "abc", source))
        self.models.set_alias(registry.PRODUCTION, made)
        return made

    def score(self, number: int, **broken: float) -> None:
        """Predictions of Production for a day, from its own columns."""
        when, version = day(number), self.models.version_of(registry.PRODUCTION)
        self.engineer(when)
        rows = rows_for(self.tables, when, registry.inputs_of(self.models, version)).to_pandas()
        if broken:
            for name, factor in broken.items():
                rows[name] = (rows[name] * factor).astype(rows[name].dtype)
            unknown = pd.array([None] * len(rows), dtype="Int64")
            rows = rows.assign(feature_date=when, churned=unknown)
            tags = {"feature_date": str(when), "fingerprints": self.fingerprints(when)}
            self.tables.overwrite(TABLE, ibis.memtable(rows), {"feature_date": when}, tags)
        model = self.models.load(version)
        inputs = list(registry.inputs_of(self.models, version))
        made = rows[["customer_id"]].assign(
            feature_date=when,
            model_name=self.settings.model_name,
            model_version=version,
            churn_probability=model.predict(rows[inputs].astype(float)),
            scored_at=datetime.datetime.now(datetime.UTC),
        )
        where = {"feature_date": when, "model_version": version}
        self.tables.overwrite("gold.predictions", ibis.memtable(made), where)

    def fingerprints(self, when: datetime.date) -> str:
        """Those of a snapshot, as its commit has them."""
        tags = self.tables.history(TABLE).tags
        return next(each["fingerprints"] for each in tags if each.get("feature_date") == str(when))

    def monitor(self) -> Verdict:
        """What the monitor says today."""
        return monitor(self.tables, self.models, self.settings, TODAY, "abc")

    def columns(self, version: int, table: str = DRIFT_METRICS) -> set[str]:
        """The features that a version was watched by."""
        rows = read_metrics(self.tables, table)
        return set(rows[rows.model_version == version].column_name) - {*OUTCOMES, ":table"}

    def broken(self, number: int, version: int) -> set[str]:
        """The columns that were broken in a window."""
        checks = read_metrics(self.tables, COLUMN_CHECKS)
        own = checks[(checks.window_date == day(number)) & (checks.model_version == version)]
        return set(own[own.broken.notna()].column_name)

    def drift(self, number: int, version: int) -> pd.Series:
        """The effects in a window, by column."""
        rows = whole(read_metrics(self.tables, DRIFT_METRICS))
        own = rows[(rows.window_date == day(number)) & (rows.model_version == version)]
        own = own[(own.drift_type == "BASELINE") & ~own.column_name.isin(OUTCOMES)]
        return own.set_index("column_name").effect.astype(float).sort_index()


def test_drift_of_a_new_column_starts_with_its_version(declared: None) -> None:
    shop = Shop()
    assert shop.train() == 1
    shop.score(3)
    old = list(FEATURES)
    shop.declare("events_last_7d")
    assert shop.train() == 2
    shop.score(2)
    quiet = shop.monitor()
    assert (quiet.model_version, quiet.problems[1:]) == (2, ()), quiet.problems
    assert shop.columns(1) == shop.columns(1, COLUMN_CHECKS) == {*old}
    assert shop.columns(2) == shop.columns(2, COLUMN_CHECKS) == {*old, "events_last_7d"}
    assert not shop.broken(2, 2) and not shop.broken(3, 1)

    # in another unit it is found as any other is
    shop.score(1, events_last_7d=100.0)
    shop.monitor()
    assert shop.broken(1, 2) == {"events_last_7d"}
    assert shop.drift(1, 2)["events_last_7d"] > 10 * shop.drift(2, 2)["events_last_7d"]


def test_a_retired_column_is_no_business_of_the_version_without_it(declared: None) -> None:
    shop = Shop()
    shop.train()
    shop.score(3)
    shop.declare("distinct_products", retired=True)
    assert "distinct_products" not in FEATURES
    shop.train()
    shop.score(2, distinct_products=0.0)
    found = shop.monitor()
    assert found.model_version == 2 and not found.causes
    assert shop.columns(1) - shop.columns(2) == {"distinct_products"}
    assert shop.broken(2, 2) == set()

    # removed for good: what the older version was asked with is still compared
    before = shop.drift(3, 1)
    del DECLARED["distinct_products"]
    shop.engineer(day(3))
    shop.monitor()
    assert shop.broken(3, 1) == set()
    pd.testing.assert_series_equal(shop.drift(3, 1), before)


def test_after_a_rollback_each_window_has_the_columns_of_its_version(declared: None) -> None:
    shop = Shop()
    shop.train()
    shop.score(4)
    shop.declare("events_last_7d")
    shop.train()
    for number in (3, 2):
        shop.score(number)
    shop.models.set_alias(registry.PRODUCTION, 1)
    waiting = shop.monitor()
    assert waiting.model_version == 2
    assert (
        f"version 1 at Production has predicted nothing since {day(2)}: watched is version 2"
        in (waiting.problems)
    )
    shop.score(2)  # the same day again, by the version before
    back = shop.monitor()
    assert (back.model_version, back.causes) == (1, ())
    assert f"version 2 predicted in the window from {day(2)} too: watched is version 1" in (
        back.problems
    )
    assert {*shop.drift(2, 2).index} - {*shop.drift(2, 1).index} == {"events_last_7d"}
    shown = report.Report(back)
    assert {*shown.baseline.features} == {*shop.drift(2, 1).index}
    lines = report.drift_table(shown)._repr_html_()
    assert "distinct_products" in lines and "events_last_7d" not in lines


def test_an_old_version_is_not_held_against_a_new_meaning(declared: None) -> None:
    shop = Shop()
    shop.train()
    shop.score(2)
    shop.monitor()
    before = shop.drift(2, 1)
    shop.declare("events_last_90d", expression=lambda events: events.count() * 100)
    shop.engineer(day(2), *feature_dates(TODAY, shop.settings))
    found = shop.monitor()
    assert not found.causes
    pd.testing.assert_series_equal(shop.drift(2, 1), before)


def test_a_column_that_can_no_longer_be_had_is_left_out_and_said(declared: None) -> None:
    shop = Shop()
    shop.train()
    shop.declare("events_last_90d", expression=lambda events: events.count() * 100)
    shop.engineer(day(2))  # never computed by the former definition
    version = shop.models.version_of(registry.PRODUCTION)
    made = shop.tables.read(TABLE)
    made = made.filter(made.feature_date == day(2)).to_pandas()
    predicted = made[["customer_id"]].assign(
        feature_date=day(2),
        model_name=shop.settings.model_name,
        model_version=version,
        churn_probability=0.5,
        scored_at=datetime.datetime.now(datetime.UTC),
    )
    shop.tables.overwrite("gold.predictions", ibis.memtable(predicted))
    found = shop.monitor()
    (sentence,) = [each for each in found.problems if "cannot be compared" in each]
    gone = {"events_last_90d", "engagement_score"}  # which is made of it
    assert all(name in sentence for name in gone) and str(day(2)) in sentence
    assert gone.isdisjoint(shop.drift(2, 1).index) and len(shop.drift(2, 1)) == len(FEATURES) - 2
    assert shop.broken(2, 1) == set()
    report.distributions(report.Report(found))


def test_a_slice_that_a_version_lacks_is_skipped_and_one_that_nothing_has_is_refused(
    declared: None,
) -> None:
    shop = Shop(**{"monitoring.slices": "recency_tier, active"})
    shop.train()
    shop.score(3)
    with pytest.raises(MonitoringError, match="names 'active'; it can name total_events"):
        shop.monitor()

    def active(row: ibis.Table) -> ibis.Value:
        return (row.events_last_30d > 0).cast("int64")

    DECLARED.declare(active, meaning="whether there were events", unit="", categorical=True)
    follow()
    assert not is_numeric("active")
    shop.train()
    shop.score(2)
    found = shop.monitor()
    skipped = "monitoring.slices names active, which version 1 does not have: not sliced by it"
    assert skipped in found.problems
    rows = read_metrics(shop.tables, DRIFT_METRICS).query("slice_key == 'active'")
    assert set(rows.model_version) == {2} and set(rows.slice_value) == {"0", "1"}
    kinds = read_metrics(shop.tables, DRIFT_METRICS).query("column_name == 'active'")
    assert set(kinds.data_type) == {"string"}


def test_in_a_canary_each_version_is_watched_by_its_own_part_of_the_requests(
    declared: None,
) -> None:
    shop = Shop()
    shop.train()
    shop.declare("events_last_7d")
    shop.train()
    shop.declare("distinct_products", retired=True)
    shop.engineer(day(1))
    rows = shop.tables.read(TABLE)
    rows = rows.filter(rows.feature_date == day(1)).to_pandas()
    sent = [*registry.inputs_of(shop.models, 2), "postcode"]  # one form for both versions
    values = rows.assign(postcode=1.0)[sent].astype(float).head(400)
    calls = []
    for at, record in enumerate(values.to_dict("records")):
        calls.append(
            {
                "request_time": pd.Timestamp(day(1), tz="UTC") + pd.Timedelta(hours=12),
                "status_code": 200,
                "execution_duration_ms": 5.0,
                "request": json.dumps({"dataframe_records": [record]}),
                "response": '{"predictions": [0.5]}',
                "client_request_id": f"{rows.customer_id[at]}",
                "model_version": 1 + at % 2,
            }
        )
    shop.tables.append(requests.table_name(shop.settings), ibis.memtable(pd.DataFrame(calls)))
    found = shop.monitor()
    assert found.model_version == 2
    assert f"version 1 predicted in the window from {day(1)} too: watched is version 2" in (
        found.problems
    )
    assert shop.columns(2) - shop.columns(1) == {"events_last_7d"}
    assert not shop.columns(1) & {"postcode"} and "distinct_products" in shop.columns(1)


def test_the_profiled_table_has_each_version_with_its_own_columns(declared: None) -> None:
    shop = Shop()
    shop.train()
    shop.score(3)
    first = shop.monitor()
    databricks.write_tables(first.refresher, first.refresher.computed, 1)
    shop.declare("events_last_7d")
    shop.declare("distinct_products", retired=True)
    shop.train()
    shop.score(2)
    second = shop.monitor()
    databricks.write_tables(second.refresher, second.refresher.computed, 2)
    rows = shop.tables.read(databricks.PROFILED).to_pandas().groupby("model_version")
    known = rows[["events_last_7d", "distinct_products", "total_events"]].count() > 0
    assert known.loc["1"].tolist() == [False, True, True]
    assert known.loc["2"].tolist() == [True, False, True]
    baseline = shop.tables.read(databricks.BASELINE).to_pandas()
    assert set(baseline.model_version) == {"2"} and baseline.events_last_7d.notna().all()
    assert baseline.distinct_products.isna().all()


NAMES = st.lists(
    st.sampled_from([*FEATURES, "events_last_7d", "spend"]), min_size=1, max_size=6, unique=True
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(NAMES, NAMES, st.sampled_from(["records", "split", "inputs", "instances"]), st.randoms())
def test_a_request_is_read_by_the_columns_of_its_version(
    inputs: list[str], others: list[str], form: str, random: Any
) -> None:
    sent = list({*inputs, *others})
    random.shuffle(sent)
    records = [{name: float(10 * row + len(name)) for name in sent} for row in range(3)]
    bodies = {
        "records": {"dataframe_records": records},
        "split": {
            "dataframe_split": {"columns": sent, "data": [[*each.values()] for each in records]}
        },
        "inputs": {"inputs": {name: [each[name] for each in records] for name in sent}},
        "instances": {"instances": records},
    }
    call = {
        "request_time": pd.Timestamp("2025-01-02 12:00", tz="UTC"),
        "status_code": 200,
        "request": json.dumps(bodies[form]),
        "response": '{"predictions": [0.1, 0.2, 0.3]}',
        "client_request_id": "c1",
        "model_version": 7,
    }
    when = [datetime.date(2025, 1, 2)]
    rows = requests.unpack(ibis.memtable(pd.DataFrame([call])), when, 7, inputs)
    assert rows[inputs].to_dict("records") == [
        {name: each[name] for name in inputs} for each in records
    ]
    assert len(requests.unpack(ibis.memtable(pd.DataFrame([call])), when, 7, ["unknown"])) == 0


@hypothesis_settings(max_examples=12, deadline=None)
@given(
    st.lists(st.sampled_from(FEATURES), min_size=2, unique=True),
    st.sets(st.sampled_from(FEATURES), max_size=3),
    st.integers(0, 1_000),
)
def test_an_intact_window_is_intact_whatever_columns_a_version_has(
    inputs: list[str], missing: set[str], seed: int
) -> None:
    known, now = customer_rows(3_000, seed), customer_rows(2_000, seed + 1)[inputs]
    relations = learn_relations([known[:1_500], known[1_500:]], inputs)
    seen = [name for name in inputs if name not in missing]
    found = check_columns(
        relations,
        now[seen],
        {name: distribution(now[name], is_numeric(name)) for name in seen},
        {name: distribution(known[name], is_numeric(name)) for name in inputs},
        dict.fromkeys(seen, np.False_),
    )
    assert found.index.tolist() == inputs
    assert found.broken.isna().all()
