"""The `databricks` command of the rehearsal: what cd.yml and tools/ call of it, over HTTP, as the CLI 1.7 does it.

`bundle validate | plan | deploy | run | summary`, `workspace import-dir`, `jobs get-run | list-runs`,
`registered-models get`. The state of a bundle, which the CLI keeps in the workspace's files, is with the
stand-in; a deployment of a plan is refused when it is no longer what deploying would do.
"""

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

BUNDLES = "/stand-in/bundles"
ARTIFACTS = "/Workspace/Bundles/churn-prediction/{}/artifacts/.internal"


def ask(method: str, path: str, body: Any = None) -> Any:
    """The workspace's answer; what it refuses ends the command."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(os.environ["DATABRICKS_HOST"] + path, data, method=method)
    request.add_header("Authorization", "Bearer " + os.environ["DATABRICKS_TOKEN"])
    request.add_header("Content-Type", "application/json")
    for attempt in range(3):  # the CLI asks again when too much has come at once, as its SDK does
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 429 or attempt == 2:
                sys.exit("Error: " + json.load(error)["message"])
    raise AssertionError


def option(words: list[str], name: str) -> str:
    """The value of an option."""
    return words[words.index(name) + 1] if name in words else ""


def resources(folder: Path, target: str) -> dict[str, str]:
    """Each resource that a bundle has for a target, and a digest of it."""
    from churn_lib import bundle

    found = {}
    for kind, bodies in bundle.load(target, folder).config["resources"].items():
        for key, body in (bodies or {}).items():
            text = json.dumps(body, sort_keys=True, default=str).replace(str(folder), "")
            found[f"resources.{kind}.{key}"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def models(folder: Path, target: str) -> list[str]:
    """The registered models of a bundle, by their full names."""
    from churn_lib import bundle

    bodies = bundle.load(target, folder).config["resources"].get("registered_models") or {}
    return [
        f"{each['catalog_name']}.{each['schema_name']}.{each['name']}" for each in bodies.values()
    ]


def wheels() -> list[str]:
    """What is in dist/."""
    return sorted(path.name for path in Path("dist").glob("*.whl"))


def planned(target: str) -> dict[str, Any]:
    """What a deployment would do."""
    wanted, there = resources(Path.cwd(), target), ask("GET", BUNDLES)
    before, entries = there["resources"], {}
    for name in sorted(wanted.keys() | before.keys()):
        action = "skip" if wanted.get(name) == before.get(name) else "update"
        action = "create" if name not in before else "delete" if name not in wanted else action
        entries[name] = {"action": action}
        if name.startswith("resources.jobs."):
            libraries = [{"whl": f"{ARTIFACTS.format(target)}/{each}"} for each in wheels()]
            entries[name]["new_state"] = {"value": {"tasks": [{"libraries": libraries}]}}
    known = {"lineage": there["lineage"]} if there["lineage"] else {}
    return {"plan_version": 2, "cli_version": "1.7.0", **known, "plan": entries}


def deploy(words: list[str]) -> None:
    """Run the script before a deployment, and deploy what a plan says, or what there is."""
    from churn_lib import bundle

    target = option(words, "--target")
    scripts = bundle.load(target, Path.cwd()).config["experimental"]["scripts"]
    if subprocess.run(["bash", "-c", scripts["predeploy"]], check=False).returncode:
        sys.exit("Error: script predeploy failed")
    if file := option(words, "--plan"):
        now = planned(target)
        if json.loads(Path(file).read_text()) != now:
            sys.exit("Error: the plan is stale: the state has changed since it was made")
        missing = {*wheels()} - {*ask("GET", BUNDLES)["wheels"]}
        if missing:  # a deployment of a plan uploads none
            sys.exit(f"Error: {missing.pop()} is not in the workspace")
    there = {"resources": resources(Path.cwd(), target), "models": models(Path.cwd(), target)}
    ask("POST", BUNDLES, {"folder": str(Path.cwd()), **there})


def run(words: list[str]) -> None:
    """Start a job and wait for its end."""
    job, end = words[2], words.index("--")
    pairs = [word[2:].split("=", 1) for word in words[end + 1 :]]
    known = ask("GET", BUNDLES)["jobs"]
    if job not in known:
        sys.exit(f"Error: {job} is not deployed")
    body = {"job_id": known[job], "job_parameters": dict(pairs)}
    number = ask("POST", "/api/2.2/jobs/run-now", body)["run_id"]
    page = ask("GET", f"/api/2.2/jobs/runs/get?run_id={number}")["run_page_url"]
    sys.stderr.write(f"Run URL: {page}\n\n")
    while True:
        state = ask("GET", f"/api/2.2/jobs/runs/get?run_id={number}")["state"]
        if state["life_cycle_state"] != "RUNNING":
            break
    if state["result_state"] in ("CANCELED", "FAILED", "TIMEDOUT"):
        sys.exit("Error: run " + state["result_state"])


def main(words: list[str]) -> None:
    """Do what the words say."""
    match words[:2]:
        case ["bundle", "validate"]:
            planned(option(words, "--target"))
        case ["bundle", "plan"]:
            json.dump(planned(option(words, "--target")), sys.stdout)
        case ["bundle", "deploy"]:
            deploy(words)
        case ["bundle", "run"]:
            run(words)
        case ["bundle", "summary"]:
            jobs = {key: {"id": str(number)} for key, number in ask("GET", BUNDLES)["jobs"].items()}
            json.dump({"resources": {"jobs": jobs}}, sys.stdout)
        case ["workspace", "import-dir"]:
            assert words[2] == "dist" and words[3].endswith("/artifacts/.internal"), words
            ask("POST", BUNDLES, {"wheels": wheels()})
        case ["jobs", "get-run"]:
            json.dump(ask("GET", f"/api/2.2/jobs/runs/get?run_id={words[2]}"), sys.stdout)
        case ["jobs", "list-runs"]:
            asked = urlencode({"job_id": option(words, "--job-id"), "active_only": "true"})
            found = ask("GET", f"/api/2.2/jobs/runs/list?{asked}")
            json.dump(found.get("runs", []), sys.stdout)
        case ["registered-models", "get"]:
            path = f"/api/2.1/unity-catalog/models/{words[2]}?include_aliases=true"
            json.dump(ask("GET", path), sys.stdout)
        case _:
            sys.exit(f"Error: unknown command {' '.join(words)}")


if __name__ == "__main__":
    main(sys.argv[1:])
