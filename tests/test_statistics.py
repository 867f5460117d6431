"""DeLong, the bootstrap and calibration, each held against something that was computed otherwise."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from churn_lib import statistics

SEEDS = st.integers(0, 2**32 - 1)
FEW = hypothesis_settings(max_examples=40, deadline=None)


def two_models(seed: int, rows: int, levels: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and two correlated models; `levels` of rounding make ties."""
    rng = np.random.default_rng(seed)
    leaning = rng.normal(0, 1.5, rows)
    y = (rng.random(rows) < 1 / (1 + np.exp(-leaning))).astype(int)
    y[:2], y[2:4] = 1, 0
    first, second = (1 / (1 + np.exp(-leaning - rng.normal(0, s, rows))) for s in (0.5, 0.8))
    return (y, *((np.round(p * levels) / levels if levels else p) for p in (first, second)))


def pair_components(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's components by counting every pair of a churner and a stayer."""
    positive, negative = p[y == 1][:, None], p[y == 0][None, :]
    right = (positive > negative) + 0.5 * (positive == negative)
    return right.mean(axis=1), right.mean(axis=0)


@FEW
@given(SEEDS, st.integers(5, 80), st.sampled_from([0, 3, 10]))
def test_fast_delong_equals_counting_every_pair(seed: int, rows: int, levels: int) -> None:
    y, first, second = two_models(seed, rows, levels)
    for p in (first, second):
        for fast, slow in zip(statistics.roc_components(y, p), pair_components(y, p), strict=True):
            np.testing.assert_allclose(fast, slow, atol=1e-12)
    a, b = pair_components(y, first), pair_components(y, second)
    m, n = (y == 1).sum(), (y == 0).sum()
    # the covariance form of the paper: var(A) + var(B) - 2 cov(A, B), for churners and for stayers
    variance = sum(
        (s := np.cov(np.stack([a[k], b[k]])))[0, 0] / size + (s[1, 1] - 2 * s[0, 1]) / size
        for k, size in ((0, m), (1, n))
    )
    found = statistics.roc_auc_difference(y, first, second)
    assert found.value == pytest.approx(roc_auc_score(y, first) - roc_auc_score(y, second))
    assert found.standard_error == pytest.approx(np.sqrt(max(variance, 0)), abs=1e-9)


@FEW
@given(SEEDS, st.sampled_from([0, 4]))
def test_a_bootstrap_draw_is_the_area_of_the_rows_it_repeats(seed: int, levels: int) -> None:
    y, first, second = two_models(seed, 60, levels)
    drawn = statistics.bootstrap_roc_auc(y, [first, second], draws=3, random_state=seed)
    weights = list(statistics.resample((int(y.sum()), int((1 - y).sum())), 3, seed))
    of_positive, of_negative = (np.concatenate(part) for part in zip(*weights, strict=True))
    for at in range(3):
        count = np.empty(len(y), dtype=int)
        count[y == 1], count[y == 0] = of_positive[at], of_negative[at]
        assert count[y == 1].sum() == (y == 1).sum()
        rows = np.repeat(np.arange(len(y)), count)
        expected = [roc_auc_score(y[rows], p[rows]) for p in (first, second)]
        np.testing.assert_allclose(drawn[at], expected, atol=1e-12)


def test_delong_and_the_bootstrap_agree() -> None:
    y, first, second = two_models(1, 3_000)
    found = statistics.roc_auc_difference(y, first, second)
    draws = statistics.bootstrap_roc_auc(y, [first, second])
    difference = draws[:, 0] - draws[:, 1]
    assert difference.std() == pytest.approx(found.standard_error, rel=0.06)
    expected = [found.lower, found.upper]
    np.testing.assert_allclose(np.quantile(difference, [0.05, 0.95]), expected, atol=1e-3)


def test_a_model_that_loses_just_the_margin_passes_no_more_often_than_allowed() -> None:
    rng = np.random.default_rng(0)
    rows, passes, rounds, lost = 1_500, 0, 400, []
    for _ in range(rounds):
        leaning = rng.normal(0, 1.5, rows)
        y = (rng.random(rows) < 1 / (1 + np.exp(-leaning))).astype(int)
        lost.append(statistics.roc_auc_difference(y, leaning + rng.normal(0, 0.6, rows), leaning))
    margin = -np.mean([each.value for each in lost])  # the true loss, known to a few percent
    passes = sum(each.lower >= -margin for each in lost)
    assert 0.01 < passes / rounds < 0.09  # 0.05 is promised


def test_the_smallest_detectable_loss_is_detected_four_times_in_five() -> None:
    estimate = statistics.Estimate(0.0, 0.004, -0.0066, 0.0066, 0.95)
    loss = statistics.smallest_detectable(estimate)
    rng = np.random.default_rng(0)
    seen = rng.normal(-loss, 0.004, 20_000) + 1.6449 * 0.004 < 0
    assert seen.mean() == pytest.approx(0.8, abs=0.01)


def test_the_areas_of_many_rows_do_not_overflow() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 60_000)
    p = y + rng.normal(0, 0.2, len(y))  # 3.6 thousand million pairs, nearly all in order
    (area,) = statistics.bootstrap_roc_auc(y, [p], draws=1)[0]
    assert area == pytest.approx(roc_auc_score(y, p), abs=1e-3)


