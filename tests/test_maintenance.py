"""What goes after its time, what never goes, and what a killed maintenance leaves."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ibis
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_lib import maintenance, registry, settings, tables, testing
from churn_lib.features import FEATURES, LABEL, snapshots
from churn_lib.maintenance import Upkeep, days_ago, maintain
from churn_lib.monitoring import alerts
from churn_lib.registry import Registry, RegistryError, chain, evidence, promotion, promotion_log
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables
from tests.checkouts import ROOT

LATER = 2_000  # days after everything was made
TODAY = testing.TODAY


def ago(days: int) -> datetime.datetime:
    """As if LATER days had gone by."""
    return days_ago(days - LATER)


def settings_of(folder: Path, **keep: int) -> Settings:
    """Settings of a store in `folder`; what is named is kept for so long."""
    if not (folder / "settings.ini").exists():
        (folder / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    config = settings.load("local", folder / "settings.ini")
    changes: dict[str, Any] = {f"keep.{key}": value for key, value in keep.items()}
    return config.updated({"data.snapshots": 2, "monitoring.granularity": "1 day", **changes})


def open_store(config: Settings) -> tuple[DeltaTables, Registry]:
    """Its tables and its registry."""
    found = tables.connect(config)
    assert isinstance(found, DeltaTables)
    return found, registry.connect(config)


def add_version(store: DeltaTables, models: Registry, number: int, passed: bool) -> None:
    """A version with a run, tags, a gate report and the answers of its judgement."""
    tags = {name: str(number) for name in registry.models.TABLE_VERSIONS}
    tags["delta_feature_version"] = str(min(number, store.version(snapshots.TABLE)))
    tags |= {"delta_bronze_events_version": "0", "delta_bronze_customers_version": "0"}
    assert testing.register_version(models, testing.fitted_model(), tags) == number
    mlflow.MlflowClient().log_text(models.version(number).run_id, "rows", "training_rows.txt")
    row = {
        "report_id": f"report-{number}",
        "created_at": datetime.datetime.now(datetime.UTC),
        "model_name": models.model_name,
        "model_version": number,
        "verdict": "PASS" if passed else "FAIL",
        "run_id": models.version(number).run_id,
        "report": json.dumps({"checks": []}),
    }
    evidence.append_report(models, store, row)
    holdout = testing.customer_rows(5, seed=number)[FEATURES]
    holdout = holdout.assign(customer_id=list("abcde"), feature_date=TODAY, **{LABEL: np.zeros(5)})
    answers = np.full(5, 0.5)
    evidence.write_answers(store, f"report-{number}", models.model_name, number, holdout, answers)


def promote(store: DeltaTables, models: Registry, number: int) -> None:
    """To Production, with its line in the promotion log."""
    seen = promotion_log.read(store, models.model_name)
    before = models.version_of(registry.PRODUCTION)
    facts = {"git_sha": "abc", "report_id": f"report-{number}", "reason": "passed the gate"}
    versions = {"from_version": before, "to_version": number}
    move = promotion.next_move(models, seen, "test", action="promote", **versions, **facts)
    promotion.move_production(models, store, move, seen, None)


def add_days(store: DeltaTables, config: Settings) -> None:
    """Predictions, metrics, requests and reports of 900 days, one of each fifty."""
    days = [TODAY - datetime.timedelta(days=each) for each in range(0, 900, 50)]
    for day in days:
        rows = pd.DataFrame({"customer_id": ["a", "b"], "model_name": config.model_name})
        made = ibis.memtable(rows.assign(model_version=1)).mutate(feature_date=ibis.literal(day))
        partition = {"feature_date": day, "model_version": 1}
        tags = {"feature_date": str(day), "delta_feature_version": "1"}
        store.overwrite("gold.predictions", made, partition, tags)
        row = ibis.memtable(pd.DataFrame({"column_name": [":table"]}))
        metrics = row.mutate(window_date=ibis.literal(day))
        for name in ("gold.profile_metrics", "gold.drift_metrics", "gold.column_checks"):
            store.overwrite(name, metrics, {"window_date": day})
    asked = pd.DataFrame({"request_date": [days_ago(0).date()] * 3, "request": "{}"})
    store.append("gold.churn_prediction_payload", ibis.memtable(asked))
    refused = pd.DataFrame({"rejected_at": [days_ago(0)], "row": "{}"})
    store.append("bronze.rejected", ibis.memtable(refused))


def add_report(config: Settings, job: str, days: int, *succeeded: str) -> Path:
    """The folder of a run that began so many days before now."""
    stamp = days_ago(days).strftime("%Y%m%d-%H%M%S-%f")
    folder = config.store / "runs" / job / f"{stamp}-abcdef"
    folder.mkdir(parents=True)
    tasks = [{"task_key": key, "state": "SUCCESS"} for key in succeeded]
    (folder / "run.json").write_text(json.dumps({"tasks": tasks}))
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six versions: 1 to 4 were at Production, 5 was refused, 6 is at Staging; trials beside."""
    folder = tmp_path_factory.mktemp("template")
    config = settings_of(folder)
    shop = testing.shop_tables(config, customers=150)
    assert isinstance(shop, DeltaTables)
    models = registry.connect(config)
    for number in range(1, 7):
        add_version(shop, models, number, number != 5)
        if number <= 4:
            promote(shop, models, number)
    models.set_alias(registry.STAGING, 6)
    for name in ("experiment", "trial"):
        with mlflow.start_run(tags={name: "1"}):
            mlflow.log_text("an idea", "idea.txt")
    add_days(shop, config)
    for days in (10, 5, 1):
        add_report(config, "scoring_job", days, "score_customers")
    return folder


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    """A copy of the store, which follows where it is."""
    shutil.copytree(template, tmp_path / "copy")
    return tmp_path / "copy"


