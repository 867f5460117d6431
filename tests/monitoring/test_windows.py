"""The life of a model: quiet, worse, replaced, quiet again; and what the monitor makes of odd inputs."""

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ibis
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_lib import features, registry, settings, testing
from churn_lib import tables as tables_module
from churn_lib.data import events
from churn_lib.monitoring import (
    Verdict,
    alerts,
    databricks,
    metrics,
    monitor,
    requests,
)
from churn_lib.monitoring import (
    windows as monitoring,
)
from churn_lib.monitoring.metrics import read_metrics, whole
from churn_lib.registry import promotion_log
from churn_lib.serving.local import process
from churn_lib.tables import DeltaTables
from churn_lib.tables.spark import SparkTables
from churn_lib.training import SIGNATURE
from churn_lib.training import train as training

ROOT = Path(__file__).parents[2]
CHURN = Path(sys.executable).parent / "churn"
FIRST = datetime.date(2024, 1, 1)
CHANGE, END = 540, 930  # days after FIRST: customers buy less; the data ends


def day(number: int) -> datetime.date:
    """A day of the shop."""
    return FIRST + datetime.timedelta(days=number)


def event_rows(owner: np.ndarray, moment: np.ndarray, product: np.ndarray) -> pd.DataFrame:
    """Rows of the events contract in time order; `moment` is in days since FIRST."""
    frame = pd.DataFrame({"owner": owner, "product": product})
    seconds = pd.to_timedelta((moment * 86_400).astype("int64"), unit="s")
    frame["event_ts"] = pd.Timestamp(FIRST, tz="UTC") + seconds
    frame = frame.sort_values(["event_ts", "owner"], ignore_index=True)
    frame["customer_id"] = "c" + frame["owner"].astype(str).str.zfill(7)
    frame["session_id"] = frame["customer_id"] + frame["event_ts"].dt.strftime("-%Y%m%d")
    frame["product_id"] = "p" + frame["product"].astype(str)
    frame["event_id"] = "e" + frame.index.astype(str).str.zfill(9)
    return frame[events.EVENTS.names]


def shop(customers: int = 2_500, seed: int = 0) -> tuple:
    """Customers who come all the time and buy at a personal rate, from day CHANGE on a third of it."""
    rng = np.random.default_rng(seed)
    arrival = rng.uniform(0, END, customers)
    rate = rng.gamma(0.7, 0.05, customers)
    before = rng.poisson(rate * np.maximum(CHANGE - arrival, 0))
    after = rng.poisson(rate / 3 * (END - np.maximum(arrival, CHANGE)))
    owner = np.concatenate(
        [np.arange(customers), *(np.repeat(np.arange(customers), n) for n in (before, after))]
    )
    moment = np.concatenate(
        [
            arrival,
            rng.uniform(arrival[np.repeat(np.arange(customers), before)], CHANGE),
            rng.uniform(np.maximum(arrival, CHANGE)[np.repeat(np.arange(customers), after)], END),
        ]
    )
    frame = event_rows(owner, moment, rng.integers(0, 100, len(owner)))
    return pa.Table.from_pandas(frame, events.EVENTS, preserve_index=False), events.customers_of(
        frame
    )


def make_settings(folder: Path) -> settings.Settings:
    """The project's settings with a gate that suits the shop."""
    changes = {
        "data.snapshots": "3",
        "gate.min_roc_auc": "0.6",
        "gate.min_f1_score": "0.3",
        "gate.min_precision": "0.3",
        "gate.margin": "0.05",
        "gate.f1_margin": "0.05",
    }
    lines = (ROOT / "settings.ini").read_text().splitlines()
    kept = [line for line in lines if line.split(" =")[0] not in changes]
    at = kept.index("[DEFAULT]") + 1
    kept[at:at] = [f"{name} = {value}" for name, value in changes.items()]
    (folder / "settings.ini").write_text("\n".join(kept) + "\n")
    return settings.load("local", folder / "settings.ini")


