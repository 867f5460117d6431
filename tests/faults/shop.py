"""A small shop on a laptop, the steps of its weeks, and what one sees of it from outside."""

import datetime
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa

from churn_lib import bundle, registry, settings, tables
from churn_lib.bundle import make_plan
from churn_lib.bundle.run import run_plan
from churn_lib.data.simulation import Population, simulate_customers, simulate_events
from churn_lib.registry import chain, promotion_log
from churn_lib.serving import deploy
from churn_lib.settings import Settings
from tests.checkouts import ROOT, change_settings
from tests.days.environments import without_waiting
from tests.days.kernels import Code

FIRST, LAST = datetime.date(2024, 7, 1), datetime.date(2025, 7, 20)  # of the events
TRAINED = datetime.date(2025, 6, 15)  # what is known at the first training
NOW = datetime.datetime(2025, 7, 21, 9, tzinfo=datetime.UTC)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# of a moment, a process or a run: two undisturbed runs differ in them
OWN = ("_at", "_ts", "_id", "_ms", "seconds", "_sha", "digest", "previous", "run_page", "created")
# whoever judges or deploys once more goes on record once more: the same row, another moment
RECORDS = {
    "gold.gate_reports": {"verdict", "report", "champion_version"},  # then against itself
    "gold.gate_answers": set[str](),
    "gold.deployments": {"outcome", "from_version"},
}


@dataclass(frozen=True)
class Step:
    """Something that somebody, or a schedule, does: a task of a job, or a command."""

    name: str
    job: str = ""  # of the bundle
    task: str = ""  # of the job; what is killed
    words: tuple[str, ...] = ()  # of `churn`, where it is a command
    done: str = "\0"  # what it says when there is nothing left to do


def steps(folder: Path) -> list[Step]:
    """In the order of their days."""
    files = [folder / f"{name}-{part}.parquet" for part in "12" for name in ("events", "people")]
    load = ("data", "load", "--events", str(files[0]), "--customers", str(files[1]))
    more = ("data", "load", "--events", str(files[2]), "--customers", str(files[3]), "--append")
    back = ("rollback", "--reason", "a test", "--to", "1")
    return [
        Step("load the first file", words=load, done="events already; say --append or --replace"),
        Step("build features", "training_job", "feature_engineering"),
        Step("train and register", "training_job", "train_and_register"),
        Step("judge and promote", "validation_job", "validate_model"),
        Step("deploy the endpoint", "deployment_job", "deploy_endpoint"),
        Step("load a later file", words=more),
        Step("build today's features", "scoring_job", "feature_engineering"),
        Step("score customers", "scoring_job", "score_customers"),
        Step("monitor", "monitoring_job", "monitor"),
        Step("backfill", words=("backfill", "2025-07-10", "2025-07-12")),
        Step("train again", "training_job", "train_and_register"),
        Step("judge and replace", "validation_job", "validate_model"),
        Step("deploy the other", "deployment_job", "deploy_endpoint"),
        Step("roll back", words=back, done="version 1 already is Production"),
        Step("maintain", "maintenance_job", "maintain"),
    ]


class Shop:
    """A store, and a process with the code loaded that runs what is to be run on it."""

    def __init__(self, folder: Path, customers: int = 2_000):
        self.folder, self.store = folder, folder / "store"
        self.store.mkdir(parents=True)
        shutil.copy(ROOT / "settings.ini", self.store)
        shutil.copy(ROOT / "requirements.lock", self.store)
        changes = {"data.snapshots": "2", "training.estimator": "logistic_regression"}
        change_settings(self.store, {**changes, "gate.promote_on_tie": "true"})
        self._write_files(customers)
        self.code = Code(ROOT)
        self.code.clock = NOW

    def _write_files(self, customers: int) -> None:
        population = Population(customers, start=FIRST, days=(LAST - FIRST).days + 1)
        for name, make, column in (
            ("events", simulate_events, "event_ts"),
            ("people", simulate_customers, "signup_ts"),
        ):
            rows = pa.Table.from_batches(make(population)).to_pandas()
            early = rows[column] < pd.Timestamp(TRAINED, tz="UTC")
            later = rows if name == "people" else rows[~early]
            for part, chosen in (("1", rows[early]), ("2", later)):
                path = self.folder / f"{name}-{part}.parquet"
                chosen.to_parquet(path, index=False, coerce_timestamps="us")

    @property
    def config(self) -> Settings:
        """Of the store."""
        return settings.load("local", self.store / "settings.ini")

    def environment(self) -> dict[str, str]:
        """Of a process that works on the store."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CHURN_", "MLFLOW_"))}
        return {**kept, "CHURN_SETTINGS": str(self.store / "settings.ini")}

    def take(self, step: Step, killed_at: int = 0) -> tuple[bool, int, str]:
        """Do it: whether it succeeded, how much it wrote, and what it says."""
        self.code.clock += datetime.timedelta(minutes=1)
        if step.words:
            words, folder = [*step.words], self.folder / "commands"
            done = self.code.command(words, self.environment(), folder, killed_at)
            succeeded = done["code"] == 0 or step.done in done["output"]
            return succeeded, done["writes"], done["error"] or done["output"]
        plan = make_plan(bundle.load("local", ROOT), step.job, {"git_sha": COMMIT}, step.task)
        self.code.killed = (step.task, killed_at)
        own = {"CHURN_SETTINGS": str(self.store / "settings.ini")}
        execute = partial(self.code.execute, own=own)
        run = run_plan(without_waiting(plan), self.store / "runs", execute=execute)
        error = next((task.error for task in run.tasks if task.error), "")
        return run.succeeded, self.code.writes.get(step.task, 0), error

    def __enter__(self) -> "Shop":
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop_endpoint()
        self.code.stop()

    def stop_endpoint(self) -> None:
        """End the model server, if there is one."""
        self.code.command(["endpoint", "stop"], self.environment(), self.folder / "commands")

    def state(self) -> dict[str, Any]:
        """As `seen` has it, by a process that has not had the store's former files open."""
        given, log = [str(self.store / "settings.ini")], self.folder / "state.log"
        return self.code.call("tests.faults.shop:seen", given, self.environment(), log)


