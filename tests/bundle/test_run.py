"""The bundle's jobs run here: tiny notebooks, real kernels, the real command."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
import yaml

from churn_lib import bundle
from churn_lib.bundle import BundleError, Plan, PlanError, Step, make_plan, run_plan
from churn_lib.bundle.run import JobRun, Reporter, TaskRun
from tests.conftest import wait_for

CHURN = Path(sys.executable).parent / "churn"
ECHO = "from churn_lib import job_context\njob_context.task_values.set('echoed', text)"


class Project:
    """A bundle in a folder, with notebooks made on the fly."""

    def __init__(self, root: Path):
        self.root = root
        self.jobs: dict[str, dict] = {}
        self.extra: dict = {}
        self.notebook("echo", "text: str = 'nothing'", ECHO)

    def notebook(self, name: str, parameters: str, code: str, kernel: str = "python3") -> None:
        cells = [nbformat.v4.new_code_cell(source) for source in (parameters, code)]
        cells[0].metadata.tags = ["parameters"]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata.kernelspec = {
            "name": kernel,
            "display_name": kernel,
            "language": "python",
        }
        nbformat.write(notebook, self.root / f"{name}.ipynb")

    def write(self) -> "Project":
        content = {"bundle": {"name": "test"}, "resources": {"jobs": self.jobs}, **self.extra}
        (self.root / "databricks.yml").write_text(yaml.safe_dump(content, sort_keys=False))
        return self

    def load(self, target: str = "local") -> bundle.Bundle:
        return bundle.load(target, self.write().root)

    def run(self, job: str = "job", only: str | None = None, **given: str) -> JobRun:
        return run_plan(make_plan(self.load(), job, given, only), self.root / ".churn" / "runs")

    def churn(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(CHURN), *arguments],
            cwd=self.write().root,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
        )


def clean_environment() -> dict[str, str]:
    named = ("CHURN_", "MLFLOW_", "DATABRICKS_", "BUNDLE_VAR_")
    return {key: value for key, value in os.environ.items() if not key.startswith(named)}


def task(key: str, notebook: str = "echo", after: tuple[str, ...] = (), **fields: object) -> dict:
    body = {"notebook_path": f"{notebook}.ipynb", "base_parameters": fields.pop("base", {})}
    depends_on = [{"task_key": name} for name in after]
    return {"task_key": key, "depends_on": depends_on, "notebook_task": body, **fields}


def by_key(done: JobRun) -> dict[str, TaskRun]:
    return {each.task_key: each for each in done.tasks}


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status != "Z"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    return Project(tmp_path)


# --- refused before anything starts --------------------------------------------------------------


def one_task(**fields: object) -> dict:
    return {"tasks": [{**task("only"), **fields}]}


REFUSED = {
    "cycle": (
        {"tasks": [task("a", after=("b",)), task("b", after=("a",))]},
        "job: tasks wait for each other: ",
    ),
    "unknown dependency": ({"tasks": [task("a", after=("z",))]}, "job.a: depends_on z"),
    "task twice": ({"tasks": [task("a"), task("a")]}, "job: duplicate task_key a"),
    "unknown task kind": (
        {"tasks": [{"task_key": "a", "spark_python_task": {"python_file": "x.py"}}]},
        "job.a: spark_python_task cannot run here",
    ),
    "loop": (
        {"tasks": [{"task_key": "a", "for_each_task": {"inputs": "[1]"}}]},
        "job.a: for_each_task cannot run here",
    ),
    "no task kind": ({"tasks": [{"task_key": "a"}]}, "job.a: one task type is needed, found none"),
    "two task kinds": (
        one_task(condition_task={"op": "EQUAL_TO", "left": "1", "right": "1"}),
        "job.only: one task type is needed, found notebook_task, condition_task",
    ),
    "missing notebook": ({"tasks": [task("a", "gone")]}, "gone.ipynb: no such notebook"),
    "not a notebook": ({"tasks": [task("a", "text")]}, "text.ipynb: not a notebook"),
    "two parameters cells": ({"tasks": [task("a", "twice")]}, "2 cells are tagged parameters"),
    "workspace notebook": (
        one_task(notebook_task={"notebook_path": "/Workspace/x"}),
        "notebook_path '/Workspace/x' is not an .ipynb file of the bundle",
    ),
    "undeclared base parameter": (
        {"tasks": [task("a", base={"txet": "1"})]},
        "job.a: echo.ipynb declares no parameter 'txet'; it declares text",
    ),
    "undeclared job parameter": (
        {"parameters": [{"name": "limit", "default": "1"}], "tasks": [task("a")]},
        "job.a: echo.ipynb declares no parameter 'limit'",
    ),
    "parameter twice": (
        {"parameters": [{"name": "text", "default": "1"}] * 2, "tasks": [task("a")]},
        "job: duplicate parameter text",
    ),
    "reference to no parameter": (
        {"tasks": [task("a", base={"text": "{{job.parameters.x}}"})]},
        "{{job.parameters.x}} names no parameter of the job",
    ),
    "reference to a task that is not before": (
        {"tasks": [task("a", base={"text": "{{tasks.b.values.x}}"}), task("b")]},
        "b is not a task that ends before this one",
    ),
    "reference to nothing": (
        {"tasks": [task("a", base={"text": "{{workspace.id}}"})]},
        "{{workspace.id}} is not a reference that can be filled in here",
    ),
    "unknown run_if": (one_task(run_if="SOMETIMES"), "run_if 'SOMETIMES' is unknown"),
    "unknown operator": (
        {"tasks": [{"task_key": "a", "condition_task": {"op": "LIKE", "left": "1", "right": "1"}}]},
        "op 'LIKE' is unknown",
    ),
    "outcome of no condition": (
        {
            "tasks": [
                task("a"),
                {**task("b"), "depends_on": [{"task_key": "a", "outcome": "true"}]},
            ]
        },
        "job.b: outcome of a, which is no condition_task",
    ),
    "jobs that run each other": (
        {"tasks": [{"task_key": "a", "run_job_task": {"job_id": "${resources.jobs.job.id}"}}]},
        "jobs run each other: job -> job",
    ),
    "negative timeout": (one_task(timeout_seconds=-1), "timeout_seconds = -1"),
    "text for a number": (one_task(max_retries="many"), "max_retries = 'many'"),
    "no tasks": ({"tasks": []}, "resources.jobs.job.tasks"),
    "bad variable": (
        {"name": "${var.nope}", "tasks": [task("a")]},
        "Interpolation key 'var.nope' not found",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_job_that_cannot_run_is_refused_in_one_line(project: Project, case: str) -> None:
    (project.root / "text.ipynb").write_text("hello")
    project.notebook("twice", "text: str = ''", "text")
    doubled = nbformat.read(project.root / "twice.ipynb", as_version=4)
    doubled.cells[1].metadata.tags = ["parameters"]
    nbformat.write(doubled, project.root / "twice.ipynb")
    project.jobs["job"], expected = REFUSED[case]
    with pytest.raises((PlanError, BundleError)) as caught:
        make_plan(project.load(), "job")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "job", "--param", "nonsense=1"], "job has no parameter 'nonsense'; it has text"),
        (["run", "job", "--param", "text"], "'text' is not of the form name=value"),
        (["run", "jbo"], "has no job 'jbo'; it has job"),
        (["run", "job", "--target", "prod"], "has no target 'prod'; it has local"),
        (["run", "job", "--only", "x"], "job has no task 'x'; it has only"),
        (["pipeline", "-p", "text=1"], "no job of the pipeline has a parameter 'text'"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(
    project: Project, arguments: list[str], expected: str
) -> None:
    parameters = [{"name": "text", "default": "hello"}]
    project.jobs["job"] = {"parameters": parameters, "tasks": [task("only")]}
    answer = project.churn(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("churn: ")
    assert answer.stderr.count("\n") == 1
    assert expected in answer.stderr
    assert not (project.root / ".churn").exists()


def test_git_sha_must_be_given_outside_a_checkout(project: Project) -> None:
    project.notebook("sha", "git_sha: str = ''", "git_sha")
    parameters = [{"name": "git_sha", "default": "${bundle.git.commit}"}]
    project.jobs["job"] = {"parameters": parameters, "tasks": [task("only", "sha")]}
    with pytest.raises(PlanError, match="pass --param git_sha"):
        make_plan(project.load(), "job")
    assert make_plan(project.load(), "job", {"git_sha": "abc"}).git_sha == "abc"


def test_git_sha_is_the_commit_and_says_when_files_differ(project: Project) -> None:
    project.jobs["job"] = {"tasks": [task("only")]}
    project.write()
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    git = ["git", "-C", str(project.root), *identity]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    sha = head.stdout.strip()
    assert project.load().git_sha == sha
    (project.root / "new.txt").write_text("new")
    assert project.load().git_sha == f"{sha}-dirty"


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, JobRun]:
    """One job that uses most features, run once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(clean_environment()):
            patch.delenv(name)
        project = Project(tmp_path_factory.mktemp("big"))
        project.notebook(
            "source",
            "text: str = ''",
            "from churn_lib import job_context\n"
            "job_context.task_values.set('count', 7)\n"
            "job_context.task_values.set('name', 'seven')\n"
            "job_context.task_values.set('parts', [1, 2])",
        )
        meet = (
            "import pathlib, time\n"
            "pathlib.Path(text).touch()\n"
            "deadline = time.monotonic() + 60\n"
            "while not pathlib.Path(other).exists():\n"
            "    assert time.monotonic() < deadline, 'the other task did not run beside this one'\n"
            "    time.sleep(0.05)"
        )
        project.notebook("meet", "text: str = ''\nother: str = ''", meet)
        flaky = (
            "import pathlib, time\n"
            "from churn_lib import job_context\n"
            "tries = pathlib.Path('tries')\n"
            "with tries.open('a') as log:\n    log.write(f'{time.time()}\\n')\n"
            "attempt = len(tries.read_text().split())\n"
            "job_context.task_values.set(f'attempt_{attempt}', True)\n"
            "assert attempt == 3, f'attempt {attempt}'"
        )
        project.notebook("flaky", "text: str = ''", flaky, kernel="a kernel nobody has")
        project.notebook("fails", "text: str = ''", "def explode():\n    1 / 0\n\n\nexplode()")
        project.notebook("dies", "text: str = ''", "import os\nos.kill(os.getpid(), 9)")
        project.notebook(
            "huge",
            "text: str = ''",
            "from churn_lib import job_context\njob_context.task_values.set('x', 'y' * 50_000)",
        )
        both = {name: str(project.root / name) for name in ("first", "second")}
        references = "{{tasks.source.values.count}} {{tasks.source.values.name}} {{tasks.source.values.parts}}"
        context = "{{job.run_id}} {{job.name}} {{ job.parameters.day }}"
        project.notebook("day", "day: str = ''\ntext: str = ''", ECHO)
        for name in ("echo", "source", "meet", "flaky", "fails", "dies", "huge"):
            path = project.root / f"{name}.ipynb"
            notebook = nbformat.read(path, as_version=4)
            notebook.cells[0].source += "\nday: str = ''"
            nbformat.write(notebook, path)
        condition = {"op": "GREATER_THAN", "left": "{{tasks.source.values.count}}", "right": 5}
        nested = {
            "job_id": "${resources.jobs.inner.id}",
            "job_parameters": {"text": "from {{job.name}}"},
        }
        project.jobs["inner"] = {
            "parameters": [{"name": "text", "default": ""}],
            "tasks": [task("inside")],
        }
        project.jobs["broken"] = {"tasks": [task("inside", "fails")]}
        project.jobs["job"] = {
            "name": "the-job",
            "parameters": [{"name": "day", "default": "monday"}],
            "tasks": [
                task("source", "source"),
                task("filled", after=("source",), base={"text": references}),
                task("context", base={"text": context}),
                task("first", "meet", base={"text": both["first"], "other": both["second"]}),
                task("second", "meet", base={"text": both["second"], "other": both["first"]}),
                task("flaky", "flaky", max_retries=2, min_retry_interval_millis=300),
                task("fails", "fails"),
                task("skipped", after=("fails",)),
                task("cleanup", after=("fails",), run_if="ALL_DONE"),
                task("handler", after=("source",), run_if="AT_LEAST_ONE_FAILED"),
                task("dies", "dies"),
                task("huge", "huge"),
                {
                    "task_key": "condition",
                    "depends_on": [{"task_key": "source"}],
                    "condition_task": condition,
                },
                {**task("yes"), "depends_on": [{"task_key": "condition", "outcome": "true"}]},
                {**task("no"), "depends_on": [{"task_key": "condition", "outcome": "false"}]},
                task("after_no", after=("no",)),
                task("after_both", after=("yes", "no")),
                {"task_key": "nested", "run_job_task": nested},
                {
                    "task_key": "nested_fails",
                    "run_job_task": {"job_id": "${resources.jobs.broken.id}"},
                },
            ],
        }
        yield_ = project.run(day="tuesday")
    return project, yield_


