"""Today is the day after the last complete day: whatever strays, halves and rhythms the events have."""

import datetime

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from churn_lib import features
from churn_lib.data import events as events_module
from churn_lib.features import coverage
from churn_lib.features.dates import Coverage
from churn_lib.features.declaration import FeatureError

CONNECTION = ibis.duckdb.connect()
CONNECTION.raw_sql("SET TimeZone = 'UTC'")
START = datetime.date(2023, 1, 2)  # a Monday
DAYS = 400
THOROUGH = hypothesis_settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def events(counts: np.ndarray, start: datetime.date = START) -> pd.DataFrame:
    """So many customers on each day, each with one event, spread over the day."""
    day = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) for count in counts]) if len(day) else day
    share = number / np.maximum(np.repeat(counts, counts), 1)
    moment = pd.Timestamp(start, tz="UTC") + pd.to_timedelta(day + share, unit="D").floor("s")
    return pd.DataFrame({"customer_id": [f"c{each}" for each in number], "event_ts": moment})


def strays(days: list[int], end: datetime.date, customer: str = "") -> pd.DataFrame:
    """One event for each number: so many days after `end`, of a customer each or of one."""
    names = [customer or f"stray {number}" for number in range(len(days))]
    moment = [pd.Timestamp(end, tz="UTC") + pd.Timedelta(days=day, hours=10) for day in days]
    return pd.DataFrame({"customer_id": names, "event_ts": pd.to_datetime(moment, utc=True)})


def covered(*frames: pd.DataFrame, calendar: datetime.date | None = None) -> Coverage:
    rows = pd.concat(frames)[["customer_id", "event_ts"]]
    types = pa.schema([("customer_id", pa.string()), ("event_ts", pa.timestamp("us", tz="UTC"))])
    table = ibis.memtable(pa.Table.from_pandas(rows, types, preserve_index=False))
    return coverage(CONNECTION.create_table("rows", table, temp=True, overwrite=True), calendar)


