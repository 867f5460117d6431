#!/usr/bin/env bash
# Install the Databricks CLI where no action does it: the installer of one commit, which installs one version.
# The version is the first that databricks.yml accepts.
set -euo pipefail
wanted=$(sed -n 's/^ *databricks_cli_version: ">= \([0-9.]*\),.*/\1/p' "${BASH_SOURCE[0]%/*}/../databricks.yml")
commit=bc7e6aabb6006d8d1758bd25ee1a100935c9cb7c # setup-cli v1.7.0, the pin of .github/workflows
curl --fail --silent --show-error --location \
  "https://raw.githubusercontent.com/databricks/setup-cli/$commit/install.sh" | sudo sh
installed=$(databricks version --output json | jq --raw-output .Version)
if [ "$installed" != "$wanted" ]; then
  echo "installed Databricks CLI $installed, databricks.yml wants $wanted: change the commit in this file with the version" >&2
  exit 1
fi
