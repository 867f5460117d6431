"""Words that the project does not use, and what to write instead.

`python -m tools.words` prints one line for each that it finds in notebooks, tests, tools, workflows and
settings. It is no spelling check: a word belongs here when it has confused a reader. To add one, put it
into `PHRASES` (found everywhere) or `NAMES` (found as a name in Python code only).
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUFFIXES = {".ipynb", ".py", ".yml", ".md", ".ini", ".sh", ".toml"}
NOT_READ = ("churn_lib/", "tools/words.py", "tests/tools/test_words.py")  # generated; these two
# in any case and at any line break
PHRASES = {
    "a line each": "one per line",
    "anew": "again, or regenerate",
    "cure": "fix",
    "day to stand on": "reference date",
    "last words": "last log lines",
    "ledger": "promotion log",
    "MoveLost": "ConcurrentPromotionError",
    "nothing would be lost": "plan guard",
    "polite kill": "SIGTERM",
    "stands twice": "duplicate",
    "text twin": "paired script",
    "the version before comes back": "roll back",
    "written by nobody": "generated",
}
NAMES = {
    "PATIENCE": "TIMEOUT",
    "said": "message, detail or reason",
    "told": "message, detail or reason",
    "asker": "client",
}


def pattern_of(phrase: str) -> re.Pattern[str]:
    """A phrase as whole words, whatever white space is between them."""
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    return re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE)


PATTERNS = {pattern_of(phrase): instead for phrase, instead in PHRASES.items()}


def names_in(code: str) -> Iterator[tuple[int, str]]:
    """Line and name of each name that Python code uses; none when it cannot be parsed."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a cell with magics
        return
    for node in ast.walk(tree):
        for field in ("id", "arg", "attr", "name"):
            if isinstance(name := getattr(node, field, None), str):
                yield getattr(node, "lineno", 1), name


def found_in(text: str, is_code: bool) -> Iterator[tuple[int, str, str]]:
    """Line, word and what to write instead, of each word to be replaced."""
    for pattern, instead in PATTERNS.items():
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            yield line, " ".join(match.group().split()), instead
    if is_code:
        for line, name in names_in(text):
            if name in NAMES:
                yield line, name, NAMES[name]


def parts_of(path: Path) -> Iterator[tuple[str, str, bool]]:
    """Each part of a file: how its place begins, its text, and whether it is Python."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        yield "line ", text, path.suffix == ".py"
        return
    for number, cell in enumerate(json.loads(text)["cells"], 1):
        yield f"cell {number}, line ", "".join(cell["source"]), cell["cell_type"] == "code"


def files(root: Path) -> list[Path]:
    """The files of the project that people read."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    names = [name for name in listed.stdout.splitlines() if not name.startswith(NOT_READ)]
    paths = [root / name for name in names if Path(name).suffix in SUFFIXES or name == "Makefile"]
    return [path for path in paths if path.is_file()]


def problems(root: Path = ROOT) -> Iterator[str]:
    """One line for each word: file, place, word, what to write instead."""
    for path in files(root):
        for place, text, is_code in parts_of(path):
            for line, word, instead in sorted(found_in(text, is_code)):
                yield f"{path.relative_to(root)}: {place}{line}: {word!r}: write {instead}"


def main() -> None:
    """Print the words that are to be replaced; exit 1 when there are any."""
    found = list(problems())
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
