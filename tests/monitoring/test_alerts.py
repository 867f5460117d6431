"""Alerts: once, at least once after a crash, and to a real HTTP receiver."""

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from churn_lib.monitoring import alerts
from churn_lib.tables import DeltaTables

FLAGS = st.lists(st.sampled_from([True, False, None]), max_size=12)


def signal(*violations: bool | None, cause: str = "drift") -> alerts.Signal:
    """A cause, day by day."""
    days = tuple(datetime.date(2025, 1, 1) + datetime.timedelta(n) for n in range(len(violations)))
    return alerts.Signal(cause, violations, days, f"{cause} found")


@pytest.fixture
def tables(tmp_path: Path) -> DeltaTables:
    """An empty catalog."""
    return DeltaTables(tmp_path)


def update(tables: DeltaTables, *found: alerts.Signal, version: int = 1) -> list[str]:
    """Ids of the alerts that are open afterwards."""
    still_open = alerts.update(tables, found, "churn", version, 2, 3)
    return [alert.alert_id for alert in still_open]


@given(FLAGS, st.integers(1, 4), st.integers(1, 6))
def test_the_rule_is_m_of_n_and_the_newest(flags: list[bool | None], m: int, n: int) -> None:
    known = [flag for flag in flags if flag is not None][-n:]
    expected = sum(known) >= m and known[-1:] == [True]
    assert bool(alerts.fires(flags, m, n)) == expected


@given(FLAGS)
def test_what_fires_has_not_recovered(flags: list[bool | None]) -> None:
    assert not (alerts.fires(flags, 2, 3) and alerts.recovers(flags, 2))


def test_a_cause_is_raised_once_however_often_it_is_seen(tables: DeltaTables) -> None:
    for _ in range(3):
        assert update(tables, signal(False, True, True)) == ["drift-v1-2025-01-03"]
    assert alerts.events(tables).event.tolist() == ["RAISED"]


def test_a_new_version_closes_the_alerts_of_the_old_one(tables: DeltaTables) -> None:
    update(tables, signal(True, True))
    assert update(tables, signal(False), version=2) == []
    assert alerts.events(tables).event.tolist() == ["RAISED", "RECOVERED"]


def test_an_alert_about_the_source_outlives_the_version_that_predicted(tables: DeltaTables) -> None:
    lost = signal(True, True, cause="source")
    update(tables, lost)
    (raised,) = alerts.open_alerts(tables, "churn")
    update(tables, lost, version=2)
    assert [a.alert_id for a in alerts.open_alerts(tables, "churn")] == [raised.alert_id]
    update(tables, signal(True, False, False, cause="source"), version=2)
    assert alerts.open_alerts(tables, "churn") == []


def test_no_data_is_raised_at_once_and_closed_by_data(tables: DeltaTables) -> None:
    assert update(tables, signal(True, cause="no_data")) == ["no_data-v1-2025-01-01"]
    assert update(tables, signal(False, cause="no_data"), version=2) == []


def test_an_acknowledged_alert_stays_silent_until_it_has_recovered(tables: DeltaTables) -> None:
    update(tables, signal(True, True))
    alerts.acknowledge(tables, "churn", "drift-v1-2025-01-02", "ann", "known campaign")
    alerts.acknowledge(tables, "churn", "drift-v1-2025-01-02", "bob")
    assert update(tables, signal(True, True, True)) == ["drift-v1-2025-01-02"]
    assert alerts.notify(tables, "churn") == []
    assert alerts.events(tables).event.tolist() == ["RAISED", "ACKNOWLEDGED"]
    assert update(tables, signal(True, True, False, False)) == []
    assert update(tables, signal(*[True] * 6)) == ["drift-v1-2025-01-06"]


def test_alerts_of_another_model_are_left_alone(tables: DeltaTables) -> None:
    update(tables, signal(True, True))
    alerts.update(tables, [signal(False, False)], "another", 1, 2, 3)
    assert len(alerts.open_alerts(tables, "churn")) == 1


