"""The jobs one after the other with their tables on a real Spark, as they run on Databricks."""

import datetime
from pathlib import Path

import ibis
import pytest

from churn_lib import maintenance, registry, settings, tables
from churn_lib.data import events
from churn_lib.tables import RehearsalTables
from churn_lib.tables.spark import SparkTables
from tests.conftest import run_job

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(1_500)  # Spark takes seconds for each of many small queries
def test_the_jobs_lead_from_events_to_a_watched_model(
    spark_tables: SparkTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    monkeypatch.setenv("CHURN_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("CHURN_TASK_VALUES", str(tmp_path / "values"))
    rehearsing = RehearsalTables(spark_tables)
    here = {False: spark_tables, True: rehearsing}
    monkeypatch.setattr(tables, "connect", lambda config, rehearsal=False: here[rehearsal])
    config = settings.load("local")
    for name, rows in zip(("events", "customers"), events.cdnow(), strict=True):
        spark_tables.overwrite(f"bronze.{name}", ibis.memtable(rows))
    for name in ("01_feature_engineering", "02_train_and_register", "03_validate_and_promote"):
        run_job(name, tmp_path, monkeypatch)
    models = registry.connect(config)
    assert models.aliases() == {"Staging": 1, "Production": 1}
    scored = run_job("05_score_customers", tmp_path, monkeypatch)
    assert int(scored["customers"]) == spark_tables.read("bronze.customers").count().execute()
    watched = run_job("06_monitor", tmp_path, monkeypatch)
    assert watched["verdict"] == "ok"
    assert spark_tables.read("gold.drift_metrics").count().execute() > 0
    written = spark_tables.version("gold.predictions")
    rehearsed = run_job("05_score_customers", tmp_path, monkeypatch, rehearsal=True)
    assert rehearsed == {**scored, "predictions_version": written + 1}
    assert spark_tables.version("gold.predictions") == written


def test_maintenance_removes_on_spark_what_it_removes_on_a_laptop(
    spark_tables: SparkTables, tmp_path: Path
) -> None:
    config = settings.load().updated({"store": tmp_path, "monitoring.granularity": "1 day"})
    models, today = registry.connect(config), datetime.date(2025, 6, 24)
    days = [today - datetime.timedelta(days=each) for each in (0, 100, 700)]
    for day in days:
        date = ibis.literal(day)
        scored = ibis.memtable({"customer_id": ["a", "b"], "model_name": [config.model_name] * 2})
        scored = scored.mutate(model_version=ibis.literal(1), feature_date=date)
        partition = {"feature_date": day, "model_version": 1}
        spark_tables.overwrite("gold.predictions", scored, partition, {"feature_date": str(day)})
        row = ibis.memtable({"customer_id": ["a"]}).mutate(feature_date=date)
        spark_tables.overwrite(
            "gold.features", row, {"feature_date": day}, {"feature_date": str(day)}
        )
        metrics = ibis.memtable({"column_name": [":table"]}).mutate(window_date=date)
        spark_tables.overwrite("gold.profile_metrics", metrics, {"window_date": day})
    asked = ibis.memtable({"request": ["{}", "{}"]})
    old = maintenance.days_ago(100).date()
    spark_tables.append(
        "gold.churn_prediction_payload", asked.mutate(request_date=ibis.literal(old))
    )
    config = config.updated({"keep.monitoring_days": 400})
    found = {each.what: each for each in maintenance.maintain(config, spark_tables, models)}
    assert (found["predictions"].removed, found["predictions"].kept) == (2, 4)
    assert (found["snapshots"].removed, found["snapshots"].kept) == (1, 2)
    assert (found["monitoring"].removed, found["monitoring"].kept) == (1, 2)
    assert (found["requests"].removed, found["requests"].kept) == (2, 0)
    again = maintenance.maintain(config, spark_tables, models)
    assert not any(each.removed for each in again)
    left = spark_tables.read("gold.features").feature_date.to_pyarrow().to_pylist()
    assert sorted(left) == sorted(days[:2])
