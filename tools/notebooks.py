"""Bring what is committed beside the notebooks in step with them, and check that it is.

`python -m tools.notebooks prepare` does it: job notebooks and their paired scripts, format, package,
metadata. One call is enough, a second changes nothing. Without `prepare` the same is only checked, of a
copy so that nothing here changes: are the notebooks clean and the job notebooks without outputs, does the
package equal their export, do the paired scripts of the job notebooks say the same, is there exactly one
cell tagged `parameters` in each job notebook, are the cells of the library short, with examples that show
their output.
"""

import ast
import copy
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import jupytext
import nbformat
from jupytext.combine import combine_inputs_with_outputs

from churn_lib.job_context import GitError, git
from churn_lib.settings import commented

ROOT = Path(__file__).parent.parent
JOBS = Path("nbs/jobs")
COPIED = ("nbs", "churn_lib", "pyproject.toml", "README.md")
NOT_COPIED = ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.egg-info")


def fresh_copy(folder: Path, source: Path) -> None:
    """Copy what nbdev works on."""
    for name in COPIED:
        if (source / name).is_dir():
            copytree(source / name, folder / name, ignore=NOT_COPIED)
        elif (source / name).exists():
            (folder / name).write_bytes((source / name).read_bytes())


def run(folder: Path, command: str, *arguments: str) -> None:
    """Run a tool of this environment in a folder."""
    tool = [str(Path(sys.executable).parent / command), *arguments]
    subprocess.run(tool, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def differing(folder: Path, source: Path, pattern: str) -> Iterator[Path]:
    """Files that `folder` and `source` do not share byte for byte."""
    paths = {path.relative_to(base) for base in (folder, source) for path in base.glob(pattern)}
    for path in sorted(paths):
        if ".ipynb_checkpoints" in path.parts:
            continue
        here, there = source / path, folder / path
        if not (here.exists() and there.exists() and here.read_bytes() == there.read_bytes()):
            yield path


# --- job notebooks and their scripts ---------------------------------------------------------------

SCRIPT = "py:percent"
METADATA = {  # of every job notebook, whatever an editor makes of it: jobs run on this environment's Python
    "jupytext": {
        "cell_metadata_filter": "tags,-all",
        "formats": f"ipynb,{SCRIPT}",
        "notebook_metadata_filter": "kernelspec,-jupytext.text_representation.jupytext_version",
    },
    "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"},
}
OF_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}  # tags of cells that it adds
RECORD = Path(".cache/scripts.json")  # hash of each script when it was last in step


class PairError(Exception):
    """A job notebook and its script cannot be brought in step; the message says what to do."""


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """A notebook; raises `PairError` when the file is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, KeyError, AttributeError) as error:
        raise PairError(
            f"{path} is not a notebook ({error!s:.60}); was a merge half done?"
        ) from None


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A job notebook as it is committed: the outputs, and what was passed to a run, stay with the runs."""
    bare: Any = copy.deepcopy(notebook)
    bare.cells = [c for c in bare.cells if not OF_PAPERMILL & set(c.metadata.get("tags", []))]
    for cell in bare.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    bare.metadata = nbformat.from_dict(METADATA)
    return bare


def script_of(notebook: nbformat.NotebookNode) -> str:
    """What the paired script of a notebook says."""
    return jupytext.writes(stripped(notebook), fmt=SCRIPT)


def write_notebook(path: Path, notebook: nbformat.NotebookNode) -> None:
    """Write a notebook the way nbdev does."""
    nbformat.write(notebook, path)  # as Jupyter does, and nbdev keeps it so


