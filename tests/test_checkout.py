"""What runs is what is recorded: the commit from git, the package from the checkout and its notebooks."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from churn_lib import bundle, job_context
from churn_lib.job_context import CodeError, GitError, check_code, git_sha
from churn_lib.provenance import checkout
from tests.conftest import CHURN, ROOT, Project, good, notebook_task
from tools.notebooks import fresh_copy

# --- git ------------------------------------------------------------------------------------------

PARAMETERS = [{"name": "git_sha", "default": "${bundle.git.commit}"}]


@pytest.fixture
def committed(project: Project) -> str:
    """A bundle in a checkout without changes; its commit."""
    project.write({"job": {"parameters": PARAMETERS, "tasks": [good("a")]}})
    return project.commit()


def repository(folder: Path) -> Project:
    """Another repository with a commit of its own."""
    other = Project(folder)
    (folder / "file").write_text("x")
    other.commit()
    return other


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("GIT_DIR", ".git"),
        ("GIT_WORK_TREE", "."),
        ("GIT_INDEX_FILE", ".git/index"),
        ("GIT_COMMON_DIR", ".git"),
        ("GIT_OBJECT_DIRECTORY", ".git/objects"),
        ("GIT_CEILING_DIRECTORIES", ".."),
        ("GIT_NAMESPACE", "other"),
        ("GIT_PREFIX", "sub/"),
    ],
)
def test_a_variable_that_git_gives_to_a_hook_leads_nowhere_else(
    project: Project,
    committed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    place: str,
) -> None:
    other = repository(tmp_path / "other")
    monkeypatch.setenv(name, str((other.root / place).resolve()))
    folder = project.root / "deep"
    folder.mkdir()
    assert git_sha(folder) == committed
    assert bundle.load("local", project.root).git_sha == committed
    assert checkout(folder) == checkout(project.root)
    assert checkout(folder).sha == committed


def test_a_run_that_a_hook_of_another_repository_starts_names_its_own_commit(
    project: Project, committed: str, tmp_path: Path
) -> None:
    other = repository(tmp_path / "other")
    hook = other.root / ".git" / "hooks" / "pre-commit"
    hook.write_text(f"#!/bin/sh\ncd '{project.root}' && exec '{CHURN}' run job\n")
    hook.chmod(0o755)
    (other.root / "file").write_text("y")
    other.git("commit", "--quiet", "--all", "--message", "with a hook")
    assert project.record("job")["parameters"] == {"git_sha": committed}


def test_worktrees_submodules_clones_and_subfolders_have_the_commit_that_is_checked_out(
    project: Project, committed: str, tmp_path: Path
) -> None:
    project.git("commit", "--quiet", "--allow-empty", "--message", "second")
    second = project.git("rev-parse", "HEAD")
    tree, shallow, outer = tmp_path / "a tree", tmp_path / "flach und größer", tmp_path / "outer"
    project.git("worktree", "add", "--quiet", "--detach", str(tree), committed)
    project.git("clone", "--quiet", "--depth", "1", f"file://{project.root}", str(shallow))
    around = repository(outer)
    adding = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    around.git(*adding, str(project.root), "inner")
    assert git_sha(tree) == committed
    assert git_sha(shallow) == second
    assert git_sha(outer / "inner") == second
    assert git_sha(outer) == f"{around.git('rev-parse', 'HEAD')}-dirty"
    for folder in (tree, shallow, outer / "inner"):
        assert checkout(folder).sha == git_sha(folder)
        (folder / "new").write_text("new")
        assert git_sha(folder) == f"{checkout(folder).sha}-dirty"
        assert b"+new" in checkout(folder).patch


def test_a_project_in_a_folder_of_a_larger_repository_has_its_commit(tmp_path: Path) -> None:
    large = repository(tmp_path / "large")
    inner = Project(large.root / "teams" / "churn")
    inner.write({"job": {"parameters": PARAMETERS, "tasks": [good("a")]}})
    assert git_sha(inner.root) == f"{large.git('rev-parse', 'HEAD')}-dirty"
    assert bundle.load("local", inner.root).git_sha == git_sha(inner.root)
    commit = large.commit()
    assert git_sha(inner.root) == commit


def test_a_folder_that_git_ignores_has_no_commit(project: Project, committed: str) -> None:
    ignored = project.root / ".churn" / "copy"
    ignored.mkdir(parents=True)
    assert git_sha(ignored) is None
    assert git_sha(project.root) == committed


def test_new_files_count_as_changes_whatever_the_user_has_chosen_to_see(
    project: Project, committed: str
) -> None:
    project.git("config", "status.showUntrackedFiles", "no")
    (project.root / "new").write_text("new")
    assert git_sha(project.root) == f"{committed}-dirty"


@pytest.fixture
def of_another_user(
    committed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """Every repository belongs to somebody else, as far as git knows."""
    script = tmp_path / "bin" / "git"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\nGIT_TEST_ASSUME_DIFFERENT_OWNER=1 exec "{shutil.which("git")}" "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return monkeypatch


@pytest.mark.usefixtures("of_another_user")
def test_dubious_ownership_is_told_in_the_words_of_git(project: Project) -> None:
    with pytest.raises(GitError) as caught:
        git_sha(project.root)
    answer = project.churn("run", "job")
    for words in (str(caught.value), answer.stderr):
        assert "fatal: detected dubious ownership in repository at" in words
        assert f"git config --global --add safe.directory {project.root}" in words
        assert "not a git checkout" not in words
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert not project.runs.exists()


@pytest.mark.usefixtures("of_another_user")
def test_a_commit_that_is_passed_needs_no_git(project: Project) -> None:
    answer = project.churn("run", "job", "-p", "git_sha=abc")
    assert answer.returncode == 0, answer.stderr
    assert project.record("job")["parameters"] == {"git_sha": "abc"}


def test_a_folder_that_the_user_calls_safe_is_safe_here_too(
    project: Project, committed: str, of_another_user: pytest.MonkeyPatch
) -> None:
    of_another_user.setenv("GIT_CONFIG_COUNT", "1")
    of_another_user.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    of_another_user.setenv("GIT_CONFIG_VALUE_0", "*")
    assert git_sha(project.root) == committed


def test_a_worktree_whose_repository_is_gone_is_not_taken_for_no_checkout(
    project: Project, committed: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    project.git("worktree", "add", "--quiet", "--detach", str(tree))
    shutil.rmtree(project.root)
    with pytest.raises(GitError, match="fatal: not a git repository: "):
        git_sha(tree)


def test_without_git_there_is_a_message_and_not_a_missing_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="git is not installed, or not on PATH"):
        git_sha(tmp_path)
    assert job_context.running_commit() == "unknown"


# --- the package and its notebooks ------------------------------------------------------------------

MODEL = "nbs/lib/model.ipynb"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A second checkout with the code that runs here."""
    folder = tmp_path / "copy"
    folder.mkdir()
    fresh_copy(folder, ROOT)
    for name in ("settings.ini", "databricks.yml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "resources", folder / "resources")
    return folder


def run(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The `churn` command of this environment in another folder."""
    return subprocess.run(
        [str(CHURN), *arguments],
        cwd=folder,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
    )


def edit(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the cells of a notebook, as Jupyter would save it."""
    content = json.loads(path.read_text())
    change(content["cells"])
    path.write_text(json.dumps(content, indent=1))


def exported(cells: list[dict[str, Any]]) -> list[int]:
    """Which cells are exported."""
    return [n for n, cell in enumerate(cells) if "".join(cell["source"]).startswith("#| export")]


def test_the_same_code_in_another_folder_may_run(copy: Path) -> None:
    check_code(copy / "nbs" / "jobs")


@pytest.mark.parametrize("change", ["changed", "added", "removed"])
def test_the_environment_of_one_checkout_refuses_the_other_code_of_another(
    copy: Path, change: str
) -> None:
    module = copy / "churn_lib" / ("more.py" if change == "added" else "model.py")
    if change == "removed":
        module.unlink()
    else:
        with module.open("a") as file:
            file.write("raise RuntimeError\n")
    for command in (["run", "training_job", "-p", "git_sha=abc"], ["pipeline", "--json"]):
        answer = run(copy, *command)
        assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (2, "", 1)
        assert f"the code of {ROOT / 'churn_lib'} would run in {copy}, which has" in answer.stderr
        assert f"run {copy / '.venv/bin/churn'} (`make run` there" in answer.stderr
    assert not (copy / ".churn").exists()


def test_a_package_that_is_installed_from_elsewhere_is_refused_in_a_checkout(
    copy: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "installed"
    shutil.copytree(copy / "churn_lib", installed / "churn_lib")
    with (installed / "churn_lib" / "model.py").open("a") as file:
        file.write("OTHER = True\n")
    answer = run(copy, "run", "training_job", "-p", "git_sha=abc", PYTHONPATH=str(installed))
    assert answer.returncode == 2
    assert f"the code of {installed / 'churn_lib'} would run in {copy}" in answer.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda cells: cells[exported(cells)[-1]]["source"].append("\nLIMIT = 3"),
        lambda cells: cells.pop(exported(cells)[-1]),
        lambda cells: cells.append(
            {"cell_type": "code", "source": "#| exporti\nLIMIT = 3", "id": "a", "metadata": {}}
        ),
        lambda cells: cells.insert(exported(cells)[1], cells.pop(exported(cells)[-1])),
        lambda cells: cells[exported(cells)[-1]]["source"].pop(0),
    ],
    ids=["edited", "removed", "added", "moved", "no longer exported"],
)
def test_a_notebook_that_was_edited_and_not_exported_stops_a_run(
    copy: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[dict[str, Any]]], object]
) -> None:
    edit(copy / MODEL, change)
    answer = run(copy, "run", "training_job", "-p", "git_sha=abc")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == (
        f"churn: {MODEL} is not what churn_lib has of it, and churn_lib is what runs: "
        "run `make prepare`\n"
    )
    assert not (copy / ".churn").exists()
    monkeypatch.chdir(copy / "nbs" / "jobs")  # as a notebook in Jupyter
    with pytest.raises(CodeError, match=MODEL):
        job_context.parameters({"__annotations__": {"git_sha": str}, "git_sha": ""})


