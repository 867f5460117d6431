"""Check that what is committed beside the notebooks is what they would produce.

Four questions, asked of a copy so that nothing here changes: are the notebooks clean, does the
package equal their export, do the text twins of the job notebooks say the same, is there exactly
one cell tagged `parameters` in each job notebook.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, ignore_patterns

import jupytext
import nbformat

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


def nbdev(command: str, folder: Path) -> None:
    """Run one of nbdev's commands in a folder."""
    tool = Path(sys.executable).parent / command
    subprocess.run([str(tool)], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def differing(folder: Path, source: Path, pattern: str) -> Iterator[Path]:
    """Files that `folder` and `source` do not share byte for byte."""
    paths = {path.relative_to(base) for base in (folder, source) for path in base.glob(pattern)}
    for path in sorted(paths):
        if ".ipynb_checkpoints" in path.parts:
            continue
        here, there = source / path, folder / path
        if not (here.exists() and there.exists() and here.read_bytes() == there.read_bytes()):
            yield path


def twin_problems(source: Path) -> Iterator[str]:
    """Job notebooks whose text twin says something else, or that lack one."""
    notebooks = {path.stem for path in (source / JOBS).glob("*.ipynb")}
    twins = {path.stem for path in (source / JOBS).glob("*.py")}
    for stem in sorted(notebooks ^ twins):
        yield f"{JOBS / stem}: a notebook or its text twin is missing; run make prepare"
    for stem in sorted(notebooks & twins):
        notebook = nbformat.read(source / JOBS / f"{stem}.ipynb", as_version=4)
        twin = (source / JOBS / f"{stem}.py").read_text(encoding="utf-8")
        if jupytext.writes(notebook, fmt="py:percent") != twin:
            yield f"{JOBS / stem}.py says something else than its notebook; run make prepare"


def tag_problems(source: Path) -> Iterator[str]:
    """Job notebooks that do not have exactly one cell tagged `parameters`."""
    for path in sorted((source / JOBS).glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        tagged = sum("parameters" in cell.metadata.get("tags", []) for cell in cells)
        if tagged != 1:
            yield f"{JOBS / path.name} has {tagged} cells tagged parameters; it needs one"


def problems(source: Path) -> Iterator[str]:
    """Everything that is out of step, a line each."""
    yield from tag_problems(source)
    yield from twin_problems(source)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fresh_copy(folder, source)
        nbdev("nbdev-clean", folder)
        for path in differing(folder, source, "nbs/**/*.ipynb"):
            yield f"{path} is not clean; run make prepare"
        for module in folder.glob("churn_lib/[!_]*.py"):
            module.unlink()  # so that a module without a notebook shows
        nbdev("nbdev-export", folder)
        for path in differing(folder, source, "churn_lib/*.py"):
            yield f"{path} is not what its notebook exports; run make prepare"


def main() -> int:
    """Print every problem; 1 when there is one."""
    found = list(problems(ROOT))
    sys.stderr.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
