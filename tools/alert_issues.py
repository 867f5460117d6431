"""One GitHub issue for each open alert: opened once, closed when the alert has recovered.

    python -m tools.alert_issues production

The workflow `monitor` runs this. monitoring_job has written gold.alerts in the workspace; it is read here
through a SQL warehouse (WAREHOUSE_ID), and `gh` keeps the issues, which it recognises by their label and
by the alert's name in the title. An acknowledged alert keeps its issue and gets none any more.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from databricks.sdk import WorkspaceClient
from databricks.sdk.service.sql import (
    ExecuteStatementRequestOnWaitTimeout,
    StatementParameterListItem,
    StatementResponse,
    StatementState,
)
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from churn_lib import registry, settings
from churn_lib.monitoring import alerts

LABEL = "churn-alert"
BUSY = (StatementState.PENDING, StatementState.RUNNING)
LIMIT = 600.0  # seconds in all, for a warehouse that has to start
PAUSE = 2.0  # seconds between two questions


def query(catalog: str) -> str:
    """The events of the alerts that have not recovered."""
    table = f"`{catalog}`.{alerts.TABLE}"
    over = f"SELECT alert_id FROM {table} WHERE event = 'RECOVERED'"
    return (
        "SELECT at, alert_id, event, cause, severity, model_name, model_version, window_date, message, "
        f"`by` FROM {table} WHERE model_name = :model_name AND alert_id NOT IN ({over}) ORDER BY at"
    )


def finished(client: WorkspaceClient, answer: StatementResponse) -> StatementResponse:
    """The answer when it is there."""

    def again() -> StatementResponse:
        return client.statement_execution.get_statement(str(answer.statement_id))

    if answer.status is None or answer.status.state not in BUSY:
        return answer
    waiting = retry_if_result(lambda each: each.status.state in BUSY)
    return Retrying(retry=waiting, wait=wait_fixed(PAUSE), stop=stop_after_delay(LIMIT))(again)


def read_open(
    client: WorkspaceClient, warehouse: str, config: settings.Settings
) -> list[alerts.Alert]:
    """The open alerts of a workspace; none before the first one, when there is no table."""
    asked = client.statement_execution.execute_statement(
        query(config.catalog),
        warehouse,
        wait_timeout="50s",
        on_wait_timeout=ExecuteStatementRequestOnWaitTimeout.CONTINUE,
        parameters=[StatementParameterListItem("model_name", value=config.model_name)],
    )
    answer = finished(client, asked)
    status: Any = answer.status
    if status.state != StatementState.SUCCEEDED:
        reason = status.error.message if status.error else ""
        if "TABLE_OR_VIEW_NOT_FOUND" in reason:
            return []
        sys.exit(f"{config.catalog}.{alerts.TABLE} cannot be read: {status.state.value} {reason}")
    names = [column.name for column in answer.manifest.schema.columns]  # type: ignore[union-attr]
    rows = answer.result.data_array if answer.result else None
    log = pd.DataFrame(rows or [], columns=names)
    return alerts.still_open(log.assign(at=pd.to_datetime(log["at"], utc=True)))


def gh(*arguments: str, text: str | None = None) -> str:
    """What GitHub's command answers."""
    done = subprocess.run(["gh", *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"gh {' '.join(arguments[:2])} failed: {done.stderr.strip()}")
    return done.stdout


def body(alert: alerts.Alert, target: str) -> str:
    """What an issue says."""
    return (
        f"{alerts.as_text(alert)}\n\nRaised {alert.raised_at:%Y-%m-%d %H:%M} UTC on {target} by "
        "monitoring_job, whose run has the report. The issue closes by itself when the alert has "
        f"recovered.\n\nTo take care of it, where the tables are: "
        f"`churn monitor acknowledge {alert.alert_id} --target {target}`\n"
    )


def keep_issues(open_now: list[alerts.Alert], target: str) -> list[str]:
    """Open and close issues; what was done, as sentences."""
    gh("label", "create", LABEL, "--force", "--description", "raised by monitoring_job")
    fields = ("--limit", "1000", "--json", "number,title,state")
    issues = json.loads(gh("issue", "list", "--state", "all", "--label", LABEL, *fields))
    titles = {f"{target}: {alert.alert_id}": alert for alert in open_now}
    known, done = {issue["title"] for issue in issues}, []
    for title, alert in titles.items():
        if title not in known and not alert.acknowledged:
            new = ("--title", title, "--label", LABEL, "--body-file", "-")
            address = gh("issue", "create", *new, text=body(alert, target)).strip()
            done.append(f"opened {address}")
    for issue in issues:
        mine = issue["state"] == "OPEN" and issue["title"].startswith(f"{target}: ")
        if mine and issue["title"] not in titles:
            gh("issue", "close", str(issue["number"]), "--comment", "The alert has recovered.")
            done.append(f"closed #{issue['number']}")
    return done


def summary(open_now: list[alerts.Alert], target: str, done: list[str]) -> str:
    """The same as markdown."""
    lines = [f"## {target}: {len(open_now)} open alerts", ""]
    for alert in open_now:
        lines.append(f"- {alerts.as_text(alert)}{', acknowledged' * alert.acknowledged}")
    return "\n".join([*lines, *[f"- {each}" for each in done]]) + "\n"


def main(target: str) -> None:
    """Bring the issues in line with the alerts of a target."""
    warehouse = os.environ.get("WAREHOUSE_ID")
    if not warehouse:
        sys.exit("WAREHOUSE_ID is empty: give the id of a SQL warehouse that may read gold.alerts")
    try:
        open_now = read_open(registry.workspace(), warehouse, settings.load(target))
    except settings.ChurnError as error:
        sys.exit(str(error))
    text = summary(open_now, target, keep_issues(open_now, target))
    print(text, end="")
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(page).open("a") as file:
            file.write(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
