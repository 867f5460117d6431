"""Issues for alerts: read through a warehouse that speaks HTTP, kept by a `gh` that is as strict as GitHub's."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools import alert_issues

COLUMNS = (
    *("at", "alert_id", "event", "cause", "severity", "model_name", "model_version"),
    *("window_date", "message", "by"),
)
GH = """#!{python}
import json, sys
from pathlib import Path
book = Path({book!r})
issues = json.loads(book.read_text())
match sys.argv[1:]:
    case ["label", "create", "churn-alert", "--force", *_]:
        pass
    case ["issue", "list", "--state", "all", "--label", "churn-alert", *_]:
        print(json.dumps(issues))
    case ["issue", "create", "--title", title, "--label", "churn-alert", "--body-file", "-"]:
        issues.append({{"number": len(issues) + 1, "title": title, "state": "OPEN", "body": sys.stdin.read()}})
        print(f"https://github.com/a/b/issues/{{len(issues)}}")
    case ["issue", "close", number, "--comment", _]:
        issues[int(number) - 1]["state"] = "CLOSED"
    case other:
        sys.exit(f"unknown command {{other}}")
book.write_text(json.dumps(issues))
"""


def event(kind: str, alert: str = "drift-v3-2025-03-01", at: str = "01") -> list[str]:
    """A row as a warehouse gives it: everything is text."""
    moment = f"2025-03-{at}T06:00:00.000Z"
    about = ["drift", "investigate", "m", "3", "2025-03-01", "silence has drifted", "ann"]
    return [moment, alert, kind, *about]


class Warehouse(BaseHTTPRequestHandler):
    """Takes one statement, runs for a while, answers with the rows."""

    state: Any

    def answer(self, body: Any, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        right = (
            self.path == "/api/2.0/sql/statements"
            and asked["warehouse_id"] == "warehouse-1"
            and "`churn_production`.gold.alerts" in asked["statement"]
            and [each["name"] for each in asked["parameters"]] == ["model_name"]
        )
        if not right:
            return self.answer({"error_code": "BAD_REQUEST", "message": str(asked)}, 400)
        return self.answer({"statement_id": "s1", "status": {"state": "PENDING"}})

    def do_GET(self) -> None:
        if self.path != "/api/2.0/sql/statements/s1":
            return self.answer({"error_code": "NOT_FOUND", "message": self.path}, 404)
        if self.state.error:
            failed = {"state": "FAILED", "error": {"message": self.state.error}}
            return self.answer({"statement_id": "s1", "status": failed})
        if self.state.busy:
            self.state.busy -= 1
            return self.answer({"statement_id": "s1", "status": {"state": "RUNNING"}})
        columns = [{"name": name, "position": place} for place, name in enumerate(COLUMNS)]
        answer = {"status": {"state": "SUCCEEDED"}, "manifest": {"schema": {"columns": columns}}}
        rows = {"data_array": self.state.rows} if self.state.rows else {}
        return self.answer({"statement_id": "s1", **answer, "result": rows})

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A warehouse and GitHub."""
    state = SimpleNamespace(rows=[], busy=2, error="", book=tmp_path / "issues.json")
    state.book.write_text("[]")
    command = tmp_path / "gh"
    command.write_text(GH.format(python=sys.executable, book=str(state.book)))
    command.chmod(0o755)
    handler = type("Fresh", (Warehouse,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("DATABRICKS_TOKEN", "t")
    monkeypatch.setenv("WAREHOUSE_ID", "warehouse-1")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    monkeypatch.setattr(alert_issues, "PAUSE", 0.01)
    yield state
    server.shutdown()
    server.server_close()


def issues(world: SimpleNamespace) -> list[tuple[str, str]]:
    """Title and state of every issue."""
    return [(each["title"], each["state"]) for each in json.loads(world.book.read_text())]


def test_an_alert_gets_one_issue_that_closes_when_it_has_recovered(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    title = "production: drift-v3-2025-03-01"
    world.rows = [event("RAISED"), event("NOTIFIED", at="02")]
    for _ in range(2):
        alert_issues.main("production")
    assert issues(world) == [(title, "OPEN")]
    (made,) = json.loads(world.book.read_text())
    assert "silence has drifted" in made["body"]
    assert "monitor acknowledge drift-v3-2025-03-01" in made["body"]
    assert "production: 1 open alerts" in (tmp_path / "summary.md").read_text()

    world.rows = [*world.rows, event("ACKNOWLEDGED", at="03")]
    alert_issues.main("production")
    assert issues(world) == [(title, "OPEN")]

    world.rows = []  # the query leaves out what has recovered
    alert_issues.main("production")
    assert issues(world) == [(title, "CLOSED")]


def test_an_acknowledged_alert_and_a_monitor_without_alerts_open_nothing(
    world: SimpleNamespace,
) -> None:
    world.rows = [event("RAISED"), event("ACKNOWLEDGED", at="02")]
    alert_issues.main("production")
    world.error = "[TABLE_OR_VIEW_NOT_FOUND] gold.alerts cannot be found"
    alert_issues.main("production")
    assert issues(world) == []


def test_a_warehouse_that_refuses_ends_the_workflow(world: SimpleNamespace) -> None:
    world.error = "[INSUFFICIENT_PERMISSIONS] no SELECT"
    with pytest.raises(SystemExit, match=r"gold.alerts cannot be read: FAILED.*no SELECT"):
        alert_issues.main("production")
