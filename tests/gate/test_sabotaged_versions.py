"""Sabotaged versions on their way to Production: each is registered, judged as the job does, and refused."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from churn_lib import gate, registry, settings
from churn_lib.features import (
    FEATURES,
    LABEL,
    feature_dates,
    newest_snapshot,
    read_holdout,
    read_older_holdout,
)
from churn_lib.features.holdout import to_frame, training_rows
from churn_lib.gate import comparison, probe
from churn_lib.gate.report import GateReport
from churn_lib.model import ChurnModel
from churn_lib.registry.promotion import GateFailed, promote
from churn_lib.testing import shop_tables
from churn_lib.training import make_estimator, record
from tests.gate import sabotaged
from tests.gate.sabotaged import CASES, Honest, Model, Sabotage
from tests.shared import empty_mlflow

# a model's process does not know the tests: what is pickled takes its functions along
for module in (sabotaged, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(module)

ROOT = Path(__file__).parents[2]
CONFIG = settings.load("local", ROOT / "settings.ini")
SHA = "abc123"


class InThisProcess:
    """Loads and asks a version here, where a process of its own would change nothing."""

    def __init__(self, files: Path, seconds: float = 60.0, megabytes: int = 0):
        self.model, self.load_seconds = mlflow.pyfunc.load_model(str(files)), 0.0

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def predict(self, rows: pd.DataFrame) -> Any:
        return self.model.predict(rows)


class Shop:
    """A simulated shop with an honest version at Production."""

    def __init__(self, folder: Path):
        self.settings = CONFIG.model_copy(update={"store": folder})
        empty_mlflow(self.settings)
        self.store = shop_tables(self.settings, 8_000)
        self.models = registry.connect(self.settings)
        self.version = self.store.version("gold.features")
        features = self.store.read("gold.features", self.version)
        self.holdout, day = read_holdout(features, self.settings)
        assert day
        self.older = read_older_holdout(features, self.settings, day)
        self.judged = pd.concat([self.older, self.holdout], ignore_index=True)
        self.newest = probe.newest_rows(features)
        newest = newest_snapshot(features)
        assert newest
        days = feature_dates(newest, self.settings)[2:]
        self.training = to_frame(training_rows(features, days))
        self.honest = Honest(self.training)
        self.champion = self.register(Model(self.honest, Sabotage("", "").act, None))
        self.answers = probe.ask_version(self.models, self.champion, self.judged)

    def register(
        self,
        model: Any,
        rows: pd.DataFrame | None = None,
        threshold: float | None = 0.5,
        columns: list[str] = FEATURES,
        tag: str = "",
    ) -> int:
        inputs = Schema([ColSpec(DataType.double, name) for name in columns])
        with mlflow.start_run():
            if rows is not None:
                record.log_training_rows(rows)
            logged = mlflow.sklearn.log_model(
                model,
                name="churn-gbm",
                signature=ModelSignature(inputs, Schema([ColSpec(DataType.double)])),
                serialization_format="cloudpickle",
                pip_requirements=["scikit-learn"],
                metadata={
                    "features": [[name, ""] for name in FEATURES],
                    **({} if threshold is None else {"decision_threshold": threshold}),
                },
            )
        number = self.models.register(logged.model_uri, {"decision_threshold": tag} if tag else {})
        self.models.set_alias(registry.STAGING, number)
        return number

    def judge(self, number: int, champion: bool = True, **changes: Any) -> GateReport:
        """What the job does, up to the report's record."""
        config = self.settings.updated(changes)
        problem = probe.training_problem_of(self.models, number, self.store, self.version, config)
        known = {"newest": self.newest, "training_problem": problem}
        found = probe.examine(
            self.models, number, self.judged, registry.STAGING, None, config, **known
        )
        rival = self.answers if champion else None
        report = gate.judge(found, rival, self.judged, config)
        gate.record(report, self.models, self.store, self.version, SHA)
        return report

    def put(self, case: Sabotage) -> int:
        model: Any = Model(self.honest, case.act, case.known(self))
        if case.bad_load:
            model.known = case.bad_load()
        rows = case.rows(self.training, self)
        return self.register(model, rows, case.threshold, case.columns, case.tag)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWS", 200)
        made = Shop(tmp_path_factory.mktemp("sabotaged"))
        made.models.set_alias(registry.PRODUCTION, made.champion)
        yield made


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "IsolatedModel", InThisProcess)


def refusing(report: GateReport) -> dict[str, str]:
    return {found.name: found.sentence for found in report.failures}


def refused(shop: Shop, case: Sabotage) -> None:
    number = shop.put(case)
    report = shop.judge(number, case.champion, **case.settings)
    assert case.check in refusing(report), refusing(report)
    with pytest.raises(GateFailed, match=case.check):
        promote(
            shop.models,
            shop.store,
            number,
            shop.settings,
            SHA,
            report_id=report.case.candidate.report_id,
        )
    assert shop.models.version_of(registry.PRODUCTION) == shop.champion


def named(process: bool) -> Any:
    cases = [case for case in CASES if case.process == process]
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@named(False)
def test_a_sabotaged_version_is_refused(shop: Shop, here: None, case: Sabotage) -> None:
    refused(shop, case)


@named(True)
def test_a_version_that_reaches_out_of_its_process_is_refused(shop: Shop, case: Sabotage) -> None:
    refused(shop, case)


FAMILIES = {
    "hist_gradient_boosting": lambda: make_estimator("hist_gradient_boosting", 1),
    "gradient_boosting": lambda: make_estimator("gradient_boosting", 1),
    "logistic regression": lambda: make_pipeline(
        SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression(max_iter=1000)
    ),
    "random forest": lambda: RandomForestClassifier(50, min_samples_leaf=20, random_state=1),
}
COMPARED = {"champion_roc_auc", "champion_brier", "champion_calibration", "champion_decisions"} | {
    "champion_value",
    "slices",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_honest_version_fails_no_check_but_the_comparison(
    shop: Shop, here: None, family: str
) -> None:
    rows = shop.training
    model = ChurnModel(FAMILIES[family](), 0.5).fit(rows[FEATURES], rows[LABEL])
    report = shop.judge(shop.register(model, rows))
    stopped = {found.name: found.sentence for found in report.results if found.stops}
    assert set(stopped) <= COMPARED, stopped


def test_the_page_lists_these_candidates() -> None:
    page = json.loads((ROOT / "nbs/explanations/sabotage.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in page["cells"])
    shown = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    listed = [
        f"| {case.name} | `{case.check}` | {'own process' if case.process else ''} |"
        for case in CASES
    ]
    assert shown == listed and len(listed) >= 60


def test_the_page_names_tests_that_there_are() -> None:
    page = json.loads((ROOT / "nbs/explanations/sabotage.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in page["cells"])
    named = re.findall(r"\| (tests/\S+\.py): ([^|]+) \|$", text, re.MULTILINE)
    assert len(named) > 20
    for file, words in named:
        assert f"def test_{words.replace(' ', '_')}(" in (ROOT / file).read_text(), words
