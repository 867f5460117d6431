"""A version that was registered before the package had rooms: it loads, is judged, serves, and is made again."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from churn_lib import registry, settings, tables
from churn_lib.job_context import git
from churn_lib.serving.local import process
from churn_lib.training import read_record

ROOT = Path(__file__).parents[1]
CHURN = Path(sys.executable).parent / "churn"
# what jobs need of the last commit with a flat package and settings without groups: git archive ea50a9e
BEFORE = ROOT / "tests/former/ea50a9e.tar.xz"
AUTHOR = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
SMALL = {"snapshots": "2", "min_roc_auc": "0.55", "min_f1_score": "0.1", "min_precision": "0.1"}
# what is worth little in a shop this small only warns
SMALL |= {"advisory": "beats_single_column, beats_base_rate, single_row_latency, batch_latency"}


def churn(ini: Path, code: Path, *arguments: str, folder: Path | None = None) -> dict:
    """The JSON answer of a `churn` command with the settings in `ini`, by the package in `code`."""
    strange = ("CHURN_", "MLFLOW_", "DATABRICKS_", "GIT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    own = {"PYTHONPATH": str(code), "CHURN_SETTINGS": str(ini / "settings.ini")}
    answer = subprocess.run(
        [str(CHURN), *arguments, "--json"],
        cwd=folder or ini,
        env={**kept, **own},
        capture_output=True,
        text=True,
        timeout=1_500,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return json.loads(answer.stdout)


def changed(text: str, changes: dict[str, str]) -> str:
    """A settings.ini with other values."""
    for key, value in changes.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"{key} =")]
        assert len(lines) == len(text.splitlines()) - 1, key
        lines.insert(lines.index("[DEFAULT]") + 1, f"{key} = {value}")
        text = "\n".join(lines) + "\n"
    return text


def code_of(project: Path) -> Path:
    """The checkout that the store of a project is in."""
    return settings.load("local", project / "settings.ini").store.parent


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with today's settings.ini, whose store has a version 1 made by the package of then."""
    folder = tmp_path_factory.mktemp("former") / "project"
    with tarfile.open(BEFORE) as archive:
        archive.extractall(folder, filter="data")
    ini = folder / "settings.ini"
    ini.write_text(changed(ini.read_text(), SMALL))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, *AUTHOR, "commit", "--quiet", "--no-verify", "--message", "a small shop")
    churn(folder, folder, "data", "simulate", "--customers", "1500")
    churn(folder, folder, "run", "training_job")
    now = tmp_path_factory.mktemp("now")
    values = {settings.present_name(name) or name: value for name, value in SMALL.items()}
    store = {"store": str(folder / ".churn")}
    (now / "settings.ini").write_text(changed((ROOT / "settings.ini").read_text(), values | store))
    yield now
    process.stop(settings.load("local", now / "settings.ini"))


def test_it_gives_the_answers_that_it_gave_then(project: Path) -> None:
    config = settings.load("local", project / "settings.ini")
    models = registry.connect(config)
    assert models.aliases() == {"Staging": 1}
    assert registry.basis(models, 1, config).horizon_days == 90
    record = read_record(models, 1)
    assert record.tags["git_dirty"] == "false"
    assert (record.settings or {})["horizon_days"] == 90
    rows = tables.connect(config).read("gold.features").to_pandas().set_index("customer_id")
    before = record.predictions
    assert before is not None and len(before) > 100
    newest = rows[rows.feature_date == rows[rows.churned.notna()].feature_date.max()]
    asked = newest.loc[before["customer_id"], list(registry.inputs_of(models, 1))].astype(float)
    now = models.load(1).predict(asked)
    assert np.array_equal(np.asarray(now), before["churn_probability"].to_numpy())


def test_it_passes_the_gate_of_today_and_serves(project: Path) -> None:
    judged = churn(project, ROOT, "run", "validation_job", folder=ROOT)
    values = {key: value for task in judged["tasks"] for key, value in task["values"].items()}
    assert values["production_version"] == 1
    deployed = churn(project, ROOT, "deploy", "--alias", "Production", folder=ROOT)
    assert deployed["version"] == 1
    assert all(check["passed"] is not False for check in deployed["smoke_test"])


def test_it_is_made_again_bit_by_bit(project: Path) -> None:
    answer = churn(project, ROOT, "reproduce", "1", folder=code_of(project))
    assert answer["difference"] == ""
    assert answer["identical"] is True
    assert answer["predictions"] > 100
