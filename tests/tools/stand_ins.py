"""A workspace on loopback that answers as the real one does, and the `databricks` command for it.

The command is no mock: it asks the workspace over HTTP, prints and exits as the Databricks CLI 1.7 does
(tried beside it), and knows nothing but what the scripts of this project call.
"""

import json
import stat
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "of-this-test"

COMMAND = '''
"""databricks bundle run, deployment bind, validate | jobs get-run | registered-models get, as 1.7 does them."""
import json, os, sys, urllib.error, urllib.request

def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": "Bearer " + os.environ["DATABRICKS_TOKEN"]}
    headers["Content-Type"] = "application/json"
    request = urllib.request.Request(os.environ["DATABRICKS_HOST"] + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        sys.exit("Error: " + json.load(error)["message"])

def variable(name, default=""):
    value = os.environ.get("BUNDLE_VAR_" + name, default)
    if not value:
        sys.exit("Error: no value assigned to required variable " + name)
    return value

def of_the_bundle(words):
    import yaml
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.errors import DatabricksError, NotFound
    if not os.path.isdir("dist") or not any(name.endswith(".whl") for name in os.listdir("dist")):
        sys.exit("Error: dist/*.whl: no matching files")
    target = words[words.index("--target") + 1]
    for name in ("notification_address", "service_principal", "warehouse_id", "key_vault_dns_name", "key_vault_resource_id"):
        variable(name)
    root = variable("root_path", "/Workspace/Bundles/churn-prediction/" + target)
    try:
        client = WorkspaceClient()
        if words[1] == "deployment":
            assert words[2:4] == ["bind", "key_vault"] and words[-1] == "--auto-approve", words
            bound = os.path.join(os.path.dirname(os.path.abspath(__file__)), target + ".bound")
            if os.path.exists(bound):
                print("Error: Resource already managed\\n\\nThe bundle is already managing resource for "
                      "resources.secret_scopes.key_vault and it is bound to the requested ID "
                      + open(bound).read() + ".", file=sys.stderr)
                sys.exit(1)
            client.workspace.mkdirs(root + "/state")
            open(bound, "w").write(words[4])
            return
        # files: the folder is made; permissions: the closest folder has none that the bundle does not have
        try:
            client.workspace.get_status(root + "/files")
        except NotFound:
            client.workspace.mkdirs(root + "/files")
        number = client.workspace.get_status(root).object_id
        mine = {}
        for entry in yaml.safe_load(open("databricks.yml"))["targets"][target]["permissions"]:
            name = entry.get("service_principal_name") or entry["group_name"]
            mine[variable(name.removeprefix("${var.").rstrip("}"))] = entry["level"].replace("VIEW", "READ")
        for entry in client.workspace.get_permissions("directories", str(number)).access_control_list:
            name = entry.group_name or entry.user_name or entry.service_principal_name
            levels = [each.permission_level.value for each in entry.all_permissions]
            if name != "admins" and not set(levels) <= {mine.get(name), "CAN_READ" if mine.get(name) else ""}:
                sys.exit("Warning: workspace folder has permissions not configured in bundle: " + name
                         + "\\nError: 1 warning was found. Warnings are not allowed in strict mode")
    except (DatabricksError, ValueError) as error:
        sys.exit("Error: " + " ".join(str(error).split()))

def main(words):
    if words[:2] == ["jobs", "get-run"]:
        print(json.dumps(ask("GET", "/api/2.2/jobs/runs/get?run_id=" + words[2]), indent=2))
        return
    if words[:2] == ["registered-models", "get"]:
        print(json.dumps(ask("GET", "/api/2.1/unity-catalog/models/" + words[2] + "?include_aliases=true")))
        return
    if words[:2] in (["bundle", "deployment"], ["bundle", "validate"]):
        return of_the_bundle(words)
    assert words[:2] == ["bundle", "run"], words
    job, end = words[2], words.index("--")
    assert words[3:end] == ["--target", words[4]] and "--params" not in words, words
    pairs = [word[2:].split("=", 1) for word in words[end + 1:] if word.startswith("--")]
    assert len(pairs) == len(words) - end - 1, words
    print("Warning: see https://docs.example/permissions", file=sys.stderr)
    started = ask("POST", "/api/2.2/jobs/run-now", {"job_id": job, "job_parameters": dict(pairs)})
    path = "/api/2.2/jobs/runs/get?run_id=" + str(started["run_id"])
    shown = False
    while True:
        run = ask("GET", path)
        if not shown:
            print("Run URL: " + run["run_page_url"] + "\\n", file=sys.stderr)
            shown = True
        state = run["state"]
        if state["life_cycle_state"] == "INTERNAL_ERROR":
            sys.exit("Error: failed to reach TERMINATED or SKIPPED, got INTERNAL_ERROR")
        if state["life_cycle_state"] == "SKIPPED":
            sys.exit("Error: run skipped")
        if state["life_cycle_state"] == "TERMINATED":
            break
    if state.get("result_state") in ("CANCELED", "FAILED", "TIMEDOUT"):
        sys.exit("Error: run " + state["result_state"])

main(sys.argv[1:])
'''