def test_too_few_rows_of_a_class_leave_everything_open() -> None:
    found = statistics.roc_auc_difference(
        np.array([1, 0, 0]), np.array([0.9, 0.2, 0.1]), np.array([0.8, 0.1, 0.2])
    )
    assert found.lower == -np.inf and statistics.smallest_detectable(found) == np.inf


@FEW
@given(SEEDS)
def test_calibration_error_equals_its_definition(seed: int) -> None:
    y, p, _ = two_models(seed, 200)
    p[0], p[1] = 0.0, 1.0
    expected = 0.0
    for low in range(10):
        inside = (p * 10 >= low) & ((p * 10 < low + 1) | (low == 9))
        if inside.any():
            expected += inside.mean() * abs(y[inside].mean() - p[inside].mean())
    assert statistics.expected_calibration_error(y, p) == pytest.approx(expected)
    errors = statistics.bootstrap_calibration(y, [p, p], draws=20)
    np.testing.assert_allclose(errors[:, 0], errors[:, 1], atol=1e-12)
    assert (errors >= 0).all()


def test_the_brier_difference_is_that_of_the_two_scores() -> None:
    y, first, second = two_models(3, 500)
    found = statistics.brier_difference(y, first, second)
    assert found.value == pytest.approx(np.mean((first - y) ** 2) - np.mean((second - y) ** 2))
    assert found.lower < found.value < found.upper


def test_a_draw_has_as_many_rows_as_its_group_and_every_row_its_chance() -> None:
    drawn = list(statistics.resample([3, 40_000], draws=8, random_state=5))
    assert len(drawn) > 1  # in bounded memory: some draws at once
    few, many = (np.concatenate(weights) for weights in zip(*drawn, strict=True))
    assert few.shape == (8, 3) and many.shape == (8, 40_000)
    assert (few.sum(axis=1) == 3).all() and (many.sum(axis=1) == 40_000).all()
    assert many.mean() == 1 and many.var() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("difference", [statistics.roc_auc_difference, statistics.brier_difference])
def test_customers_on_several_days_are_not_more_customers(difference: Any) -> None:
    y, first, second = two_models(8, 400)
    customers = np.arange(400)
    once = difference(y, first, second)
    assert difference(y, first, second, 0.95, customers) == once
    again = [np.concatenate([each, each]) for each in (y, first, second)]
    twice = difference(*again, 0.95, np.concatenate([customers, customers]))
    assert twice.value == pytest.approx(once.value)
    assert twice.standard_error == pytest.approx(once.standard_error, rel=0.01)
    assert difference(*again).standard_error == pytest.approx(
        once.standard_error / 2**0.5, rel=0.01
    )


def test_the_interval_of_customers_on_several_days_holds_the_truth_as_often_as_it_says() -> None:
    rng, held, plain = np.random.default_rng(9), 0, 0
    for _ in range(300):
        leaning = rng.normal(0, 1.5, 150)
        noise = rng.normal(0, 0.8, (2, 150))  # of the customer, on both days
        customers = np.tile(np.arange(150), 2)
        y = (rng.random(300) < 1 / (1 + np.exp(-np.tile(leaning, 2)))).astype(int)
        first, second = (np.tile(leaning + each, 2) for each in noise)
        found = statistics.roc_auc_difference(y, first, second, 0.95, customers)
        held += found.lower <= 0 <= found.upper  # both models are equally good
        rows = statistics.roc_auc_difference(y, first, second)
        plain += rows.lower <= 0 <= rows.upper
    assert 0.86 <= held / 300 <= 0.94
    assert plain < held
