"""A version goes from one workspace into the other with its files, and nothing of its run."""

import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from churn_lib import registry, tables
from churn_lib import settings as settings_module
from churn_lib.features import FEATURES
from churn_lib.registry import copy, evidence, promotion
from churn_lib.registry.evidence import VersionChanged
from churn_lib.settings import Settings
from churn_lib.testing import customer_rows, fitted_model
from tests.registry.test_promotion import COMPLETE, NEWEST, ROOT, judged, promote
from tests.shared import PROCESSES
from tests.workspaces import Workspace
from tests.workspaces.service import MLFLOW

Both = tuple[Workspace, Workspace]
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@pytest.fixture
def targets(tmp_path: Path) -> tuple[Settings, Settings]:
    """Staging and production of a model that no other test has."""
    name = f"ml.model_{uuid.uuid4().hex[:8]}"
    return tuple(  # type: ignore[return-value]
        settings_module.load(target, ROOT / "settings.ini").model_copy(
            update={"store": tmp_path / "store", "model_name": f"churn_{target}.{name}"}
        )
        for target in ("staging", "production")
    )


def judged_version(config: Settings, champion: int | None = None, **tags: str) -> int:
    """Train, register and promote a version where one is signed in."""
    models, store = registry.connect(config), tables.connect(config)
    registry.use_experiment(config)
    rows = customer_rows(200, seed=champion or 0)
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            fitted_model(rows),
            name="churn-gbm",
            signature=infer_signature(rows[FEATURES], [0.5] * len(rows)),
            pip_requirements=[],
        )
    known = {"horizon_days": "90", "holdout_share": "0.2", "decision_threshold": "0.4", **tags}
    number = models.register(logged.model_uri, known)
    models.describe(number, "# a card")
    labelled = ibis.memtable({"churned": [0, 1], "in_holdout_bucket": [True, True]})
    store.overwrite("gold.features", labelled.mutate(feature_date=ibis.literal(NEWEST)))
    report = json.dumps({**COMPLETE, **evidence.judged_parts(models, number)})
    run_id = models.version(number).run_id
    judged(store, config.model_name, number, champion, report=report, run_id=run_id)
    evidence.write_answers(
        store,
        evidence.latest_report(models, store, number)["report_id"],  # type: ignore[index]
        config.model_name,
        number,
        rows.assign(customer_id=[str(n) for n in range(len(rows))], feature_date=NEWEST),
        models.load(number).predict(rows[FEATURES]),
    )
    assert promote(config, number).state == "PROMOTED"
    return number


@pytest.fixture
def staged(workspaces: Both, targets: tuple[Settings, Settings]) -> tuple[Settings, Settings]:
    """Version 1 of staging was judged there and serves."""
    with workspaces[0].signed_in():
        judged_version(targets[0], data_sample="none", approval="approved", approved_by="ann")
    return targets


@pytest.fixture
def in_production(workspaces: Both, staged: Any) -> Iterator[Workspace]:
    with workspaces[1].signed_in() as production:
        yield production


def test_the_copy_has_the_files_and_the_evidence_and_nothing_of_the_run(
    staged: tuple[Settings, Settings], in_production: Workspace
) -> None:
    origin, destination = staged
    assert copy.copy(origin, destination, "abc", by="cd").state == "PROMOTED"
    assert copy.copy(origin, destination, "abc", by="cd").state == "KEPT"
    known = in_production.metastore.models
    theirs = known[origin.model_name].versions[1]
    (ours,) = known[destination.model_name].versions.values()
    assert known[destination.model_name].aliases == {"Production": 1}
    assert (ours.status, ours.run_id, ours.model_id, ours.workspace_id) == ("READY", "", "", "")
    assert ours.description == "# a card"
    assert ours.tags["copied_from"] == ours.source == f"models:/{origin.model_name}/1"
    assert ours.tags["data_sample"] == "none" and "approved_by" not in ours.tags
    files = in_production.metastore.files(destination.model_name, 1)
    text = (files / "MLmodel").read_text()
    assert theirs.model_id and theirs.run_id
    assert theirs.model_id not in text and theirs.run_id not in text
    models, store = registry.connect(destination), tables.connect(destination)
    row = evidence.latest_report(models, store, 1)
    assert row is not None and not evidence.doubt(models, row, evidence.all_reports(store))
    assert evidence.changes(models, 1, json.loads(row["report"])) == []
    recorded = evidence.recorded_answers(models, store, 1)
    assert recorded is not None and len(recorded) == 200
    evidence.refuse_changed_answers(models, store, 1, models.load(1).predict)
    assert list(registry.inputs_of(models, 1)) == FEATURES
    assert promotion.history(models, store)[0]["evidence"]["verdict"] == "PASS"


def test_mlflows_own_copy_still_fails_here(
    staged: tuple[Settings, Settings], in_production: Workspace
) -> None:
    """When it no longer does, the files need not go the long way."""
    origin, destination = staged
    client = registry.connect(destination).client
    with pytest.raises(MlflowException, match="not found"):
        client.copy_model_version(f"models:/{origin.model_name}/1", destination.model_name)


