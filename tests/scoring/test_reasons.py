"""Contributions against their definition, subset by subset, on models that chance made."""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.special import logit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from churn_lib.features import FEATURES
from churn_lib.model import ChurnModel
from churn_lib.scoring import reasons
from churn_lib.scoring.reasons import REASONS, ReasonsError, explainer_of, top_reasons
from churn_lib.training import make_estimator

NAMES = ["a", "b", "c", "d"]
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small models on few rows: threads that wait for each other would be most of the time."""
    with threadpool_limits(1):
        yield


FEW = hypothesis_settings(max_examples=8, deadline=None)


def made_up(seed: int, gaps: bool, rows: int = 300) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows with repeated values, some without, and a label that depends on two columns."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.integers(0, 12, (rows, len(NAMES))).astype(float), columns=NAMES)
    y = (X.a * X.b + rng.normal(0, 10, rows) > 30).astype(int).to_numpy()
    if gaps:
        X = X.mask(rng.uniform(size=X.shape) < 0.2)
    return X, y


def expectation(walk: Callable, row: np.ndarray, known: set[int]) -> float:
    """What an ensemble answers when only the features `known` are: others by the split's shares."""
    return sum(walk(tree, 0, row, known) for tree in range(walk.trees))


def histogram_walk(classifier: HistGradientBoostingClassifier) -> Callable:
    def walk(tree: int, number: int, row: np.ndarray, known: set[int]) -> float:
        nodes = classifier._predictors[tree][0].nodes
        node = nodes[number]
        if node["is_leaf"]:
            return float(node["value"])
        left, right = int(node["left"]), int(node["right"])
        if node["feature_idx"] in known:
            value = row[node["feature_idx"]]
            below = (
                node["missing_go_to_left"] if np.isnan(value) else value <= node["num_threshold"]
            )
            return walk(tree, left if below else right, row, known)
        ways = [
            nodes[way]["count"] / node["count"] * walk(tree, way, row, known)
            for way in (left, right)
        ]
        return sum(ways)

    walk.trees = len(classifier._predictors)
    return walk


def classic_walk(classifier: GradientBoostingClassifier) -> Callable:
    def walk(tree: int, number: int, row: np.ndarray, known: set[int]) -> float:
        nodes = classifier.estimators_[tree, 0].tree_
        left, right = nodes.children_left[number], nodes.children_right[number]
        if left == -1:
            return classifier.learning_rate * nodes.value[number, 0, 0]
        if nodes.feature[number] in known:
            below = np.float32(row[nodes.feature[number]]) <= nodes.threshold[number]
            return walk(tree, left if below else right, row, known)
        weight = nodes.weighted_n_node_samples
        ways = [weight[way] / weight[number] * walk(tree, way, row, known) for way in (left, right)]
        return sum(ways)

    walk.trees = len(classifier.estimators_)
    return walk


def shapley(walk: Callable, row: np.ndarray) -> list[float]:
    """The definition (Shapley, 1953): what a feature adds, averaged over all orders of joining."""
    every = range(len(NAMES))
    found = []
    for player in every:
        others = [other for other in every if other != player]
        total = 0.0
        for size in range(len(NAMES)):
            share = math.factorial(size) * math.factorial(len(others) - size)
            for coalition in itertools.combinations(others, size):
                known = set(coalition)
                gain = expectation(walk, row, known | {player}) - expectation(walk, row, known)
                total += share * gain / math.factorial(len(NAMES))
        found.append(total)
    return found


@FEW
@given(SEEDS, st.booleans())
def test_contributions_of_histogram_boosting_are_its_shapley_values(seed: int, gaps: bool) -> None:
    X, y = made_up(seed, gaps)
    model = HistGradientBoostingClassifier(
        max_iter=6, max_leaf_nodes=8, min_samples_leaf=5, random_state=0
    ).fit(X, y)
    explainer = explainer_of(model)
    expected = [shapley(histogram_walk(model), row) for row in X.head(4).to_numpy()]
    np.testing.assert_allclose(explainer.contributions(X.head(4)), expected, atol=1e-12)


@FEW
@given(SEEDS)
def test_contributions_of_classic_boosting_are_its_shapley_values(seed: int) -> None:
    X, y = made_up(seed, gaps=False)
    model = GradientBoostingClassifier(
        n_estimators=5, max_depth=4, subsample=0.8, random_state=0
    ).fit(X, y)
    explainer = explainer_of(model)
    expected = [shapley(classic_walk(model), row) for row in X.head(4).to_numpy()]
    np.testing.assert_allclose(explainer.contributions(X.head(4)), expected, atol=1e-12)


