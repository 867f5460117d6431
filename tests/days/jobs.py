"""The Jobs API of a workspace of the rehearsal, and the bundles that are deployed to it."""

import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.days.environments import Environment
from tests.workspaces import Refused
from tests.workspaces.metastore import Model

BUNDLES = "/stand-in/bundles"  # what the CLI keeps in the workspace's files


def invalid(message: str) -> Refused:
    return Refused(400, "INVALID_PARAMETER_VALUE", message)


class Jobs:
    """An API of `tests.workspaces.Workspace`: jobs of the bundle that is deployed to it, run one at a time."""

    def __init__(self, place: Environment):
        self.place = place
        self.deployed: dict[str, str] = {}  # resource to the digest that it was deployed with
        self.wheels: list[str] = []  # that were uploaded
        self.runs: dict[int, dict[str, Any]] = {}  # by run id
        self.threads: dict[int, threading.Thread] = {}  # of the runs

    def api(self, method: str, path: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request about jobs and bundles; None when it is about something else."""
        if path == BUNDLES:
            return self.bundle(method, given)
        if (method, path) == ("POST", "/api/2.2/jobs/run-now"):
            return self.start(given)
        if (method, path) == ("GET", "/api/2.2/jobs/runs/get"):
            return self.known(given["run_id"])
        if (method, path) == ("GET", "/api/2.2/jobs/runs/list"):
            return self.listed(given)
        if method == "GET" and path.startswith("/api/2.1/unity-catalog/models/"):
            return self.aliases(path.rpartition("/")[2])
        return None

    # --- bundles

    def bundle(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        """Ask for what is deployed, or deploy a folder."""
        if method == "GET":
            there = {"lineage": "of-this-rehearsal" if self.deployed else "", "wheels": self.wheels}
            return {"resources": self.deployed, "jobs": self.ids(), **there}
        if "wheels" in given:
            self.wheels = given["wheels"]
            return {}
        if self.active():
            raise Refused(409, "RESOURCE_CONFLICT", "the rehearsal deploys between runs")
        folder = Path(given["folder"])
        words = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        commit = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        self.deployed = given["resources"]
        for name in given["models"]:
            self.place.workspace.metastore.models.setdefault(name, Model(name, "deployer"))
        self.place.deploy(folder, commit)
        return {}

    def ids(self) -> dict[str, int]:
        """Job key to the id of the job."""
        keys = [name.split(".")[2] for name in self.deployed if name.startswith("resources.jobs.")]
        return {key: 1_000 + number for number, key in enumerate(sorted(keys))}

    # --- runs

    def active(self) -> list[int]:
        return [number for number, run in self.runs.items() if run["life_cycle_state"] == "RUNNING"]

    def start(self, given: dict[str, Any]) -> dict[str, Any]:
        if unknown := given.keys() - {"job_id", "job_parameters"}:
            raise invalid(f"unknown field {sorted(unknown)[0]}")
        keys = {number: key for key, number in self.ids().items()}
        if given["job_id"] not in keys:
            raise Refused(400, "INVALID_PARAMETER_VALUE", f"Job {given['job_id']} does not exist.")
        job = keys[given["job_id"]]
        names = {each.name for each in self.place.bundle.job(job).parameters}
        if unknown := (given.get("job_parameters") or {}).keys() - names:
            raise invalid(f"Job parameter {sorted(unknown)[0]} is not defined in the job")
        number = 1 + max(self.runs, default=0)
        self.runs[number] = {"job_id": given["job_id"], "life_cycle_state": "RUNNING"}
        work = threading.Thread(
            target=self.work, args=(number, job, given.get("job_parameters") or {})
        )
        self.threads[number] = work
        work.start()
        return {"run_id": number}

    def work(self, number: int, job: str, parameters: dict[str, str]) -> None:
        """Run a job to its end."""
        state, message = "FAILED", "the run could not begin"
        try:
            done = self.place.run(job, **parameters)
            state = done.state
            message = "; ".join(each.error for each in done.tasks if each.error)
        finally:
            ended = {"life_cycle_state": "TERMINATED", "result_state": state}
            self.runs[number] |= {**ended, "state_message": message}

    def known(self, text: str) -> dict[str, Any]:
        if int(text) not in self.runs:
            raise invalid(f"Run {text} does not exist.")
        self.threads[int(text)].join(0.5)  # whoever asks again and again may wait here
        run = self.runs[int(text)]
        state = {name: value for name, value in run.items() if name != "job_id"}
        page = f"https://workspace.example/jobs/{run['job_id']}/runs/{text}"
        return {"run_id": int(text), "run_page_url": page, "state": state}

    def listed(self, given: dict[str, str]) -> dict[str, Any]:
        found = [n for n in self.active() if self.runs[n]["job_id"] == int(given["job_id"])]
        return {"runs": [{"run_id": number} for number in found]} if found else {}

    def aliases(self, name: str) -> dict[str, Any]:
        model = self.place.workspace.metastore.models.get(name)
        if model is None:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Registered model {name} does not exist")
        pairs = model.aliases.items()
        return {
            "full_name": name,
            "aliases": [{"alias_name": alias, "version_num": number} for alias, number in pairs],
        }
