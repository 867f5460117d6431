"""The guards around the notebooks can fail: each is broken on purpose and must say so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from tools import notebooks

ROOT = Path(__file__).parents[2]
JOB = "nbs/jobs/02_train_and_register"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    notebooks.fresh_copy(tmp_path, ROOT)
    return tmp_path


def edit(path: Path, change: Callable[[nbformat.NotebookNode], None]) -> None:
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def test_the_project_is_in_step(project: Path) -> None:
    assert list(notebooks.problems(project)) == []


def test_a_notebook_with_an_execution_count_is_not_clean(project: Path) -> None:
    def run(notebook: nbformat.NotebookNode) -> None:
        next(cell for cell in notebook.cells if cell.cell_type == "code")["execution_count"] = 7

    edit(project / "nbs/lib/settings.ipynb", run)
    assert "nbs/lib/settings.ipynb is not clean; run make prepare" in notebooks.problems(project)


def test_a_package_edited_by_hand_is_found(project: Path) -> None:
    with (project / "churn_lib/settings.py").open("a") as module:
        module.write("\nHURRY = True\n")
    assert any("churn_lib/settings.py" in line for line in notebooks.problems(project))


def test_a_module_without_its_notebook_is_found(project: Path) -> None:
    (project / "nbs/lib/cli/app.ipynb").unlink()
    found = list(notebooks.problems(project))
    assert any("churn_lib/cli/app.py is not what its notebook exports" in line for line in found)


def test_a_script_that_says_something_else_is_found(project: Path) -> None:
    script = project / f"{JOB}.py"
    script.write_text(script.read_text().replace("## Training", "## Learning"))
    assert list(notebooks.pair_problems(project)) == [
        f"{JOB}.py says something else than its notebook; run make prepare"
    ]


def test_a_notebook_that_says_something_else_than_its_script_is_found(project: Path) -> None:
    def change(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[-1]["source"] += "\nprint('more')"

    edit(project / f"{JOB}.ipynb", change)
    assert len(list(notebooks.pair_problems(project))) == 1


def test_a_missing_script_is_found(project: Path) -> None:
    (project / f"{JOB}.py").unlink()
    assert [line for line in notebooks.pair_problems(project) if "is missing" in line]


def as_run_all_leaves_it(notebook: nbformat.NotebookNode) -> None:
    """Outputs, counts and what Jupyter and papermill write into a notebook that was run."""
    for number, cell in enumerate(notebook.cells):
        cell.metadata["scrolled"] = True
        if cell.cell_type == "code":
            cell["execution_count"] = number
            cell["outputs"] = [new_output("stream", name="stdout", text="customer 00042")]
    injected = new_code_cell("git_sha = 'abc'", metadata={"tags": ["injected-parameters"]})
    failed = new_markdown_cell("failed", metadata={"tags": ["papermill-error-cell-tag"]})
    notebook.cells[2:2] = [injected, failed]
    notebook.metadata.update(
        papermill={"parameters": {"git_sha": "abc"}},
        widgets={"state": {}},
        language_info={"name": "python", "version": "3.11.7"},
        kernelspec={"display_name": "churn (3.11)", "language": "python", "name": "churn"},
    )


@pytest.mark.parametrize(
    "change",
    [
        as_run_all_leaves_it,
        lambda notebook: notebook.cells[2].update(outputs=[new_output("stream", text="42")]),
        lambda notebook: notebook.cells[2].update(execution_count=3),
        lambda notebook: notebook.metadata.update(papermill={}),
        lambda notebook: notebook.cells.append(
            new_code_cell("x = 1", metadata={"tags": ["injected-parameters"]})
        ),
    ],
    ids=["all of it", "an output", "a count", "metadata of papermill", "passed parameters"],
)
def test_what_a_run_leaves_in_a_job_notebook_is_not_committed(
    project: Path, change: Callable[[nbformat.NotebookNode], None]
) -> None:
    edit(project / f"{JOB}.ipynb", change)
    assert list(notebooks.pair_problems(project)) == [
        f"{JOB}.ipynb has outputs, or what papermill leaves; run make prepare"
    ]


@pytest.mark.parametrize("count", [0, 2])
def test_a_job_notebook_needs_exactly_one_parameters_cell(project: Path, count: int) -> None:
    def retag(notebook: nbformat.NotebookNode) -> None:
        for number, cell in enumerate(notebook.cells):
            cell.metadata["tags"] = ["parameters"] if number in (1, 2)[:count] else []

    edit(project / f"{JOB}.ipynb", retag)
    assert list(notebooks.tag_problems(project)) == [
        f"{JOB}.ipynb has {count} cells tagged parameters; it needs one"
    ]


def test_cleaning_keeps_the_parameters_tag(project: Path) -> None:
    notebooks.run(project, "nbdev-clean")
    assert list(notebooks.tag_problems(project)) == []


def test_cleaning_without_the_allowed_key_would_lose_the_tag(project: Path) -> None:
    pyproject = project / "pyproject.toml"
    lines = pyproject.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("allowed_cell_metadata_keys")]
    assert len(kept) == len(lines) - 1
    pyproject.write_text("\n".join(kept) + "\n")
    notebooks.run(project, "nbdev-clean")
    assert len(list(notebooks.tag_problems(project))) == len(
        list((project / "nbs/jobs").glob("*.ipynb"))
    )


def test_no_notebook_or_text_names_a_path_of_a_machine() -> None:
    shown = shutil.which("git")
    assert shown
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        text = path.read_text()
        for trace in ("/home/", "/root/", "site-packages", str(ROOT)):
            assert trace not in text, f"{path} shows {trace}"
