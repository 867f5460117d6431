"""Kernels are forks of one process, and as separate as processes that start by themselves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import nbformat
import psutil
import pytest

from churn_lib.bundle import run_plan
from churn_lib.bundle.execution import ExecutionError, Kernels, execute
from churn_lib.bundle.kernel_server import KernelServer, KernelServers
from tests.conftest import Project, notebook, notebook_task, wait_for

LOOK = """
import json, os, sys, numpy
from churn_lib import settings
seen = {"pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "key": os.environ["KEY"]}
seen |= {"drawn": numpy.random.random(), "earlier": hasattr(settings, "mark")}
settings.mark = 1
print(json.dumps(seen))
"""

START = """
import json, os, signal, sys, time
signals = {number: str(signal.getsignal(number)) for number in (2, 13, 15, 17)}
main = sys.modules["__main__"].__dict__ is globals()
start = {"path": sys.path, "argv": sys.argv[0], "main": main, "names": sorted(os.environ)}
start |= {"folder": os.getcwd(), "zone": time.tzname, "signals": signals, "flags": str(sys.flags)}
start |= {"mask": os.umask(0o22)}
print(json.dumps(start))
"""


@pytest.fixture
def kernels() -> Iterator[Kernels]:
    with closing(KernelServers()) as servers:
        yield Kernels(servers)


def run(folder: Path, kernels: Kernels, *sources: str, **more: str) -> str:
    """What the last cell of a notebook has printed."""
    path = notebook(folder / "job.ipynb", *sources)
    output = folder / "out.ipynb"
    execute(path, output, {}, {**os.environ, "KEY": "", **more}, kernels, "job")
    return nbformat.read(output, as_version=4).cells[-1].outputs[0].text


def test_kernels_of_a_run_share_what_is_imported_and_nothing_else(
    tmp_path: Path, kernels: Kernels
) -> None:
    one, two = (
        json.loads(run(tmp_path, kernels, LOOK, CHURN_TASK_KEY=key, KEY="x")) for key in "ab"
    )
    assert one["parent"] == two["parent"] != os.getpid()
    assert one["pid"] == one["group"] != two["pid"]
    assert (one["earlier"], two["earlier"]) == (False, False)
    assert one["drawn"] != two["drawn"]


def test_a_kernel_begins_as_one_that_jupyter_has_started(
    tmp_path: Path, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked = json.loads(run(tmp_path, kernels, START, TZ="Asia/Tokyo"))
    monkeypatch.setattr(sys, "platform", "darwin")
    started = json.loads(run(tmp_path, kernels, START, TZ="Asia/Tokyo"))
    assert forked == started
    assert forked["zone"] == ["JST", "JST"]


def test_a_kernel_sees_its_own_variables_and_folder(tmp_path: Path, kernels: Kernels) -> None:
    source = "import os, neighbour\nprint(neighbour.NAME, os.environ.get('CHURN_TASK_KEY'))"
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "neighbour.py").write_text(f"NAME = {name!r}")
        assert run(folder, kernels, source, CHURN_TASK_KEY=name) == f"{name} {name}\n"
    assert run(tmp_path, kernels, "import os\nprint(os.environ.get('CHURN_TASK_KEY'))") == "None\n"


def test_variables_that_an_import_sets_are_there(tmp_path: Path, kernels: Kernels) -> None:
    source = (
        "import os\nfrom churn_lib import registry\nprint(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    named = ("MLFLOW_DISABLE_TELEMETRY", "CHURN_TASK_KEY")
    without = {name: value for name, value in os.environ.items() if name not in named}
    path = notebook(tmp_path / "job.ipynb", source)
    for value in ({}, {"MLFLOW_DISABLE_TELEMETRY": "1"}):
        execute(path, tmp_path / "out.ipynb", {}, without | value, kernels, "job")
        printed = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[0].outputs[0].text
        assert printed == f"{value.get('MLFLOW_DISABLE_TELEMETRY', 'true')}\n"


def test_another_environment_has_a_server_of_its_own(tmp_path: Path, kernels: Kernels) -> None:
    source = "import os\nprint(os.getppid())"
    parents = {run(tmp_path, kernels, source, SHARED=value) for value in ("1", "1", "2")}
    assert len(parents) == 2


def test_a_server_that_was_killed_takes_its_kernels_along_and_is_replaced(
    tmp_path: Path, kernels: Kernels
) -> None:
    kill = "import os, signal\nos.kill(os.getppid(), 9)\nsignal.pause()"
    with pytest.raises(ExecutionError, match=r"the kernel died in cell \[1\] of .*out.ipynb"):
        run(tmp_path, kernels, kill)
    assert run(tmp_path, kernels, "print('again')") == "again\n"


def test_kernels_of_code_that_knows_no_server_are_forked_too(
    tmp_path: Path, kernels: Kernels
) -> None:
    """As the commit of an old version, which is trained again."""
    (tmp_path / "churn_lib").mkdir()
    (tmp_path / "churn_lib" / "__init__.py").write_text("AGE = 'old'")
    source = "from churn_lib import AGE\nprint(AGE)"
    assert run(tmp_path, kernels, source, PYTHONPATH=str(tmp_path)) == "old\n"


def test_a_library_that_starts_a_thread_is_not_forked(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    log, environment = tmp_path / "log", {**os.environ, "PYTHONPATH": str(tmp_path)}
    server = KernelServer(environment)
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('pandas' in sys.modules, sys.argv[1:])")
    command = [sys.executable, str(script), "given"]
    place = {"environment": environment, "folder": str(tmp_path), "log": str(log)}
    kernel = server.start(command=command, **place, modules=["pandas", "threaded"])
    assert kernel.wait(60) == 0
    assert log.read_text() == "False ['given']\n"
    server.close()


def test_what_an_import_prints_is_in_the_log_of_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("import warnings\nwarnings.warn('an old file')\n1 / 0")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    server = KernelServer(environment)
    command = [sys.executable, "-m", "ipykernel_launcher", "--version"]
    log = tmp_path / "log"
    place = {"environment": environment, "folder": str(tmp_path), "log": str(log)}
    kernel = server.start(command=command, **place, modules=["loud"])
    assert kernel.wait(60) == 0
    assert "UserWarning: an old file" in log.read_text()
    server.close()


def test_a_run_leaves_no_server_behind(project: Project) -> None:
    project.notebook("look", "import os\nopen('parent', 'w').write(str(os.getppid()))")
    project.write({"job": [notebook_task("look")]})
    assert run_plan(project.plan("job"), project.root / "runs").succeeded
    assert not psutil.pid_exists(int((project.root / "parent").read_text()))


def test_a_run_that_is_killed_takes_server_and_kernels_along(project: Project) -> None:
    source = (
        "import os, signal, subprocess\nchild = subprocess.Popen(['sleep', '600'])\n"
        "open('part', 'w').write(f'{os.getpid()} {os.getppid()} {child.pid}')\n"
        "os.rename('part', 'pids')\nsignal.pause()"
    )
    project.notebook("long", source)
    project.write({"job": [notebook_task("long")]})
    command = [Path(sys.executable).parent / "churn", "run", "job"]
    with subprocess.Popen(command, cwd=project.root, stderr=subprocess.DEVNULL) as running:
        wait_for((project.root / "pids").exists)
        running.send_signal(signal.SIGKILL)
    for pid in map(int, (project.root / "pids").read_text().split()):
        wait_for(lambda pid=pid: not psutil.pid_exists(pid) or is_dead(pid))


def is_dead(pid: int) -> bool:
    """Whether only its entry in the table of processes is left."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
