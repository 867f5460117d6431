"""The model server against `mlflow models serve`, on the same model and the same machine.

    python -m benchmarks.serving                # requests a second, p50 and p99, as ratios
    python -m benchmarks.serving --changes 20   # versions change under load: failed and mixed answers

Both servers run as one process with one OpenMP thread, enforce the model's signature and are asked by
the same client over kept-alive connections, one after the other. The answers are compared first.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mlflow
import numpy as np
import pandas as pd
import uvloop
from databricks.sdk import WorkspaceClient
from databricks.sdk.service.serving import EndpointCoreConfigInput, ServedEntityInput

from churn_lib import registry, settings
from churn_lib.features import FEATURES
from churn_lib.model import ChurnModel
from churn_lib.serving.local import process as server_process
from churn_lib.training import make_estimator, train

NAME = "benchmark"


def customers(count: int) -> pd.DataFrame:
    """Random customers."""
    values = np.random.default_rng(0).exponential(10, (count, len(FEATURES)))
    return pd.DataFrame(values, columns=FEATURES)


def body(rows: int) -> bytes:
    """A request about that many customers."""
    split = {"columns": FEATURES, "data": customers(rows).to_numpy().tolist()}
    return json.dumps({"dataframe_split": split}).encode()


def register(config: settings.Settings, seed: int) -> tuple[int, str]:
    """The default estimator as a new version, and the folder it is in."""
    models = registry.connect(config)
    X = customers(20_000)
    noise = np.random.default_rng(seed).normal(0, 5, len(X))
    y = (X.days_since_last_event + noise > 10).astype(int)
    model = ChurnModel(make_estimator("hist_gradient_boosting", seed)).fit(X, y)
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=train.SIGNATURE,
            input_example=X.head(3),
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
        )
    number = models.register(logged.model_uri, {})
    return number, mlflow.artifacts.download_artifacts(logged.model_uri)


# the client


@dataclass
class Tally:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)  # of each request
    answers: Counter[tuple[int, str, bytes]] = field(default_factory=Counter)


class Client(asyncio.Protocol):
    """One connection that asks, waits for the answer, and asks again."""

    def __init__(self, request: bytes, tally: Tally, deadline: float):
        self.request, self.tally, self.deadline = request, tally, deadline
        self.done = asyncio.get_running_loop().create_future()
        self.buffer, self.began = b"", 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.buffer, self.began = b"", time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, content = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(content) < int(fields[b"content-length"]):
            return
        self.tally.seconds.append(time.perf_counter() - self.began)
        entity = fields.get(b"served-model-name", b"").decode()
        self.tally.answers[int(head[9:12]), entity, content] += 1
        if time.perf_counter() < self.deadline:
            self._ask()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)
        if time.perf_counter() < self.deadline:
            self.tally.answers[0, "", b"connection lost"] += 1


def request_to(url: str, token: str, content: bytes) -> tuple[str, int, bytes]:
    """Host, port and the bytes of a POST."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    lines = [
        f"POST /{path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Authorization: Bearer {token}",
        f"Content-Length: {len(content)}",
    ]
    return name, int(port), "\r\n".join(lines).encode() + b"\r\n\r\n" + content


async def load(url: str, token: str, content: bytes, clients: int, seconds: float) -> Tally:
    """Ask from that many connections for that long."""
    host, port, request = request_to(url, token, content)
    tally, loop = Tally(), asyncio.get_running_loop()
    deadline = time.perf_counter() + seconds
    made = [
        await loop.create_connection(lambda: Client(request, tally, deadline), host, port)
        for _ in range(clients)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in made))
    return tally


def measure(url: str, token: str, rows: int, clients: int, seconds: float) -> dict[str, float]:
    """Requests a second and latencies after a short warm-up."""
    uvloop.run(load(url, token, body(rows), clients, min(1.0, seconds)))
    tally = uvloop.run(load(url, token, body(rows), clients, seconds))
    failed = sum(n for (status, _, _), n in tally.answers.items() if status != 200)
    if failed:
        raise SystemExit(f"{failed} requests to {url} failed")
    taken = np.array(tally.seconds) * 1000
    p50, p99 = np.quantile(taken, [0.5, 0.99])
    return {"per_second": len(taken) / seconds, "p50": float(p50), "p99": float(p99)}


# the servers


# What `mlflow models serve` runs, its application under uvicorn. MLflow 3.8 decorates with FastAPI's
# `route`, which the locked Starlette 1 has no more: it is put back here, as Starlette 0 had it.
_MLFLOW_SERVER = """
import sys
import fastapi, uvicorn

def route(self, path, methods=None):
    def add(function):
        self.router.add_route(path, function, methods=methods)
        return function
    return add

if not hasattr(fastapi.FastAPI, "route"):
    fastapi.FastAPI.route = route
uvicorn.run("mlflow.pyfunc.scoring_server.app:app", port=int(sys.argv[1]), log_level="warning")
"""


