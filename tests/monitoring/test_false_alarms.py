"""What is no drift and no loss: another type of the same value, labels that have not come, a slice that is harder than the whole."""

import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from churn_lib import settings
from churn_lib.features import ANSWER, LABEL
from churn_lib.monitoring.drift import compare, distribution
from churn_lib.monitoring.metrics import (
    drift_rows,
    observe,
    quality_row,
    slice_baseline,
    slices,
)
from churn_lib.monitoring.quality import Measured, losses
from churn_lib.monitoring.report import slices_table
from churn_lib.monitoring.windows import DECISION, Baseline, Window, make_baseline
from churn_lib.settings import Settings
from churn_lib.testing import churn_probability, customer_rows

ROOT = Path(__file__).parents[2]
DAYS = [datetime.date(2025, month, 1) for month in (1, 4, 7, 10)]
WINDOW = Window(DAYS[3], DAYS[3] + datetime.timedelta(7), 1, (DAYS[3],))


@pytest.fixture(scope="module")
def config() -> Settings:
    return settings.load("local", ROOT / "settings.ini")


def scored(seed: int, day: datetime.date, rows: int = 4_000) -> pd.DataFrame:
    """Customers with the answers of a model that knows their odds."""
    found = customer_rows(rows, seed, day)
    answer = churn_probability(found)
    return found.assign(**{ANSWER: answer, DECISION: (answer >= 0.5).astype(int)})


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    training = pd.concat([scored(0, DAYS[0]), scored(1, DAYS[1])], ignore_index=True)
    return make_baseline(1, training, scored(2, DAYS[2]), 0.5)


@pytest.mark.parametrize("kind", ["int64", "float64", "Int64", "float32", "object", "string"])
def test_a_category_of_another_type_has_not_drifted(kind: str, baseline: Baseline) -> None:
    tiers = scored(3, DAYS[3]).recency_tier.astype("int64")
    then = distribution(tiers, numeric=False)
    now = distribution(tiers.astype(kind), numeric=False)
    assert now.values.tolist() == then.values.tolist() == ["0", "1", "2", "3"]
    assert compare(now, then)["js_distance"] == pytest.approx(0, abs=1e-9)
    # the real one, as a request has it: floats against whole numbers of a table
    assert compare(now, baseline.distributions["recency_tier"])["js_distance"] < 0.05


def test_truth_and_one_are_the_same_label() -> None:
    columns = [
        pd.Series(values, dtype=kind)
        for values, kind in (
            ([True, False, None], "boolean"),
            ([1, 0, None], "Int64"),
            ([1.0, 0.0, None], "float64"),
            ([True, False, None], "object"),
        )
    ]
    found = [distribution(each, numeric=False) for each in columns]
    assert [each.values.tolist() for each in found] == [["0", "1"]] * 4
    assert {each.nulls for each in found} == {1}


@pytest.mark.parametrize("known", [0.1, 0.5, 0.9, 1.0])
def test_labels_that_have_not_come_are_no_drift(
    known: float, baseline: Baseline, config: Settings
) -> None:
    rows = scored(3, DAYS[3])
    came = np.random.default_rng(0).random(len(rows)) < known
    rows[LABEL] = rows[LABEL].astype("Int64").where(came)
    seen = observe(WINDOW, rows)
    assert (seen.distributions[LABEL].rows, seen.distributions[LABEL].nulls) == (came.sum(), 0)
    drift = drift_rows(seen, baseline.distributions, {}, config).set_index("column_name")
    assert drift.js_distance[LABEL] < 0.1 and not drift.drifted[LABEL]
    # what is wrong with the labels that came is seen
    rows[LABEL] = rows[LABEL].where(rows[LABEL].isna(), 1)
    worse = drift_rows(observe(WINDOW, rows), baseline.distributions, {}, config)
    assert worse.set_index("column_name").drifted[LABEL]


def quality_of_slices(rows: pd.DataFrame, baseline: Baseline, config: Settings) -> dict[str, dict]:
    found = {}
    for part in slices(observe(WINDOW, rows), ("recency_tier",)):
        own = slice_baseline(baseline, part, config)
        found[str(part.slice_value)] = quality_row(part.rows, own, config)
    return found


def test_a_slice_is_held_against_itself_not_against_the_whole(
    baseline: Baseline, config: Settings
) -> None:
    for seed in range(3, 8):
        found = quality_of_slices(scored(seed, DAYS[3]), baseline, config)
        assert {each["quality"] for each in found.values()} <= {"held"}, (seed, found)
        assert {each["estimated_quality"] for each in found.values()} == {"held"}
    # inside a tier customers are alike: against the whole it would have been lost
    part = slices(observe(WINDOW, scored(3, DAYS[3])), ("recency_tier",))[0]
    own, whole = slice_baseline(baseline, part, config).reference, baseline.reference
    gap = whole["roc_auc_score"].value - own["roc_auc_score"].value
    assert gap > config.monitoring.max_roc_auc_loss
    assert quality_row(part.rows, baseline, config)["quality"] == "lost"


def test_a_slice_that_the_model_gets_wrong_is_lost_and_the_others_are_not(
    baseline: Baseline, config: Settings
) -> None:
    rows = scored(3, DAYS[3])
    bad = rows.recency_tier == 1
    rows.loc[bad, LABEL] = np.random.default_rng(0).permutation(rows.loc[bad, LABEL])
    found = quality_of_slices(rows, baseline, config)
    assert (
        found["1"]["quality"] == "lost" and "roc_auc_score is 0.489" in found["1"]["quality_detail"]
    )
    assert {found[tier]["quality"] for tier in "023"} == {"held"}


def test_a_slice_with_few_held_out_customers_says_so(config: Settings) -> None:
    few = scored(2, DAYS[2], rows=300)
    small = make_baseline(1, pd.concat([scored(0, DAYS[0]), scored(1, DAYS[1])]), few, 0.5)
    found = quality_of_slices(scored(3, DAYS[3]), small, config)
    assert {each["quality"] for each in found.values()} == {"unknown"}
    held_out = (few.recency_tier == 2).sum()
    detail = f"only {held_out} customers like these were held out: too few to compare"
    assert found["2"]["quality_detail"] == detail
    totals = pd.DataFrame(
        [
            {"slice_key": "recency_tier", "slice_value": tier, "column_name": ":table"}
            | {"count": 10, "measured_roc_auc_score": None, "estimated_roc_auc_score": None}
            | {name: each[name] for name in ("quality", "quality_detail")}
            for tier, each in found.items()
        ]
    )
    drift = pd.DataFrame(
        columns=["drift_type", "drifted", "slice_key", "slice_value", "column_name"], dtype=object
    )
    assert detail in str(slices_table(drift, totals).table)


def test_a_gap_that_the_gate_has_seen_is_not_lost_for_ever() -> None:
    gate = {"calibration_gap": Measured(-0.08, -0.09, -0.07)}
    allowed = {"calibration_gap": 0.05}
    assert losses({"calibration_gap": Measured(-0.09, -0.10, -0.08)}, gate, allowed) == []
    assert losses({"calibration_gap": Measured(-0.16, -0.17, -0.15)}, gate, allowed)
    assert losses({"calibration_gap": Measured(0.07, 0.06, 0.08)}, gate, allowed)
