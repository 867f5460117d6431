"""Trials on real stores: held-out rows count for nothing, nothing is written but the run."""

import datetime
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ibis
import mlflow
import numpy as np
import pandas as pd
import pytest

from churn_lib import features, registry
from churn_lib.experiments import ExperimentError, Trial, read_rows, try_idea
from churn_lib.experiments.recipes import not_exported
from churn_lib.experiments.rows import with_columns
from churn_lib.features.definitions import DECLARED
from churn_lib.features.holdout import in_holdout_bucket
from churn_lib.features.snapshots import TABLE
from churn_lib.registry import PRODUCTION
from churn_lib.settings import Settings, load
from churn_lib.tables import DeltaTables, connect
from churn_lib.testing import TODAY, register_version, shop_tables
from churn_lib.training import read_data_set, register, source
from churn_lib.training.train import train
from tests.conftest import ROOT
from tests.shared import made_once

QUICK = {"estimator": "logistic_regression", "folds": 3, "repeats": 1}


def _make(folder: Path) -> None:
    config = load("local").updated({"store": folder})
    tables = shop_tables(config, 1_500)
    models = registry.connect(config)
    data = read_data_set(tables.read(TABLE), tables.version(TABLE), config)
    made = train(data, config, "abc", source(tables, data.feature_version, config))
    models.set_alias(PRODUCTION, register(models, made))


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Settings]:
    """A shop with a version at Production, of this test alone."""
    shutil.copytree(made_once("experiments_shop", _make), tmp_path / "store")
    yield load("local").updated({"store": tmp_path / "store"})


def _connected(config: Settings) -> DeltaTables:
    found = connect(config)
    assert isinstance(found, DeltaTables)
    return found


def plain(trial: Trial) -> str:
    """All that was found but times."""
    found = trial.to_dict()
    for name in ("fit_seconds", "row_milliseconds"):
        found["scores"].pop(name)
    found.pop("run_id")
    return json.dumps(found) + trial.answers.to_json(double_precision=15)


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_held_out_rows_of_gold_features_count_for_nothing(shop: Settings) -> None:
    before = try_idea(**QUICK, settings=shop, logged=False)
    tables = _connected(shop)
    rows = tables.read(TABLE).to_pandas()
    newest_labelled = features.feature_dates(TODAY, shop)[1]
    poisoned = rows.in_holdout_bucket | (
        pd.to_datetime(rows.feature_date).dt.date == newest_labelled
    )
    assert poisoned.any()
    assert not poisoned.all()
    for column in features.FEATURES:
        rows[column] = rows[column].where(~poisoned, 12345).astype(rows[column].dtype)
    rows["churned"] = rows["churned"].where(~poisoned, 1 - rows["churned"])
    tags = {
        str(tag["feature_date"]): tag for tag in tables.history(TABLE).tags if "feature_date" in tag
    }
    for day, part in rows.groupby("feature_date"):
        date = pd.Timestamp(day).date()
        schema = tables.read(TABLE).schema()
        tables.overwrite(
            TABLE, ibis.memtable(part, schema=schema), {"feature_date": date}, tags[str(date)]
        )
    after = try_idea(**QUICK, settings=shop, logged=False)
    assert len(after.rows.reused) == 3
    assert after.rival.name == "version 1"
    assert plain(after) == plain(before)


def test_held_out_customers_events_count_for_nothing_where_rows_are_computed(
    shop: Settings,
) -> None:
    idea = {"mean_gap": lambda events: events.event_ts.epoch_seconds().mean()}
    changed = shop.updated({"data.horizon_days": 60})  # no partition is of this horizon
    before = try_idea(**QUICK, extra=idea, settings=changed, logged=False, as_of=TODAY)
    tables = _connected(shop)
    events = tables.read("bronze.events").to_pandas()
    held = np.array([in_holdout_bucket(who, shop.data.holdout_share) for who in events.customer_id])
    newest_labelled = features.feature_dates(TODAY, changed)[1]
    # the holdout's labels: events after its day; the last day stays, as today hangs on it
    later = (events.event_ts.dt.date > newest_labelled) & (
        events.event_ts.dt.date < TODAY - datetime.timedelta(40)
    )
    kept = events[
        ~(held & (np.arange(len(events)) % 3 > 0)) & ~(later & (np.arange(len(events)) % 4 > 0))
    ]
    assert len(kept) < len(events)
    tables.overwrite(
        "bronze.events", ibis.memtable(kept, schema=tables.read("bronze.events").schema())
    )
    after = try_idea(**QUICK, extra=idea, settings=changed, logged=False, as_of=TODAY)
    assert not after.rows.reused
    assert plain(after) == plain(before)


def test_nothing_is_written_but_one_run_of_mlflow(shop: Settings) -> None:
    before, versions = content(shop.store), registry.connect(shop).numbers()
    tried = try_idea(**QUICK, extra={"one": lambda rows: rows.total_events * 2.0}, settings=shop)
    models = registry.connect(shop)
    assert (models.numbers(), models.version_of(PRODUCTION)) == (versions, 1)
    after = content(shop.store)
    others = {path for path in after if "mlflow.db" not in path and tried.run_id not in path}
    assert others == {path for path in before if "mlflow.db" not in path}
    assert all(after[path] == before[path] for path in others)
    run = mlflow.get_run(tried.run_id)
    assert run.data.tags["experiment"] == "idea"
    assert run.data.tags["against"] == "version 1"
    files = {file.path for file in models.client.list_artifacts(tried.run_id)}
    assert {"experiment.json", "experiment.html", "idea.py", "settings.json"} <= files
    assert "total_events * 2.0" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/idea.py")


