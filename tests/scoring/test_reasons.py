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
from lightgbm import LGBMClassifier
from scipy.special import expit
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
from churn_lib.training.estimators import ESTIMATORS

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


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_base_value_and_contributions_are_the_log_odds_of_the_answer(estimator: str) -> None:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.exponential(10, (1_000, len(FEATURES))), columns=FEATURES)
    X = X.mask(rng.uniform(size=X.shape) < 0.05)
    y = (X.days_since_last_event.fillna(0) - X.total_events.fillna(9) > 0).astype(int)
    model = ChurnModel(make_estimator(estimator, 0)).fit(X, y)
    odd = pd.DataFrame({name: [np.nan, 1e9, -1e9] for name in FEATURES})
    asked = pd.concat([X, odd])
    explainer = explainer_of(model)
    answered = explainer.base_value + explainer.contributions(asked).sum(axis=1)
    np.testing.assert_allclose(expit(answered), model.predict(asked), rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("gaps", [False, True])
def test_trees_of_lightgbm_have_the_contributions_that_it_computes_itself(gaps: bool) -> None:
    X, y = made_up(5, gaps)
    model = LGBMClassifier(n_estimators=20, num_leaves=15, min_child_samples=3, verbosity=-1)
    model.fit(X, y, sample_weight=np.where(X.b.fillna(0) > 5, 2.0, 1.0))
    asked = made_up(6, gaps=True)[0]
    explainer = explainer_of(model)
    own = model.predict(asked, pred_contrib=True)
    assert explainer is not None
    np.testing.assert_allclose(explainer.contributions(asked), own[:, :-1], rtol=0, atol=1e-9)
    assert explainer.base_value == pytest.approx(own[0, -1], abs=1e-9)


@pytest.mark.parametrize("with_mean", [True, False])
def test_weights_are_the_shapley_values_of_leaving_features_at_their_average(
    with_mean: bool,
) -> None:
    X, y = made_up(7, gaps=True)
    scaler = StandardScaler(with_mean=with_mean)
    imputer = SimpleImputer(strategy="median").set_output(transform="pandas")
    model = make_pipeline(imputer, scaler, LogisticRegression()).fit(X, y)
    explainer, filled = explainer_of(model), imputer.transform(X)
    assert explainer is not None
    found, names = explainer.contributions(X.head(3)), list(X)
    average = pd.DataFrame([filled.mean()])[names]
    assert explainer.base_value == pytest.approx(model.decision_function(average)[0])
    for row in range(3):
        for at, name in enumerate(names):
            total = 0.0
            for known in itertools.product([False, True], repeat=len(names)):
                if known[at]:
                    continue
                without = average.copy()
                for other, is_known in zip(names, known, strict=True):
                    if is_known:
                        without[other] = filled[other].iloc[row]
                also = without.assign(**{name: filled[name].iloc[row]})
                gain = model.decision_function(also)[0] - model.decision_function(without)[0]
                others_known = sum(known)
                total += (
                    gain
                    * math.factorial(others_known)
                    * math.factorial(len(names) - 1 - others_known)
                )
            assert found[row, at] == pytest.approx(total / math.factorial(len(names)))


class Cautious(LogisticRegression):
    """Answers otherwise than its parent."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return 0.01 + 0.98 * super().predict_proba(X)


def others() -> dict[str, object]:
    """Models that answer probabilities and have no reasons here."""
    X, y = made_up(3, gaps=False)
    three = np.digitize(X.a, [4, 8])
    small = {"max_iter": 3}
    return {
        "derived": make_pipeline(StandardScaler(), Cautious()).fit(X, y),
        "not scaled": LogisticRegression().fit(X, y),
        "scaled twice": make_pipeline(StandardScaler(), StandardScaler(), LogisticRegression()).fit(
            X, y
        ),
        "averaged": LGBMClassifier(
            n_estimators=3, boosting_type="rf", subsample=0.5, subsample_freq=1, verbosity=-1
        ).fit(X, y),
        "zero is missing": LGBMClassifier(
            n_estimators=3, zero_as_missing=True, min_child_samples=2, verbosity=-1
        ).fit(X, y),
        "stretched": LGBMClassifier(n_estimators=3, sigmoid=2, verbosity=-1).fit(X, y),
        "linear leaves": LGBMClassifier(n_estimators=3, linear_tree=True, verbosity=-1).fit(X, y),
        "categories of LightGBM": LGBMClassifier(n_estimators=3, verbosity=-1).fit(
            X.assign(a=pd.Categorical(X.a.round() % 5)), y
        ),
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
