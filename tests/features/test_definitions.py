"""Features against a slow oracle in plain Python, and point in time, on random events."""

import datetime
from pathlib import Path

import ibis
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from churn_lib import settings as settings_module
from churn_lib.data import events as events_module
from churn_lib.features import FEATURES, LABEL, snapshot
from churn_lib.features.declaration import FALLS, Declarations, FeatureError
from churn_lib.features.holdout import in_holdout_bucket

UTC = datetime.UTC
DAY = datetime.date(2024, 6, 30)
MIDNIGHT = datetime.datetime(2024, 6, 30, tzinfo=UTC)
CONNECTION = ibis.duckdb.connect()
CONNECTION.raw_sql("SET TimeZone = 'UTC'")
CONFIG = settings_module.load("local", Path(__file__).parents[2] / "settings.ini")
HORIZON = datetime.timedelta(days=CONFIG.data.horizon_days)
LATER = DAY + HORIZON
CUSTOMERS = [f"customer {number}" for number in range(5)]
# the edges of every window, a microsecond around them, and anything between
EDGES = [MIDNIGHT - datetime.timedelta(days=days) for days in (0, 7, 8, 30, 31, 90, 91)]
EDGES += [MIDNIGHT + HORIZON]
MOMENTS = st.one_of(
    st.builds(
        lambda edge, microseconds: edge + datetime.timedelta(microseconds=microseconds),
        st.sampled_from(EDGES),
        st.sampled_from([-1_000_000, -1, 0, 1, 1_000_000]),
    ),
    st.datetimes(
        datetime.datetime(2024, 1, 1), datetime.datetime(2024, 12, 31), timezones=st.just(UTC)
    ),
)
EVENT = st.fixed_dictionaries(
    {
        "customer_id": st.sampled_from(CUSTOMERS),
        "event_ts": MOMENTS,
        "session_id": st.sampled_from(["a", "b", "c", None]),
        "product_id": st.sampled_from(["x", "y", "z", None]),
    }
)
EVENTS = st.lists(EVENT, max_size=30)
SIGNUPS = st.lists(MOMENTS, min_size=len(CUSTOMERS), max_size=len(CUSTOMERS))
THOROUGH = hypothesis_settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def oracle(events: list[dict], signup: datetime.datetime, customer: str) -> dict:
    """The features of one customer, from the words of the page alone."""
    own = [event for event in events if event["customer_id"] == customer]
    past = [event for event in own if event["event_ts"] <= MIDNIGHT]

    def within(days: int) -> int:
        start = MIDNIGHT - datetime.timedelta(days=days)
        return sum(event["event_ts"] > start for event in past)

    def whole_days(moment: datetime.datetime) -> int:
        return (MIDNIGHT - moment) // datetime.timedelta(days=1)

    last = max((event["event_ts"] for event in past), default=signup)
    silent, tenure = whole_days(last), whole_days(signup)
    sessions = len({event["session_id"] for event in past} - {None})
    active = within(90)
    after = [event for event in own if MIDNIGHT < event["event_ts"] <= MIDNIGHT + HORIZON]
    score = 50 * 30 / (30 + silent) + 30 * active / (3 + active) + 20 * sessions / (5 + sessions)
    return {
        "total_events": len(past),
        "total_sessions": sessions,
        "distinct_products": len({event["product_id"] for event in past} - {None}),
        "events_last_30d": within(30),
        "events_last_90d": active,
        "days_since_last_event": silent,
        "customer_tenure_days": tenure,
        "silent_share": silent / max(tenure, 1),
        "avg_events_per_day": len(past) / max(tenure, 1),
        "recency_tier": (silent > 7) + (silent > 30) + (silent > 90),
        "engagement_score": score,
        LABEL: int(not after),
        "in_holdout_bucket": in_holdout_bucket(customer, CONFIG.data.holdout_share),
    }


def described(row: dict, expected: dict) -> dict:
    """What the oracle speaks of; a feature that somebody has added is described by its own example."""
    assert set(row) - set(expected) <= set(FEATURES)
    return {name: row[name] for name in expected}


def computed(
    events: list[dict], signups: list[datetime.datetime], as_of: datetime.date = LATER
) -> dict[str, dict]:
    """The snapshot by DuckDB, one dict for each customer."""
    named = [{"event_id": f"e{number}", **event} for number, event in enumerate(events)]
    events_table = ibis.memtable(pa.Table.from_pylist(named, events_module.EVENTS))
    joined = [
        {"customer_id": customer, "signup_ts": signup}
        for customer, signup in zip(CUSTOMERS, signups, strict=True)
    ]
    customers = ibis.memtable(pa.Table.from_pylist(joined, events_module.CUSTOMERS))
    found = CONNECTION.to_pyarrow(snapshot(events_table, customers, DAY, as_of, CONFIG)).to_pylist()
    assert len({row["customer_id"] for row in found}) == len(found)
    return {row.pop("customer_id"): row for row in found}


