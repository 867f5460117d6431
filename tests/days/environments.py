"""Staging and production: what is deployed to them, their jobs, and the commands somebody types."""

import datetime
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from churn_lib import bundle, settings
from churn_lib.bundle import Bundle, Plan, make_plan
from churn_lib.bundle.run import JobRun, run_plan
from churn_lib.settings import Settings
from tests.days import world
from tests.days.kernels import Code
from tests.workspaces import Workspace

VARIABLES = {  # of the bundle; what they name is not asked for here
    "notification_address": "on-call@example.org",
    "service_principal": "00000000-0000-4000-8000-000000000001",
    "deployer": "00000000-0000-4000-8000-000000000002",
    "readers": "churn-readers",
    "warehouse_id": "0123456789abcdef",
    "key_vault_dns_name": "https://churn.vault.azure.net/",
    "key_vault_resource_id": "/subscriptions/1/resourceGroups/churn/providers/Microsoft.KeyVault/vaults/churn",
}


def without_waiting(plan: Plan) -> Plan:
    """The plan without the minute before another attempt, which would only make a rehearsal longer."""
    at_once = {"min_retry_interval_millis": 0}
    steps = [
        replace(
            step,
            task=step.task.model_copy(update=at_once),
            job=step.job and without_waiting(step.job),
        )
        for step in plan.steps
    ]
    return replace(plan, steps=type(plan.steps)(steps))


class Environment:
    """A workspace: the commit that is deployed to it, and the day it is."""

    def __init__(self, target: str, folder: Path, workspace: Workspace):
        self.target, self.runs, self.workspace = target, folder / "runs" / target, workspace
        self.code: Code | None = None
        self.commit = ""
        self.clock = datetime.datetime.now(datetime.UTC)
        self.killed = ("", 0)  # a task that is to be killed, and at which of its writes

    def deploy(self, folder: Path, commit: str) -> None:
        """What runs from now on."""
        self.stop()
        self.code, self.commit = Code(folder), commit

    def restart(self) -> None:
        """End all processes of the workspace and start them again."""
        self.workspace.stop()
        self.workspace.start()
        self.workspace.ready()
        self.deploy(self.code.folder, self.commit)

    def stop(self) -> None:
        """End what runs here."""
        if self.code:
            self.code.stop()

    @property
    def settings(self) -> Settings:
        """Of the commit that is deployed."""
        return settings.load(self.target, self.code.folder / "settings.ini")

    def at(self, day: int, hour: int = 0, minute: int = 0) -> None:
        """Set the clock."""
        time = datetime.time(hour, minute, tzinfo=datetime.UTC)
        self.clock = datetime.datetime.combine(world.date(day), time)

    def own(self) -> dict[str, str]:
        """What the environment of a process has that runs here."""
        settings_file = str(self.code.folder / "settings.ini")
        return {**self.workspace.environment(), "CHURN_SETTINGS": settings_file}

    @property
    def bundle(self) -> Bundle:
        """As it is deployed."""
        return bundle.load(self.target, self.code.folder)

    def run(self, job: str, **parameters: str) -> JobRun:
        """A job of the bundle, as the Jobs service starts it."""
        plan = make_plan(self.bundle, job, {"git_sha": self.commit, **parameters})
        self.code.clock = self.clock
        self.code.killed, self.killed = self.killed, ("", 0)
        execute = partial(self.code.execute, own=self.own())
        return run_plan(without_waiting(plan), self.runs, execute=execute)

    def schedule(self) -> list[tuple[int, int, str]]:
        """Hour, minute and job of what runs each day, in that order."""
        found = []
        for job, body in self.bundle.job_bodies.items():
            when = body.get("schedule") or {}
            if when and when.get("pause_status") != "PAUSED":
                daily = re.fullmatch(r"0 (\d+) (\d+) \* \* \?", when["quartz_cron_expression"])
                assert daily and when["timezone_id"] == "UTC", when
                found.append((int(daily[2]), int(daily[1]), job))
        return sorted(found)

    def command(self, *words: str) -> dict[str, Any]:
        """Somebody types a `churn` command with this target: exit code and what was printed."""
        words = (*words, "--target", self.target)
        self.code.clock = self.clock
        return self.code.command(list(words), {**os.environ, **self.own()}, self.runs)
