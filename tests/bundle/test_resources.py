"""The project's own bundle, for every target, without a workspace."""

import copy
import functools
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
def test_every_job_can_be_planned(target: str, key: str) -> None:
    plan = make_plan(loaded(target), key, {"git_sha": "abc"})
    assert plan.parameters["git_sha"] == "abc"
    assert ("as_of" in plan.parameters) == (key != "promotion_job")  # which computes nothing
    assert plan.parameters["rehearsal"] == "false"
    rehearsed = make_plan(loaded(target), key, {"git_sha": "abc", "rehearsal": "true"})
    nested = [step.job.parameters["rehearsal"] for step in rehearsed.steps if step.job]
    assert nested == ["true"] * (key == "monitoring_job")


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