SHORT = {
    "predictions_days": 30,
    "snapshots_days": 30,
    "monitoring_days": 30,
    "requests_days": 30,
    "gate_answers_days": 30,
    "rejected_days": 30,
    "table_versions_days": 30,
    "versions_days": 30,
    "rollback_versions": 2,
    "runs_days": 30,
    "trials_days": 30,
    "reports_days": 30,
}


def by_kind(found: list[maintenance.Removal]) -> dict[str, tuple[int, int]]:
    """What was removed and what was kept."""
    return {each.what: (each.removed, each.kept) for each in found}


def state(config: Settings) -> dict[str, Any]:
    """All that a reader can see of a store."""
    store, models = open_store(config)
    rows = {name: store.read(name).count().to_pyarrow().as_py() for name in store.names()}
    runs = {run.info.run_id for run in maintenance._runs(Upkeep(config, store, models))}
    artifacts = config.store / "mlartifacts"
    return {
        "rows": rows,
        "versions": models.numbers(),
        "runs": runs,
        "artifacts": sorted(str(p.relative_to(artifacts)) for p in artifacts.rglob("*.*")),
        "reports": sorted(path.name for path in config.store.glob("runs/*/*")),
        "moves": len(promotion_log.read(store, models.model_name).moves),
    }


def test_the_shipped_settings_remove_nothing_of_a_young_store(place: Path) -> None:
    config = settings_of(place)
    store, models = open_store(config)
    before = state(config)
    found = by_kind(maintain(config, store, models))
    assert {what for what, (gone, _) in found.items() if gone} <= {
        "predictions",
        "monitoring",
        "table files",
    }
    assert found["predictions"][1] == 18  # of 400 days
    assert {**state(config), "rows": None} == {**before, "rows": None}


