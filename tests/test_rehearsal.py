"""A job notebook that somebody runs by hand shows what the job would do, and changes nothing official."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ibis
import nbformat
import pytest
from nbclient import NotebookClient

from churn_lib import registry, settings, tables
from churn_lib.bundle import PlanError
from churn_lib.data import simulation
from churn_lib.monitoring import alerts
from churn_lib.serving import deploy
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables, RehearsalTables, TableChanged, TableError, Tables
from tests.conftest import ROOT, Project, notebook_task, run_job
from tests.monitoring.test_alerts import Receiver, receiver  # noqa: F401

NOTEBOOKS = sorted(path.stem for path in (ROOT / "nbs" / "jobs").glob("*.ipynb"))
TRAIN = "02_train_and_register"
CUSTOMERS = 3_000
OFFICIAL = ("01_feature_engineering", TRAIN, "03_validate_and_promote", "05_score_customers")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Settings]]:
    """A store of made-up customers with a version at Production and its predictions."""
    folder = tmp_path_factory.mktemp("store")
    text = (
        (ROOT / "settings.ini").read_text().replace("\ndata.snapshots = 4", "\ndata.snapshots = 2")
    )
    (folder / "settings.ini").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_SETTINGS", str(folder / "settings.ini"))
        patch.setenv("CHURN_TASK_VALUES", str(folder / "values"))
        config = settings.load("local")
        store = tables.connect(config)
        for name, rows in zip(("events", "customers"), simulation.simulate(CUSTOMERS), strict=True):
            store.overwrite(f"bronze.{name}", ibis.memtable(rows))
        for name in OFFICIAL:
            run_job(name, folder, patch)
        yield folder, config


def official(config: Settings) -> dict[str, Any]:
    """All that a rehearsal must leave as it is."""
    models, store = registry.connect(config), tables.connect(config)
    assert isinstance(store, DeltaTables)
    versions = [(each.version, each.tags, each.description) for each in models.all()]
    artifacts = [
        [file.path for file in models.client.list_artifacts(each.run_id, folder)]
        for each in models.all()
        for folder in (None, "gate")
    ]
    return {
        "aliases": models.aliases(),
        "versions": versions,
        "tags": models.model_tags(),
        "artifacts": artifacts,
        "tables": {name: store.version(name) for name in store.names()},
        "endpoint": deploy.status(config),
        "serving": sorted(config.store.glob("serving/**")),
    }


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_job_notebook_rehearses_unless_it_is_told_otherwise(
    place: tuple[Path, Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    folder, config = place
    before = official(config)
    default = {"07_move_production": {"action": "rollback", "reason": "to see"}}.get(name, {})
    values = run_job(name, folder, monkeypatch, rehearsal=True, **default)
    assert capsys.readouterr().out.startswith("This is a rehearsal: no version, alias, endpoint")
    assert official(config) == before
    if name == TRAIN:
        run = registry.connect(config).client.get_run(values["run_id"])
        assert (values["model_version"], run.data.tags["rehearsal"]) == (0, "true")
        assert run.info.run_name.startswith("rehearse ")
        assert run.data.metrics["roc_auc"] == pytest.approx(values["roc_auc"], abs=1e-6)
    if name == "04_deploy_endpoint":
        assert values == {"outcome": "rehearsal"}
    if name == "05_score_customers":
        assert values["customers"] == CUSTOMERS
        assert values["predictions_version"] == before["tables"]["gold.predictions"] + 1
    if name == "06_monitor":
        assert values["verdict"] in ("ok", "investigate", "retrain")
        assert not {"gold.profile_metrics", "gold.alerts"} & before["tables"].keys()


def execute(**given: str) -> nbformat.NotebookNode:
    """Run All of the training notebook in a kernel of its own, with lines of its parameters cell edited."""
    path = ROOT / "nbs" / "jobs" / f"{TRAIN}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [each for each in notebook.cells if "parameters" in each.metadata.get("tags", [])]
    for old, new in given.items():
        line = next(line for line in cell.source.splitlines() if line.startswith(f"{old}:"))
        cell.source = cell.source.replace(line, f"{line.partition('=')[0]}= {new}")
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
    return notebook


def first_output(notebook: nbformat.NotebookNode) -> str:
    return next(cell.outputs[0] for cell in notebook.cells if cell.get("outputs")).get("text", "")


def test_run_all_in_jupyter_registers_when_asked_to_and_only_then(
    place: tuple[Path, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, config = place
    for name in ("CHURN_TASK_VALUES", "CHURN_TASK_KEY"):
        monkeypatch.delenv(name, raising=False)
    models = registry.connect(config)
    before = official(config)
    shown = first_output(execute(git_sha="'abc'"))
    assert official(config) == before
    assert "For real: `churn run JOB`, or rehearsal = False in the parameters cell." in shown
    asked = execute(git_sha="'abc'", rehearsal="False")
    assert "rehearsal" not in first_output(asked)
    newest = models.numbers()[-1]
    assert len(models.numbers()) == len(before["versions"]) + 1
    assert models.aliases() == {**before["aliases"], "Staging": newest}


def test_a_rehearsed_monitor_tells_nobody(
    place: tuple[Path, Settings],
    monkeypatch: pytest.MonkeyPatch,
    receiver: type[Receiver],  # noqa: F811
) -> None:
    folder, config = place
    store = tables.connect(config)
    raised = alerts.Signal("quality", (True,) * 3, tuple(map(_day, range(3))), "quality is lost")
    alerts.update(store, [raised], config.model_name, 1, 2, 3)
    run_job("06_monitor", folder, monkeypatch, rehearsal=True)
    assert receiver.bodies == []
    assert not alerts.open_alerts(store, config.model_name)[0].notified
    alerts.notify(store, config.model_name)
    assert [body["cause"] for body in receiver.bodies] == ["quality"]


def _day(number: int) -> datetime.date:
    return datetime.date(2024, 1, 1 + number)


# --- jobs ask for it -------------------------------------------------------------------------------


def test_a_job_that_does_not_say_whether_it_rehearses_is_refused(project: Project) -> None:
    project.notebook("work", "1", parameters="rehearsal: bool = True")
    declared = [{"name": "rehearsal", "default": "false"}]
    project.write(
        {
            "silent": [notebook_task("work")],
            "by job": {"parameters": declared, "tasks": [notebook_task("work")]},
            "by task": [notebook_task("work", base_parameters={"rehearsal": "false"})],
        }
    )
    with pytest.raises(PlanError, match=r"silent\.work: work\.ipynb rehearses by default"):
        project.plan("silent")
    assert project.plan("by job").parameters == {"rehearsal": "false"}
    assert project.plan("by job", rehearsal="true").parameters == {"rehearsal": "true"}
    project.plan("by task")


# --- tables ------------------------------------------------------------------------------------------


@pytest.fixture(params=["an empty store", "a store with rows"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[DeltaTables, Tables, DeltaTables]:
    """A store, a rehearsal on it, and its copy that is really written to."""
    stores = tuple(DeltaTables(tmp_path / name) for name in ("store", "copy"))
    if request.param == "a store with rows":
        for store in stores:
            store.overwrite("gold.t", rows("1", "a"), {"day": "1"})
            store.overwrite("gold.t", rows("2", "b"), {"day": "2"})
    return stores[0], RehearsalTables(stores[0]), stores[1]


def rows(day: str, *names: str) -> ibis.Table:
    parts = [{"k": name, "v": [{"x": 1.5}], "day": day} for name in names]
    return ibis.memtable(
        parts, schema={"k": "string", "v": "array<struct<x: float64>>", "day": "string"}
    )


def found(store: Any, version: int | None = None) -> list[dict[str, Any]]:
    table = store.read("gold.t", version).order_by("day", "k")
    return table.select("k", "v", "day").to_pyarrow().to_pylist()


def test_what_is_read_in_a_rehearsal_is_what_the_store_would_have(
    both: tuple[DeltaTables, Any, DeltaTables],
) -> None:
    store, rehearsing, copy = both
    before = {name: store.version(name) for name in store.names()}
    steps = [
        lambda to: to.overwrite("gold.t", rows("2", "c", "d"), {"day": "2"}),
        lambda to: to.append("gold.t", rows("2", "e")),
        lambda to: to.overwrite("gold.t", rows("3", "f"), {"day": "3"}),
        lambda to: to.append_if_unchanged("gold.t", rows("1", "g"), to.version("gold.t")),
        lambda to: to.overwrite("gold.t", rows("2"), {"day": "2"}),
        lambda to: to.overwrite("gold.t", rows("9", "z")),
    ]
    versions = []
    for step in steps:
        versions.append(step(rehearsing))
        assert versions[-1] == step(copy) == rehearsing.version("gold.t")
        assert found(rehearsing) == found(copy)
    for version in range(versions[-1] + 1):
        assert found(rehearsing, version) == found(copy, version)
    assert {name: store.version(name) for name in store.names()} == before


def test_a_rehearsal_decides_like_the_store_who_came_first(
    both: tuple[DeltaTables, Any, DeltaTables],
) -> None:
    _, rehearsing, copy = both
    for to in (rehearsing, copy):
        with pytest.raises(TableChanged):
            to.append_if_unchanged("gold.t", rows("1", "a"), 7)
        assert to.append_if_unchanged("gold.new", rows("1", "a"), -1) == 0
        with pytest.raises(TableChanged):
            to.append_if_unchanged("gold.new", rows("1", "a"), -1)
        with pytest.raises(TableError):
            to.version("gold.never")


def test_a_rehearsal_takes_a_column_that_is_new(both: tuple[DeltaTables, Any, DeltaTables]) -> None:
    _, rehearsing, _ = both
    rehearsing.append("gold.t", rows("4", "y"))
    rehearsing.append("gold.t", rows("4", "z").mutate(score=ibis.literal(0.5)))
    scores = rehearsing.read("gold.t").filter(ibis._.day == "4").order_by("k").score.to_pyarrow()
    assert scores.to_pylist() == [None, 0.5]


@pytest.mark.parametrize(("name", "more"), [("compact", ()), ("retain", (7.0,))])
def test_a_rehearsal_deletes_nothing(
    both: tuple[DeltaTables, Any, DeltaTables], name: str, more: tuple[float, ...]
) -> None:
    with pytest.raises(TableError, match=f"a rehearsal does not {name} tables"):
        getattr(both[1], name)("gold.t", *more)
