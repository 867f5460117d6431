"""A broken column is seen on a cohort like CDNOW's, where most columns move by themselves; years without a break are quiet."""

import datetime
from collections.abc import Callable
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest

from churn_lib import settings
from churn_lib.data import events
from churn_lib.features import ANSWER, FEATURES, LABEL, snapshot
from churn_lib.monitoring import verdict
from churn_lib.monitoring.drift import attainable_effect, compare, distribution
from churn_lib.monitoring.integrity import agreement_limits, check_columns, learn_relations
from churn_lib.monitoring.metrics import check_rows, drift_rows, observe
from churn_lib.monitoring.report import unwatched
from churn_lib.monitoring.windows import (
    DECISION,
    Baseline,
    Window,
    is_numeric,
    make_baseline,
)
from churn_lib.settings import Settings

ROOT = Path(__file__).parents[2]
START = datetime.date(1997, 1, 1)
JUDGED = 456  # days after START: the newest labelled snapshot, as in CDNOW
YEARS = 3 * 365


@pytest.fixture(scope="module")
def config() -> Settings:
    return settings.load("local", ROOT / "settings.ini")


def cohort(customers: int = 5_000, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events and customers: all join within 90 days, half never come again, the others less and less."""
    rng = np.random.default_rng(seed)
    arrival = rng.uniform(0, 90, customers)
    pace = np.where(rng.random(customers) < 0.5, 0.0, rng.gamma(0.8, 0.02, customers))
    stays = rng.exponential(400, customers)
    again = rng.poisson(pace * stays)
    owner = np.concatenate([np.arange(customers), np.repeat(np.arange(customers), again)])
    later = np.repeat(arrival, again) + rng.random(again.sum()) * np.repeat(stays, again)
    frame = pd.DataFrame({"owner": owner, "moment": np.concatenate([arrival, later])})
    seconds = pd.to_timedelta((frame.moment * 86_400).astype("int64"), unit="s")
    frame["event_ts"] = pd.Timestamp(START, tz="UTC") + seconds
    frame = frame.sort_values(["event_ts", "owner"], ignore_index=True)
    frame["customer_id"] = "c" + frame.owner.astype(str).str.zfill(5)
    frame["session_id"] = frame.customer_id + frame.event_ts.dt.strftime("-%Y%m%d")
    frame["product_id"] = "p" + pd.Series(rng.zipf(1.5, len(frame)).clip(max=50)).astype(str)
    frame["event_id"] = "e" + frame.index.astype(str).str.zfill(6)
    frame = frame[events.EVENTS.names]
    return frame, events.customers_of(frame)


class Shop:
    """A cohort, and what it looks like on a day."""

    def __init__(self, config: Settings, seed: int = 0):
        self.config, self.connection = config, ibis.duckdb.connect()
        self.days: dict[int, pd.DataFrame] = {}
        self.connection.raw_sql("SET TimeZone = 'UTC'")
        raw = zip(("events", "customers"), cohort(seed=seed), strict=True)
        self.events, self.customers = (
            self.connection.create_table(name, ibis.memtable(rows).to_pyarrow())
            for name, rows in raw
        )

    def on(self, number: int) -> pd.DataFrame:
        """Features and labels, with the answers of a model that knows how the shop works."""
        if number not in self.days:
            self.days[number] = self.computed(number)
        return self.days[number].copy()

    def computed(self, number: int) -> pd.DataFrame:
        day, end = START + datetime.timedelta(number), START + datetime.timedelta(10_000)
        rows = snapshot(self.events, self.customers, day, end, self.config)
        frame = self.connection.to_pandas(rows).sort_values("customer_id", ignore_index=True)
        return answered(frame.astype(dict.fromkeys(FEATURES, float)))

    def baseline(self) -> Baseline:
        """Three snapshots of customers outside the bucket, and the bucket a quarter later."""
        days = [JUDGED - 90 * quarters for quarters in (3, 2, 1)]
        training = pd.concat([self.on(day) for day in days], ignore_index=True)
        holdout = self.on(JUDGED)
        return make_baseline(
            1,
            training[~training.in_holdout_bucket],
            holdout[holdout.in_holdout_bucket].reset_index(drop=True),
            0.5,
        )


def answered(frame: pd.DataFrame) -> pd.DataFrame:
    odds = 1.5 - 0.8 * np.log1p(frame.events_last_90d) - 20 * frame.avg_events_per_day
    answer = 1 / (1 + np.exp(-odds))
    return frame.assign(**{ANSWER: answer, DECISION: (answer >= 0.5).astype(int)})


@pytest.fixture(scope="module")
def shop(config: Settings) -> Shop:
    return Shop(config)


@pytest.fixture(scope="module")
def baseline(shop: Shop) -> Baseline:
    return shop.baseline()


def judged(rows: pd.DataFrame, number: int, baseline: Baseline, config: Settings) -> pd.DataFrame:
    """The column checks of a window on a day."""
    day = START + datetime.timedelta(number)
    window = Window(day, day + datetime.timedelta(1), 1, (day,))
    seen = observe(window, rows.drop(columns=LABEL).assign(**{LABEL: None}))
    drift = drift_rows(seen, baseline.distributions, baseline.limits(day, config), config)
    return check_rows(seen, baseline, drift).assign(window_date=day)


def constant(column: pd.Series) -> pd.Series:
    return pd.Series(column.median(), column.index)


def shuffled(column: pd.Series) -> pd.Series:
    return pd.Series(np.random.default_rng(0).permutation(column), column.index)


BREAKS: dict[str, Callable[[pd.Series], pd.Series]] = {
    "zeroed": lambda column: 0 * column,
    "constant": constant,
    "times ten": lambda column: 10 * column,
    "a tenth": lambda column: column / 10,
    "shuffled": shuffled,
    "all null": lambda column: column * np.nan,
}
KINDS = {
    "zeroed": "constant",
    "constant": "constant",
    "times ten": "another unit",
    "a tenth": "another unit",
    "shuffled": "shuffled",
    "all null": "empty",
}


@pytest.mark.parametrize("column", FEATURES)
@pytest.mark.parametrize("kind", BREAKS)
def test_each_break_of_each_column_is_found_and_blamed_on_that_column(
    kind: str, column: str, shop: Shop, baseline: Baseline, config: Settings
) -> None:
    rows = shop.on(JUDGED + 90)
    rows[column] = BREAKS[kind](rows[column])
    checks = judged(rows, JUDGED + 90, baseline, config)
    found = checks.set_index("column_name").broken.dropna().to_dict()
    assert found == {column: KINDS[kind]}
    signal = verdict.broken_signal(checks)
    assert signal.violations == (True,) and signal.message.startswith(column)


def test_years_in_which_nothing_breaks_are_quiet(config: Settings) -> None:
    for seed in range(2):
        shop = Shop(config, seed)
        baseline = shop.baseline()
        for number in range(JUDGED + 30, JUDGED + YEARS, 90):
            checks = judged(shop.on(number), number, baseline, config)
            assert not checks.broken.notna().any(), (seed, number, checks)
            assert checks["size"].dropna().between(1 / 2, 2).all()
            if number < JUDGED + YEARS / 2:  # not by a hair, either
                assert not (checks.agreement < 1.3 * checks.agreement_limit).any()


def test_an_untouched_month_of_cdnow_is_quiet_and_says_what_cannot_be_seen(
    shop: Shop, baseline: Baseline, config: Settings
) -> None:
    checks = judged(shop.on(JUDGED + 30), JUDGED + 30, baseline, config).set_index("column_name")
    assert not checks.broken.notna().any()
    # in a cohort this one moves by the calendar alone
    assert set(checks.index[checks.effect_limit.isna()]) == {"customer_tenure_days"}
    (sentence,) = unwatched(checks.reset_index())
    assert sentence.startswith("Drift cannot be seen in customer_tenure_days: ")


@pytest.mark.parametrize("number", [JUDGED + 30, JUDGED + 365, JUDGED + YEARS])
def test_a_limit_is_below_the_most_that_the_index_can_reach(
    number: int, baseline: Baseline, config: Settings
) -> None:
    limits = baseline.limits(START + datetime.timedelta(number), config)
    for name, limit in limits.items():
        most = attainable_effect(baseline.distributions[name])
        assert np.isnan(limit) or 0 < limit <= 0.75 * most, name


@pytest.mark.parametrize("name", FEATURES)
def test_no_window_reaches_more_than_the_attainable_effect(name: str, baseline: Baseline) -> None:
    then = baseline.distributions[name]
    most, rng = attainable_effect(then), np.random.default_rng(0)
    effect = "population_stability_index" if is_numeric(name) else "js_distance"
    values = [*rng.choice(then.values.astype(float), 40), -1.0, 1e9, np.nan]
    found = [
        compare(distribution(pd.Series([value] * 30), is_numeric(name)), then)[effect]
        for value in values
    ]
    assert max(found) == pytest.approx(most)  # all rows in one bin, one that had none
    for _ in range(50):
        mixed = rng.choice(values, 200, p=rng.dirichlet(np.full(len(values), 0.1)))
        assert (
            compare(distribution(pd.Series(mixed), is_numeric(name)), then)[effect] <= most + 1e-9
        )


@pytest.mark.parametrize(
    "chosen",
    [
        lambda rows: rows.recency_tier == 3,
        lambda rows: rows.recency_tier <= 1,
        lambda rows: rows.total_events == 1,
        lambda rows: rows.total_events >= 4,
        lambda rows: rows.index < 40,
        lambda rows: rows.index < 400,
    ],
)
def test_customers_who_are_chosen_by_a_column_do_not_break_it(
    chosen: Callable[[pd.DataFrame], pd.Series],
    shop: Shop,
    baseline: Baseline,
) -> None:
    rows = shop.on(JUDGED + 90)
    rows = rows[chosen(rows)].reset_index(drop=True)
    now = {name: distribution(rows[name], is_numeric(name)) for name in FEATURES}
    found = check_columns(baseline.relations, rows, now, baseline.distributions, {})
    assert not found.broken.notna().any(), found


def test_two_broken_columns_are_both_named(
    shop: Shop, baseline: Baseline, config: Settings
) -> None:
    rows = shop.on(JUDGED + 90)
    rows["events_last_90d"], rows["total_sessions"] = 0.0, shuffled(rows.total_sessions)
    checks = judged(rows, JUDGED + 90, baseline, config).set_index("column_name")
    found = checks.broken.dropna().to_dict()
    assert found == {"events_last_90d": "constant", "total_sessions": "shuffled"}


def test_a_column_that_never_went_with_the_others_is_listed() -> None:
    rng = np.random.default_rng(0)
    parts = [pd.DataFrame(rng.gamma(2, 2, (3_000, len(FEATURES))), columns=FEATURES) for _ in "ab"]
    relations = learn_relations(parts, FEATURES)
    limits = agreement_limits(relations)
    assert limits.isna().all()
    now = {name: distribution(parts[0][name]) for name in FEATURES}
    found = check_columns(relations, parts[0], now, now, {}).reset_index()
    (sentence,) = unwatched(found.assign(effect_limit=0.2))
    assert sentence.startswith("That it is shuffled cannot be seen of total_events, total_sessions")
