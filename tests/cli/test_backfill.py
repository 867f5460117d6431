"""Past days: scored once, by a version one can choose, resumed where they were cut off, and never taken for in time."""

import datetime
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from churn_lib import registry, scoring, settings, tables
from churn_lib.cli import backfill
from churn_lib.features import snapshots
from churn_lib.monitoring import monitor
from churn_lib.monitoring.contacts import contact_effects
from churn_lib.monitoring.metrics import read_metrics, whole
from churn_lib.monitoring.report import Report
from churn_lib.monitoring.windows import PROFILE_METRICS, windows
from churn_lib.registry import promotion_log
from churn_lib.settings import ChurnError, Settings
from churn_lib.testing import TODAY, shop_tables
from churn_lib.training import read_data_set, register
from churn_lib.training.train import train
from tests.checkouts import change_settings
from tests.conftest import CHURN, ROOT

FIRST = TODAY - datetime.timedelta(days=120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A shop with two versions, the second at Production, and scores of today."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    change_settings(folder, {"data.snapshots": "2", "scoring.control_share": "0.2"})
    config = settings.load("local", folder / "settings.ini")
    store, models = shop_tables(config, 600), registry.connect(config)
    version = store.version("gold.features")
    data = read_data_set(store.read("gold.features", version), version, config)
    for seed in (1, 2):
        own = config.updated({"training.random_state": seed})
        models.set_alias(registry.PRODUCTION, register(models, train(data, own, git_sha="abc")))
    scorer = scoring.production(models, config, store)
    scoring.score(
        store, scoring.read_snapshot(store, TODAY, scorer), scorer, "abc", control_share=0.2
    )
    return config


@pytest.fixture
def shop(made: Settings, tmp_path: Path) -> Settings:
    """A copy of it that a test may change."""
    shutil.copytree(made.root, tmp_path / "shop", ignore=shutil.ignore_patterns(".lock", ".spill*"))
    return settings.load("local", tmp_path / "shop" / "settings.ini")


def run(config: Settings, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CHURN_SETTINGS": str(config.root / "settings.ini")}
    command = [CHURN, "backfill", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def days_of(config: Settings, *arguments: str) -> list[dict]:
    done = run(config, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["days"]


def scores(config: Settings) -> pd.DataFrame:
    rows = tables.connect(config).read("gold.predictions").to_pandas()
    return rows.assign(feature_date=pd.to_datetime(rows.feature_date).dt.date)


def test_past_days_are_built_scored_measured_and_known_as_such(shop: Settings) -> None:
    before = scores(shop)
    found = days_of(shop, str(FIRST), str(TODAY), "--every", "30d")
    assert [day["feature_date"] for day in found] == [
        str(FIRST + datetime.timedelta(days=30 * number)) for number in range(5)
    ]
    assert {day["model_version"] for day in found} == {2}
    assert [day["scores"] for day in found] == ["made now"] * 4 + ["there already"]
    # the horizon of 90 days has passed for the first two
    assert [day["quality"] for day in found] == ["measured"] * 2 + ["estimated"] * 3
    rows = scores(shop).set_index("feature_date")
    late = rows[rows.index < TODAY]
    assert late.backfilled.all() and not late.contacted.any() and (late.control_share == 0).all()
    pd.testing.assert_frame_equal(rows.loc[[TODAY]].reset_index()[before.columns], before)
    assert not rows.loc[[TODAY]].backfilled.any()
    # a day is scored as it was: what came later is not in its features
    store = tables.connect(shop)
    day = FIRST + datetime.timedelta(days=30)
    scorer = scoring.production(registry.connect(shop), shop, store)
    raw = [store.read(name) for name in ("bronze.events", "bronze.customers")]
    past = raw[0].filter(raw[0].event_ts <= pd.Timestamp(day, tz="UTC").to_pydatetime())
    own = snapshots.snapshot(past, raw[1], day, day, shop).to_pandas().sort_values("customer_id")
    answers = scoring.batch.answers_of(scorer, own.astype(dict.fromkeys(scorer.inputs, float)))
    assert list(late.loc[[day]].sort_values("customer_id").churn_probability) == list(answers)


def test_the_monitor_does_not_judge_by_days_that_were_scored_later(shop: Settings) -> None:
    store, models = tables.connect(shop), registry.connect(shop)
    before = monitor(store, models, shop, TODAY, "abc", notify=False)
    days_of(shop, str(FIRST), str(TODAY - datetime.timedelta(days=1)), "--every", "7d")
    after = monitor(store, models, shop, TODAY, "abc", notify=False)
    assert after.to_dict() == before.to_dict()
    assert [each.violations for each in after.signals] == [
        each.violations for each in before.signals
    ]
    found = windows(store, shop, TODAY)
    assert [each.backfilled for each in found].count(False) == 1 and len(found) > 10
    totals = whole(read_metrics(store, PROFILE_METRICS)).query("column_name == ':table'")
    assert len(totals) == len(found)
    assert set(Report(after).totals().window_date) == {found[-1].start}
    (effect,) = contact_effects(store, shop.model_name, TODAY, TODAY, lambda version: 90)
    assert (effect.first_day, effect.last_day) == (TODAY, TODAY)


def test_only_scores_made_later_are_no_scores_for_the_monitor(shop: Settings) -> None:
    store = tables.connect(shop)
    rows = store.read("gold.predictions")
    store.overwrite("gold.predictions", rows.limit(0))
    yesterday = TODAY - datetime.timedelta(days=1)
    days_of(shop, str(yesterday), str(yesterday))
    found = monitor(store, registry.connect(shop), shop, TODAY, "abc", notify=False)
    assert found.verdict == "no_data"


def test_a_backfill_that_was_killed_goes_on_where_it_was(shop: Settings) -> None:
    ends = (str(TODAY - datetime.timedelta(days=12)), str(TODAY - datetime.timedelta(days=1)))
    environment = {**os.environ, "CHURN_SETTINGS": str(shop.root / "settings.ini")}
    command = [str(CHURN), "backfill", *ends]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as going:
        assert going.stderr is not None
        lines = [next(line for line in going.stderr if "made now" in line) for _ in range(3)]
        going.send_signal(signal.SIGKILL)
    assert len(set(lines)) == 3
    store = tables.connect(shop)
    first = {row["feature_date"]: row for row in store.history("gold.predictions").tags}
    found = days_of(shop, *ends)
    there = [day["feature_date"] for day in found if day["scores"] == "there already"]
    assert 3 <= len(there) < 12 and set(there) <= set(first)
    commits = [tags["feature_date"] for tags in store.history("gold.predictions").tags]
    assert sorted(set(commits)) == sorted(commits) and len(commits) == 13
    assert {day["scores"] for day in days_of(shop, *ends)} == {"there already"}
    assert len(store.history("gold.predictions")) == 13


def test_days_are_scored_by_the_version_that_was_at_production_then(shop: Settings) -> None:
    store = tables.connect(shop)
    log = promotion_log.read(store, shop.model_name)
    for version, day in (
        (1, TODAY - datetime.timedelta(days=30)),
        (2, TODAY - datetime.timedelta(days=9)),
    ):
        move = promotion_log.Move(
            len(log.moves) + 1,
            datetime.datetime.combine(day, datetime.time(18), datetime.UTC),
            "ann",
            shop.model_name,
            log.production,
            version,
            "abc",
            None,
            "promote",
            "",
        )
        promotion_log.append(store, log, move)
        log = promotion_log.read(store, shop.model_name)
    start = str(TODAY - datetime.timedelta(days=15))
    found = days_of(shop, start, str(TODAY), "--every", "3d", "--by", "then")
    assert [day["model_version"] for day in found] == [1, 1, 2, 2, 2, 2]
    early = str(TODAY - datetime.timedelta(days=40))
    done = run(shop, early, str(TODAY), "--by", "then")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"nothing was at Production on {early}, the first version came on" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2025-06-10", "2025-06-01"), "FROM 2025-06-10 is after TO 2025-06-01"),
        (("2025-06-10", "2025-06-25"), "TO 2025-06-25 is after 2025-06-24, the day after the last"),
        (("2025-06-10", "2150-01-01"), "TO 2150-01-01 is after 2025-06-24"),
        (
            ("1990-01-01", "2025-06-01"),
            "FROM 1990-01-01: no customer had joined yet; begin with 20",
        ),
        (("yesterday", "2025-06-01"), "FROM = 'yesterday' is not a date"),
        (("2025-06-01", "2025-06-31"), "TO = '2025-06-31' is not a date"),
        (("2025-06-01", "2025-06-02", "--every", "0d"), "--every '0d' is no number of days"),
        (("2025-06-01", "2025-06-02", "--every", "-1d"), "--every '-1d' is no number of days"),
        (("2025-06-01", "2025-06-02", "--by", "me"), "--by 'me' is neither now nor then"),
    ],
)
def test_days_that_cannot_be_had_are_refused_in_one_line_before_anything_is_written(
    arguments: tuple[str, ...], message: str, made: Settings
) -> None:
    store = tables.connect(made)
    before = store.version("gold.features"), store.version("gold.predictions")
    done = run(made, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert message in done.stderr
    assert (store.version("gold.features"), store.version("gold.predictions")) == before


def test_without_a_version_or_events_there_is_nothing_to_backfill(
    shop: Settings, tmp_path: Path
) -> None:
    models = registry.connect(shop)
    models.client.delete_registered_model_alias(shop.model_name, registry.PRODUCTION)
    done = run(shop, str(FIRST), str(TODAY))
    assert "nothing is at Production yet" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(shop.root / "settings.ini", empty)
    done = run(settings.load("local", empty / "settings.ini"), str(FIRST), str(TODAY))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_days_without_events_are_scored_and_named(made: Settings) -> None:
    days = [datetime.date(2025, 6, day) for day in (4, 5, 6, 10, 11)]
    silence = (datetime.date(2025, 6, 5), datetime.date(2025, 6, 9))
    (sentence,) = backfill._silent((silence,), days)
    assert sentence.startswith("no events from 2025-06-05 to 2025-06-09: 2 of these days")
    with pytest.raises(ChurnError, match="none ever was"):
        backfill.versions_then([], days)
