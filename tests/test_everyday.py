"""Days after the first run: new events come, and the jobs run as the bundle schedules them."""

import datetime
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import ibis
import pandas as pd
import pytest

from churn_lib import features, registry, settings, tables
from churn_lib.data import simulation
from churn_lib.features import snapshots
from churn_lib.monitoring.verdict import monitor
from churn_lib.settings import Settings
from tests.checkouts import ROOT, change_settings
from tests.shared import run_job, warm_churn

CUSTOMERS = 3_000
EVENTS, WHO = simulation.simulate(CUSTOMERS)
END = pd.to_datetime(EVENTS.column("event_ts").to_pandas()).max()
FIRST = (END - pd.Timedelta(days=45)).date()  # the day of the training


def run(config: Settings, job: str, only: str | None = None, **given: str) -> dict[str, dict]:
    """Run a job that has to succeed; task key to task values."""
    done = run_job(config, job, only, **given)
    assert done.succeeded, [task.error for task in done.tasks]
    return {task.task_key: task.values for task in done.tasks}


def load_until(config: Settings, day: datetime.date) -> tables.Tables:
    """Bronze as it is in the night that begins `day`; append what a former night had not."""
    store = tables.connect(config)
    for name, rows, column in (
        ("bronze.events", EVENTS, "event_ts"),
        ("bronze.customers", WHO, "signup_ts"),
    ):
        frame = rows.to_pandas()
        known = frame[frame[column] < pd.Timestamp(day, tz="UTC")]
        store.overwrite(name, ibis.memtable(known, schema=ibis.memtable(rows).schema()))
    return store


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A shop with a model at Production, trained on the events until FIRST."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    change_settings(folder, {"data.snapshots": "2"})
    config = settings.load("local", folder / "settings.ini")
    load_until(config, FIRST)
    for job in ("training_job", "validation_job", "scoring_job"):
        run(config, job, git_sha="first")
    yield config


@pytest.fixture(scope="module")
def later(shop: Settings) -> tuple[datetime.date, dict]:
    """The day after 30 more days of events, and what the scoring job made of them."""
    load_until(shop, FIRST + datetime.timedelta(days=30))
    return run(shop, "scoring_job", git_sha="later")


def test_customers_are_scored_as_they_are_today_and_not_as_at_the_training(
    shop: Settings, later: dict
) -> None:
    store, found = tables.connect(shop), later
    today = features.coverage(store.read("bronze.events")).today
    assert today > FIRST + datetime.timedelta(days=25)
    assert found["feature_engineering"]["feature_date"] == str(today)
    assert found["score_customers"]["feature_date"] == str(today)
    predictions = store.read("gold.predictions")
    rows = predictions.filter(predictions.feature_date == today).to_pandas()
    customers = store.read("bronze.customers").to_pandas()
    joined = customers[customers.signup_ts <= pd.Timestamp(today, tz="UTC")]
    assert set(rows.customer_id) == set(joined.customer_id)
    assert set(rows.model_version) == {1}


def test_scoring_builds_the_snapshot_of_today_and_leaves_those_of_the_training(
    shop: Settings, later: dict
) -> None:
    commits = tables.connect(shop).history("gold.features").tags
    built = [tags["feature_date"] for tags in commits if tags.get("git_sha") == "later"]
    assert built == [later["feature_engineering"]["feature_date"]]


def test_a_second_run_on_the_same_events_builds_nothing_and_scores_the_same(
    shop: Settings, later: dict
) -> None:
    store = tables.connect(shop)
    before = store.version("gold.features")
    again = run(shop, "scoring_job", git_sha="again")
    assert store.version("gold.features") == before
    assert again["score_customers"]["feature_date"] == later["score_customers"]["feature_date"]


def test_events_that_come_after_the_scores_of_today_ask_for_another_scoring(
    shop: Settings, later: dict, tmp_path: Path
) -> None:
    shutil.copytree(shop.root, tmp_path / "shop")
    config = settings.load("local", tmp_path / "shop" / "settings.ini")
    environment = {**os.environ, "CHURN_SETTINGS": str(config.root / "settings.ini")}

    def asked() -> dict[str, str]:
        done = warm_churn("status", "--json", environment=environment, folder=config.root)
        assert done.returncode == 0, done.stderr
        return {each["command"]: each["why"] for each in json.loads(done.stdout)["next"]}

    scoring = "churn run scoring_job"
    assert scoring not in asked()
    day = later["score_customers"]["feature_date"]
    file = tmp_path / "late.csv"
    who = tables.connect(config).read("bronze.customers").customer_id.min().to_pyarrow().as_py()
    before = pd.Timestamp(day) - pd.Timedelta(hours=1)
    file.write_text(f"event_id,customer_id,event_ts\nlate,{who},{before}\n")
    load = ("data", "load", "--append", "--events", str(file))
    done = warm_churn(*load, environment=environment, folder=config.root)
    assert f"Next: {scoring}" in done.stdout, done.stdout + done.stderr
    assert asked()[scoring] == f"since the scores of {day}: 1 more event before it"
    run(config, "scoring_job", git_sha="late")
    assert scoring not in asked()


