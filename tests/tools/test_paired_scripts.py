"""`make prepare` brings job notebooks and their scripts in step, once and for all, and loses no edit."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.conftest import ROOT, Project
from tests.tools.test_notebooks import as_run_all_leaves_it, edit
from tools import notebooks
from tools.notebooks import PairError

JOBS = ("01_feature_engineering", "02_train_and_register")
UGLY = "def shown( x ):\n  return {'a':x}\nshown( 1 )"
NEAT = 'def shown(x):\n    return {"a": x}\n\n\nshown(1)'


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with two job notebooks, as the last commit has it."""
    project = Project(tmp_path_factory.mktemp("template") / "project")
    names = ["pyproject.toml", "README.md", "nbs/lib/registry/chain.ipynb"]
    names += ["churn_lib/__init__.py", "churn_lib/registry/chain.py"]
    names += [f"nbs/jobs/{stem}{suffix}" for stem in JOBS for suffix in (".ipynb", ".py")]
    for name in names:
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project.root / name)
    notebooks.prepare(project.root)
    shutil.rmtree(project.root / ".cache")
    project.commit()
    return project.root


@pytest.fixture
def checkout(template: Path, tmp_path: Path) -> Project:
    """A clone of it."""
    shutil.copytree(template, tmp_path / "project")
    return Project(tmp_path / "project")


def paths(project: Project, stem: str = JOBS[1]) -> tuple[Path, Path]:
    """A job notebook and its script."""
    path = project.root / "nbs" / "jobs" / f"{stem}.ipynb"
    return path, path.with_suffix(".py")


