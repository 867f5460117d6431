"""The project's own bundle, for every target, without a workspace."""

import copy
from pathlib import Path

import pytest
from databricks.bundles.jobs import Job

from churn_lib import bundle, settings
from churn_lib.plan import make_plan

ROOT = Path(__file__).parent.parent
TARGETS = ["local", "dev", "staging", "production"]
JOBS = bundle.load("local", ROOT).job_keys


def definition(target: str, key: str) -> dict:
    """A job as Databricks gets it."""
    body = copy.deepcopy(bundle.load(target, ROOT).config["resources"]["jobs"][key])
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
    plan = make_plan(bundle.load(target, ROOT), key, {"git_sha": "abc"})
    assert plan.parameters["git_sha"] == "abc"
    assert "as_of" in plan.parameters


@pytest.mark.parametrize("key", JOBS)
def test_git_sha_is_the_bundles_commit_by_default(key: str) -> None:
    loaded = bundle.load("dev", ROOT)
    assert make_plan(loaded, key).parameters["git_sha"] == loaded.git_sha != ""


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
    loaded = bundle.load("local", ROOT)
    used = {
        step.notebook for key in JOBS for step in make_plan(loaded, key, {"git_sha": "a"}).steps
    } - {None}
    assert used == set((ROOT / "nbs" / "jobs").glob("*.ipynb"))


def test_every_target_has_settings_and_the_other_way_round() -> None:
    assert settings.targets(ROOT / "settings.ini") == TARGETS
    for target in TARGETS:
        assert bundle.load(target, ROOT).target == target
