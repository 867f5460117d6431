#!/usr/bin/env bash
# The administrator's part of nbs/how-to/deploy_to_azure.ipynb for one target; can be run again at any time.
# usage: bootstrap.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python -m tools.bootstrap "$@"
