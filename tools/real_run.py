"""Run the pipeline on the sample as `make run` does, and keep what the documentation shows of it.

The job notebooks are executed with their tables and plots, and what the terminal shows becomes a drawing.
A run is kept in `.cache/real_run` for as long as code, settings and job definitions are the same.
"""

import argparse
import hashlib
import html
import io
import os
import re
import shutil
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import nbformat
import pexpect
import pyte
from nbformat import NotebookNode
from pyte.screens import Char
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".cache" / "real_run"
DRAWING = "terminal.svg"  # in nbs
REMARK = "*What stands below the cells is from a run on the sample CDNOW, as `make run` does it.*"
CODE = (
    "churn_lib/**/*.py",
    "churn_lib/templates/*",
    "nbs/jobs/*.ipynb",
    "resources/*.yml",
    "requirements.lock",
)
CODE += ("databricks.yml", "settings.ini", "tools/real_run.py")
COMMANDS = (["pipeline"], ["run", "promotion_job"], ["run", "maintenance_job"])
COLUMNS, ROWS = 100, 400
SECONDS = 900  # for a command
# what differs from run to run: seconds, days, numbers of runs, commits, ports, names
VARIES = re.compile(r"\b[0-9a-f]{7,40}\b|\d+(\.\d+)?")

FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>What make run prints</title>
<desc></desc>
<style>
  .{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px;
    line-height: {line_height}px; }}
  .{unique_id}-title {{ font-family: system-ui, sans-serif; font-size: 18px; font-weight: bold; }}
  {styles}
</style>
<defs>
  <clipPath id="{unique_id}-clip-terminal">
    <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
  </clipPath>
  {lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
  {backgrounds}
  <g class="{unique_id}-matrix">
  {matrix}
  </g>
</g>
</svg>
"""


class RealRunError(Exception):
    """What kept a command from its end."""


def digest() -> str:
    """What code, settings and job definitions are, in one word."""
    found = hashlib.sha256(sys.version.encode())
    for pattern in CODE:
        for path in sorted(ROOT.glob(pattern)):
            found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()


def kept() -> Path:
    """The folder of a run of this code, which is made when there is none."""
    key = KEPT / "key"
    if not key.exists() or key.read_text() != digest():
        shutil.rmtree(KEPT, ignore_errors=True)
        KEPT.mkdir(parents=True)
        for name in ("settings.ini", "requirements.lock"):
            shutil.copy(ROOT / name, KEPT)
        try:
            for number, words in enumerate(COMMANDS):
                (KEPT / f"{number}.typescript").write_bytes(run(words).encode())
        finally:
            run(["endpoint", "stop"])
        key.write_text(digest())
    return KEPT


def run(words: list[str]) -> str:
    """Type a `churn` command into a terminal of its own; what it sends to the screen."""
    strange = ("CHURN_", "MLFLOW_", "DATABRICKS_")
    known = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    known |= {"CHURN_SETTINGS": str(KEPT / "settings.ini"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    child = pexpect.spawn(
        os.path.relpath(Path(sys.executable).parent / "churn", ROOT),
        words,
        timeout=SECONDS,
        cwd=str(ROOT),
        env={**known, "TERM": "xterm-256color"},
        encoding="utf-8",
        dimensions=(ROWS, COLUMNS),
    )
    child.expect(pexpect.EOF)
    child.close()
    if child.exitstatus:
        text = screen(child.before).plain
        raise RealRunError(f"churn {' '.join(words)} ended with {child.exitstatus}:\n{text}")
    return as_in_the_project(child.before)


def as_in_the_project(text: str) -> str:
    """Paths as whoever types `make run` sees them."""
    for folder in (str(KEPT), os.path.relpath(KEPT, ROOT), str(ROOT)):
        text = text.replace(f"{folder}/", "").replace(folder, ".")
    return text


# The screen


def screen(typescript: str) -> Text:
    """What stands on the screen in the end, with its colours."""
    shown = pyte.Screen(COLUMNS, ROWS)
    pyte.Stream(shown).feed(typescript)
    lines = [line_of(shown.buffer[number]) for number in range(ROWS)]
    while lines and not lines[-1].plain:
        lines.pop()
    return Text("\n").join(lines)


def line_of(row: Mapping[int, Char]) -> Text:
    """A row of the screen without the blanks at its end."""
    text = Text()
    cells = [row[column] for column in range(COLUMNS)]
    for (foreground, bold), run in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
        color = {"default": None, "brown": "yellow"}.get(foreground, foreground)
        text.append("".join(cell.data for cell in run), Style(color=color, bold=bold))
    text.rstrip()
    return text


def drawing(typescript: str) -> str:
    """An SVG of the screen, with its text as the description."""
    text = Text("$ make run\n").append_text(screen(typescript))
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(text, soft_wrap=True)
    svg = console.export_svg(title="make run", code_format=FORMAT, unique_id="run")
    return svg.replace("<desc></desc>", f"<desc>{html.escape(text.plain)}</desc>")


def words_of(svg: str) -> str:
    """What a drawing says, without what differs from run to run."""
    found = re.search("<desc>(.*?)</desc>", svg, re.S)
    return re.sub(r"\s", "", VARIES.sub("#", html.unescape(found[1]))) if found else ""


def drawn() -> str:
    """The drawing of this code's run."""
    return drawing((kept() / "0.typescript").read_bytes().decode())


def draw() -> None:
    """Write the drawing of this code's run."""
    (ROOT / "nbs" / DRAWING).write_text(drawn())


def problem() -> str:
    """Why the drawing in nbs is not of this code; empty when it is."""
    if words_of((ROOT / "nbs" / DRAWING).read_text()) == words_of(drawn()):
        return ""
    return f"nbs/{DRAWING}: `make run` prints something else now: python -m tools.real_run draw"


# The notebooks


def outputs(notebook: Path) -> dict[str, list[NotebookNode]]:
    """Outputs of each cell of a job notebook, by its id, in the first run that has executed it."""
    wanted = {cell.id for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"}
    runs = sorted(
        (kept() / ".churn" / "runs").glob("*/*/*.ipynb"), key=lambda path: path.parent.name
    )
    for path in runs:
        cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        if wanted <= {cell.id for cell in cells}:
            return {cell.id: [*map(tidy, cell.outputs)] for cell in cells}
    raise RealRunError(f"{notebook.name}: no command of tools/real_run.py runs it")


def tidy(output: NotebookNode) -> NotebookNode:
    """An output with the paths of a project in which `make run` was typed."""
    if "text" in output:
        output.text = as_in_the_project(output.text)
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/"):
            output.data[kind] = as_in_the_project(content)
        if kind == "text/markdown":  # its headings are none of the page
            output.data[kind] = re.sub(r"(?m)^#+ (.*)$", r"**\1**", output.data[kind])
    return output


def copy(folder: Path) -> None:
    """Settings and store of the run in a folder of its own, in place of what is there."""
    made = kept()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns("key", "*.typescript"))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; answer the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.real_run", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("draw", help=f"write nbs/{DRAWING}")
    command.set_defaults(run=lambda given: draw())
    command = commands.add_parser("copy", help="copy settings and store of the run")
    command.add_argument("folder", type=Path)
    command.set_defaults(run=lambda given: copy(given.folder))
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except RealRunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
