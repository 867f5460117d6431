"""Events that get lost on the way, or lose a column, are noticed by the week; a shop as ever is not."""

import datetime
import shutil
from dataclasses import replace
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest

from churn_lib import settings
from churn_lib.monitoring import Alert
from churn_lib.monitoring.alerts import fires
from churn_lib.monitoring.verdict import retraining_is_due, signals, source_signal
from churn_lib.registry import PRODUCTION, Registry, connect
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables
from churn_lib.testing import register_version
from tests import shared

ROOT = Path(__file__).parents[2]
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
    found = source_signal(ibis.memtable(frame), UNTIL, config)
    assert len(found.violations) == len(found.windows)
    return list(found.violations)


@pytest.mark.parametrize("in_a_visit", [1, 5])
@pytest.mark.parametrize("without_product", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("usual", [3, 20, 300])
def test_a_shop_as_ever_is_quiet_however_small(
    usual: int, without_product: float, in_a_visit: int, config: Settings
) -> None:
    rng, alarms, weeks = np.random.default_rng(1), 0, 0
    for seed in range(40):
        visits = rng.poisson(usual / in_a_visit, WEEKS)
        frame = shop(list(in_a_visit * visits + 1), seed)
        frame.loc[rng.random(len(frame)) < without_product, "product_id"] = None
        seen = violations(frame, config)
        alarms, weeks = alarms + sum(map(bool, seen)), weeks + len(seen)
    assert alarms <= weeks / 50


def test_lost_events_violate_in_their_first_week_and_fire_in_the_second(config: Settings) -> None:
    frame = shop([100] * 10 + [30, 30])
    found = source_signal(ibis.memtable(frame), UNTIL, config)
    assert found.violations == (*[None] * 3, *[False] * 7, True, True)
    assert fires(
        found.violations, config.monitoring.alert_violations, config.monitoring.alert_windows
    )
    assert found.message.startswith("in the week from 2025-03-25, 30 events instead of 100: see")
    assert found.windows[-1] == datetime.date(2025, 3, 25)


def test_a_source_that_runs_dry_has_weeks_of_nothing(config: Settings) -> None:
    frame = shop([100] * 8 + [0, 0])
    assert violations(frame, config)[-3:] == [False, True, True]


def test_a_column_that_loses_its_values_is_named(config: Settings) -> None:
    frame = shop([100] * 10)
    frame.loc[frame.event_ts >= "2025-03-19", "product_id"] = None
    found = source_signal(ibis.memtable(frame), UNTIL, config)
    assert found.violations[-3:] == (False, True, True)
    message = "in the week from 2025-03-25, 100% of the events have no product_id: fix the source"
    assert found.message == message


def test_a_loss_that_lasts_is_no_measure_until_it_is_how_things_are(config: Settings) -> None:
    span = 3 * config.monitoring.alert_windows
    seen = violations(shop([100] * 10 + [30] * (span + 4)), config)
    assert seen == [*[None] * 3, *[False] * 7, *[True] * span, *[False] * 4]


def test_a_column_that_never_had_values_is_no_loss(config: Settings) -> None:
    frame = shop([100] * 10).assign(product_id=pd.Series([None] * 1_000, dtype="string"))
    assert not any(violations(frame, config))


def test_events_after_the_day_and_weeks_before_the_shop_do_not_count(config: Settings) -> None:
    frame = shop([100] * 4)
    later = frame.assign(event_ts=frame.event_ts + pd.Timedelta(weeks=4))
    assert violations(pd.concat([frame, later]), config) == [None] * 3 + [False]
    assert violations(frame.head(0), config) == []


def test_a_source_that_has_run_dry_is_found_by_the_calendar(
    config: Settings, tmp_path: Path
) -> None:
    store = DeltaTables(tmp_path)
    store.overwrite("bronze.events", ibis.memtable(shop([100] * 10)))
    for later, fired in ((0, False), (7, False), (14, True)):
        today = UNTIL + datetime.timedelta(days=later)
        found = {each.cause: each for each in signals(store, config, today, 1, [])}
        assert found["source"].fires(2, 3) == fired
    assert "0 events instead of 100" in found["source"].message


def alert(cause: str, severity: str, acknowledged: bool = False) -> Alert:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    return Alert(cause, cause, severity, "churn", 1, UNTIL, "", moment, acknowledged=acknowledged)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One version at Production, made before any alert."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(ROOT / "settings.ini", folder)
    own = settings.load("local", folder / "settings.ini")
    shared.empty_mlflow(own)
    found = connect(own)
    found.set_alias(PRODUCTION, register_version(found))
    return found


@pytest.mark.parametrize(
    ("still_open", "due"),
    [
        ([alert("estimated_quality", "retrain")], True),
        ([alert("estimated_quality", "retrain"), alert("source", "investigate")], False),
        ([alert("estimated_quality", "retrain"), alert("source", "investigate", True)], True),
        ([alert("estimated_quality", "retrain"), alert("broken_column", "investigate")], False),
        ([alert("quality", "retrain"), alert("source", "investigate")], True),
        ([alert("quality", "retrain", True), alert("source", "investigate")], False),
    ],
)
def test_an_estimate_starts_no_training_while_the_source_is_in_doubt(
    registry: Registry, still_open: list[Alert], due: bool
) -> None:
    assert retraining_is_due(registry, still_open, settings.load("local")) == due


def test_a_training_that_did_not_help_is_tried_again_after_a_while_and_not_every_day(
    registry: Registry,
) -> None:
    config = settings.load("local").updated({"monitoring.retrain_at_most_every": 30})
    made = registry.version(1).creation_timestamp / 1000
    trained = datetime.datetime.fromtimestamp(made, datetime.UTC)
    asking = replace(alert("quality", "retrain"), raised_at=trained - datetime.timedelta(hours=2))
    due = [
        retraining_is_due(registry, [asking], config, trained + datetime.timedelta(days=days))
        for days in (0, 1, 29, 31)
    ]
    assert due == [False, False, False, True]


def test_a_training_whose_version_never_reached_the_gate_is_done_again(registry: Registry) -> None:
    asking = [replace(alert("quality", "retrain"), raised_at=datetime.datetime.now(datetime.UTC))]
    config = settings.load("local")
    later = asking[0].raised_at + datetime.timedelta(days=1)
    number = register_version(registry, tags={"retrained_for": "quality"})  # then it was killed
    assert retraining_is_due(registry, asking, config, later)
    registry.tag(number, {"gate": "failed"})
    assert not retraining_is_due(registry, asking, config, later)
    # what somebody has trained by hand is theirs to judge
    register_version(registry)
    assert not retraining_is_due(registry, asking, config, later)
