"""The project's own bundle, for every target, without a workspace."""

import copy
import functools
import shutil
from pathlib import Path

import pytest
from databricks.bundles.jobs import Job

from churn_lib import bundle, settings
from churn_lib.bundle import make_plan
from churn_lib.bundle.files import read_sources
from churn_lib.bundle.lint.check import check

ROOT = Path(__file__).parents[2]
TARGETS = ["local", "dev", "staging", "production"]
JOBS = bundle.load("local", ROOT).job_keys


@functools.cache
def loaded(target: str, compute: str = "classic") -> bundle.Bundle:
    """The bundle for a target, read once; `compute` is what BUNDLE_VAR_compute says."""
    return bundle.load(target, ROOT)


def definition(target: str, key: str, compute: str = "classic") -> dict:
    """A job as Databricks gets it."""
    body = copy.deepcopy(loaded(target, compute).config["resources"]["jobs"][key])
    del body["id"]  # added here, so that references to it resolve
    for task in body["tasks"]:
        if "run_job_task" in task:  # deploying puts the number of the job here
            assert task["run_job_task"]["job_id"] in JOBS
            task["run_job_task"]["job_id"] = 1
    return body


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("key", JOBS)
def test_every_job_is_one_that_databricks_accepts(target: str, key: str) -> None:
    job = Job.from_dict(definition(target, key))
    assert len(job.tasks) == len(definition(target, key)["tasks"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_concurent_runs", 1), ("tasks", [{"task_key": "a", "run_iff": "ALL_DONE"}])],
)
def test_a_field_that_databricks_does_not_know_would_be_caught(field: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        Job.from_dict({**definition("dev", "training_job"), field: value})


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("key", JOBS)
def test_every_job_can_be_planned(target: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLE_VAR_deployer", "somebody")  # may query what deployment_job makes
    plan = make_plan(loaded(target), key, {"git_sha": "abc"})
    assert plan.parameters["git_sha"] == "abc"
    assert ("as_of" in plan.parameters) == (
        key not in ("promotion_job", "maintenance_job")
    )  # which compute nothing
    assert plan.parameters["rehearsal"] == "false"
    rehearsed = make_plan(loaded(target), key, {"git_sha": "abc", "rehearsal": "true"})
    nested = [step.job.parameters["rehearsal"] for step in rehearsed.steps if step.job]
    starts = {"monitoring_job": 3, "promotion_job": 1}  # jobs that one may start
    assert nested == ["true"] * starts.get(key, 0)


@pytest.mark.parametrize("key", JOBS)
def test_git_sha_is_the_bundles_commit_by_default(key: str) -> None:
    dev = loaded("dev")
    assert make_plan(dev, key).parameters["git_sha"] == dev.git_sha != ""


@pytest.mark.parametrize("target", TARGETS[1:])
@pytest.mark.parametrize("key", JOBS)
def test_every_task_has_a_cluster_of_its_job(target: str, key: str) -> None:
    body = definition(target, key)
    clusters = {cluster["job_cluster_key"] for cluster in body["job_clusters"]}
    for task in body["tasks"]:
        if "notebook_task" in task:  # a condition and a job's run need no machine
            assert task["job_cluster_key"] in clusters
    for cluster in body["job_clusters"]:
        assert cluster["new_cluster"]["spark_version"].startswith("18.")


def test_every_job_notebook_belongs_to_a_job() -> None:
    local = loaded("local")
    used = {
        step.notebook for key in JOBS for step in make_plan(local, key, {"git_sha": "a"}).steps
    } - {None}
    assert used == set((ROOT / "nbs" / "jobs").glob("*.ipynb"))


def test_every_target_has_settings_and_the_other_way_round() -> None:
    assert settings.targets(ROOT / "settings.ini") == TARGETS
    for target in TARGETS:
        assert loaded(target).target == target


# --- what every job of this project has -------------------------------------------------------------


@pytest.mark.parametrize("target", ["staging", "production"])
@pytest.mark.parametrize("key", JOBS)
def test_every_deployed_job_says_who_runs_it_how_long_and_who_hears_of_it(
    target: str, key: str
) -> None:
    body = definition(target, key)
    address = "${var.notification_address}"
    assert body["run_as"] == {"service_principal_name": "${var.service_principal}"}
    assert body["email_notifications"]["on_failure"] == [address]
    assert body["email_notifications"]["on_duration_warning_threshold_exceeded"] == [address]
    assert body["health"]["rules"][0]["metric"] == "RUN_DURATION_SECONDS"
    assert body["health"]["rules"][0]["value"] < body["timeout_seconds"]
    assert body["queue"] == {"enabled": True}
    assert body["max_concurrent_runs"] == 1
    assert body["tags"]["stage"] == target
    for cluster in body["job_clusters"]:
        assert cluster["new_cluster"]["custom_tags"]["stage"] == target
    for task in body["tasks"]:
        if "notebook_task" in task:
            assert task["libraries"] == [{"whl": "../dist/*.whl"}]
            assert task["timeout_seconds"] <= body["timeout_seconds"]


@pytest.mark.parametrize("compute", ["classic", "serverless"])
def test_one_variable_puts_every_job_on_serverless_compute(
    compute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLE_VAR_compute", compute)
    assert check(ROOT, "production") == []
    for key in JOBS:
        body = definition("production", key, compute)
        Job.from_dict(body)
        clusters = any("job_cluster_key" in task for task in body["tasks"])
        environments = any("environment_key" in task for task in body["tasks"])
        assert (clusters, environments) == (compute == "classic", compute == "serverless")


@pytest.mark.parametrize("trigger", ["schedule", "table_update"])
@pytest.mark.parametrize("target", ["dev", "production"])
def test_one_variable_starts_scoring_when_events_have_come(
    trigger: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLE_VAR_scoring_trigger", trigger)
    assert check(ROOT, target) == []
    jobs = bundle.load(target, ROOT).config["resources"]["jobs"]
    body, catalog = jobs["scoring_job"], settings.load(target, ROOT / "settings.ini").catalog
    assert ("schedule" in body, "trigger" in body) == (
        trigger == "schedule",
        trigger == "table_update",
    )
    if trigger == "table_update":
        watched = body["trigger"]["table_update"]
        assert watched["table_names"] == [f"{catalog}.bronze.events"]
        assert watched["condition"] == "ANY_UPDATED"
    assert "schedule" in jobs["monitoring_job"]  # it has no choice
    Job.from_dict({name: part for name, part in body.items() if name != "id"})


def test_another_value_of_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUNDLE_VAR_scoring_trigger", "hourly")
    (finding,) = check(ROOT, "production")
    assert "variable scoring_trigger = 'hourly': use schedule or table_update" in finding.message


def test_what_holds_state_is_kept_from_loss_and_out_of_development() -> None:
    kinds = ("schemas", "volumes", "registered_models", "experiments", "secret_scopes")
    for target in ("staging", "production"):
        resources = loaded(target).config["resources"]
        for kind in kinds:
            for key, body in resources[kind].items():
                assert body["lifecycle"] == {"prevent_destroy": True}, key
        assert "model_serving_endpoints" not in resources  # deployment_job makes it
    assert set(loaded("dev").config["resources"]) == {"jobs"}


def test_every_variable_says_what_it_is_for_and_no_host_is_written_down() -> None:
    content = read_sources(ROOT, "local").content
    for name, declared in content["variables"].items():
        assert len(declared["description"]) > 20, name
    for target in TARGETS[1:]:
        assert "host" not in read_sources(ROOT, target).content.get("workspace", {})


READERS, DEPLOYER, RUNNER = "${var.readers}", "${var.deployer}", "${var.service_principal}"
# what the CLI makes of a level at the top, for each kind that has permissions here; None: nothing
TRANSLATED = {
    "jobs": {"CAN_MANAGE": "CAN_MANAGE", "CAN_VIEW": "CAN_VIEW", "CAN_RUN": "CAN_MANAGE_RUN"},
    "alerts": {"CAN_MANAGE": "CAN_MANAGE", "CAN_VIEW": "CAN_READ", "CAN_RUN": "CAN_RUN"},
    "experiments": {"CAN_MANAGE": "CAN_MANAGE", "CAN_VIEW": "CAN_READ", "CAN_RUN": None},
    "secret_scopes": {"CAN_MANAGE": "MANAGE", "CAN_VIEW": "READ", "CAN_RUN": None},
}


def who(item: dict) -> str:
    """The principal of a permission."""
    return next(str(value) for key, value in item.items() if key.endswith("_name"))


def rights(target: str, kind: str, key: str) -> dict[str, str]:
    """Principal to level, as the workspace gets them (tried with the CLI against a workspace)."""
    config = loaded(target).config
    own = config["resources"][kind][key].get("permissions") or []
    found = {who(item): item["level"] for item in own}
    for item in config.get("permissions") or []:
        if level := TRANSLATED[kind][item["level"]]:
            assert who(item) not in found, "which the CLI refuses with --strict"
            found[who(item)] = level
    return found


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("readers", "deployer", "service_principal"):
        monkeypatch.delenv(f"BUNDLE_VAR_{name}", raising=False)
    loaded.cache_clear()


@pytest.mark.usefixtures("no_variables")
@pytest.mark.parametrize("target", ["staging", "production"])
def test_readers_see_what_runs_and_no_secret(target: str) -> None:
    resources = loaded(target).config["resources"]
    for key in JOBS:
        expected = {READERS: "CAN_VIEW", DEPLOYER: "CAN_MANAGE", RUNNER: "CAN_MANAGE_RUN"}
        assert rights(target, "jobs", key) == expected, key
    for key in resources["alerts"]:
        expected = {READERS: "CAN_READ", DEPLOYER: "CAN_MANAGE", RUNNER: "CAN_RUN"}
        assert rights(target, "alerts", key) == expected, key
    for key in resources["experiments"]:
        expected = {READERS: "CAN_READ", DEPLOYER: "CAN_MANAGE", RUNNER: "CAN_EDIT"}
        assert rights(target, "experiments", key) == expected, key
    for key in resources["secret_scopes"]:
        assert rights(target, "secret_scopes", key) == {DEPLOYER: "MANAGE", RUNNER: "READ"}, key


@pytest.mark.parametrize("target", ["local", "dev"])
def test_a_developer_s_own_resources_have_no_permissions(target: str) -> None:
    config = loaded(target).config
    bodies = [body for kind in config["resources"].values() for body in kind.values()]
    assert not any(part.get("permissions") for part in (config, *bodies))


def test_readers_at_the_top_of_this_bundle_are_found(tmp_path: Path) -> None:
    """As databricks.yml was until they read every secret by it."""
    shutil.copytree(ROOT / "resources", tmp_path / "resources")
    shutil.copytree(ROOT / "nbs/jobs", tmp_path / "nbs/jobs")
    text = (ROOT / "databricks.yml").read_text()
    new = "      - level: CAN_VIEW\n        group_name: ${var.readers}\n"
    old = "    variables:\n      catalog: churn_staging\n"
    (tmp_path / "databricks.yml").write_text(text.replace(old, new + old))
    (found,) = [
        each for each in check(tmp_path) if "READ on every secret of key_vault" in each.message
    ]
    assert found.path.name == "databricks.yml" and set(found.targets) == {"staging", "production"}


@pytest.mark.parametrize("section", ["dev", "dev@pr_17"])
def test_every_job_of_a_pull_request_reads_its_own_section(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if section != "dev":
        monkeypatch.setenv("BUNDLE_VAR_section", section)
    found = bundle.load("dev", ROOT)
    named = [
        task.spec("notebook_task")["base_parameters"]["target"]
        for key in found.job_keys
        for task in found.job(key).tasks
        if task.kinds == ["notebook_task"]
    ]
    assert len(named) >= 9 and {*named} == {section}
    assert str(found.config["workspace"]["root_path"]).endswith(f"/{section}")
