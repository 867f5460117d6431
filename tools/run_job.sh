#!/usr/bin/env bash
# Run a job of the bundle on Databricks, wait for it, and put its address into the summary.
# usage: run_job.sh TARGET JOB [name=value,name=value]
set -euo pipefail
target=$1 job=$2 parameters=${3:-}
log=$(mktemp)
summary=${GITHUB_STEP_SUMMARY:-/dev/null}
state=failed
finish() {
  url=$(grep -oE 'https://[^ ]+' "$log" | head -n 1 || true)
  echo "- $job on $target $state: ${url:-no address}" >>"$summary"
}
trap finish EXIT
if [ -n "$parameters" ]; then
  databricks bundle run "$job" --target "$target" --params "$parameters" 2>&1 | tee "$log"
else
  databricks bundle run "$job" --target "$target" 2>&1 | tee "$log"
fi
state=succeeded
