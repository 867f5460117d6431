"""Two versions side by side: paired on the same rows, each for itself on others."""

import json
from pathlib import Path

import numpy as np
import pytest

from churn_lib import registry
from churn_lib.experiments import ExperimentError, compare, try_idea
from churn_lib.experiments.comparison import changes_table, page
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
    changes = changes_table(found)[1]
    assert ["training.estimator", "hist_gradient_boosting", "logistic_regression"] in changes
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
