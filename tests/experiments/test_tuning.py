"""A search finds better values on training rows, can be stopped anywhere, and writes one line."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run

from churn_lib import registry
from churn_lib.experiments import ExperimentError, tune
from churn_lib.experiments.rows import read_rows
from churn_lib.features.snapshots import TABLE
from churn_lib.settings import Settings, find_settings, load, write_values
from churn_lib.tables import connect
from churn_lib.testing import shop_tables
from churn_lib.training.estimators import EstimatorError
from tests.conftest import CHURN, wait_for

QUICK: dict[str, Any] = {"folds": 3, "trials": 5}


def shop_at(folder: Path) -> Settings:
    """A shop with events, features and its own settings.ini; its default has far too little freedom."""
    folder.mkdir(parents=True, exist_ok=True)
    own = Path(shutil.copy(find_settings(), folder))
    shutil.copy(find_settings().parent / "requirements.lock", folder)
    bad = {"C": 0.0001}
    chosen = {
        "training.estimator": "logistic_regression",
        "training.estimator_parameters": bad,
    }
    write_values(own, "local", chosen)
    shop = load("local", own)
    shop_tables(shop, 1_000)
    return shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return shop_at(tmp_path_factory.mktemp("shop"))


def runs_below(parent: str) -> list[Run]:
    query = f"tags.mlflow.parentRunId = '{parent}'"
    experiment = mlflow.MlflowClient().get_run(parent).info.experiment_id
    return mlflow.search_runs([experiment], query, output_format="list")


def trials_of(runs: list[Run]) -> list[int]:
    return sorted(int(run.data.tags["trial"]) for run in runs if "trial" in run.data.tags)


def test_a_bad_default_is_improved_and_the_line_for_settings_says_how(shop: Settings) -> None:
    tuned = tune(**QUICK, settings=shop)
    assert tuned.trial is not None
    assert tuned.today == {"C": 0.0001}
    assert tuned.values["C"] > 0.0001
    assert tuned.trial.differences["log_loss"].upper < 0
    assert tuned.trial.differences["roc_auc"].value > 0.01
    assert tuned.verdict == f"5 trials. The best, on other divisions: {tuned.trial.verdict}"
    assert tuned.lines == {"training.estimator_parameters": tuned.values}
    assert json.loads(json.dumps(tuned.to_dict()))["values"] == tuned.values
    for word in ("matters", "training.estimator_parameters", "<img"):
        assert word in tuned._repr_html_()


def test_the_same_call_goes_on_and_logs_each_trial_once(shop: Settings) -> None:
    first = tune(**QUICK, settings=shop)
    more = tune(**{**QUICK, "trials": 7}, settings=shop)
    assert more.run_id == first.run_id
    assert more.trials.head(5).equals(first.trials.head(5))
    found = runs_below(more.run_id)
    assert trials_of(found) == list(range(7))
    assert {run.info.status for run in found} == {"FINISHED"}
    assert tune(**{**QUICK, "trials": 3}, settings=shop).trials.equals(more.trials)


def test_other_bounds_or_folds_are_another_search(shop: Settings) -> None:
    one = tune(**QUICK, settings=shop)
    two = tune(**QUICK, space={"C": [0.01, 1.0]}, settings=shop)
    three = tune(folds=2, trials=2, settings=shop)
    assert len({one.run_id, two.run_id, three.run_id}) == 3
    assert two.trials["C"].between(0.01, 1.0).all()


def test_nothing_is_registered_and_held_out_customers_are_not_among_the_rows(
    shop: Settings,
) -> None:
    tables, models = connect(shop), registry.connect(shop)
    before = tables.version(TABLE), models.numbers(), models.aliases()
    tuned = tune(**QUICK, settings=shop)
    assert (tables.version(TABLE), models.numbers(), models.aliases()) == before
    assert tuned.trial is not None
    judged = set(tuned.trial.answers["customer_id"])
    table = tables.read(TABLE)
    held_out = table.filter(table.in_holdout_bucket).customer_id.to_pandas()
    newest = tables.read(TABLE).feature_date.max().to_pandas()
    assert not judged & set(held_out)
    assert max(read_rows(tables, shop).days) < newest.date()
    assert tuned.trial.rows.days == read_rows(tables, shop).days


def test_a_trial_that_is_cut_short_is_never_the_best(shop: Settings) -> None:
    tuned = tune(trials=12, folds=5, again=True, settings=shop)
    short = tuned.trials[tuned.trials.pruned]
    assert len(short)  # C goes down to where nothing is learned
    assert short.value.max() <= tuned.trials[~tuned.trials.pruned].value.max()
    assert tuned.values["C"] not in short.C.tolist()
    assert set(tuned.importances) == {"C"}


OWN = """
from sklearn.tree import DecisionTreeClassifier

class Picky(DecisionTreeClassifier):
    def fit(self, X, y, **given):
        if len(X) > 100 and self.max_depth > 3:
            raise ValueError("deeper than a tree may be")
        return super().fit(X, y, **given)

def tree(random_state):
    return Picky(max_depth=2, random_state=random_state)

tree.search_space = {"max_depth": [2, 6], "criterion": {"choices": ["gini", "entropy"]}}

def never(random_state):
    return Picky(max_depth=9, random_state=random_state)

never.search_space = {"max_depth": [4, 9]}

def plain(random_state):
    return Picky(max_depth=2, random_state=random_state)
