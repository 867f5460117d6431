"""`training.estimator`: what is fitted, what is refused in one line, and what a version takes along."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from churn_lib import settings as settings_module
from churn_lib.features import FEATURES, LABEL
from churn_lib.model import ChurnModel
from churn_lib.testing import customer_rows
from churn_lib.training.estimators import (
    ESTIMATORS,
    EstimatorError,
    directions,
    estimator_of,
    make_estimator,
)
from churn_lib.training.packing import PackingError, packed

ROWS = customer_rows(3_000)
FOREST = "sklearn.ensemble:RandomForestClassifier"


def fitted(name: str, features: list[str] = FEATURES, **parameters: object) -> ChurnModel:
    estimator = make_estimator(name, 42, parameters, features)
    return ChurnModel(estimator).fit(ROWS[features], ROWS[LABEL])


@pytest.mark.parametrize("name", [*ESTIMATORS, FOREST, "sklearn.naive_bayes:GaussianNB"])
def test_the_same_rows_make_the_same_model_and_missing_values_are_answered(name: str) -> None:
    asked = ROWS[FEATURES].where(ROWS[FEATURES] != 0)
    asked.iloc[0] = np.nan
    one, two = (fitted(name).predict(asked) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert np.isfinite(one).all()


@pytest.mark.parametrize("name", ["hist_gradient_boosting", "lightgbm"])
def test_no_feature_moves_the_answer_against_its_direction(name: str) -> None:
    model = fitted(name, min_samples_leaf=5) if "hist" in name else fitted(name, num_leaves=31)
    for feature, sign in directions(FEATURES).items():
        values = np.quantile(ROWS[feature], np.linspace(0, 1, 30))
        rows = ROWS[FEATURES].head(20).loc[np.repeat(np.arange(20), len(values))]
        answers = model.predict(rows.assign(**{feature: np.tile(values, 20)}))
        assert (np.diff(answers.reshape(20, -1)) * sign >= 0).all(), feature


@pytest.mark.parametrize("name", ESTIMATORS)
def test_columns_may_be_fewer_or_unknown(name: str) -> None:
    rows = ROWS.assign(new_one=np.arange(len(ROWS)) % 7)
    features = ["days_since_last_event", "new_one", "events_last_90d"]
    estimator = make_estimator(name, 42, features=features)
    answers = estimator.fit(rows[features], rows[LABEL]).predict_proba(rows[features])
    assert answers.shape == (len(rows), 2)


def test_parameters_reach_the_step_they_name() -> None:
    made = make_estimator(
        "logistic_regression",
        42,
        {"C": 0.5, "simpleimputer__strategy": "mean", "class_weight": {"0": 1, "1": 3}},
    )
    assert (made[-1].C, made[-1].class_weight, made[0].strategy) == (0.5, {0: 1, 1: 3}, "mean")
    assert make_estimator("lightgbm", 42, {"max_bin": 63}).get_params()["max_bin"] == 63
    assert fitted("lightgbm", max_bin=8).predict(ROWS[FEATURES]).std() > 0
    calibrated = make_estimator("sklearn.calibration:CalibratedClassifierCV", 42, {"cv": 3})
    assert calibrated[-1].cv == 3  # behind the medians of missing values


def test_a_factory_gets_the_seed_and_threads_it_leaves_open(own_module: str) -> None:
    assert make_estimator(FOREST, 7).random_state == 7
    assert make_estimator(FOREST, 7, {"random_state": 3}).random_state == 3
    made = make_estimator(f"{own_module}:without_a_seed", 7, threads=2)
    assert (made.random_state, made.n_jobs) == (7, 2)
    assert make_estimator(f"{own_module}:Shop.best", 7).n_estimators == 5


OWN = """
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
import numpy as np

ready = LogisticRegression()

def without_a_seed():
    return RandomForestClassifier(n_estimators=3)

class Shop:
    @staticmethod
    def best(random_state):
        return RandomForestClassifier(n_estimators=5, random_state=random_state)

class Ours(LogisticRegression):
    def predict_proba(self, X):
        return halfway(super().predict_proba(X))

def halfway(answers):
    return (answers + 0.5) / 2

def logged(random_state):
    return make_pipeline(FunctionTransformer(flattened), Ours(random_state=random_state))

def flattened(X):
    return np.log1p(np.abs(X))

def broken():
    raise RuntimeError("no\\nlicence")

def regression():
    return LinearRegression()

