"""From an empty account to a bundle that CI can deploy, against an account and workspaces on loopback."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import DatabricksError

from tests.tools.cloud import ACCOUNT, ADMIN, Account, Issuer, Pipelines, Target
from tests.tools.stand_ins import TOKEN, command, serving
from tools import bootstrap, wheel, workflows

ROOT = Path(__file__).parents[2]
PREFIX = "repo:owner@12/name@34"
FOLDER = "/Workspace/Bundles/churn-prediction/{}"
VAULT = "/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/v"
GH = f"""
    import sys
    place = "repos/owner/name/actions/oidc/customization/sub"
    assert sys.argv[1:4] == ["api", place, "--jq"], sys.argv
    print("{PREFIX}")
"""


@dataclass
class Cloud:
    account: Account
    staging: Target
    production: Target
    servers: ExitStack
    bin: Path

    def target(self, name: str) -> Target:
        return self.staging if name == "staging" else self.production

    def state(self) -> Any:
        return [self.account.state(), self.staging.state(), self.production.state()]

    def asked(self) -> list[tuple[str, str]]:
        servers = (self.account, self.staging, self.production)
        return [(method, path) for each in servers for method, path, _ in each.asked]


def make(folder: Path, servers: ExitStack) -> Cloud:
    metastore: dict[str, Any] = {"catalogs": set(), "schemas": set(), "grants": {}}
    metastore |= {"tables": {}, "models": {}, "monitors": {}}
    account = Account()
    cloud = Cloud(account, Target(account, 11, metastore), Target(account, 22, metastore), servers, folder)  # fmt: skip
    for each in (account, cloud.staging, cloud.production):
        servers.enter_context(serving(each))
    command(folder, "databricks")
    command(folder, "gh", GH)
    return cloud


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    wheel.build()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
    monkeypatch.setenv("DATABRICKS_HOST", "https://left.over.example")  # of another command
    monkeypatch.setenv("HOME", str(tmp_path))
    with ExitStack() as servers:
        yield make(tmp_path / "bin", servers)


def words(cloud: Cloud, target: str, *more: str) -> list[str]:
    return [
        *("--target", target),
        *("--host", cloud.target(target).url),
        *("--account-id", ACCOUNT, "--account-host", cloud.account.url),
        *("--repository", "owner/name"),
        *("--key-vault-dns-name", "https://v.vault.azure.net/", "--key-vault-resource-id", VAULT),
        *("--notification-address", "us@example.org"),
        *more,
    ]


def run(cloud: Cloud, capsys: pytest.CaptureFixture[str], target: str, *more: str) -> str:
    bootstrap.main(words(cloud, target, *more))
    return capsys.readouterr().out


def ended(cloud: Cloud, target: str, *more: str) -> str:
    with pytest.raises(SystemExit) as raised:
        bootstrap.main(words(cloud, target, *more))
    return str(raised.value)


# --- what it makes ---------------------------------------------------------------------------------------


def test_everything_is_made_once(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("staging", "production"):
        assert "made        service principal churn-deployer-" in run(cloud, capsys, target)
    account, staging, production = before = cloud.state()
    assert account["groups"] == [["churn-readers", []]]
    (policy,) = account["policies"]["churn-deployer-production"]
    assert policy == {
        "issuer": "https://token.actions.githubusercontent.com",
        "audiences": [ACCOUNT],
        "subject": f"{PREFIX}:environment:production",
    }
    (rules,) = account["roles"][f"accounts/{ACCOUNT}/servicePrincipals/churn-runner-staging/ruleSets/default"]  # fmt: skip
    assert rules["principals"] == ["servicePrincipals/churn-deployer-staging"]
    rights = {"churn-deployer-staging": "CAN_MANAGE", "churn-runner-staging": "CAN_RUN"}
    assert staging["folders"][FOLDER.format("staging")] == rights
    assert staging["folders"]["/Workspace/Bundles"] == {}
    assert staging["scopes"]["churn-staging"]["rights"]["churn-deployer-staging"] == "MANAGE"
    assert staging["entitled"] == {"churn-runner-staging": ["allow-cluster-create"]}
    of_production = production["grants"]["('catalog', 'churn_production')"]
    assert of_production["churn-deployer-production"] == ["CREATE_SCHEMA", "USE_CATALOG"]
    assert "CREATE_MODEL_VERSION" in of_production["churn-runner-production"]
    assert production["grants"]["('catalog', 'churn_staging')"]["churn-runner-production"] == ["USE_CATALOG"]  # fmt: skip
    for each in (cloud.account, cloud.staging, cloud.production):
        each.asked.clear()
    for target in ("staging", "production"):
        again = run(cloud, capsys, target)
        assert " made  " not in again and "would make" not in again
    assert cloud.state() == before
    assert {method for method, _ in cloud.asked()} == {"GET"}


def test_a_dry_run_only_looks(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    empty = cloud.state()
    output = run(cloud, capsys, "production", "--dry-run", "--pull-requests")
    assert "would make  federation" not in output
    assert f"would make  churn-deployer-production signs in as {PREFIX}:environment:production" in output  # fmt: skip
    assert f"would make  folder {FOLDER.format('production')}" in output
    assert " made  " not in output
    assert {method for method, _ in cloud.asked()} == {"GET"}
    assert cloud.state() == empty


def deployed(cloud: Cloud) -> dict[str, Any]:
    """The metastore when a deployment has made schemas, model and jobs, and a run gold.features."""
    metastore = cloud.production.metastore
    metastore["schemas"] |= {"churn_staging.ml", "churn_staging.gold", "churn_production.gold"}
    table = {"key": None, "never_null": set(), "nulls": set()}
    metastore["tables"]["churn_production.gold.features"] = table
    metastore["models"]["churn_production.ml.churn_prediction_gbm"] = {}
    cloud.production.jobs[77] = "churn-validation-production"
    return metastore


def test_unity_catalog_knows_the_key_watches_gold_and_judges_every_version(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(cloud, capsys, "production", "--judge-every-version")
    for later in ("anomaly detection on", "primary key of", "is the deployment job of"):
        assert later in first.partition("later, once")[2]
    metastore = deployed(cloud)
    before = cloud.state()
    assert "would make  primary key" in run(cloud, capsys, "production", "--dry-run")
    assert cloud.state() == before
    run(cloud, capsys, "production")
    table = metastore["tables"]["churn_production.gold.features"]
    assert table["key"]["child_columns"] == ["customer_id", "feature_date"]
    assert [*metastore["monitors"]] == [("schema", "id-of-churn_production.gold")]
    model = metastore["models"]["churn_production.ml.churn_prediction_gbm"]
    assert model == {}, "nobody has asked for it"
    run(cloud, capsys, "production", "--judge-every-version")
    assert model == {"deployment_job_id": "77"}
    cloud.production.asked.clear()
    again = run(cloud, capsys, "production", "--judge-every-version")
    assert " made  " not in again
    assert {method for method, _, _ in cloud.production.asked} == {"GET"}


def test_a_key_that_is_null_somewhere_is_one_line(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    metastore = deployed(cloud)
    table = metastore["tables"]["churn_production.gold.features"]
    table["nulls"].add("feature_date")
    message = ended(cloud, "production")
    assert message.startswith("bootstrap: ALTER TABLE `churn_production`.`gold`.`features` ALTER COLUMN")  # fmt: skip
    assert "3 rows violate the NOT NULL constraint of feature_date" in message
    assert "\n" not in message and table["key"] is None
    table["nulls"].clear()
    run(cloud, capsys, "production")
    assert table["key"]["child_columns"] == ["customer_id", "feature_date"]


def test_what_the_first_deployment_makes_is_granted_afterwards(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(cloud, capsys, "production")
    assert "later, once the first deployment" in first
    metastore = deployed(cloud)
    metastore["catalogs"].add("churn_staging")
    second = run(cloud, capsys, "production")
    assert "later" not in second
    production = cloud.production.state()
    runner = "churn-runner-production"
    assert production["grants"]["('schema', 'churn_staging.ml')"] == {runner: ["EXECUTE", "USE_SCHEMA"]}  # fmt: skip


def test_after_a_failure_at_any_question_it_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each question fails once: one line each time, and it goes on where it stopped."""
    wheel.build()
    monkeypatch.setattr(bootstrap, "_run", _without_the_wheel(bootstrap._run))
    monkeypatch.setenv("DATABRICKS_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    path, ends = os.environ["PATH"], []
    for name, failing in (("whole", False), ("failing", True)):
        monkeypatch.setenv("PATH", f"{tmp_path / name}:{path}")
        failed: set[tuple[str, str]] = set()
        with ExitStack() as servers:
            cloud = make(tmp_path / name, servers)
            for each in (cloud.account, cloud.staging, cloud.production) if failing else ():

                def fails(question: str, *, url: str = each.url, failed: Any = failed) -> bool:
                    known = (url, question) in failed or "/.well-known/" in question
                    failed.add((url, question))
                    return not known

                each.fails = fails  # type: ignore[method-assign]
            refused = 0
            while refused < 200:
                try:
                    bootstrap.main(words(cloud, "production", "--pull-requests"))
                    break
                except SystemExit as error:
                    assert str(error).startswith("bootstrap: ") and "\n" not in str(error)
                    refused += 1
            ends.append(cloud.state())
    assert 30 < refused < 200
    assert len(failed) > 40
    assert ends[0] == ends[1]
    capsys.readouterr()


def _without_the_wheel(real: Any) -> Any:
    def run(
        command: list[str], *rest: Any
    ) -> Any:  # it is built: asked for once, not for each attempt
        return "" if "tools.wheel" in command else real(command, *rest)

    return run


# --- what it then lets in ---------------------------------------------------------------------------------


def given(output: str) -> dict[str, str]:
    """The variables that the script says to set on GitHub."""
    found = re.findall(
        r"gh variable set (\w+) --repo owner/name( --env \w+)? --body '(.*)'", output
    )
    assert {name for name, place, _ in found if not place} == {"DATABRICKS_TOKEN_AUDIENCE"}
    return {name: value for name, _, value in found}


def environment(name: str, job: str, values: dict[str, str], **matrix: str) -> dict[str, str]:
    """The environment of a job as GitHub makes it from the workflow."""
    content = workflows.read(ROOT / ".github/workflows" / name)
    written = {**(content.get("env") or {}), **content["jobs"][job]["env"]}

    def filled(match: re.Match[str]) -> str:
        context, _, key = match[1].partition(".")
        return {"vars": values, "matrix": matrix}.get(context, {}).get(key, "")

    return {key: re.sub(r"\$\{\{ (.+?) \}\}", filled, value) for key, value in written.items()}


def validate(cloud: Cloud, target: str, *variables: dict[str, str]) -> subprocess.CompletedProcess[str]:  # fmt: skip
    known = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    for each in variables:
        known |= each
    call = ["databricks", "bundle", "validate", "--strict", "--target", target]
    return subprocess.run(call, cwd=ROOT, env=known, capture_output=True, text=True, timeout=60)


@pytest.fixture
def github(cloud: Cloud) -> Issuer:
    issuer = Issuer(f"{PREFIX}:environment:staging")
    cloud.servers.enter_context(serving(issuer))
    cloud.account.issuers.append(issuer)
    return issuer


def test_cd_signs_in_and_validates_before_the_first_deployment(
    cloud: Cloud, github: Issuer, capsys: pytest.CaptureFixture[str]
) -> None:
    values = given(run(cloud, capsys, "staging"))
    job = environment("cd.yml", "staging", values)
    done = validate(cloud, "staging", job, github.environment())
    assert done.returncode == 0, done.stderr
    asked = subprocess.run(
        ["bash", str(ROOT / "tools/required_variables.sh")], env={**job, "PATH": os.environ["PATH"]}
    )
    assert asked.returncode == 0


def test_another_subject_or_audience_is_let_in_nowhere(
    cloud: Cloud, github: Issuer, capsys: pytest.CaptureFixture[str]
) -> None:
    job = environment("cd.yml", "staging", given(run(cloud, capsys, "staging", "--pull-requests")))
    right, nobody = f"{PREFIX}:environment:staging", "no policy of the principal matches"
    for subject, audience, reason in (
        ("repo:owner/name:environment:staging", ACCOUNT, nobody),
        (f"{PREFIX}:environment:production", ACCOUNT, nobody),
        (f"{PREFIX}:ref:refs/heads/main", ACCOUNT, nobody),
        (f"{PREFIX}:pull_request", ACCOUNT, nobody),
        # without it the client asks for what the host advertises, which no policy holds
        (right, "", "/oidc/v1/token"),
        (right, "other", "aud other"),
    ):
        github.subject = subject
        changed = {**job, "DATABRICKS_TOKEN_AUDIENCE": audience}
        done = validate(cloud, "staging", changed, github.environment())
        assert done.returncode == 1, subject
        assert reason in done.stderr


@pytest.mark.parametrize("target", ["staging", "production"])
def test_a_pull_request_validates_and_may_nothing_else(
    cloud: Cloud,
    github: Issuer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    values = given(run(cloud, capsys, target, "--pull-requests"))
    (principal,) = (
        each["applicationId"]
        for each in cloud.account.principals.values()
        if each["displayName"] == "churn-pull-requests"
    )
    values |= {"DATABRICKS_VALIDATE_CLIENT_ID": principal}
    github.subject = f"{PREFIX}:pull_request"
    host = cloud.target(target).url
    job = environment("ci.yml", "bundle", values, target=target, host=host)
    before = {*cloud.target(target).folders}
    done = validate(cloud, target, job, github.environment())
    assert done.returncode == 0, done.stderr
    made = {key for key in cloud.target(target).folders if key not in before}
    assert made and all(each.startswith(f"/Workspace/Users/{principal}") for each in made)
    for key, value in {**job, **github.environment()}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("DATABRICKS_TOKEN")
    client = WorkspaceClient()
    for attempt in (
        lambda: client.workspace.mkdirs(FOLDER.format(target) + "/files"),
        lambda: client.workspace.mkdirs("/Workspace/Bundles/mine"),
        lambda: client.secrets.list_acls(f"churn-{target}"),
        lambda: list(client.warehouses.list()),
    ):
        with pytest.raises(DatabricksError):
            attempt()


def test_azure_devops_signs_in_with_its_own_subject_and_audience(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    pipelines = Pipelines("p://organisation/project/pipeline")
    cloud.servers.enter_context(serving(pipelines))
    cloud.account.issuers.append(pipelines)
    script = 'set -eu; . tools/azure_variables.sh; env | grep -E "^(DATABRICKS|BUNDLE_VAR)_"'
    sign_in = ["--issuer", pipelines.issuer, "--subject", pipelines.subject, "--audience", "api://AzureADTokenExchange"]  # fmt: skip
    output = run(cloud, capsys, "staging", *sign_in)
    (line,) = (each for each in output.splitlines() if "az pipelines" in each)
    values = dict(pair.split("=", 1) for pair in re.findall(r"'([^']+)'", line))
    sourced = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={**values, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    job = dict(pair.split("=", 1) for pair in sourced.stdout.splitlines())
    done = validate(cloud, "staging", job, pipelines.environment())
    assert done.returncode == 0, done.stderr


# --- what was there before --------------------------------------------------------------------------------


def test_a_folder_that_an_administrator_made_by_hand_is_put_in_order(
    cloud: Cloud, github: Issuer, capsys: pytest.CaptureFixture[str]
) -> None:
    client = WorkspaceClient(host=cloud.staging.url)
    client.workspace.mkdirs(FOLDER.format("staging") + "/state")
    assert cloud.staging.folders["/Workspace/Bundles"]["rights"] == {ADMIN: "CAN_MANAGE"}
    values = given(run(cloud, capsys, "staging"))
    done = validate(cloud, "staging", environment("cd.yml", "staging", values), github.environment())  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_rights_of_others_that_the_folder_inherits_are_named_and_kept(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "0badcafe-0000-4000-8000-000000000003"
    cloud.staging.folders["/Workspace/Bundles"] = {"id": 9, "rights": {other: "CAN_EDIT"}}
    message = ended(cloud, "staging")
    assert message.startswith(f"bootstrap: {other} has CAN_EDIT in /directories/9, which {FOLDER.format('staging')} inherits")  # fmt: skip
    assert cloud.staging.folders["/Workspace/Bundles"]["rights"] == {other: "CAN_EDIT"}
    assert "variables of staging" in capsys.readouterr().out


def test_roles_of_others_stay_and_an_outdated_audience_goes(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cloud, capsys, "staging")
    (rules,) = cloud.account.roles.values()
    mine = rules["grant_rules"][0]
    theirs = {"role": "roles/servicePrincipal.manager", "principals": ["users/a@example.org"]}
    rules["grant_rules"] = [theirs]
    (policy,) = (each for each in cloud.account.policies.values() if each)
    policy[0]["oidc_policy"]["audiences"] = ["outdated"]
    run(cloud, capsys, "staging")
    assert rules["grant_rules"] == [theirs, mine]
    assert [each["oidc_policy"]["audiences"] for each in policy] == [[ACCOUNT]]


def test_a_policy_for_the_former_subject_is_named(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cloud, capsys, "staging", "--subject-prefix", "repo:owner/name")
    message = ended(cloud, "staging")
    assert "churn-deployer-staging also lets repo:owner/name:environment:staging in" in message


def test_two_principals_of_one_name_are_not_chosen_between(cloud: Cloud) -> None:
    for number in (1, 2):
        made = {"id": str(number), "displayName": "churn-deployer-staging", "applicationId": "x"}
        cloud.account.principals[number] = made
    message = ended(cloud, "staging")
    assert message == "bootstrap: 2 service principals are called churn-deployer-staging (1, 2): keep one"  # fmt: skip


def test_a_scope_on_another_vault_is_not_taken(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    run(cloud, capsys, "staging")
    message = ended(cloud, "staging", "--key-vault-resource-id", "/subscriptions/other")
    assert "the scope churn-staging is not on /subscriptions/other" in message


def test_wrong_credentials_are_one_line(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABRICKS_TOKEN", "expired")
    message = ended(cloud, "staging")
    assert message.startswith("bootstrap: Unauthenticated: ") and "\n" not in message


@pytest.mark.parametrize(
    ("source", "prefix", "reason"),
    [
        ("print()", "repo:owner/name", ""),
        ("import sys; sys.exit('HTTP 404')", "", "GitHub does not say how the subjects of owner/name begin (HTTP 404)"),
    ],
)  # fmt: skip
def test_the_beginning_of_the_subject_is_what_github_says(
    cloud: Cloud, source: str, prefix: str, reason: str
) -> None:
    command(cloud.bin, "gh", source)
    if reason:
        with pytest.raises(bootstrap.Refused, match=re.escape(reason)):
            bootstrap.subject_prefix("owner/name")
    else:
        assert bootstrap.subject_prefix("owner/name") == prefix


def test_the_script_says_what_it_wants(tmp_path: Path) -> None:
    script = ["bash", str(ROOT / "tools/bootstrap.sh"), "--target", "staging"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "the following arguments are required: --host" in done.stderr