def test_the_recipe_of_production_is_its_own_columns_and_settings(shop: Settings) -> None:
    """A feature that was renamed since is read as the version was trained on it."""
    other = shop.updated({"training.estimator": "gradient_boosting"})
    tried = try_idea(
        settings=other, columns=features.FEATURES[:4], folds=3, repeats=1, logged=False
    )
    assert tried.rival.columns == features.FEATURES
    assert tried.rival.parameters()["estimator"] == "HistGradientBoostingClassifier"
    assert tried.idea.columns == features.FEATURES[:4]


@pytest.fixture
def without_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A working tree in which one feature is not declared any more."""
    gone, before = "distinct_products", dict(DECLARED)
    monkeypatch.setattr(features, "FEATURES", [name for name in features.FEATURES if name != gone])
    del DECLARED[gone]
    yield gone
    DECLARED.clear()
    DECLARED.update(before)


def test_a_column_that_only_production_has_is_taken_from_its_table(
    shop: Settings, without_products: str
) -> None:
    tried = try_idea(**QUICK, settings=shop, logged=False)
    assert tried.rows.reused == []
    assert without_products not in tried.idea.columns
    assert without_products in tried.rival.columns
    assert tried.rival.X[without_products].notna().all()
    assert not any("cannot compute" in note for note in tried.notes)


def test_a_column_that_is_nowhere_is_named_and_left_out(
    shop: Settings, without_products: str
) -> None:
    other_days = TODAY - datetime.timedelta(45)
    tried = try_idea(**QUICK, settings=shop, logged=False, as_of=other_days)
    assert without_products not in tried.rival.columns
    note = f"cannot compute {without_products}: its recipe is fitted without it"
    assert any(note in each for each in tried.notes)


def test_a_redefined_declaration_is_compared_with_what_it_was(shop: Settings) -> None:
    before = dict(DECLARED)
    try:
        former = DECLARED["total_events"]
        DECLARED["total_events"] = replace(former, expression=lambda events: -events.count())
        tried = try_idea(**QUICK, settings=shop, logged=False)
    finally:
        DECLARED.clear()
        DECLARED.update(before)
    assert (tried.idea.X["total_events"] <= 0).all()
    assert (tried.rival.X["total_events"] >= 0).all()
    assert "total_events" in tried.contributions.column.tolist()


def test_a_redefined_feature_is_compared_with_what_production_was_trained_on(
    shop: Settings,
) -> None:
    name = features.FEATURES[0]
    tried = try_idea(**QUICK, extra={name: lambda rows: -rows[name]}, settings=shop, logged=False)
    assert name in tried.contributions.column.tolist()
    assert (tried.rival.X[name] >= 0).all()
    assert (tried.idea.X[name] <= 0).all()


def test_production_of_another_program_leaves_the_best_column(shop: Settings) -> None:
    models = registry.connect(shop)
    models.set_alias(PRODUCTION, register_version(models))
    tried = try_idea(**QUICK, settings=shop, logged=False)
    assert tried.rival.name == "best single column and base rate"
    assert "Production's recipe is not known" in tried.notes[0]
    with pytest.raises(ExperimentError, match="version 2 has no settings on record"):
        try_idea(**QUICK, settings=shop, against_version=2, logged=False)


def test_an_idea_of_events_sees_nothing_after_the_day(shop: Settings) -> None:
    tables = _connected(shop)
    rows = read_rows(tables, shop)
    frame = with_columns(
        rows, {"last": lambda events: events.event_ts.max().epoch_seconds()}, tables
    )
    midnight = pd.to_datetime(frame.feature_date, utc=True).map(pd.Timestamp.timestamp)
    assert (frame["last"].dropna() <= midnight[frame["last"].notna()]).all()
    assert "churned" not in frame


def test_results_are_the_same_each_time(shop: Settings) -> None:
    given = {"settings": shop, "folds": 3, "repeats": 1, "logged": False}
    first, second = (try_idea("gradient_boosting", **given) for _ in range(2))
    assert plain(first) == plain(second)


def test_two_snapshots_judge_other_customers_of_one_day(shop: Settings) -> None:
    two = shop.updated({"data.snapshots": 2})
    tried = try_idea(**QUICK, settings=two, logged=False)
    assert any("one training snapshot" in note for note in tried.notes)
    assert len(tried.rows.days) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds = 1"),
        ({"repeats": 0}, "repeats = 0"),
        ({"estimator": "forest"}, "estimator = 'forest'"),
        ({"estimator": object()}, "has no fit and predict_proba"),
        ({"columns": []}, "columns is empty"),
        ({"extra": {"churned": lambda rows: rows.total_events}}, "this column is no feature"),
        ({"extra": {"name": lambda rows: rows.customer_id}}, "gives no numbers"),
        ({"extra": {"x": lambda events: events.select("customer_id")}}, "without customer_id or x"),
        ({"folds": 100_000}, "is more than the"),
    ],
)
def test_what_cannot_be_tried_is_refused_by_name(
    shop: Settings, options: dict, message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        try_idea(**{**QUICK, **options}, settings=shop, logged=False)


def test_without_events_the_way_to_them_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="churn pipeline"):
        try_idea(settings=load("local").updated({"store": tmp_path}))


def test_the_package_is_in_step_with_its_notebooks() -> None:
    assert not_exported(ROOT) == []
