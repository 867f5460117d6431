"""Deployments that run out of time, are killed or meet an error: what serves, what is Production, what settles it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from databricks.sdk.errors import DatabricksError

from churn_lib import registry, tables
from churn_lib.registry import PRODUCTION, promotion, promotion_log
from churn_lib.serving import deploy as serving
from churn_lib.serving.deploy import DeploymentFailed
from churn_lib.settings import Settings
from tests.serving import serving_store
from tests.serving.workspace import TOKEN, Workspace


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    """Little time, and inference tables that are not what is tested here."""
    changes = {"serving.deploy_timeout_seconds": 1, "serving.inference_table_prefix": ""}
    return serving_store.make(tmp_path).updated(changes)


@pytest.fixture
def workspace(config: Settings) -> Iterator[Workspace]:
    """Version 1 is Production and proven."""
    with Workspace(config) as made:
        at_production(config, 1)
        deploy(made)
        yield made


def at_production(config: Settings, version: int) -> None:
    """Move Production on record, as a promotion does."""
    models, store = registry.connect(config), tables.connect(config)
    seen = promotion_log.read(store, config.model_name)
    versions = {"from_version": models.version_of(PRODUCTION), "to_version": version}
    facts = {"git_sha": "abc", "report_id": None, "reason": "a test needs it"}
    move = promotion.next_move(models, seen, "a test", action="promote", **versions, **facts)
    promotion.move_production(models, store, move, seen)


def production_of(config: Settings) -> int | None:
    return registry.connect(config).version_of(PRODUCTION)


def deploy(workspace: Workspace, **more: Any) -> serving.Deployment:
    config = more.pop("config", workspace.settings)
    stores = registry.connect(config), tables.connect(config)
    client, quiet = workspace.client(), lambda line: None
    return serving.deploy(config, *stores, git_sha="abc", log=quiet, client=client, **more)


def settle(workspace: Workspace, **changes: Any) -> serving.Settlement:
    config = workspace.settings.updated(changes)
    stores = registry.connect(config), tables.connect(config)
    return serving.settle(config, *stores, "abc", lambda line: None, workspace.client())


def last_row(config: Settings) -> dict[str, Any]:
    rows = tables.connect(config).read("gold.deployments").order_by("deployed_at").to_pyarrow()
    return rows.to_pylist()[-1]


STRICT = {"serving.max_endpoint_latency_ms": 0.001}  # nothing is that quick


# --- who may ask -------------------------------------------------------------------------------------------


def test_the_deployer_may_query_what_the_runner_has_made_and_the_runner_still_may(
    workspace: Workspace,
) -> None:
    name = workspace.settings.serving.endpoint_name
    for _ in range(2):
        serving.let_query(workspace.settings, "the-deployer", workspace.client())
    expected = {"the runner": "CAN_MANAGE", "the-deployer": "CAN_QUERY"}
    assert workspace.endpoints[name]["rights"] == expected
    workspace.failing = len(workspace.requests) + 2
    with pytest.raises(
        DeploymentFailed, match="an error of the workspace; grant CAN_QUERY on it by"
    ):
        serving.let_query(workspace.settings, "another", workspace.client())
    assert workspace.endpoints[name]["rights"] == expected


# --- updates that take too long ---------------------------------------------------------------------------


def test_an_update_that_is_never_ready_leaves_the_alias_where_it_was_and_is_settled_later(
    workspace: Workspace,
) -> None:
    config, workspace.ready = workspace.settings, lambda: False
    at_production(config, 2)
    with pytest.raises(DeploymentFailed) as failed:
        deploy(workspace)
    text = str(failed.value)
    assert text.startswith(
        "version 2 is not deployed (Production is version 1 again; the endpoint could not"
    )
    assert "`churn endpoint settle --target local` does that" in text
    assert "waited 1 s for churn-prediction-gbm-2 to be ready" in text
    assert (production_of(config), workspace.traffic()) == (1, {"1": 100})
    with pytest.raises(DeploymentFailed, match=r"Production is version 1, and not settled"):
        settle(workspace)
    assert production_of(config) == 1
    workspace.ready = lambda: True  # the canary takes its share at last
    workspace.settle()
    assert workspace.traffic() == {"1": 90, "2": 10}
    assert settle(workspace).outcome == "deployed"
    assert (production_of(config), workspace.traffic()) == (1, {"1": 100})
    assert settle(workspace).outcome == "proven"


def test_a_share_that_nobody_has_verified_is_nothing_to_go_back_to(workspace: Workspace) -> None:
    """The late canary of version 2, and a version 1 that is slow today."""
    config, workspace.ready = workspace.settings, lambda: False
    at_production(config, 2)
    with pytest.raises(DeploymentFailed):
        deploy(workspace)
    workspace.ready = lambda: True
    with pytest.raises(DeploymentFailed, match="latency: 95 % of single rows within"):
        settle(workspace, **STRICT)
    assert (production_of(config), workspace.traffic()) == (1, {"1": 100})


def test_an_update_that_is_ready_after_the_deadline_is_put_back(workspace: Workspace) -> None:
    """It is ready when the alias is back: so the alias is first, and there is time for the rest."""
    config = workspace.settings
    at_production(config, 2)
    workspace.ready = lambda: production_of(config) == 1
    with pytest.raises(DeploymentFailed) as failed:
        deploy(workspace)
    back = "(Production is version 1 again; the endpoint serves version 1 as before)"
    assert back in str(failed.value)
    assert workspace.traffic() == {"1": 100}
    assert settle(workspace).outcome == "deployed"  # it was put back, and is verified once more


def test_an_update_of_somebody_else_that_does_not_end_takes_the_alias_back_too(
    workspace: Workspace,
) -> None:
    config, workspace.ready = workspace.settings, lambda: False
    entities = [serving.desired_entity(config, number) for number in (1, 2)]
    other = serving.Deployer(workspace.client(), config)
    serving.update_config(other, entities, {str(entities[0].name): 50, str(entities[1].name): 50})
    at_production(config, 2)
    with pytest.raises(DeploymentFailed, match="waited 1 s for the update under way"):
        deploy(workspace)
    assert production_of(config) == 1
    assert last_row(config)["outcome"] == "failed"


def test_an_endpoint_that_is_never_ready_is_removed(config: Settings) -> None:
    with Workspace(config, ready=lambda: False) as workspace:
        at_production(config, 1)
        with pytest.raises(DeploymentFailed, match="the endpoint, made for it, is removed"):
            deploy(workspace)
        assert workspace.endpoints == {}


def test_whichever_question_fails_production_is_what_serves_or_settle_makes_it_so(
    workspace: Workspace,
) -> None:
    config = workspace.settings
    workspace.requests.clear()
    at_production(config, 2)
    deploy(workspace)
    asked = workspace.requests.copy()
    # the first and the last of several that are alike, one after the other
    known = [None, *asked, None]
    questions = [
        n for n, each in enumerate(asked, 1) if {each} != {known[n - 1], each, known[n + 1]}
    ]
    assert len(questions) > 10
    for question in questions:
        workspace.failing = 0
        at_production(config, 1)
        deploy(workspace)
        workspace.requests.clear()
        workspace.failing = question
        at_production(config, 2)
        with pytest.raises((DeploymentFailed, DatabricksError)):
            deploy(workspace)
        assert settle(workspace).version == production_of(config)
        assert workspace.traffic() == {str(production_of(config)): 100}


# --- killed -----------------------------------------------------------------------------------------------


def killed_at(workspace: Workspace, method: str, ending: str, production: int) -> None:
    """Deploy in a process of its own, which is killed at its first such request."""
    config, ended = workspace.settings, threading.Event()
    script = f"""