# --- from outside


def seen(path: str) -> dict[str, Any]:
    """All that the next step, or somebody who looks, can see; moments and names of runs left out."""
    config = settings.load("local", Path(path))
    store, models = tables.connect(config), registry.connect(config)
    found: dict[str, Any] = {name: rows_of(store, name) for name in store.names()}
    found["versions"] = named_versions(registry.versions(models))
    experiments = [each.experiment_id for each in mlflow.search_experiments()]
    runs = mlflow.MlflowClient().search_runs(experiments)
    found["runs that seem to go on"] = sum(run.info.status == "RUNNING" for run in runs)
    whole = [run for run in runs if run.info.status == "FINISHED"]
    found["finished runs"] = sorted({f"{len(run.data.metrics)} metrics, {sorted(run.data.tags)}" for run in whole})  # fmt: skip
    found["promotion log"] = promotion_log.read(store, config.model_name).production
    found["chain is intact"] = chain.verify(models, store).intact
    found["endpoint"] = endpoint_of(config)
    found["left over"] = sorted(path.name for path in left_over(config.root))
    return found


def rows_of(store: tables.Tables, name: str) -> list[str]:
    """The rows of a table as JSON, in no order, without what belongs to one run."""
    frame, left = store.read(name).to_pandas(), RECORDS.get(name, set())
    kept = [column for column in frame if not str(column).endswith(OWN) and column not in left]
    # sums of the same numbers in another order differ in their last digits
    numbers = frame[kept].select_dtypes("float")
    frame[numbers.columns] = numbers.map(lambda value: float(f"{value:.7g}"))
    rows = frame[kept].to_json(orient="records", lines=True).splitlines()
    return sorted({*rows} if name in RECORDS else rows)


def named_versions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The versions that an alias names, whatever their number: a training that was cut off after its version
    was registered makes another."""
    kept = [
        {k: v for k, v in row.items() if not k.endswith(OWN) and k != "version"} for row in rows
    ]
    return [row for row in kept if row["aliases"]]


def endpoint_of(config: Settings) -> str:
    """What serves, and with which share of the traffic."""
    found = deploy.status(config)
    served = [(each["version"], each["traffic"]) for each in found.get("served", ())]
    return f"{found['state']} {served}"


def left_over(folder: Path) -> Iterator[Path]:
    """Files that a process has begun and not ended."""
    for path in folder.rglob("*"):
        if "runs" in path.relative_to(folder).parts:  # a run that was killed has its own folder
            continue
        if path.suffix in (".part", ".tmp") or ".part-" in path.name:
            yield path


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What is otherwise, one per line."""
    return [
        f"{key}: {only(found.get(key), expected.get(key))}, undisturbed {only(expected.get(key), found.get(key))}"
        for key in sorted({*expected, *found})
        if expected.get(key) != found.get(key)
    ]


def only(one: Any, other: Any) -> str:
    """What the one has and the other has not, cut to a line."""
    if isinstance(one, list) and isinstance(other, list):
        own = [each for each in one if one.count(each) > other.count(each)]
        return f"{len(one)} rows, of its own {str(own)[:500]}"
    return str(one)[:500]
