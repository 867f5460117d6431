"""Deployments: what they verify, what they put back, and what the commands say and exit with."""

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.service.serving import Route, TrafficConfig

from churn_lib import registry, tables
from churn_lib.registry import PRODUCTION, STAGING, promotion, promotion_log
from churn_lib.registry.promotion import PromotionRefused
from churn_lib.serving import deploy as deployer
from churn_lib.serving import deploy as serving
from churn_lib.serving.deploy import DeploymentFailed, DeploymentRefused
from churn_lib.serving.local import process
from churn_lib.settings import Settings
from tests.serving import serving_store
from tests.shared import warm_churn


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    config = serving_store.make(tmp_path_factory.mktemp("deployed ü '%#?{}"))
    with serving_store.ended(config):
        yield config


@pytest.fixture
def served(store: Settings) -> Settings:
    """Version 1 at Production and behind the endpoint."""
    at_production(store, 1)
    deploy(store)
    return store


def at_production(config: Settings, version: int) -> None:
    """Move Production on record, whatever a test before has left."""
    models, store = registry.connect(config), tables.connect(config)
    if models.version_of(PRODUCTION) != version:
        promotion.rollback(models, store, "a test needs it", "abc", to=version, force=True)


def deploy(config: Settings, **more: Any) -> serving.Deployment:
    models, store = registry.connect(config), tables.connect(config)
    return serving.deploy(config, models, store, git_sha="abc", log=lambda line: None, **more)


def client_of(config: Settings) -> WorkspaceClient:
    return deployer.connect(config)


def traffic(config: Settings) -> dict[str, int]:
    routes = (
        client_of(config).serving_endpoints.get(config.serving.endpoint_name).config.traffic_config
    )
    return {route.served_model_name: route.traffic_percentage for route in routes.routes}


def last_record(config: Settings) -> dict:
    rows = tables.connect(config).read("gold.deployments").order_by("deployed_at").to_pandas()
    return rows.iloc[-1].to_dict()


