#!/usr/bin/env bash
# Print the version at the alias Production of a target's model; nothing when there is none yet.
# usage: production_version.sh TARGET
set -euo pipefail
cd "$(dirname "$0")/.."
model=$(.venv/bin/churn settings --target "$1" --json | jq --exit-status --raw-output .model_name)
databricks registered-models get "$model" --include-aliases --output json |
  jq --raw-output '.aliases[]? | select(.alias_name == "Production") | .version_num'
