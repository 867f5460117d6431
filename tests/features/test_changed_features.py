"""Features that come, change and go: the table follows, and a version finds the rows that it was trained on."""

import datetime
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ibis
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from churn_lib.data.events import CUSTOMERS, EVENTS
from churn_lib.features import FEATURES, feature_dates, rows_for
from churn_lib.features.declaration import Day, Declarations, FeatureError, compute, fingerprints
from churn_lib.features.definitions import DECLARED
from churn_lib.features.snapshots import TABLE, build, recorded_fingerprints, version_with
from churn_lib.settings import Settings
from churn_lib.tables import TableError, Tables, connect
from churn_lib.testing import TODAY, scratch_settings, shop_tables
from tests.shared import PROCESSES

RAW = (ibis.memtable(EVENTS.empty_table()), ibis.memtable(CUSTOMERS.empty_table()))


@pytest.fixture
def config() -> Settings:
    return scratch_settings(changes={"data.snapshots": 2})


@pytest.fixture
def tables(config: Settings) -> Tables:
    return shop_tables(config, 200)


@pytest.fixture
def declared() -> Iterator[Declarations]:
    """The declarations of the process, as they were afterwards."""
    before = dict(DECLARED)
    yield DECLARED
    DECLARED.clear()
    DECLARED.update(before)


def rebuilt(tables: Tables, config: Settings) -> list[bool]:
    bronze = {name: tables.version(name) for name in ("bronze.events", "bronze.customers")}
    days = feature_dates(TODAY, config)
    return [each.built for each in build(tables, bronze, days, TODAY, config)]


def last_week(events: ibis.Table, day: Day) -> ibis.Value:
    return events.count(where=events.event_ts > day.before(7))


def of(tables: Tables, version: int | None = None) -> ibis.Table:
    rows = tables.read(TABLE, version)
    return rows.filter(rows.feature_date == TODAY).order_by("customer_id")


def _of_days(number: int) -> Callable[[ibis.Table, Day], ibis.Value]:
    return lambda events, day: events.count(where=events.event_ts > day.before(number))


def _build(config: Settings, days: int, start: Any, answers: Any) -> None:
    """In a process of its own: a run whose code has one more feature."""
    DECLARED.declare(_of_days(days), f"last_{days}", meaning=f"{days} days", unit="events")
    own = connect(config)
    bronze = {name: own.version(name) for name in ("bronze.events", "bronze.customers")}
    start.wait(60)
    try:
        made = list(build(own, bronze, feature_dates(TODAY, config), TODAY, config))
        answers.put((days, made[-1].version, ""))
    except Exception as error:
        answers.put((days, -1, str(error)))


def test_two_runs_at_once_with_different_features_each_get_their_own_rows(
    tables: Tables, config: Settings
) -> None:
    start, answers = PROCESSES.Barrier(2), PROCESSES.Queue()
    given = [(config, days, start, answers) for days in (7, 14)]
    runs = [PROCESSES.Process(target=_build, args=each) for each in given]
    for run in runs:
        run.start()
    made = [answers.get(timeout=120) for _ in runs]
    for run in runs:
        run.join(60)
    assert [problem for _, _, problem in made] == ["", ""]
    for days, version, _ in made:
        rows = tables.read(TABLE, version)
        assert rows[f"last_{days}"].notnull().all().to_pyarrow().as_py()
    assert {"last_7", "last_14"} <= set(tables.read(TABLE).columns)


def test_a_new_feature_is_a_new_column_and_changes_no_other(
    tables: Tables, config: Settings, declared: Declarations
) -> None:
    before, known = tables.version(TABLE), of(tables).select("customer_id", *FEATURES).to_pandas()
    prints = recorded_fingerprints(tables)[str(TODAY)]
    declared.declare(last_week, meaning="events in the last 7 days", unit="events")
    assert rebuilt(tables, config) == [True] * 3
    now = of(tables).to_pandas()
    assert now[["customer_id", *FEATURES]].equals(known)
    assert now.last_week.between(0, now.events_last_30d).all() and now.last_week.sum() > 0
    assert "last_week" not in tables.read(TABLE, before).columns
    assert rebuilt(tables, config) == [False] * 3
    after = recorded_fingerprints(tables)[str(TODAY)]
    assert {name: after[name] for name in FEATURES} == prints


