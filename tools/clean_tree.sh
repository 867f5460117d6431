#!/usr/bin/env bash
# Refuse to deploy what no commit holds: jobs and versions name a commit, and it has to be what runs. The
# bundle runs this before each deployment (databricks.yml); dev may have what it likes.
# usage: clean_tree.sh TARGET
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$1" = dev ]; then exit 0; fi
fail() {
  echo "$*" >&2
  exit 1
}
changed=$(git status --porcelain 2>/dev/null) ||
  fail "this is no checkout of git: $1 is deployed from a commit"
if [ -n "$changed" ]; then
  mapfile -t lines <<<"$changed"
  printf '  %s\n' "${lines[@]:0:10}" >&2
  fail "$1 is deployed from a commit, and ${#lines[@]} file(s) differ from it: commit them, put them away" \
    "with git stash --include-untracked, or name in .gitignore what a tool writes"
fi
.venv/bin/python -m tools.wheel --check ||
  fail "dist/ has not the wheel of this commit: build it with .venv/bin/python -m tools.wheel"