def test_a_version_is_judged_again_after_days_of_scoring_alone(shop: Settings, later: dict) -> None:
    """As an approval that comes a week late does, and whoever runs the gate once more."""
    store = tables.connect(shop)
    scored = datetime.date.fromisoformat(later["score_customers"]["feature_date"])
    found = run(shop, "validation_job", git_sha="late")
    assert found["validate_model"]["gate_verdict"] == "TIE"
    reports = store.read("gold.gate_reports").order_by("created_at").to_pandas()
    first, last = reports.iloc[0], reports.iloc[-1]
    assert last.feature_date == first.feature_date < pd.Timestamp(scored)
    assert last.holdout_rows == first.holdout_rows > 0


def test_a_version_is_judged_on_days_that_its_training_has_not_seen(
    shop: Settings, later: dict, tmp_path: Path
) -> None:
    """As in production, which has scored each day, when staging has trained on newer labels."""
    shutil.copytree(shop.root, tmp_path / "shop")
    config = settings.load("local", tmp_path / "shop" / "settings.ini")
    run(config, "training_job", git_sha="newer")
    tags = registry.connect(config).version(2).tags
    store = tables.connect(config)
    day = tags["holdout_feature_date"]  # scored on that day, its labels unknown
    run(config, "scoring_job", "feature_engineering", as_of=day)
    assert features.newest_holdout(store.read("gold.features")) < snapshots.trained_until(tags)
    run_job(config, "validation_job", git_sha="newer")
    reports = store.read("gold.gate_reports").filter(ibis._.model_version == 2).to_pyarrow()
    (report,) = reports.to_pylist()
    assert str(pd.Timestamp(report["feature_date"]).date()) == tags["holdout_feature_date"]
    checks = {each["name"]: each["passed"] for each in json.loads(report["report"])["checks"]}
    assert checks["leakage_time"] and checks["holdout_labels"]


def cause(config: Settings, as_of: datetime.date | None = None) -> str:
    """The message of the monitor about data that is too old; empty when it has none."""
    found = monitor(tables.connect(config), registry.connect(config), config, as_of, notify=False)
    return next((each.message for each in found.causes if each.cause == "no_data"), "")


def test_the_monitor_tells_what_has_stopped_source_features_or_scoring(
    shop: Settings, later: dict
) -> None:
    scored = datetime.date.fromisoformat(later["score_customers"]["feature_date"])
    assert cause(shop, scored) == ""
    # the calendar goes on, and there are no events
    message = cause(shop.updated({"monitoring.today": "calendar"}))
    assert message.startswith(f"the newest predictions are for {scored}, ")
    assert message.endswith(
        "; the events end there, and that day was scored 2 times: see whether their source has stopped"
    )
    # events, and nobody who builds features
    load_until(shop, scored + datetime.timedelta(days=9))
    today = features.coverage(tables.connect(shop).read("bronze.events")).today
    assert cause(shop, today).endswith(
        f"events reach {today}, no features were built since, and that day was scored 2 times: "
        "run scoring_job"
    )
    # features, and nobody who scores them
    run(shop, "scoring_job", "feature_engineering", git_sha="only")
    assert cause(shop, today).endswith(
        f"the snapshot of {today} is not scored: see the last run of scoring_job"
    )
    run(shop, "scoring_job", git_sha="both")
    assert cause(shop, today) == ""


def test_a_past_day_is_scored_once_by_the_backfill_of_the_job_and_known_as_such(
    shop: Settings, later: dict
) -> None:
    day = FIRST + datetime.timedelta(days=10)
    given = {"as_of": str(day), "backfill": "true"}
    found = run(shop, "scoring_job", **given)["score_customers"]
    assert (found["feature_date"], found["to_call"], found["control"]) == (str(day), 0, 0)
    store = tables.connect(shop)
    table = store.read("gold.predictions")
    rows = table.filter(table.feature_date == day).to_pandas()
    assert len(rows) == found["customers"] > 0 and rows.backfilled.all()
    version = store.version("gold.predictions")
    again = run(shop, "scoring_job", **given)["score_customers"]
    assert again["customers"] == found["customers"]
    assert store.version("gold.predictions") == version


def test_a_late_event_has_the_snapshots_it_changes_built_again_by_the_next_scoring(
    shop: Settings, later: dict
) -> None:
    store = tables.connect(shop)
    commits = store.history("gold.features").tags
    days = {datetime.date.fromisoformat(tags["feature_date"]) for tags in commits}
    at = pd.Timestamp(FIRST, tz="UTC") - pd.Timedelta(hours=12)
    raw = EVENTS.to_pandas().sort_values("event_ts")
    late = raw.head(1).assign(event_id="late", event_ts=at)
    store.append("bronze.events", ibis.memtable(late, schema=store.read("bronze.events").schema()))
    horizon = datetime.timedelta(days=shop.data.horizon_days)
    today = features.coverage(store.read("bronze.events")).today
    changed = {day for day in days if at.date() < day <= today}
    changed |= {day for day in days if day <= at.date() < day + horizon <= today}
    assert FIRST in changed and FIRST - 2 * horizon not in changed and len(changed) > 2
    run(shop, "scoring_job", git_sha="late")
    commits = store.history("gold.features").tags
    built = [tags["feature_date"] for tags in commits if tags.get("git_sha") == "late"]
    assert sorted(built) == sorted(map(str, changed))
