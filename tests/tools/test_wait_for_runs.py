"""What a cancelled deployment has started is waited for, and what cannot be asked for is a failure."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.tools import stand_ins

ROOT = Path(__file__).parents[2]
# as the Databricks CLI 1.7 prints them (tried beside it)
COMMAND = '''
"""databricks bundle summary | jobs list-runs."""
import json, os, sys, urllib.error, urllib.request

def ask(path):
    headers = {"Authorization": "Bearer " + os.environ["DATABRICKS_TOKEN"]}
    request = urllib.request.Request(os.environ["DATABRICKS_HOST"] + path, None, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit("Error: " + json.load(error)["message"])

words = sys.argv[1:]
option = dict(zip(words, words[1:]))
assert option["--target"] == "production" and option["--output"] == "json", words
if words[:2] == ["bundle", "summary"]:
    ids = {"promotion_job": "7", "deployment_job": "8", "new_job": None}
    jobs = {name: {"id": number} if number else {} for name, number in ids.items()}
    ask("/api/2.0/preview/scim/v2/Me")
    print(json.dumps({"resources": {"jobs": jobs}}, indent=2))
else:
    assert words[:2] == ["jobs", "list-runs"] and "--active-only" in words, words
    path = "/api/2.2/jobs/runs/list?active_only=true&job_id=" + option["--job-id"]
    print(json.dumps(ask(path).get("runs", [])))
'''


class Workspace(stand_ins.Workspace):
    """Runs under way by job; each question ends one."""

    def __init__(self, **active: int) -> None:
        super().__init__()
        self.active = active

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """The two questions of the script."""
        if path == "/api/2.0/preview/scim/v2/Me":
            return {"userName": "deployer"}
        if path == "/api/2.2/jobs/runs/list" and query["active_only"] == "true":
            key = f"job{query['job_id']}"
            runs = [{"run_id": n} for n in range(self.active.get(key, 0))]
            self.active[key] = max(len(runs) - 1, 0)
            return {"runs": runs} if runs else {}
        return super().answer(method, path, query, body)


def wait(folder: Path, workspace: Workspace, *jobs: str) -> subprocess.CompletedProcess[str]:
    stand_ins.command(folder, "databricks", COMMAND)
    known = {"PATH": f"{folder}:{os.environ['PATH']}", "RUN_JOB_PAUSE": "0.01"}
    known |= {"DATABRICKS_HOST": workspace.url, "DATABRICKS_TOKEN": stand_ins.TOKEN}
    command = ["bash", str(ROOT / "tools/wait_for_runs.sh"), "production", *jobs]
    return subprocess.run(command, env=known, capture_output=True, text=True, timeout=60)


def test_runs_of_both_jobs_are_waited_for(tmp_path: Path) -> None:
    with stand_ins.serving(Workspace(job7=1, job8=2)) as workspace:
        done = wait(tmp_path, workspace, "promotion_job", "deployment_job")
    assert done.returncode == 0, done.stderr
    under_way = [line.partition(" of an earlier")[0] for line in done.stdout.splitlines()]
    assert under_way == [
        "promotion_job on production: 1 run(s)",
        "deployment_job on production: 2 run(s)",
        "deployment_job on production: 1 run(s)",
    ]
    assert workspace.active == {"job7": 0, "job8": 0}


def test_nothing_under_way_is_nothing_to_wait_for(tmp_path: Path) -> None:
    with stand_ins.serving(Workspace()) as workspace:
        done = wait(tmp_path, workspace, "promotion_job", "deployment_job")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("question", "job", "problem"),
    [
        ("GET /api/2.0/preview/scim/v2/Me", "promotion_job", "the jobs of production are not known"),
        ("GET /api/2.2/jobs/runs/list", "promotion_job", "whether promotion_job runs on production is not known"),
        ("", "new_job", "new_job is not deployed to production"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_a_failure(
    tmp_path: Path, question: str, job: str, problem: str
) -> None:
    with stand_ins.serving(Workspace()) as workspace:
        workspace.fail_once = {question} - {""}
        done = wait(tmp_path, workspace, job)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"wait_for_runs.sh: {problem}"
