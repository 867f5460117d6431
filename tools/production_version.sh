#!/usr/bin/env bash
# Print the version at the alias Production of a target's model; nothing when there is none yet.
# usage: production_version.sh TARGET
set -euo pipefail
cd "$(dirname "$0")/.."
model=$(.venv/bin/churn settings --target "$1" --json |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["model_name"])')
databricks registered-models get "$model" --include-aliases --output json | python3 -c '
import json, sys
for alias in json.load(sys.stdin).get("aliases") or []:
    if alias["alias_name"] == "Production":
        print(alias["version_num"])
'
