"""The local model server as its clients see it: over HTTP, with real models, under load and after a crash."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from databricks.sdk import WorkspaceClient, errors
from databricks.sdk.errors import BadRequest, NotFound, ResourceConflict
from databricks.sdk.service.serving import (
    AiGatewayConfig,
    AiGatewayInferenceTableConfig,
    AiGatewayRateLimit,
    AiGatewayRateLimitKey,
    AiGatewayRateLimitRenewalPeriod,
    EndpointCoreConfigInput,
    EndpointStateConfigUpdate,
    EndpointStateReady,
    EndpointTag,
    ServedEntityInput,
)
from mlflow.pyfunc import scoring_server

from churn_lib import registry, tables
from churn_lib.features import FEATURES
from churn_lib.serving.local import process as server_process
from churn_lib.settings import Settings
from tests.serving import serving_store

NAME = "churn"
CHURN = Path(sys.executable).parent / "churn"


def entity(version: int, **more: object) -> ServedEntityInput:
    return ServedEntityInput.from_dict(
        {"entity_name": "churn-prediction-gbm", "entity_version": str(version), **more}
    )


def connect(config: Settings) -> WorkspaceClient:
    address = server_process.start(config)
    return WorkspaceClient(host=address.url, token=server_process.token_of(config), auth_type="pat")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    config = serving_store.make(tmp_path_factory.mktemp("served"))
    with serving_store.ended(config):
        yield config


@pytest.fixture
def workspace(store: Settings) -> WorkspaceClient:
    """A client, and the endpoint at version 1 with an inference table."""
    client = connect(store)
    try:
        client.serving_endpoints.get(NAME)
        client.serving_endpoints.update_config_and_wait(NAME, served_entities=[entity(1)])
    except NotFound:
        kept = AiGatewayInferenceTableConfig(
            catalog_name=store.catalog, schema_name="gold", table_name_prefix="asked", enabled=True
        )
        client.serving_endpoints.create_and_wait(
            NAME,
            config=EndpointCoreConfigInput(name=NAME, served_entities=[entity(1)]),
            ai_gateway=AiGatewayConfig(inference_table_config=kept),
        )
    return client


def post(client: WorkspaceClient, body: object, **headers: str) -> requests.Response:
    token = {"Authorization": f"Bearer {client.config.token}", "Content-Type": "application/json"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{client.config.host}/serving-endpoints/{NAME}/invocations"
    return requests.post(url, data=data, headers={**token, **headers}, timeout=60)


def metrics(client: WorkspaceClient) -> str:
    token = {"Authorization": f"Bearer {client.config.token}"}
    return requests.get(f"{client.config.host}/metrics", headers=token, timeout=60).text


def split(rows: int = 3) -> dict:
    data = serving_store.feature_rows(rows, seed=3)
    return {"dataframe_split": {"columns": FEATURES, "data": data.to_numpy().tolist()}}


def expected(store: Settings, version: int, rows: int = 3) -> list[float]:
    models = registry.connect(store)
    return models.load(version).predict(serving_store.feature_rows(rows, seed=3)).tolist()


def test_the_sdk_creates_updates_gets_queries_and_deletes(workspace: WorkspaceClient) -> None:
    api = workspace.serving_endpoints
    made = api.create_and_wait(
        "other", config=EndpointCoreConfigInput(name="other", served_entities=[entity(1)])
    )
    assert made.state.ready is EndpointStateReady.READY
    updated = api.update_config_and_wait("other", served_entities=[entity(2, name="second")])
    assert [each.name for each in updated.config.served_entities] == ["second"]
    records = serving_store.feature_rows(2).to_dict("records")
    answer = api.query("other", dataframe_records=records, client_request_id="mine")
    assert len(answer.predictions) == 2
    assert answer.served_model_name == "second"
    assert "loaded after" in api.build_logs("other", "second").logs
    assert {each.name for each in api.list()} == {NAME, "other"}
    api.patch("other", add_tags=[EndpointTag("team", "growth"), EndpointTag("old", "1")])
    api.patch("other", add_tags=[EndpointTag("team", "sales")], delete_tags=["old"])
    assert api.get("other").tags == [EndpointTag("team", "sales")]
    with pytest.raises(errors.NotImplemented, match="one user with one token"):
        api.get_permissions("other")
    api.delete("other")
    with pytest.raises(NotFound, match="'other' does not exist"):
        api.get("other")


def with_more_columns(frame: pd.DataFrame) -> list[dict]:
    """Requests with columns that the model does not have, whatever is in them."""
    more = frame.assign(age=3.5, city="Bonn", note=None, tags=[["a", {"b": 1}]] * len(frame))
    more = more[["age", *more.columns.drop("age")]]
    records = [{**row, "tags": ["a"]} for row in frame.assign(age=3, city=True).to_dict("records")]
    return [
        {"dataframe_split": {"columns": list(more), "data": more.to_numpy(object).tolist()}},
        {"dataframe_records": more.to_dict("records")},
        {"dataframe_records": records},
        {"instances": records},
        {"inputs": frame.assign(age=3).to_dict("list")},
    ]


def test_answers_equal_those_of_mlflows_own_server(
    workspace: WorkspaceClient, store: Settings
) -> None:
    models = registry.connect(store)
    model = models.load(1)
    rng = np.random.default_rng(1)
    for count in (1, 7, 300):
        frame = serving_store.feature_rows(count, seed=count)
        shuffled = frame[rng.permutation(FEATURES)]
        whole = frame.round().astype(int)
        bodies = [
            {"dataframe_split": {"columns": list(shuffled), "data": shuffled.to_numpy().tolist()}},
            {"dataframe_records": frame.to_dict("records")},
            {"dataframe_records": whole.to_dict("records")},
            {"instances": shuffled.to_dict("records")},
            {"inputs": frame.to_dict("list")},
            {"inputs": frame.to_dict("records"), "params": None},
            {"inputs": frame.iloc[0].to_dict()},
            {"inputs": {**frame.to_dict("list"), FEATURES[0]: 3}},
            *with_more_columns(shuffled),
        ]
        for body in bodies:
            theirs = scoring_server.invocations(
                json.dumps(body), "application/json", model, model.metadata.get_input_schema()
            )
            ours = post(workspace, body)
            assert ours.json() == json.loads(theirs.response)


GOOD = serving_store.feature_rows(1, seed=3).iloc[0].to_dict()
FIRST = FEATURES[0]


def changed(**changes: object) -> dict:
    return {"dataframe_records": [GOOD, {**GOOD, **changes}]}


def raw(value: str) -> bytes:
    """Two rows, the second with `value` as it stands in its first column."""
    rest = ", ".join(["1"] * (len(FEATURES) - 1))
    columns = json.dumps(FEATURES)
    text = (
        f'{{"dataframe_split": {{"columns": {columns}, "data": [[{rest}, 1], [{value}, {rest}]]}}}}'
    )
    return text.encode()


LACKING = {name: value for name, value in GOOD.items() if name != FIRST}
MALFORMED: list[tuple[object, str]] = [
    (b"", "the body is empty"),
    (b"{", "the body is not JSON"),
    (b"\xff\xfe\xfa", "the body is not JSON"),
    (json.dumps({"inputs": GOOD}).encode("utf-16"), "the body is not JSON: 'utf-8' codec"),
    (b'{"inputs": {}, "inputs": {}}', 'key "inputs" is a duplicate in its object'),
    (raw("[" * 100 + "]" * 100), f"row 1, column {FIRST}: [[["),
    (b"[" * 100_000, "nested too deeply"),
    (raw("9" * 5_000), "the body is not JSON"),
    ([GOOD], "the body is not an object"),
    ({}, "it has none"),
    ({"dataframe_records": [GOOD], "inputs": [GOOD]}, "it has dataframe_records and inputs"),
    ({"records": [GOOD]}, 'field "records" is none of'),
    ({"dataframe_records": []}, "has no rows"),
    ({"dataframe_records": GOOD}, "is not a list of rows"),
    ({"dataframe_records": [GOOD, 3]}, "row 1: 3 is not an object"),
    ({"dataframe_records": [GOOD, LACKING]}, f"row 1: column {FIRST} is missing"),
    (changed(**{FIRST: None}), f"row 1, column {FIRST}: null; a number is needed"),
    (changed(**{FIRST: "3"}), f'row 1, column {FIRST}: "3"; a number is needed'),
    (changed(**{FIRST: True}), f"row 1, column {FIRST}: true; a number is needed"),
    (changed(**{FIRST: [3]}), f"row 1, column {FIRST}: [3]; a number is needed"),
    (raw("NaN"), f"row 1, column {FIRST}: NaN; a finite number is needed"),
    (raw("-Infinity"), f"row 1, column {FIRST}: -Infinity; a finite number"),
    (raw("1e999"), f"row 1, column {FIRST}: Infinity; a finite number"),
    (raw("1" + "0" * 400), f"row 1, column {FIRST}: 1000"),
    ({"dataframe_split": [GOOD]}, "is not an object with columns and data"),
    ({"dataframe_split": {"data": [[1] * len(FEATURES)]}}, "columns is missing"),
    ({"dataframe_split": {"columns": FEATURES}}, "data is missing"),
    (
        {"dataframe_split": {"columns": FEATURES, "data": [[1] * 9]}},
        f"row 0 has 9 values for {len(FEATURES)}",
    ),
    ({"dataframe_split": {"columns": FEATURES, "data": [3]}}, "row 0: 3 is not a list of values"),
    (
        {"dataframe_split": {"columns": [*FEATURES, FIRST], "data": [[1] * 11]}},
        f"column {FIRST} is a duplicate",
    ),
    ({"dataframe_split": {**split()["dataframe_split"], "index": [1]}}, "index does not have one"),
    ({"inputs": {**{key: [1] for key in FEATURES}, FIRST: [1, 2]}}, "has 1 values, others have 2"),
    ({"instances": 3}, "instances is not a list of rows"),
    ({**split(), "params": 3}, "params: 3 is not an object"),
    ({**split(), "client_request_id": 3}, "client_request_id: 3 is not text"),
    (split(10_001), "has 10001 rows, at most 10000 are taken"),
    (b" " * (16 * 1024 * 1024 + 1), "the body has more than 16777216 bytes"),
]


def test_each_malformed_request_gets_a_precise_400_and_a_line_in_the_log(
    workspace: WorkspaceClient, store: Settings
) -> None:
    assert len(MALFORMED) >= 30
    answers = [(post(workspace, body), words) for body, words in MALFORMED]
    wrong_type = post(workspace, split(), **{"Content-Type": "text/csv"})
    answers.append((wrong_type, "content type 'text/csv' is not application/json"))
    packed = post(workspace, gzip.compress(b"{}"), **{"Content-Encoding": "gzip"})
    answers.append((packed, "content encoding 'gzip' is not taken"))
    log = (server_process.serving_folder(store) / "server.log").read_text()
    for answer, words in answers:
        assert answer.status_code == 400, words
        assert answer.json()["error_code"] == "BAD_REQUEST"
        assert words in answer.json()["message"]
        assert answer.headers["x-request-id"] in log
    assert post(workspace, split()).status_code == 200


def opened(client: WorkspaceClient) -> socket.socket:
    host, _, port = client.config.host.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def exchange(client: WorkspaceClient, *sent: bytes) -> bytes:
    """What the server answers to bytes as they stand, until it closes the connection."""
    with opened(client) as connection:
        for each in sent:
            connection.sendall(each)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_chunks_pipelines_and_broken_http_are_answered_and_the_server_goes_on(
    workspace: WorkspaceClient,
) -> None:
    body = json.dumps(split()).encode()
    lines = ["Host: here", f"Authorization: Bearer {workspace.config.token}"]
    lines += ["Content-Type: application/json", ""]
    path = f"/serving-endpoints/{NAME}/invocations HTTP/1.1"
    head = "\r\n".join([f"POST {path}", *lines]).encode()
    whole = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    parts = [body[at : at + 100] for at in range(0, len(body), 100)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""])
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    closing = whole.replace(b"Host: here", b"Host: here\r\nConnection: close")
    answered = exchange(workspace, whole[:50], whole[50:] + chunked + closing)
    assert answered.count(b"HTTP/1.1 200 OK") == answered.count(b'{"predictions": [') == 3
    for method in ("GET", "HEAD", "OPTIONS", "TRACE"):
        answer = exchange(
            workspace, f"{method} {path}\r\n".encode() + closing.partition(b"\r\n")[2]
        )
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"allow: POST" in answer
    for broken in (b"\x16\x03\x01\r\n\r\n", head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
        assert exchange(workspace, broken).startswith(b"HTTP/1.1 400 ")
    with opened(workspace) as leaving:
        leaving.sendall(whole[:-10])  # a client that leaves in the middle of its body
    assert post(workspace, split()).status_code == 200


def test_more_calls_in_a_minute_than_the_limit_are_429_until_it_is_lifted(
    workspace: WorkspaceClient,
) -> None:
    kept = workspace.serving_endpoints.get(NAME).ai_gateway.inference_table_config
    limit = AiGatewayRateLimit(
        calls=2,
        renewal_period=AiGatewayRateLimitRenewalPeriod.MINUTE,
        key=AiGatewayRateLimitKey.USER,
    )
    put = workspace.serving_endpoints.put_ai_gateway
    put(NAME, rate_limits=[limit], inference_table_config=kept)
    answers = [post(workspace, split()) for _ in range(5)]  # a minute may end in between
    put(NAME, inference_table_config=kept)
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].json()["message"] == "2 calls in a minute are allowed"
    assert 0 < int(refused[0].headers["retry-after"]) <= 60
    assert post(workspace, split()).status_code == 200


def test_without_a_token_401_with_a_wrong_one_403_and_the_right_one_is_private(
    workspace: WorkspaceClient, store: Settings
) -> None:
    url = f"{workspace.config.host}/api/2.0/serving-endpoints"
    assert requests.get(url, timeout=60).status_code == 401
    wrong = {"Authorization": "Bearer guess"}
    assert requests.get(url, headers=wrong, timeout=60).status_code == 403
    assert post(workspace, split(), Authorization="Bearer guess").status_code == 403
    token = server_process.serving_folder(store) / "token"
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("written", ["Bearer {}", "bearer {}", "BEARER   {}", "Bearer\t{}  "])
def test_the_scheme_of_a_token_is_read_in_any_case_and_with_any_blanks(
    workspace: WorkspaceClient, written: str
) -> None:
    given = written.format(workspace.config.token)
    sent = (
        f"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {given}\r\n\r\n"
    )
    assert exchange(workspace, sent.encode()).startswith(b"HTTP/1.1 200 ")
    asked = sent.replace("GET /metrics", f"POST /serving-endpoints/{NAME}/invocations")
    assert exchange(workspace, asked.encode()).startswith(b"HTTP/1.1 400 ")  # no body, but let in


@pytest.mark.parametrize("written", ["Bearer", "Bearer ", "Basic {}", "Bearer{}", ""])
def test_what_is_no_bearer_token_is_401_and_says_what_is_wanted(
    workspace: WorkspaceClient, written: str
) -> None:
    given = {"Authorization": written.format(workspace.config.token)}
    for path in ("/metrics", f"/serving-endpoints/{NAME}/invocations"):
        refused = requests.post(f"{workspace.config.host}{path}", headers=given, timeout=60)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"


def test_a_browser_is_led_to_the_docs_without_a_token(workspace: WorkspaceClient) -> None:
    for path in ("", "/", "/docs", "/docs/", "/docs?from=here"):
        for ask in (requests.get, requests.head):
            shown = ask(f"{workspace.config.host}{path}", allow_redirects=True, timeout=60)
            assert (shown.status_code, shown.url.partition("?")[0][-5:]) == (200, "/docs")
    assert requests.get(f"{workspace.config.host}/favicon.ico", timeout=60).status_code == 204
    refused = requests.post(f"{workspace.config.host}/", timeout=60)
    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (
        405,
        {"GET", "HEAD"},
    )
    whole = f"GET {workspace.config.host}/docs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert exchange(workspace, whole.encode()).startswith(b"HTTP/1.1 200 ")


def test_a_field_it_does_not_know_is_400_and_a_change_during_a_change_409(
    workspace: WorkspaceClient,
) -> None:
    path = f"/api/2.0/serving-endpoints/{NAME}/config"
    entities = [entity(2).as_dict()]
    with pytest.raises(BadRequest, match="replicas is no field"):
        workspace.api_client.do("PUT", path, body={"served_entities": entities, "replicas": 2})
    with pytest.raises(NotFound, match="has no version 99"):
        workspace.serving_endpoints.update_config(NAME, served_entities=[entity(99)])
    going = workspace.serving_endpoints.update_config(NAME, served_entities=[entity(2)])
    with pytest.raises(ResourceConflict, match="is currently being updated"):
        workspace.serving_endpoints.update_config(NAME, served_entities=[entity(1)])
    assert going.result().config.served_entities[0].entity_version == "2"


def test_a_version_that_cannot_be_loaded_never_takes_traffic(
    workspace: WorkspaceClient, store: Settings
) -> None:
    workspace.serving_endpoints.update_config(NAME, served_entities=[entity(3)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = post(workspace, split())
        assert answer.json() == {"predictions": expected(store, 1)}
        found = workspace.serving_endpoints.get(NAME)
        if found.state.config_update is not EndpointStateConfigUpdate.IN_PROGRESS:
            break
    assert found.state.config_update is EndpointStateConfigUpdate.UPDATE_FAILED
    assert found.state.ready is EndpointStateReady.READY
    failed = found.pending_config.served_entities[0]
    assert "model.pkl" in failed.state.deployment_state_message
    assert "model.pkl" in workspace.serving_endpoints.build_logs(NAME, failed.name).logs


def test_versions_change_under_load_without_a_failed_or_a_mixed_answer(
    workspace: WorkspaceClient, store: Settings
) -> None:
    right = {f"churn-prediction-gbm-{number}": expected(store, number) for number in (1, 2)}
    assert right["churn-prediction-gbm-1"] != right["churn-prediction-gbm-2"]
    stop, wrong, seen = threading.Event(), list[str](), dict[str, int]()

    def ask() -> None:
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {workspace.config.token}"
            url = f"{workspace.config.host}/serving-endpoints/{NAME}/invocations"
            while not stop.is_set():
                answer = session.post(url, json=split(), timeout=60)
                name = answer.headers.get("served-model-name", "")
                seen[name] = seen.get(name, 0) + 1
                if answer.status_code != 200 or answer.json()["predictions"] != right[name]:
                    wrong.append(answer.text)

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    for change in range(6):
        workspace.serving_endpoints.update_config(NAME, served_entities=[entity(2 - change % 2)])
        while workspace.serving_endpoints.get(NAME).pending_config is not None:
            time.sleep(0.05)
    stop.set()
    for client in clients:
        client.join()
    assert wrong == []
    assert set(seen) == set(right)


def rows_kept(store: Settings) -> set[str]:
    table = tables.connect(store).read("gold.asked_payload")
    return set(table.databricks_request_id.to_pandas())


def test_killed_and_started_again_it_serves_and_a_graceful_stop_keeps_every_row(
    workspace: WorkspaceClient, store: Settings
) -> None:
    ids = [post(workspace, split()).headers["x-request-id"] for _ in range(20)]
    while "churn_inference_rows_queued 0.0" not in metrics(workspace):
        time.sleep(0.02)  # what kill -9 may lose is what is still in memory
    for _ in range(20):  # these may be lost; what is lost must not spoil the rest
        post(workspace, {**split(), "client_request_id": "\ud800"})
    address = server_process.running(store)
    os.kill(address.pid, signal.SIGKILL)
    again = connect(store)
    assert again.config.host == address.url  # the same port
    last = post(again, split())
    assert last.json() == {"predictions": expected(store, 1)}
    ids.append(last.headers["x-request-id"])
    assert server_process.stop(store)
    assert set(ids) <= rows_kept(store)
    again = connect(store)
    server_process.stop(store)
    kept = tables.connect(store).read("gold.asked_payload")
    assert kept.count().to_pyarrow().as_py() == len(rows_kept(store))  # nothing twice


def test_churn_serve_puts_an_idle_model_to_sleep_wakes_it_and_stops_gracefully(
    store: Settings, workspace: WorkspaceClient
) -> None:
    workspace.serving_endpoints.update_config_and_wait(
        NAME, served_entities=[entity(1, scale_to_zero_enabled=True)]
    )
    server_process.stop(store)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {**os.environ, "CHURN_SETTINGS": str(store.root / "settings.ini")}
        command = [str(CHURN), "serve", "--port"]
        busy = subprocess.run([*command, port], env=environment, capture_output=True, text=True)
        assert busy.returncode == 2
        assert busy.stderr.startswith(f"churn: cannot listen on 127.0.0.1 port {port}")
        assert busy.stderr.count("\n") == 1
    idle = ["--idle-minutes", "0.01"]
    process = subprocess.Popen([*command, "0", *idle], env=environment, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while server_process.running(store) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        client = connect(store)
        message = ""
        while message != "Scaled to zero" and time.monotonic() < deadline:
            served = client.serving_endpoints.get(NAME).config.served_entities[0]
            message = served.state.deployment_state_message or ""
            time.sleep(0.1)
        assert message == "Scaled to zero"
        assert post(client, split()).json() == {"predictions": expected(store, 1)}
    finally:
        process.send_signal(signal.SIGTERM)
        _, answer = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in answer


def test_the_metrics_count_requests_by_version_and_status(workspace: WorkspaceClient) -> None:
    post(workspace, split())
    post(workspace, {})
    text = metrics(workspace)
    labels = f'endpoint="{NAME}",served_entity="churn-prediction-gbm-1"'
    for status in (200, 400):
        assert f'churn_requests_total{{{labels},status="{status}"}}' in text
    assert f"churn_model_loaded{{{labels}}} 1.0" in text


def test_a_model_that_has_no_fast_form_is_served_by_its_own_predict(
    workspace: WorkspaceClient, store: Settings
) -> None:
    from sklearn.linear_model import LogisticRegression

    models = registry.connect(store)
    X = serving_store.feature_rows(50)
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            LogisticRegression(max_iter=500).fit(X, X[FIRST] > 5),
            name="other",
            input_example=X.head(2),
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
        )
    number = models.register(logged.model_uri, {})
    workspace.serving_endpoints.update_config_and_wait(NAME, served_entities=[entity(number)])
    frame = serving_store.feature_rows(3, seed=3)
    assert (
        post(workspace, split()).json()["predictions"]
        == models.load(number).predict(frame).tolist()
    )
    log = workspace.serving_endpoints.build_logs(NAME, f"churn-prediction-gbm-{number}").logs
    assert "serving its predict: LogisticRegression is no ChurnModel" in log