def folder_of(big: tuple[Project, JobRun]) -> Path:
    project, done = big
    return project.root / ".churn" / "runs" / "job" / done.run_id


def test_each_task_ends_in_its_state(big: tuple[Project, JobRun]) -> None:
    assert {key: each.state for key, each in by_key(big[1]).items()} == {
        "source": "SUCCESS",
        "filled": "SUCCESS",
        "context": "SUCCESS",
        "first": "SUCCESS",
        "second": "SUCCESS",
        "flaky": "SUCCESS",
        "fails": "FAILED",
        "skipped": "SKIPPED",
        "cleanup": "SUCCESS",
        "handler": "EXCLUDED",
        "dies": "FAILED",
        "huge": "FAILED",
        "condition": "SUCCESS",
        "yes": "SUCCESS",
        "no": "EXCLUDED",
        "after_no": "EXCLUDED",
        "after_both": "SUCCESS",
        "nested": "SUCCESS",
        "nested_fails": "FAILED",
    }
    assert big[1].state == "FAILED"


def test_task_values_reach_the_tasks_after(big: tuple[Project, JobRun]) -> None:
    tasks = by_key(big[1])
    assert tasks["source"].values == {"count": 7, "name": "seven", "parts": [1, 2]}
    assert tasks["filled"].values == {"echoed": "7 seven [1, 2]"}