def churn(config: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CHURN_SETTINGS": str(config.root / "settings.ini")}
    return warm_churn(*arguments, environment=environment)


def test_a_new_version_takes_over_and_deploying_it_again_changes_nothing(served: Settings) -> None:
    at_production(served, 2)
    done = deploy(served)
    assert (done.former_version, done.version, done.outcome) == (1, 2, "updated")
    assert traffic(served) == {"churn-prediction-gbm-2": 100}
    version = (
        client_of(served).serving_endpoints.get(served.serving.endpoint_name).config.config_version
    )
    again = deploy(served)
    assert str(again).endswith("version 2 already: nothing to change.")
    found = client_of(served).serving_endpoints.get(served.serving.endpoint_name)
    assert found.config.config_version == version


def test_another_secret_is_taken_and_one_that_is_named_no_more_is_given_up(
    served: Settings,
) -> None:
    at_production(served, 2)
    deploy(served)
    for secrets in ("KEY={{secrets/churn/key}}", "KEY={{secrets/churn/key-2}}", ""):
        changed = served.updated({"serving.secrets": secrets})
        assert deploy(changed).outcome == "updated"
        assert deploy(changed).outcome == "unchanged"
        found = client_of(served).serving_endpoints.get(served.serving.endpoint_name)
        (entity,) = found.config.served_entities
        expected = {"KEY": secrets.removeprefix("KEY=")} if secrets else {}
        assert (entity.environment_vars or {}) == expected


def test_a_version_that_cannot_be_loaded_leaves_endpoint_and_alias_as_they_were(
    served: Settings,
) -> None:
    models = registry.connect(served)
    at_production(served, 3)
    with pytest.raises(DeploymentFailed, match=r"model\.pkl"):
        deploy(served)
    assert models.version_of(PRODUCTION) == 1
    assert traffic(served) == {"churn-prediction-gbm-1": 100}
    record = last_record(served)
    assert (record["outcome"], record["from_version"], record["to_version"]) == ("failed", 1, 3)


def test_a_failed_smoke_test_in_the_canary_puts_everything_back(served: Settings) -> None:
    models = registry.connect(served)
    at_production(served, 2)
    strict = served.updated({"serving.max_endpoint_latency_ms": 0.001})
    with pytest.raises(DeploymentFailed, match="latency: 95 % of single rows within"):
        deploy(strict)
    assert models.version_of(PRODUCTION) == 1
    assert traffic(served) == {"churn-prediction-gbm-1": 100}


def test_a_failed_deployment_is_in_the_history_and_leaves_the_inference_table_alone(
    served: Settings,
) -> None:
    before = client_of(served).serving_endpoints.get(served.serving.endpoint_name).ai_gateway
    models, store = registry.connect(served), tables.connect(served)
    at_production(served, 2)
    changes = {"serving.inference_table_prefix": "other", "serving.max_endpoint_latency_ms": 0.001}
    with pytest.raises(DeploymentFailed, match="Production is version 1 again"):
        deploy(served.updated(changes))
    assert (
        client_of(served).serving_endpoints.get(served.serving.endpoint_name).ai_gateway == before
    )
    newest = promotion.history(models, store)[0]
    assert (newest["action"], newest["from_version"], newest["to_version"]) == ("rollback", 2, 1)
    assert "its deployment failed" in newest["reason"]


def test_two_deployments_at_once_to_a_server_that_is_down_end_at_the_version(
    served: Settings,
) -> None:
    at_production(served, 2)
    process.stop(served)
    with ThreadPoolExecutor(2) as pool:
        done = [each.result() for each in [pool.submit(deploy, served) for _ in range(2)]]
    assert sorted(each.outcome for each in done) == ["unchanged", "updated"]
    assert traffic(served) == {"churn-prediction-gbm-2": 100}


def test_an_endpoint_that_answers_otherwise_than_the_registry_fails(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = registry.connect(served)
    at_production(served, 2)
    first = models.load(1)
    monkeypatch.setattr(registry.Registry, "load", lambda self, number: first)
    with pytest.raises(DeploymentFailed, match="0 of 50 holdout rows answered"):
        deploy(served)
    assert models.version_of(PRODUCTION) == 1


def test_a_deployment_killed_in_its_canary_is_finished_by_the_next(served: Settings) -> None:
    entities = [deployer.desired_entity(served, number) for number in (1, 2)]
    shares = zip(entities, (90, 10), strict=True)
    routes = [Route(served_model_name=each.name, traffic_percentage=n) for each, n in shares]
    client_of(served).serving_endpoints.update_config_and_wait(
        served.serving.endpoint_name,
        served_entities=entities,
        traffic_config=TrafficConfig(routes=routes),
    )
    at_production(served, 2)
    done = deploy(served)
    assert (done.former_version, done.version) == (1, 2)
    assert traffic(served) == {"churn-prediction-gbm-2": 100}


def test_the_first_deployment_that_fails_leaves_no_endpoint(store: Settings) -> None:
    fresh = store.updated(
        {"serving.endpoint_name": "fresh", "serving.max_endpoint_latency_ms": 0.001}
    )
    at_production(store, 1)
    with pytest.raises(DeploymentFailed, match="the endpoint, made for it, is removed"):
        deploy(fresh)
    assert deployer.Deployer(client_of(store), fresh).find() is None


def test_a_wait_that_ends_says_what_was_awaited_and_shows_the_build_log(served: Settings) -> None:
    at_production(served, 2)
    hurried = served.updated({"serving.deploy_timeout_seconds": 1, "serving.endpoint_name": "slow"})
    client = client_of(served)
    waiting = deployer.Deployer(client, hurried)
    deployer.create(waiting, deployer.desired_entity(hurried, 2))
    waiting.deadline = 0.0
    with pytest.raises(DeploymentFailed) as failed:
        deployer.wait_until_idle(waiting, "the endpoint to be there")
    assert "waited 1 s for the endpoint to be there" in str(failed.value)
    assert "loading churn-prediction-gbm version 2" in str(failed.value)
    client.serving_endpoints.delete("slow")


def test_the_endpoint_moves_along_with_a_rollback(served: Settings) -> None:
    models, store = registry.connect(served), tables.connect(served)
    moved = serving.move(served, models, store, 2)
    assert (moved.former_version, moved.version) == (1, 2)
    nowhere = served.updated({"serving.endpoint_name": "nowhere"})
    assert serving.move(nowhere, models, store, 2) is None


def test_the_commands_deploy_show_ask_and_stop_behind_a_proxy(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    process.stop(served)
    deployed = churn(served, "deploy", "--alias", "Production")
    assert deployed.returncode == 0, deployed.stderr
    curl = next(line for line in deployed.stdout.splitlines() if line.startswith("  curl"))
    answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True)
    assert 0 < json.loads(answer.stdout)["predictions"][0] < 1
    status = json.loads(churn(served, "endpoint", "status", "--json").stdout)
    assert (status["state"], status["served"][0]["version"]) == ("READY", "1")
    body = json.dumps({"inputs": serving_store.feature_rows(2).to_dict("list")})
    asked = churn(served, "endpoint", "query", "--data", body)
    assert len(json.loads(asked.stdout)["predictions"]) == 2
    refused = churn(served, "endpoint", "query", "--data", '{"inputs": {}}')
    assert refused.returncode == 2
    assert "column total_events is missing" in refused.stderr
    at_production(served, 3)
    failed = churn(served, "deploy")
    assert failed.returncode == 1
    assert "Production is version 1 again" in failed.stderr
    assert churn(served, "endpoint", "stop").stdout == "stopped\n"
    stopped = churn(served, "endpoint", "status")
    assert stopped.returncode == 1
    assert "STOPPED" in stopped.stdout


def test_the_command_settles_what_a_killed_run_has_left(served: Settings) -> None:
    at_production(served, 2)
    settled = churn(served, "endpoint", "settle", "--json")
    assert settled.returncode == 0, settled.stderr
    answer = json.loads(settled.stdout)
    assert (answer["outcome"], answer["version"]) == ("deployed", 2)
    assert traffic(served) == {"churn-prediction-gbm-2": 100}
    again = churn(served, "endpoint", "settle")
    assert again.stdout == "Version 2 is Production and proven: nothing to settle.\n"
    at_production(served, 3)
    back = churn(served, "endpoint", "settle")
    assert back.returncode == 0, back.stderr
    assert back.stdout.startswith("Version 3 could not be proven, version 2 is Production again: ")
    assert traffic(served) == {"churn-prediction-gbm-2": 100}


def test_the_job_settles_before_production_moves_on(served: Settings) -> None:
    """As the pipeline starts it, after a run that was cancelled between the move and the smoke test."""
    at_production(served, 2)
    done = churn(served, "run", "promotion_job", "-p", "action=settle")
    assert done.returncode == 0, done.stderr
    assert traffic(served) == {"churn-prediction-gbm-2": 100}
    record = last_record(served)
    assert (record["outcome"], record["to_version"]) == ("updated", 2)


def test_an_alias_that_does_not_exist_is_refused_in_one_line(served: Settings) -> None:
    refused = churn(served, "deploy", "--alias", "Nowhere")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "has no alias Nowhere" in refused.stderr


def another(config: Settings) -> int:
    """A version that can serve and that the gate has not seen."""
    models = registry.connect(config)
    first = models.version(1)
    return models.register(first.source, first.tags)


def forced_rows(config: Settings) -> list[dict]:
    store = tables.connect(config)
    if not store.exists(promotion.FORCED):
        return []
    return store.read(promotion.FORCED).order_by("deployed_at").to_pyarrow().to_pylist()


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (None, "has no gate report: `churn run validation_job -p model_version="),
        (
            {"verdict": "FAIL"},
            r"the gate refused version \d+ of churn-prediction-gbm \(roc_auc, report",
        ),
        (
            {"report": '{"settings": {"horizon_days": 30}}'},
            "within 30 days, and data.horizon_days is 90",
        ),
        ({"model_name": "another"}, "has no gate report"),
        ({"run_id": "of a model that was deleted and registered again"}, "has no gate report"),
    ],
)
def test_what_the_gate_has_not_passed_is_not_deployed_by_number_nor_by_an_alias(
    served: Settings, report: dict | None, reason: str
) -> None:
    models, number = registry.connect(served), another(served)
    if report is not None:
        serving_store.judge(served, number, **report)
    models.set_alias(STAGING, number)
    before, recorded = last_record(served)["deployed_at"], forced_rows(served)
    for asked in ({"version": number}, {"alias": STAGING}):
        with pytest.raises(DeploymentRefused, match=reason) as refused:
            deploy(served, **asked)
        assert f'`churn deploy --version {number} --force --reason "..."`' in str(refused.value)
        assert "\n" not in str(refused.value)
    models.set_alias(PRODUCTION, number)  # by hand, past the promotion log
    with pytest.raises(DeploymentRefused, match=reason):
        deploy(served)
    models.set_alias(PRODUCTION, 1)
    assert traffic(served) == {"churn-prediction-gbm-1": 100}
    assert (last_record(served)["deployed_at"], forced_rows(served)) == (before, recorded)


