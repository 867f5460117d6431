"""What a reader of a tutorial does: type its commands, paste its cells, look at what comes."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from churn_lib import settings
from churn_lib.serving.local import process
from churn_lib.settings import Settings
from tests.conftest import ROOT, STRIPPED

FENCE = re.compile(r"```(sh|python|ini|text)\n(.*?)```", re.DOTALL)
LEFT_OUT = "..."
# what differs from run to run: runs, commits, days, times, seconds, ports
CHANGING = re.compile(
    r"\b\d{8}-\d{6}-\d{6}-[0-9a-f]{6}\b|\b[0-9a-f]{7,40}\b|\b\d{4}-\d{2}-\d{2}\b|\b\d+\.\d s\b|│ +\d+\.\d +│|127\.0\.0\.1:\d+"
    r"|\b\d{2}:\d{2}(:\d{2}| UTC)?\b"
)
NEAR = 0.0003  # of a metric, on another processor


@dataclass(frozen=True)
class Step:
    """Something to do, and what the page says that it shows."""

    kind: str  # sh: a command; python: a cell to add to a notebook; cell: a cell to run; ini: settings
    source: str
    shown: str = ""


def steps(notebook: Path) -> list[Step]:
    """All that a page asks for, in its order."""
    found: list[Step] = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            code = "".join(
                line for line in cell.source.splitlines(True) if not line.startswith("#|")
            )
            texts = [each.get("data", {}).get("text/plain", "") for each in cell.outputs]
            found.append(Step("cell", code, "\n".join(texts)))
            continue
        for kind, text in FENCE.findall(cell.source):
            if kind == "text":
                last = found.pop()
                found.append(Step(last.kind, last.source, text))
            elif kind in ("python", "ini"):
                found.append(Step(kind, text.strip("\n")))
            else:
                found += [Step(kind, line) for line in text.splitlines() if line.strip()]
    return found


class Checkout:
    """A fresh clone of this working tree with a store of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        names = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
        listed = subprocess.run(names, cwd=ROOT, check=True, capture_output=True, text=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)  # `make` looks at the times
        (folder / ".venv").symlink_to(sys.prefix)
        self.environment = self._environment()
        self.run("git init --quiet --initial-branch main && git add --all")
        self.run("git commit --quiet --no-verify --message start")

    def _environment(self) -> dict[str, str]:
        strange = (*STRIPPED, "GIT_", "MAKE", "MFLAGS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        identity = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "t"), ("EMAIL", "t@example.org"))
        }
        own = {
            "PYTHONPATH": str(self.folder),  # the environment is that of another checkout
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_PAGER": "cat",
            "PRE_COMMIT_HOME": str(self.folder / ".cache" / "pre-commit"),
            "COLUMNS": "80",
            "LOGNAME": "ann",  # who did it, on the pages
        }
        return kept | identity | own

    def settings(self) -> Settings:
        """Those of its store."""
        return settings.load("local", self.folder / "settings.ini")

    def run(self, command: str) -> str:
        """Both streams of a command that has to succeed."""
        answer = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1_500,
        )
        assert answer.returncode == 0, f"{command}\n{answer.stdout}"
        return answer.stdout

    def execute(self, notebook: Path, sources: list[str]) -> str:
        """Add cells to a notebook, run it and save it, as Jupyter does; the last cell's text."""
        made = nbformat.v4.new_notebook()
        if notebook.exists():
            made = nbformat.read(notebook, as_version=4)
        made.cells += map(nbformat.v4.new_code_cell, sources)
        resources = {"metadata": {"path": str(notebook.parent)}}
        client = NotebookClient(made, kernel_name="python3", resources=resources, timeout=600)
        client.execute(env=self.environment)
        nbformat.write(made, notebook)
        return "\n".join(
            each.get("data", {}).get("text/plain", "") for each in made.cells[-1].outputs
        )

    def set(self, lines: str) -> None:
        """Put values into settings.ini in the place of those that are there."""
        path = self.folder / "settings.ini"
        text = path.read_text()
        for line in lines.splitlines():
            key = line.partition(" =")[0]
            text, count = re.subn(
                rf"(?m)^{re.escape(key)} =.*$", lambda _, to=line: to, text, count=1
            )
            assert count, f"settings.ini has no {key}"
        path.write_text(text)

    def add_cells(self, notebook: Path, heading: str, sources: list[str]) -> None:
        """Add code cells above a heading."""
        opened = nbformat.read(notebook, as_version=4)
        at = next(n for n, cell in enumerate(opened.cells) if cell.source.startswith(heading))
        opened.cells[at:at] = list(map(nbformat.v4.new_code_cell, sources))
        nbformat.write(opened, notebook)


def _same(shown: str, came: str) -> bool:
    one, two = (CHANGING.sub("#", text).split() for text in (shown, came))
    return len(one) == len(two) and all(map(_near, one, two))


def _near(shown: str, came: str) -> bool:
    if shown == came or "." not in shown:
        return shown == came
    try:
        return abs(float(shown.strip("().,")) - float(came.strip("().,"))) <= NEAR
    except ValueError:
        return False


def missing(shown: str, came: str) -> list[str]:
    """Lines of a page that the output does not have, in their order."""
    rest, found = [line for line in came.splitlines() if line.strip()], []
    for line in shown.splitlines():
        if not line.strip() or line.strip() == LEFT_OUT:
            continue
        at = next((n for n, other in enumerate(rest) if _same(line, other)), None)
        if at is None:
            found.append(line)
        else:
            del rest[: at + 1]
    return found


def _groups(found: list[Step]) -> list[list[Step]]:
    """Steps in their order; cells that follow each other are run together."""
    made: list[list[Step]] = []
    for step in found:
        if made and step.kind == made[-1][0].kind != "sh":
            made[-1].append(step)
        else:
            made.append([step])
    return made


def follow(
    page: Path,
    place: Checkout,
    additions: tuple[str, str] = ("", ""),  # notebook that gets the page's Python, above a heading
) -> str:
    """Do all that a page asks for; what came other than it shows, empty when nothing did."""
    differences = []
    try:
        for group in _groups(steps(page)):
            kind, shown, sources = group[0].kind, group[-1].shown, [step.source for step in group]
            came = ""
            if kind == "cell":
                came = place.execute(place.folder / "nbs" / "Untitled.ipynb", sources)
            elif kind == "python":
                place.add_cells(place.folder / additions[0], additions[1], sources)
            elif kind == "ini":
                place.set("\n".join(sources))
            else:
                came = place.run(sources[0])
            if wrong := missing(shown, came):
                differences.append("\n".join([f"$ {sources[-1]}", *wrong, "it showed:", came]))
    finally:
        process.stop(place.settings())
    return "\n\n".join(differences)
