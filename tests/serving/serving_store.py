"""A store with small real models and a server that ends with the test."""

import contextlib
import datetime
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import ibis
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier

from churn_lib import registry, settings, tables
from churn_lib.features import FEATURES
from churn_lib.model import ChurnModel
from churn_lib.registry import evidence
from churn_lib.registry.evidence import REPORTS
from churn_lib.serving.local import process
from churn_lib.training import train
from tests.shared import empty_mlflow, made_once

ROOT = Path(__file__).parents[2]


def feature_rows(count: int, seed: int = 0) -> pd.DataFrame:
    """Random customers."""
    values = np.random.default_rng(seed).exponential(10, (count, len(FEATURES)))
    return pd.DataFrame(values, columns=FEATURES)


def register(models: registry.Registry, trees: int, **tags: str) -> int:
    """A real model of that many trees as a new version."""
    X = feature_rows(400)
    y = (X.days_since_last_event > 8).astype(int)
    model = ChurnModel(HistGradientBoostingClassifier(max_iter=trees)).fit(X, y)
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            model,
            name="churn-gbm",
            signature=train.SIGNATURE,
            input_example=X.head(3),
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
        )
    return models.register(logged.model_uri, tags)


def judge(config: settings.Settings, version: int, verdict: str = "PASS", **changes: Any) -> None:
    """A row of gold.gate_reports as the gate leaves it; a version that fails does so by roc_auc."""
    low = {"name": "roc_auc", "value": 0.49, "bound": 0.8, "passed": verdict != "FAIL"}
    names = get_args(settings.GateCheck)
    others = [{"name": name, "passed": True} for name in names if name != "roc_auc"]
    report = {"checks": [low, *others], "checks_expected": names}
    report["settings"] = {"horizon_days": config.data.horizon_days}
    row = {
        "report_id": f"report-{version}-{verdict}",
        "created_at": datetime.datetime.now(datetime.UTC),
        "model_name": config.model_name,
        "model_version": version,
        "verdict": verdict,
        "run_id": registry.connect(config).version(version).run_id,
        "report": json.dumps(report),
        **changes,
    }
    rows = pa.Table.from_pylist([row], evidence.SCHEMA)
    tables.connect(config).append(REPORTS, ibis.memtable(rows))


def break_version(models: registry.Registry, version: int) -> None:
    """Take the file away that holds the model."""
    folder = mlflow.artifacts.download_artifacts(f"models:/{models.model_name}/{version}")
    (Path(folder) / "model.pkl").unlink()


def settings_in(folder: Path) -> settings.Settings:
    """The project's settings in `folder`, with a store that is not there yet."""
    shutil.copy(ROOT / "settings.ini", folder / "settings.ini")
    return settings.load("local", folder / "settings.ini")


def make(folder: Path) -> settings.Settings:
    """Settings of a store with versions 1 and 2, version 3 that cannot be loaded, all passed by the
    gate, and holdout rows."""
    shutil.copytree(made_once("serving_store", _fill), folder, dirs_exist_ok=True)
    config = settings.load("local", folder / "settings.ini")
    registry.connect(config)  # follows the store to where it is now
    return config


def _fill(folder: Path) -> None:
    config = settings_in(folder)
    empty_mlflow(config)
    store, models = tables.connect(config), registry.connect(config)
    rows = ibis.memtable(feature_rows(50, seed=9).assign(customer_id=range(50)))
    rows = rows.mutate(in_holdout_bucket=True, churned=0, feature_date=ibis.date("2025-01-01"))
    store.overwrite("gold.features", rows)
    for trees in (5, 9, 7):
        tags = {"delta_feature_version": "0", "holdout_feature_date": "2025-01-01"}
        number = register(models, trees, **tags)
        judge(config, number)
    break_version(models, 3)


@contextlib.contextmanager
def ended(config: settings.Settings) -> Iterator[None]:
    """Whatever happens inside, no server of the store is left."""
    try:
        yield
    finally:
        address = process.running(config)
        try:
            process.stop(config)
        except process.ServerError:
            assert address is not None
            os.kill(address.pid, signal.SIGKILL)
            raise