def test_a_dry_run_says_what_goes_and_removes_nothing(place: Path) -> None:
    config = settings_of(place, **SHORT)
    store, models = open_store(config)
    before, files = state(config), sorted(place.rglob("*"))
    planned = by_kind(maintain(config, store, models, dry_run=True, ago=ago))
    assert state(config) == before and sorted(place.rglob("*")) == files
    done = by_kind(maintain(config, store, models, ago=ago))
    for what in ("versions", "runs", "trials", "gate answers", "predictions", "reports"):
        assert planned[what] == done[what], what
    assert done["versions"] == (3, 3) and done["trials"] == (2, 0)


def test_versions_with_an_alias_or_a_way_back_stay_and_can_be_loaded(place: Path) -> None:
    config = settings_of(place, **SHORT)
    store, models = open_store(config)
    models.tag(5, {"approval": promotion.PENDING})
    address = f"models:/{models.model_name}"
    where = mlflow.artifacts.download_artifacts
    files = {number: Path(where(f"{address}/{number}")) for number in (1, 2, 4)}
    found = {each.what: each for each in maintain(config, store, models, ago=ago)}
    # 4 at Production, 3 Previous and the last but one, 5 waits, 6 at Staging
    assert models.numbers() == [3, 4, 5, 6]
    assert "5 waits for its approval" in found["versions"].why
    for number in models.numbers():
        assert len(models.load(number).predict(testing.customer_rows(3)[FEATURES])) == 3
        assert models.client.list_artifacts(models.version(number).run_id)
        held = int(models.version(number).tags["delta_feature_version"])
        assert store.read(snapshots.TABLE, held).count().to_pyarrow().as_py() > 0
    assert files[4].exists() and not files[1].exists() and not files[2].exists()
    with pytest.raises(RegistryError, match="files and those of its run were removed after keep"):
        models.version(1)
    with pytest.raises(RegistryError, match="has no version 99; `churn models` lists them"):
        models.version(99)
    assert chain.verify(models, store).intact
    story = promotion.history(models, store)
    assert [move["to_version"] for move in story] == [4, 3, 2, 1]
    assert all(move["evidence"]["verdict"] == "PASS" for move in story)


def test_a_rollback_to_a_version_that_went_names_those_that_are_there(place: Path) -> None:
    config = settings_of(place, **SHORT)
    store, models = open_store(config)
    maintain(config, store, models, ago=ago)
    with pytest.raises(
        promotion.PromotionRefused, match=r"version 1 was deleted: name another .*3"
    ):
        promotion.rollback(models, store, "too many calls", "abc", to=1)
    assert promotion.rollback(models, store, "too many calls", "abc").to_version == 3


def test_a_run_that_another_model_came_from_stays(place: Path) -> None:
    config = settings_of(place, **SHORT)
    store, models = open_store(config)
    text = (place / "settings.ini").read_text()
    other = "churn_production.ml.churn_prediction_gbm"
    assert f"model_name = {other}" in text
    models.client.create_registered_model(other)
    models.copy(1, Registry(other))
    run_id = models.version(1).run_id
    maintain(config, store, models, ago=ago)
    assert 1 not in models.numbers()
    assert models.client.list_artifacts(run_id)
    assert Registry(other).load(1) is not None


def test_labels_to_come_and_open_alerts_keep_their_days(place: Path) -> None:
    config = settings_of(place, **SHORT)
    store, models = open_store(config)

    def first() -> datetime.date:
        return store.read("gold.predictions").feature_date.min().to_pyarrow().as_py()

    old = TODAY - datetime.timedelta(days=400)
    signal = alerts.Signal("drift", (True, True), (old, old), "a column has moved")
    alerts.update(store, [signal], models.model_name, 4, 2, 3)
    why = {each.what: each.why for each in maintain(config, store, models, ago=ago)}
    assert why["predictions"] == f"alert drift-v4-{old} is open"
    assert first() == old
    quiet = alerts.Signal("drift", (False, False), (old, old), "")
    alerts.update(store, [quiet], models.model_name, 4, 2, 3)
    why = {each.what: each.why for each in maintain(config, store, models, ago=ago)}
    assert why["predictions"] == "labels are still to come"
    assert TODAY - datetime.timedelta(days=100) <= first() <= TODAY - datetime.timedelta(days=50)
    metrics = store.read("gold.profile_metrics").window_date.min().to_pyarrow().as_py()
    assert metrics == first()  # else the windows would be computed again