def digest(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def in_step_before(root: Path, stem: str) -> set[str]:
    """Hashes of the script as it was known to be in step: when last prepared, added, committed."""
    record = root / RECORD
    known = json.loads(record.read_text()) if record.is_file() else {}
    found = {known[stem]} if stem in known else set()
    for tree in ("", "HEAD"):
        try:
            text = git(root, "show", f"{tree}:./{(JOBS / stem).as_posix()}.py").decode()
        except GitError:
            continue
        found.add(digest(text))
    return found


def edited_side(root: Path, stem: str) -> str:
    """Which of the two was edited: notebook, script, or both; empty when they are in step."""
    notebook, script = (root / JOBS / f"{stem}{suffix}" for suffix in (".ipynb", ".py"))
    if not (notebook.exists() and script.exists()):
        return "notebook" if notebook.exists() else "script"
    ours, theirs = script_of(read_notebook(notebook)), script.read_text(encoding="utf-8")
    plain = script_of(jupytext.reads(theirs, fmt=SCRIPT))  # an editor may add to its header
    if ours in (theirs, plain):
        return ""
    before = in_step_before(root, stem)
    edited = (digest(ours) not in before, not {digest(theirs), digest(plain)} & before)
    if before and all(edited):
        return "both"
    if edited[0] != edited[1]:
        return "notebook" if edited[0] else "script"
    return "notebook" if notebook.stat().st_mtime > script.stat().st_mtime else "script"


def pair(root: Path) -> None:
    """Take what was edited in a script into its notebook; raises `PairError` when both were edited."""
    sides = {stem: edited_side(root, stem) for stem in stems(root)}
    if both := [f"{JOBS / stem}.ipynb and .py" for stem, side in sides.items() if side == "both"]:
        raise PairError(
            f"{', '.join(both)} were both edited since they last agreed: carry the changes into one of "
            "them, delete the other, and run make prepare"
        )
    for stem, side in sides.items():
        path = root / JOBS / f"{stem}.ipynb"
        if side == "script":
            taken = jupytext.read(path.with_suffix(".py"), fmt=SCRIPT)
            if path.exists():
                taken = combine_inputs_with_outputs(taken, read_notebook(path), SCRIPT)
            write_notebook(path, stripped(taken))
        elif (found := read_notebook(path)) != (bare := stripped(found)):
            write_notebook(path, bare)


def write_scripts(root: Path) -> None:
    """Write the script of each job notebook, and note that they are in step."""
    known = {}
    for path in sorted((root / JOBS).glob("*.ipynb")):
        text, script = script_of(read_notebook(path)), path.with_suffix(".py")
        if not script.exists() or script.read_text(encoding="utf-8") != text:
            script.write_text(text, encoding="utf-8")
        known[path.stem] = digest(text)
    (root / RECORD).parent.mkdir(exist_ok=True)
    (root / RECORD).write_text(json.dumps(known, indent=1))


COMMENT = """
from pathlib import Path
from churn_lib.settings import commented
path = Path("settings.ini")
if path.is_file() and commented(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8"):
    path.write_text(commented(path.read_text(encoding="utf-8")), encoding="utf-8")
"""


def prepare(root: Path) -> None:
    """Bring everything in step: scripts first, so that what they bring is formatted and exported too."""
    pair(root)
    run(root, "ruff", "format", "--quiet", ".")
    run(root, "nbdev-export")
    run(root, "nbdev-clean")
    write_scripts(root)
    # in a process of its own: it takes the meanings that were exported just now
    run(root, "python", "-B", "-c", COMMENT)


# --- the check -----------------------------------------------------------------------------------


def stems(source: Path) -> list[str]:
    """Names of job notebooks and scripts, without suffix."""
    return sorted(
        {path.stem for path in (source / JOBS).glob("*.*") if path.suffix in (".ipynb", ".py")}
    )


def pair_problems(source: Path) -> Iterator[str]:
    """Job notebooks with outputs, whose script says something else, or that lack one."""
    for stem in stems(source):
        path = source / JOBS / f"{stem}.ipynb"
        script = path.with_suffix(".py")
        if not (path.exists() and script.exists()):
            yield f"{JOBS / stem}: the notebook or its paired script is missing; run make prepare"
            continue
        notebook = read_notebook(path)
        if notebook != stripped(notebook):
            yield f"{JOBS / path.name} has outputs, or what papermill leaves; run make prepare"
        if script_of(notebook) != script.read_text(encoding="utf-8"):
            yield f"{JOBS / script.name} says something else than its notebook; run make prepare"


def tag_problems(source: Path) -> Iterator[str]:
    """Job notebooks that do not have exactly one cell tagged `parameters`."""
    for path in sorted((source / JOBS).glob("*.ipynb")):
        cells = read_notebook(path).cells
        tagged = sum("parameters" in cell.metadata.get("tags", []) for cell in cells)
        if tagged != 1:
            yield f"{JOBS / path.name} has {tagged} cells tagged parameters; it needs one"


LONGEST = 40  # lines of an exported cell
SHORT = 15  # lines that at least half of them have at most
SHOWN = (
    ast.Name,
    ast.Attribute,
    ast.Subscript,
    ast.Tuple,
    ast.List,
    ast.Dict,
    ast.Compare,
    ast.BinOp,
)


def directive(source: str) -> str:
    """What the first line of a cell tells nbdev: export, hide, default_exp; empty when nothing."""
    found = re.match(r"#\|\s*(\w+)", source)
    return found[1] if found else ""


def shows(source: str) -> bool:
    """Whether a cell surely has an output: it ends in an expression that is no call."""
    plain = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", source)
    body = ast.parse(plain).body
    ends = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
    return isinstance(ends, SHOWN) and not source.rstrip().endswith(";")


def is_import(source: str) -> bool:
    """Whether a cell only imports."""
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body)