def test_the_other_workspaces_version_is_loaded_and_asked_for_its_inputs(
    staged: tuple[Settings, Settings], in_production: Workspace
) -> None:
    theirs = registry.connect(staged[0])
    assert list(registry.inputs_of(theirs, 1)) == FEATURES
    assert len(theirs.load(1).predict(customer_rows(3)[FEATURES])) == 3


def test_files_that_are_no_longer_those_that_were_judged_do_not_leave(
    staged: tuple[Settings, Settings], in_production: Workspace
) -> None:
    origin, destination = staged
    files = in_production.metastore.files(origin.model_name, 1)
    (files / "requirements.txt").write_text("something-else")
    with pytest.raises(VersionChanged, match=r"requirements\.txt differs"):
        copy.copy(origin, destination, "abc")
    assert destination.model_name not in in_production.metastore.models


def test_files_that_arrive_otherwise_serve_nobody(
    staged: tuple[Settings, Settings], in_production: Workspace
) -> None:
    origin, destination = staged

    def spoil(method: str, path: str, given: dict[str, Any]) -> None:
        if path.endswith("/finalize"):
            files = in_production.metastore.files(destination.model_name, 1)
            (files / "model.pkl").write_bytes(b"half")

    in_production.before.append(spoil)
    try:
        with pytest.raises(VersionChanged, match=r"model\.pkl differs"):
            copy.copy(origin, destination, "abc")
    finally:
        in_production.before.remove(spoil)
    assert in_production.metastore.models[destination.model_name].aliases == {}


def test_the_next_version_follows_the_first(
    workspaces: Both, staged: tuple[Settings, Settings]
) -> None:
    staging, production = workspaces
    origin, destination = staged
    with production.signed_in():
        assert copy.copy(origin, destination, "abc").state == "PROMOTED"
    with staging.signed_in():
        judged_version(origin, champion=1)
    with production.signed_in():
        assert copy.copy(origin, destination, "abc").state == "PROMOTED"
        models, store = registry.connect(destination), tables.connect(destination)
        assert models.aliases() == {"Production": 2, "Previous": 1}
        promotion.rollback(models, store, "too slow", "abc")
        assert models.aliases() == {"Production": 1, "Previous": 2}


def move(
    environment: dict[str, str], origin: Settings, destination: Settings, signal_to: Any
) -> None:
    """What the promotion job does, in a process of its own."""
    os.environ.update(environment)
    signal_to.send(os.getpid())
    copy.copy(origin, destination, "abc", by="cd")


class Killer:
    """Kills a process at one of its writes: before it is done, or when it is, before the answer."""

    def __init__(self, at: int):
        self.at, self.done, self.pid = at, 0, 0

    def __call__(self, method: str, path: str, given: dict[str, Any]) -> None:
        if method not in WRITES or path.endswith(("emit-lineage", "create-download-url")):
            return
        self.done += 1
        if self.done == self.at:
            os.kill(self.pid, signal.SIGKILL)


def run_killed(where: Workspace, hooks: list[Any], at: int, both: tuple[Settings, Settings]) -> int:
    """Exit code of a copy that is killed at a write."""
    killer, (ours, theirs) = Killer(at), PROCESSES.Pipe()
    process = PROCESSES.Process(target=move, args=(where.environment(), *both, theirs))
    process.start()
    killer.pid = ours.recv()
    hooks.append(killer)
    process.join()
    hooks.remove(killer)
    return int(process.exitcode or 0)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_copy_killed_at_any_write_is_whole_after_a_rerun(
    staged: tuple[Settings, Settings], in_production: Workspace, when: str
) -> None:
    """One copy, whole, with one report and one move, whatever the moment."""
    origin, destination = staged
    metastore = in_production.metastore
    for at in range(1, 40):
        name = f"{destination.model_name}_{when}_{at}"
        store = {"catalog": f"production_{when}_{at}", "model_name": name}
        here = destination.model_copy(update=store)
        ended = run_killed(in_production, getattr(in_production, when), at, (origin, here))
        model = metastore.models.get(name)
        if model and model.aliases:  # a version that serves is whole
            assert model.versions[model.aliases["Production"]].status == "READY"
        state = copy.copy(origin, here, "abc", by="cd").state
        assert state in ("PROMOTED", "KEPT")
        model = metastore.models[name]
        (number,) = model.versions
        assert model.aliases == {"Production": number}
        models, there = registry.connect(here), tables.connect(here)
        assert len(evidence.reports_of(models, number, evidence.all_reports(there))) == 1
        assert [entry["action"] for entry in promotion.history(models, there)] == ["copy"]
        if ended == 0:
            assert at > 10, "a copy of fewer writes than there should be"
            return
        assert ended == -signal.SIGKILL
    pytest.fail("the copy never came to its end")


def test_nothing_of_production_reaches_the_tracking_server_of_staging(
    workspaces: Both, staged: tuple[Settings, Settings], in_production: Workspace
) -> None:
    staging, _ = workspaces
    before = len(staging.requests), len(in_production.requests)
    copy.copy(*staged, "abc")
    assert staging.requests[before[0] :] == []
    asked = [path for _, path in in_production.requests[before[1] :]]
    assert asked and not [path for path in asked if path.startswith(f"{MLFLOW}runs")]
