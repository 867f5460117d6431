"""Set up what git does with notebooks here: checks before a commit, merges cell by cell, readable diffs.

`make prepare` runs it. nbdev writes its drivers as if its commands were on PATH; in a project with its own
.venv they are not, and a merge driver that is not found turns every merge of a notebook into a conflict.
So the drivers are named with their path.
"""

import os
import subprocess
import sys
from pathlib import Path

from churn_lib.job_context import git, git_environment

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(os.path.abspath(sys.executable)).parent
ATTRIBUTES = ("*.ipynb merge=jupyternotebook", "*.ipynb diff=jupyternotebook")


def set_drivers(root: Path, folder: Path = BIN) -> None:
    """Name nbdev's merge and diff drivers with their path."""
    near = folder.relative_to(root) if folder.is_relative_to(root) else folder
    git(root, "config", "merge.jupyternotebook.name", "notebooks, cell by cell")
    git(root, "config", "merge.jupyternotebook.driver", f'"{near}/nbdev-merge" %O %A %B %P')
    git(root, "config", "diff.jupyternotebook.command", f'"{near}/nbdev-diff-driver"')


def main(root: Path = ROOT) -> None:
    """Install both kinds of hooks into the clone at `root`."""
    if not (root / ".git").is_dir():
        return  # an archive, or a second worktree, whose clone has them
    for command in (["nbdev-install-hooks"], ["pre-commit", "install", "--allow-missing-config"]):
        tool = [str(BIN / command[0]), *command[1:]]
        environment = git_environment()
        run = subprocess.run(tool, cwd=root, env=environment, capture_output=True, text=True)
        if run.returncode:
            print(f"{command[0]}: {(run.stderr or run.stdout).strip()}", file=sys.stderr)
    post_merge = root / ".git" / "hooks" / "post-merge"
    if post_merge.is_file():
        post_merge.write_text(f'#!/bin/sh\nexec "{BIN}/nbdev-trust"\n')
    set_drivers(root)


if __name__ == "__main__":
    main()
