"""A project or a store that was moved, renamed or copied holds its models where it is, and nothing is written where it was."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest

from churn_lib import registry, settings, tables
from churn_lib.registry import PRODUCTION, RegistryError
from churn_lib.serving.local import process
from churn_lib.settings import Settings
from tests.serving import serving_store
from tests.shared import warm_churn

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder that is never used in its place: versions 1 and 2, 1 at Production."""
    folder = tmp_path_factory.mktemp("template") / "Jörg's project"
    folder.mkdir()
    config = serving_store.make(folder)
    registry.connect(config).set_alias(PRODUCTION, 1)
    return folder


@pytest.fixture
def old(template: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """The same project at home in a folder of its own."""
    shutil.copytree(template, tmp_path / "old")
    registry.connect(at(tmp_path / "old"))
    capfd.readouterr()
    return tmp_path / "old"


def at(folder: Path) -> Settings:
    """Settings of the project in `folder`."""
    return settings.load("local", folder / "settings.ini")


def addresses(folder: Path) -> set[str]:
    """Every address and path in the database of the store in `folder`."""
    found = set()
    with sqlite3.connect(folder / ".churn" / "mlflow.db") as database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            for _, column, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                rows = database.execute(
                    f"SELECT {column} FROM {table} WHERE {column} LIKE '%.churn%'"
                )
                found |= {value for (value,) in rows}
    return found


def contents(folder: Path) -> dict[str, str]:
    """The files below `folder` and what is in them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def answers(config: Settings, version: int = 1) -> list[float]:
    rows = serving_store.feature_rows(3)
    return registry.connect(config).load(version).predict(rows).tolist()


def test_a_moved_store_has_its_models_and_gets_new_ones_where_it_is(
    old: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, new = answers(at(old)), tmp_path / "new name %#?"
    old.rename(new)
    assert answers(at(new)) == before
    expected = f"store was moved from {old / '.churn'}; its addresses now say {new / '.churn'}\n"
    assert expected in capfd.readouterr().err
    with mlflow.start_run():
        mlflow.log_text("a report", "report.txt")
    assert serving_store.register(registry.connect(at(new)), 3) == 4
    assert answers(at(new), 4) != before
    assert not old.exists()
    assert "store was" not in capfd.readouterr().err
    assert {(str(old) in each, old.as_uri() in each) for each in addresses(new)} == {(False, False)}


def test_a_copy_points_at_itself_and_leaves_the_original_as_it_is(
    old: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    shutil.copytree(old, new)
    before = answers(at(new))
    assert f"store was copied from {old / '.churn'};" in capfd.readouterr().err
    untouched = contents(old)
    serving_store.register(registry.connect(at(new)), 3)
    assert contents(old) == untouched
    for model in old.rglob("model.pkl"):
        model.write_bytes(b"another model")
    assert answers(at(new)) == before
    assert not any(str(old) in each or old.as_uri() in each for each in addresses(new))


def test_the_table_that_a_run_has_read_is_the_one_of_the_moved_store(
    old: Path, tmp_path: Path
) -> None:
    registry.connect(at(old))
    path = str(tables.connect(at(old)).path("gold.features"))
    with mlflow.start_run() as run:
        rows = mlflow.data.from_pandas(serving_store.feature_rows(3), path, name="features")
        mlflow.log_input(rows)
    old.rename(tmp_path / "new")
    registry.connect(at(tmp_path / "new"))
    (read,) = mlflow.get_run(run.info.run_id).inputs.dataset_inputs
    assert str(tables.connect(at(tmp_path / "new")).path("gold.features")) in read.dataset.source


def test_a_symlink_to_a_project_is_no_other_place(
    old: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = addresses(old)
    (tmp_path / "link").symlink_to(old)
    linked = at(tmp_path / "link")
    unresolved = linked.model_copy(update={"store": tmp_path / "link" / ".churn"})
    assert answers(linked) == answers(unresolved) == answers(at(old))
    assert addresses(old) == before and "store was" not in capfd.readouterr().err


def test_a_store_named_by_the_settings_is_followed_when_it_moves(
    old: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (old / "settings.ini").read_text()
    (tmp_path / "elsewhere").mkdir()
    (old / ".churn").rename(tmp_path / "elsewhere" / "store")
    (old / "settings.ini").write_text(text.replace("= .churn", "= ../elsewhere/store"))
    answers(at(old))
    assert f"now say {tmp_path / 'elsewhere' / 'store'}\n" in capfd.readouterr().err


def test_processes_that_find_a_moved_store_at_once_rewrite_it_once(
    old: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new, together = tmp_path / "new", threading.Barrier(6)
    old.rename(new)

    def follow(_: int) -> None:
        together.wait()
        registry.models._follow_store(at(new).store)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(follow, range(6)))
    assert capfd.readouterr().err.count("store was moved") == 1
    assert len(answers(at(new))) == 3


def test_artifacts_that_somebody_keeps_elsewhere_stay_there(old: Path, tmp_path: Path) -> None:
    registry.connect(at(old))
    (tmp_path / "nas" / "mlartifacts").mkdir(parents=True)
    chosen = (tmp_path / "nas" / "mlartifacts").as_uri()
    mlflow.create_experiment("mine", artifact_location=chosen)
    with mlflow.start_run(experiment_id=mlflow.set_experiment("mine").experiment_id) as run:
        mlflow.log_text("a report", "report.txt")
    old.rename(tmp_path / "new")
    registry.connect(at(tmp_path / "new"))
    assert mlflow.get_experiment_by_name("mine").artifact_location == chosen
    assert mlflow.get_run(run.info.run_id).info.artifact_uri.startswith(chosen)


def test_files_that_were_left_behind_keep_their_address(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    shutil.copytree(old, new)
    registry.connect(at(old))
    (left,) = mlflow.artifacts.download_artifacts("models:/churn-prediction-gbm/2").splitlines()
    behind = new / Path(left).relative_to(old)
    shutil.rmtree(behind)
    before = answers(at(old), 2)
    assert answers(at(new), 2) == before
    assert answers(at(new), 1) != before


def test_a_moved_store_that_cannot_be_written_says_so_in_one_line(
    old: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    old.rename(new)
    with sqlite3.connect(new / ".churn" / "mlflow.db") as database:
        database.execute(
            "CREATE TRIGGER no BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    before = addresses(new)
    with pytest.raises(RegistryError, match=r"mlflow.db: the store was moved, and .*: no$"):
        registry.connect(at(new))
    assert addresses(new) == before


@pytest.fixture
def serving(old: Path) -> Iterator[Path]:
    """A project whose model server runs and has an endpoint."""
    config = at(old)
    with serving_store.ended(config):
        assert run(old, "deploy").returncode == 0
        yield old


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The `churn` command on the project in `folder`."""
    environment = {**os.environ, "CHURN_SETTINGS": str(folder / "settings.ini")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return warm_churn(*arguments, environment=environment)


def test_a_server_ends_when_its_store_moves_and_deploy_serves_it_again_from_there(
    serving: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    first = process.running(at(serving))
    assert first is not None
    serving.rename(new)
    with serving_store.ended(at(new)):
        done = run(new, "deploy")
        assert done.returncode == 0, done.stderr
        assert "serves churn-prediction-gbm version 1 already" in done.stdout
        second = process.running(at(new))
        assert second is not None and second.pid != first.pid
        log = (process.serving_folder(at(new)) / "server.log").read_text()
        assert f"{serving / '.churn'} is no longer there: this server ends" in log
        assert not serving.exists()


def test_the_server_of_a_copy_is_not_the_one_of_the_original(serving: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    shutil.copytree(serving, new)
    first = process.running(at(serving))
    assert process.running(at(new)) is None
    with serving_store.ended(at(new)):
        assert run(new, "deploy").returncode == 0
        assert process.running(at(serving)) == first
        second = process.running(at(new))
        assert first is not None and second is not None
        assert second.port != first.port


def test_an_environment_that_was_moved_or_copied_with_its_project_is_made_again(
    tmp_path: Path,
) -> None:
    project, moved = tmp_path / "my project", tmp_path / "moved project"
    (project / "tools").mkdir(parents=True)
    for name in ("Makefile", "tools/install.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    (project / ".venv" / "bin").mkdir(parents=True)
    python = f'\'\'\'exec\' "{project}/.venv/bin/python" "$0" "$@"'
    (project / ".venv" / "bin" / "churn").write_text(f"#!/bin/sh\n{python}\n' '''\n")
    (project / ".venv" / ".run-installed").touch()

    def plan(folder: Path) -> list[str]:
        make = ["make", "--no-print-directory", "--dry-run", "run"]
        done = subprocess.run(make, cwd=folder, check=True, capture_output=True, text=True)
        return done.stdout.splitlines()

    assert plan(project) == [".venv/bin/churn pipeline"]
    project.rename(moved)
    assert plan(moved)[0] == "tools/install.sh .venv requirements.lock"
    (tmp_path / "link").symlink_to(moved)
    text = (moved / ".venv/bin/churn").read_text().replace(str(project), str(moved))
    (moved / ".venv/bin/churn").write_text(text)
    (moved / ".venv" / ".run-installed").touch()
    assert plan(moved) == plan(tmp_path / "link") == [".venv/bin/churn pipeline"]
