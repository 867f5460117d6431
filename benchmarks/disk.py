"""What does a hundred days take on disk, with `churn maintain` each night and without?

    python -m benchmarks.disk --days 100 --customers 1000 --keep 14

Each day: the events of the day are loaded, the snapshot of today is built and scored, the endpoint's
requests are logged, and an executed notebook is kept for each job; each week a model is trained and
judged, and the days since are monitored. Both stores are made at the same time. The settings keep everything for `--keep` days and three versions that were at
Production, so that what is removed shows within the time; those that are shipped keep more, and come to
rest as these do. The clock of the maintenance is that of the simulation.
"""

import argparse
import datetime
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pyarrow as pa

from churn_lib import features, gate, maintenance, registry, scoring, settings, tables
from churn_lib.data import simulation
from churn_lib.features import feature_dates, newest_snapshot, read_holdout, snapshots
from churn_lib.gate import probe
from churn_lib.monitoring.verdict import monitor
from churn_lib.registry import promotion
from churn_lib.serving.local.request_log import SCHEMA
from churn_lib.settings import Settings
from churn_lib.training import train

ROOT = Path(__file__).parents[1]
REPORT = 600_000  # bytes of an executed notebook and its page, as `churn run` leaves them
REQUESTS = 200  # a day, in commits of twenty
JOBS = ("scoring_job", "monitoring_job")
PARTS = {
    "events and customers": "tables/*/bronze",
    "snapshots": "tables/*/gold/features",
    "predictions": "tables/*/gold/predictions",
    "requests": "tables/*/gold/*_payload",
    "monitoring": "tables/*/gold/*_*s",
    "runs and models": "mlartifacts",
    "MLflow database": "mlflow.db",
    "reports": "runs",
}


@dataclass
class Shop:
    """A store, its events to come, and when each of its days began."""

    config: Settings
    events: pd.DataFrame
    customers: pd.DataFrame
    schemas: tuple[pa.Schema, pa.Schema]
    begun: list[datetime.datetime] = field(default_factory=list)

    def ago(self, days: int) -> datetime.datetime:
        """When the day so many days before today began."""
        at = len(self.begun) - 1 - days
        return self.begun[at] if at >= 0 else datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def open_shop(folder: Path, customers: int, keep: int) -> Shop:
    """A project in `folder` with settings that keep everything for `keep` days."""
    shutil.copy(ROOT / "settings.ini", folder)
    config = settings.load("local", folder / "settings.ini")
    days = {key: keep for key, _ in config.flat() if key.startswith("keep.") and "_days" in key}
    changes = {"data.snapshots": 2, "data.horizon_days": 30, "keep.rollback_versions": 3}
    changes |= {"gate.min_roc_auc": 0.5, "gate.min_f1_score": 0.01, "gate.min_precision": 0.01}
    config = config.updated({**changes, **days})
    events, people = simulation.simulate(customers)
    frames = (events.to_pandas(), people.to_pandas())
    return Shop(config, *frames, (events.schema, people.schema))


def load(shop: Shop, store: tables.Tables, day: datetime.date, first: bool) -> None:
    """The events of the day before `day`, or all before it; and who has joined by then."""
    end = pd.Timestamp(day, tz="UTC")
    begin = pd.Timestamp(0, tz="UTC") if first else end - pd.Timedelta(days=1)
    events = shop.events[(shop.events.event_ts >= begin) & (shop.events.event_ts < end)]
    people = shop.customers[shop.customers.signup_ts < end]
    rows = [
        pa.Table.from_pandas(each, schema, preserve_index=False)
        for each, schema in zip((events, people), shop.schemas, strict=True)
    ]
    store.overwrite("bronze.customers", ibis.memtable(rows[1]))
    store.append("bronze.events", ibis.memtable(rows[0]))