def classes_only():
    return LogisticRegression
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that only this process can import."""
    (tmp_path / "own_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_models"
    sys.modules.pop("own_models", None)


@pytest.mark.parametrize(
    ("name", "parameters", "parts"),
    [
        ("no_such_package:make", {}, ["training.estimator", "no_such_package", "install"]),
        ("sklearn.ensemble:RandomForestClasifier", {}, ["did you mean RandomForestClassifier"]),
        ("sklearn.svm:SVC", {}, ["sklearn.svm:SVC", "no predict_proba"]),
        ("own_models:ready", {}, ["own_models:ready", "neither a class nor a function"]),
        ("own_models:broken", {}, ["own_models:broken", "RuntimeError: no licence"]),
        ("own_models:regression", {}, ["returned a LinearRegression"]),
        ("own_models:classes_only", {}, ["returned LogisticRegression"]),
        ("sklearn.ensemble:VotingClassifier", {}, ["VotingClassifier", "estimators"]),
        (
            "hist_gradient_boosting",
            {"max_itr": 5},
            ["training.estimator_parameters", "max_itr = 5", "did you mean max_iter"],
        ),
        ("logistic_regression", {"qqq": 5}, ["qqq = 5", "it has C, "]),
        ("logistic_regression", {"C": -1}, ["C = -1", "logistic_regression", "(0.0, inf]"]),
        ("logistic_regression", {"max_iter": 5, "C": "x"}, ['C = "x"']),
        ("gradient_boosting", {"max_depth": -3}, ["max_depth = -3"]),
        ("lightgbm", {"num_leaves": 1}, ["num_leaves = 1", "lightgbm"]),
        ("lightgbm", {"lerning_rate": 1}, ["lerning_rate = 1", "did you mean learning_rate"]),
        ("hist_gradient_boosting", {"monotonic_cst": {"nonsense": 1}}, ["nonsense"]),
        ("logistic_regression", {"penalty": "l1", "solver": "lbfgs"}, ["penalty", "lbfgs"]),
        (FOREST, {"n_estimators": 0}, ["n_estimators = 0", FOREST]),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(
    name: str, parameters: dict, parts: list[str], own_module: str
) -> None:
    with pytest.raises(EstimatorError) as caught:
        make_estimator(name, 42, parameters)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("training.estimator")
    for part in parts:
        assert part in message


def test_the_settings_choose_estimator_parameters_seed_and_threads() -> None:
    config = settings_module.load().updated(
        {
            "training.estimator": "lightgbm",
            "training.estimator_parameters": '{"n_estimators": 7}',
            "training.random_state": 3,
            "training.threads": 2,
        }
    )
    made = estimator_of(config)
    assert (made.n_estimators, made.random_state, made.n_jobs) == (7, 3, 2)


def loaded_elsewhere(content: bytes, folder: Path) -> list[float]:
    """What a pickle answers in a process that imports nothing from here."""
    (folder / "model.pkl").write_bytes(content)
    # not Parquet: Arrow may abort a process that ends at once (apache/arrow issue 34314)
    ROWS[FEATURES].head(5).to_pickle(folder / "rows.pkl")
    script = (
        "import pickle, json, pandas as pd\n"
        "model = pickle.load(open('model.pkl', 'rb'))\n"
        "print(json.dumps(list(model.predict(pd.read_pickle('rows.pkl')))))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    return json.loads(answer.stdout)


def test_code_of_ones_own_is_in_the_version_and_leaves_no_trace_here(
    own_module: str, tmp_path: Path
) -> None:
    before = set(cloudpickle.list_registry_pickle_by_value())  # by other tests of this process
    model = fitted(f"{own_module}:logged")
    with packed(model) as needed:
        content = cloudpickle.dumps(model)
    assert {name.partition("==")[0] for name in needed} >= {"scikit-learn", "numpy"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert loaded_elsewhere(content, elsewhere) == list(model.predict(ROWS[FEATURES].head(5)))
    assert cloudpickle.list_registry_pickle_by_value() == before


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_version_requires_the_libraries_of_its_estimator(name: str) -> None:
    with packed(fitted(name)) as needed:
        libraries = {each.partition("==")[0] for each in needed}
    assert ("lightgbm" in libraries) == (name == "lightgbm")
    assert "scikit-learn" in libraries and "churn-lib" not in libraries


def test_what_cannot_be_pickled_is_refused_in_one_line() -> None:
    class Locked(LogisticRegression):
        def fit(self, X: pd.DataFrame, y: pd.Series) -> "Locked":
            self.log = sys.stdout
            self.frames = sys._getframe()
            return super().fit(X, y)

    model = ChurnModel(Locked()).fit(ROWS[FEATURES], ROWS[LABEL])
    with pytest.raises(PackingError, match="cannot be pickled: ") as caught, packed(model):
        pass
    assert "\n" not in str(caught.value)