def start_mlflow(model: str) -> tuple[subprocess.Popen[bytes], str]:
    """MLflow's own server on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "__pyfunc_model_path__": model}
    command = [sys.executable, "-c", _MLFLOW_SERVER, str(port)]
    process = subprocess.Popen(command, start_new_session=True, env=environment, **quiet)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return process, f"{url}/invocations"
        except OSError:
            time.sleep(0.2)
    raise SystemExit("mlflow models serve did not start")


def start_ours(config: settings.Settings, version: int) -> tuple[WorkspaceClient, str]:
    """The model server with an endpoint at that version."""
    address = server_process.start(config, seconds=300)
    client = WorkspaceClient(
        host=address.url, token=server_process.token_of(config), auth_type="pat"
    )
    entity = ServedEntityInput(entity_name=config.model_name, entity_version=str(version))
    client.serving_endpoints.create_and_wait(
        NAME, config=EndpointCoreConfigInput(name=NAME, served_entities=[entity])
    )
    return client, f"{address.url}/serving-endpoints/{NAME}/invocations"


def ask_once(url: str, token: str, content: bytes) -> object:
    """One answer."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, content, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def compare(config: settings.Settings, seconds: float) -> None:
    """Both servers in turn, and the ratios."""
    version, model = register(config, 42)
    token = server_process.token_of(config)
    _, ours = start_ours(config, version)
    process, theirs = start_mlflow(model)
    try:
        for rows in (1, 100):
            if ask_once(ours, token, body(rows)) != ask_once(theirs, token, body(rows)):
                raise SystemExit("the servers answer differently")
        sys.stdout.write(
            "rows clients | requests/s: ours mlflow ratio | p99 ms: ours mlflow ratio\n"
        )
        for rows in (1, 100):
            for clients in (1, 8, 32):
                a = measure(ours, token, rows, clients, seconds)
                b = measure(theirs, token, rows, clients, seconds)
                sys.stdout.write(
                    f"{rows:4} {clients:7} | {a['per_second']:8.0f} {b['per_second']:7.0f} "
                    f"{a['per_second'] / b['per_second']:6.1f} | "
                    f"{a['p99']:8.2f} {b['p99']:7.2f} {a['p99'] / b['p99']:6.3f}\n"
                )
                sys.stdout.flush()
    finally:
        os.killpg(process.pid, signal.SIGTERM)


async def change_under_load(
    client: WorkspaceClient, config: settings.Settings, url: str, changes: int, seconds: float
) -> Tally:
    """Load from 32 clients while the endpoint goes from version to version."""
    token = server_process.token_of(config)

    def change() -> None:
        for number in range(changes):
            entity = ServedEntityInput(
                entity_name=config.model_name, entity_version=str(1 + (number + 1) % 2)
            )
            began = time.monotonic()
            client.serving_endpoints.update_config_and_wait(NAME, served_entities=[entity])
            time.sleep(max(0.0, began + seconds / (changes + 1) - time.monotonic()))

    asking = asyncio.create_task(load(url, token, body(1), 32, seconds))
    await asyncio.to_thread(change)
    return await asking


def changes(config: settings.Settings, count: int, seconds: float) -> None:
    """Failed and mixed answers while versions change."""
    for seed in (1, 2):
        register(config, seed)
    client, url = start_ours(config, 1)
    tally = uvloop.run(change_under_load(client, config, url, count, seconds))
    models = registry.connect(config)
    right = {
        f"{config.model_name}-{number}": models.load(number).predict(customers(1)).tolist()
        for number in (1, 2)
    }
    failed = mixed = 0
    for (status, entity, content), times in tally.answers.items():
        if status != 200:
            failed += times
        elif json.loads(content)["predictions"] != right[entity]:
            mixed += times
    total = sum(tally.answers.values())
    p50, p99 = np.quantile(np.array(tally.seconds) * 1000, [0.5, 0.99])
    sys.stdout.write(
        f"{count} changes, {total} answers by {len(right)} versions: {failed} failed, {mixed} mixed; "
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms\n"
    )
    if failed or mixed:
        raise SystemExit(1)


def main() -> None:
    """Run what was asked for in a store of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, help="of each measurement: 5, and 60 with --changes"
    )
    parser.add_argument("--changes", type=int, default=0, help="change versions this often instead")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = settings.load("local").model_copy(update={"store": Path(folder)})
        try:
            if given.changes:
                changes(config, given.changes, given.seconds or 60)
            else:
                compare(config, given.seconds or 5)
        finally:
            server_process.stop(config)


if __name__ == "__main__":
    main()
