"""A notebook that does not run to its end fails its task, in one line that says where and how."""

import json
import os
import re
from pathlib import Path

import pytest

from churn_lib.bundle.execution import ExecutionError, Kernels, execute
from tests.conftest import Project, notebook, notebook_task

WORDS = "import os\nos.write(2, b'one\\ntwo  words\\n\\nthree\\nfour\\n')\n"
AFTER = "open('after', 'w').close()"


def failure(folder: Path, *sources: str, **more: str) -> str:
    """What is said about a notebook of these cells, without the folder."""
    path = notebook(folder / "job.ipynb", *sources, parameters="x: int = 1")
    environment = {**os.environ, **more}
    with pytest.raises(ExecutionError) as caught:
        execute(path, folder / "out.ipynb", {"x": "2"}, environment, Kernels(), "job")
    assert (folder / "out.ipynb").is_file() and (folder / "out.html").is_file()
    return str(caught.value).replace(f"{folder}{os.sep}", "")


@pytest.mark.parametrize(
    ("source", "fate"),
    [
        (f"{WORDS}os._exit(0)", "its process ended with exit code 0"),
        (
            f"{WORDS}os.kill(os.getpid(), 9)",
            "killed by SIGKILL, as the system does when memory runs out",
        ),
        (f"{WORDS}os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        (
            f"{WORDS}import threading\nthreading.Timer(0, os._exit, [1]).start()\n"
            "threading.Event().wait()",
            "its process ended with exit code 1",
        ),
    ],
)
def test_a_process_that_ends_names_the_cell_how_it_ended_and_the_last_log_lines(
    tmp_path: Path, source: str, fate: str
) -> None:
    message = failure(tmp_path, "'before'", source, AFTER)
    last = "last log lines: two words | three | four"
    assert message == f"the kernel died in cell [4] of out.ipynb: {fate}; {last}"
    assert not (tmp_path / "after").exists()


def test_a_process_that_ends_in_the_last_cell_has_not_succeeded(tmp_path: Path) -> None:
    message = failure(tmp_path, "import os\nos._exit(0)")
    assert message.startswith(
        "the kernel died in cell [3] of out.ipynb: its process ended with exit"
    )
    assert message.endswith("; it has logged nothing")


@pytest.mark.parametrize(
    ("source", "how"),
    [
        ("import sys\nsys.exit()", "SystemExit"),
        ("raise SystemExit('no\\n  more')", "SystemExit: no more"),
        ("quit()", "exit()"),
    ],
)
@pytest.mark.parametrize("after", [[AFTER], []], ids=["in the middle", "at the end"])
def test_a_cell_that_leaves_the_notebook_fails_it(
    tmp_path: Path, source: str, how: str, after: list[str]
) -> None:
    message = failure(tmp_path, source, *after)
    rest = "a job runs to its end or raises an error"
    assert message == f"cell [3] of out.ipynb ended the notebook with {how}; {rest}"
    assert not (tmp_path / "after").exists()


def test_a_kernel_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ipykernel.py").write_text("raise ImportError('the disk is full')")
    message = failure(tmp_path, "1", PYTHONPATH=str(tmp_path / "broken"))
    assert message.startswith("the kernel of out.ipynb died before the first cell: Kernel died")
    assert message.endswith("ImportError: the disk is full")
    assert "\n" not in message


def test_each_attempt_tells_its_own_log_lines_and_ends_in_failed(project: Project) -> None:
    source = (
        "import os, pathlib\npath = pathlib.Path('tries')\n"
        "number = len(path.read_text()) if path.exists() else 0\npath.write_text('x' * (number + 1))\n"
        "os.write(2, f'attempt {number}\\n'.encode())\nos._exit(0)"
    )
    project.notebook("early", source, AFTER)
    retried = notebook_task("early", max_retries=1)
    project.write({"job": [retried, notebook_task("next", "early", depends_on=[])]})
    answer = project.churn("run", "job", "--only", "early", "--json")
    (task,) = json.loads(answer.stdout)["tasks"]
    assert (answer.returncode, task["state"]) == (1, "FAILED")
    assert re.fullmatch(
        r"the kernel died in cell \[1\].*; last log lines: attempt 1", task["error"]
    )