def test_the_newest_report_counts(served: Settings) -> None:
    number = another(served)
    serving_store.judge(served, number, "PASS")
    serving_store.judge(served, number, "FAIL")
    with pytest.raises(DeploymentRefused, match="the gate refused"):
        deploy(served, version=number)
    serving_store.judge(served, number, "TIE")
    assert deploy(served, version=number).version == number


def test_a_version_that_is_not_approved_or_was_taken_out_is_not_deployed(served: Settings) -> None:
    careful, number = served.updated({"gate.require_approval": True}), another(served)
    serving_store.judge(served, number)
    with pytest.raises(DeploymentRefused, match=f"`churn approve {number} --by NAME` gives it"):
        deploy(careful, version=number)
    at_production(served, 2)
    at_production(served, 1)
    with pytest.raises(DeploymentRefused, match=r"was taken out of Production .*: a test needs it"):
        deploy(served, version=2)


def test_approval_is_not_asked_for_what_was_promoted_before_the_setting(store: Settings) -> None:
    promoted = store.model_copy(update={"model_name": "promoted"})
    models, kept = registry.connect(promoted), tables.connect(promoted)
    models.client.create_registered_model("promoted")
    models.client.create_model_version("promoted", "s3://nobody/loads-it")
    serving_store.judge(promoted, 1, feature_date=date(2025, 1, 1), git_sha="abc")
    careful = promoted.updated({"gate.require_approval": True})
    assert "is not approved" in promotion.objection(models, kept, 1, careful)
    promotion.promote(models, kept, 1, promoted, "abc")
    assert promotion.objection(models, kept, 1, careful) == ""


