#!/usr/bin/env bash
# Run a job of the bundle on Databricks, wait for it, and put its address into the summary. What the run's
# state is afterwards decides: `databricks bundle run` exits with 0 for states that are no success, and
# with 1 when it could not ask for the state of a run that goes on.
# usage: run_job.sh TARGET JOB [name=value ...]
set -euo pipefail
target=$1 job=$2
shift 2
parameters=()
for pair in "$@"; do # not --params, which splits a value at its commas
  case $pair in
    *=*) parameters+=("--$pair") ;;
    *) echo "$pair is no parameter: write name=value" >&2; exit 2 ;;
  esac
done
log=$(mktemp)
state="not started" url=""
finish() {
  line="- $job on $target: $state${url:+, [run]($url)}"
  if [ -n "${GITHUB_STEP_SUMMARY:-}" ]; then
    echo "$line" >>"$GITHUB_STEP_SUMMARY"
  elif [ -n "${TF_BUILD:-}" ]; then # Azure DevOps takes a file, and shows it under its name
    page=$(mktemp --directory "${AGENT_TEMPDIRECTORY:-/tmp}/summary.XXXXXX")/$job.md
    echo "$line" >"$page"
    echo "##vso[task.uploadsummary]$page"
  fi
  rm -f "$log"
}
trap finish EXIT

code=0
databricks bundle run "$job" --target "$target" -- "${parameters[@]}" 2>&1 | tee "$log" || code=$?
url=$(sed -n 's/^Run URL: *//p' "$log" | tail -n 1)
run=$(printf '%s\n' "$url" | sed -nE 's!.*/runs?/([0-9]+).*!\1!p')
if [ -z "$run" ]; then
  echo "$job on $target has not started (databricks exited with $code)" >&2
  exit 1
fi

# life cycle, result and message of the run, one a line; fails when they cannot be asked for
ask() {
  answer=$(databricks jobs get-run "$run" --target "$target" --output json) || return
  printf '%s' "$answer" | python3 -c '
import json, sys
state = json.load(sys.stdin)["state"]
for key in ("life_cycle_state", "result_state", "state_message"):
    print(" ".join(str(state.get(key, "")).split()))
' 2>/dev/null
}

failures=0
while true; do
  if answers=$(ask); then
    failures=0
    { read -r cycle; read -r result || true; read -r message || true; } <<<"$answers"
    case $cycle in
      TERMINATED | SKIPPED | INTERNAL_ERROR) break ;;
    esac
    echo "$job on $target goes on: $cycle"
  else
    failures=$((failures + 1))
    if [ "$failures" -ge 5 ]; then
      state="state not known"
      echo "the state of $job on $target cannot be asked for: see $url" >&2
      exit 1
    fi
  fi
  sleep "${RUN_JOB_PAUSE:-10}"
done
state="$cycle${result:+ $result}"
if [ "$state" != "TERMINATED SUCCESS" ]; then
  echo "$job on $target ended as $state, which is no success: ${message:-no message}; see $url" >&2
  exit 1
fi
