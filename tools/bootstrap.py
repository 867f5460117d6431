"""Make what a target needs before CI can deploy it: principals, policies, folder, scope, catalog, grants.

`tools/bootstrap.sh --target staging ...` is the administrator's part of the guide "Deploy to Azure". Each
step looks first and makes only what is missing: the script can be run again after a failure, and is run
again after the first deployment, for the grants on what that has made and for what Unity Catalog keeps of it
(primary key, anomaly detection, deployment job). `--dry-run` looks and makes nothing.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from databricks.sdk import AccountClient, WorkspaceClient
from databricks.sdk.errors import DatabricksError, NotFound
from databricks.sdk.service import dataquality, iam, oauth2, sql, workspace

from churn_lib import bundle, settings

ROOT = Path(__file__).parent.parent
ACCOUNTS = "https://accounts.azuredatabricks.net"
READERS = "churn-readers"
WAREHOUSE = "churn-alerts"
USER = "roles/servicePrincipal.user"
PATCH = [iam.PatchSchema.URN_IETF_PARAMS_SCIM_API_MESSAGES_2_0_PATCH_OP]
ISSUERS = {"github": "https://token.actions.githubusercontent.com"}
RUNNER = (
    "USE_CATALOG", "USE_SCHEMA", "SELECT", "MODIFY", "CREATE_TABLE", "READ_VOLUME", "WRITE_VOLUME",
    "EXECUTE", "CREATE_MODEL_VERSION", "APPLY_TAG",
)  # fmt: skip


class Refused(Exception):
    """What the administrator has to put right, in one line."""


@dataclass(frozen=True)
class Principal:
    """A service principal or a group of the account."""

    name: str
    number: int  # 0 before it is made
    application_id: str = ""

    @property
    def grantee(self) -> str:
        """What grants and permissions call it."""
        return self.application_id or self.name


@dataclass
class Bootstrap:
    """The steps; each says what it has made, would make, or has found."""

    options: argparse.Namespace
    account: AccountClient
    client: WorkspaceClient
    later: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def step(self, missing: bool, what: str, make: Callable[[], Any] | None = None) -> Any:
        """Make what is missing, unless this is a dry run; what was made."""
        if not missing:
            print(f"  there       {what}", flush=True)
            return None
        if self.options.dry_run:
            print(f"  would make  {what}", flush=True)
            return None
        made = make() if make else None
        print(f"  made        {what}", flush=True)
        return made

    # --- the account ---------------------------------------------------------------------------------

    def principal(self, name: str) -> Principal:
        """The service principal of that name, made if there is none."""
        api = self.account.service_principals_v2
        found = list(api.list(filter=f'displayName eq "{name}"'))
        if len(found) > 1:
            numbers = ", ".join(str(each.id) for each in found)
            raise Refused(
                f"{len(found)} service principals are called {name} ({numbers}): keep one"
            )
        make = lambda: api.create(display_name=name, active=True)  # noqa: E731
        made = self.step(not found, f"service principal {name}", make)
        known = found[0] if found else made
        if known is None:
            return Principal(name, 0, f"<application id of {name}>")
        return Principal(name, int(known.id or 0), str(known.application_id))

    def group(self) -> Principal:
        """The group of readers; its members are yours."""
        api = self.account.groups_v2
        found = next(iter(api.list(filter=f'displayName eq "{READERS}"')), None)
        make = lambda: api.create(display_name=READERS)  # noqa: E731
        group = found or self.step(True, f"group {READERS}", make)
        if found:
            self.step(False, f"group {READERS}")
        return Principal(READERS, int(group.id or 0) if group else 0)

    def may_run_as(self, deployer: Principal, runner: Principal) -> None:
        """Let the deployer have jobs run as the runner."""
        account = self.options.account_id
        name = f"accounts/{account}/servicePrincipals/{runner.application_id}/ruleSets/default"
        grantee = f"servicePrincipals/{deployer.application_id}"
        rules, etag = [], ""
        if runner.number:
            found = self.account.access_control.get_rule_set(name, "")
            rules, etag = found.grant_rules or [], found.etag
        there = any(rule.role == USER and grantee in (rule.principals or []) for rule in rules)
        # what is written replaces the set: the roles of others stay in it
        update = iam.RuleSetUpdateRequest(
            name=name, etag=etag, grant_rules=[*rules, iam.GrantRule(USER, [grantee])]
        )
        self.step(
            not there,
            f"{deployer.name} may let jobs run as {runner.name}",
            lambda: self.account.access_control.update_rule_set(name, update),
        )

    def sign_in(self, principal: Principal, subject: str) -> None:
        """The federation policy that lets a job of CI in as this principal."""
        api, number = self.account.service_principal_federation_policy, principal.number
        wanted = oauth2.OidcFederationPolicy(
            issuer=self.options.issuer, audiences=[self.options.audience], subject=subject
        )
        policies = list(api.list(number)) if number else []
        mine = [each for each in policies if each.oidc_policy and _same(each.oidc_policy, wanted)]
        for other in policies:
            if other not in mine and other.oidc_policy:
                self.problems.append(
                    f"{principal.name} also lets {other.oidc_policy.subject} in (policy "
                    f"{other.policy_id}): delete that policy unless it is meant"
                )
        outdated = [each for each in mine if each.oidc_policy.audiences != wanted.audiences]  # type: ignore[union-attr]
        policy = oauth2.FederationPolicy(oidc_policy=wanted)
        make = lambda: api.create(number, policy)  # noqa: E731
        if outdated:
            make = lambda: api.update(number, str(outdated[0].policy_id), policy)  # noqa: E731
        what = f"{principal.name} signs in as {subject} for {self.options.audience}"
        self.step(not mine or bool(outdated), what, make)

    def assign(self, number: int, principals: Iterable[Principal]) -> None:
        """Let principals into the workspace; who is in it already keeps what he may."""
        assigned = self.account.workspace_assignment.list(number)
        inside = {each.principal.principal_id for each in assigned if each.principal}
        for principal in principals:
            self.step(
                principal.number not in inside,
                f"{principal.name} in the workspace",
                lambda principal=principal: self.account.workspace_assignment.update(
                    number, principal.number, permissions=[iam.WorkspacePermission.USER]
                ),
            )

    # --- the workspace -------------------------------------------------------------------------------

    def may_make_clusters(self, runner: Principal) -> None:
        """The entitlement that job clusters need."""
        api, wanted = self.client.service_principals_v2, "allow-cluster-create"
        known = list(api.list(filter=f'applicationId eq "{runner.application_id}"'))
        entitled = {each.value for found in known for each in found.entitlements or []}
        new = [iam.Patch(iam.PatchOp.ADD, "entitlements", [{"value": wanted}])]

        def make() -> None:
            if not known:
                raise Refused(f"{runner.name} is not in the workspace yet: run this again")
            api.patch(str(known[0].id), operations=new, schemas=PATCH)

        self.step(wanted not in entitled, f"{runner.name} may start clusters", make)

    def folder(self, path: str) -> None:
        """The folder and those above it; who makes them keeps no right that the bundle does not know."""
        parts = path.strip("/").split("/")
        for depth in range(2, len(parts) + 1):
            part = "/" + "/".join(parts[:depth])
            found = self._status(part)
            self.step(not found, f"folder {part}", lambda part=part: self._make_folder(part))

    def _status(self, path: str) -> workspace.ObjectInfo | None:
        try:
            return self.client.workspace.get_status(path)
        except NotFound:
            return None

    def _make_folder(self, path: str) -> None:
        self.client.workspace.mkdirs(path)
        self._set(path, [])

    def _set(self, path: str, entries: list[workspace.WorkspaceObjectAccessControlRequest]) -> None:
        number = str(self.client.workspace.get_status(path).object_id)
        self.client.workspace.set_permissions("directories", number, access_control_list=entries)

    def permissions(self, path: str, wanted: dict[str, str]) -> None:
        """Who may what in the folder: set and not added, as `databricks bundle validate --strict` asks."""
        found, expected = self._status(path), set(wanted.items())
        direct, inherited = self._rights(found) if found else (set(), set())
        entries = [_entry(name, level) for name, level in wanted.items()]
        shown = ", ".join(f"{name} {level}" for name, level in wanted.items())
        self.step(direct != expected, f"{path}: {shown}", lambda: self._set(path, entries))
        me = self.client.current_user.me().user_name
        for parent in {where for _, _, where in inherited}:
            self._take_mine_away(str(me), parent)
        for name, level, where in sorted(inherited):
            if (name, level) not in expected and name != me:
                self.problems.append(
                    f"{name} has {level} in {where}, which {path} inherits: `databricks bundle validate "
                    "--strict` refuses it; take it away there"
                )

    def _rights(self, found: workspace.ObjectInfo) -> tuple[set[Any], set[Any]]:
        # what everybody but the admins may: here itself, and from where else
        direct, inherited = set(), set()
        answer = self.client.workspace.get_permissions("directories", str(found.object_id))
        for entry in answer.access_control_list or []:
            name = entry.group_name or entry.user_name or entry.service_principal_name
            for right in entry.all_permissions or [] if name != "admins" else []:
                level = right.permission_level.value if right.permission_level else ""
                if right.inherited:
                    where = (right.inherited_from_object or ["a folder above"])[0]
                    inherited.add((name, level, where))
                else:
                    direct.add((name, level))
        return direct, inherited

    def _take_mine_away(self, me: str, parent: str) -> None:
        # left by an administrator who made the folder; he is one of the admins all the same
        number = parent.rpartition("/")[2]
        if not number.isdigit():
            return
        object_ = workspace.ObjectInfo(object_id=int(number))
        direct, _ = self._rights(object_)
        left = [_entry(name, level) for name, level in sorted(direct) if name != me]
        self.step(
            any(name == me for name, _ in direct),
            f"no right of your own in {parent}",
            lambda: self.client.workspace.set_permissions(
                "directories", number, access_control_list=left
            ),
        )

    def scope(self, name: str, deployer: Principal) -> None:
        """The secret scope on the Key Vault, and the deployer who keeps its permissions."""
        vault = workspace.AzureKeyVaultSecretScopeMetadata(
            resource_id=self.options.key_vault_resource_id,
            dns_name=self.options.key_vault_dns_name,
        )
        scopes = {each.name: each for each in self.client.secrets.list_scopes()}
        found = scopes.get(name)
        if found and (not found.keyvault_metadata or found.keyvault_metadata != vault):
            raise Refused(
                f"the scope {name} is not on {vault.resource_id}: delete it, or name its Key Vault"
            )
        self.step(
            not found,
            f"secret scope {name} on {vault.dns_name}",
            lambda: self.client.secrets.create_scope(
                name,
                scope_backend_type=workspace.ScopeBackendType.AZURE_KEYVAULT,
                backend_azure_keyvault=vault,
            ),
        )
        rights = list(self.client.secrets.list_acls(name)) if found else []
        there = any(
            each.principal == deployer.application_id
            and each.permission == workspace.AclPermission.MANAGE
            for each in rights
        )
        self.step(
            not there,
            f"{deployer.name} manages {name}",
            lambda: self.client.secrets.put_acl(
                name, deployer.application_id, workspace.AclPermission.MANAGE
            ),
        )

    def bind(self, name: str, variables: dict[str, str]) -> None:
        """Hand the scope to the bundle, as CI cannot make one on a Key Vault."""
        what, target = f"{name} bound to the bundle", self.options.target
        if self.options.dry_run:
            self.step(True, f"{what}, unless it is")
            return
        environment = {**os.environ, "DATABRICKS_HOST": self.options.host}
        environment |= {f"BUNDLE_VAR_{key}": value for key, value in variables.items()}
        # a bundle whose wheel is not built cannot be read
        _run([sys.executable, "-m", "tools.wheel"], environment)
        command = ["databricks", "bundle", "deployment", "bind", "key_vault", name]
        output = _run([*command, "--target", target, "--auto-approve"], environment, "Resource already managed")  # fmt: skip
        if output and f"bound to the requested ID {name}" not in output:
            raise Refused(f"the bundle manages another scope than {name}: {_line(output)}")
        self.step(not output, what)

    # --- catalog and warehouse -----------------------------------------------------------------------

    def catalog(self, name: str) -> bool:
        """The catalog; whether it is there now."""
        found = _or_none(lambda: self.client.catalogs.get(name))
        root = self.options.storage_root or None
        make = lambda: self.client.catalogs.create(name, storage_root=root)  # noqa: E731
        return bool(found or self.step(not found, f"catalog {name}", make))

    def grant(self, kind: str, name: str, grantee: Principal, *privileges: str) -> None:
        """Privileges on what is in Unity Catalog; later, when a deployment has yet to make it."""
        what = f"{grantee.name}: {', '.join(privileges)} on {name}"
        place = f"/api/2.1/unity-catalog/permissions/{kind}/{name}"
        query = {"principal": grantee.grantee}
        answer = _or_none(lambda: self.client.api_client.do("GET", place, query=query))
        if answer is None and name != settings.load(self.options.target).catalog:
            self.later.append(what)
            return
        held = {
            each
            for row in (answer or {}).get("privilege_assignments", [])  # type: ignore[union-attr]
            if row["principal"] == grantee.grantee
            for each in row["privileges"]
        }
        missing = [each for each in privileges if each not in held]
        change = {"changes": [{"principal": grantee.grantee, "add": missing}]}
        # as text: databricks-sdk does not know every privilege that Unity Catalog has
        self.step(
            bool(missing),
            what,
            lambda: self.client.api_client.do("PATCH", place, body=change),
        )

    def warehouse(self, users: Iterable[Principal]) -> str:
        """The warehouse of the alerts, which these may use; its id."""
        found = [each for each in self.client.warehouses.list() if each.name == WAREHOUSE]
        if len(found) > 1:
            raise Refused(f"{len(found)} warehouses are called {WAREHOUSE}: keep one")
        made = self.step(
            not found,
            f"SQL warehouse {WAREHOUSE}",
            lambda: self.client.warehouses.create(
                name=WAREHOUSE,
                cluster_size="2X-Small",
                auto_stop_mins=10,
                enable_serverless_compute=True,
                max_num_clusters=1,
                warehouse_type=sql.CreateWarehouseRequestWarehouseType.PRO,
            ),
        )
        number = str(found[0].id) if found else str(made.response.id) if made else ""
        rights = self.client.permissions.get("warehouses", number) if number else None
        inside = {
            each.service_principal_name for each in (rights and rights.access_control_list) or []
        }
        for user in users:
            entry = iam.AccessControlRequest(
                service_principal_name=user.application_id,
                permission_level=iam.PermissionLevel.CAN_USE,
            )
            self.step(
                user.application_id not in inside,
                f"{user.name} uses {WAREHOUSE}",
                lambda entry=entry: self.client.permissions.update(
                    "warehouses", number, access_control_list=[entry]
                ),
            )
        return number or f"<id of {WAREHOUSE}>"

    # --- what Unity Catalog keeps of it --------------------------------------------------------------

    def watch(self, schema: str) -> None:
        """Let the platform notice tables of the schema that are no longer written to, or lack rows."""
        found, what = _or_none(lambda: self.client.schemas.get(schema)), f"anomaly detection on {schema}"  # fmt: skip
        if found is None:
            self.later.append(what)
            return
        api, number = self.client.data_quality, str(found.schema_id)
        monitor = dataquality.Monitor(
            "schema", number, anomaly_detection_config=dataquality.AnomalyDetectionConfig()
        )
        known = _or_none(lambda: api.get_monitor("schema", number))
        self.step(known is None, what, lambda: api.create_monitor(monitor))

    def primary_key(self, table: str, columns: tuple[str, ...], day: str, warehouse: str) -> None:
        """Declare what a row of the table is; Databricks does not enforce it, lineage and lookups use it."""
        what = f"primary key of {table}: {', '.join((*columns, day))}"
        found = _or_none(lambda: self.client.tables.get(table))
        if found is None:
            self.later.append(what)
            return
        there = any(each.primary_key_constraint for each in found.table_constraints or [])
        alter = f"ALTER TABLE {'.'.join(f'`{part}`' for part in table.split('.'))}"
        key = ", ".join([*(f"`{each}`" for each in columns), f"`{day}` TIMESERIES"])
        statements = [f"{alter} ALTER COLUMN `{each}` SET NOT NULL" for each in (*columns, day)]
        statements += [f"{alter} ADD CONSTRAINT `primary_key` PRIMARY KEY ({key})"]

        def make() -> None:
            for statement in statements:
                self._execute(statement, warehouse)

        self.step(not there, what, make)

    def _execute(self, statement: str, warehouse: str) -> None:
        api, cancel = self.client.statement_execution, sql.ExecuteStatementRequestOnWaitTimeout.CANCEL  # fmt: skip
        done = api.execute_statement(
            statement, warehouse, wait_timeout="50s", on_wait_timeout=cancel
        )
        state = done.status.state if done.status else None
        if state != sql.StatementState.SUCCEEDED:
            error = done.status.error if done.status else None
            reason = error.message if error else f"it ended {state.value if state else 'unknown'}"
            raise Refused(f"{statement}: {_line(str(reason))}; run it again when it is put right")

    def judge_every_version(self, model: str, job: str) -> None:
        """Link the job to the model: Unity Catalog starts it for each version, and shows it on its page."""
        place = "/api/2.0/mlflow/unity-catalog/registered-models"
        ask = self.client.api_client.do
        known = _or_none(lambda: ask("GET", f"{place}/get", query={"name": model}))
        number = next((str(each.job_id) for each in self.client.jobs.list(name=job)), "")
        what = f"{job} is the deployment job of {model}"
        if not known or not number:
            self.later.append(what)
            return
        linked = {"name": model, "deployment_job_id": number}
        there = known["registered_model"].get("deployment_job_id") == number  # type: ignore[index]
        self.step(not there, what, lambda: ask("PATCH", f"{place}/update", body=linked))


def _same(one: oauth2.OidcFederationPolicy, other: oauth2.OidcFederationPolicy) -> bool:
    return (one.issuer, one.subject) == (other.issuer, other.subject)


def _entry(name: str, level: str) -> workspace.WorkspaceObjectAccessControlRequest:
    kind = "group_name" if name == READERS else "user_name" if "@" in name else ""
    kind = kind or ("service_principal_name" if re.fullmatch(r"[0-9a-f-]{36}", name) else "group_name")  # fmt: skip
    return workspace.WorkspaceObjectAccessControlRequest(
        permission_level=workspace.WorkspaceObjectPermissionLevel(level), **{kind: name}
    )


def _or_none(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except NotFound:
        return None


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _run(command: list[str], environment: dict[str, str], known: str = "") -> str:
    """Run a command; its complaint when that is the one that is known, else nothing."""
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    except FileNotFoundError:
        raise Refused(f"{command[0]} is not installed") from None
    if done.returncode == 0:
        return ""
    if known and known in done.stdout + done.stderr:
        return done.stdout + done.stderr
    reason = re.search(r"Error: (.+)", done.stderr, re.DOTALL)
    raise Refused(f"{' '.join(command)}: {_line(reason[1] if reason else done.stderr)}")


def subject_prefix(repository: str) -> str:
    """How GitHub begins the subject of this repository's tokens; it alone knows the format."""
    place = f"repos/{repository}/actions/oidc/customization/sub"
    prefix = "(.sub_claim_prefix // empty)"
    command = ["gh", "api", place, "--jq", f"if .use_default == false then error(\"a template of its own\") else {prefix} end"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise Refused("gh is not installed: install it, or give --subject-prefix") from None
    if done.returncode:
        raise Refused(
            f"GitHub does not say how the subjects of {repository} begin ({_line(done.stderr)}): sign "
            "in with `gh auth login`, or give --subject-prefix"
        )
    return done.stdout.strip() or f"repo:{repository}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="tools/bootstrap.sh", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add = parser.add_argument
    add("--target", required=True, choices=("staging", "production"))
    add("--host", required=True, help="address of the target's workspace")
    add("--account-id", required=True, help="of Databricks; the account console shows it")
    add("--repository", default="", metavar="OWNER/NAME", help="on GitHub")
    add("--subject-prefix", default="", help="instead of asking GitHub for it")
    add("--issuer", default=ISSUERS["github"], help="another than GitHub, with --subject")
    add("--subject", default="", help="whole, where it is not GitHub's: of Azure DevOps")
    add(
        "--audience",
        default="",
        help="of the tokens that CI signs in with; the account id if not given",
    )
    add("--key-vault-dns-name", required=True)
    add("--key-vault-resource-id", required=True)
    add("--notification-address", required=True, help="who hears of failing jobs")
    add("--storage-root", default="", help="of the catalog, where the metastore has none")
    add("--pull-requests", action="store_true", help="let pull requests validate the bundle, too")
    add(
        "--judge-every-version",
        action="store_true",
        help="let Unity Catalog start validation_job for every new version, as the model's deployment job",
    )
    add("--dry-run", action="store_true", help="look, and make nothing")
    add("--account-host", default=os.environ.get("DATABRICKS_ACCOUNT_HOST", ACCOUNTS))
    options = parser.parse_args(arguments)
    options.host = options.host.rstrip("/")
    if "://" not in options.host:  # as `az databricks workspace show` prints it
        options.host = f"https://{options.host}"
    options.audience = options.audience or options.account_id
    if not options.subject and not options.subject_prefix and not options.repository:
        parser.error("give --repository, or --issuer and --subject on Azure DevOps")
    if options.pull_requests and options.subject:
        parser.error("--pull-requests works on GitHub alone")
    return options


def variables(options: argparse.Namespace, deployer: Principal, runner: Principal, warehouse: str) -> dict[str, str]:  # fmt: skip
    """What CI is given, by the names of its variables."""
    return {
        "DATABRICKS_HOST": options.host,
        "DATABRICKS_CLIENT_ID": deployer.application_id,
        "DATABRICKS_TOKEN_AUDIENCE": options.audience,
        "SERVICE_PRINCIPAL": runner.application_id,
        "READERS": READERS,
        "NOTIFICATION_ADDRESS": options.notification_address,
        "WAREHOUSE_ID": warehouse,
        "KEY_VAULT_DNS_NAME": options.key_vault_dns_name,
        "KEY_VAULT_RESOURCE_ID": options.key_vault_resource_id,
    }


def main(arguments: list[str] | None = None) -> None:
    """All steps, in their order; exits with 1 and one line at the first that is refused."""
    options = parse(arguments)
    try:
        run(options)
    except Refused as error:
        sys.exit(f"bootstrap: {error}")
    except (DatabricksError, ValueError) as error:
        sys.exit(
            f"bootstrap: {type(error).__name__}: {_line(str(error))}; run it again when it is put right"
        )


def run(options: argparse.Namespace) -> None:
    """All steps, in their order."""
    prefix = options.subject_prefix
    if not options.subject:
        prefix = prefix or subject_prefix(options.repository)
    subject = options.subject or f"{prefix}:environment:{options.target}"
    config, resources = settings.load(options.target), bundle.load(options.target).config
    root, scope = resources["workspace"]["root_path"], resources["resources"]["secret_scopes"]["key_vault"]["name"]  # fmt: skip
    account = AccountClient(host=options.account_host, account_id=options.account_id)
    work = Bootstrap(options, account, WorkspaceClient(host=options.host))

    print(f"account {options.account_id}")
    deployer = work.principal(f"churn-deployer-{options.target}")
    runner = work.principal(f"churn-runner-{options.target}")
    readers = work.group()
    work.may_run_as(deployer, runner)
    work.sign_in(deployer, subject)
    assigned = [deployer, runner, readers]
    if options.pull_requests:
        pull_requests = work.principal("churn-pull-requests")
        work.sign_in(pull_requests, f"{prefix}:pull_request")
        assigned.append(pull_requests)

    print(f"workspace {options.host}")
    work.assign(work.client.get_workspace_id(), assigned)
    work.may_make_clusters(runner)
    warehouse = work.warehouse([deployer, runner])
    given = variables(options, deployer, runner, warehouse)
    work.folder(root)
    work.scope(scope, deployer)
    names = {key.lower(): value for key, value in given.items() if not key.startswith("DATABRICKS")}
    names["deployer"] = deployer.application_id
    work.bind(scope, names)
    # after the binding, which writes into the folder as you
    work.permissions(root, rights(options.target, names))

    print(f"catalog {config.catalog}")
    work.catalog(config.catalog)
    grants(work, deployer, runner, readers, config)
    governance(work, config, resources["resources"]["jobs"]["validation_job"]["name"], warehouse)
    report(work, given)


def rights(target: str, names: dict[str, str]) -> dict[str, str]:
    """Who may what in the folder, as databricks.yml says of the whole bundle."""
    written = yaml.safe_load((ROOT / "databricks.yml").read_text())["targets"][target]
    found = {}
    for entry in written["permissions"]:
        name = next(str(entry[key]) for key in entry if key != "level")
        level = "CAN_READ" if entry["level"] == "CAN_VIEW" else entry["level"]
        found[re.sub(r"\$\{var\.(\w+)\}", lambda match: names[match[1]], name)] = level
    return found


def grants(work: Bootstrap, deployer: Principal, runner: Principal, readers: Principal, config: Any) -> None:  # fmt: skip
    """Who may what in Unity Catalog."""
    work.grant("catalog", config.catalog, deployer, "USE_CATALOG", "CREATE_SCHEMA")
    work.grant("catalog", config.catalog, runner, *RUNNER)
    work.grant("catalog", config.catalog, readers, "USE_CATALOG", "USE_SCHEMA", "SELECT")
    if work.options.target == "production":
        origin = settings.load("staging").catalog
        work.grant("catalog", origin, runner, "USE_CATALOG")
        work.grant("schema", f"{origin}.ml", runner, "USE_SCHEMA", "EXECUTE")
        work.grant("schema", f"{origin}.gold", runner, "USE_SCHEMA", "SELECT")


def governance(work: Bootstrap, config: Any, job: str, warehouse: str) -> None:
    """What the bundle cannot say of tables and model."""
    work.watch(f"{config.catalog}.gold")
    work.primary_key(f"{config.catalog}.gold.features", ("customer_id",), "feature_date", warehouse)
    if work.options.judge_every_version:
        work.judge_every_version(config.model_name, job)


def report(work: Bootstrap, given: dict[str, str]) -> None:
    """What is left to do, and the variables for CI."""
    if work.later:
        print("later, once the first deployment has made what they name; then run this again:")
        print("".join(f"  {each}\n" for each in work.later), end="")
    target = work.options.target
    print(f"variables of {target}:")
    if work.options.subject:  # Azure DevOps
        pairs = " ".join(f"'{key}={value}'" for key, value in given.items())
        print(f"  az pipelines variable-group create --name churn-{target} --variables {pairs}")
    else:
        where = f" --repo {work.options.repository}" if work.options.repository else ""
        for key, value in given.items():
            place = "" if key == "DATABRICKS_TOKEN_AUDIENCE" else f" --env {target}"
            print(f"  gh variable set {key}{where}{place} --body '{value}'")
    if work.problems:
        sys.exit("".join(f"bootstrap: {each}\n" for each in work.problems).rstrip())


if __name__ == "__main__":
    main()
