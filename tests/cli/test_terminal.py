"""What a user sees in a terminal, narrow or wide, and what becomes of a job when the terminal goes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import (
    CHURN,
    ROOT,
    Project,
    after,
    bad,
    good,
    notebook_task,
    processes_of,
    wait_for,
)
from tests.terminals import Terminal

WAITS = """
import pathlib, time
pathlib.Path("waits").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.02)
"""
LONG = "a_task_with_a_name_of_some_length_that_does_not_fit_beside_anything_else"
STATES = {
    "first": "SUCCESS",
    "fails": "FAILED",
    "later": "SKIPPED",
    "handler": "SUCCESS",
    "due": "SUCCESS",
    "retrain": "EXCLUDED",
    "nested": "FAILED",
    LONG: "SUCCESS",
}


def every_kind(project: Project) -> Project:
    """A job with tasks that end in every state, one of them only after a second attempt."""
    project.notebook("fails", "raise KeyError('no such customer')")
    nested = {"job_id": "${resources.jobs.inner.id}"}
    tasks = [
        good("first"),
        notebook_task("fails", max_retries=1),
        good("later", depends_on=after("fails")),
        good("handler", depends_on=after("fails"), run_if="ALL_FAILED"),
        good("due"),
        good("retrain", depends_on=after("due", outcome="false")),
        {"task_key": "nested", "run_job_task": nested},
        good(LONG),
    ]
    inner = [bad("in"), good("never", depends_on=after("in"))]
    project.write({"job": tasks, "inner": inner})
    return project


@pytest.fixture(scope="module")
def shown(make_project: Callable[[str], Project]) -> dict[str, tuple[int, Terminal]]:
    """The same failing job in terminals of several kinds, all at the same time."""
    kinds: dict[str, tuple[int, dict[str, str]]] = {
        "60": (60, {}),
        "80": (80, {}),
        "200": (200, {}),
        "dumb": (80, {"TERM": "dumb"}),
        "no colour": (80, {"NO_COLOR": "1"}),
        "ascii": (80, {"PYTHONIOENCODING": "ascii"}),
    }
    started = {
        kind: Terminal(
            [str(CHURN), "run", "job"], every_kind(make_project(kind)).root, columns, variables
        )
        for kind, (columns, variables) in kinds.items()
    }
    return {kind: (terminal.end(), terminal) for kind, terminal in started.items()}


KINDS = ("60", "80", "200", "dumb", "no colour", "ascii")


@pytest.mark.parametrize("kind", KINDS)
def test_in_any_terminal_a_job_ends_with_its_own_exit_code_and_without_a_traceback(
    shown: dict[str, tuple[int, Terminal]], kind: str
) -> None:
    code, terminal = shown[kind]
    assert code == 1, terminal.text
    assert "progress display failed" not in terminal.text
    assert terminal.text.count("Traceback (most recent call last)") == 1  # the notebook's own


@pytest.mark.parametrize("kind", KINDS)
def test_in_any_terminal_the_errors_of_failed_tasks_are_printed(
    shown: dict[str, tuple[int, Terminal]], kind: str
) -> None:
    text = "\n".join(shown[kind][1].lines)
    for part in (
        "fails FAILED",
        "KeyError: 'no such customer'",
        "nested FAILED",
        "inner ended FAILED",
    ):
        assert part in text
    assert "Reports: .churn/runs/job/" in text


@pytest.mark.parametrize("kind", KINDS)
def test_in_any_terminal_every_task_is_shown_with_its_state_and_seconds_whole(
    shown: dict[str, tuple[int, Terminal]], kind: str
) -> None:
    lines = shown[kind][1].lines
    assert any(re.match(r" *job FAILED in \d+\.\d s *$", line) for line in lines)
    text = "\n".join(line.replace("│", "|") for line in lines)
    for key, state in STATES.items():
        name = re.escape(key)
        row = rf"\| {name} +\| {state} +\| +\d+\.\d +\|"
        block = rf"task +{name}.*\nstate +{state} *\nseconds +\d+\.\d"
        folded = rf"state +{state} *\nseconds +\d+\.\d"
        assert re.search(f"{row}|{block}", text) or (key == LONG and re.search(folded, text)), key


def test_a_table_is_never_wider_than_the_terminal(shown: dict[str, tuple[int, Terminal]]) -> None:
    for kind, columns in (("60", 60), ("80", 80), ("200", 200), ("dumb", 80)):
        lines = shown[kind][1].lines
        first = next(number for number, line in enumerate(lines) if "job FAILED in" in line)
        last = next(number for number, line in enumerate(lines) if line == "fails FAILED")
        assert max(map(len, lines[first:last])) <= columns
    assert any("│ first" in line for line in shown["200"][1].lines)


@pytest.mark.parametrize("kind", ["60", "80", "200", "no colour"])
def test_the_live_lines_show_how_each_task_ended(
    shown: dict[str, tuple[int, Terminal]], kind: str
) -> None:
    live, _, _ = shown[kind][1].text.partition("job FAILED in")
    for key, state in STATES.items():
        if key != LONG:
            assert re.search(rf"{re.escape(key)} +{state} +(\d:\d\d:\d\d|-:--:--)", live), key


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    shown: dict[str, tuple[int, Terminal]],
) -> None:
    raw = shown["dumb"][1].raw
    assert "\x1b" not in raw
    assert "first started" in raw
    assert "retrain EXCLUDED after 0.0 s" in raw


def test_without_colours_there_are_none(shown: dict[str, tuple[int, Terminal]]) -> None:
    assert re.findall(r"\x1b\[[0-9;]*3[0-7]m", shown["no colour"][1].raw) == []
    assert re.findall(r"\x1b\[[0-9;]*3[0-7]m", shown["80"][1].raw) != []


def test_json_in_a_file_is_one_document_while_the_terminal_shows_the_run(project: Project) -> None:
    every_kind(project)
    with (project.root / "answer.json").open("w") as file:
        terminal = Terminal([str(CHURN), "run", "job", "--json"], project.root, 80, stdout=file)
        assert terminal.end() == 1
    answer = json.loads((project.root / "answer.json").read_text())
    assert {task["task_key"]: task["state"] for task in answer["tasks"]} == STATES
    assert "retrain" in terminal.text
    assert "no such customer" not in terminal.text


def test_a_log_gets_lines_also_where_colours_are_forced(project: Project) -> None:
    project.write({"job": [good("a")]})
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm"}
    command = [str(CHURN), "run", "job"]
    answer = subprocess.run(
        command, cwd=project.root, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0
    assert "\x1b[?25l" not in answer.stderr  # no cursor is hidden
    assert "a started" in answer.stderr


# --- stopped, and left alone ---------------------------------------------------------------------------


@pytest.fixture
def waiting(project: Project) -> Project:
    """A job whose second task waits for a file `go`."""
    project.notebook("waits", WAITS)
    project.write(
        {"job": [good("quick"), notebook_task("waits"), good("last", depends_on=after("waits"))]}
    )
    return project


def start(project: Project, *command: str, **streams: Any) -> Terminal:
    """`churn run` in a terminal, once its cell waits."""
    terminal = Terminal([*command, str(CHURN), "run", "job"], project.root, 80, **streams)
    wait_for(lambda: (project.root / "waits").exists() or terminal.process.poll() is not None)
    assert terminal.process.poll() is None, terminal.text
    return terminal


def test_ctrl_c_at_the_keyboard_stops_the_run_and_shows_what_had_finished(waiting: Project) -> None:
    terminal = start(waiting)
    os.write(terminal.keyboard, b"\x03")
    assert terminal.end() == 130
    assert terminal.raw.count("\x1b[?25h") == terminal.raw.count("\x1b[?25l")  # the cursor is back
    assert "Traceback" not in terminal.text
    text = "\n".join(terminal.lines)
    for key, state in (("quick", "SUCCESS"), ("waits", "CANCELED"), ("last", "SKIPPED")):
        assert re.search(rf"{key} +│ {state}", text)
    wait_for(lambda: processes_of(waiting.runs) == [])


def test_a_window_that_is_closed_stops_the_run_and_leaves_its_record(waiting: Project) -> None:
    terminal = start(waiting)
    terminal.hang_up()
    assert terminal.process.wait(timeout=60) == 130
    record = waiting.record("job")
    assert record["state"] == "CANCELED"
    assert [task["state"] for task in record["tasks"]] == ["SUCCESS", "CANCELED", "SKIPPED"]
    wait_for(lambda: processes_of(waiting.runs) == [])


def test_a_run_under_nohup_goes_on_when_its_window_is_closed(waiting: Project) -> None:
    # nohup(1) would send the output to a file; here it goes on into the window that is gone
    terminal = start(waiting, "sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    terminal.hang_up()
    (waiting.root / "go").touch()
    assert terminal.process.wait(timeout=60) == 0
    assert waiting.record("job")["state"] == "SUCCESS"


def test_a_run_goes_on_when_nobody_reads_its_progress_any_more(waiting: Project) -> None:
    command = [str(CHURN), "run", "job", "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=waiting.root, text=True, **pipes) as process:
        wait_for(lambda: (waiting.root / "waits").exists() or process.poll() is not None)
        process.stderr.close()
        (waiting.root / "go").touch()
        answer = json.loads(process.stdout.read())
    assert (process.returncode, answer["state"]) == (0, "SUCCESS")


@pytest.mark.parametrize("arguments", [("run", "job"), ("run", "job", "--json"), ("settings",)])
def test_a_reader_that_has_enough_ends_nothing(
    project: Project, arguments: tuple[str, ...]
) -> None:
    project.write({"job": [good("a")]})
    (project.root / "settings.ini").write_bytes((ROOT / "settings.ini").read_bytes())
    reading, writing = os.pipe()
    os.close(reading)  # as `head` does
    command = [str(CHURN), *arguments]
    answer = subprocess.run(
        command, cwd=project.root, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert "Traceback" not in answer.stderr
    assert "Exception ignored" not in answer.stderr
    assert answer.returncode == 0
    if "run" in arguments:
        assert project.record("job")["state"] == "SUCCESS"


def test_output_that_finds_no_room_is_said_in_one_line_after_the_job(project: Project) -> None:
    project.write({"training_job": [good("a")], "validation_job": [good("a")]})
    with open("/dev/full", "w") as full:
        command = [str(CHURN), "pipeline"]
        answer = subprocess.run(
            command, cwd=project.root, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert answer.returncode == 1
    assert "Traceback" not in answer.stderr
    assert "churn: standard output: No space left on device; some of it is lost" in answer.stderr
    assert project.record("validation_job")["state"] == "SUCCESS"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_before_the_start_are_done_without(
    project: Project, closed: str
) -> None:
    project.write({"job": [good("a")]})
    command = ["sh", "-c", f'"$0" run job --json {closed}', str(CHURN)]
    answer = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
    assert (answer.returncode, "Traceback" in answer.stderr) == (0, False)
    assert project.record("job")["state"] == "SUCCESS"
    if ">&-" not in closed.replace("2>&-", ""):
        assert json.loads(answer.stdout)["state"] == "SUCCESS"


# --- the installation ----------------------------------------------------------------------------------

# a build backend that needs nothing from an index
BACKEND = """
import zipfile

