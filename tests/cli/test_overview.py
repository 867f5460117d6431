"""`churn` alone and `churn status`: what there is, and the command that the state asks for."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from churn_lib import registry, settings
from churn_lib.testing import register_version, shop_tables
from tests.conftest import CHURN, ROOT


def churn(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CHURN, *words], cwd=folder, capture_output=True, text=True, timeout=120)


def state(folder: Path) -> dict[str, Any]:
    done = churn(folder, "status", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "settings.ini", tmp_path)
    return tmp_path


def test_in_a_fresh_checkout_it_names_the_first_command_and_writes_nothing(project: Path) -> None:
    done = churn(project)
    assert done.returncode == 0, done.stderr
    assert "churn pipeline" in done.stdout
    assert "Production  empty" in done.stdout
    assert [path.name for path in project.iterdir()] == ["settings.ini"]


def test_what_the_state_asks_for_comes_in_the_order_of_the_work(project: Path) -> None:
    config = settings.load("local", project / "settings.ini")
    shop_tables(config)
    folder = project / ".churn" / "runs" / "monitoring_job"
    for run_id, outcome in (("20260101-1", "FAILED"), ("20260102-1", "SUCCESS")):
        (folder / run_id).mkdir(parents=True)
        record = {"job": "monitoring_job", "state": outcome}
        (folder / run_id / "run.json").write_text(json.dumps(record))
    found = state(project)
    assert found["data"]["events"] > 1_000
    assert found["runs"]["monitoring_job"]["state"] == "SUCCESS"
    assert [each["command"] for each in found["next"]] == ["churn pipeline"]

    number = register_version(registry.connect(config))
    registry.connect(config).set_alias(registry.STAGING, number)
    (folder / "20260103-1").mkdir()
    (folder / "20260103-1" / "run.json").write_text('{"job": "monitoring_job", "state": "FAILED"}')
    (folder / "20260104-1").mkdir()
    (folder / "20260104-1" / "run.json").write_text("cut off")
    (folder / "20260105-1").mkdir()
    (folder / "20260105-1" / "run.json").write_text("[]")
    found = state(project)
    commands = [each["command"] for each in found["next"]]
    assert commands == ["churn run monitoring_job", "churn run validation_job", "churn pipeline"]
    assert "20260103-1" in found["next"][0]["why"]
    assert found["candidate"] == {"version": number, "roc_auc": None, "verdict": None}


def test_of_another_target_the_command_names_it(project: Path) -> None:
    done = churn(project, "status", "--target", "staging", "--json")
    (asked,) = json.loads(done.stdout)["next"]
    assert asked["command"] == "churn pipeline --target staging"


def test_outside_of_a_project_it_shows_the_commands(tmp_path: Path) -> None:
    done = churn(tmp_path)
    assert done.returncode == 0
    assert "Usage: churn" in done.stdout and "pipeline" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert churn(tmp_path, "--version").stdout == "churn 0.1.0\n"
