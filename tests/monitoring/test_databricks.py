"""The data profile of Databricks, against a server that speaks HTTP and is as strict as the original."""

import datetime
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from databricks.sdk import WorkspaceClient

from churn_lib import settings
from churn_lib.features import FEATURES, LABEL
from churn_lib.monitoring import databricks, windows
from churn_lib.tables import DeltaTables

CONFIG = settings.load("production", Path(__file__).parents[2] / "settings.ini")
TABLE = f"{CONFIG.catalog}.{databricks.PROFILED}"
PROFILING = {
    *("output_schema_id", "assets_dir", "baseline_table_name", "inference_log", "slicing_exprs"),
    *("notification_settings", "schedule", "skip_builtin_dashboard", "warehouse_id"),
}
INFERENCE = {
    *("problem_type", "timestamp_column", "granularities", "prediction_column"),
    *("model_id_column", "label_column"),
}
MONITORS = "/api/data-quality/v1/monitors"


class Workspace(BaseHTTPRequestHandler):
    """Tables, schemas and data-quality monitors; unknown fields 400, absent things 404, busy ones 409."""

    state: Any

    def answer(self, status: int, body: Any, code: str = "") -> None:
        content = json.dumps(
            body if status == 200 else {"error_code": code, "message": body}
        ).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

    def refuse_unknown(self, body: Any) -> bool:
        config = body.get("data_profiling_config", {})
        log = config.get("inference_log", {})
        unknown = set(body) - {"object_type", "object_id", "data_profiling_config"}
        unknown |= set(config) - PROFILING | set(log) - INFERENCE
        missing = {"problem_type", "timestamp_column", "granularities"} - set(log)
        if unknown or missing or config.get("output_schema_id") != "schema-1":
            self.answer(
                400, f"bad request: {unknown or missing or 'schema'}", "INVALID_PARAMETER_VALUE"
            )
        return bool(unknown or missing or config.get("output_schema_id") != "schema-1")

    def do_GET(self) -> None:
        state, path = self.state, self.path.split("?")[0]
        state.calls.append(("GET", path))
        if path == f"/api/2.1/unity-catalog/tables/{TABLE}" and state.table:
            return self.answer(200, {"table_id": "table-1", "full_name": TABLE})
        if path == f"/api/2.1/unity-catalog/schemas/{TABLE.rpartition('.')[0]}":
            return self.answer(200, {"schema_id": "schema-1"})
        if path.startswith("/api/data-quality") and state.old:
            return self.answer(404, f"No API found for 'GET {path}'", "ENDPOINT_NOT_FOUND")
        if path == f"{MONITORS}/table/table-1" and state.monitor:
            if state.pending:
                state.pending -= 1
            status = "PENDING" if state.pending else "ACTIVE"
            config = {**state.monitor["data_profiling_config"], "monitor_version": 1}
            config["status"] = f"DATA_PROFILING_STATUS_{status}"
            return self.answer(200, {**state.monitor, "data_profiling_config": config})
        if path == f"{MONITORS}/table/table-1/refreshes" and state.monitor:
            return self.answer(200, {"refreshes": state.refreshes})
        return self.answer(404, f"{path} does not exist", "RESOURCE_DOES_NOT_EXIST")

    def do_POST(self) -> None:
        state, body = self.state, self.body()
        state.calls.append(("POST", self.path))
        if self.path == MONITORS:
            if state.monitor or state.quicker:
                state.monitor = state.monitor or state.quicker
                return self.answer(409, "a monitor exists", "RESOURCE_ALREADY_EXISTS")
            if self.refuse_unknown(body):
                return None
            state.monitor, state.pending = body, 3
            return self.answer(200, body)
        if re.fullmatch(rf"{MONITORS}/table/table-1/refreshes", self.path):
            if state.pending:
                return self.answer(409, "the monitor is pending", "RESOURCE_CONFLICT")
            if any(each["state"].endswith("RUNNING") for each in state.refreshes):
                return self.answer(409, "a refresh is running", "RESOURCE_CONFLICT")
            number = len(state.refreshes) + 1
            made = {**body, "refresh_id": number, "state": "MONITOR_REFRESH_STATE_RUNNING"}
            state.refreshes.append(made)
            return self.answer(200, made)
        return self.answer(404, "no such path", "ENDPOINT_NOT_FOUND")

    def do_PATCH(self) -> None:
        state, body = self.state, self.body()
        mask = re.search(r"update_mask=([^&]*)", self.path)
        state.calls.append(("PATCH", mask.group(1).replace("%2C", ",") if mask else ""))
        if self.refuse_unknown(body):
            return None
        state.monitor = body
        return self.answer(200, body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def workspace() -> Iterator[tuple[Any, WorkspaceClient]]:
    """The server's state, and a client of it."""
    state = SimpleNamespace(
        table=True, old=False, monitor=None, quicker=None, pending=0, refreshes=[], calls=[]
    )
    handler = type("Fresh", (Workspace,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    yield state, WorkspaceClient(host=host, token="t", auth_type="pat")
    server.shutdown()
    server.server_close()


def test_a_profile_is_created_once_and_then_left_alone(workspace: Any) -> None:
    state, client = workspace
    assert databricks.ensure_profile(client, CONFIG) == "created"
    config = state.monitor["data_profiling_config"]
    assert config["baseline_table_name"] == "churn_production.gold.monitoring_baseline"
    assert config["inference_log"]["granularities"] == ["AGGREGATION_GRANULARITY_1_DAY"]
    assert databricks.ensure_profile(client, CONFIG) == "unchanged"
    assert [verb for verb, _ in state.calls if verb != "GET"] == ["POST"]


def test_what_differs_is_changed_and_nothing_else(workspace: Any) -> None:
    state, client = workspace
    databricks.ensure_profile(client, CONFIG)
    changed = CONFIG.updated(
        {"monitoring.emails": ("ann@example.org",), "monitoring.granularity": "1 week"}
    )
    assert databricks.ensure_profile(client, changed) == "updated"
    assert state.calls[-1] == (
        "PATCH",
        "data_profiling_config.inference_log,data_profiling_config.notification_settings",
    )
    assert databricks.ensure_profile(client, changed) == "unchanged"


def test_another_run_that_is_quicker_is_no_error(workspace: Any) -> None:
    state, client = workspace
    asked = databricks.wanted(CONFIG, "schema-1").as_dict()
    state.quicker = {"object_type": "table", "object_id": "table-1", "data_profiling_config": asked}
    assert databricks.ensure_profile(client, CONFIG) == "unchanged"


def test_a_refresh_waits_for_the_profile_and_runs_once(workspace: Any) -> None:
    state, client = workspace
    databricks.ensure_profile(client, CONFIG)
    assert databricks.refresh_profile(client, CONFIG, pause=0.01) == "started"
    assert databricks.refresh_profile(client, CONFIG, pause=0.01) == "running"
    state.refreshes[0]["state"] = "MONITOR_REFRESH_STATE_SUCCESS"
    assert databricks.refresh_profile(client, CONFIG, pause=0.01) == "started"
    assert len(state.refreshes) == 2


def test_a_profile_that_stays_pending_is_reported(workspace: Any) -> None:
    state, client = workspace
    databricks.ensure_profile(client, CONFIG)
    state.pending = 10_000
    with pytest.raises(databricks.DataQualityError, match="still pending after 0 s"):
        databricks.refresh_profile(client, CONFIG, limit=0.2, pause=0.01)


def test_a_workspace_without_the_service_is_distinguished_from_a_table_without_profile(
    workspace: Any,
) -> None:
    state, client = workspace
    state.old = True
    with pytest.raises(databricks.DataQualityError, match="only the older quality_monitors"):
        databricks.ensure_profile(client, CONFIG)
    state.table = False
    with pytest.raises(databricks.DataQualityError, match="run monitoring_job first"):
        databricks.ensure_profile(client, CONFIG)


def test_the_job_writes_both_tables_and_looks_after_the_profile(
    workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = workspace
    when = datetime.date(2025, 1, 1)
    rows = pd.DataFrame({name: [1.0, 2.0] for name in FEATURES}).assign(
        feature_date=when, churn_probability=0.4, decision=0, churned=pd.array([1, None], "Int64")
    )
    window = windows.Window(when, when + datetime.timedelta(1), 3, (when,))
    refresher = SimpleNamespace(
        tables=DeltaTables(tmp_path),
        git_sha="abc",
        all=[window],
        computed=[window],
        observed=lambda each: SimpleNamespace(rows=rows, features=FEATURES),
        baseline=lambda version: SimpleNamespace(holdout=rows.head(1), features=FEATURES),
    )
    found = SimpleNamespace(refresher=refresher, model_version=3)
    monkeypatch.setattr(databricks, "_PAUSE", 0.01)
    message = databricks.update_profile(found, CONFIG, client)
    assert message == f"Profile of {TABLE} created, refresh started."
    profiled = refresher.tables.read(databricks.PROFILED)
    baseline = refresher.tables.read(databricks.BASELINE)
    assert profiled.schema() == baseline.schema()
    assert set(INFERENCE_COLUMNS) <= set(profiled.columns)
    assert profiled.count().to_pyarrow().as_py() == 2
    assert databricks.update_profile(found, CONFIG, client).endswith("refresh running.")
    assert profiled.count().to_pyarrow().as_py() == 2


INFERENCE_COLUMNS = (
    databricks.TIMESTAMP,
    databricks.PREDICTION,
    LABEL,
    databricks.MODEL,
)


def test_elsewhere_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_RUNTIME_VERSION", raising=False)
    assert databricks.update_profile(SimpleNamespace(), CONFIG).startswith("Not on")