class Shop:
    """A store, and what a user does with it."""

    def __init__(self, folder: Path):
        self.folder, self.settings = folder, make_settings(folder)
        self.tables = tables_module.connect(self.settings)
        self.models = registry.connect(self.settings)
        self.unscored = folder.with_name("unscored")  # as it is before anything is predicted
        for name, rows in zip(("events", "customers"), shop(), strict=True):
            self.tables.overwrite(f"bronze.{name}", ibis.memtable(rows))

    def engineer(self, number: int, all_days: bool = False) -> datetime.date:
        """Snapshots as of a day: the newest, or all that training needs."""
        raw, customers = (self.tables.read(f"bronze.{name}") for name in ("events", "customers"))
        wanted = features.feature_dates(day(number), self.settings)
        for each in wanted if all_days else wanted[:1]:
            rows = features.snapshot(raw, customers, each, day(number), self.settings)
            self.tables.overwrite("gold.features", rows, {"feature_date": each})
        return day(number)

    def train(self, number: int) -> int:
        """A model as of a day, at Production."""
        self.engineer(number, all_days=True)
        version = self.tables.version("gold.features")
        source = self.tables.read("gold.features", version)
        data = training.read_data_set(source, version, self.settings, day(number))
        made = training.register(self.models, training.train(data, self.settings, "abc"))
        self.models.set_alias(registry.PRODUCTION, made)
        return made

    def score(self, number: int, share: float = 1.0, **broken: float) -> None:
        """Predictions of Production for a day."""
        when, version = self.engineer(number), self.models.version_of(registry.PRODUCTION)
        rows = self.tables.read("gold.features")
        rows = rows.filter(rows.feature_date == when).to_pandas().assign(**broken)
        rows = rows.head(int(share * len(rows)))
        if broken:
            self.tables.overwrite(
                "gold.features",
                ibis.memtable(
                    rows.assign(
                        feature_date=when, churned=pd.array([None] * len(rows), dtype="Int64")
                    )
                ),
                {"feature_date": when},
            )
        model = self.models.load(version)
        made = rows[["customer_id"]].assign(
            feature_date=when,
            model_name=self.settings.model_name,
            model_version=version,
            churn_probability=model.predict(rows[features.FEATURES].astype(float)),
            scored_at=datetime.datetime.now(datetime.UTC),
        )
        self.tables.overwrite("gold.predictions", ibis.memtable(made), {"feature_date": when})

    def monitor(self, number: int) -> Verdict:
        """What the monitor says on a day."""
        return monitor(self.tables, self.models, self.settings, day(number), "abc")

    def churn(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line on this store."""
        dropped = ("CHURN_", "MLFLOW_", "DATABRICKS_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return subprocess.run(
            [str(CHURN), *arguments],
            cwd=ROOT,
            env={**kept, "CHURN_SETTINGS": str(self.folder / "settings.ini")},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A shop with version 1 at Production, trained the day before customers buy less."""
    found = Shop(tmp_path_factory.mktemp("shop"))
    assert found.train(CHANGE) == 1
    shutil.copytree(found.folder, found.unscored)
    return found


def totals(store: DeltaTables) -> pd.DataFrame:
    """The rows about whole windows."""
    rows = whole(read_metrics(store, monitoring.PROFILE_METRICS)).query("column_name == ':table'")
    return rows.set_index("window_date")


@pytest.mark.timeout(1_500)  # four kernels one after the other, on a machine that may be busy
def test_a_model_lives_fails_is_replaced_and_the_monitor_is_quiet_again(trained: Shop) -> None:
    # nothing predicted yet
    silent = trained.monitor(CHANGE)
    assert (silent.verdict, silent.retrain) == ("no_data", False)

    # the first window: quality is unknown, and nothing is set off
    trained.score(CHANGE)
    first = trained.monitor(CHANGE)
    assert (first.verdict, first.quality, first.retrain, first.alerts) == (
        "ok",
        "unknown",
        False,
        (),
    )

    # a quarter and more has passed, labels have come, and far more people stay away than predicted
    for number in (CHANGE + 30, CHANGE + 60):
        trained.score(number)
    late = CHANGE + 160
    worse = trained.monitor(late)
    assert worse.verdict == "no_data" or worse.verdict == "retrain"  # the last scoring is long ago
    assert "quality" in {each.cause for each in worse.causes}
    assert worse.quality == "lost" and worse.retrain
    found = totals(trained.tables)
    assert found.quality.tolist() == ["lost"] * 3
    assert found.estimate_error_roc_auc_score.notna().all()

    # the same question again: the same answer, and no second alert
    raised = alerts.events(trained.tables)
    again = trained.monitor(late)
    assert [a.alert_id for a in again.alerts] == [a.alert_id for a in worse.alerts]
    assert alerts.events(trained.tables).equals(raised)
    status = trained.churn("monitor", "status", "--as-of", str(day(late)), "--json")
    assert status.returncode == 4, status.stderr
    assert json.loads(status.stdout)["retrain"] is True

    # the job itself: training, gate and endpoint, with the alert on record
    try:
        answer = trained.churn(
            "run", "monitoring_job", "-p", "git_sha=abc", "-p", f"as_of={day(END)}", "--json"
        )
    finally:
        process.stop(trained.settings)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    tasks = {task["task_key"]: task for task in json.loads(answer.stdout)["tasks"]}
    ran = ["monitor", "retraining_is_due", "retrain", "validate", "deploy"]
    assert {name: task["state"] for name, task in tasks.items()} == dict.fromkeys(ran, "SUCCESS")
    assert trained.models.aliases() == {"Staging": 2, "Production": 2, "Previous": 1}
    asked = [a.alert_id for a in worse.alerts if a.severity == "retrain"]
    assert asked and tasks["monitor"]["values"]["alerts"] == ", ".join(asked)
    (*_, move) = promotion_log.read(trained.tables, trained.models.model_name).moves
    assert move.to_version == 2 and move.reason.startswith("passed the gate, retrained for ")
    assert all(name in move.reason for name in asked)

    # it has been acted upon: no second training, though the alert is still open
    waiting = trained.monitor(END)
    assert waiting.alerts and not waiting.retrain

    # it predicts, and the alert of its predecessor is closed
    trained.score(END)
    calm = trained.monitor(END)
    assert (calm.verdict, calm.model_version, calm.alerts, calm.retrain) == ("ok", 2, (), False)


def test_the_label_of_the_monitor_is_that_of_the_features(trained: Shop) -> None:
    trained.score(CHANGE)
    version = trained.models.version_of(registry.PRODUCTION)
    window = monitoring.Window(day(CHANGE), day(CHANGE + 1), version, (day(CHANGE),))
    inputs = registry.inputs_of(trained.models, version)
    rows = monitoring.read_rows(trained.tables, window, day(END), trained.settings, inputs)
    raw, customers = (trained.tables.read(f"bronze.{name}") for name in ("events", "customers"))
    truth = features.snapshot(raw, customers, day(CHANGE), day(END), trained.settings).to_pandas()
    merged = rows.merge(truth, on="customer_id", suffixes=("", "_truth"))
    assert len(merged) == len(rows) > 0
    assert (merged.churned == merged.churned_truth).all()
    early = monitoring.read_rows(trained.tables, window, day(CHANGE + 89), trained.settings, inputs)
    assert early.churned.isna().all()


class OnlineShop:
    """A copy of the shop that has never scored a batch: only its endpoint is used."""

    def __init__(self, shop: Shop, folder: Path, source: Path | None = None):
        shutil.copytree(source or shop.unscored, folder)
        self.settings, self.models = settings.load("local", folder / "settings.ini"), shop.models
        self.tables = tables_module.connect(self.settings)
        self.model = shop.models.load(1)

    def ask(self, number: int, named: bool, smoke_test: bool = False) -> int:
        """Ask about some customers of a day, one by one; how many those are."""
        raw, customers = (self.tables.read(f"bronze.{name}") for name in ("events", "customers"))
        when = day(number)
        rows = features.snapshot(raw, customers, when, when, self.settings).to_pandas().head(600)
        values = rows[features.FEATURES].astype(float)
        split = {"columns": features.FEATURES}
        calls = pd.DataFrame(
            {
                "request_time": pd.Timestamp(when, tz="UTC") + pd.Timedelta(hours=12),
                "status_code": 200,
                "execution_duration_ms": 5.0,
                "request": [
                    json.dumps({"dataframe_split": {**split, "data": [row]}})
                    for row in values.to_numpy().tolist()
                ],
                "response": [f'{{"predictions": [{p}]}}' for p in self.model.predict(values)],
                "client_request_id": rows.customer_id if named else None,
                "model_version": 1,
            }
        )
        calls["client_request_id"] = calls.client_request_id.astype("string")
        if smoke_test:
            calls["client_request_id"] = "smoke-test"
        name = requests.table_name(self.settings)
        self.tables.append(name, ibis.memtable(calls.assign(request_date=when)))
        return len(rows)

    def score(self, number: int) -> None:
        """A batch of every customer of a day."""
        raw, customers = (self.tables.read(f"bronze.{name}") for name in ("events", "customers"))
        when = day(number)
        rows = features.snapshot(raw, customers, when, when, self.settings)
        self.tables.overwrite("gold.features", rows, {"feature_date": when})
        made = rows.to_pandas()
        answers = self.model.predict(made[features.FEATURES].astype(float))
        made = made[["customer_id"]].assign(
            feature_date=when,
            model_name=self.settings.model_name,
            model_version=1,
            churn_probability=answers,
            scored_at=datetime.datetime.now(datetime.UTC),
        )
        self.scored = len(made)
        self.tables.overwrite("gold.predictions", ibis.memtable(made), {"feature_date": when})

    def windows(self, number: int) -> list[monitoring.Window]:
        """What there is to monitor on a day."""
        return monitoring.windows(self.tables, self.settings, day(number), 1)

    def monitor(self, number: int) -> Verdict:
        """What the monitor says on a day."""
        return monitor(self.tables, self.models, self.settings, day(number), "abc")


def test_answers_of_an_endpoint_are_enough(trained: Shop, tmp_path: Path) -> None:
    online = OnlineShop(trained, tmp_path / "online")
    online.ask(CHANGE, named=True, smoke_test=True)
    assert online.monitor(CHANGE + 1).verdict == "no_data"  # no other requests

    for number in (CHANGE, CHANGE + 30):
        assert online.ask(number, named=True) == 600
    online.ask(CHANGE + 60, named=False)
    early = online.monitor(CHANGE + 61)
    assert (early.model_version, early.quality) == (1, "unknown")
    assert early.verdict != "no_data"
    found = totals(online.tables)
    assert found["count"].tolist() == [600] * 3
    assert found.estimated_roc_auc_score.notna().all()

    # a request has floats where the table has whole numbers: tiers are tiers
    drift = whole(read_metrics(online.tables, monitoring.DRIFT_METRICS))
    tiers = drift[(drift.column_name == "recency_tier") & (drift.drift_type == "BASELINE")]
    assert len(tiers) == 3 and tiers.effect.max() < 0.5

    # labels are found of requests that name their customer; the others have none
    late = online.monitor(CHANGE + 160)
    assert (late.quality, late.verdict) == ("lost", "retrain")
    assert totals(online.tables).labelled_rows.tolist() == [600, 600, 0]
    assert totals(online.tables).quality.tolist() == ["lost", "lost", "unknown"]
    assert not online.tables.exists(monitoring.PREDICTIONS)


def test_a_shop_that_moves_from_batches_to_its_endpoint_is_watched_there(
    trained: Shop, tmp_path: Path
) -> None:
    online = OnlineShop(trained, tmp_path / "moved")
    online.score(CHANGE)
    online.ask(CHANGE, named=True)
    # as long as batches are expected, the answers count as nothing of their own
    assert [each.online for each in online.windows(CHANGE + 20)] == [False]
    for number in (CHANGE + 40, CHANGE + 45):
        online.ask(number, named=True)
    assert [each.online for each in online.windows(CHANGE + 50)] == [False, True, True]
    ceased = f"scoring_job has predicted nothing since {day(CHANGE)}"
    assert any(problem.startswith(ceased) for problem in online.monitor(CHANGE + 50).problems)
    found = online.monitor(CHANGE + 50)
    assert {each.cause for each in found.causes}.isdisjoint({"no_data", "volume"})
    assert totals(online.tables)["count"].tolist() == [online.scored, 600, 600]
    # and silence is noticed there as well
    assert online.monitor(CHANGE + 90).verdict == "no_data"


DIES = """
import datetime, os, signal, sys
from pathlib import Path
from churn_lib import settings, tables
from churn_lib.monitoring import monitor
from churn_lib.registry import models as registry

config = settings.load("local", Path(sys.argv[1]))
store, commits = tables.connect(config), int(sys.argv[3])

def counted(write):
    def commit(*given, **named):
        global commits
        if commits == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        commits -= 1
        return write(*given, **named)
    return commit

for name in ("overwrite", "append", "append_if_unchanged"):
    setattr(store, name, counted(getattr(store, name)))
monitor(store, registry.connect(config), config, datetime.date.fromisoformat(sys.argv[2]), "abc")
"""


def test_a_monitor_that_is_killed_between_two_commits_says_the_same_when_it_is_run_again(
    trained: Shop, tmp_path: Path
) -> None:
    undisturbed = OnlineShop(trained, tmp_path / "calm")
    for number in (CHANGE, CHANGE + 30):
        undisturbed.ask(number, named=True)
    killed = OnlineShop(trained, tmp_path / "killed", source=tmp_path / "calm")
    late = CHANGE + 160
    verdict = undisturbed.monitor(late)
    assert verdict.alerts
    folder = str(tmp_path / "killed" / "settings.ini")
    # between the three tables of the first window, then before an alert is raised
    for commits in (1, 6):
        arguments = [sys.executable, "-c", DIES, folder, str(day(late)), str(commits)]
        assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert killed.monitor(late).to_dict()["sentence"] == verdict.sentence
    logs = [alerts.events(each.tables)[["alert_id", "event"]] for each in (undisturbed, killed)]
    assert logs[0].equals(logs[1])
    for name in (monitoring.PROFILE_METRICS, monitoring.DRIFT_METRICS, monitoring.COLUMN_CHECKS):
        rows = [
            read_metrics(each.tables, name).drop(columns="computed_at").astype(str)
            for each in (undisturbed, killed)
        ]
        columns = list(rows[0].columns)
        left, right = (each.sort_values(columns, ignore_index=True) for each in rows)
        pd.testing.assert_frame_equal(left, right)


@pytest.mark.timeout(900)  # Spark takes seconds for each of many small queries
def test_on_spark_the_monitor_says_what_it_says_here(
    trained: Shop, tmp_path: Path, spark_tables: SparkTables
) -> None:
    here = OnlineShop(trained, tmp_path / "here")
    here.score(CHANGE)
    here.ask(CHANGE, named=True)
    for name in here.tables.names():
        rows = here.tables.read(name).to_pyarrow()
        version = here.tables.version(name)
        spark_tables.overwrite(name, ibis.memtable(rows))
        while spark_tables.version(name) < version:  # a model remembers what it was made from
            spark_tables.overwrite(name, ibis.memtable(rows))
    verdict = here.monitor(CHANGE + 100)
    there = monitor(spark_tables, here.models, here.settings, day(CHANGE + 100), "abc")
    assert there.to_dict() | {"alerts": []} == verdict.to_dict() | {"alerts": []}
    assert [each.alert_id for each in there.alerts] == [each.alert_id for each in verdict.alerts]
    assert verdict.alerts
    for name in (monitoring.PROFILE_METRICS, monitoring.DRIFT_METRICS):
        left, right = (read_metrics(store, name) for store in (here.tables, spark_tables))
        assert sorted(left.columns) == sorted(right.columns)
        keys = ["window_date", "slice_key", "slice_value", "column_name"]
        counted = [each.fillna("").groupby(keys).size() for each in (left[keys], right[keys])]
        assert counted[0].equals(counted[1])
    # what Databricks profiles besides
    for _ in range(2):
        databricks.write_tables(there.refresher, there.refresher.computed, 1)
    profiled = spark_tables.read(databricks.PROFILED).to_pandas()
    assert len(profiled) == here.scored
    assert profiled.churned.notna().all() and profiled.churn_probability.notna().all()
    baseline = spark_tables.read(databricks.BASELINE)
    assert sorted(baseline.columns) == sorted(profiled.columns)


def test_a_broken_column_and_a_drop_of_volume_are_found_and_start_no_training(
    trained: Shop,
) -> None:
    for number in (END - 3, END - 2):
        trained.score(number)
    for number in (END - 1, END):
        trained.score(number, share=0.2, total_sessions=0, events_last_90d=0)
    found = trained.monitor(END)
    causes = {each.cause for each in found.causes}
    assert {"volume", "broken_column"} <= causes
    assert "estimated_quality" not in causes
    (message,) = [each.message for each in found.causes if each.cause == "broken_column"]
    assert "total_sessions" in message and "fix the source" in message
    assert not found.retrain


def test_a_version_of_unknown_origin_is_watched_as_far_as_possible(trained: Shop) -> None:
    source = trained.models.client.get_model_version(trained.settings.model_name, "1").source
    model = mlflow.sklearn.load_model(source)
    foreign = testing.register_version(trained.models, model, signature=SIGNATURE)
    trained.models.set_alias(registry.PRODUCTION, foreign)
    trained.score(END)
    found = trained.monitor(END)
    assert found.model_version == foreign
    assert any("was not made by training_job" in problem for problem in found.problems)


def test_windows_are_computed_once_and_again_when_labels_have_come() -> None:
    config = settings.load("local", ROOT / "settings.ini")
    days = [day(30 * n) for n in range(8)]
    made = [monitoring.Window(each, each + datetime.timedelta(1), 1, (each,)) for each in days]
    done = pd.DataFrame({"window_date": days, "model_version": 1, "as_of": day(210)})
    assert metrics.due(made, done, day(210), config) == made[-3:]
    # 90 days after the fifth one
    assert metrics.due(made, done, day(215), config) == made[-3:]
    assert metrics.due(made, done, day(120 + 90), config) == made[-3:]
    older = done.assign(as_of=day(150))
    assert metrics.due(made, older, day(180), config) == [made[3], *made[-3:]]
    assert metrics.due(made, done.iloc[:0], day(210), config) == made