def test_a_new_notebook_that_was_not_exported_stops_a_run(copy: Path) -> None:
    text = (copy / MODEL).read_text().replace("default_exp model", "default_exp other")
    (copy / "nbs/lib/other.ipynb").write_text(text)
    with pytest.raises(CodeError, match=r"nbs/lib/other\.ipynb is not what churn_lib has"):
        check_code(copy)


def test_a_notebook_in_a_half_done_merge_is_named(copy: Path) -> None:
    (copy / MODEL).write_text("<<<<<<< HEAD\n" + (copy / MODEL).read_text())
    with pytest.raises(CodeError, match=f"{MODEL} is not a notebook"):
        check_code(copy)


def test_examples_texts_and_outputs_may_differ(copy: Path) -> None:
    def change(cells: list[dict[str, Any]]) -> None:
        for cell in cells:
            cell["metadata"] = {"scrolled": True}
            if cell["cell_type"] == "markdown":
                cell["source"].append("\nMore.")
        cells.append({"cell_type": "code", "source": "1 + 1", "id": "a", "metadata": {}})

    edit(copy / MODEL, change)
    folder = copy / "nbs" / "lib" / ".ipynb_checkpoints"
    folder.mkdir()
    (folder / "model-checkpoint.ipynb").write_text("{}")
    check_code(copy)


