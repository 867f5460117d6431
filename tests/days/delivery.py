"""Runs cd.yml: its jobs and steps as they are written there, each in a shell, in a clone of the commit."""

import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.days.environments import VARIABLES
from tests.tools.stand_ins import command
from tests.workspaces import Workspace

ROOT = Path(__file__).parent.parent.parent
# what the machine of the run has already
GIVEN = re.compile(r"^make \.venv/\.[a-z]+-installed$")
CLI = """
import runpy, sys
sys.argv[0] = {script!r}
runpy.run_path({script!r}, run_name="__main__")
"""


@dataclass
class Ran:
    """How a job of the workflow has ended."""

    job: str
    failed: str = ""  # name of the step that failed; empty: none
    output: str = ""  # the last lines of it
    outputs: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)  # that were run


def value_of(expression: str, context: dict[str, Any]) -> Any:
    """What `${{ }}` holds: a name with dots, == and !=, && and ||, functions of the state of the job."""
    text = expression.strip()
    text = re.sub(r"(failure|success|always|cancelled)\(\)", r"\1", text)
    text = text.replace("&&", " and ").replace("||", " or ")
    text = re.sub(r"!(?!=)", " not ", text)

    def quoted(found: re.Match[str]) -> str:
        if found[0][0] == "'" or found[0] in ("and", "or", "not"):
            return found[0]
        value: Any = context
        for part in found[0].split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        return repr(value)

    return eval(re.sub(r"'[^']*'|[A-Za-z_][\w.-]*", quoted, text), {"__builtins__": {}})


def filled(text: Any, context: dict[str, Any]) -> str:
    """A text with the values of its expressions."""
    return re.sub(r"\$\{\{(.*?)\}\}", lambda f: str(value_of(f[1], context)), str(text))


class Delivery:
    """A run of the workflow for one commit; `job` runs one of its jobs."""

    def __init__(self, clone: Path, commit: str, folder: Path, variables: dict[str, str]):
        self.clone, self.commit, self.folder = clone, commit, folder
        self.variables = variables  # `vars` of the environments
        self.workflow = yaml.safe_load((clone / ".github/workflows/cd.yml").read_text())
        self.outputs: dict[str, dict[str, Any]] = {}  # of the jobs that have ended
        script = str(ROOT / "tests/days/databricks.py")
        command(folder / "bin", "databricks", CLI.format(script=script))

    def job(self, name: str, workspace: Workspace) -> Ran:
        """Its steps in order, until one fails; what runs after a failure is run then."""
        body, ran = self.workflow["jobs"][name], Ran(name)
        context = {
            "vars": self.variables,
            "github": {"sha": self.commit, "token": ""},
            "needs": self.outputs,
            "steps": {},
            "always": True,
            "cancelled": False,
        }
        environment = {**(self.workflow.get("env") or {}), **(body.get("env") or {})}
        for step in body["steps"]:
            context |= {"failure": bool(ran.failed), "success": not ran.failed}
            condition = str(step.get("if", "success()"))
            if "run" not in step or GIVEN.match(step["run"].strip()):
                continue
            wanted = value_of(re.sub(r"^\$\{\{|\}\}$", "", condition.strip()), context)
            if not re.search(r"failure\(\)|always\(\)|success\(\)", condition):
                wanted = wanted and not ran.failed
            if wanted:
                self._step(
                    step, ran, {**environment, **(step.get("env") or {})}, context, workspace
                )
        ran.outputs = {k: filled(v, context) for k, v in (body.get("outputs") or {}).items()}
        self.outputs[name] = {
            "outputs": ran.outputs,
            "result": "failure" if ran.failed else "success",
        }
        return ran

    def _step(
        self,
        step: dict[str, Any],
        ran: Ran,
        environment: dict[str, str],
        context: dict[str, Any],
        workspace: Workspace,
    ) -> None:
        output, name = self.folder / "output", step.get("name") or step.get("id") or step["run"]
        output.write_text("")
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("CHURN_", "MLFLOW_", "GIT_"))
        }
        given = {key: filled(value, context) for key, value in environment.items()}
        own = {
            "DATABRICKS_HOST": workspace.address,
            "DATABRICKS_TOKEN": workspace.token,
            "DATABRICKS_AUTH_TYPE": "pat",  # a job of GitHub signs in with a token of its own
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.clone}{os.pathsep}{ROOT}",
            "RUN_JOB_PAUSE": "0.1",
        }
        done = subprocess.run(
            [
                "bash",
                "--noprofile",
                "--norc",
                "-eo",
                "pipefail",
                "-c",
                filled(step["run"], context),
            ],
            cwd=self.clone,
            env={**kept, **given, **own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        ran.steps.append(name)
        pairs = [line.split("=", 1) for line in output.read_text().splitlines() if "=" in line]
        outcome = "failure" if done.returncode else "success"
        if "id" in step:
            context["steps"][step["id"]] = {"outputs": dict(pairs), "outcome": outcome}
        if done.returncode and not ran.failed:
            ran.failed, ran.output = name, "\n".join(done.stdout.strip().splitlines()[-12:])


def known_variables() -> dict[str, str]:
    """What an environment of the repository has for `vars`."""
    named = {name.upper(): value for name, value in VARIABLES.items()}
    deployer = {"DATABRICKS_CLIENT_ID": VARIABLES["deployer"]}
    return {**named, **deployer, "DATABRICKS_TOKEN_AUDIENCE": "audience"}
