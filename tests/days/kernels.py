"""Runs job notebooks in processes that are forked from one that has the libraries of a commit loaded.

The runner of the project (`churn_lib.bundle.run`) runs the jobs; a task is a process of its own, as always,
and what takes the place of papermill here saves it the seconds in which a kernel starts and imports. `python -m
tests.days.kernels` is that process: a task a line on standard input, how it ended a line on standard output.
"""

import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import ibis
import nbformat
import sqlalchemy
import time_machine

from churn_lib.bundle.execution import ExecutionError
from churn_lib.job_context import ChurnError

WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
ROOT = Path(__file__).parent.parent.parent


def cells(notebook: Path) -> list[tuple[str, bool]]:
    """Source of each code cell, and whether it holds the parameters."""
    found = nbformat.read(notebook, as_version=4).cells
    return [
        (cell.source, "parameters" in cell.metadata.get("tags", []))
        for cell in found
        if cell.cell_type == "code"
    ]


class Writes:
    """Counts what a task writes: files, requests that change something, commits of Delta; kills it at one."""

    def __init__(self, killed_at: int):  # number of the write; 0: none
        self.killed_at, self.count = killed_at, 0

    def one(self) -> None:
        """A write is about to happen, or has just happened."""
        self.count += 1
        if self.count == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def event(self, name: str, arguments: tuple[Any, ...]) -> None:
        """What the interpreter tells of itself (sys.addaudithook)."""
        if name == "open" and isinstance(arguments[2], int):
            path, _, flags = arguments
            writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writing and not str(path).startswith("/dev/"):
                if self.count + 1 == self.killed_at and isinstance(path, str):
                    self.count += 2  # this file is begun, and nothing is in it
                    os.close(os.open(path, flags, 0o666))
                    os.kill(os.getpid(), signal.SIGKILL)
                self.one()
        elif name in WRITES or (
            name == "http.client.send" and not bytes(arguments[1][:4]).startswith(b"GET")
        ):
            self.one()

    def watch(self) -> None:
        """Begin to count."""
        import deltalake

        def counted(function: Any) -> Any:
            def before_and_after(*given: Any, **named: Any) -> Any:
                self.one()
                answer = function(*given, **named)
                self.one()
                return answer

            return before_and_after

        # written by Rust, of which the interpreter sees nothing
        for name in ("delete", "update", "vacuum"):
            setattr(deltalake.DeltaTable, name, counted(getattr(deltalake.DeltaTable, name)))
        from churn_lib.tables import delta

        delta.write_deltalake = counted(delta.write_deltalake)
        # written by SQLite, of which the interpreter sees nothing either
        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", lambda connection: self.one())
        sys.addaudithook(self.event)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """The cells of a notebook, here; this process is the task's own."""
    imported = ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    kept = {name: os.environ[name] for name in imported if name in os.environ}
    os.environ.clear()
    os.environ.update(kept | task["environment"])
    os.chdir(task["folder"])
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    writes = Writes(task.get("killed_at", 0))
    writes.watch()
    try:
        with time_machine.travel(task["clock"]):
            if "function" in task:
                module, _, name = task["function"].partition(":")
                function = getattr(importlib.import_module(module), name)
                return {"error": "", "answer": function(*task["given"])}
            if "words" in task:
                return {"error": "", "code": type_command(task["words"]), "writes": writes.count}
            run_cells(Path(task["notebook"]), task["parameters"])
        return {"error": "", "writes": writes.count}
    except ChurnError as error:
        return {"error": f"{type(error).__name__}: {error}", "writes": writes.count}
    except Exception:  # whatever a cell raises is how its task ends, as papermill has it
        return {"error": traceback.format_exc(limit=-12), "writes": writes.count}