def test_a_forced_deployment_needs_a_reason_and_is_on_record_with_it(served: Settings) -> None:
    number = another(served)
    with pytest.raises(DeploymentRefused, match="needs a reason"):
        deploy(served, version=number, force=True, reason=" ")
    done = deploy(served, version=number, force=True, reason="to see it answer")
    assert (done.former_version, done.version) == (1, number)
    row = forced_rows(served)[-1]
    assert (row["from_version"], row["to_version"], row["reason"]) == (
        1,
        number,
        "to see it answer",
    )
    assert row["deployed_by"] == promotion_log.user()
    assert row["objection"].startswith(
        f"version {number} of churn-prediction-gbm has no gate report"
    )
    newest = promotion.history(registry.connect(served), tables.connect(served))[0]
    assert (newest["action"], newest["by"], newest["to_version"]) == (
        "deploy",
        promotion_log.user(),
        number,
    )
    assert newest["reason"].startswith("to see it answer (forced: version")
    assert datetime.fromisoformat(newest["at"]) <= row["deployed_at"]


def test_force_for_a_version_that_passed_leaves_no_record_of_force(served: Settings) -> None:
    before = forced_rows(served)
    deploy(served, version=1, force=True, reason="none is needed")
    assert forced_rows(served) == before


def test_a_failed_deployment_serves_what_was_forced_before_and_does_not_make_it_production(
    served: Settings,
) -> None:
    number = another(served)
    deploy(served, version=number, force=True, reason="it serves, whatever the gate says")
    at_production(served, 3)
    with pytest.raises(DeploymentFailed, match=f"the endpoint serves version {number} as before"):
        deploy(served)
    assert traffic(served) == {f"churn-prediction-gbm-{number}": 100}
    assert registry.connect(served).version_of(PRODUCTION) == 1  # and not what was forced


def test_a_rollback_to_a_version_that_never_passed_takes_force_and_brings_the_endpoint(
    served: Settings,
) -> None:
    models, store, number = registry.connect(served), tables.connect(served), another(served)

    def follow(version: int) -> None:
        serving.move(served, models, store, version, "abc", lambda line: None, "the rollback's")

    with pytest.raises(PromotionRefused, match="was never at Production"):
        promotion.rollback(models, store, "the rollback's", "abc", to=number, follow=follow)
    models.set_alias(
        PRODUCTION, number
    )  # by hand: now it was there, and still without a passed report
    at_production(served, 2)
    with pytest.raises(PromotionRefused, match="but never passed the gate"):
        promotion.rollback(models, store, "the rollback's", "abc", follow=follow)
    asked = {"to": number, "force": True, "follow": follow}
    promotion.rollback(models, store, "the rollback's", "abc", **asked)
    assert traffic(served) == {f"churn-prediction-gbm-{number}": 100}
    assert forced_rows(served)[-1]["reason"] == "the rollback's"


def test_the_status_shows_what_serves_beside_what_is_at_production(served: Settings) -> None:
    same = json.loads(churn(served, "endpoint", "status", "--json").stdout)
    assert (same["production"], same["differences"]) == (1, [])
    number = another(served)
    refused = churn(served, "deploy", "--version", str(number))
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    forced = ("deploy", "--version", str(number), "--force", "--reason", "to look at it")
    assert churn(served, *forced).returncode == 0
    other = json.loads(churn(served, "endpoint", "status", "--json").stdout)
    served_instead, unproven = other["differences"]
    assert served_instead == (
        f"churn-prediction-gbm version {number} gets 100 % of the traffic, "
        "but Production is version 1"
    )
    assert unproven.startswith(f"version {number} serves although version {number} of")
    shown = churn(served, "endpoint", "status").stdout
    assert "Production: version 1" in shown
    assert served_instead in shown
    assert f"deploy 1 to {number}" in churn(served, "history").stdout
