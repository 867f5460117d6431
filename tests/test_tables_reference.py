"""The page of all tables says what the code writes: every column, with its type."""

import datetime
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml

from churn_lib import settings
from churn_lib.data.loading import load
from churn_lib.features import ANSWER, EXAMPLE, FEATURES, LABEL
from churn_lib.monitoring import alerts, contacts, databricks, metrics
from churn_lib.registry import evidence, promotion_log
from churn_lib.serving import deploy
from churn_lib.serving.local import request_log
from churn_lib.tables import DeltaTables
from tests.conftest import ROOT

PAGE = ROOT / "nbs/reference/tables.ipynb"
KNOWN: dict[str, Any] = yaml.safe_load(PAGE.with_suffix(".yml").read_text())
PAYLOAD = "gold.{prefix}_payload"
SCHEMAS = {
    evidence.REPORTS: evidence.SCHEMA,
    evidence.ANSWERS: evidence.ANSWERS_SCHEMA,
    promotion_log.TABLE: promotion_log.SCHEMA,
    "gold.deployments": deploy._schema(deploy._DEPLOYMENTS),
    "gold.forced_deployments": deploy._schema(deploy._FORCED),
    "gold.profile_metrics": metrics.PROFILE_SCHEMA,
    "gold.drift_metrics": metrics.DRIFT_SCHEMA,
    "gold.column_checks": metrics.CHECKS_SCHEMA,
    alerts.TABLE: alerts._SCHEMA,
    contacts.CONTACT_EFFECT: contacts.EFFECT_SCHEMA,
    PAYLOAD: request_log.SCHEMA,
}
PLAIN = {
    pa.string(): "string",
    pa.int64(): "long",
    pa.int32(): "integer",
    pa.float64(): "double",
    pa.bool_(): "boolean",
    pa.date32(): "date",
}


def word(kind: pa.DataType) -> str:
    """A type as the page has it."""
    if pa.types.is_timestamp(kind):
        assert kind.tz == "UTC"
        return "timestamp"
    if pa.types.is_struct(kind):
        return f"({', '.join(each.name for each in kind)})"
    return f"list of {word(kind.value_type)}" if pa.types.is_list(kind) else PLAIN[kind]


def documented(name: str) -> dict[str, str]:
    """Column to type, in the order of the page."""
    columns: dict[str, str] = {}
    for column, (kind, _) in KNOWN[name]["columns"].items():
        names = FEATURES if column == "{features}" else [column.format(label=LABEL, answer=ANSWER)]
        columns |= dict.fromkeys(names, kind)
    return columns


def differences(name: str, schema: pa.Schema) -> dict[str, tuple[str | None, str | None]]:
    """Column to what the table has and what the page has; the order of columns counts for nothing."""
    found, page = {each.name: word(each.type) for each in schema}, documented(name)
    number = {column for column, kind in page.items() if kind == "number"}
    found |= {column: "number" for column in number if found.get(column) in ("long", "double")}
    return {
        column: (found.get(column), page.get(column))
        for column in {*found, *page}
        if found.get(column) != page.get(column)
    }


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_page_has_the_columns_that_the_code_writes(name: str) -> None:
    assert differences(name, SCHEMAS[name]) == {}


def test_loaded_rejected_and_profiled_rows_are_as_the_page_has_them(tmp_path: Path) -> None:
    store = DeltaTables(tmp_path / "tables")
    config = settings.load("local", ROOT / "settings.ini")
    file = tmp_path / "events.csv"
    file.write_text("customer_id,event_ts\nc1,2024-01-01\nc2,soon\n")
    load(store, config.updated({"data.max_rejected_share": 0.9}), str(file))
    row = {**dict.fromkeys(FEATURES, 1.0), **EXAMPLE, "feature_date": datetime.date(2024, 1, 1)}
    rows = pd.DataFrame([row | {ANSWER: 0.5, "decision": 1, LABEL: None}])
    shaped = databricks.as_profiled(rows, 1, FEATURES).assign(window_date=row["feature_date"])
    profiled = pa.Table.from_pandas(shaped, preserve_index=False)
    found = {
        **{name: store.read(name).to_pyarrow().schema for name in store.names()},
        **dict.fromkeys((databricks.PROFILED, databricks.BASELINE), profiled.schema),
    }
    assert {*found} > {"bronze.events", "bronze.customers", "bronze.rejected"}
    assert {name: differences(name, schema) for name, schema in found.items()} == {
        name: {} for name in found
    }


def test_the_page_shows_every_table_and_column() -> None:
    page = json.loads(PAGE.read_text())
    outputs = [output for each in page["cells"] for output in each.get("outputs", ())]
    text = "\n".join("".join(each["data"].get("text/markdown", ())) for each in outputs)
    for name in KNOWN:
        _, found, section = text.partition(f"## {name}\n")
        assert found, name
        shown = section.partition("\n## ")[0]
        for column, kind in documented(name).items():
            assert f"| `{column}` | {kind} |" in shown, f"{name}: {column}"
