#!/usr/bin/env bash
# Print how a version comes into a target: copy or retrain, the setting `promotion`.
# usage: promotion.sh TARGET
set -euo pipefail
cd "$(dirname "$0")/.."
fail() {
  echo "promotion.sh: $*" >&2
  exit 1
}

settings=$(.venv/bin/churn settings --target "$1" --json) || fail "the settings of $1 cannot be read"
promotion=$(python3 -c 'import json, sys; print(json.loads(sys.argv[1])["promotion"])' "$settings" 2>/dev/null) ||
  fail "the settings of $1 have no promotion"
case "$promotion" in
copy | retrain) echo "$promotion" ;;
*) fail "promotion = $promotion: use copy or retrain" ;; # no step of the deployment would run
esac
