"""The decision threshold by F1, by value and by capacity, against a search over every threshold."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score

from churn_lib import settings as settings_module
from churn_lib.features import FEATURES, LABEL
from churn_lib.model import (
    best_value_threshold,
    capacity_threshold,
    out_of_fold,
)
from churn_lib.statistics import contact_value
from churn_lib.training.estimators import estimator_of
from churn_lib.training.metrics import calling_everybody, contact_metrics
from churn_lib.training.record import TrainingError
from churn_lib.training.train import choose_threshold, fit

# few values, so that ties are common
PROBABILITY = st.integers(0, 8).map(lambda eighths: eighths / 8)
ROWS = st.lists(st.tuples(st.integers(0, 1), PROBABILITY), min_size=1, max_size=40)
MONEY = st.floats(0.01, 100)


@given(ROWS, MONEY, st.floats(0, 100))
def test_no_threshold_brings_more_than_the_best_by_value(
    rows: list[tuple[int, float]], retained: float, cost: float
) -> None:
    y, probability = (np.array(column, dtype=float) for column in zip(*rows, strict=True))

    def value(threshold: float) -> float:
        return float(contact_value(y, probability >= threshold, retained, cost).sum())

    found = best_value_threshold(y, probability, retained, cost)
    assert found in probability
    assert value(found) >= max(map(value, probability)) - 1e-9


@given(ROWS, st.integers(1, 50))
def test_capacity_is_used_up_and_not_exceeded(rows: list[tuple[int, float]], room: int) -> None:
    probability = np.array([each for _, each in rows])
    threshold = capacity_threshold(probability, min(1.0, room / len(rows)))
    contacted, first = (probability >= threshold).sum(), (probability == probability.max()).sum()
    assert threshold in probability
    assert contacted <= max(room, first)
    lower = probability[probability < threshold]
    if len(lower):  # nobody else fits: the next ones are too many
        assert (probability >= lower.max()).sum() > room


def test_a_contact_is_worth_its_cost_where_elkan_says() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(200_000).round(3)
    y = (rng.random(len(probability)) < probability).astype(int)  # calibrated
    for cost in (1, 3, 7):
        assert best_value_threshold(y, probability, 10, cost) == pytest.approx(cost / 10, abs=0.02)


def test_three_thresholds_by_hand() -> None:
    y = np.array([1, 1, 0, 1, 0, 0])
    probability = np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.1])
    assert best_value_threshold(y, probability, 10, 1) == 0.6  # 3 x 10 - 4
    assert best_value_threshold(y, probability, 10, 6) == 0.8  # 2 x 10 - 2 x 6
    assert capacity_threshold(probability, 2 / 6) == 0.8
    assert capacity_threshold(probability, 1e-6) == 0.9


def customers(number: int = 400) -> pd.DataFrame:
    """Training rows whose silence tells who churns, a little."""
    rng = np.random.default_rng(2)
    rows = pd.DataFrame(rng.exponential(10, (number, len(FEATURES))), columns=FEATURES)
    silence = rows["days_since_last_event"] + rng.normal(0, 8, number)
    rows[LABEL] = (silence > 8).astype(int)
    rows["customer_id"] = [f"c{each}" for each in range(number)]
    return rows.assign(feature_date=pd.Timestamp("2025-01-01"))


@pytest.mark.parametrize(("capacity", "room"), [(50, 40), (120, 96), (250, 200), (9_000, 200)])
def test_capacity_counts_the_customers_of_one_snapshot(capacity: int, room: int) -> None:
    changed = {"training.threshold": "capacity", "training.capacity": capacity}
    settings = settings_module.load("local").updated(changed)
    assert settings.data.holdout_share == 0.2  # 200 training rows are of 250 customers
    rows = customers(500)
    rows.loc[200:, "feature_date"] = pd.Timestamp("2024-10-01")
    threshold, _ = choose_threshold(rows, settings)
    answers = fit(rows, settings, threshold).predict(rows[FEATURES].head(200))
    contacted = int((answers >= threshold).sum())
    assert contacted <= room
    ties = pd.Series(answers).value_counts()
    assert contacted > room - ties.max()


def test_customers_who_are_all_tied_are_contacted_together() -> None:
    changed = {"training.threshold": "capacity", "training.capacity": 10}
    settings = settings_module.load("local").updated(changed)
    rows = customers(400)
    rows.loc[rows["days_since_last_event"] > 8, FEATURES] = 50.0
    threshold, _ = choose_threshold(rows, settings)
    answers = fit(rows, settings, threshold).predict(rows[FEATURES])
    alike = answers[rows["days_since_last_event"] == 50]
    assert threshold == answers.max() == alike.min()
    assert (answers >= threshold).sum() >= len(alike) > 100


def test_value_uses_the_figures_of_the_settings() -> None:
    changed = {"training.threshold": "value", "training.retained_value": 5}
    settings = settings_module.load("local").updated(changed | {"training.contact_cost": 2})
    rows = customers()
    y, X, who = rows[LABEL], rows[FEATURES], rows["customer_id"]
    estimator = estimator_of(settings)
    expected = best_value_threshold(y, out_of_fold(estimator, X, y, who), 5, 2)
    assert choose_threshold(rows, settings)[0] == expected


def test_contacts_that_never_pay_are_refused() -> None:
    changed = {"training.threshold": "value", "training.retained_value": 1}
    settings = settings_module.load("local").updated(changed | {"training.contact_cost": 2})
    with pytest.raises(TrainingError, match="no contact pays"):
        choose_threshold(customers(), settings)


def test_the_metrics_of_a_threshold_are_those_of_its_decisions() -> None:
    rows, local = customers(), settings_module.load("local")
    threshold, found = choose_threshold(rows, local)
    everybody = np.ones(len(rows))
    assert 0 < threshold < 1
    assert found["cross_validated_f1_score_of_calling_everybody"] == pytest.approx(
        f1_score(rows[LABEL], everybody)
    )
    assert found["cross_validated_precision_of_calling_everybody"] == pytest.approx(
        precision_score(rows[LABEL], everybody)
    )
    value = 10 * found["cross_validated_precision"] - 1  # of a contact
    contacted = found["cross_validated_contacted_share"]
    assert found["cross_validated_value_per_customer"] == pytest.approx(contacted * value)


@given(ROWS, PROBABILITY)
def test_what_calling_everybody_brings(rows: list[tuple[int, float]], threshold: float) -> None:
    y, probability = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = contact_metrics(y, probability, threshold, settings_module.load("local").training)
    assert found["value_per_customer_of_calling_everybody"] == pytest.approx(10 * y.mean() - 1)
    assert found["contacted_share"] == pytest.approx(np.mean(probability >= threshold))
    assert calling_everybody(y)["f1_score"] == pytest.approx(
        f1_score(y, np.ones(len(y)), zero_division=0)
    )