class Receiver(BaseHTTPRequestHandler):
    """Answers with the next of `statuses`, 200 when there is none left, and keeps the bodies."""

    bodies: list[dict[str, Any]]
    statuses: list[int]
    hangs: str  # before or after the answer; empty: nowhere
    over: threading.Event

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.bodies.append(json.loads(self.rfile.read(length)))
        if self.hangs == "before":
            self.over.wait()
            return
        self.send_response(self.statuses.pop(0) if self.statuses else 200)
        self.end_headers()
        if self.hangs == "after":
            self.wfile.write(b"and")
            self.over.wait()

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Receiver]]:
    """A webhook on a free port of this machine, named in the environment."""
    state = {"bodies": [], "statuses": [], "hangs": "", "over": threading.Event()}
    kind = type("Fresh", (Receiver,), state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv(alerts.WEBHOOK, f"http://127.0.0.1:{server.server_port}/hook/s3cret")
    monkeypatch.setitem(alerts._ATTEMPTS, "wait", lambda state: 0)
    yield kind
    kind.over.set()
    server.shutdown()
    server.server_close()


def test_a_webhook_gets_each_alert_once(tables: DeltaTables, receiver: type[Receiver]) -> None:
    update(tables, signal(True, True), signal(True, True, cause="volume"))
    for _ in range(2):
        assert alerts.notify(tables, "churn") == []
    received = {body["alert_id"]: body for body in receiver.bodies}
    assert len(receiver.bodies) == len(received) == 2
    body = received["drift-v1-2025-01-02"]
    assert body["severity"] == "investigate"
    assert body["text"].startswith("[investigate] churn version 1, window 2025-01-02: drift found")


def test_a_webhook_that_stumbles_is_tried_again(
    tables: DeltaTables, receiver: type[Receiver]
) -> None:
    receiver.statuses += [503, 429]
    update(tables, signal(True, True))
    assert alerts.notify(tables, "churn") == []
    assert len(receiver.bodies) == 3


def test_a_webhook_that_is_down_costs_no_alert_and_leaks_no_address(
    tables: DeltaTables, receiver: type[Receiver]
) -> None:
    receiver.statuses += [500] * 4
    update(tables, signal(True, True))
    (problem,) = alerts.notify(tables, "churn")
    assert "answered 500 to drift-v1-2025-01-02" in problem
    assert "s3cret" not in problem
    assert alerts.notify(tables, "churn") == []  # the next monitor sends it
    assert alerts.events(tables).event.tolist() == ["RAISED", "NOTIFIED"]


def test_a_webhook_that_does_not_answer_is_given_up_and_tried_by_the_next_monitor(
    tables: DeltaTables, receiver: type[Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_TIMEOUT", 0.2)
    receiver.hangs = "before"
    update(tables, signal(True, True))
    (problem,) = alerts.notify(tables, "churn")
    assert "cannot be reached (ReadTimeout)" in problem
    receiver.hangs = ""
    assert alerts.notify(tables, "churn") == []
    assert alerts.events(tables).event.tolist() == ["RAISED", "NOTIFIED"]


def test_a_webhook_whose_answer_never_ends_has_been_notified(
    tables: DeltaTables, receiver: type[Receiver]
) -> None:
    receiver.hangs = "after"
    update(tables, signal(True, True))
    assert alerts.notify(tables, "churn") == []
    assert len(receiver.bodies) == 1


def test_an_address_that_nobody_listens_at_is_a_problem_not_a_crash(
    tables: DeltaTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(alerts.WEBHOOK, "http://127.0.0.1:9/hook/s3cret")
    monkeypatch.setitem(alerts._ATTEMPTS, "wait", lambda state: 0)
    update(tables, signal(True, True))
    (problem,) = alerts.notify(tables, "churn")
    assert "cannot be reached" in problem and "s3cret" not in problem


@pytest.mark.parametrize("address", ["hooks.example/s3cret", "ftp://a/s3cret", "http://[s3cret"])
def test_an_address_that_is_none_is_reported_without_being_shown(
    tables: DeltaTables, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv(alerts.WEBHOOK, address)
    update(tables, signal(True, True))
    (problem,) = alerts.notify(tables, "churn")
    assert "CHURN_ALERT_WEBHOOK is no address" in problem and "s3cret" not in problem


def test_a_monitor_that_dies_after_sending_sends_again_with_the_same_id(
    tables: DeltaTables, receiver: type[Receiver]
) -> None:
    update(tables, signal(True, True))

    def dies(address: str, alert: alerts.Alert) -> None:
        alerts.post(address, alert)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        alerts.notify(tables, "churn", send=dies)
    alerts.notify(tables, "churn")
    assert [body["alert_id"] for body in receiver.bodies] == ["drift-v1-2025-01-02"] * 2
