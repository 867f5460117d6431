"""The fast form of a model answers as the model does, to the last bit, and refuses what it refuses."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from churn_lib.features import FEATURES, LABEL
from churn_lib.model import ChurnModel
from churn_lib.serving.local.fast_trees import NotConvertible, boundary_rows, convert, verified
from churn_lib.testing import customer_rows
from churn_lib.training import make_estimator
from churn_lib.training.estimators import ESTIMATORS

ROWS = customer_rows(2_000)
X, Y = ROWS[FEATURES], ROWS[LABEL]
QUIET = {"verbosity": -1, "n_estimators": 20}
MODELS: dict[str, Any] = {
    **{name: make_estimator(name, 42) for name in ESTIMATORS},
    "deep trees of LightGBM": LGBMClassifier(num_leaves=63, min_child_samples=2, **QUIET),
    "dropped trees": LGBMClassifier(boosting_type="dart", **QUIET),
    "scaled": make_pipeline(StandardScaler(), LogisticRegression()),
    "scaled by spread": make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
    "plain": LogisticRegression(max_iter=2_000),
    "without medians": GradientBoostingClassifier(n_estimators=5),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gaps", [False, True])
def test_answers_are_equal_at_every_threshold_and_for_any_number_of_rows(
    name: str, gaps: bool
) -> None:
    takes_gaps = name in ESTIMATORS or "LightGBM" in name
    rows = X.where(np.random.default_rng(0).random(X.shape) > 0.1) if gaps and takes_gaps else X
    model = ChurnModel(MODELS[name]).fit(rows, Y)
    fast, asked = convert(model), boundary_rows(model, FEATURES)
    for size in (1, 2, 5, 64, len(asked)):
        part = asked.tail(size).astype("float64")  # column by column, as MLflow hands them on
        answered = fast.predict(np.ascontiguousarray(part.to_numpy()))
        assert (answered == model.predict(part)).all(), size


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_a_value_that_the_model_refuses_is_refused_with_its_words(name: str, value: float) -> None:
    model = ChurnModel(make_estimator(name, 42)).fit(X, Y)
    asked = X.head(2).copy()
    asked.iloc[1, 3] = value
    fast = convert(model)
    try:
        expected = model.predict(asked)
    except ValueError as error:
        with pytest.raises(ValueError, match="contains infinity") as caught:
            fast.predict(asked.to_numpy())
        assert "contains infinity" in str(error) and str(caught.value)[:30] == str(error)[:30]
    else:
        assert (fast.predict(asked.to_numpy()) == expected).all()


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (RandomForestClassifier(3), "RandomForestClassifier has no fast form"),
        (make_pipeline(MinMaxScaler(), LogisticRegression()), "MinMaxScaler before LogisticReg"),
        (make_pipeline(StandardScaler(), LGBMClassifier(**QUIET)), "StandardScaler before LGBM"),
        (LGBMClassifier(linear_tree=True, **QUIET), "treelite"),
    ],
)
def test_what_is_not_known_keeps_its_own_predict(estimator: Any, reason: str) -> None:
    with pytest.raises(NotConvertible, match=reason):
        convert(ChurnModel(estimator).fit(X, Y))


class Served:
    """What `verified` looks at, of a version that MLflow has loaded."""

    input_example = X.head(3)
    metadata = SimpleNamespace(
        signature=SimpleNamespace(inputs=SimpleNamespace(input_names=lambda: FEATURES))
    )

    def __init__(self, estimator: Any):
        self.model = ChurnModel(estimator).fit(X, Y)
        self.predict, self.get_raw_model = self.model.predict, lambda: self.model


@pytest.mark.parametrize(
    "options",
    [
        {"boosting_type": "rf", "subsample": 0.5, "subsample_freq": 1},
        {"zero_as_missing": True},
        {"sigmoid": 2.0},
    ],
)
def test_a_kind_of_boosting_that_answers_otherwise_is_found_before_anybody_is_answered(
    options: dict[str, Any],
) -> None:
    with pytest.raises(NotConvertible, match=r"\d+ of \d+ answers of the fast form differ"):
        verified(Served(LGBMClassifier(**options, **QUIET)))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_shipped_estimator_is_served_fast(name: str) -> None:
    verified(Served(make_estimator(name, 42)))


def test_rows_of_the_check_have_the_columns_that_are_asked_for() -> None:
    model = ChurnModel(make_estimator("lightgbm", 1)).fit(X, Y)
    rows = boundary_rows(model, FEATURES, count=100)
    assert isinstance(rows, pd.DataFrame) and list(rows) == FEATURES and len(rows) == 100
