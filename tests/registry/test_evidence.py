"""What the gate has judged is kept, linked and compared: on Delta tables and an MLflow store."""

import gc
import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_lib import registry, settings
from churn_lib.features import FEATURES
from churn_lib.registry import Registry, RegistryError, evidence
from churn_lib.registry.evidence import REPORTS, VersionChanged
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables
from churn_lib.training.carried import carried_by
from tests.serving import serving_store

ROOT = Path(__file__).parents[2]
NOW = datetime(2025, 3, 27, tzinfo=UTC)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with version 1 of a real model."""
    folder = tmp_path_factory.mktemp("evidence")
    config = settings.load("local", ROOT / "settings.ini").updated({"store": folder / "store"})
    serving_store.register(registry.connect(config), 5, decision_threshold="0.4")
    return config


@pytest.fixture
def models(template: Settings, tmp_path: Path) -> Registry:
    shutil.copytree(template.store, tmp_path / "store")
    return registry.connect(template.updated({"store": tmp_path / "store"}))


@pytest.fixture
def store(tmp_path: Path) -> DeltaTables:
    return DeltaTables(tmp_path / "tables")


def judge(
    models: Registry, store: DeltaTables, name: str, verdict: str = "PASS", **changes: Any
) -> dict[str, Any]:
    """A report of version 1 as the gate writes it."""
    report = {
        "digest": evidence.version_digest(models, 1),
        "contents": evidence.version_contents(models, 1),
    }
    row = {
        "report_id": name,
        "created_at": NOW,
        "model_name": models.model_name,
        "model_version": 1,
        "verdict": verdict,
        "run_id": models.version(1).run_id,
        "feature_date": date(2025, 3, 26),
        "report": json.dumps(report),
    }
    return evidence.append_report(models, store, {**row, **changes})


def files_of(models: Registry) -> Path:
    return Path(mlflow.artifacts.download_artifacts(f"models:/{models.model_name}/1"))


def test_the_digest_of_a_version_is_the_same_wherever_its_files_are(
    models: Registry, tmp_path: Path
) -> None:
    digest = evidence.version_digest(models, 1)
    models.load(1).predict(serving_store.feature_rows(3))
    fetched = models.download(1, tmp_path / "fetched")
    (fetched / "code" / "__pycache__").mkdir(parents=True)
    (fetched / "code" / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    assert evidence.version_digest(models, 1) == digest
    assert evidence.version_digest(models, 1, fetched) == digest
    assert evidence.folder_digest(fetched, "0.4") == digest != evidence.folder_digest(fetched)
    another = Registry("another")
    mlflow.MlflowClient().create_registered_model("another")
    assert evidence.version_digest(another, models.copy(1, another)) == digest


def test_the_files_of_a_loaded_version_go_with_it_and_nothing_else_stays(
    models: Registry, store: DeltaTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(models, store, "first")
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    loaded = [models.load(1), evidence.load_unchanged(models, store, 1)]
    assert len([*place.iterdir()]) == 2, "a model may read its files later"
    assert registry.inputs_of(models, 1)
    carried_by(models, 1)
    assert len([*place.iterdir()]) == 2
    for model in loaded:
        assert len(model.predict(serving_store.feature_rows(3))) == 3
    del model
    loaded.clear()
    gc.collect()
    assert [*place.iterdir()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.pkl").write_bytes(b"x"), "model.pkl differs"),
        (lambda folder: (folder / "more.py").write_text("x = 1"), "more.py is new"),
        (lambda folder: (folder / "requirements.txt").unlink(), "requirements.txt is gone"),
        (
            lambda folder: (folder / "MLmodel").write_text(
                (folder / "MLmodel").read_text().replace("total_events", "all_events")
            ),
            "signature differs",
        ),
        (
            lambda folder: (folder / "MLmodel").write_text(
                (folder / "MLmodel").read_text().replace("mlflow.sklearn", "my.loader")
            ),
            "flavors differs",
        ),
    ],
)
def test_a_file_that_changed_after_judgement_is_named(
    models: Registry, store: DeltaTables, change: Any, message: str
) -> None:
    judge(models, store, "judged")
    evidence.refuse_changed(models, store, 1)
    change(files_of(models))
    with pytest.raises(VersionChanged, match=message) as refused:
        evidence.refuse_changed(models, store, 1)
    text = str(refused.value)
    assert "version 1 of" in text and "report judged judged on 2025-03-27" in text
    assert "`churn run validation_job -p model_version=1` judges it again" in text
    assert "\n" not in text


def test_a_threshold_that_changed_after_judgement_is_named_and_a_new_judgement_takes_it(
    models: Registry, store: DeltaTables
) -> None:
    judge(models, store, "first")
    models.tag(1, {"decision_threshold": "0.99"})
    with pytest.raises(VersionChanged, match=r"decision_threshold is 0\.99, was 0\.4"):
        evidence.refuse_changed(models, store, 1)
    judge(models, store, "refused", "FAIL")
    with pytest.raises(VersionChanged, match="report first"):
        evidence.refuse_changed(models, store, 1)
    judge(models, store, "second")
    evidence.refuse_changed(models, store, 1)


def test_a_report_without_digest_or_no_report_stops_nobody(
    models: Registry, store: DeltaTables
) -> None:
    evidence.refuse_changed(models, store, 1)
    judge(models, store, "old", report=json.dumps({"checks": []}))
    models.tag(1, {"decision_threshold": "0.99"})
    evidence.refuse_changed(models, store, 1)


def test_a_report_without_the_parts_of_its_digest_says_what_may_differ(
    models: Registry, store: DeltaTables
) -> None:
    digest = evidence.version_digest(models, 1)
    judge(models, store, "brief", report=json.dumps({"digest": digest}))
    models.tag(1, {"decision_threshold": "0.99"})
    with pytest.raises(VersionChanged, match="its files, its decision_threshold or its signature"):
        evidence.refuse_changed(models, store, 1)


def test_files_that_are_gone_are_named_by_the_registry(
    models: Registry, store: DeltaTables
) -> None:
    judge(models, store, "judged")
    shutil.rmtree(files_of(models))
    with pytest.raises(RegistryError, match=r"the files of version 1 of .* are not all there"):
        evidence.refuse_changed(models, store, 1)


def test_the_digest_of_a_row_is_the_one_of_the_row_that_was_written(
    models: Registry, store: DeltaTables
) -> None:
    at = datetime(2025, 3, 27, 12, 30, 15, 123456, tzinfo=UTC)
    written = judge(models, store, "one", created_at=at, champion_version=7, holdout_rows=2)
    (row,) = store.read(REPORTS).to_pyarrow().to_pylist()
    assert evidence.row_digest(row) == evidence.row_digest(written)
    assert models.version(1).tags["gate_report_digest"] == evidence.row_digest(row)
    other_zone = row["created_at"].astimezone(
        datetime.fromisoformat("2025-03-27T00:00+05:00").tzinfo
    )
    assert evidence.row_digest({**row, "created_at": other_zone}) == evidence.row_digest(row)
    assert evidence.row_digest({**row, "a_new_column": None}) == evidence.row_digest(row)
    for column, value in row.items():
        changed = {**row, column: "changed" if value is None else None}
        assert evidence.row_digest(changed) != evidence.row_digest(row), column


def test_reports_follow_their_chain_and_not_the_clock(models: Registry, store: DeltaTables) -> None:
    """Old reports come first, by their time; a clock that goes back changes no order."""
    old = {
        "report": json.dumps({"checks": []}),
        "model_name": models.model_name,
        "model_version": 1,
    }
    for name, day in (("b", 2), ("a", 1)):
        row = {**old, "report_id": name, "created_at": NOW - timedelta(days=10 - day)}
        row |= {"run_id": models.version(1).run_id, "verdict": "PASS"}
        store.append(REPORTS, ibis.memtable(pa.Table.from_pylist([row], evidence.SCHEMA)))
    judge(models, store, "c", created_at=NOW)
    judge(models, store, "d", "FAIL", created_at=NOW - timedelta(days=400))
    judge(models, store, "e", created_at=NOW - timedelta(days=100))
    assert [row["report_id"] for row in evidence.all_reports(store)] == ["a", "b", "c", "d", "e"]
    newest = evidence.latest_report(models, store, 1)
    assert newest is not None and newest["report_id"] == "e"
    assert evidence.previous_of(newest) == evidence.row_digest(
        evidence.report_by_id(store, "d") or {}
    )


def test_reports_that_are_written_at_once_are_one_chain(
    models: Registry, store: DeltaTables, tmp_path: Path
) -> None:
    def write(name: str) -> None:
        judge(models, DeltaTables(tmp_path / "tables"), name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcdefgh"))
    rows = evidence.all_reports(store)
    links = [evidence.previous_of(row) for row in rows]
    assert links == ["", *map(evidence.row_digest, rows[:-1])]
    assert sorted(row["report_id"] for row in rows) == list("abcdefgh")


def test_reports_of_another_model_or_of_a_number_that_was_given_again_do_not_count(
    models: Registry, store: DeltaTables
) -> None:
    judge(models, store, "another model", model_name="another")
    judge(models, store, "another run", run_id="0" * 32)
    assert evidence.latest_report(models, store, 1) is None
    assert evidence.report_by_id(store, "another model") is not None
    assert evidence.report_by_id(store, "another model", models.model_name) is None
    assert evidence.report_by_id(store, "no such id") is None


def test_answers_come_back_as_they_were_given(models: Registry, store: DeltaTables) -> None:
    holdout = serving_store.feature_rows(200, seed=3)
    holdout.loc[3, "total_events"] = np.nan
    names = [f"c{number:03d}" for number in range(200)]
    holdout = holdout.assign(customer_id=names, feature_date=date(2025, 3, 26), churned=1.0)
    holdout.loc[5, "churned"] = np.nan
    probability = models.load(1).predict(holdout[FEATURES])
    judge(models, store, "judged")
    assert evidence.recorded_answers(models, store, 1) is None
    evidence.write_answers(store, "judged", models.model_name, 1, holdout, probability)
    evidence.write_answers(store, "another", models.model_name, 1, holdout, probability * 0)
    known = evidence.recorded_answers(models, store, 1)
    assert known is not None
    columns = ["customer_id", "feature_date", *FEATURES, "churned", "churn_probability"]
    assert known.columns.tolist() == columns
    expected = holdout.assign(churn_probability=probability)[columns].reset_index(drop=True)
    days = {"feature_date": "datetime64[ns]"}
    pd.testing.assert_frame_equal(
        known.astype(days), expected.astype(days), check_exact=True, check_dtype=False
    )
    assert (known[FEATURES].dtypes == "float64").all()
    judge(models, store, "later", "FAIL")
    assert evidence.recorded_answers(models, store, 1) is not None


def test_answers_of_a_version_that_never_passed_are_no_reference(
    models: Registry, store: DeltaTables
) -> None:
    judge(models, store, "judged", "FAIL")
    holdout = serving_store.feature_rows(2).assign(
        customer_id=["a", "b"], feature_date=date(2025, 3, 26), churned=0.0
    )
    evidence.write_answers(store, "judged", models.model_name, 1, holdout, np.array([0.1, 0.2]))
    assert evidence.recorded_answers(models, store, 1) is None