@THOROUGH
@given(EVENTS, SIGNUPS)
def test_features_and_label_equal_their_definitions(
    events: list[dict], signups: list[datetime.datetime]
) -> None:
    expected = {
        customer: {**oracle(events, signup, customer), "feature_date": DAY}
        for customer, signup in zip(CUSTOMERS, signups, strict=True)
        if signup <= MIDNIGHT
    }
    found = computed(events, signups)
    assert found.keys() == expected.keys()
    for customer, row in expected.items():
        assert described(found[customer], row) == row, customer


@THOROUGH
@given(EVENTS, EVENTS, SIGNUPS)
def test_what_happens_later_changes_no_feature(
    events: list[dict], others: list[dict], signups: list[datetime.datetime]
) -> None:
    past = [event for event in events if event["event_ts"] <= MIDNIGHT]
    later = [event for event in others if event["event_ts"] > MIDNIGHT]
    before, after = computed(past, signups), computed(past + later, signups)
    assert {customer: [row[name] for name in FEATURES] for customer, row in before.items()} == {
        customer: [row[name] for name in FEATURES] for customer, row in after.items()
    }


@THOROUGH
@given(EVENTS, EVENTS, SIGNUPS)
def test_what_happens_after_the_horizon_changes_nothing(
    events: list[dict], others: list[dict], signups: list[datetime.datetime]
) -> None:
    end = MIDNIGHT + HORIZON
    seen = [event for event in events if event["event_ts"] <= end]
    later = [event for event in others if event["event_ts"] > end]
    assert computed(seen, signups) == computed(seen + later, signups)


@THOROUGH
@given(EVENTS.flatmap(lambda events: st.tuples(st.just(events), st.permutations(events))), SIGNUPS)
def test_the_order_of_rows_changes_nothing(
    pair: tuple[list[dict], list[dict]], signups: list[datetime.datetime]
) -> None:
    assert computed(pair[0], signups) == computed(pair[1], signups)


@pytest.mark.parametrize(("days", "known"), [(-1, False), (0, True), (1, True)])
def test_a_label_is_known_once_its_horizon_has_passed(days: int, known: bool) -> None:
    as_of = LATER + datetime.timedelta(days=days)
    found = computed([], [MIDNIGHT] * len(CUSTOMERS), as_of)
    assert {row[LABEL] for row in found.values()} == ({1} if known else {None})


def test_on_cdnow_the_features_equal_their_definitions() -> None:
    bought, _ = events_module.cdnow()
    frame = bought.to_pandas()
    chosen = sorted(frame.customer_id.unique())[::500]
    shifted = frame[frame.customer_id.isin(chosen)].copy()
    # the oracle stands at DAY: move CDNOW's 2 April 1998 there
    shifted["event_ts"] += MIDNIGHT - datetime.datetime(1998, 4, 2, tzinfo=UTC)
    events = shifted.astype({"event_ts": object}).to_dict("records")
    for event in events:
        event["event_ts"] = pd.Timestamp(event["event_ts"]).to_pydatetime()
    signups = {
        name: min(e["event_ts"] for e in events if e["customer_id"] == name) for name in chosen
    }
    rows = [{"customer_id": name, "signup_ts": moment} for name, moment in signups.items()]
    customers = ibis.memtable(pa.Table.from_pylist(rows, events_module.CUSTOMERS))
    table = ibis.memtable(pa.Table.from_pylist(events, events_module.EVENTS))
    found = snapshot(table, customers, DAY, LATER, CONFIG).to_pyarrow().to_pylist()
    assert len(found) == len(chosen)
    for row in found:
        customer = row.pop("customer_id")
        expected = oracle(events, signups[customer], customer)
        expected["feature_date"] = DAY
        assert described(row, expected) == expected, customer


def test_a_direction_may_be_given_under_its_former_name() -> None:
    declared = Declarations()
    feature = declared.declare(lambda events: events.count(), "visits", meaning="m", churn=FALLS)
    assert feature.direction == FALLS
    with pytest.raises(FeatureError, match="feature visits has direction=2"):
        declared.declare(lambda events: events.count(), "visits", meaning="m", direction=2)
