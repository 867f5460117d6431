"""A step that is killed at a write and run again ends as if nothing had been; `python -m tests.faults` kills at more."""

import shlex
from pathlib import Path

import pytest

from tests.faults.__main__ import arguments
from tests.faults.points import Survived, spread, survive
from tests.faults.shop import ROOT, Shop, steps


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Survived]:
    """Each step by its name: done once, then killed in the middle of its writes and run again."""
    with Shop(tmp_path_factory.mktemp("faults") / "shop") as shop:
        return {step.name: survive(shop, step, most=1) for step in steps(shop.folder)}


@pytest.mark.timeout(1800)  # the first one waits for all
@pytest.mark.parametrize("name", [step.name for step in steps(Path())])
def test_a_step_that_was_killed_is_whole_when_it_has_run_again(
    survived: dict[str, Survived], name: str
) -> None:
    found = survived[name]
    assert found.killed == 1 and found.writes > 10
    assert not found.wrong


def test_the_writes_are_all_or_evenly_spread() -> None:
    assert spread(4, None) == spread(4, 9) == [1, 2, 3, 4]
    assert spread(100, 4) == [12, 38, 62, 88]
    assert spread(100, 0) == []


def test_nightly_kills_with_arguments_that_the_command_has() -> None:
    text = (ROOT / ".github/workflows/nightly.yml").read_text()
    line = next(line for line in text.splitlines() if "tests.faults" in line)
    given = arguments(shlex.split(line.split("tests.faults")[1]))
    assert given.most >= 10 and given.step is None


def test_a_step_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["--step", "no such step"])
    assert "invalid choice" in capsys.readouterr().err
