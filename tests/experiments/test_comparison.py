"""Two versions side by side: paired on the same rows, each for itself on others."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from churn_lib import registry
from churn_lib.experiments import ExperimentError, compare, try_idea
from churn_lib.experiments.comparison import changes_table, notes, page
from churn_lib.features import MONOTONE
from churn_lib.features.snapshots import TABLE
from churn_lib.registry import RegistryError
from churn_lib.settings import Settings, load
from churn_lib.statistics import roc_auc_difference
from churn_lib.tables import connect
from churn_lib.testing import shop_tables
from churn_lib.training import read_data_set, read_record, register, source
from churn_lib.training.train import train


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two versions of different estimators, judged on the same holdout."""
    config = load("local").updated({"store": tmp_path_factory.mktemp("shop")})
    tables = shop_tables(config, 1_200)
    models = registry.connect(config)
    data = read_data_set(tables.read(TABLE), tables.version(TABLE), config)
    for name in ("hist_gradient_boosting", "logistic_regression"):
        other = config.updated({"training.estimator": name})
        origin = source(tables, data.feature_version, other)
        register(models, train(data, other, "abc", origin))
    return config


def test_two_versions_are_paired_on_their_holdout(shop: Settings) -> None:
    models = registry.connect(shop)
    found = compare(models, "1", "2")
    one, two = (read_record(models, number).predictions for number in (1, 2))
    assert one is not None and two is not None
    answers = two.churn_probability.to_numpy(), one.churn_probability.to_numpy()
    expected = roc_auc_difference(one.churned.to_numpy(), *answers, 0.975)
    assert np.isclose(found.differences["roc_auc"].value, expected.value)
    assert np.isclose(found.differences["roc_auc"].lower, expected.lower)
    changes = {what: values for what, *values in changes_table(found)[1]}
    # what the project gives each of them, and not one of the defaults of scikit-learn
    assert changes == {
        "training.estimator": ["hist_gradient_boosting", "logistic_regression"],
        "learning_rate": ["0.03", ""],
        "max_iter": ["200", ""],
        "max_leaf_nodes": ["8", ""],
        "min_samples_leaf": ["200", ""],
        "monotonic_cst": [f"for {len(MONOTONE)} columns", ""],
        "simpleimputer__strategy": ["", "median"],
        "logisticregression__max_iter": ["", "1000"],
    }
    assert "defaults are left out" in notes(found)[1]
    assert found.to_dict()["sides"]["version 2"]["parameters"]["logisticregression__C"] == "1.0"
    assert json.loads(json.dumps(found.to_dict()))["differences"]["roc_auc"]["value"]
    assert "version 2" in page(found)


def test_a_version_and_an_experiment_have_an_interval_each(shop: Settings, tmp_path: Path) -> None:
    models = registry.connect(shop)
    extra = {"older": lambda rows: rows.total_events - rows.events_last_90d}
    tried = try_idea("logistic_regression", extra=extra, settings=shop, folds=3, repeats=1)
    found = compare(models, "1", tried.run_id)
    assert found.differences == {}
    assert "different rows" in found.note
    assert len(found.second.metrics()) == len(found.first.metrics())
    assert ["feature older", "", "added"] in changes_table(found)[1]


def test_one_estimator_differs_in_what_it_was_given_and_for_which_columns(shop: Settings) -> None:
    models = registry.connect(shop)
    other = shop.updated({"training.estimator_parameters": {"max_iter": 100}})
    extra = {"weekly": lambda rows: rows.total_events / 7}
    tried = try_idea(extra=extra, settings=other, folds=2, repeats=1)
    found = compare(models, "1", tried.run_id)
    assert changes_table(found)[1] == [
        ["training.estimator_parameters", "{}", "{'max_iter': 100}"],
        ["max_iter", "200", "100"],
        ["feature weekly", "", "added"],
    ]
    assert notes(found) == [found.note]


def test_an_experiment_is_as_sure_as_its_customers_are_many(shop: Settings) -> None:
    models = registry.connect(shop)
    ids = [
        try_idea(name, settings=shop, folds=3, repeats=1).run_id
        for name in ("hist_gradient_boosting", "logistic_regression")
    ]
    found = compare(models, *ids)
    one, two = (side.answers for side in (found.first, found.second))
    assert one is not None and two is not None
    customers, y = one.customer_id.to_numpy(), one.churned.to_numpy()
    assert len(set(customers)) < len(customers)
    names = sorted(set(customers))
    rows = [np.flatnonzero(customers == name) for name in names]
    rng, drawn, brier = np.random.default_rng(0), [], []
    for _ in range(400):
        at = np.concatenate([rows[k] for k in rng.integers(0, len(names), len(names))])
        scores = one.churn_probability.to_numpy()[at], two.churn_probability.to_numpy()[at]
        areas = [roc_auc_score(y[at], each) for each in scores]
        drawn.append([areas[0], areas[1] - areas[0]])
        brier.append(np.mean((scores[1] - y[at]) ** 2 - (scores[0] - y[at]) ** 2))
    low, high = found.first.metrics().loc["roc_auc", ["low", "high"]]
    area, difference = np.std(drawn, axis=0)
    assert high - low == pytest.approx(2 * 1.96 * area, rel=0.12)
    assert found.differences["roc_auc"].standard_error == pytest.approx(difference, rel=0.12)
    assert found.differences["brier"].standard_error == pytest.approx(np.std(brier), rel=0.12)


def test_what_is_not_there_is_named(shop: Settings) -> None:
    models = registry.connect(shop)
    with pytest.raises(RegistryError, match="no version 9"):
        compare(models, "1", "9")
    with pytest.raises(ExperimentError, match="abc is neither a version nor a run"):
        compare(models, "1", "abc")
    run_of_version = models.version(1).run_id
    with pytest.raises(ExperimentError, match="is no experiment"):
        compare(models, "1", str(run_of_version))


def test_nothing_is_written(shop: Settings) -> None:
    tables, models = connect(shop), registry.connect(shop)
    before = tables.version(TABLE), models.numbers(), models.aliases()
    compare(models, "1", "2")
    assert (tables.version(TABLE), models.numbers(), models.aliases()) == before