def test_references_to_the_job_are_filled_in(big: tuple[Project, JobRun]) -> None:
    assert by_key(big[1])["context"].values == {"echoed": f"{big[1].run_id} the-job tuesday"}


def test_a_failing_task_is_tried_again_and_its_attempts_are_kept(
    big: tuple[Project, JobRun],
) -> None:
    project, done = big
    assert by_key(done)["flaky"].values == {"attempt_3": True}
    moments = [float(line) for line in (project.root / "tries").read_text().split()]
    assert len(moments) == 3
    assert all(later - earlier >= 0.3 for earlier, later in pairwise(moments))
    kept = {path.name for path in folder_of(big).glob("flaky*")}
    assert {"flaky.ipynb", "flaky.attempt-1.ipynb", "flaky.attempt-2.html"} <= kept


def test_a_failed_cell_gives_its_last_frames_and_the_notebook(big: tuple[Project, JobRun]) -> None:
    failed = by_key(big[1])["fails"]
    assert failed.error is not None
    assert "ZeroDivisionError: division by zero" in failed.error
    assert "explode()" in failed.error
    assert str(folder_of(big) / "fails.ipynb") in failed.error
    assert (folder_of(big) / "fails.html").read_text().count("ZeroDivisionError") > 0


def test_a_killed_kernel_is_said_in_one_line(big: tuple[Project, JobRun]) -> None:
    error = by_key(big[1])["dies"].error or ""
    assert error.startswith("the kernel died")
    assert "\n" not in error


