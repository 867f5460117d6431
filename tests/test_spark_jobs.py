"""The jobs one after the other with their tables on a real Spark, as they run on Databricks."""

from pathlib import Path

import ibis
import pytest

from churn_lib import registry, settings, tables
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
