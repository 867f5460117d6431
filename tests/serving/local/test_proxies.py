"""A proxy in the environment is for other machines: what is meant for this one goes to it directly."""

import contextlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from databricks.sdk import WorkspaceClient

from churn_lib import job_context, registry
from churn_lib.job_context import bypass_proxies
from churn_lib.registry.models import StoreError
from churn_lib.serving import deploy
from churn_lib.serving.local import process
from tests.serving import serving_store

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
NOWHERE = "http://127.0.0.1:9"


class Recorder(ThreadingHTTPServer):
    """Answers every request with 404 and keeps what it was asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        self.send_response(404)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, *(name.upper() for name in NAMES)):
        monkeypatch.setenv(name, "")  # so that it is not there afterwards either
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", [*NAMES[:3], *(name.upper() for name in NAMES[:3])])
@pytest.mark.parametrize("direct", [None, "", "example.org, .internal"])
def test_requests_to_this_machine_go_directly_and_others_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str, direct: str | None
) -> None:
    monkeypatch.setenv(name, NOWHERE)
    if direct is not None:
        monkeypatch.setenv("NO_PROXY", direct)
    assert bypass_proxies(os.environ, "192.0.2.7")
    for host in (
        "127.0.0.1",
        "localhost",
        "[::1]",
        "192.0.2.7",
        *(["example.org"] if direct else []),
    ):
        assert requests.utils.get_environ_proxies(f"http://{host}:8080/x") == {}
    scheme = name.lower().removesuffix("_proxy")
    for url in ("http://adb-1.azuredatabricks.net", "https://192.0.2.8/x"):
        assert requests.utils.get_environ_proxies(url)[scheme] == NOWHERE
    before = dict(os.environ)
    bypass_proxies(os.environ, "192.0.2.7")
    assert dict(os.environ) == before


def test_what_goes_to_no_proxy_at_all_stays_so() -> None:
    everything = {"HTTP_PROXY": NOWHERE, "no_proxy": "*"}
    bypass_proxies(everything)
    assert everything == {"HTTP_PROXY": NOWHERE, "no_proxy": "*", "NO_PROXY": "*"}


def test_without_a_proxy_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, str] = {"NO_PROXY": "example.org"}
    assert not bypass_proxies(nothing)
    assert nothing == {"NO_PROXY": "example.org"}
    assert not {"no_proxy", "NO_PROXY"} & job_context.job_environment().keys()


def test_a_remote_host_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorder() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        for name, value in job_context.job_environment().items():
            monkeypatch.setenv(name, value)
        requests.get("http://workspace.example/api", timeout=10)
        assert proxy.seen == ["http://workspace.example/api"]


def test_a_server_of_mlflow_on_this_machine_is_asked_directly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = serving_store.settings_in(tmp_path)
    with recorder() as proxy, recorder() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(StoreError, match="has failed by itself"):
            registry.connect(config)
        assert server.seen and not proxy.seen


def test_the_model_server_is_asked_directly_wherever_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = serving_store.settings_in(tmp_path)
    with recorder() as proxy, serving_store.ended(config):
        for name in NAMES[:3]:
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.upper(), proxy.url)
        client = deploy.connect(config)
        assert isinstance(client, WorkspaceClient)
        assert list(client.serving_endpoints.list()) == []
        address = process.running(config)
        assert address is not None
        host = "127.0.0.2"  # a name of this machine that NO_PROXY does not have
        elsewhere = process.Address(host, address.port, address.pid, address.store)
        assert process.health(elsewhere) is None  # nobody listens there
        assert not proxy.seen
