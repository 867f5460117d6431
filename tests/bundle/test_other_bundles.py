"""Bundles of other shapes than this project's, none with a settings.ini: checked, run, or refused in one line."""

from typing import Any

import pytest

from tests.conftest import Project, notebook_task

ENVIRONMENT = {"environment_key": "e", "spec": {"environment_version": "4"}}


def serverless(project: Project) -> dict[str, Any]:
    """Two notebooks without a cluster; each takes the job parameter that it declares."""
    project.notebook(
        "src/load",
        "from churn_lib import job_context as j; j.task_values.set('got', day)",
        parameters="day: str = ''\n",
    )
    project.notebook(
        "src/save",
        "from churn_lib import job_context as j; j.task_values.set('got', size)",
        parameters="size: int = 0\n",
    )
    tasks = [
        notebook_task("load", "src/load"),
        {**notebook_task("save", "src/save"), "depends_on": [{"task_key": "load"}], "environment_key": "e"},
    ]  # fmt: skip
    parameters = [{"name": "day", "default": "2026-01-01"}, {"name": "size", "default": 3}]
    return {"night": {"environments": [ENVIRONMENT], "parameters": parameters, "tasks": tasks}}


def wheel(project: Project) -> dict[str, Any]:
    """A Python wheel."""
    task = {"package_name": "lib", "entry_point": "main", "parameters": ["{{job.run_id}}"]}
    tasks = [{"task_key": "a", "environment_key": "e", "python_wheel_task": task}]
    return {"night": {"environments": [ENVIRONMENT], "tasks": tasks}}


def for_each(project: Project) -> dict[str, Any]:
    """A notebook that is repeated."""
    project.notebook("one", "item", parameters="item: str = ''\n")
    inner = notebook_task("one", "one", base_parameters={"item": "{{input}}"})
    return {"night": [{"task_key": "all", "for_each_task": {"inputs": "[1, 2]", "task": inner}}]}


def folders(project: Project) -> dict[str, Any]:
    """Notebooks in several folders, one of them without a job, values, a condition and a job that runs a job."""
    set_rows = "from churn_lib import job_context as j; j.task_values.set('rows', 7)"
    project.notebook("etl/a/load", set_rows, parameters="table: str = ''\n")
    project.notebook(
        "etl/b/save",
        "assert rows == '7' and day == 'x'",
        parameters="rows: int = 0\nday: str = ''\n",
    )
    project.notebook("etl/a/helpers", "x = 1")
    condition = {"op": "GREATER_THAN", "left": "{{tasks.load.values.rows}}", "right": "1"}
    save = notebook_task(
        "save", "etl/b/save", base_parameters={"rows": "{{tasks.load.values.[rows]}}"}
    )
    tasks = [
        notebook_task("load", "etl/a/load", base_parameters={"table": "${var.catalog}.gold"}),
        {"task_key": "ok", "depends_on": [{"task_key": "load"}], "condition_task": condition},
        {**save, "depends_on": [{"task_key": "ok", "outcome": True}]},
    ]
    call = {"job_id": "${resources.jobs.night.id}", "job_parameters": {"day": "x"}}
    parameters = [{"name": "day", "default": "{{job.start_time.iso_date}}"}]
    return {
        "night": {"parameters": parameters, "tasks": tasks},
        "caller": [{"task_key": "go", "run_job_task": call}],
    }


def git(project: Project) -> dict[str, Any]:
    """A notebook of another repository."""
    source = {
        "git_url": "https://example.com/a.git",
        "git_provider": "gitHub",
        "git_branch": "main",
    }
    return {"night": {"git_source": source, "tasks": [notebook_task("a", "there")]}}


SHAPES = [serverless, wheel, for_each, folders, git]


@pytest.fixture
def other(project: Project, request: pytest.FixtureRequest) -> Project:
    """A bundle of the shape that a test names."""
    project.write(
        request.param(project),
        targets={"dev": {"mode": "development"}},
        variables={"catalog": {"default": "dev"}},
    )
    return project


@pytest.mark.parametrize("other", SHAPES, indirect=True)
def test_the_check_finds_nothing_wrong(other: Project) -> None:
    done = other.churn("bundle", "check", "--project", str(other.root), folder="..")
    assert (done.returncode, "no findings" in done.stderr) == (0, True), done.stdout


@pytest.mark.parametrize(
    ("other", "arguments", "values"),
    [
        (serverless, ("night",), {"load": {"got": "2026-01-01"}, "save": {"got": "3"}}),
        (folders, ("night", "--param", "day=x"), {"load": {"rows": 7}, "ok": {"outcome": "true"}, "save": {}}),
    ],
    indirect=["other"],
)  # fmt: skip
def test_notebooks_run_with_the_parameters_that_they_declare(
    other: Project, arguments: tuple[str, ...], values: dict[str, Any]
) -> None:
    done = other.churn("run", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    tasks = other.record("night")["tasks"]
    assert {task["task_key"]: task["values"] for task in tasks} == values
    assert {task["state"] for task in tasks} == {"SUCCESS"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (wheel, "night.a: python_wheel_task cannot run here; notebook_task, condition_task, run_job_task can"),
        (for_each, "night.all: for_each_task cannot run here; notebook_task, condition_task, run_job_task can"),
        (folders, "night: default '{{job.start_time.iso_date}}' of day cannot be filled in here; give it with --param day=..."),
        (git, "night.a: there.ipynb is in another repository, see git_source; not to run here"),
    ],
    indirect=["other"],
)  # fmt: skip
def test_what_cannot_run_here_is_refused_in_one_line(other: Project, message: str) -> None:
    done = other.churn("run", "night")
    assert (done.returncode, done.stderr) == (2, f"churn: {message}\n")
    assert not other.runs.exists()


@pytest.mark.parametrize("other", [folders], indirect=True)
def test_the_rules_of_this_project_are_for_a_bundle_with_a_settings_file(other: Project) -> None:
    def policies(*options: str) -> list[str]:
        done = other.churn("bundle", "check", *options)
        lines = [line for line in done.stdout.splitlines() if ": policy: " in line]
        assert done.returncode == bool(lines)
        return lines

    assert policies() == []
    idle = (
        "databricks.yml:1: policy: no job runs etl/a/helpers.ipynb; add a task or move the notebook"
    )
    assert policies("--policy") == [idle]
    (other.root / "settings.ini").write_text("[DEFAULT]\n")
    assert idle in policies()
    assert policies("--no-policy") == []


def test_a_folder_without_a_bundle_is_refused(project: Project) -> None:
    project.write({"night": [{"task_key": "a", "run_job_task": {"job_id": 7}}]})
    (project.root / "below").mkdir()
    done = project.churn("bundle", "check", "--project", "below")
    assert (done.returncode, done.stderr) == (
        2,
        "churn: below: no databricks.yml here; name the folder of a bundle\n",
    )