def log_requests(store: tables.Tables, version: int) -> None:
    """What the endpoint was asked in a day."""
    now = datetime.datetime.now(datetime.UTC)
    known = {"request_date": now.date(), "request_time": now, "status_code": 200}
    known |= {"execution_duration_ms": 4.0, "model_version": version, "model_name": "churn"}
    body = json.dumps({"dataframe_records": [dict.fromkeys(features.FEATURES, 1.0)]})
    row = {
        **dict.fromkeys(SCHEMA.names),
        **known,
        "request": body,
        "response": '{"predictions": [0.5]}',
    }
    for _ in range(REQUESTS // 20):
        rows = pa.Table.from_pylist([row] * 20, SCHEMA)
        store.append("gold.churn_prediction_payload", ibis.memtable(rows))


def keep_reports(config: Settings, jobs: tuple[str, ...]) -> None:
    """A folder for each run."""
    for job in jobs:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")
        folder = config.store / "runs" / job / f"{stamp}-abcdef"
        folder.mkdir(parents=True)
        (folder / "task.ipynb").write_bytes(b" " * REPORT)
        (folder / "run.json").write_text('{"tasks": [{"task_key": "task", "state": "SUCCESS"}]}')


def built(shop: Shop, store: tables.Tables, day: datetime.date, newest_only: bool) -> None:
    """The snapshots of a day."""
    bronze = {name: store.version(name) for name in ("bronze.events", "bronze.customers")}
    days = feature_dates(day, shop.config)[: 1 if newest_only else None]
    list(snapshots.build(store, bronze, days, day, shop.config))


def train_and_judge(shop: Shop, store: tables.Tables, models: Any, day: datetime.date) -> None:
    """What training_job and validation_job do, in this process; what passes goes to Production."""
    built(shop, store, day, False)
    version = store.version(snapshots.TABLE)
    table = store.read(snapshots.TABLE, version)
    data = train.read_data_set(table, version, shop.config, day)
    trained = train.train(data, shop.config, "simulated", train.source(store, version, shop.config))
    number = train.register(models, trained)
    holdout, _ = read_holdout(table, shop.config, newest_snapshot(table))
    rows, basis = holdout, registry.basis(models, number, shop.config, store)
    known = {"newest": probe.newest_rows(table), "training_problem": ""}
    shown = probe.FeatureTable(store, version, {})
    case = probe.examine(models, number, rows, "", basis, shop.config, shown, **known)
    report = gate.judge(case, None, rows, shop.config)
    gate.record(report, models, store, version, "simulated")
    before = models.version_of(registry.PRODUCTION)
    versions = {"from_version": before, "to_version": number}
    facts = {"git_sha": "simulated", "report_id": None, "reason": "weekly"}
    seen = promotion.promotion_log.read(store, models.model_name)
    move = promotion.next_move(models, seen, "benchmark", action="promote", **versions, **facts)
    promotion.move_production(models, store, move, seen, None)
    keep_reports(shop.config, ("training_job", "validation_job"))


def one_day(shop: Shop, number: int, day: datetime.date) -> tuple[tables.Tables, Any]:
    """Everything that is done in a day but maintenance."""
    shop.begun.append(datetime.datetime.now(datetime.UTC))
    store, models = tables.connect(shop.config), registry.connect(shop.config)
    load(shop, store, day, number == 0)
    if number % 7 == 0:
        train_and_judge(shop, store, models, day)
    built(shop, store, day, True)
    scorer = scoring.production(models, shop.config, store)
    scoring.score(store, scoring.read_snapshot(store, day, scorer), scorer, "simulated")
    if number % 7 == 6:
        monitor(store, models, shop.config, day, "simulated", notify=False)
    log_requests(store, scorer.version)
    keep_reports(shop.config, JOBS)
    return store, models


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def sizes(store: Path) -> dict[str, int]:
    """Bytes of each part and of the whole, and how many files there are."""
    taken, found = set[Path](), dict[str, int]()
    for name, pattern in PARTS.items():
        mine = set(store.glob(pattern)) - taken
        taken |= mine
        found[name] = sum(map(size, mine))
    files = sum(1 for each in store.rglob("*") if each.is_file())
    return {**found, "everything": size(store), "files": files}


def days_of(shop: Shop, days: int) -> Iterator[datetime.date]:
    """The last days that the events reach, oldest first."""
    end = shop.events.event_ts.max().date()
    for number in range(days):
        yield end - datetime.timedelta(days=days - 1 - number)


def simulate(days: int, customers: int, keep: int, maintained: bool) -> list[dict[str, int]]:
    """What the store takes after each day."""
    with tempfile.TemporaryDirectory() as folder:
        shop, found = open_shop(Path(folder), customers, keep), list[dict[str, int]]()
        for number, day in enumerate(days_of(shop, days)):
            store, models = one_day(shop, number, day)
            if maintained:
                maintenance.maintain(shop.config, store, models, ago=shop.ago)
            found.append(sizes(shop.config.store))
        return found


def main() -> None:
    """Print what each part takes at the half and at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--customers", type=int, default=1_000)
    parser.add_argument("--keep", type=int, default=14, help="days, of everything")
    given = parser.parse_args()
    began, half = time.monotonic(), given.days // 2 - 1
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        sizes_of = partial(pool.submit, simulate, given.days, given.customers, given.keep)
        started = {name: sizes_of(name == "with") for name in ("without", "with")}
        runs = {name: each.result() for name, each in started.items()}
    columns = {
        f"{name} maintain, day {at + 1}": found[at]
        for name, found in runs.items()
        for at in (half, given.days - 1)
    }
    table = pd.DataFrame(columns)
    megabytes = table.drop(index="files") / 1e6
    print(megabytes.round(1).to_string())
    print(table.loc[["files"]].to_string())
    print(f"{given.days} days, {given.customers:,} customers, MB; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