def type_command(words: list[str]) -> int:
    """`churn` with these arguments; its exit code."""
    from churn_lib import cli

    sys.argv = ["churn", *words]
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def run_cells(notebook: Path, parameters: dict[str, str]) -> None:
    """Execute a notebook's code as a script, with other values than those of its parameters cell."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, (source, has_parameters) in enumerate(cells(notebook), start=1):
        exec(compile(source, f"cell [{number}]", "exec"), namespace)
        if has_parameters:
            namespace.update(parameters)


def fork(task: dict[str, Any]) -> dict[str, Any]:
    """Run a task in a child; what killed the child is its error."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        answer = json.dumps(run(task)).encode()
        os.write(writer, answer)
        sys.stdout.flush()
        os._exit(0)  # what the parent has to do at its end is not for the child
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        return json.loads(text)
    return {"error": f"killed by {signal.Signals(os.WTERMSIG(status)).name}", "writes": 0}


def preload(folder: Path) -> None:
    """Import what the notebooks of a checkout import."""
    namespace: dict[str, Any] = {}
    for notebook in sorted((folder / "nbs" / "jobs").glob("0*.ipynb")):
        imports = [source for source, _ in cells(notebook) if "from churn_lib" in source]
        lines = [line for source in imports for line in source.splitlines()]
        text = "\n".join(line for line in lines if line.startswith(("import ", "from ")))
        exec(text, namespace)
    _ = ibis.duckdb.connect  # ibis imports it when it is asked for


class Code:
    """The code of a commit, loaded once; `execute` is what the runner of the project calls for a notebook."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lock = threading.Lock()
        self.clock = datetime.datetime.now(datetime.UTC)  # what tasks take for the present
        self.killed = ("", 0)  # a task, and the write at which its next attempt is killed
        self.writes: dict[str, int] = {}  # task to how much it wrote when it last ended by itself
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CHURN_", "MLFLOW_"))}
        path = os.pathsep.join((str(folder), str(ROOT)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.days.kernels", str(folder)],
            env={**kept, "PYTHONPATH": path, "TZ": "UTC", "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)

    def execute(
        self,
        notebook: Path,
        output: Path,
        parameters: dict[str, str],
        environment: dict[str, str],
        kernels: Any,
        task_key: str,
        on_cell: Any = None,
        own: dict[str, str] | None = None,
    ) -> None:
        """As `churn_lib.bundle.execution.execute`, without a report."""
        whole = {**environment, **(own or {}), "PYTHONPATH": str(self.folder)}
        task = {"notebook": str(notebook), "parameters": parameters, "environment": whole}
        task |= {"log": str(output.with_suffix(".log")), "folder": str(notebook.parent)}
        if task_key == self.killed[0]:
            task["killed_at"], self.killed = self.killed[1], ("", 0)
        answer = self._ask(task)
        if answer["error"]:
            raise ExecutionError(answer["error"])
        self.writes[task_key] = answer["writes"]

    def command(
        self, words: list[str], environment: dict[str, str], folder: Path, killed_at: int = 0
    ) -> dict[str, Any]:
        """Run `churn` with these words; its exit code and what it has written to the terminal."""
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "command.log"
        log.unlink(missing_ok=True)
        own = {**environment, "PYTHONPATH": str(self.folder), "COLUMNS": "200"}
        task = {"words": words, "environment": own, "folder": str(self.folder), "log": str(log)}
        task["killed_at"] = killed_at
        return {"code": -1, **self._ask(task), "output": log.read_text()}

    def call(self, function: str, given: list[str], environment: dict[str, str], log: Path) -> Any:
        """What a function, `module:name`, answers in a process of its own; JSON there and back."""
        task = {"function": function, "given": given, "folder": str(self.folder)}
        answer = self._ask({**task, "environment": environment, "log": str(log)})
        assert not answer["error"], answer["error"]
        return answer["answer"]

    def _ask(self, task: dict[str, Any]) -> dict[str, Any]:
        task["clock"] = self.clock.timestamp()
        with self.lock:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())


def main(folder: Path) -> None:
    """Serve tasks until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    preload(folder)
    for line in sys.stdin:
        answers.write(json.dumps(fork(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
