"""Runs of MLflow say how they have ended, also those whose process did not live to say it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from churn_lib import registry, settings
from churn_lib.settings import Settings
from churn_lib.training.record import recorded_run
from tests.checkouts import ROOT
from tests.shared import empty_mlflow

BEGIN = """
import pathlib, signal, sys
from churn_lib import settings
from churn_lib.training.record import recorded_run
config = settings.load("local", pathlib.Path(sys.argv[1]))
with recorded_run(config, "theirs", {"kind": "a test"}) as run:
    print(run.info.run_id, flush=True)
    signal.pause()  # until it is killed
"""


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    config = settings.load("local", tmp_path / "settings.ini")
    empty_mlflow(config)
    registry.connect(config)
    return config


@pytest.fixture
def theirs(config: Settings) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that is in the middle of a run, and the id of that."""
    command = [sys.executable, "-c", BEGIN, str(config.root / "settings.ini")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, process.stdout.readline().strip()
        process.kill()


def status(run_id: str) -> tuple[str, set[str]]:
    run = mlflow.MlflowClient().get_run(run_id)
    return run.info.status, {name for name in run.data.tags if not name.startswith("mlflow.")}


def test_the_next_run_ends_those_whose_process_was_killed_and_no_others(
    config: Settings, theirs: tuple[subprocess.Popen[str], str]
) -> None:
    process, run_id = theirs
    with recorded_run(config, "mine", {}) as mine:
        assert status(run_id)[0] == status(mine.info.run_id)[0] == "RUNNING"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert status(run_id)[0] == "RUNNING"
    with recorded_run(config, "mine again", {}) as again:
        assert status(run_id) == ("KILLED", {"kind"})
    assert status(again.info.run_id) == status(mine.info.run_id) == ("FINISHED", set())
    assert not [*(config.store / "runs_under_way").iterdir()]


def test_a_run_that_raises_has_failed_and_leaves_no_lock(config: Settings) -> None:
    with pytest.raises(ValueError), recorded_run(config, "mine", {}) as run:
        raise ValueError
    assert status(run.info.run_id)[0] == "FAILED"
    assert not [*(config.store / "runs_under_way").iterdir()]


def test_runs_of_another_store_on_the_same_server_are_left_alone(
    config: Settings, theirs: tuple[subprocess.Popen[str], str]
) -> None:
    process, run_id = theirs
    process.kill()
    process.wait()
    elsewhere = config.model_copy(update={"store": config.store / "another"})
    mlflow.set_tracking_uri(registry.tracking_uri(config))
    with recorded_run(elsewhere, "mine", {}):
        assert status(run_id)[0] == "RUNNING"
