"""What the processes of one run of the tests share: stores that are made once and copied, warm commands."""

import atexit
import fcntl
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from churn_lib import bundle
from churn_lib.bundle import make_plan, run_plan
from churn_lib.bundle.execution import Kernels
from churn_lib.bundle.kernel_server import KernelServers
from churn_lib.bundle.run import JobRun
from churn_lib.settings import Settings

# a process that has imported what jobs and commands import, and forks: each fork saves seconds
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "churn_lib.cli",
        "churn_lib.gate.report",
        "churn_lib.registry.copy",
        "churn_lib.serving.deploy",
        "mlflow.store.model_registry.sqlalchemy_store",
        "mlflow.store.tracking.sqlalchemy_store",
        "tests.gate.cases",
    ]
)
_folder: list[Path] = []


def share(folder: Path) -> None:
    """Name the folder that all processes of this run have in common."""
    _folder[:] = [folder]


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first process to ask fills; whoever asks copies it and leaves it as it is."""
    folder = _folder[0] / name
    with (_folder[0] / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = folder.with_name(f"{name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def empty_mlflow(config: Settings) -> None:
    """Give a new store the database of MLflow: making one takes a second, copying it none."""

    from churn_lib import registry  # takes seconds, and most tests do without

    def make(folder: Path) -> None:
        elsewhere = {"store": folder, "experiment": "/another"}
        registry.connect(config.model_copy(update=elsewhere))

    config.store.mkdir(parents=True, exist_ok=True)
    shutil.copy(made_once("empty_mlflow", make) / "mlflow.db", config.store)


def _command(
    arguments: tuple[str, ...], folder: str, environment: dict[str, str], answer: str
) -> None:
    for number, name in ((0, os.devnull), (1, f"{answer}/stdout"), (2, f"{answer}/stderr")):
        file = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    kept = ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")  # of the import
    environment = {name: os.environ[name] for name in kept if name in os.environ} | environment
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["churn", *arguments]
    from churn_lib import cli

    cli.main()


def warm_churn(
    *arguments: str, environment: dict[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The `churn` command in a fork of a process that has imported MLflow already."""
    with tempfile.TemporaryDirectory() as answer:
        given = (arguments, str(folder or Path.cwd()), environment, answer)
        process = PROCESSES.Process(target=_command, args=given)
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, 300)
        texts = [(Path(answer) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


KERNELS = KernelServers()  # of this process: what the notebooks import is imported once
atexit.register(KERNELS.close)


def run_job(config: Settings, job: str, only: str | None = None, **parameters: str) -> JobRun:
    """`churn run` of a job of this project on a store, without the seconds in which the command starts."""
    root = Path(__file__).parent.parent
    plan = make_plan(bundle.load("local", root), job, parameters, only)
    own = {"CHURN_SETTINGS": str(config.root / "settings.ini")}
    with mock.patch.dict(os.environ, own):
        return run_plan(plan, config.store / "runs", kernels=Kernels(KERNELS))
