#!/usr/bin/env bash
# Refuse to deploy before every variable of the environment is set: an empty one would be taken as it is.
set -euo pipefail
missing=0
for name in DATABRICKS_HOST DATABRICKS_CLIENT_ID DATABRICKS_TOKEN_AUDIENCE \
  BUNDLE_VAR_notification_address BUNDLE_VAR_service_principal BUNDLE_VAR_deployer BUNDLE_VAR_readers \
  BUNDLE_VAR_warehouse_id BUNDLE_VAR_key_vault_dns_name BUNDLE_VAR_key_vault_resource_id; do
  if [ -z "${!name:-}" ]; then
    echo "$name is empty: set the variable of this environment that the workflow takes it from" >&2
    missing=1
  fi
done
exit "$missing"
