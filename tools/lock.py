"""Write the lock files again: names, versions and hashes, no hosts.

`requirements.lock` holds what the pipeline needs, `requirements-dev.lock` what the checks need
besides. `requirements-deploy.lock` and `requirements-monitor.lock` hold, in the same versions and with the
hashes of their files, what jobs install that can sign in to Databricks. The runtime pins stand in `[tool.uv]` of pyproject.toml; everything else is the newest
version that pyproject.toml allows.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

HASHED = ("deploy", "monitor")  # groups of pyproject.toml
ROOT = Path(__file__).parent.parent
HEAD = "# Made by `make lock` from pyproject.toml; do not edit.\n"
UV = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--quiet"]
PLAIN = ["--python-version", "3.11", "--no-header", "--no-annotate", "--upgrade"]


def compile_pins(*options: str) -> list[str]:
    """The pinned requirements that uv finds, one a line."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "pins.txt"
        command = [*UV, *PLAIN, "--output-file", str(target), *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return target.read_text().splitlines()


def lock_with_hashes() -> None:
    """Write the lock file of each group in `HASHED`, in the versions of the other lock files."""
    known = ("--constraints", "requirements.lock", "--constraints", "requirements-dev.lock")
    for group in HASHED:
        pins = compile_pins("--group", group, "--generate-hashes", *known)
        (ROOT / f"requirements-{group}.lock").write_text(HEAD + "\n".join(pins) + "\n")


def main() -> None:
    """Write all lock files."""
    needed = compile_pins("pyproject.toml")
    (ROOT / "requirements.lock").write_text(HEAD + "\n".join(needed) + "\n")
    everything = compile_pins(
        "pyproject.toml", "--group", "dev", "--constraints", "requirements.lock"
    )
    besides = [pin for pin in everything if pin not in needed]
    text = HEAD + "-r requirements.lock\n" + "\n".join(besides) + "\n"
    (ROOT / "requirements-dev.lock").write_text(text)
    lock_with_hashes()
    sys.stdout.write(f"{len(needed)} pins for the pipeline, {len(besides)} more for the checks\n")


if __name__ == "__main__":
    main()