def command(folder: Path, name: str, source: str = COMMAND) -> Path:
    """A command of that name in a folder, written in Python."""
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(source).lstrip()}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Refused(Exception):
    """What the workspace says no to: status, error code and message."""


class Workspace:
    """The state behind the server; subclasses add routes."""

    def __init__(self) -> None:
        self.url = ""
        self.headers: dict[str, str] = {}  # of each answer
        self.asked: list[tuple[str, str, Any]] = []
        self.fail_once: set[str] = set()  # beginnings of "METHOD /path" that answer 500 one time
        self.ends: list[dict[str, str]] = []  # states that a run goes through, one a question
        self.aliases: list[dict[str, Any]] = []

    def answer_to(self, who: str, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """The answer to somebody's question; here everybody gets the same."""
        return self.answer(method, path, query, body)

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """The answer to one question; raises `Refused`."""
        if (method, path) == ("POST", "/api/2.2/jobs/run-now"):
            return {"run_id": 88}
        if (method, path) == ("GET", "/api/2.2/jobs/runs/get"):
            state = self.ends.pop(0) if len(self.ends) > 1 else self.ends[0]
            page = f"{self.url}/jobs/7/runs/{query['run_id']}?o=900800700"
            return {"run_id": 88, "run_page_url": page, "state": state}
        if method == "GET" and path.startswith("/api/2.1/unity-catalog/models/"):
            return {"full_name": path.rpartition("/")[2], "aliases": self.aliases}
        raise Refused(404, "ENDPOINT_NOT_FOUND", f"no such thing: {method} {path}")

    def fails(self, question: str) -> bool:
        """Whether a question, "METHOD /path", gets a 500 this time."""
        mine = next((each for each in self.fail_once if question.startswith(each)), None)
        self.fail_once.discard(mine or "")
        return mine is not None

    def who(self, path: str, authorization: str) -> str | None:
        """Whose request it is; None when it is not to be answered."""
        return "admin@example.org" if authorization == f"Bearer {TOKEN}" else None


class _Handler(BaseHTTPRequestHandler):
    workspace: Workspace

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def _handle(self) -> None:
        split = urlsplit(self.path)
        text = self._body().decode()
        form = "x-www-form-urlencoded" in (self.headers.get("Content-Type") or "")
        body: Any = _flat(text) if form else json.loads(text) if text else None
        code, answer = 200, None
        try:
            self.workspace.asked.append((self.command, split.path, body))
            who = self.workspace.who(split.path, self.headers.get("Authorization") or "")
            if who is None:
                raise Refused(401, "UNAUTHENTICATED", "Credential was not sent or is not accepted")
            mine = f"{self.command} {split.path}"
            if self.workspace.fails(mine):
                raise Refused(500, "INTERNAL_ERROR", "once")
            answer = self.workspace.answer_to(
                who, self.command, split.path, _flat(split.query), body
            )
        except Refused as error:
            code, error_code, message = error.args
            answer = {"error_code": error_code, "message": message}
            if split.path.startswith("/oidc/"):
                answer = {"error": error_code, "error_description": message}
        content = json.dumps(answer if answer is not None else {}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in self.workspace.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def log_message(self, *arguments: Any) -> None:
        pass


def _flat(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


@contextmanager
def serving(workspace: Workspace) -> Iterator[Workspace]:
    """The workspace behind a server of loopback."""
    handler = type("Handler", (_Handler,), {"workspace": workspace})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    workspace.url = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield workspace
    finally:
        server.shutdown()
        server.server_close()
