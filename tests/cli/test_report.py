"""The page of all runs, versions and reports: what there is, each with a link that leads to it."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from churn_lib import cli, registry, tables
from churn_lib.cli.report import _MOST, write_index
from churn_lib.settings import Settings
from churn_lib.testing import scratch_settings


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    return scratch_settings(changes={"store": tmp_path / "a 100% # <b>&store" / ".churn"})


def made(config: Settings, run: str, state: str = "SUCCESS", job: str = "training_job") -> Path:
    """A run as the runner leaves one."""
    folder = config.store / "runs" / job / run
    folder.mkdir(parents=True)
    record = {"job": job, "run_id": run, "state": state, "seconds": 3.2}
    record |= {"tasks": [{"task_key": "build"}, {"task_key": "not_run"}]}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "build.html").write_text("the executed notebook")
    return folder


def page(config: Settings) -> tuple[Path, str]:
    path = write_index(config, registry.connect(config), tables.connect(config))
    return path, path.read_text()


def test_each_link_leads_to_a_file_and_a_task_without_one_has_none(config: Settings) -> None:
    folder = made(config, "20260102-040506-000000-abc123")
    path, text = page(config)
    links = re.findall(r'href="([^"]+)"', text)
    assert [(path.parent / unquote(link)).resolve() for link in links] == [folder / "build.html"]
    assert "2026-01-02 04:05" in text and "not_run" in text


def test_the_newest_runs_come_first_and_what_is_no_run_is_passed_over(config: Settings) -> None:
    for number in range(_MOST + 5):
        made(config, f"202601{1 + number // 24:02d}-{number % 24:02d}0000-000000-abc123")
    broken = config.store / "runs/other/20270101-000000-000000-abc123"
    broken.mkdir(parents=True)
    near = {"job": "x", "run_id": "y", "state": "SUCCESS", "seconds": 1.0, "tasks": []}
    wrong = (
        {"seconds": "soon"},
        {"state": 3},
        {"parameters": [1]},
        {"tasks": [1]},
        {"tasks": None},
    )
    for content in ("[]", "{", *(json.dumps(near | each) for each in wrong)):
        (broken / "run.json").write_text(content)
        times = re.findall(r"<td>(\d{4}-\d\d-\d\d \d\d:\d\d)</td>", page(config)[1])
        assert len(times) == _MOST and times == sorted(times, reverse=True)


def test_what_a_run_says_of_itself_is_shown_and_not_believed(config: Settings) -> None:
    made(config, "20260102-040506-000000-abc123", "<script>alert(1)</script>")
    text = page(config)[1]
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_before_anything_has_run_the_command_says_what_to_do(
    config: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config.store.parent / "settings.ini"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(Path(__file__).parents[2].joinpath("settings.ini").read_text())
    monkeypatch.setenv("CHURN_SETTINGS", str(file))
    monkeypatch.setattr("sys.argv", ["churn", "report"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "nothing has run here yet" in capsys.readouterr().err
    assert not (file.parent / ".churn").exists()
