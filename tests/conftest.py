"""A project of a few lines, written by the test that needs it, and the command to run it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook
from xdist.scheduler import LoadFileScheduling

from churn_lib import bundle
from churn_lib.bundle import Plan, make_plan
from churn_lib.tables.spark import SparkTables
from tests import shared

ROOT = Path(__file__).parent.parent
CHURN = Path(sys.executable).parent / "churn"
STRIPPED = ("CHURN_", "MLFLOW_TRACKING", "MLFLOW_REGISTRY", "DATABRICKS_", "BUNDLE_VAR_")
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
# read before `own_environment` takes the variables away
SPARK_WANTED = os.environ.get("CHURN_TEST_SPARK") != "0"
SPARK_CACHE = os.environ.get("CHURN_SPARK_CACHE")
# one process takes all of them, so that one session of Spark is started, and warm for most
ON_SPARK = (
    "test_spark_jobs.py",
    "monitoring/test_windows.py",
    "monitoring/test_contacts.py",
    "monitoring/test_uncontacted.py",
    "tables/test_spark.py",
    "features/test_spark.py",
    "scoring/test_spark.py",
)
# a process takes whole files: the long ones come first, so that none is left alone at the end
LONG_FIRST = (
    *ON_SPARK,
    "test_days.py",
    "tutorials/test_ship_a_change.py",
    "tutorials/test_a_day_in_production.py",
    "tutorials/test_own_events.py",
    "test_everyday.py",
    "faults/test_kills.py",
    "test_pipeline.py",
    "serving/test_deploy.py",
    "test_another_problem.py",
    "test_former_versions.py",
    "test_reproduction.py",
    "test_rehearsal.py",
    "cli/test_terminal.py",
    "registry/test_promotion.py",
)
WITHOUT_SPARK = "CHURN_TEST_SPARK=0 leaves out what needs Spark"


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll until the condition holds; the test fails when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(autouse=True, scope="session")
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the developer's stores and workspaces reaches a test."""
    folder = tmp_path_factory.getbasetemp()
    shared.share(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith(STRIPPED) or name in GIT_PLACES:
                monkeypatch.delenv(name)
        yield


@pytest.fixture(autouse=True, scope="module")
def own_registry() -> Iterator[None]:
    """No file of tests inherits the MLflow store that another has chosen for the process."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "CHURN_STORE_TRACKING_URI")
    for name in names:
        os.environ.pop(name, None)
    yield
    for name in names:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The one Spark session of the run, with Delta; its catalog is `spark_catalog`."""
    if not SPARK_WANTED:
        pytest.skip(WITHOUT_SPARK)
    from tools import spark as local_spark  # notebooks of tests import this file from elsewhere

    with ExitStack() as stack:
        try:
            warehouse = tmp_path_factory.mktemp("warehouse")
            cache = Path(SPARK_CACHE) if SPARK_CACHE else local_spark.cache_folder()
            session = stack.enter_context(local_spark.session(warehouse, cache))
        except local_spark.SparkUnavailableError as error:
            pytest.fail(f"{error}; CHURN_TEST_SPARK=0 leaves these tests out", pytrace=False)
        yield session


@pytest.fixture
def spark_tables(spark: Any) -> Iterator[SparkTables]:
    """Tables of Spark, none there yet."""
    yield SparkTables(spark, "spark_catalog")
    for schema in spark.catalog.listDatabases():
        if schema.name != "default":
            spark.sql(f"DROP SCHEMA `{schema.name}` CASCADE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs Spark can be chosen by its mark; long files begin."""
    for item in items:
        if "spark" in item.path.name:
            item.add_marker(pytest.mark.spark)
    order = {ROOT / "tests" / name: number for number, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


class OneSpark(LoadFileScheduling):
    """A process takes whole files, and one of them all files that need Spark."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "spark" if file.endswith(ON_SPARK) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneSpark:
    return OneSpark(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out, whatever the verbosity."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(WITHOUT_SPARK in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{WITHOUT_SPARK}: {count} tests skipped", yellow=True)


def notebook(path: Path, *sources: str, parameters: str = "", **metadata: Any) -> Path:
    """Write a notebook; `parameters` is the source of its parameters cell."""
    cells = [new_code_cell(source) for source in sources]
    if parameters:
        cells.insert(0, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)
    return path


def notebook_task(task_key: str, stem: str | None = None, **more: Any) -> dict[str, Any]:
    """A task that runs the notebook `stem`, its own name when None."""
    body: dict[str, Any] = {"notebook_path": f"{stem or task_key}.ipynb"}
    if "base_parameters" in more:
        body["base_parameters"] = more.pop("base_parameters")
    return {"task_key": task_key, "notebook_task": body, **more}


def run_job(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **given: Any
) -> dict[str, Any]:
    """Run the cells of a job notebook in this process; its task values, kept in `folder`."""
    monkeypatch.setenv("CHURN_TASK_KEY", name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in nbformat.read(ROOT / "nbs" / "jobs" / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), namespace)
            if "parameters" in cell.metadata.get("tags", []):
                namespace |= {"git_sha": "abc123", "rehearsal": False, **given}
    return json.loads((folder / "values" / f"{name}.json").read_text())


def good(task_key: str, **more: Any) -> dict[str, Any]:
    """A task that succeeds without a kernel."""
    body = {"op": "EQUAL_TO", "left": "1", "right": "1"}
    return {"task_key": task_key, "condition_task": body, **more}


def bad(task_key: str, **more: Any) -> dict[str, Any]:
    """A task that fails without a kernel."""
    body = {"op": "LESS_THAN", "left": "apples", "right": "1"}
    return {"task_key": task_key, "condition_task": body, **more}


def after(*task_keys: str, outcome: str | None = None) -> list[dict[str, str]]:
    """What `depends_on` says."""
    more = {} if outcome is None else {"outcome": outcome}
    return [{"task_key": task_key, **more} for task_key in task_keys]


def processes_of(folder: Path) -> list[int]:
    """Process ids that write to a file inside `folder`: the run's kernels, what they have started, their server."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            output = os.readlink(f"/proc/{process.pid}/fd/1")
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and output.startswith(f"{folder}{os.sep}"):
                found.append(process.pid)
    return found


class Project:
    """A bundle in a folder of its own."""

    def __init__(self, root: Path):
        self.root = root
        self.runs = root / ".churn" / "runs"
        root.mkdir(parents=True, exist_ok=True)

    def notebook(self, stem: str, *sources: str, parameters: str = "", **metadata: Any) -> Path:
        return notebook(self.root / f"{stem}.ipynb", *sources, parameters=parameters, **metadata)

    def write(self, jobs: dict[str, Any], **more: Any) -> None:
        """Write databricks.yml; a job given as a list of tasks has nothing else."""
        bodies = {
            key: {"tasks": job} if isinstance(job, list) else job for key, job in jobs.items()
        }
        content = {"bundle": {"name": "tiny"}, "resources": {"jobs": bodies}, **more}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self.root / "databricks.yml").write_text(text)

    def plan(self, job: str, only: str | None = None, **given: str) -> Plan:
        return make_plan(bundle.load("local", self.root), job, given, only)

    def commit(self) -> str:
        """Make the folder a git checkout without changes; the commit."""
        (self.root / ".gitignore").write_text(".churn/\n")
        self.git("init", "--quiet")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--no-verify", "--message", "all")
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        identity = ("user.name=t", "user.email=t@example.org", "commit.gpgsign=false")
        options = [part for setting in identity for part in ("-c", setting)]
        command = ["git", "-C", str(self.root), *options, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def churn(self, *arguments: str, folder: str = ".") -> subprocess.CompletedProcess[str]:
        """The `churn` command, called in `folder` of the project."""
        return subprocess.run(
            [str(CHURN), *arguments],
            cwd=self.root / folder,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def record(self, job: str) -> dict[str, Any]:
        """The run.json of the one run of `job`."""
        (path,) = self.runs.glob(f"{job}/*/run.json")
        return json.loads(path.read_text())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def make_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Project]:
    return lambda name: Project(tmp_path_factory.mktemp("module") / name)