@pytest.mark.parametrize("estimator", ["hist_gradient_boosting", "gradient_boosting"])
def test_base_value_and_contributions_are_the_log_odds_of_the_answer(estimator: str) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.exponential(10, (1_000, len(FEATURES))), columns=FEATURES)
    X = X.mask(rng.uniform(size=X.shape) < 0.05)
    y = (X.days_since_last_event.fillna(0) - X.total_events.fillna(9) > 0).astype(int)
    model = ChurnModel(make_estimator(estimator, 0)).fit(X, y)
    asked = pd.concat([X, pd.DataFrame([[np.nan] * 10, [1e9] * 10, [-1e9] * 10], columns=FEATURES)])
    explainer = explainer_of(model)
    answered = explainer.base_value + explainer.contributions(asked).sum(axis=1)
    np.testing.assert_allclose(answered, logit(model.predict(asked)), atol=1e-9)


def test_a_tree_cut_into_single_leaves_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = made_up(1, gaps=False)
    model = GradientBoostingClassifier(n_estimators=10, max_depth=5, random_state=0).fit(X, y)
    whole = explainer_of(model)
    monkeypatch.setattr(reasons, "_LONGEST", 1)
    cut = explainer_of(model)
    assert len(cut.groups) > len(whole.groups)
    np.testing.assert_allclose(cut.contributions(X), whole.contributions(X), atol=1e-12)


def test_columns_are_found_by_name_and_not_by_place() -> None:
    X, y = made_up(2, gaps=True)
    explainer = explainer_of(HistGradientBoostingClassifier(max_iter=5).fit(X, y))
    np.testing.assert_array_equal(
        explainer.contributions(X[["d", "b", "a", "c"]]), explainer.contributions(X)
    )


def others() -> dict[str, object]:
    """Models that answer probabilities and have no reasons here."""
    X, y = made_up(3, gaps=False)
    three = np.digitize(X.a, [4, 8])
    small = {"max_iter": 3}
    return {
        "linear": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y),
        "constant": DummyClassifier().fit(X, y),
        "forest": RandomForestClassifier(3).fit(X, y),
        "calibrated": CalibratedClassifierCV(HistGradientBoostingClassifier(**small)).fit(X, y),
        "scaled": make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=3)).fit(
            X, y
        ),
        "indicators": make_pipeline(
            SimpleImputer(add_indicator=True), GradientBoostingClassifier(n_estimators=3)
        ).fit(made_up(3, gaps=True)[0], y),
        "categories": HistGradientBoostingClassifier(categorical_features=[0], **small).fit(X, y),
        "three classes": HistGradientBoostingClassifier(**small).fit(X, three),
        "another link": GradientBoostingClassifier(loss="exponential", n_estimators=3).fit(X, y),
        "another start": GradientBoostingClassifier(init=DummyClassifier(), n_estimators=3).fit(
            X, y
        ),
        "no names": HistGradientBoostingClassifier(**small).fit(X.to_numpy(), y),
    }


def test_models_of_another_make_get_no_reasons_instead_of_wrong_ones() -> None:
    explained = {name: explainer_of(model) for name, model in others().items()}
    assert explained == dict.fromkeys(explained)


def test_contributions_that_do_not_add_up_are_a_defect_and_no_answer() -> None:
    X, y = made_up(4, gaps=False)
    model = HistGradientBoostingClassifier(max_iter=5).fit(X, y)
    explainer = explainer_of(model)
    right = model.predict_proba(X)[:, 1]
    top_reasons(explainer, X, right)
    with pytest.raises(ReasonsError, match=r"another probability than the model's, by up to 0\.00"):
        top_reasons(explainer, X, right + 0.001)


def test_reasons_are_the_largest_contributions_with_the_customers_value() -> None:
    X, y = made_up(5, gaps=True)
    model = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5).fit(X, y)
    explainer = explainer_of(model)
    found = top_reasons(explainer, X, model.predict_proba(X)[:, 1], count=2)
    assert found.type == REASONS
    table = pd.DataFrame(explainer.contributions(X), columns=NAMES)
    for row, each in enumerate(found.to_pylist()):
        sizes = table.iloc[row].abs().sort_values(ascending=False)
        weights = [abs(reason["contribution"]) for reason in each]
        assert weights == sizes[sizes > 0].head(2).tolist()
        for reason in each:
            value = X.loc[row, reason["feature"]]
            assert reason["contribution"] == table.loc[row, reason["feature"]]
            assert reason["value"] == (None if np.isnan(value) else value)


def test_a_model_that_learned_nothing_gives_no_reasons() -> None:
    X, y = made_up(6, gaps=False)
    model = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=1_000).fit(X, y)
    found = top_reasons(explainer_of(model), X, model.predict_proba(X)[:, 1])
    assert found == pa.array([[]] * len(X), REASONS)
