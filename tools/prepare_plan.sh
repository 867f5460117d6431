#!/usr/bin/env bash
# What `databricks bundle deploy --plan` leaves out (CLI 1.7.0): it uploads no wheel, and a plan that was made before
# the first deployment names no state that it could be compared with.
# usage: prepare_plan.sh TARGET PLAN
set -euo pipefail
target=$1 plan=$2
fail() {
  echo "prepare_plan.sh: $*" >&2
  exit 1
}

# of a plan on standard input: its state's lineage, empty before the first deployment
lineage() {
  python3 -c 'import json, sys; print(json.load(sys.stdin).get("lineage") or "")' 2>/dev/null
}

known=$(lineage <"$plan") || fail "$plan is not readable as JSON: make it with databricks bundle plan --output json"
if [ -z "$known" ]; then
  now=$(databricks bundle plan --target "$target" --output json) || fail "what is deployed to $target is not known"
  since=$(lineage <<<"$now") || fail "no plan: ${now:0:200}"
  [ -z "$since" ] || fail "$target was deployed for the first time since $plan was made: start this run again"
fi

wheels=$(python3 -c '
import re, sys
found = re.findall("\"([^\"]*/artifacts/\\.internal/[^/\"]+\\.whl)\"", sys.stdin.read())
print("\n".join(sorted(set(found))))' <"$plan")
[ -n "$wheels" ] || fail "$plan names no wheel below artifacts/.internal: was it made for another bundle?"
while read -r path; do
  [ -f "dist/${path##*/}" ] ||
    fail "$plan wants ${path##*/}, which is not in dist: make the wheel and the plan of one commit"
  databricks workspace import-dir dist "${path%/*}" --overwrite
done <<<"$wheels"
