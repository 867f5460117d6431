#!/usr/bin/env bash
# What `databricks bundle deploy --plan` leaves out (CLI 1.7.0): it uploads no wheel, and a plan that was made before
# the first deployment names no state that it could be compared with.
# usage: prepare_plan.sh TARGET PLAN
set -euo pipefail
target=$1 plan=$2

known=$(jq --raw-output '.lineage // ""' "$plan") # each by itself: a failure ends the step
if [ -z "$known" ]; then
  now=$(databricks bundle plan --target "$target" --output json)
  since=$(jq --raw-output '.lineage // ""' <<<"$now")
  if [ -n "$since" ]; then
    echo "$target was deployed for the first time since $plan was made: start this run again" >&2
    exit 1
  fi
fi

wheels=$(jq --raw-output '[.. | strings | select(test("/artifacts/\\.internal/[^/]+\\.whl$"))] | unique[]' "$plan")
if [ -z "$wheels" ]; then
  echo "$plan names no wheel below artifacts/.internal: was it made for another bundle?" >&2
  exit 1
fi
while read -r path; do
  if [ ! -f "dist/${path##*/}" ]; then
    echo "$plan wants ${path##*/}, which is not in dist: make the wheel and the plan of one commit" >&2
    exit 1
  fi
  databricks workspace import-dir dist "${path%/*}" --overwrite
done <<<"$wheels"
