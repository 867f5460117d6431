"""A git checkout of this project in a folder of the test, its commands, and its store."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from churn_lib.job_context import git

ROOT = Path(__file__).parent.parent
CHURN = Path(sys.executable).parent / "churn"
COPIED = ("nbs", "churn_lib", "resources")
FILES = ("settings.ini", "databricks.yml", "pyproject.toml", "requirements.lock", ".gitignore")
IGNORED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
AUTHOR = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")


def make_checkout(
    folder: Path,
    more: tuple[str, ...] = (),  # files and folders beside those that the jobs need
    settings: dict[str, str] | None = None,  # keys of settings.ini and their values
) -> Path:
    """Copy the project's working tree and commit it."""
    folder.mkdir(parents=True)
    for name in (*COPIED, *FILES, *more):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "--quiet")
    change_settings(folder, settings or {})
    commit(folder)
    return folder


def change_settings(folder: Path, values: dict[str, str], section: str = "DEFAULT") -> None:
    """Give keys of a section of settings.ini that it has other values."""
    path = folder / "settings.ini"
    before, head, rest = path.read_text().partition(f"[{section}]\n")
    body, following, after = rest.partition("\n[")
    for key, value in values.items():
        body, count = re.subn(rf"(?m)^{re.escape(key)} = .*$", f"{key} = {value}", body)
        assert count == 1, key
    path.write_text(before + head + body + following + after)


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, *AUTHOR, "commit", "--quiet", "--no-verify", "--message", "all")
    return git(folder, "rev-parse", "HEAD").decode().strip()


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a process that runs the code of `folder`, on its store unless given another."""
    strange = ("CHURN_", "MLFLOW_", "DATABRICKS_", "GIT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    return {**kept, "PYTHONPATH": str(folder), **more}


def churn(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The `churn` command with the code of `folder`."""
    return subprocess.run(
        [str(CHURN), *arguments],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=1_500,
        check=False,
    )


def reproduced(folder: Path, version: int, **more: str) -> dict:
    """What `churn reproduce` says of a version, and its exit code."""
    answer = churn(folder, "reproduce", str(version), "--json", **more)
    assert answer.stdout, answer.stderr
    return {**json.loads(answer.stdout), "code": answer.returncode}
