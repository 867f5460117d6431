"""Words that confuse readers are found where they stand, and nothing else is."""

import json
import subprocess
from pathlib import Path

import pytest

from tools import words

PHRASES = {
    "anew": "again",
    "cure": "fix",
    "plan of loss": "plan guard",
    "stands twice": "duplicate",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout, and a list of words of its own."""
    patterns = {words.pattern_of(phrase): instead for phrase, instead in PHRASES.items()}
    monkeypatch.setattr(words, "PATTERNS", patterns)
    monkeypatch.setattr(words, "NAMES", {"told": "message", "said": "message"})
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_the_project_has_none() -> None:
    assert list(words.problems()) == []


def test_a_phrase_is_found_in_text_and_code_across_a_line_break(project: Path) -> None:
    write(
        project / "tools/a.py",
        '"""Print faults."""\n\n# the key stands\n# twice\nX = "Stands  twice"\n',
    )
    write(project / "ci.yml", "steps:\n  - name: plan of loss\n")
    assert list(words.problems(project)) == [
        "ci.yml: line 2: 'plan of loss': write plan guard",
        "tools/a.py: line 5: 'Stands twice': write duplicate",
    ]


def test_a_word_inside_another_is_none(project: Path) -> None:
    write(project / "notes.md", "secure, renewed, obscure")
    write(project / "more.md", "The cure.")
    assert list(words.problems(project)) == ["more.md: line 1: 'cure': write fix"]


def test_a_name_is_found_in_code_only(project: Path) -> None:
    write(project / "notes.md", "As said above, nobody is told.")
    write(
        project / "a.py", "def tell(said):\n    told = said  # what was told\n    return 'told'\n"
    )
    assert list(words.problems(project)) == [
        "a.py: line 1: 'said': write message",
        "a.py: line 2: 'said': write message",
        "a.py: line 2: 'told': write message",
    ]


def test_a_notebook_names_the_cell(project: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Lock\n", "Made anew\n"]},
        {"cell_type": "code", "source": ["%time x\n", "told = 1"], "outputs": [{"text": "anew"}]},
        {"cell_type": "code", "source": ["a = 1\n", "told = 1"]},
    ]
    write(project / "nbs/a.ipynb", json.dumps({"cells": cells}))
    assert list(words.problems(project)) == [
        "nbs/a.ipynb: cell 1, line 2: 'anew': write again",
        "nbs/a.ipynb: cell 3, line 2: 'told': write message",
    ]


def test_what_is_generated_or_ignored_is_not_read(project: Path) -> None:
    write(project / "churn_lib/a.py", "# made anew\n")
    write(project / ".gitignore", "site/\n")
    write(project / "site/a.md", "made anew\n")
    assert list(words.problems(project)) == []
