"""What somebody has left in the shell reaches no job, and what the jobs need does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest

from churn_lib import job_context, registry
from tests.conftest import CHURN, Project, notebook_task
from tests.serving import serving_store

SHOW = """
import json, os, sys
import matplotlib
from churn_lib import job_context
job_context.task_values.set("seen", dict(os.environ))
job_context.task_values.set("python", sys.executable)
job_context.task_values.set("started", "STARTED" in globals())
job_context.task_values.set("encoding", open(os.devnull).encoding)
job_context.task_values.set("warnings", sys.warnoptions)
"""
STRAY = {
    "MLFLOW_RUN_ID": "0" * 32,
    "MLFLOW_EXPERIMENT_NAME": "mine",
    "MLFLOW_EXPERIMENT_ID": "7",
    "MLFLOW_REGISTRY_URI": "http://127.0.0.1:9",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
    "_MLFLOW_ACTIVE_MODEL_ID": "m-0",
    "PAPERMILL_FORMAT": "x",
    "MPLBACKEND": "TkAgg",
    "MATPLOTLIBRC": "/nowhere",
    "PYTHONWARNINGS": "error",
    "PYTHONHASHSEED": "7",
    "PYTHONOPTIMIZE": "2",
    "PYTHONSTARTUP": "/nowhere.py",
    "SOME_KEY": "secret",
    "GIT_CEILING_DIRECTORIES": "/",
    "JUPYTER_PREFER_ENV_PATH": "0",
}
NEEDED = {
    "CHURN_SHOP": "north",
    "https_proxy": "http://proxy.example:3128",
    "NO_PROXY": "example.org",
    "REQUESTS_CA_BUNDLE": "/etc/ssl/certs/ca.pem",
    "DATABRICKS_HOST": "https://example.org",
    "ARM_TENANT_ID": "t",
    "AZURE_CLIENT_ID": "c",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "MLFLOW_TRACKING_TOKEN": "t",
    "OMP_NUM_THREADS": "1",
    "LC_ALL": "C",
}


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What a job sees that is started in a shell full of variables, and what the command says."""
    folder = tmp_path_factory.mktemp("variables")
    project = Project(folder / "project")
    project.notebook("show", SHOW)
    project.write({"job": [notebook_task("show")]})
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "start.py").write_text("STARTED = True\n")
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/nowhere/python"], "display_name": "theirs", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    theirs = {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PATH": str(folder / "jupyter")}
    done = subprocess.run(
        [str(CHURN), "run", "job"],
        cwd=project.root,
        env={**os.environ, **STRAY, **NEEDED, **theirs, "TZ": "America/New_York"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return project.record("job")["tasks"][0]["values"], done.stderr


def test_a_job_sees_no_variable_that_is_not_documented(answer: tuple[dict[str, Any], str]) -> None:
    seen = answer[0]["seen"]
    assert not STRAY.keys() & seen.keys() - {"MPLBACKEND"}
    assert seen["MPLBACKEND"] != STRAY["MPLBACKEND"]
    # what ipykernel and IPython set for themselves, and what the runner pins
    own = {
        "JPY_PARENT_PID",
        "JPY_SESSION_NAME",
        "MPLBACKEND",
        "IPYTHONDIR",
        "PYTHONPATH",
        "PYTHONUTF8",
    }
    own |= {"TZ", "PYDEVD_DISABLE_FILE_VALIDATION", "PYDEVD_USE_FRAME_EVAL"}
    own |= {"CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "PAGER", "GIT_PAGER", "TERM"}
    assert [name for name in seen if not job_context._is_documented(name) and name not in own] == []
    assert seen["TZ"] == "UTC" and answer[0]["encoding"].lower() == "utf-8"
    assert answer[0]["warnings"] == []


def test_a_job_sees_what_it_needs(answer: tuple[dict[str, Any], str]) -> None:
    seen = answer[0]["seen"]
    direct = {"NO_PROXY": "example.org,localhost,127.0.0.1,::1"}
    assert {name: seen.get(name) for name in NEEDED} == NEEDED | direct
    assert {"PATH", "HOME", "CHURN_TASK_KEY"} <= seen.keys()


def test_a_job_runs_the_python_of_the_command_without_anybodys_start_up_files(
    answer: tuple[dict[str, Any], str],
) -> None:
    assert answer[0]["python"] == sys.executable
    assert answer[0]["started"] is False


def test_one_line_says_which_variables_of_mlflow_are_ignored(
    answer: tuple[dict[str, Any], str],
) -> None:
    (line,) = [line for line in answer[1].splitlines() if "churn: ignored" in line]
    names = ", ".join(sorted(name for name in STRAY if name.startswith(("MLFLOW_", "PAPERMILL_"))))
    assert line == f"churn: ignored, as no job sees it: {names}"


def test_in_jupyter_a_run_that_the_shell_names_keeps_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = serving_store.make(tmp_path)
    models = registry.connect(config)
    first = models.client.get_run(models.version(1).run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", first.info.run_id)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///nowhere.db")
    serving_store.register(registry.connect(config), 3)
    assert models.client.get_run(first.info.run_id).to_dictionary() == first.to_dictionary()
    last = models.client.get_run(models.version(4).run_id)
    assert last.info.experiment_id == first.info.experiment_id
    names = "MLFLOW_EXPERIMENT_NAME, MLFLOW_REGISTRY_URI, MLFLOW_RUN_ID"
    assert capsys.readouterr().err.count(f"ignored, as no job sees it: {names}\n") == 1
    registry.connect(config)  # says nothing of what MLflow itself has set
    assert "ignored" not in capsys.readouterr().err


def test_on_a_cluster_only_a_named_run_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "18.0")
    monkeypatch.setenv("MLFLOW_PYTHON_EXECUTABLE", "/databricks/python/bin/python")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    job_context.forget_variables("MLFLOW_")
    assert "MLFLOW_PYTHON_EXECUTABLE" in os.environ and "MLFLOW_RUN_ID" not in os.environ
    assert mlflow.active_run() is None


def test_a_database_named_relative_to_the_shell_is_the_same_one_for_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine/mlflow.db")
    named = job_context.job_environment()["MLFLOW_TRACKING_URI"]
    assert named == f"sqlite:///{tmp_path}/mine/mlflow.db"
    for absolute in (named, "sqlite:///file:/a%3F?uri=true", "http://127.0.0.1:9"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", absolute)
        assert job_context.job_environment()["MLFLOW_TRACKING_URI"] == absolute
