"""The command itself: exit codes, what it prints, and that nothing it started outlives it."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell

from churn_lib import cli
from churn_lib.bundle import PlanError, Step, run_plan
from churn_lib.bundle.execution import ExecutionError, Kernels, execute
from churn_lib.bundle.run import JobRun, Reporter, TaskRun
from tests.conftest import CHURN, Project, after, bad, good, notebook_task, processes_of, wait_for

# It is in a cell, and has started a process of its own, once there is a file `hangs`.
HANGS = """
import pathlib, subprocess, threading
subprocess.Popen(["sleep", "600"])
pathlib.Path("hangs").touch()
threading.Event().wait()
"""


def states(done: JobRun) -> dict[str, str]:
    return {task.task_key: task.state for task in done.tasks}


def run_job(key: str, **more: Any) -> dict[str, Any]:
    """A task that runs the job `key` and is named after it."""
    reference = f"${{resources.jobs.{key}.id}}"
    return {"task_key": key, "run_job_task": {"job_id": reference}, **more}


# --- one run that fails, looked at from all sides ------------------------------------------------------


@pytest.fixture(scope="module")
def failing(make_project: Callable[[str], Project]) -> tuple[Project, Any]:
    """A dirty checkout in a folder with an awkward name, run from a folder below."""
    project = make_project("a böok & more {x} {} 100%#?")
    path = project.notebook(
        "show",
        "from churn_lib import job_context\njob = job_context.parameters(globals())",
        "job_context.task_values.set('sha', job.git_sha)\nprint('loud')",
        "def inner():\n    raise KeyError('no such customer')\n\ndef outer():\n    inner()\n\nouter()",
        parameters="git_sha: str = ''",
    )
    with_words = nbformat.read(path, as_version=4)
    with_words.cells.insert(1, new_markdown_cell("Some words."))
    nbformat.write(with_words, path)
    (project.root / "below" / "deep").mkdir(parents=True)
    (project.root / "below" / "deep" / "keep").touch()
    parameters = [{"name": "git_sha", "default": "${bundle.git.commit}"}]
    tasks = [
        good("first"),
        notebook_task("show", "show", depends_on=after("first")),
        good("later", depends_on=after("show")),
        good("last", depends_on=after("later")),
    ]
    project.write({"job": {"parameters": parameters, "tasks": tasks}})
    project.commit()
    (project.root / "databricks.yml").open("a").write("# changed\n")
    return project, project.churn("run", "job", folder="below/deep")


def test_a_failed_task_is_exit_code_1_and_the_table_has_every_task(
    failing: tuple[Project, Any],
) -> None:
    answer = failing[1]
    assert answer.returncode == 1
    rows = re.findall(r"(first|show|later|last) +\S +(\w+) ", answer.stdout)
    assert rows == [
        ("first", "SUCCESS"),
        ("show", "FAILED"),
        ("later", "SKIPPED"),
        ("last", "SKIPPED"),
    ]


def test_a_failed_task_shows_its_last_frames_and_where_its_notebook_is(
    failing: tuple[Project, Any],
) -> None:
    project, answer = failing
    (report,) = project.runs.glob("job/*/show.ipynb")
    for part in ("outer()", "inner()", "KeyError: 'no such customer'", f" of {report}"):
        assert part in answer.stdout
    assert "Traceback" not in answer.stderr + answer.stdout
    assert "loud" not in answer.stderr + answer.stdout


def test_the_failed_cell_has_the_number_that_jupyter_shows(failing: tuple[Project, Any]) -> None:
    (shown,) = re.findall(r"in cell \[?(\d+)\]? of", failing[1].stdout)
    assert shown in re.findall(r"Cell In\[(\d+)\]", failing[1].stdout)


def test_the_progress_without_a_terminal_is_a_line_for_each_step_on_stderr(
    failing: tuple[Project, Any],
) -> None:
    lines = failing[1].stderr.splitlines()
    assert re.match(r"job \(local\) at [0-9a-f]{12}$", lines[0])
    assert "show started" in lines
    assert [line for line in lines if re.match(r"show FAILED after \d+\.\d s$", line)]


def test_the_commit_of_a_dirty_tree_reaches_the_notebook_and_the_record(
    failing: tuple[Project, Any],
) -> None:
    project = failing[0]
    record = project.record("job")
    assert record["parameters"]["git_sha"] == project.git("rev-parse", "HEAD") + "-dirty"
    (show,) = [task for task in record["tasks"] if task["task_key"] == "show"]
    assert show["values"] == {"sha": record["parameters"]["git_sha"]}
    assert (show["state"], record["state"]) == ("FAILED", "FAILED")
    assert "KeyError" in show["error"]


def test_the_reports_lie_in_the_project_and_nothing_in_the_folder_of_the_call(
    failing: tuple[Project, Any],
) -> None:
    project = failing[0]
    (folder,) = project.runs.glob("job/*")
    names = {path.name for path in folder.iterdir()}
    assert {"run.json", "show.ipynb", "show.html"} <= names
    assert [path.name for path in (project.root / "below" / "deep").iterdir()] == ["keep"]


def test_a_report_as_a_page_loads_nothing_from_elsewhere(failing: tuple[Project, Any]) -> None:
    (page,) = failing[0].runs.glob("job/*/show.html")
    text = page.read_text(encoding="utf-8")
    assert "no such customer" in text
    assert re.findall(r"""(?:src|href)=["']?(?:https?:)?//[^"'> ]+""", text) == []
    assert re.findall(r"""import\(?\s*["'](?:https?:)?//[^"']+""", text) == []


# --- answers of the command, without kernels ----------------------------------------------------------


@pytest.fixture
def command(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """The command inside this process: exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(project.root)
        monkeypatch.setattr("sys.argv", ["churn", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (int(caught.value.code or 0), *capsys.readouterr())

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("param", ["text", "=1", ""])
def test_a_param_that_is_no_pair_is_refused_in_one_line(
    project: Project, command: Callable[..., tuple[int, str, str]], param: str
) -> None:
    project.write({"job": [good("a")]})
    code, output, error = command("run", "job", "--param", param)
    assert (code, output) == (2, "")
    assert error == f"churn: --param {param!r} is not of the form name=value\n"
    assert not project.runs.exists()


def test_a_param_may_hold_equals_signs_and_nothing_and_the_last_one_wins(
    project: Project, command: Callable[..., tuple[int, str, str]]
) -> None:
    names = [{"name": name, "default": "x"} for name in ("a", "b")]
    project.write({"job": {"parameters": names, "tasks": [good("t")]}})
    given = ("-p", "a=old", "-p", "a=x=y=z", "-p", "b=")
    code, output, _ = command("run", "job", *given, "--dry-run", "--json")
    assert code == 0
    assert json.loads(output)["parameters"] == {"a": "x=y=z", "b": ""}


def test_a_dry_run_shows_every_task_and_starts_nothing(
    project: Project, command: Callable[..., tuple[int, str, str]]
) -> None:
    project.notebook("echo", parameters="text: str = ''")
    nested = {"tasks": [notebook_task("in", "echo")]}
    tasks = [notebook_task("a", "echo"), good("b", depends_on=after("a")), run_job("inner")]
    project.write({"job": tasks, "inner": nested})
    code, output, error = command("run", "job", "--dry-run")
    assert (code, error) == (0, "")
    for shown in (
        "job, target local",
        "notebook_task",
        "condition_task",
        "run_job_task",
        "echo.ip",
    ):
        assert shown in output
    code, output, _ = command("run", "job", "--dry-run", "--json")
    assert [
        (row["task_key"], row["depends_on"], row["job"]) for row in json.loads(output)["tasks"]
    ] == [
        ("a", [], None),
        ("inner", [], "inner"),
        ("b", ["a"], None),
    ]
    assert not project.runs.exists()


@pytest.mark.parametrize(
    ("tasks", "code", "state"),
    [
        ([good("a")], 0, "SUCCESS"),
        ([good("a"), bad("b")], 1, "FAILED"),
        (
            [bad("a"), good("b", depends_on=after("a"), run_if="ALL_FAILED")],
            1,
            "SUCCESS_WITH_FAILURES",
        ),
        ([good("a"), bad("b", depends_on=after("a"), run_if="ALL_FAILED")], 0, "SUCCESS"),
    ],
)
def test_the_state_is_that_of_the_last_tasks_and_gives_the_exit_code(
    project: Project,
    command: Callable[..., tuple[int, str, str]],
    tasks: list[dict[str, Any]],
    code: int,
    state: str,
) -> None:
    project.write({"job": tasks})
    answer, output, _ = command("run", "job", "--json")
    assert (answer, json.loads(output)["state"]) == (code, state)
    assert project.record("job")["state"] == state


def test_one_task_alone_without_values_of_an_earlier_run_leaves_no_run_behind(
    project: Project, command: Callable[..., tuple[int, str, str]]
) -> None:
    left = "{{tasks.a.values.k}}"
    condition = {"op": "EQUAL_TO", "left": left, "right": "1"}
    second = {"task_key": "b", "depends_on": after("a"), "condition_task": condition}
    project.write({"job": [good("a"), second]})
    code, output, error = command("run", "job", "--only", "b")
    assert (code, output) == (2, "")
    assert error.splitlines()[-1].startswith(
        "churn: job.b needs values of a, which has not succeeded"
    )
    assert list(project.runs.glob("*/*")) == []


def test_the_pipeline_runs_its_jobs_in_their_order_and_no_other(
    project: Project, command: Callable[..., tuple[int, str, str]]
) -> None:
    given = {"parameters": [{"name": "day", "default": ""}], "tasks": [good("a")]}
    project.write(
        {"monitoring_job": [good("a")], "nightly": [bad("a")], "validation_job": given}
        | {"training_job": given}
    )
    code, output, _ = command("pipeline", "--json", "-p", "day=monday")
    content = json.loads(output)
    assert (code, content["state"]) == (0, "SUCCESS")
    order = ["training_job", "validation_job", "monitoring_job"]
    assert [run["job"] for run in content["jobs"]] == order
    assert [project.record(key)["parameters"] for key in order] == [
        {"day": "monday"},
        {"day": "monday"},
        {},
    ]
    assert not (project.runs / "nightly").exists()


def test_the_pipeline_starts_nothing_when_a_later_job_cannot_run(
    project: Project, command: Callable[..., tuple[int, str, str]]
) -> None:
    project.write({"training_job": [good("a")], "validation_job": [notebook_task("a", "gone")]})
    code, output, error = command("pipeline")
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert "gone.ipynb: no such notebook" in error
    assert not project.runs.exists()


def test_a_pipeline_without_jobs_is_refused(
    project: Project, command: Callable[..., tuple[int, str, str]]
) -> None:
    project.write({"other": [good("a")]})
    code, output, error = command("pipeline")
    assert (code, output, error.count("\n")) == (2, "", 1)
    assert "training_job" in error


# --- stopping --------------------------------------------------------------------------------------


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    """A `churn` command in the background, once a cell of it hangs."""
    process = subprocess.Popen(
        [str(CHURN), *arguments],
        cwd=project.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: (project.root / "hangs").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
    except BaseException:
        process.kill()
        raise
    return process


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_in_a_nested_job_leaves_no_process_and_says_so_in_both_records(
    project: Project, again: bool
) -> None:
    project.notebook("hang", HANGS)
    inner = [notebook_task("in", "hang", max_retries=3), good("never", depends_on=after("in"))]
    project.write({"job": [good("done"), run_job("inner", max_retries=3)], "inner": inner})
    process = start(project, "run", "job", "--json")
    assert len(processes_of(project.runs)) == 3  # the kernel, its child and the server
    process.send_signal(signal.SIGINT)
    wait_for(lambda: processes_of(project.runs) == [])
    if again:
        process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    record, nested = project.record("job"), project.record("inner")
    assert (record["state"], nested["state"]) == ("CANCELED", "CANCELED")
    assert {task["task_key"]: task["state"] for task in record["tasks"]} == {
        "done": "SUCCESS",
        "inner": "CANCELED",
    }
    assert [task["state"] for task in nested["tasks"]] == ["CANCELED", "SKIPPED"]
    assert json.loads(output)["state"] == "CANCELED"


def test_a_stopped_pipeline_does_not_go_on_with_the_next_job(project: Project) -> None:
    project.notebook("hang", HANGS)
    project.write({"training_job": [notebook_task("a", "hang")], "validation_job": [good("a")]})
    process = start(project, "pipeline", "--json")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    content = json.loads(output)
    assert content["state"] == "CANCELED"
    assert [run["job"] for run in content["jobs"]] == ["training_job"]
    assert not (project.runs / "validation_job").exists()
    wait_for(lambda: processes_of(project.runs) == [])


class Watcher(Reporter):
    """Reads run.json whenever something happens."""

    def __init__(self, runs: Path):
        self.runs = runs
        self.seen: list[dict[str, Any]] = []

    def read(self) -> None:
        self.seen += [json.loads(path.read_text()) for path in self.runs.glob("*/*/run.json")]

    def started(self, run_id: str, step: Step) -> None:
        self.read()

    def cell(self, run_id: str, step: Step, number: int, total: int) -> None:
        self.read()

    def ended(self, run_id: str, step: Step, task: TaskRun) -> None:
        self.read()


@pytest.fixture(scope="module")
def timed(make_project: Callable[[str], Project]) -> tuple[Project, JobRun, Watcher]:
    """A job whose tasks run out of time, each in its own way."""
    project = make_project("timed")
    project.notebook("hang", HANGS)
    project.notebook(
        "values",
        "from churn_lib import job_context\njob_context.task_values.set('k', {1, 2})",
        "open('x', 'w')",
    )
    endless = [notebook_task("in", "hang"), good("after", depends_on=after("in"))]
    project.write(
        {
            "job": [
                notebook_task("once", "hang", timeout_seconds=3, max_retries=2),
                notebook_task("twice", "hang", timeout_seconds=3, max_retries=1)
                | {"retry_on_timeout": True},
                run_job("endless", timeout_seconds=4),
                run_job("limited"),
                notebook_task("values"),
                good("cleanup", depends_on=after("once", "endless"), run_if="ALL_FAILED"),
            ],
            "endless": endless,
            "limited": {"timeout_seconds": 4, "tasks": endless},
        }
    )
    watcher = Watcher(project.runs)
    return project, run_plan(project.plan("job"), project.runs, watcher), watcher


def test_a_task_out_of_time_is_not_tried_again_unless_it_says_so(
    timed: tuple[Project, JobRun, Watcher],
) -> None:
    project, done, _ = timed
    assert (states(done)["once"], states(done)["twice"]) == ("TIMEDOUT", "TIMEDOUT")
    kept = {path.name for path in (project.runs / "job" / done.run_id).glob("*.attempt-*.ipynb")}
    assert kept == {"twice.attempt-1.ipynb"}


def test_a_job_run_by_a_task_out_of_time_is_stopped_with_it(
    timed: tuple[Project, JobRun, Watcher],
) -> None:
    project, done, _ = timed
    assert states(done)["endless"] == "TIMEDOUT"
    record = project.record("endless")
    assert record["state"] == "CANCELED"
    assert [task["state"] for task in record["tasks"]] == ["CANCELED", "SKIPPED"]


def test_a_job_out_of_time_fails_the_task_that_ran_it(
    timed: tuple[Project, JobRun, Watcher],
) -> None:
    project, done, _ = timed
    (task,) = [task for task in done.tasks if task.task_key == "limited"]
    assert (task.state, project.record("limited")["state"]) == ("FAILED", "TIMEDOUT")
    assert (task.error or "").startswith("limited ended TIMEDOUT; see ")
    assert task.values["run_id"] in (task.error or "")


def test_a_task_that_handles_failures_runs_after_those_out_of_time(
    timed: tuple[Project, JobRun, Watcher],
) -> None:
    assert states(timed[1])["cleanup"] == "SUCCESS"


def test_a_value_that_is_not_json_fails_its_task_with_the_message(
    timed: tuple[Project, JobRun, Watcher],
) -> None:
    (task,) = [task for task in timed[1].tasks if task.task_key == "values"]
    assert task.state == "FAILED"
    assert "task value k is not JSON: Object of type set" in (task.error or "")


def test_nothing_that_a_run_started_outlives_it(timed: tuple[Project, JobRun, Watcher]) -> None:
    assert (timed[0].root / "hangs").exists()
    wait_for(lambda: processes_of(timed[0].runs) == [])


def test_run_json_could_be_read_whenever_something_happened(
    timed: tuple[Project, JobRun, Watcher],
) -> None:
    _, done, watcher = timed
    seen = [record for record in watcher.seen if record["job"] == "job"]
    assert {record["state"] for record in seen} == {"RUNNING"}
    task_states = {task["state"] for record in seen for task in record["tasks"]}
    assert {"PENDING", "RUNNING", "TIMEDOUT"} <= task_states
    assert {record["run_id"] for record in seen} == {done.run_id}


def test_a_stop_that_comes_before_the_work_has_begun_is_not_lost() -> None:
    kernels, stopped = Kernels(), threading.Event()
    kernels.stop_all()
    kernels.add("a", stopped.set)
    assert stopped.is_set()


def test_a_timeout_while_the_kernel_starts_is_not_lost(project: Project) -> None:
    class Early(Kernels):
        def add(self, task_key: str, stop: Callable[[], None]) -> None:
            super().add(task_key, stop)
            self.stop(task_key)

    mark = project.notebook("mark", "open('ran', 'w').close()")
    with pytest.raises(ExecutionError):
        execute(mark, project.root / "out.ipynb", {}, dict(os.environ), Early(), "mark")
    assert not (project.root / "ran").exists()


def test_a_run_that_was_stopped_before_it_began_starts_nothing(project: Project) -> None:
    project.notebook("mark", "open('ran', 'w').close()")
    project.write({"job": [notebook_task("mark")]})
    kernels = Kernels()
    kernels.stop_all()
    done = run_plan(project.plan("job"), project.runs, kernels=kernels)
    assert (done.state, states(done)) == ("CANCELED", {"mark": "SKIPPED"})
    assert not (project.root / "ran").exists()


def test_the_latest_of_earlier_runs_gives_the_values_even_within_a_second(
    project: Project,
) -> None:
    left = {"op": "EQUAL_TO", "left": "{{tasks.make.values.k}}", "right": "9"}
    second = {"task_key": "use", "depends_on": after("make"), "condition_task": left}
    project.write({"job": [good("make"), second]})
    for number in range(10):
        done = run_plan(project.plan("job"), project.runs)
        folder = project.runs / "job" / done.run_id / "task_values"
        folder.mkdir()
        (folder / "make.json").write_text(json.dumps({"k": number}))
    done = run_plan(project.plan("job", only="use"), project.runs)
    assert done.tasks[0].values == {"outcome": "true"}
    with pytest.raises(PlanError, match="needs values of make"):
        run_plan(project.plan("job", only="use"), project.root / "elsewhere")


def test_a_warning_of_a_task_has_a_line_of_its_own(project: Project) -> None:
    message = "1 event of 1998-08-05, after the last complete day, is left out"
    project.notebook(
        "warns",
        f"from churn_lib import job_context\njob_context.task_values.set('warning', {message!r})",
    )
    project.write({"training_job": [notebook_task("warns")]})
    assert f"warns {message}" in project.churn("run", "training_job").stdout.splitlines()
