"""The days, one after the other: files come, the schedules of the bundle run, people do their work, evening is looked at."""

import dataclasses
import datetime
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import time_machine

from tests.checkouts import change_settings
from tests.days import checks, world
from tests.days.delivery import Delivery, Ran, known_variables
from tests.days.endpoints import ServingEndpoints
from tests.days.environments import VARIABLES, Environment
from tests.days.jobs import Jobs
from tests.tutorials.following import Checkout
from tests.workspaces import Limits, two_workspaces

ROOT = Path(__file__).parent.parent.parent
Step = Callable[["Rehearsal"], str]  # somebody's work at ten in the morning; a sentence about it


@dataclasses.dataclass
class Day:
    """A row of the table."""

    day: int
    events: int = 0  # that came
    happened: list[str] = dataclasses.field(default_factory=list)
    production: dict[str, int | None] = dataclasses.field(default_factory=dict)  # by target
    alerts: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # open, by target
    sentence: str = ""  # of production's monitor
    disk: int = 0  # bytes of both environments
    wrong: list[str] = dataclasses.field(default_factory=list)
    failed: list[str] = dataclasses.field(default_factory=list)  # jobs that did not succeed


class Rehearsal:
    """Two environments and the people who work with them."""

    def __init__(self, folder: Path, source: world.Source, seed: int = 0):
        self.folder, self.source = folder, source
        self.random = random.Random(seed)
        self.days: list[Day] = []
        self.steps: dict[int, list[Step]] = {}
        self.killed: dict[int, tuple[str, str]] = {}  # day to target and job that is killed
        self.deliveries = 0
        self.loaded = False  # whether any events have come

    def __enter__(self) -> "Rehearsal":
        with ExitStack() as stack:  # what has begun ends, too, when the rest cannot
            self._begin(stack)
            self.stack = stack.pop_all()
        return self

    def _begin(self, stack: ExitStack) -> None:
        self.clock = stack.enter_context(_Clock())
        self.limits = Limits(40)  # of both workspaces: each fortieth request has to be made again
        self.workspaces = stack.enter_context(two_workspaces(self.folder / "workspaces"))
        variables = {f"BUNDLE_VAR_{name}": value for name, value in VARIABLES.items()}
        stack.enter_context(mock.patch.dict(os.environ, variables))
        self._know_a_store()
        self.places = tuple(Environment(each.name, self.folder, each) for each in self.workspaces)
        self.staging, self.production = self.places
        self.endpoints = {each.name: ServingEndpoints(each) for each in self.workspaces}
        for place in self.places:
            apis = (Jobs(place).api, self.endpoints[place.target].api)
            place.workspace.apis.extend(apis)
            place.workspace.before.append(self.limits)
            stack.callback(place.stop)
        self.developer = Checkout(self.folder / "developer")

    def __exit__(self, *problem: object) -> None:
        self.stack.close()

    def _know_a_store(self) -> None:
        # MLflow makes a store of its own to load a model where it knows of none
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{self.workspaces[0].port}"

    def restart(self) -> None:
        """End both workspaces and all processes, and start them again."""
        for place in self.places:
            place.restart()
        self._know_a_store()

    @property
    def today(self) -> Day:
        """The row of the day it is."""
        return self.days[-1]

    def version(self, place: Environment) -> int | None:
        """At the alias Production."""
        return checks.production(place)

    # --- people

    def commit(self, message: str) -> str:
        """Commit what the developer has changed on main; the commit."""
        self.developer.run(
            f"git add --all && git commit --quiet --no-verify --allow-empty -m '{message}'"
        )
        return self.developer.run("git rev-parse HEAD").strip()

    def settings(self, values: dict[str, str], section: str = "DEFAULT") -> None:
        """Change keys of the developer's settings.ini."""
        change_settings(self.developer.folder, values, section)

    def delivery(self, commit: str) -> Delivery:
        """What GitHub starts for a commit of main."""
        self.deliveries += 1
        clone = self.folder / "commits" / f"{self.deliveries:02d}-{commit[:7]}"
        words = ["git", "clone", "--quiet", str(self.developer.folder), str(clone)]
        subprocess.run(words, check=True, capture_output=True)
        (clone / ".venv").symlink_to(sys.prefix)
        return Delivery(clone, commit, self.folder / "delivery", known_variables())

    def merge(self, message: str) -> list[Ran]:
        """Commit, and run cd.yml: staging, then production when staging has succeeded."""
        return self.deliver(self.delivery(self.commit(message)))

    def deliver(self, run: Delivery) -> list[Ran]:
        """All jobs of a run, as far as they come."""
        ended = [run.job("staging", self.staging.workspace)]
        if not ended[0].failed:
            ended.append(run.job("production", self.production.workspace))
        return ended

    # --- days

    def tell(self, sentence: str) -> None:
        """Note what has happened."""
        self.today.happened += [sentence] if sentence else []

    def at(self, day: int, hour: int, minute: int = 0) -> None:
        """Set every clock."""
        for place in self.places:
            place.at(day, hour, minute)
        self.clock.move_to(self.staging.clock.timestamp())

    def live(self, day: int) -> Day:
        """A whole day; its row."""
        self.days.append(Day(day))
        self.at(day, 2)
        self.receive(day)
        self.run_schedules(day)
        self.at(day, 10)
        for step in self.steps.get(day, []):
            try:
                self.tell(step(self))
            except AssertionError as error:
                self.today.wrong.append(f"{step.__name__}: {error}")
        self.at(day, 22)
        self.look(day)
        return self.today

    def receive(self, day: int) -> None:
        """Load what has come into both catalogs."""
        self.tell(self.source.news(day))
        paths = self.source.files(day, self.folder / "incoming")
        if paths is None:
            return
        self.today.events = world.rows(paths[0])
        for place in self.places:
            if place.code is None:  # nothing is deployed yet: the loader of the first commit
                commit = self.developer.run("git rev-parse HEAD").strip()
                place.deploy(self.delivery(commit).clone, commit)
            words = ["data", "load", "--events", str(paths[0]), "--customers", str(paths[1])]
            done = place.command(*words, *(["--append"] if self.loaded else []))
            if done["code"]:
                self.today.failed.append(
                    f"{place.target}: data load: {done['output'].strip()[-300:]}"
                )
        self.loaded = True

    def run_schedules(self, day: int) -> None:
        """What the bundles of both environments run on a day; at the same time where they say so."""
        due: dict[tuple[int, int], list[tuple[Environment, str]]] = {}
        for place in self.places:
            for hour, minute, job in place.schedule() if checks.production(place) else ():
                due.setdefault((hour, minute), []).append((place, job))
        for moment in sorted(due):
            self.at(day, *moment)
            # the store that both share lets one of them be maintained at a time
            together = 1 if any(job == "maintenance_job" for _, job in due[moment]) else 2
            with ThreadPoolExecutor(together) as pool:
                for place, job in due[moment]:
                    if self.killed.get(day) == (place.target, job):
                        self.kill(place, job)
                rows = [pool.submit(self.run_scheduled, place, job) for place, job in due[moment]]
            for each in rows:
                each.result()

    def run_scheduled(self, place: Environment, job: str) -> None:
        """Run a job, and note what came of it."""
        done = place.run(job)
        if done.state != "SUCCESS":
            errors = [f"{each.task_key}: {each.error}" for each in done.tasks if each.error]
            self.today.failed.append(f"{place.target}: {job}: {'; '.join(errors)[-1500:]}")
        if job == "scoring_job":
            self.today.wrong += [f"{place.target}: {each}" for each in checks.scores(place)]
        for task in done.tasks:
            if "sentence" in task.values and place is self.production:
                self.today.sentence = task.values["sentence"]

    def kill(self, place: Environment, job: str) -> None:
        """Let the main task of a job be killed at one of its writes."""
        task = {"scoring_job": "score_customers", "monitoring_job": "monitor"}[job]
        at = self.random.randint(1, place.code.writes.get(task, 30))
        place.killed = (task, at)
        self.tell(f"{job} of {place.target} is killed at write {at} of {task}")

    def look(self, day: int) -> None:
        """What holds in the evening."""
        row = self.today
        for place in self.places:
            if place.code is None:
                continue
            row.production[place.target] = checks.production(place)
            row.alerts[place.target] = [each.cause for each in checks.open_alerts(place)]
            found = [*checks.agreement(place, self.endpoints[place.target]), *checks.orphans(place)]
            row.wrong += [f"{place.target}: {each}" for each in found]
            row.disk += checks.disk(place)
        row.wrong += checks.over_budget(row.disk, day)


class _Clock:
    """The clock of this process, which keeps the registry of both workspaces."""

    def __enter__(self) -> Any:
        self.travel = time_machine.travel(
            datetime.datetime.combine(world.START, datetime.time.min).timestamp()
        )
        return self.travel.start()

    def __exit__(self, *problem: object) -> None:
        self.travel.stop()


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
