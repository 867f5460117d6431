# Sourced by the steps of azure-pipelines.yml: Azure DevOps passes the variables of a group as capitals,
# the Databricks CLI wants the names of the bundle's variables as they are.
export DATABRICKS_AUTH_TYPE=azure-devops-oidc
export DATABRICKS_TOKEN_AUDIENCE=api://AzureADTokenExchange # of every token of Azure DevOps; the policies hold it
export BUNDLE_VAR_notification_address=${NOTIFICATION_ADDRESS:-}
export BUNDLE_VAR_service_principal=${SERVICE_PRINCIPAL:-}
export BUNDLE_VAR_deployer=${DATABRICKS_CLIENT_ID:-}
export BUNDLE_VAR_readers=${READERS:-}
export BUNDLE_VAR_warehouse_id=${WAREHOUSE_ID:-}
export BUNDLE_VAR_key_vault_dns_name=${KEY_VAULT_DNS_NAME:-}
export BUNDLE_VAR_key_vault_resource_id=${KEY_VAULT_RESOURCE_ID:-}
