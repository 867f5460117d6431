"""What a copy needs is in it: nothing of staging's tables is read in production."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import ibis
import pandas as pd
import pytest

from churn_lib import registry, tables
from churn_lib import settings as settings_module
from churn_lib.data import simulation
from churn_lib.features import FEATURES
from churn_lib.gate import probe
from churn_lib.monitoring.windows import MonitoringError, read_baseline
from churn_lib.registry import copy, evidence
from churn_lib.serving.smoke_test import holdout_sample
from churn_lib.settings import Settings
from churn_lib.training.carried import carried_by, write_carried
from churn_lib.training.record import TrainingError, read_record, read_training_rows
from tests.conftest import run_job
from tests.registry.test_promotion import ROOT
from tests.workspaces import Workspace

CHAIN = ("01_feature_engineering", "02_train_and_register", "03_validate_and_promote")
Place = tuple[Settings, Settings, Workspace, Workspace, Path]


@pytest.fixture(scope="module")
def copied(
    workspaces: tuple[Workspace, Workspace], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """The jobs of staging have run, and its version was copied; production has other customers."""
    staging, production = workspaces
    folder = tmp_path_factory.mktemp("store")
    text = (ROOT / "settings.ini").read_text().replace("store = .churn", f"store = {folder}")
    (folder / "settings.ini").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_SETTINGS", str(folder / "settings.ini"))
        patch.setenv("CHURN_TASK_VALUES", str(folder / "values"))
        origin, here = settings_module.load("staging"), settings_module.load("production")
        for config, customers in ((origin, 3_000), (here, 2_500)):
            made = simulation.simulate(customers)
            for name, rows in zip(("events", "customers"), made, strict=True):
                tables.connect(config).overwrite(f"bronze.{name}", ibis.memtable(rows))
        with staging.signed_in():
            for name in CHAIN:
                run_job(name, folder, patch, target="staging")
        with production.signed_in():
            assert copy.copy(origin, here, "abc123", by="cd").state == "PROMOTED"
        yield origin, here, staging, production, folder


def test_the_baseline_of_a_copy_is_that_of_its_training(copied: Place) -> None:
    origin, here, staging, production, _ = copied
    with staging.signed_in():
        theirs = read_baseline(tables.connect(origin), registry.connect(origin), 1)
    with production.signed_in():
        store = tables.connect(here)
        assert not store.exists("gold.features")
        ours = read_baseline(store, registry.connect(here), 1)
    assert ours.features == theirs.features == tuple(FEATURES)
    assert (ours.trained_on, ours.judged_on) == (theirs.trained_on, theirs.judged_on)
    assert ours.reference == theirs.reference and len(ours.holdout) == len(theirs.holdout)
    for name, expected in theirs.distributions.items():
        assert (ours.distributions[name].counts == expected.counts).all()


def test_the_smoke_test_of_a_copy_asks_what_it_carries(copied: Place) -> None:
    _, here, _, production, folder = copied
    with production.signed_in():
        models, store = registry.connect(here), tables.connect(here)
        assert holdout_sample(models, store, 1, here).origin == "the gate recorded"
        bare = tables.DeltaTables(folder / "bare")  # no answers of the gate, and no features
        sample = holdout_sample(models, bare, 1, here)
        assert (sample.origin, len(sample.rows)) == ("its training recorded", 100)
        answers = models.load(1).predict(sample.rows)
    assert abs(answers - sample.expected).max() <= sample.tolerance


def test_the_gate_of_production_knows_whom_a_copy_was_trained_on(copied: Place) -> None:
    origin, here, staging, production, _ = copied
    with staging.signed_in():
        rows = read_training_rows(registry.connect(origin).version(1).run_id)
    assert rows is not None
    held = pd.DataFrame({"customer_id": [rows["customer_id"].iloc[0], "a stranger"]})
    with production.signed_in():
        carried = carried_by(registry.connect(here), 1)
        assert carried is not None
        found = carried.training_rows(held["customer_id"])
        assert len(found) == len(rows) and set(found.columns) == {"customer_id", "feature_date"}
        assert sorted(found.feature_date.unique()) == sorted(rows.feature_date.unique())
        assert set(found.customer_id) & set(held.customer_id) == {rows["customer_id"].iloc[0]}


def test_production_judges_a_copy_on_its_own_customers(
    copied: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gate needs no run of staging, and no version number of staging's table."""
    _, here, _, production, folder = copied
    monkeypatch.setenv("CHURN_SETTINGS", str(folder / "settings.ini"))
    monkeypatch.setenv("CHURN_TASK_VALUES", str(folder / "values"))
    with production.signed_in():
        run_job(CHAIN[0], folder, monkeypatch, target="production", as_of="2025-06-24")
        models, store = registry.connect(here), tables.connect(here)
        assert probe.training_problem_of(models, 1, store, 0, here) == ""
        today = {"target": "production", "as_of": "2025-06-24", "model_version": 1}
        run_job(CHAIN[2], folder, monkeypatch, **today)
        row = evidence.latest_report(models, store, 1)
        shutil.rmtree(store.path("gold.features"))
    assert row is not None and "a copy of models:/churn_staging" in row["report"]
    assert '"name": "leakage_customers"' in row["report"] and row["champion_version"] == 1


