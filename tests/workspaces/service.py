"""A workspace: its address, its tracking server, and the way to its metastore."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import mlflow
from mlflow.utils import rest_utils
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from tests.workspaces.metastore import FILES, FOLDERS, PREFIX, Metastore, Refused

MLFLOW = "/api/2.0/mlflow/"
Hook = Callable[[str, str, dict[str, Any]], None]  # of method, path and what was given
# answers what it knows; None: it is somebody else's
Api = Callable[[str, str, dict[str, Any]], dict[str, Any] | None]


@retry(
    retry=retry_if_exception_type((urllib.error.URLError, OSError)),
    wait=wait_fixed(0.1),
    stop=stop_after_delay(120),
    reraise=True,
)
def _answers(address: str) -> None:
    urllib.request.urlopen(f"{address}/health", timeout=5).close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Workspace:
    """One workspace; `start` and `stop` it, or use `two_workspaces`."""

    def __init__(self, name: str, folder: Path, metastore: Metastore):
        self.name, self.folder, self.metastore = name, folder, metastore
        self.id = str(7_000_000_000_000_000 + sum(map(ord, name)))
        self.token, self.user = f"token-of-{name}", f"pipeline-{name}@example.org"
        self.before: list[Hook] = []  # may raise `Refused`, or end a client
        self.after: list[Hook] = []  # the request has been done, its answer is not sent
        self.apis: list[Api] = []  # endpoints, jobs, ...: asked before the rest
        self.requests: list[tuple[str, str]] = []  # method and path of all that came

    # --- life

    def start(self) -> None:
        """Open the address and start the tracking server; `ready` waits for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        store = ["--backend-store-uri", f"sqlite:///{self.folder / 'tracking.db'}"]
        files = ["--default-artifact-root", str(self.folder / "artifacts"), "--no-serve-artifacts"]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "DATABRICKS_"))}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *files, *where],
                stdout=log,
                stderr=log,
                env={**kept, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def ready(self) -> None:
        """Wait until the tracking server answers."""
        _answers(f"http://127.0.0.1:{self.port}")

    def stop(self) -> None:
        """End the tracking server and close the address."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    # --- use

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def environment(self) -> dict[str, str]:
        """What a process has in its environment that is signed in here."""
        return {
            "DATABRICKS_HOST": self.address,
            "DATABRICKS_TOKEN": self.token,
            "MLFLOW_TRACKING_URI": "databricks",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }

    @contextmanager
    def signed_in(self) -> Iterator["Workspace"]:
        """This process works in this workspace until the end of the block."""
        own = self.environment()
        before = {name: os.environ.get(name) for name in own}
        addresses = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
        os.environ.update(own)
        rest_utils.get_workspace_client.cache_clear()  # it remembers the other workspace
        mlflow.set_tracking_uri("databricks")
        mlflow.set_registry_uri("databricks-uc")
        os.environ.pop("MLFLOW_REGISTRY_URI", None)  # MLflow's own note for its children
        try:
            yield self
        finally:
            mlflow.set_tracking_uri(addresses[0])
            mlflow.set_registry_uri(addresses[1])
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            rest_utils.get_workspace_client.cache_clear()

    # --- answers

    def tracking(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """What this workspace's own tracking server says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def knows(self, model_id: str) -> bool:
        """Whether a logged model belongs to this workspace."""
        return self.tracking("GET", f"{MLFLOW}logged-models/{model_id}", b"")[0] == 200

    def answer(
        self, method: str, path: str, query: str, given: dict[str, Any], body: bytes
    ) -> tuple[int, bytes]:
        """Status and content of the answer to a request; raises `Refused`."""
        for api in self.apis:
            if (found := api(method, path, given)) is not None:
                return 200, json.dumps(found).encode()
        if path.startswith(PREFIX + "/"):
            here = (self.user, self.id, self.knows)
            return 200, self.metastore.answer(method, path, given, *here).encode()
        if path.startswith((FILES, FOLDERS)):
            return self._files(method, path, given, body)
        if path == "/api/2.0/preview/scim/v2/Me" and method == "GET":
            return 200, json.dumps({"userName": self.user}).encode()
        of_registry = path.startswith((f"{MLFLOW}registered-models", f"{MLFLOW}model-versions"))
        if path.startswith((MLFLOW, "/api/3.0/mlflow/")) and not of_registry:
            if path.endswith("experiments/create") and not given.get("name", "").startswith("/"):
                raise Refused(400, "INVALID_PARAMETER_VALUE", "a name begins with / in a workspace")
            return self.tracking(method, f"{path}?{query}" if query else path, body)
        raise Refused(404, "ENDPOINT_NOT_FOUND", f"No API found for '{method} {path}'")

    def _files(
        self, method: str, path: str, given: dict[str, Any], body: bytes
    ) -> tuple[int, bytes]:
        known = {("PUT", FILES): {"overwrite"}, ("GET", FOLDERS): {"page_size", "page_token"}}
        prefix = FILES if path.startswith(FILES) else FOLDERS
        if unknown := sorted(given.keys() - known.get((method, prefix), set())):
            raise Refused(400, "INVALID_PARAMETER_VALUE", f"unknown field {unknown[0]}")
        rest = path.removeprefix(prefix)
        match method, prefix:
            case "PUT", str(where) if where == FILES:
                self.metastore.upload(rest, body, given.get("overwrite") == "true")
                return 204, b""
            case "GET" | "HEAD", str(where) if where == FILES:
                return 200, self.metastore.download(rest)
            case "GET", str(where) if where == FOLDERS:
                return 200, json.dumps({"contents": self.metastore.listed(rest)}).encode()
            case "HEAD", str(where) if where == FOLDERS:
                self.metastore.listed(rest)
                return 200, b""
        raise Refused(404, "ENDPOINT_NOT_FOUND", f"No API found for '{method} {path}'")


def _handler(workspace: Workspace) -> type[BaseHTTPRequestHandler]:
    class Answers(BaseHTTPRequestHandler):
        def do(self) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path)
            body = self._body()
            workspace.requests.append((self.command, path))
            try:
                if self.headers.get("Authorization") != f"Bearer {workspace.token}":
                    raise Refused(401, "UNAUTHENTICATED", "no token of this workspace")
                given = self._given(address.query, path, body)
                for hook in list(workspace.before):
                    hook(self.command, path, given)
                status, content = workspace.answer(self.command, path, address.query, given, body)
                for hook in list(workspace.after):
                    hook(self.command, path, given)
            except Refused as error:
                message = {"error_code": error.error_code, "message": str(error)}
                status, content = error.status, json.dumps(message).encode()
            self._send(status, content, path)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                content = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        @staticmethod
        def _given(query: str, path: str, body: bytes) -> dict[str, Any]:
            asked: dict[str, Any] = dict(parse_qsl(query))
            if not body or path.startswith("/api/2.0/fs/"):
                return asked
            try:
                return {**asked, **json.loads(body)}
            except ValueError:
                raise Refused(400, "MALFORMED_REQUEST", "the body is no JSON object") from None

        def _send(self, status: int, content: bytes, path: str) -> None:
            self.send_response(status)
            raw = path.startswith(FILES) and status == 200
            kind = "application/octet-stream" if raw else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("x-databricks-org-id", workspace.id)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = do_HEAD = do

        def log_message(self, *arguments: Any) -> None:
            pass

    return Answers


class Limits:
    """A hook that refuses each request of so many, as a workspace does when too much comes at once."""

    def __init__(self, each: int):
        self.each, self.count, self.refused = each, 0, 0

    def __call__(self, method: str, path: str, given: dict[str, Any]) -> None:
        self.count += 1
        if self.count % self.each == 0:
            self.refused += 1
            raise Refused(429, "REQUEST_LIMIT_EXCEEDED", "too many requests, try again")


@contextmanager
def two_workspaces(
    folder: Path, names: tuple[str, str] = ("staging", "production")
) -> Iterator[tuple[Workspace, Workspace]]:
    """Two workspaces that share a metastore, running until the end of the block."""
    metastore = Metastore(folder / "metastore")
    first, second = (Workspace(name, folder / name, metastore) for name in names)
    with ExitStack() as stack:
        for each in (first, second):
            each.start()
            stack.callback(each.stop)
        for each in (first, second):
            each.ready()
        yield first, second