from churn_lib import registry, tables
from churn_lib.serving import deploy
from churn_lib.settings import load
from databricks.sdk import WorkspaceClient

config = load("local").updated({json.dumps({"serving.deploy_timeout_seconds": 1})})
client = WorkspaceClient(host={workspace.host!r}, token={TOKEN!r}, auth_type="pat")
deploy.deploy(config, registry.connect(config), tables.connect(config), client=client)
"""
    known = {**os.environ, "CHURN_SETTINGS": str(config.root / "settings.ini")}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen([sys.executable, "-c", script], env=known, **quiet)

    def kill(asked: str, path: str) -> None:
        if asked == method and path.endswith(ending) and production_of(config) == production:
            workspace.on_request = lambda method, path: None
            running.send_signal(signal.SIGKILL)
            ended.set()

    workspace.on_request = kill
    assert running.wait(timeout=180) == -signal.SIGKILL and ended.is_set()


def test_a_deployment_killed_in_its_canary_is_finished_by_the_next(workspace: Workspace) -> None:
    config = workspace.settings
    at_production(config, 2)
    killed_at(workspace, "PUT", "/config", production=2)
    assert (production_of(config), workspace.endpoints.keys()) == (
        2,
        {config.serving.endpoint_name},
    )
    done = deploy(workspace)
    assert (done.former_version, done.version, workspace.traffic()) == (1, 2, {"2": 100})


def test_a_deployment_killed_on_its_way_back_is_settled(workspace: Workspace) -> None:
    config, workspace.ready = workspace.settings, lambda: False
    at_production(config, 2)
    killed_at(workspace, "GET", config.serving.endpoint_name, production=1)
    workspace.ready = lambda: True
    settled = settle(workspace)
    assert (settled.outcome, settled.version, workspace.traffic()) == ("deployed", 1, {"1": 100})


# --- what a cancelled run has left ------------------------------------------------------------------------


def test_what_was_moved_and_not_served_is_deployed_and_proven_once(workspace: Workspace) -> None:
    at_production(workspace.settings, 2)
    settled = settle(workspace)
    assert (settled.outcome, settled.version) == ("deployed", 2)
    assert "the endpoint serves version 1 100 %" in settled.sentence
    assert workspace.traffic() == {"2": 100}
    workspace.requests.clear()
    assert settle(workspace).outcome == "proven"
    assert len(workspace.requests) == 1 and workspace.changes() == []


def test_what_was_moved_and_cannot_be_proven_gives_way_to_the_version_before(
    workspace: Workspace,
) -> None:
    config = workspace.settings
    at_production(config, 2)
    settled = settle(workspace, **STRICT)
    assert (settled.outcome, settled.version) == ("rolled back", 1)
    assert "latency: 95 % of single rows within" in settled.sentence
    assert (production_of(config), workspace.traffic()) == (1, {"1": 100})
    newest = promotion.history(registry.connect(config), tables.connect(config))[0]
    assert (newest["action"], newest["from_version"], newest["to_version"]) == ("rollback", 2, 1)


def serve(workspace: Workspace, version: int) -> None:
    """All traffic to a version, and no deployment on record: its run was killed before that."""
    entity = serving.desired_entity(workspace.settings, version)
    changing = serving.Deployer(workspace.client(), workspace.settings)
    serving.update_config(changing, [entity], {str(entity.name): 100})


def test_what_serves_already_was_not_proven_by_that(workspace: Workspace) -> None:
    at_production(workspace.settings, 2)
    serve(workspace, 2)
    assert settle(workspace).outcome == "deployed"
    assert last_row(workspace.settings)["to_version"] == 2


def test_what_serves_and_was_refused_by_the_gate_meanwhile_gives_way(workspace: Workspace) -> None:
    config = workspace.settings
    at_production(config, 2)
    serve(workspace, 2)
    serving_store.judge(config, 2, "FAIL")
    settled = settle(workspace)
    assert (settled.outcome, settled.version) == ("rolled back", 1)
    assert "the gate refused version 2" in settled.sentence
    assert (production_of(config), workspace.traffic()) == (1, {"1": 100})
    assert settle(workspace).outcome == "proven"


def test_a_version_that_came_back_is_not_followed_by_one_before_it(workspace: Workspace) -> None:
    """Version 1 came back and is slow today: it stays, and the run ends."""
    config = workspace.settings
    at_production(config, 2)
    models, store = registry.connect(config), tables.connect(config)
    promotion.rollback(models, store, "a person wants it", "abc")
    moves = len(promotion_log.read(store, config.model_name).moves)
    with pytest.raises(DeploymentFailed, match=r"there is no version to go back to"):
        settle(workspace, **STRICT)
    assert (production_of(config), workspace.traffic()) == (1, {"1": 100})
    assert len(promotion_log.read(store, config.model_name).moves) == moves


def test_a_move_that_was_half_done_is_finished_first(workspace: Workspace) -> None:
    config = workspace.settings
    models, store = registry.connect(config), tables.connect(config)
    seen = promotion_log.read(store, config.model_name)
    facts = {"git_sha": "abc", "report_id": None, "reason": "killed before the alias was moved"}
    versions = {"from_version": 1, "to_version": 2}
    move = promotion.next_move(models, seen, "a test", action="copy", **versions, **facts)
    promotion_log.append(store, seen, move)
    assert (settle(workspace).version, workspace.traffic()) == (2, {"2": 100})


def test_where_no_endpoint_is_the_version_gets_one(config: Settings) -> None:
    with Workspace(config) as workspace:
        assert settle(workspace).outcome == "empty"
        at_production(config, 1)
        assert settle(workspace).outcome == "deployed"
        assert workspace.traffic() == {"1": 100}
