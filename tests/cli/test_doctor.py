"""`churn doctor`: each fault of a machine or a checkout is named, with what puts it right."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.checkouts import change_settings
from tests.conftest import CHURN, ROOT

Found = dict[str, dict[str, Any]]


def doctor(folder: Path, code: int, **environment: str) -> Found:
    done = subprocess.run(
        [CHURN, "doctor", "--json"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return {each["about"]: each for each in json.loads(done.stdout)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("settings.ini", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_nothing_is_wrong_with_the_environment_of_the_tests(project: Path) -> None:
    before = sorted(project.iterdir())
    found = doctor(project, 0)
    assert {"Python", "packages", "disk", "store", "model server"} <= found.keys()
    assert found["packages"]["state"] == "ok"
    assert found["git"]["state"] == "worth knowing"  # the folder is no checkout
    assert sorted(project.iterdir()) == before


def test_packages_that_are_not_as_locked_are_named_and_markers_heeded(project: Path) -> None:
    lock = project / "requirements.lock"
    lock.write_text(
        "# a comment\npandas==0.1\nmlflow==3.8.1\nno-such-package==1.0\n"
        "windows-only==1.0 ; sys_platform == 'win32'\n"
    )
    packages = doctor(project, 1)["packages"]
    assert packages["state"] == "wrong" and "make run" in packages["fix"]
    assert "locked 0.1" in packages["detail"] and "no-such-package is absent" in packages["detail"]
    assert "mlflow" not in packages["detail"] and "windows-only" not in packages["detail"]


def test_a_database_that_is_none_is_a_line_of_the_list(project: Path) -> None:
    (project / ".churn").mkdir()
    (project / ".churn" / "mlflow.db").write_text("no database at all, but long enough to be read")
    found = doctor(project, 1)
    assert found["mlflow"]["state"] == "wrong" and "mlflow.db" in found["mlflow"]["detail"]
    assert found["disk"]["state"] == "ok", "the other checks go on"


def test_a_store_that_nobody_can_write_to_is_named(project: Path) -> None:
    (project / ".churn").write_text("a file")
    store = doctor(project, 1)["store"]
    assert store["state"] == "wrong" and "cannot be written to" in store["detail"]


def test_settings_that_cannot_be_read_are_the_only_finding(project: Path) -> None:
    change_settings(project, {"gate.margin": "wide"})
    found = doctor(project, 1)
    assert [*found] == ["settings"]
    assert "gate.margin = 'wide'" in found["settings"]["detail"]


def test_without_git_and_java_the_rest_is_fine(project: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    found = doctor(project, 0, PATH=str(tmp_path / "bin"), JAVA_HOME="")
    assert {found[name]["state"] for name in ("git", "Java")} == {"worth knowing"}
    assert "install git" in found["git"]["fix"]