def test_a_copy_is_listed_with_its_metrics_and_no_number_of_the_other_table(copied: Place) -> None:
    origin, here, staging, production, _ = copied
    with staging.signed_in():
        (theirs,) = registry.versions(registry.connect(origin))
    with production.signed_in():
        (ours,) = registry.versions(registry.connect(here))
    assert theirs["delta_feature_version"] is not None and ours["delta_feature_version"] is None
    assert ours["roc_auc"] == pytest.approx(theirs["roc_auc"], abs=1e-6)
    assert ours["data_sample"] == theirs["data_sample"] and ours["aliases"] == ["Production"]


def test_what_only_its_origin_can_do_says_so(copied: Place) -> None:
    _, here, _, production, _ = copied
    with production.signed_in():
        models = registry.connect(here)
        with pytest.raises(
            TrainingError, match=r"is a copy of models:/churn_staging.*run is there"
        ):
            read_record(models, 1)


def test_a_copy_from_before_versions_carried_anything_is_watched_with_what_the_gate_recorded(
    copied: Place, tmp_path: Path
) -> None:
    _, here, _, production, folder = copied
    with production.signed_in():
        models, store = registry.connect(here), tables.connect(here)
        whole = read_baseline(store, models, 1)
        files = production.metastore.files(here.model_name, 1)
        shutil.move(files / "record", tmp_path / "record")
        try:
            old = read_baseline(store, models, 1)
            assert old.reference == whole.reference and old.judged_on == whole.judged_on
            assert holdout_sample(models, store, 1, here).origin == "the gate recorded"
            with pytest.raises(
                MonitoringError, match="made before versions carried what they were"
            ):
                read_baseline(tables.DeltaTables(folder / "bare"), models, 1)
        finally:
            shutil.move(tmp_path / "record", files / "record")


def test_the_same_training_makes_the_same_files(tmp_path: Path, copied: Place) -> None:
    _, here, _, production, _ = copied
    with production.signed_in():
        carried = carried_by(registry.connect(here), 1)
        model = registry.connect(here).load(1)
    assert carried is not None
    numbers = [f"c{n}" for n in range(len(carried.training))]
    training = carried.training.assign(customer_id=numbers)
    made = []
    for name in ("one", "two"):
        write_carried(tmp_path / name, model, training, training, FEATURES, {"horizon_days": "90"})
        paths = sorted((tmp_path / name / "record").iterdir())
        made.append([(path.name, path.read_bytes()) for path in paths])
    assert made[0] == made[1] and len(made[0]) == 4
    assert not any(b"c17" in content for _, content in made[0])