def build_wheel(folder, settings=None, metadata=None, name="tiny"):
    file, info = f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(f"{folder}/{file}", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return file

def build_editable(folder, settings=None, metadata=None):
    return build_wheel(folder, name="project")
"""
BUILD = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[str], tuple[list[str], dict[str, str]]]:
    """The installer's command for a lock file of that content, and its environment: pip, no index, no uv."""
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "pyproject.toml").write_text(
        f'{BUILD}[project]\nname = "project"\nversion = "1.0"\n'
    )
    (tmp_path / "wheels").mkdir()
    build = "import sys, backend; backend.build_wheel('wheels')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True)
    pip = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_CONFIG_FILE": os.devnull,
    }

    def command(lock: str) -> tuple[list[str], dict[str, str]]:
        (tmp_path / "some.lock").write_text(lock)
        script = str(ROOT / "tools" / "install.sh")
        variables = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, **pip}
        return ["sh", script, ".venv", "some.lock"], variables

    return command


def test_an_installation_shows_in_a_terminal_how_far_it_is(
    tmp_path: Path, installed: Callable[[str], tuple[list[str], dict[str, str]]]
) -> None:
    command, variables = installed("tiny==1.0\n")
    terminal = Terminal(command, tmp_path, 80, variables)
    assert terminal.end() == 0, terminal.text
    assert "\r\x1b[Kinstall: found 1 packages, " in terminal.raw
    assert terminal.raw.count("\n") == 3  # everything else was one line, cleared in the end
    assert list(tmp_path.glob(".venv/lib/*/site-packages/tiny.py"))


def test_an_installation_that_fails_says_why_and_stops(
    tmp_path: Path, installed: Callable[[str], tuple[list[str], dict[str, str]]]
) -> None:
    command, variables = installed("tiny==1.0\nabsent==2.0\n")
    terminal = Terminal(command, tmp_path, 80, variables)
    assert terminal.end() == 1
    assert "No matching distribution found for absent==2.0" in terminal.text
    assert list(tmp_path.glob(".venv/lib/*/site-packages/project.py")) == []


def test_an_installation_is_a_few_lines_in_a_log(
    tmp_path: Path, installed: Callable[[str], tuple[list[str], dict[str, str]]]
) -> None:
    command, variables = installed("tiny==1.0\n")
    environment = {**os.environ, **variables}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    first, second, third = answer.stdout.splitlines()
    assert first.startswith("install: making .venv with Python 3.")
    assert second == "install: some.lock into .venv (a minute or two, the first time)"
    assert third == "install: this project"