def test_a_snapshot_that_nobody_builds_again_has_null_in_a_new_column(
    tables: Tables, config: Settings, declared: Declarations
) -> None:
    declared.declare(last_week, meaning="events in the last 7 days", unit="events")
    bronze = {name: tables.version(name) for name in ("bronze.events", "bronze.customers")}
    list(build(tables, bronze, [TODAY], TODAY, config))
    rows = tables.read(TABLE)
    older = rows.filter(rows.feature_date != TODAY)
    assert older.count().to_pyarrow().as_py() > 0
    assert older.last_week.notnull().sum().to_pyarrow().as_py() == 0


def test_a_removed_feature_is_null_from_then_on_and_stays_in_older_versions(
    tables: Tables, config: Settings, declared: Declarations
) -> None:
    before = tables.version(TABLE)
    del declared["distinct_products"]
    assert rebuilt(tables, config) == [True] * 3
    assert of(tables).distinct_products.notnull().sum().to_pyarrow().as_py() == 0
    assert of(tables, before).distinct_products.min().to_pyarrow().as_py() >= 0


def test_a_redefined_feature_is_found_where_it_had_its_former_meaning(
    tables: Tables, config: Settings, declared: Declarations
) -> None:
    needed = recorded_fingerprints(tables)[str(TODAY)]
    known = of(tables).events_last_30d.to_pandas()
    other = replace(declared["events_last_30d"], expression=last_week)
    declared["events_last_30d"] = other
    rebuilt(tables, config)
    assert version_with(tables, TODAY, needed) == 0  # where that day was built
    rows = rows_for(tables, TODAY, needed).order_by("customer_id").to_pandas()
    assert rows.events_last_30d.equals(known)
    own = {"total_events": needed["total_events"]}
    assert version_with(tables, TODAY, own) == tables.version(TABLE)
    with pytest.raises(FeatureError, match="with events_last_30d as the model was trained"):
        rows_for(tables, TODAY, {**needed, "events_last_30d": "0" * 16})


def test_fractions_do_not_become_whole_numbers_under_an_old_name(
    tables: Tables, config: Settings, declared: Declarations
) -> None:
    before = tables.version(TABLE)
    half = replace(declared["total_events"], expression=lambda events: events.count() / 2)
    declared["total_events"] = half
    with pytest.raises(TableError, match="holds whole numbers in total_events"):
        rebuilt(tables, config)
    assert tables.version(TABLE) == before


def test_a_fingerprint_does_not_depend_on_other_features(declared: Declarations) -> None:
    before = fingerprints(declared, *RAW)
    declared.declare(last_week, meaning="events in the last 7 days", unit="events")
    del declared["distinct_products"]
    after = fingerprints(declared, *RAW)
    assert all(after[name] == before[name] for name in after if name != "last_week")


def test_a_fingerprint_follows_what_a_feature_is_made_of(declared: Declarations) -> None:
    before = fingerprints(declared, *RAW)
    declared["days_since_last_event"] = replace(
        declared["days_since_last_event"],
        expression=lambda row, day: day.whole_days_since(row.signup_ts),
    )
    after = fingerprints(declared, *RAW)
    changed = {name for name in after if after[name] != before[name]}
    assert changed >= {"days_since_last_event", "recency_tier", "engagement_score", "silent_share"}
    counted = {name for name in after if name.startswith(("total_", "distinct_", "events_last_"))}
    assert counted and not changed & {*counted, "customer_tenure_days", "avg_events_per_day"}


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(FEATURES), min_size=1, unique=True))
def test_some_features_are_what_they_are_among_all(names: list[str]) -> None:
    events = ibis.memtable(
        {
            "customer_id": ["a", "a", "b"],
            "event_ts": [
                datetime.datetime(2024, 1, day, tzinfo=datetime.UTC) for day in (1, 9, 20)
            ],
            "session_id": ["s", "t", None],
            "product_id": ["p", "p", "q"],
        }
    )
    signed = [datetime.datetime(2023, 12, 1, tzinfo=datetime.UTC)] * 3
    customers = ibis.memtable({"customer_id": ["a", "b", "c"], "signup_ts": signed})
    day = datetime.date(2024, 1, 31)
    some = compute(DECLARED, events, customers, day, names).order_by("customer_id").to_pandas()
    every = compute(DECLARED, events, customers, day).order_by("customer_id").to_pandas()
    assert some.equals(every[["customer_id", *names]])