def files(root: Path) -> dict[Path, bytes]:
    """Everything in the project but git's own."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {
        path: path.read_bytes() for path in found if not {".git", ".ruff_cache"} & {*path.parts}
    }


def add_to_notebook(project: Project, source: str, stem: str = JOBS[1]) -> None:
    edit(paths(project, stem)[0], lambda found: found.cells.append(new_code_cell(source)))


def add_to_script(project: Project, source: str, stem: str = JOBS[1]) -> None:
    with paths(project, stem)[1].open("a") as script:
        script.write(f"\n# %%\n{source}\n")


def sources(project: Project, stem: str = JOBS[1]) -> list[str]:
    return [cell.source for cell in nbformat.read(paths(project, stem)[0], 4).cells]


def test_one_call_is_enough_and_a_second_changes_nothing(checkout: Project) -> None:
    first = paths(checkout, JOBS[0])[1].read_text()
    paths(checkout, "08_script")[1].write_text(f"{first}\n# %%\n{UGLY}\n")
    cells = [new_code_cell("limit: int = 3", metadata={"tags": ["parameters"]})]
    new = new_notebook(cells=[*cells, new_code_cell(UGLY)])  # without a word of jupytext
    nbformat.write(new, paths(checkout, "09_notebook")[0])
    add_to_script(checkout, UGLY, JOBS[0])
    add_to_notebook(checkout, UGLY, JOBS[1])
    edit(paths(checkout, JOBS[1])[0], as_run_all_leaves_it)
    library = checkout.root / "nbs/lib/registry/chain.ipynb"
    edit(library, lambda found: found.cells.append(new_code_cell(f"#| export\n{UGLY}")))
    notebooks.prepare(checkout.root)
    assert list(notebooks.problems(checkout.root)) == []
    for stem in (*JOBS, "08_script", "09_notebook"):
        assert sources(checkout, stem)[-1] == NEAT
        assert paths(checkout, stem)[1].read_text().endswith(f"{NEAT}\n")
    before = files(checkout.root)
    notebooks.prepare(checkout.root)
    assert files(checkout.root) == before


def test_a_job_notebook_that_was_only_run_is_as_it_was(checkout: Project) -> None:
    edit(paths(checkout)[0], as_run_all_leaves_it)
    notebooks.prepare(checkout.root)
    assert [
        line for line in checkout.git("status", "--porcelain").splitlines() if "nbs" in line
    ] == []


def test_the_cells_that_a_script_does_not_change_stay_the_same_cells(checkout: Project) -> None:
    path, script = paths(checkout)
    before = [cell.id for cell in nbformat.read(path, 4).cells]
    script.write_text(script.read_text().replace("## Training", "## Learning"))
    add_to_script(checkout, "1 + 1")
    notebooks.pair(checkout.root)
    assert "## Learning" in sources(checkout)
    assert [cell.id for cell in nbformat.read(path, 4).cells][:-1] == before


def test_what_was_edited_wins_over_what_was_only_saved_later(checkout: Project) -> None:
    add_to_script(checkout, "'of the script'", JOBS[0])
    edit(paths(checkout, JOBS[0])[0], as_run_all_leaves_it)  # Jupyter saves by itself
    add_to_notebook(checkout, "'of the notebook'", JOBS[1])
    os.utime(paths(checkout, JOBS[1])[1])
    notebooks.prepare(checkout.root)
    assert sources(checkout, JOBS[0])[-1] == '"of the script"'
    assert sources(checkout, JOBS[1])[-1] == '"of the notebook"'
    assert list(notebooks.problems(checkout.root)) == []


@pytest.mark.parametrize("turns", ["ns", "sn", "nn", "ss", "nsns"])
def test_edits_between_two_calls_are_told_apart_from_those_before(
    checkout: Project, turns: str
) -> None:
    for number, turn in enumerate(turns):
        add = add_to_notebook if turn == "n" else add_to_script
        add(checkout, f"{number}")
        notebooks.pair(checkout.root)
        notebooks.write_scripts(checkout.root)
    assert sources(checkout)[-len(turns) :] == [str(number) for number in range(len(turns))]
    assert list(notebooks.pair_problems(checkout.root)) == []


@pytest.mark.parametrize("committed", [True, False])
def test_edits_of_both_are_refused_by_name_and_nothing_changes(
    checkout: Project, committed: bool
) -> None:
    if not committed:
        notebooks.write_scripts(checkout.root)
        shutil.rmtree(checkout.root / ".git")
    add_to_script(checkout, "'of the script'")
    add_to_notebook(checkout, "'of the notebook'")
    add_to_script(checkout, "'of another job'", JOBS[0])
    before = files(checkout.root)
    with pytest.raises(PairError) as caught:
        notebooks.prepare(checkout.root)
    assert str(caught.value).startswith(f"nbs/jobs/{JOBS[1]}.ipynb and .py were both edited since")
    assert files(checkout.root) == before
    paths(checkout)[0].unlink()  # as the message says
    notebooks.pair(checkout.root)
    assert sources(checkout)[-1] == "'of the script'"


@pytest.mark.parametrize("newer", [0, 1])
def test_the_newer_wins_where_nothing_tells_which_was_edited(checkout: Project, newer: int) -> None:
    shutil.rmtree(checkout.root / ".git")
    add_to_script(checkout, "'of the script'")
    os.utime(paths(checkout)[1 - newer], (1, 1))
    notebooks.pair(checkout.root)
    notebooks.write_scripts(checkout.root)
    found = [
        "'of the script'" in text for text in (sources(checkout), paths(checkout)[1].read_text())
    ]
    assert found == [bool(newer)] * 2


def test_a_script_that_an_editor_gave_another_header_says_the_same(checkout: Project) -> None:
    script = paths(checkout)[1]
    header = "#       format_version: '1.3'\n"
    more = f"{header}#       jupytext_version: 1.16.4\n"
    script.write_text(script.read_text().replace(header, more))
    add_to_notebook(checkout, "'of the notebook'")
    notebooks.pair(checkout.root)
    notebooks.write_scripts(checkout.root)
    assert sources(checkout)[-1] == "'of the notebook'"
    assert "jupytext_version: 1.16.4" not in script.read_text()


def test_a_notebook_in_a_half_done_merge_is_named(checkout: Project) -> None:
    path = paths(checkout)[0]
    path.write_text("<<<<<<< HEAD\n" + path.read_text())
    with pytest.raises(PairError, match=f"{JOBS[1]}.ipynb is not a notebook"):
        notebooks.prepare(checkout.root)


TEXTS = "x = 1|# %%||    # deep|%matplotlib inline|!ls|'''|def f():|    return 2|# note|## Title|- item|é = 'ü'"
LINES = st.sampled_from([*TEXTS.split("|"), "x  ", "#| export", "a = '''# %%'''", "```"])
SOURCES = st.lists(LINES, max_size=5).map("\n".join)
CELLS = st.lists(st.tuples(st.booleans(), SOURCES), max_size=5)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project without job notebooks and without git."""
    root = tmp_path_factory.mktemp("property")
    (root / "nbs" / "jobs").mkdir(parents=True)
    return root


def made(cells: list[tuple[bool, str]]) -> Any:
    kinds = {True: new_code_cell, False: new_markdown_cell}
    return new_notebook(cells=[kinds[code](source) for code, source in cells])


@settings(max_examples=60, deadline=None)
@given(first=CELLS, second=CELLS, through_the_script=st.booleans())
def test_any_notebook_and_any_script_are_in_step_after_one_call(
    empty: Path,
    first: list[tuple[bool, str]],
    second: list[tuple[bool, str]],
    through_the_script: bool,
) -> None:
    path = empty / "nbs" / "jobs" / "01_any.ipynb"
    for old in (path, path.with_suffix(".py")):
        old.unlink(missing_ok=True)
    nbformat.write(made(first), path)
    for edited in (made(first), made(second)):
        if through_the_script and path.with_suffix(".py").exists():
            path.with_suffix(".py").write_text(notebooks.script_of(edited))
        else:
            nbformat.write(edited, path)
        for _ in range(2):
            notebooks.pair(empty)
            notebooks.write_scripts(empty)
            assert list(notebooks.pair_problems(empty)) == []
            assert json.loads((empty / notebooks.RECORD).read_text()).keys() == {"01_any"}
            after = files(empty)
        notebooks.pair(empty)
        notebooks.write_scripts(empty)
        assert files(empty) == after
        assert path.with_suffix(".py").read_text() == notebooks.script_of(nbformat.read(path, 4))