def test_a_value_over_the_limit_fails_its_task(big: tuple[Project, JobRun]) -> None:
    assert "at most 49152 are allowed" in (by_key(big[1])["huge"].error or "")


def test_a_nested_job_gets_its_parameters_and_keeps_its_values_to_itself(
    big: tuple[Project, JobRun],
) -> None:
    project, done = big
    nested = by_key(done)["nested"]
    inner = project.root / ".churn/runs/inner" / nested.values["run_id"]
    record = json.loads((inner / "run.json").read_text())
    assert record["tasks"][0]["values"] == {"echoed": "from the-job"}
    assert "echoed" not in nested.values
    assert "broken ended FAILED" in (by_key(done)["nested_fails"].error or "")


def test_a_run_leaves_notebooks_html_and_its_record(big: tuple[Project, JobRun]) -> None:
    record = json.loads((folder_of(big) / "run.json").read_text())
    assert record["state"] == "FAILED"
    assert record["parameters"] == {"day": "tuesday"}
    for each in big[1].tasks:
        if each.notebook:
            assert Path(each.notebook).is_file()
            assert Path(each.notebook).with_suffix(".html").is_file()
    assert by_key(big[1])["skipped"].notebook is None
    assert not list(folder_of(big).rglob("*.part"))


def test_one_task_alone_takes_values_of_the_latest_run(big: tuple[Project, JobRun]) -> None:
    project, _ = big
    done = project.run(only="filled")
    assert [(each.task_key, each.values) for each in done.tasks] == [
        ("filled", {"echoed": "7 seven [1, 2]"})
    ]


