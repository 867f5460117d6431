"""Metrics' intervals against a bootstrap that writes every draw out as rows."""

import numpy as np
import pandas as pd
import pytest

from churn_lib.training.metrics import (
    _metrics_of_draws,
    classification_metrics,
    metric_intervals,
)


def test_intervals_agree_with_a_bootstrap_of_rows() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 400)
    probability = np.clip(0.5 + (y - 0.5) * 0.4 + rng.normal(0, 0.3, 400), 0, 1).round(2)
    found = metric_intervals(y, probability, 0.5, draws=2_000)
    drawn = []
    for _ in range(500):
        rows = rng.integers(0, 400, 400)
        drawn.append(classification_metrics(y[rows], probability[rows], 0.5))
    for name, value in classification_metrics(y, probability, 0.5).items():
        low, high = np.quantile([draw[name] for draw in drawn], [0.025, 0.975])
        assert found.value[name] == value
        assert found.low[name] == pytest.approx(low, abs=0.02)
        assert found.high[name] == pytest.approx(high, abs=0.02)


def test_the_same_seed_draws_the_same_customers() -> None:
    y, probability = np.array([0, 1] * 50), np.linspace(0, 1, 100)
    first, second, other = (metric_intervals(y, probability, 0.5, seed) for seed in (1, 1, 2))
    assert first.equals(second) and not first.equals(other)


def test_customers_who_occur_twice_make_nothing_surer() -> None:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 300)
    probability = 1 / (1 + np.exp(-2 * y - rng.normal(0, 1, 300)))  # no ties
    names = np.array([f"customer {k}" for k in range(300)])
    shuffled = rng.permutation(600)
    twice = (np.tile(each, 2)[shuffled] for each in (y, probability, names))
    again_y, again, customers = twice
    once = metric_intervals(y, probability, 0.5)
    assert once.equals(metric_intervals(y, probability, 0.5, customers=names))
    found = metric_intervals(again_y, again, 0.5, customers=customers)
    pd.testing.assert_frame_equal(found, once)
    as_rows = metric_intervals(again_y, again, 0.5)
    assert ((as_rows.high - as_rows.low) < 0.85 * (found.high - found.low)).all()


def test_resampled_metrics_are_those_of_repeated_rows() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 60).astype(float)
    p = np.sort(rng.random(60).round(1))[::-1]  # with ties
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=4)
    fast = _metrics_of_draws(counts, y, p, 0.5)
    for draw, times in enumerate(counts):
        repeated = classification_metrics(np.repeat(y, times), np.repeat(p, times), 0.5)
        for name, value in repeated.items():
            assert fast[name][draw] == pytest.approx(value, abs=1e-12), name


def test_an_interval_narrows_with_more_rows() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 4_000)
    p = pd.Series(0.3 * y + rng.random(4_000)).rank(pct=True).to_numpy()
    few, many = (metric_intervals(y[:n], p[:n], 0.5, draws=200) for n in (400, 4_000))
    assert ((few.low <= few.value) & (few.value <= few.high)).all()
    assert ((many.high - many.low) < (few.high - few.low)).all()