def cell_problems(source: Path) -> Iterator[str]:
    """Cells that are too long or empty, outputs on the wrong cell, pages of the library without example."""
    lengths, examples = [], 0
    for path in sorted((source / "nbs").rglob("*.ipynb")):
        name, shown = path.relative_to(source), 0
        if ".ipynb_checkpoints" in path.parts or JOBS in name.parents:
            continue
        cells = [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]
        for cell in cells:
            text, place = cell.source, f"{name} cell {cell.id}"
            if not text.strip():
                yield f"{place} is empty; delete it"
            elif directive(text) == "export" and not is_import(text):
                lengths.append(len(text.splitlines()) - 1)
                if cell.outputs:
                    yield f"{place} exports and has the output of another cell; run the notebook again"
                if lengths[-1] > LONGEST:
                    yield f"{place} exports {lengths[-1]} lines; split it, {LONGEST} are the most"
            elif not directive(text) and not is_import(text):
                shown += bool(cell.outputs)
                examples += Path("nbs/lib") in name.parents
                if shows(text) and not cell.outputs:
                    yield f"{place} ends in an expression and shows nothing; run the notebook again"
        if Path("nbs/lib") in name.parents and not shown:
            yield f"{name} has no example whose output shows; add one"
    if lengths and sum(length <= SHORT for length in lengths) * 2 < len(lengths):
        yield f"nbs/lib: fewer than half of {len(lengths)} exported cells have {SHORT} lines or less"
    if examples < len(lengths):
        yield f"nbs/lib: {examples} examples for {len(lengths)} exported cells; there is one for each"


def settings_problems(source: Path) -> Iterator[str]:
    """Comments of settings.ini that are not what its keys mean."""
    path = source / "settings.ini"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for number, (here, there) in enumerate(
        zip(text.splitlines(), commented(text).splitlines(), strict=False), 1
    ):
        if here != there:
            yield f"settings.ini:{number} is not what nbs/lib/settings.ipynb says; run make prepare"
            return


def problems(source: Path) -> Iterator[str]:
    """Everything that is out of step, one per line."""
    yield from tag_problems(source)
    yield from pair_problems(source)
    yield from settings_problems(source)
    yield from cell_problems(source)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fresh_copy(folder, source)
        run(folder, "nbdev-clean")
        for path in differing(folder, source, "nbs/**/*.ipynb"):
            yield f"{path} is not clean; run make prepare"
        for module in folder.glob("churn_lib/**/[!_]*.py"):
            module.unlink()  # so that a module without a notebook shows
        run(folder, "nbdev-export")
        for path in differing(folder, source, "churn_lib/**/*.py"):
            yield f"{path} is not what its notebook exports; run make prepare"


def main() -> int:
    """Do what was asked for and print every problem; 1 when there is one."""
    try:
        if sys.argv[1:] == ["prepare"]:
            found = prepare(ROOT)
        else:
            found = list(cell_problems(ROOT) if sys.argv[1:] == ["cells"] else problems(ROOT))
    except PairError as error:
        found = [str(error).replace(f"{ROOT}/", "")]
    except subprocess.CalledProcessError as error:  # it has said why
        found = [f"{Path(error.cmd[0]).name} failed; put that right and run make prepare again"]
    sys.stderr.writelines(f"{line}\n" for line in found or [])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