def test_one_task_alone_without_an_earlier_run_is_refused(project: Project) -> None:
    project.jobs["job"] = {
        "tasks": [task("a"), task("b", after=("a",), base={"text": "{{tasks.a.values.echoed}}"})]
    }
    with pytest.raises(PlanError, match=r"job\.b needs values of a, which has not succeeded yet"):
        project.run(only="b")


def test_a_value_that_was_never_set_fails_the_task_that_needs_it(project: Project) -> None:
    body = task("b", after=("a",), base={"text": "{{tasks.a.values.nothing}}"})
    project.jobs["job"] = {"tasks": [task("a"), body]}
    assert "task a has set no value 'nothing'" in (by_key(project.run())["b"].error or "")


class Broken(Reporter):
    """A display that fails in one of its methods, and in each call from then on."""

    def __init__(self, place: str, error: BaseException):
        self.place, self.error, self.calls = place, error, list[str]()

    def called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.place or self.place in self.calls[:-1]:
            raise self.error

    def begun(self, plan: Plan) -> None:
        self.called("begun")

    def started(self, run_id: str, step: Step) -> None:
        self.called("started")

    def cell(self, run_id: str, step: Step, number: int, total: int) -> None:
        self.called("cell")

    def ended(self, run_id: str, step: Step, task: TaskRun) -> None:
        self.called("ended")

    def finished(self) -> None:
        self.called("finished")


@pytest.mark.parametrize("error", [KeyError("state"), OSError("gone"), SystemExit(1)])
@pytest.mark.parametrize("place", ["begun", "started", "cell", "ended", "finished"])
def test_a_display_that_fails_is_reported_once_and_does_not_decide_how_a_job_ends(
    project: Project, capsys: pytest.CaptureFixture[str], place: str, error: BaseException
) -> None:
    condition = {"op": "EQUAL_TO", "left": "1", "right": "1"}
    tasks = [{"task_key": name, "condition_task": condition} for name in ("a", "b", "c")]
    inner = {"task_key": "d", "run_job_task": {"job_id": "${resources.jobs.inner.id}"}}
    kernel = [task("e")] if place == "cell" else []
    project.jobs = {"job": {"tasks": [*tasks, inner, *kernel]}, "inner": {"tasks": tasks}}
    reporter = Broken(place, error)
    plan = make_plan(project.load(), "job")
    done = run_plan(plan, project.root / ".churn" / "runs", reporter)
    assert done.state == "SUCCESS"
    detail = f"the progress display failed ({type(error).__name__}: {error}); the run goes on"
    assert capsys.readouterr().err == f"churn: {detail}\n"
    assert reporter.calls.count(place) == (2 if place == "finished" else 1)
    assert reporter.calls[-1] == "finished"  # so that the terminal is given back


def test_a_task_value_that_does_not_fit_fails_its_task_in_one_line_before_a_kernel_starts(
    project: Project,
) -> None:
    project.notebook("typed", "number: int = 0", "number")
    body = task("b", "typed", after=("a",), base={"number": "{{tasks.a.values.echoed}}"})
    project.jobs["job"] = {"tasks": [task("a", base={"text": "many"}), body]}
    failed = by_key(project.run())["b"]
    assert (
        failed.error
        == "b: parameter number = 'many' is not a whole number: write digits, such as 12"
    )
    assert (failed.state, failed.notebook) == ("FAILED", None)


