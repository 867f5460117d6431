"""The guide "Deploy to Azure" from an empty subscription: its blocks are run in order, and run again."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.tools.cloud import ACCOUNT
from tests.tools.stand_ins import TOKEN, command
from tests.tools.test_bootstrap import PREFIX, Cloud, environment, make, validate
from tools import wheel

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "nbs/how-to/deploy_to_azure.ipynb"

AZ = '''
    """az, as far as the guide calls it: what is not there is not found, what is there is not made again."""
    import json, os, sys
    from pathlib import Path
    place = Path(__file__).parent / "az.json"
    state = json.loads(place.read_text()) if place.exists() else {"groups": [], "workspaces": [], "vaults": {}, "roles": []}
    words = sys.argv[1:]
    options = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
    verb = " ".join(words[:next((i for i, word in enumerate(words) if word.startswith("--")), len(words))])
    name, group = options.get("--name", ""), options.get("--resource-group", "")
    if verb not in ("login", "account show", "group create", "role assignment create") and group not in state["groups"]:
        sys.exit("ERROR: (ResourceGroupNotFound) " + group)
    answer = None
    if verb == "account show":
        answer = {"id": "1234567a-0000-4000-8000-000000000000"}
    elif verb == "group create":
        state["groups"] = sorted({*state["groups"], name})
    elif verb == "databricks workspace create":
        assert options["--sku"] == "premium" and options["--location"], words
        state["workspaces"] = sorted({*state["workspaces"], name})
    elif verb == "databricks workspace show":
        if name not in state["workspaces"]:
            sys.exit("ERROR: (ResourceNotFound) " + name)
        answer = {"workspaceUrl": os.environ["URL_OF_" + name.replace("churn-", "").upper()]}
    elif verb == "keyvault show":
        if name not in state["vaults"]:
            print("ERROR: (ResourceNotFound) " + name, file=sys.stderr)
            sys.exit(3)
        answer = state["vaults"][name]
    elif verb == "keyvault create":
        if name in state["vaults"]:
            sys.exit("ERROR: (VaultAlreadyExists) " + name)
        if not 3 <= len(name) <= 24 or options["--enable-rbac-authorization"] != "true":
            sys.exit("ERROR: (VaultNameNotValid) " + name)
        state["vaults"][name] = {"id": "/subscriptions/s/vaults/" + name, "properties": {"vaultUri": "https://" + name + ".vault.azure.net/"}}
    elif verb == "role assignment create":
        if options["--scope"] not in [each["id"] for each in state["vaults"].values()]:
            sys.exit("ERROR: (MissingSubscription) " + options["--scope"])
        state["roles"] = sorted({*state["roles"], options["--assignee"] + " " + options["--role"] + " " + options["--scope"]})
    elif verb != "login":
        sys.exit("ERROR: no such command: " + verb)
    place.write_text(json.dumps(state))
    if answer and options.get("--output") != "none":
        for key in options["--query"].split("."):
            answer = answer[key]
        assert options["--output"] == "tsv", words
        print(answer)
'''
GH = f'''
    """gh: variables of an environment want the environment."""
    import json, sys
    from pathlib import Path
    place = Path(__file__).parent / "gh.json"
    state = json.loads(place.read_text()) if place.exists() else {{"": {{}}}}
    words = sys.argv[1:]
    if words[:2] == ["api", "--method"]:
        assert words[2] == "PUT" and words[3].startswith("repos/owner/name/environments/"), words
        state.setdefault(words[3].rpartition("/")[2], {{}})
    elif words[0] == "api":
        assert words[1] == "repos/owner/name/actions/oidc/customization/sub", words
        print("{PREFIX}")
    elif words[:2] == ["variable", "set"]:
        options = dict(zip(words[3::2], words[4::2]))
        assert options["--repo"] == "owner/name" and options["--body"], words
        if options.get("--env", "") not in state:
            sys.exit("no environment " + options["--env"])
        state[options.get("--env", "")][words[2]] = options["--body"]
    else:
        assert words == ["auth", "login"], words
    place.write_text(json.dumps(state))
'''


def blocks() -> list[str]:
    """The shell of the guide, in its order."""
    cells = json.loads(GUIDE.read_text())["cells"]
    text = "\n".join("".join(each["source"]) for each in cells if each["cell_type"] == "markdown")
    found = re.findall(r"^( *)```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


OWN = {
    "ACCOUNT_ID": ACCOUNT,
    "REPOSITORY": "owner/name",
    "NOTIFICATION_ADDRESS": "us@example.org",
}
LOCAL = ("make prepare", ".venv/bin/churn bundle check", "databricks version")


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    wheel.build()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    with ExitStack() as servers:
        made = make(tmp_path / "bin", servers)
        command(made.bin, "gh", GH)
        command(made.bin, "az", AZ)
        yield made


def follow(cloud: Cloud, pieces: list[str]) -> subprocess.CompletedProcess[str]:
    """Run blocks in one shell that stops at the first command that fails."""
    text = "\n".join(pieces)
    for name, value in OWN.items():
        text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert count == 1, f"the guide does not ask for {name}"
    text = "\n".join(line for line in text.splitlines() if not line.startswith(LOCAL))
    known = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "DATABRICKS_TOKEN": TOKEN,  # what `az login` is to the real ones
        "DATABRICKS_ACCOUNT_HOST": cloud.account.url,
        "URL_OF_STAGING": cloud.staging.url,
        "URL_OF_PRODUCTION": cloud.production.url,
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=ROOT,
        env=known,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_from_an_empty_subscription_to_a_deployment_that_may_be_made(cloud: Cloud) -> None:
    pieces = [each for each in blocks() if "HOST_OF_DEV" not in each]
    assert len(pieces) == 7
    deployed = "bootstrap staging\nbootstrap production\n"
    before = [each for each in pieces if each != deployed]
    assert len(before) == 6
    done = follow(cloud, before)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "later, once the first deployment" in done.stdout
    variables: dict[str, Any] = json.loads((cloud.bin / "gh.json").read_text())
    assert variables[""] == {"DATABRICKS_TOKEN_AUDIENCE": ACCOUNT}
    for target in ("staging", "production"):
        job = environment("cd.yml", target, {**variables[""], **variables[target]})
        admin = {"DATABRICKS_AUTH_TYPE": "pat", "DATABRICKS_TOKEN": TOKEN}
        checked = validate(cloud, target, job, admin)
        assert checked.returncode == 0, checked.stderr
        missing = ["bash", "tools/required_variables.sh"]
        asked = subprocess.run(missing, cwd=ROOT, env={**job, "PATH": os.environ["PATH"]})
        assert asked.returncode == 0
    # what the deployments make, and the first runs
    catalogs = ("churn_staging", "churn_production")
    cloud.staging.metastore["schemas"] |= {
        f"{each}.{s}" for each in catalogs for s in ("ml", "gold")
    }
    for each in catalogs:
        table = {"key": None, "never_null": set(), "nulls": set()}
        cloud.staging.metastore["tables"][f"{each}.gold.features"] = table
    again = follow(cloud, pieces)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "later" not in again.stdout.rpartition("account ")[2]
    state = cloud.state()
    azure = (cloud.bin / "az.json").read_text()
    third = follow(cloud, pieces)
    assert third.returncode == 0 and " made  " not in third.stdout
    assert cloud.state() == state
    assert (cloud.bin / "az.json").read_text() == azure


def test_signing_in_by_hand_names_the_host(tmp_path: Path) -> None:
    (block,) = (each for each in blocks() if "HOST_OF_DEV" in each)
    command(
        tmp_path,
        "databricks",
        """
        import sys
        if sys.argv[1:3] == ["auth", "login"]:  # it does not look at DATABRICKS_HOST
            assert sys.argv[3:] == ["--host", "https://HOST_OF_DEV"], sys.argv
        """,
    )
    known = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-euc", block], cwd=ROOT, env=known, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_host_of_the_account_stands_nowhere_in_the_environment() -> None:
    """`databricks` commands of a workspace would go to the account."""
    assert not re.search(r"DATABRICKS_HOST=https://accounts", "\n".join(blocks()))
