#!/usr/bin/env bash
# Wait until no run of these jobs is under way: whoever cancels a deployment does not cancel what it has
# started on Databricks. What cannot be asked for is a failure.
# usage: wait_for_runs.sh TARGET JOB...
set -euo pipefail
target=$1
shift
fail() {
  echo "wait_for_runs.sh: $*" >&2
  exit 1
}
summary=$(databricks bundle summary --target "$target" --output json) || fail "the jobs of $target are not known"
for job in "$@"; do
  id=$(printf '%s' "$summary" | python3 -c '
import json, sys
print(json.load(sys.stdin)["resources"]["jobs"][sys.argv[1]]["id"])' "$job" 2>/dev/null) || fail "$job is not deployed to $target"
  while true; do
    runs=$(databricks jobs list-runs --job-id "$id" --active-only --target "$target" --output json) ||
      fail "whether $job runs on $target is not known"
    number=$(printf '%s' "$runs" | python3 -c 'import json, sys; print(len(json.load(sys.stdin) or []))' 2>/dev/null) ||
      fail "no list of runs: ${runs:0:200}"
    if [ "$number" -eq 0 ]; then break; fi
    echo "$job on $target: $number run(s) of an earlier deployment under way, which is waited for"
    sleep "${RUN_JOB_PAUSE:-10}"
  done
done