def flow(usual: float, shape: np.ndarray | float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(usual * np.broadcast_to(shape, DAYS))


def last_of(counts: np.ndarray) -> datetime.date:
    return START + datetime.timedelta(days=int(np.flatnonzero(counts)[-1]))


def after(day: datetime.date, days: int = 1) -> datetime.date:
    return day + datetime.timedelta(days=days)


T = np.arange(DAYS)
SHAPES = {
    "even": np.ones(DAYS),
    "closed on Sundays": (T % 7 != 6) * 1.0,
    "quiet at weekends": np.where(T % 7 >= 5, 0.05, 1.0),
    "busy at weekends": np.where(T % 7 >= 5, 2.5, 0.5),
    "seasonal": 1 + 0.8 * np.cos(2 * np.pi * T / 365),
    "in season three months a year": ((T % 365) < 90) * 1.0,
    "growing": np.exp(T / 120) / 5,
    "shrinking": 5 * np.exp(-T / 200),
    "one burst": np.where(T == DAYS - 20, 50.0, 1.0),
    "a burst on the last day": np.where(T == DAYS - 1, 50.0, 1.0),
    "after a sale of four weeks": np.where((T > DAYS - 50) & (T < DAYS - 22), 8.0, 1.0),
    "in batches of a week": (T % 7 == 4) * 7.0,
    "stopped for a week": np.where((T > 300) & (T < 308), 0.0, 1.0),
    "back for two days after a week": np.where((T > 390) & (T < 398), 0.0, 1.0),
    "back for two days after five weeks": np.where((T > 362) & (T < 398), 0.0, 1.0),
}


@pytest.mark.parametrize("usual", [30, 150])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_day_of_a_shop_as_ever_is_complete(shape: str, usual: int) -> None:
    for seed in range(3):
        counts = flow(usual, SHAPES[shape], seed)
        found = covered(events(counts))
        assert (found.today, found.left_out) == (after(last_of(counts)), 0)


@pytest.mark.parametrize("usual", [0.2, 1, 3, 10])
@pytest.mark.parametrize("shape", ["even", "closed on Sundays", "growing", "stopped for a week"])
def test_the_last_day_of_a_small_shop_is_complete(shape: str, usual: float) -> None:
    for seed in range(10):
        counts = flow(usual, SHAPES[shape], seed)
        assert covered(events(counts)).today == after(last_of(counts))


@pytest.mark.parametrize("shape", SHAPES)
def test_strays_do_not_move_today(shape: str) -> None:
    counts = flow(60, SHAPES[shape])
    end = last_of(counts)
    for days in ([35], [36] * 5, [9, 30, 31, 400, 2_000][:4], [200, 201, 202]):
        found = covered(events(counts), strays(days, end))
        beyond = (after(end, min(days)), after(end, max(days)))
        assert (found.today, found.left_out) == (after(end), len(days))
        assert (found.first, found.last) == beyond


@pytest.mark.parametrize("usual", [1, 3, 10])
def test_strays_do_not_move_today_of_a_small_shop(usual: int) -> None:
    for seed in range(10):
        counts = flow(usual, seed=seed)
        end = last_of(counts)
        for days in ([35], [60] * 5, [40, 41, 90, 300]):
            assert covered(events(counts), strays(days, end)).today == after(end)


def test_a_customer_counts_once_a_day() -> None:
    counts = flow(60)
    end = last_of(counts)
    robot = strays([35] * 500 + [36] * 500, end, customer="robot")
    found = covered(events(counts), robot)
    assert (found.today, found.left_out) == (after(end), 1_000)
    assert found.strays == (
        f"1,000 events from {after(end, 35)} to {after(end, 36)}, "
        "after the last complete day, are left out"
    )


def test_a_day_that_has_hardly_begun_is_not_complete() -> None:
    counts = flow(60)
    counts[-1] = 12
    found = covered(events(counts))
    assert (found.today, found.left_out) == (last_of(counts), 12)
    assert found.strays == f"12 events of {found.today}, after the last complete day, are left out"


def test_a_trickle_that_lasts_four_weeks_is_how_things_are_now() -> None:
    counts = flow(60)
    counts[-28:] = 3
    assert covered(events(counts)).today == after(last_of(counts))
    counts = flow(60)
    counts[-20:] = 1
    assert covered(events(counts)).today == after(last_of(counts), -19)


def test_what_the_calendar_has_not_passed_is_left_out_however_much_it_is() -> None:
    counts, now = flow(60), datetime.date(2023, 6, 15)
    assert covered(events(counts), calendar=now).today == now
    counts, sentinel = counts[: (now - START).days], datetime.date(2099, 12, 31)
    found = covered(events(counts), events(np.array([5_000]), sentinel), calendar=now)
    assert (found.today, found.left_out, found.last) == (now, 5_000, sentinel)
    with pytest.raises(FeatureError, match="every event is of 2023-01-02 or later, and it is 2022"):
        covered(events(counts), calendar=datetime.date(2022, 12, 1))


def test_a_silence_is_told_by_its_days() -> None:
    counts = flow(60, SHAPES["stopped for a week"])
    silence = (START + datetime.timedelta(days=301), START + datetime.timedelta(days=307))
    found = covered(events(counts))
    assert found.silences == (silence,)
    day = silence[0]
    (message,) = found.warnings([after(day, -90), after(day, -91), after(day, 7)], 90)
    assert message.startswith(f"no events from {silence[0]} to {silence[1]}: see whether")
    assert message.endswith(f"seem to have churned in the labels of {after(day, -90)}")


@pytest.mark.parametrize("rows", [1, 2, 13])
def test_with_few_days_the_newest_event_counts(rows: int) -> None:
    days = [3 * number for number in range(rows - 1)] + [500]
    found = covered(strays(days, START))
    assert (found.today, found.left_out) == (after(START, 501), 0)


def test_no_events_are_an_error() -> None:
    with pytest.raises(FeatureError, match=r"bronze\.events is empty"):
        covered(events(np.array([], dtype=int)))


def test_the_sample_and_a_simulated_shop_end_with_their_last_day() -> None:
    assert coverage(ibis.memtable(events_module.cdnow()[0])) == Coverage(datetime.date(1998, 7, 1))


def test_a_later_day_than_the_data_cover_is_refused_and_names_what_is_left_out() -> None:
    counts = flow(60)
    end = last_of(counts)
    found = covered(events(counts), strays([35], end))
    assert features.resolve_as_of(None, found) == after(end)
    assert features.resolve_as_of(end, found) == end
    message = (
        rf"after {after(end)}, the day after the last complete day \(1 event of {after(end, 35)}"
    )
    with pytest.raises(FeatureError, match=message):
        features.resolve_as_of(after(end, 2), found)


@THOROUGH
@given(SEEDS, st.integers(30, 100), st.lists(st.integers(1, 900), min_size=1, max_size=9))
def test_any_few_strays_later_never_move_today(seed: int, usual: int, days: list[int]) -> None:
    counts = flow(usual, seed=seed)
    before = covered(events(counts))
    found = covered(events(counts), strays(days, last_of(counts)))
    assert found.today == before.today
    assert found.left_out == before.left_out + len(days)


@THOROUGH
@given(SEEDS, st.integers(1, 100), st.floats(0, 1))
def test_a_last_day_that_is_cut_off_moves_today_back_a_day_at_most(
    seed: int, usual: int, kept: float
) -> None:
    counts = flow(usual, seed=seed)
    end = last_of(counts)
    counts[(end - START).days] = max(1, int(kept * counts[(end - START).days]))
    assert covered(events(counts)).today in (end, after(end))


@THOROUGH
@given(SEEDS, st.sampled_from(list(SHAPES)), st.integers(-9_000, 400), st.lists(st.integers(1, 90)))
def test_a_shift_in_time_shifts_today(seed: int, shape: str, shift: int, days: list[int]) -> None:
    rows = pd.concat(
        [events(counts := flow(30, SHAPES[shape], seed)), strays(days, last_of(counts))]
    )
    here = covered(rows)
    moved = covered(rows.assign(event_ts=rows.event_ts + pd.Timedelta(days=shift)))
    assert (after(here.today, shift), here.left_out) == (moved.today, moved.left_out)
