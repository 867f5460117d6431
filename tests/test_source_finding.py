"""Events that get lost on the way, or lose a column, are noticed by the week; a shop as ever is not."""

import datetime
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest

from churn_lib import settings
from churn_lib.alerts import fires
from churn_lib.settings import Settings
from churn_lib.verdict import source_finding

ROOT = Path(__file__).parent.parent
UNTIL, WEEKS = datetime.date(2025, 4, 1), 16


@pytest.fixture(scope="module")
def config() -> Settings:
    return settings.load("local", ROOT / "settings.ini")


def shop(by_week: list[int], seed: int = 0) -> pd.DataFrame:
    """So many events in each week before UNTIL, oldest week first."""
    rng = np.random.default_rng(seed)
    week = np.repeat(np.arange(len(by_week)), by_week)
    start = pd.Timestamp(UNTIL, tz="UTC") - pd.Timedelta(weeks=len(by_week))
    days = pd.to_timedelta(7 * (week + rng.random(len(week))), unit="D")
    moment = (start + days).as_unit("us")
    return pd.DataFrame({"event_ts": moment, "session_id": "s", "product_id": "p"})


def violations(frame: pd.DataFrame, config: Settings) -> list[bool | None]:
    found = source_finding(ibis.memtable(frame), UNTIL, config)
    assert len(found.violations) == len(found.windows)
    return list(found.violations)


def test_a_shop_as_ever_is_quiet_however_small(config: Settings) -> None:
    rng, alarms, weeks = np.random.default_rng(1), 0, 0
    for usual in (3, 20, 300):
        for seed in range(40):
            said = violations(shop(list(rng.poisson(usual, WEEKS) + 1), seed), config)
            alarms, weeks = alarms + sum(map(bool, said)), weeks + len(said)
    assert alarms <= weeks / 100


def test_lost_events_violate_in_their_first_week_and_fire_in_the_second(config: Settings) -> None:
    frame = shop([100] * 10 + [30, 30])
    found = source_finding(ibis.memtable(frame), UNTIL, config)
    assert found.violations == (None, *[False] * 9, True, True)
    assert fires(found.violations, config.alert_violations, config.alert_windows)
    assert found.message == "30 events in the week from 2025-03-25 instead of 100: mend the source"
    assert found.windows[-1] == datetime.date(2025, 3, 25)


def test_a_source_that_runs_dry_has_weeks_of_nothing(config: Settings) -> None:
    frame = shop([100] * 8 + [0, 0])
    assert violations(frame, config)[-3:] == [False, True, True]


def test_a_column_that_loses_its_values_is_named(config: Settings) -> None:
    frame = shop([100] * 10)
    frame.loc[frame.event_ts >= "2025-03-19", "product_id"] = None
    found = source_finding(ibis.memtable(frame), UNTIL, config)
    assert found.violations[-3:] == (False, True, True)
    assert found.message.startswith("100 % of the events of the week from 2025-03-25 have no prod")


def test_a_column_that_never_had_values_is_no_loss(config: Settings) -> None:
    frame = shop([100] * 10).assign(product_id=pd.Series([None] * 1_000, dtype="string"))
    assert not any(violations(frame, config))


def test_events_after_the_day_and_weeks_before_the_shop_do_not_count(config: Settings) -> None:
    frame = shop([100, 100, 100])
    later = frame.assign(event_ts=frame.event_ts + pd.Timedelta(weeks=3))
    assert violations(pd.concat([frame, later]), config) == [None, False, False]
    assert violations(frame.head(0), config) == []
