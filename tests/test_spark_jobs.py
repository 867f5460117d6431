"""The jobs one after the other with their tables on a real Spark, as they run on Databricks."""

import json
from pathlib import Path
from typing import Any

import ibis
import nbformat
import pytest

from churn_lib import events, registry, settings, tables
from churn_lib.spark_tables import SparkTables

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "nbs" / "jobs"


def run_job(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the cells of a job in this process; its task values."""
    monkeypatch.setenv("CHURN_TASK_KEY", name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in nbformat.read(JOBS / f"{name}.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, name, "exec"), namespace)
            if "parameters" in cell.metadata.get("tags", []):
                namespace["git_sha"] = "abc123"
    values = folder / "values" / f"{name}.json"
    return json.loads(values.read_text()) if values.exists() else {}


@pytest.mark.timeout(1_500)  # Spark takes seconds for each of many small queries
def test_the_jobs_lead_from_events_to_a_watched_model(
    spark_tables: SparkTables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    monkeypatch.setenv("CHURN_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("CHURN_TASK_VALUES", str(tmp_path / "values"))
    monkeypatch.setattr(tables, "connect", lambda config: spark_tables)
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