@pytest.mark.parametrize(
    ("setup", "refused"), [("", True), ("%load_ext autoreload\n%autoreload 2", False)]
)
def test_a_kernel_that_goes_on_with_what_it_has_imported_is_told_to_restart(
    copy: Path, monkeypatch: pytest.MonkeyPatch, setup: str, refused: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(copy))
    change = (
        "import pathlib\n"
        "for path in ('churn_lib/model.py', 'nbs/lib/model.ipynb'):\n"
        "    file = pathlib.Path('../..', path)\n"
        "    file.write_text(file.read_text().replace('1e-12', '1e-11'))"
    )
    asking = "job_context.check_code()\n'right'"
    sources = [setup, "from churn_lib import job_context, model", asking, change, asking]
    book = new_notebook(cells=[new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(copy / "nbs" / "jobs")}}
    NotebookClient(book, kernel_name="python3", resources=resources, allow_errors=True).execute()
    assert "'right'" in str(book.cells[2].outputs)
    shown = str(book.cells[4].outputs)
    message = (
        "CodeError: churn_lib/model.py has changed since it was imported here: restart the kernel"
    )
    assert (message in shown, "'right'" in shown) == (refused, not refused)


def test_a_kernel_runs_the_code_of_the_command_that_starts_it(project: Project) -> None:
    shutil.copytree(ROOT / "churn_lib", project.root / "code" / "churn_lib")
    source = "import churn_lib\nfrom churn_lib import job_context\njob_context.task_values.set('at', churn_lib.__file__)"
    project.notebook("where", source)
    project.write({"job": [notebook_task("where")]})
    answer = run(project.root, "run", "job", PYTHONPATH="code")
    assert answer.returncode == 0, answer.stderr
    (task,) = project.record("job")["tasks"]
    assert task["values"] == {"at": str(project.root / "code" / "churn_lib" / "__init__.py")}