def test_a_snapshot_that_went_is_built_again_when_it_is_asked_for(place: Path) -> None:
    config = settings_of(place, **SHORT).updated({"data.horizon_days": 30})
    store, models = open_store(config)
    for number in models.numbers():
        models.tag(number, {"horizon_days": "30"})
    days = store.read(snapshots.TABLE).feature_date.to_pyarrow().to_pylist()
    oldest, bronze = min(days), {"bronze.events": 0, "bronze.customers": 0}
    rows = days.count(oldest)
    maintain(config, store, models, ago=ago)
    features = store.read(snapshots.TABLE)
    assert features.filter(features.feature_date == oldest).count().to_pyarrow().as_py() == 0
    (built,) = snapshots.build(store, bronze, [oldest], TODAY, config)
    assert built.built
    features = store.read(snapshots.TABLE)
    assert features.filter(features.feature_date == oldest).count().to_pyarrow().as_py() == rows


def test_the_last_success_of_each_task_keeps_its_report(place: Path) -> None:
    config = settings_of(place, **SHORT)
    first = add_report(config, "training_job", 20, "train_and_register", "feature_engineering")
    add_report(config, "training_job", 15, "feature_engineering")
    add_report(config, "training_job", 12)
    (config.store / "runs" / "mine").mkdir()
    (config.store / "runs" / "mine" / "notes").mkdir()
    maintain(config, *open_store(config), ago=ago)
    left = [path.name for path in sorted(config.store.glob("runs/training_job/*"))]
    assert len(left) == 2 and left[0] == first.name
    assert len(list(config.store.glob("runs/scoring_job/*"))) == 1
    assert (config.store / "runs" / "mine" / "notes").exists()


def test_runs_that_somebody_deleted_and_other_models_of_the_catalog_stay(place: Path) -> None:
    config = settings_of(place, **SHORT)
    store, models = open_store(config)
    with mlflow.start_run() as run:
        mlflow.log_text("mine", "mine.txt")
    models.client.delete_run(run.info.run_id)
    mine = pd.DataFrame({"customer_id": ["a"], "model_name": "another", "model_version": 1})
    old = TODAY - datetime.timedelta(days=800)
    day = ibis.memtable(mine).mutate(feature_date=ibis.literal(old))
    store.overwrite("gold.predictions", day, {"feature_date": old, "model_version": 1})
    maintain(config, store, models, ago=ago)
    models.client.restore_run(run.info.run_id)
    assert models.client.list_artifacts(run.info.run_id)[0].path == "mine.txt"
    rows = store.read("gold.predictions")
    assert rows.filter(rows.model_name == "another").count().to_pyarrow().as_py() == 1


def test_a_second_maintenance_finds_nothing_to_do_and_writes_nothing(place: Path) -> None:
    config = settings_of(place, **SHORT)
    store, models = open_store(config)
    maintain(config, store, models, ago=ago)
    versions = {name: store.version(name) for name in store.names()}
    again = maintain(config, store, models, ago=ago)
    assert not any(each.removed for each in again)
    assert {name: store.version(name) for name in store.names()} == versions


def test_a_long_log_of_the_server_loses_its_beginning(place: Path) -> None:
    config = settings_of(place, server_log_mb=1)
    log = config.store / "serving" / "server.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("".join(f"line {number:>90}\n" for number in range(20_000)))
    with log.open("a") as server:  # which goes on writing
        maintain(config, *open_store(config))
        server.write("the newest line\n")
    lines = log.read_text().splitlines()
    assert len(lines) == 10_001 and lines[-1] == "the newest line" and lines[-2].endswith("19999")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests import test_maintenance as here
