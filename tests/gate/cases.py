"""A made-up shop, a model that knows who leaves, and what a training run would say about it."""

from typing import Any

import numpy as np
import pandas as pd

from churn_lib.features import FEATURES, LABEL
from churn_lib.gate.probe import Answers, Evidence, Predict, observe

JUDGED = pd.Timestamp("1998-04-02")
FITTED = pd.DataFrame({"customer_id": ["b1", "b2"], "feature_date": pd.Timestamp("1998-01-02")})


def make_holdout(seed: int, rows: int = 1_000) -> pd.DataFrame:
    """Customers whose label depends on two columns and chance."""
    rng = np.random.default_rng(seed)
    holdout = pd.DataFrame(rng.exponential(10, (rows, len(FEATURES))), columns=FEATURES)
    holdout["recency_tier"] = rng.integers(0, 4, rows).astype(float)
    signal = holdout.days_since_last_event + holdout.total_events
    holdout[LABEL] = (signal + rng.normal(0, 5, rows) > 16).astype(float)
    holdout["customer_id"] = [f"c{number}" for number in range(rows)]
    holdout["feature_date"] = JUDGED
    return holdout


def good(rows: pd.DataFrame) -> pd.Series:
    """The best that can be known about `make_holdout`."""
    late = (rows.days_since_last_event + rows.total_events).fillna(16)
    return 1 / (1 + np.exp(((16 - late) / 3).clip(-50, 50)))


def blurred(rows: pd.DataFrame, amount: float) -> pd.Series:
    """The same, with noise that is the same whenever the same row is asked about."""
    noise = (rows.total_sessions.fillna(0) * 1e4) % 2 - 1
    return (good(rows) + amount * noise).clip(0, 1)


def evidence(
    holdout: pd.DataFrame, predict: Predict = good, version: int = 2, **known: Any
) -> Evidence:
    """What the gate would see of a model that does everything else right."""
    usual = {"columns": tuple(FEATURES), "outputs": 1, "size_mb": 0.5, "training_rows": FITTED}
    return observe(predict, holdout, version, known.pop("threshold", 0.5), **{**usual, **known})


def given(holdout: pd.DataFrame, probability: np.ndarray, version: int = 2) -> Evidence:
    """What the gate would know of a model by its answers alone; nothing is called or timed."""
    return Evidence(
        version,
        probability,
        threshold=0.5,
        columns=tuple(FEATURES),
        outputs=1,
        single_row_ms=1.0,
        batch_ms=10.0,
        size_mb=0.5,
        training_rows=FITTED,
    )


def answers(holdout: pd.DataFrame, predict: Predict = good, version: int = 1) -> Answers:
    """What Production answers."""
    return Answers(version, np.asarray(predict(holdout), dtype=float))
