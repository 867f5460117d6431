"""Write requirements.lock and requirements-dev.lock again: names and versions, no hosts.

`requirements.lock` holds what the pipeline needs, `requirements-dev.lock` what the checks need
besides. The runtime pins stand in `[tool.uv]` of pyproject.toml; everything else is the newest
version that pyproject.toml allows.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAD = "# Made by `make lock` from pyproject.toml; do not edit.\n"
UV = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--universal", "--quiet"]
PLAIN = ["--python-version", "3.11", "--no-header", "--no-annotate", "--upgrade"]


def compile_pins(*options: str) -> list[str]:
    """The pinned requirements that uv finds, one a line."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pins.txt"
        command = [*UV, *PLAIN, "--output-file", str(target), *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return target.read_text().splitlines()


def main() -> None:
    """Write both lock files."""
    needed = compile_pins()
    (ROOT / "requirements.lock").write_text(HEAD + "\n".join(needed) + "\n")
    everything = compile_pins("--group", "dev", "--constraints", "requirements.lock")
    besides = [pin for pin in everything if pin not in needed]
    text = HEAD + "-r requirements.lock\n" + "\n".join(besides) + "\n"
    (ROOT / "requirements-dev.lock").write_text(text)
    sys.stdout.write(f"{len(needed)} pins for the pipeline, {len(besides)} more for the checks\n")


if __name__ == "__main__":
    main()