from churn_lib import maintenance
from churn_lib.tables import DeltaTables
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
import shutil
left = int(sys.argv[2])
def counted(owner, name):
    whole = getattr(owner, name)
    def step(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **named)
    setattr(owner, name, step)
for owner, names in (
    (DeltaTables, ("delete", "overwrite", "compact", "retain")),
    (MlflowClient, ("set_tag", "delete_run", "delete_logged_model", "delete_model_version")),
    (SqlAlchemyStore, ("_hard_delete_run", "_hard_delete_logged_model")),
    (maintenance, ("_remove_files",)),
    (Path, ("unlink",)),
    (shutil, ("rmtree",)),
):
    for name in names:
        counted(owner, name)
config = here.settings_of(Path(sys.argv[1]), **here.SHORT)
maintenance.maintain(config, *here.open_store(config), ago=here.ago)
"""


def killed_at(folder: Path, step: int) -> bool:
    """Maintain in a process that is killed before its step of that number; False: it had fewer."""
    code = KILLED.format(root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(step)], capture_output=True, text=True
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


def test_a_maintenance_that_is_killed_at_any_step_ends_right_the_next_time(
    template: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(template, whole)
    maintain(settings_of(whole, **SHORT), *open_store(settings_of(whole, **SHORT)), ago=ago)
    expected = state(settings_of(whole, **SHORT))
    step, stops = 1, 0
    folder = tmp_path / "killed"
    shutil.copytree(template, folder)
    config = settings_of(folder, **SHORT)
    while killed_at(folder, step):  # goes on where the one before was killed
        stops += 1
        step += stops
        store, models = open_store(config)
        for number in (3, 4, 6):
            assert models.load(number) is not None
        assert chain.verify(models, store).intact
    assert stops >= 4
    found = maintain(config, store, models, ago=ago)
    assert not any(each.removed for each in found if each.what != "table files")
    assert state(config) == expected


def test_predictions_and_snapshots_are_written_while_maintenance_is_at_work(place: Path) -> None:
    config = settings_of(place, **SHORT)
    store, models = open_store(config)
    problems: list[BaseException] = []
    days = [TODAY + datetime.timedelta(days=each) for each in range(1, 16)]

    def write() -> None:
        try:
            mine = tables.connect(config)
            for day in days:
                rows = ibis.memtable(pa.table({"customer_id": ["a", "b"]}))
                made = rows.mutate(
                    model_name=ibis.literal(config.model_name),
                    model_version=ibis.literal(1),
                    feature_date=ibis.literal(day),
                )
                partition = {"feature_date": day, "model_version": 1}
                mine.overwrite("gold.predictions", made, partition, {"feature_date": str(day)})
                list(
                    snapshots.build(
                        mine, {"bronze.events": 0, "bronze.customers": 0}, [day], day, config
                    )
                )
        except BaseException as error:
            problems.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        maintain(config, store, models, ago=ago)
    writer.join()
    assert not problems
    for name in ("gold.predictions", snapshots.TABLE):
        there = set(store.read(name).feature_date.to_pyarrow().to_pylist())
        assert set(days) <= there, name


def test_the_command_and_the_job_answer_with_what_went(place: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CHURN_", "MLFLOW_"))}
    kept["CHURN_SETTINGS"] = str(place / "settings.ini")
    churn = str(Path(sys.executable).parent / "churn")

    def answer(*arguments: str) -> dict:
        command = [churn, *arguments, "--json"]
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    planned = {each["what"]: each for each in answer("maintain", "--dry-run")["removed"]}
    assert planned["predictions"]["removed"] == 18 and planned["versions"]["kept"] == 6
    (task,) = answer("run", "maintenance_job", "--param", "git_sha=abc")["tasks"]
    assert task["state"] == "SUCCESS" and task["values"]["removed"]["predictions"] == 18
    again = {each["what"]: each for each in answer("maintain")["removed"]}
    assert again["predictions"]["removed"] == 0 and again["predictions"]["kept"] == 18
    assert asdict(maintenance.Removal(**planned["versions"])) == planned["versions"]