HANGS = "import os, pathlib, threading\npathlib.Path('pid').write_text(str(os.getpid()))\nthreading.Event().wait()"


def read_pid(project: Project) -> int:
    path = project.root / "pid"
    wait_for(lambda: path.exists() and path.read_text())
    return int(path.read_text())


def test_a_task_past_its_time_is_stopped_and_its_kernel_is_gone(project: Project) -> None:
    project.notebook("hangs", "text: str = ''", HANGS)
    project.jobs["job"] = {
        "tasks": [task("a", "hangs", timeout_seconds=5), task("b", after=("a",))]
    }
    done = project.run()
    assert {key: each.state for key, each in by_key(done).items()} == {
        "a": "TIMEDOUT",
        "b": "SKIPPED",
    }
    assert by_key(done)["a"].error == "stopped after timeout_seconds = 5"
    wait_for(lambda: not alive(read_pid(project)))


def test_a_job_past_its_time_is_stopped(project: Project) -> None:
    project.notebook("hangs", "text: str = ''", HANGS)
    project.jobs["job"] = {
        "timeout_seconds": 5,
        "tasks": [task("a", "hangs"), task("b", after=("a",))],
    }
    done = project.run()
    assert done.state == "TIMEDOUT"
    assert {key: each.state for key, each in by_key(done).items()} == {
        "a": "CANCELED",
        "b": "SKIPPED",
    }
    wait_for(lambda: not alive(read_pid(project)))


@pytest.fixture
def started(project: Project) -> Iterator[subprocess.Popen[str]]:
    """A `churn run` whose second task hangs."""
    project.notebook("hangs", "text: str = ''", HANGS)
    project.jobs["job"] = {"tasks": [task("quick"), task("hangs", "hangs", after=("quick",))]}
    process = subprocess.Popen(
        [str(CHURN), "run", "job"],
        cwd=project.write().root,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_stops_its_kernels_and_says_what_had_finished(
    project: Project, started: subprocess.Popen[str], number: signal.Signals
) -> None:
    pid = read_pid(project)
    started.send_signal(number)
    output, _ = started.communicate(timeout=60)
    assert started.returncode == 130
    assert "quick" in output
    assert "SUCCESS" in output
    assert "CANCELED" in output
    wait_for(lambda: not alive(pid))
    record = next((project.root / ".churn/runs/job").glob("*/run.json"))
    content = json.loads(record.read_text())
    assert content["state"] == "CANCELED"
    assert [each["state"] for each in content["tasks"]] == ["SUCCESS", "CANCELED"]


def test_json_is_one_object_on_standard_output(project: Project) -> None:
    project.jobs["job"] = {"tasks": [task("a", base={"text": "hello"})]}
    answer = project.churn("run", "job", "--json")
    content = json.loads(answer.stdout)
    assert answer.returncode == 0
    assert set(content) == {"job", "run_id", "state", "seconds", "tasks"}
    assert set(content["tasks"][0]) == {
        "task_key",
        "state",
        "seconds",
        "values",
        "notebook",
        "error",
    }
    assert content["tasks"][0]["values"] == {"echoed": "hello"}


def test_a_dry_run_starts_nothing(project: Project) -> None:
    project.jobs["job"] = {"tasks": [task("a", base={"text": "hello"})]}
    answer = project.churn("run", "job", "--dry-run", "--json")
    assert json.loads(answer.stdout)["tasks"][0]["parameters"] == {"text": "hello"}
    assert not (project.root / ".churn").exists()


def test_the_pipeline_stops_at_the_first_job_that_fails(project: Project) -> None:
    project.notebook("fails", "text: str = ''", "raise ValueError('no')")
    project.jobs = {
        "scoring_job": {"tasks": [task("score")]},
        "validation_job": {"tasks": [task("validate", "fails")]},
        "training_job": {"tasks": [task("train")]},
    }
    answer = project.churn("pipeline", "--json")
    assert answer.returncode == 1
    jobs = json.loads(answer.stdout)["jobs"]
    assert [(each["job"], each["state"]) for each in jobs] == [
        ("training_job", "SUCCESS"),
        ("validation_job", "FAILED"),
    ]