"""


@pytest.fixture
def own_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_trees.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_trees"


def test_a_factory_declares_its_space_and_values_that_cannot_be_fitted_are_left(
    shop: Settings, own_trees: str
) -> None:
    tuned = tune(f"{own_trees}:tree", trials=8, folds=3, settings=shop)
    failed = tuned.trials[tuned.trials.problem != ""]
    assert set(failed.max_depth) <= {4, 5, 6} and len(failed)
    assert (failed.problem == "ValueError: deeper than a tree may be").all()
    assert tuned.values.get("max_depth", 2) <= 3
    assert tuned.lines["training.estimator"] == f"{own_trees}:tree"
    statuses = {
        run.data.tags["trial"]: run.info.status
        for run in runs_below(tuned.run_id)
        if "trial" in run.data.tags
    }
    assert (
        sorted(int(k) for k, status in statuses.items() if status == "FAILED")
        == failed.number.tolist()
    )


def test_when_nothing_can_be_fitted_the_reason_is_given(shop: Settings, own_trees: str) -> None:
    with pytest.raises(
        ExperimentError, match="none of 3 trials could be fitted; the first: ValueError"
    ):
        tune(f"{own_trees}:never", trials=3, folds=3, settings=shop)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"space": {"depth": [1, 2]}}, "depth, no parameter of logistic_regression"),
        ({"space": {"C": [1, 1]}}, "low below high"),
        ({"space": {"C": [0, 1, "log"]}}, "both above 0 for log"),
        ({"space": {"C": 1}}, r"the search space of C is 1: give \[low, high\]"),
        ({"space": {"C": {"choices": []}}}, "the search space of C"),
        ({"space": {"C": [True, 2]}}, "the search space of C"),
        ({"space": {}}, "the search space is empty"),
        ({"metric": "accuracy"}, "metric = 'accuracy': it is roc_auc, brier, log_loss"),
        ({"trials": 0}, "trials = 0"),
        ({"minutes": 0.0}, "minutes = 0"),
        ({"estimator": "forest"}, "estimator = 'forest'"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(
    shop: Settings, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        tune(**{**QUICK, **given}, settings=shop)


def test_an_estimator_without_a_space_says_how_to_give_one(shop: Settings, own_trees: str) -> None:
    with pytest.raises(EstimatorError, match="declares no search_space"):
        tune(f"{own_trees}:plain", **QUICK, settings=shop)
    tuned = tune(f"{own_trees}:plain", **QUICK, settings=shop, space={"max_depth": [1, 3]})
    assert tuned.trials.max_depth.between(1, 3).all()


def test_a_file_that_is_no_search_is_named(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    (shop.store / "tuning.db").write_text("no database")
    with pytest.raises(ExperimentError, match=r"tuning\.db cannot be used"):
        tune(**QUICK, settings=shop)


def churn(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "CHURN_SETTINGS": str(folder / "settings.ini")}
    return subprocess.Popen(
        [str(CHURN), "tune", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def trials_in(database: Path, state: str) -> int:
    if not database.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            query = "select count(*) from trials where state = ?"
            return int(connection.execute(query, (state,)).fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return 0


def test_a_killed_search_goes_on_where_it_was_and_writes_the_best(tmp_path: Path) -> None:
    shop, words = shop_at(tmp_path), ("--folds", "3", "--trials")
    before = (tmp_path / "settings.ini").read_text()
    database = shop.store / "tuning.db"
    killed = churn(tmp_path, *words, "500")
    wait_for(lambda: trials_in(database, "COMPLETE") >= 2 and trials_in(database, "RUNNING"))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert (tmp_path / "settings.ini").read_text() == before
    done = trials_in(database, "COMPLETE")
    wanted = done + 3
    answer = churn(tmp_path, *words, str(wanted), "--write", "--json")
    out, errors = answer.communicate(timeout=240)
    assert answer.returncode == 0, errors
    found = json.loads(out)
    assert [each["number"] for each in found["trials"]] == list(range(wanted))
    assert found["written"] == {"training.estimator_parameters": "DEFAULT"}
    assert load("local", tmp_path / "settings.ini").training.estimator_parameters == found["values"]
    registry.connect(shop)
    nested = runs_below(found["run_id"])
    assert len(trials_of(nested)) == wanted == len(set(trials_of(nested)))
    assert {run.info.status for run in nested} == {"FINISHED"}
    assert mlflow.MlflowClient().get_run(found["run_id"]).info.status == "FINISHED"
    assert trials_in(database, "RUNNING") == 0


def test_a_search_that_is_stopped_says_that_it_goes_on(tmp_path: Path) -> None:
    shop = shop_at(tmp_path)
    stopped = churn(tmp_path, "--folds", "3", "--trials", "500")
    wait_for(lambda: trials_in(shop.store / "tuning.db", "COMPLETE") >= 1)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    registry.connect(shop)
    experiment = mlflow.get_experiment_by_name(shop.experiment)
    query = "tags.search != ''"
    (parent,) = mlflow.search_runs([experiment.experiment_id], query, output_format="list")
    assert parent.info.status == "KILLED"


@pytest.mark.parametrize("space", ["{", "[1]", '{"C": "wide"}'])
def test_a_space_that_is_none_is_one_line(shop: Settings, space: str) -> None:
    answer = churn(shop.root, "--space", space)
    out, errors = answer.communicate(timeout=60)
    assert answer.returncode == 2
    assert errors.startswith("churn: ") and errors.count("\n") == 1
    assert out == ""
