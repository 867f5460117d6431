#!/usr/bin/env bash
# Print the version at the alias Production of a target's model; nothing when there is none yet.
# usage: production_version.sh TARGET
set -euo pipefail
cd "$(dirname "$0")/.."
fail() {
  echo "production_version.sh: $*" >&2
  exit 1
}

# each answer by itself: what failed has said why, and no reader of JSON stumbles over nothing
settings=$(.venv/bin/churn settings --target "$1" --json) || fail "the settings of $1 cannot be read"
model=$(python3 -c 'import json, sys; print(json.loads(sys.argv[1])["model_name"])' "$settings" 2>/dev/null) ||
  fail "the settings of $1 name no model"
# thrice: a rollback must not stay undone because one question failed
for pause in 5 15 0; do
  answer=$(databricks registered-models get "$model" --include-aliases --output json) && break
  [ "$pause" -gt 0 ] || fail "what is at Production of $model is not known"
  sleep "${PRODUCTION_VERSION_PAUSE:-$pause}"
done
python3 -c '
import json, sys
for alias in json.loads(sys.argv[1]).get("aliases") or []:
    if alias["alias_name"] == "Production":
        print(alias["version_num"])
' "$answer" 2>/dev/null || fail "no answer of Unity Catalog: ${answer:0:200}"
