#!/usr/bin/env bash
# Run the tests that are marked spark, and say so when there are none.
set -euo pipefail
cd "$(dirname "$0")/.."
state=0
.venv/bin/python -m pytest -q -m spark || state=$?
if [ "$state" -eq 5 ]; then # pytest found no test
  echo "no test is marked spark"
  exit 1
fi
exit "$state"
