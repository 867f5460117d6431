"""What `make run` prints becomes a drawing, and the job notebooks show what it leaves in them."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tools import real_run

# a line that is drawn again and again, as a progress display does, in colour
PRINTED = (
    "\x1b[1mtraining_job\x1b[0m at 079272c378a0\r\n"
    "- train cell 3 of 9 0:00:01\r\x1b[2K\x1b[32mSUCCESS\x1b[0m train 0:00:24\r\n"
)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in a folder of its own, which is of the code that is here."""
    (tmp_path / "nbs").mkdir()
    folder = tmp_path / ".cache" / "real_run"
    monkeypatch.setattr(real_run, "ROOT", tmp_path)
    monkeypatch.setattr(real_run, "KEPT", folder)
    run = folder / ".churn" / "runs" / "training_job" / "1"
    run.mkdir(parents=True)
    (folder / "0.typescript").write_bytes(PRINTED.encode())
    cell = new_code_cell("train()", id="a1")
    printed = f"in {folder}/.churn/x, of {tmp_path}/nbs"
    done = new_code_cell("train()", id="a1", outputs=[new_output("stream", text=printed)])
    given = new_code_cell("rehearsal = False", id="b2")
    nbformat.write(new_notebook(cells=[given, done]), run / "train.ipynb")
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "nbs" / "02_train.ipynb")
    (folder / "key").write_text(real_run.digest())
    return tmp_path


def test_the_screen_has_what_stands_there_in_the_end() -> None:
    shown = real_run.screen(PRINTED)
    assert shown.plain == "training_job at 079272c378a0\nSUCCESS train 0:00:24"
    styles = {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}
    assert "bold" in styles["training_job"] and "green" in styles["SUCCESS"]


def test_a_drawing_is_of_a_run_whatever_its_seconds_and_commit(kept: Path) -> None:
    real_run.draw()
    drawing = kept / "nbs" / real_run.DRAWING
    text = drawing.read_text()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "@import" not in text
    assert real_run.problem() == ""
    drawing.write_text(text.replace("0:00:24", "0:01:03").replace("079272c378a0", "aaaa272c378a"))
    assert real_run.problem() == ""
    drawing.write_text(text.replace("SUCCESS", "FAILED"))
    assert "tools.real_run draw" in real_run.problem()


def test_the_outputs_of_a_notebook_are_those_of_the_run_without_its_folder(kept: Path) -> None:
    made = real_run.outputs(kept / "nbs" / "02_train.ipynb")
    assert made["a1"][0].text == "in .churn/x, of nbs"
    nbformat.write(
        new_notebook(cells=[new_code_cell("other()", id="zz")]), kept / "nbs" / "09_other.ipynb"
    )
    with pytest.raises(real_run.RealRunError, match="09_other"):
        real_run.outputs(kept / "nbs" / "09_other.ipynb")


def test_a_copy_takes_the_place_of_what_was_there(kept: Path) -> None:
    folder = kept / "check"
    folder.mkdir()
    (folder / "old").touch()
    assert real_run.main(["copy", str(folder)]) == 0
    assert (folder / ".churn" / "runs").is_dir()
    assert not (folder / "old").exists() and not (folder / "key").exists()


def test_the_run_of_other_code_is_not_shown(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed: list[list[str]] = []

    def run(words: list[str]) -> str:
        typed.append(words)
        return PRINTED

    monkeypatch.setattr(real_run, "run", run)
    for name in ("settings.ini", "requirements.lock"):
        (kept / name).write_text("changed")
    assert not (real_run.kept() / ".churn").exists()
    assert typed == [*real_run.COMMANDS, ["endpoint", "stop"]]
    real_run.kept()
    assert len(typed) == len(real_run.COMMANDS) + 1
