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


# --- the cells of the library ----------------------------------------------------------------------


def page(folder: Path, *cells: nbformat.NotebookNode, name: str = "nbs/lib/page.ipynb") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells):
        cell["id"] = f"cell{number}"
    notebooks.write_notebook(path, nbformat.v4.new_notebook(cells=list(cells)))
    return folder


def cell(source: str, output: str = "") -> nbformat.NotebookNode:
    shown = [new_output("execute_result", {"text/plain": output}, execution_count=None)]
    return new_code_cell(source, outputs=shown if output else [])


EXPORT = cell("#| export\ndef double(x):\n    return 2 * x")
EXAMPLE = cell("double(2)", "4")


def lines(count: int) -> str:
    return "#| export\n" + "\n".join(f"a{number} = {number}" for number in range(count))


def test_a_short_cell_with_an_example_that_shows_its_output_is_right(tmp_path: Path) -> None:
    imports = cell("#| export\n" + "\n".join(f"import a{number}" for number in range(60)))
    page(tmp_path, imports, EXPORT, EXAMPLE, cell(lines(notebooks.SHORT)), cell("a1", "1"))
    assert list(notebooks.cell_problems(tmp_path)) == []


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        ([EXPORT, EXAMPLE, cell("  \n")], "nbs/lib/page.ipynb cell cell2 is empty; delete it"),
        (
            [cell(EXPORT.source, "4"), EXAMPLE],
            "nbs/lib/page.ipynb cell cell0 exports and has the output of another cell; "
            "run the notebook again",
        ),
        (
            [EXPORT, EXAMPLE, EXAMPLE, cell(lines(41))],
            "nbs/lib/page.ipynb cell cell3 exports 41 lines; split it, 40 are the most",
        ),
        (
            [EXPORT, EXAMPLE, cell("x = double(3)\nx, 2")],
            "nbs/lib/page.ipynb cell cell2 ends in an expression and shows nothing; "
            "run the notebook again",
        ),
        (
            [EXPORT, cell("assert double(2) == 4")],
            "nbs/lib/page.ipynb has no example whose output shows; add one",
        ),
        (
            [EXPORT, cell(lines(3)), EXAMPLE],
            "nbs/lib: 1 examples for 2 exported cells; there is one for each",
        ),
        (
            [EXPORT, cell(lines(16)), cell(lines(16)), EXAMPLE, EXAMPLE, EXAMPLE],
            "nbs/lib: fewer than half of 3 exported cells have 15 lines or less",
        ),
    ],
)
def test_a_cell_that_does_not_suit_a_reader_is_found(
    tmp_path: Path, cells: list[nbformat.NotebookNode], problem: str
) -> None:
    page(tmp_path, *(cell(each.source, "4" if each.outputs else "") for each in cells))
    assert list(notebooks.cell_problems(tmp_path)) == [problem]


def test_pages_outside_the_library_need_no_example_of_their_own(tmp_path: Path) -> None:
    page(tmp_path, new_markdown_cell("# Words"), name="nbs/how-to/read.ipynb")
    assert list(notebooks.cell_problems(tmp_path)) == []
    page(tmp_path, cell("1, 2"), name="nbs/how-to/run.ipynb")
    assert len(list(notebooks.cell_problems(tmp_path))) == 1


def test_a_comment_of_the_settings_that_is_not_the_meaning_of_its_key_is_found(
    project: Path,
) -> None:
    path = project / "settings.ini"
    path.write_text((ROOT / "settings.ini").read_text().replace("# Least F1", "# Greatest F1"))
    number = path.read_text().splitlines().index("# Greatest F1 on the holdout") + 1
    assert list(notebooks.settings_problems(project)) == [
        f"settings.ini:{number} is not what nbs/lib/settings.ipynb says; run make prepare"
    ]
