"""A version that answers otherwise than the gate recorded is noticed before anything is made of its answers."""

import datetime
from collections.abc import Callable
from typing import Any

import ibis
import numpy as np
import pandas as pd
import pytest
from databricks.sdk.errors import BadRequest

from churn_lib import registry
from churn_lib.features import ANSWER, FEATURES, LABEL
from churn_lib.monitoring import Verdict, alerts, monitor
from churn_lib.monitoring.report import Report, card
from churn_lib.monitoring.windows import read_baseline
from churn_lib.registry import Registry
from churn_lib.registry.evidence import (
    AnswersChanged,
    changed_answers,
    recorded_answers,
    refuse_changed_answers,
    write_answers,
)
from churn_lib.scoring import batch
from churn_lib.serving.smoke_test import Answer, holdout_sample, smoke_test
from churn_lib.settings import Settings
from churn_lib.tables import Tables
from churn_lib.testing import TODAY, add_gate_report, scratch_settings, shop_tables
from churn_lib.training import read_data_set, register
from churn_lib.training.train import train


class Shop:
    """A version at Production whose answers the gate may have recorded, and its predictions for today."""

    def __init__(self, recorded: bool = True):
        self.settings: Settings = scratch_settings().updated({"data.snapshots": 3})
        self.tables: Tables = shop_tables(self.settings, customers=1_000)
        self.models: Registry = registry.connect(self.settings)
        version = self.tables.version("gold.features")
        data = read_data_set(self.tables.read("gold.features", version), version, self.settings)
        self.version = register(self.models, train(data, self.settings, git_sha="abc"))
        self.models.set_alias(registry.PRODUCTION, self.version)
        self.model = self.models.load(self.version)
        self.holdout = data.holdout
        add_gate_report(self.tables, self.models, self.version)
        if recorded:
            answers = self.model.predict(self.holdout[FEATURES].astype(float))
            report = f"report-{self.version}-None-PASS"
            name = self.models.model_name
            rows = self.holdout[["customer_id", "feature_date", *FEATURES, LABEL]]
            write_answers(self.tables, report, name, self.version, rows, answers)
        rows = self.tables.read("gold.features").to_pandas()
        rows = rows[pd.to_datetime(rows.feature_date).dt.date == TODAY]
        made = rows[["customer_id", "feature_date"]].assign(
            model_name=self.settings.model_name,
            model_version=self.version,
            churn_probability=self.model.predict(rows[FEATURES].astype(float)),
            scored_at=datetime.datetime(2025, 6, 24, tzinfo=datetime.UTC),
        )
        self.tables.overwrite("gold.predictions", ibis.memtable(made))

    def monitor(self, models: Any = None) -> Verdict:
        return monitor(self.tables, models or self.models, self.settings, TODAY, notify=False)


class Broken:
    """The registry, but its versions answer otherwise than they did when they were judged."""

    def __init__(self, models: Registry, change: Callable[[np.ndarray], np.ndarray]):
        self.models, self.change = models, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.models, name)

    def load(self, number: int) -> Any:
        model, change = self.models.load(number), self.change
        predict = model.predict
        model.predict = lambda rows: change(predict(rows))
        return model


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "inverted": lambda answers: 1 - answers,
    "flattened": lambda answers: np.full_like(answers, answers.mean()),
    "shifted": lambda answers: np.clip(answers + 1e-4, 0, 1),
    "not a number": lambda answers: np.full_like(answers, np.nan),
    "reversed": lambda answers: answers[::-1],
    "too few": lambda answers: answers[:-1],
}


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope="module")
def unrecorded() -> Shop:
    return Shop(recorded=False)


@pytest.mark.parametrize("change", CHANGES)
def test_the_monitor_stops_with_an_alert(change: str, shop: Shop) -> None:
    broken: Any = Broken(shop.models, CHANGES[change])
    found = shop.monitor(broken)
    assert [each.cause for each in found.causes] == ["answers_changed"]
    assert (found.verdict, found.retrain) == ("investigate", False)
    assert found.sentence.startswith(
        f"Version {shop.version} does not answer as it did when the gate"
    )
    assert "churn rollback" in found.sentence and "\n" not in found.sentence
    assert found.refresher is not None and not found.refresher.computed
    assert "answers as the gate recorded" in card(found, shop.settings)._repr_html_()


@pytest.mark.parametrize("replaced", [False, True])
def test_the_alert_is_closed_when_the_version_is_itself_again_or_replaced(replaced: bool) -> None:
    shop = Shop()
    broken: Any = Broken(shop.models, CHANGES["inverted"])
    assert [each.cause for each in shop.monitor(broken).alerts] == ["answers_changed"]
    if not replaced:
        well = shop.monitor()
        assert "answers_changed" not in {each.cause for each in (*well.causes, *well.alerts)}
        assert well.refresher is not None and well.refresher.computed
        return
    signal = alerts.Signal("answers_changed", (None,), (TODAY,), "")
    left = alerts.update(shop.tables, [signal], shop.settings.model_name, shop.version + 1, 2, 3)
    assert "answers_changed" not in {each.cause for each in left}


@pytest.mark.parametrize("change", CHANGES)
def test_scoring_and_the_smoke_test_refuse(change: str, shop: Shop) -> None:
    broken: Any = Broken(shop.models, CHANGES[change])
    model = broken.load(shop.version)
    with pytest.raises(AnswersChanged, match="churn rollback"):
        refuse_changed_answers(broken, shop.tables, shop.version, model.predict)
    sample = holdout_sample(broken, shop.tables, shop.version, shop.settings)

    def client(rows: pd.DataFrame) -> Answer:
        if len(rows.columns) < len(FEATURES):
            raise BadRequest("a column is missing")
        return Answer(list(model.predict(rows)), "entity", 1.0)

    answers = smoke_test(client, sample, "entity", shop.settings).checks[0]
    assert not answers.passed
    if change != "too few":
        assert answers.sentence.endswith("holdout rows answered as the gate recorded")


def test_scoring_asks_the_version_at_production(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batch.production(shop.models, shop.settings, shop.tables).version == shop.version
    inverted = Broken(shop.models, CHANGES["inverted"]).load(shop.version)
    monkeypatch.setattr(batch, "load_unchanged", lambda *_: inverted)
    with pytest.raises(AnswersChanged, match="answers differ, by up to"):
        batch.production(shop.models, shop.settings, shop.tables)


def test_the_baseline_is_what_the_gate_recorded(shop: Shop) -> None:
    known = recorded_answers(shop.models, shop.tables, shop.version)
    assert known is not None
    flat: Any = Broken(shop.models, CHANGES["flattened"])
    for models in (shop.models, flat):
        holdout = read_baseline(shop.tables, models, shop.version).holdout
        assert sorted(holdout[ANSWER]) == sorted(known.churn_probability)
        assert len(holdout) == len(shop.holdout)


def test_the_last_digits_may_differ(shop: Shop) -> None:
    known = recorded_answers(shop.models, shop.tables, shop.version)
    assert known is not None
    assert changed_answers(lambda rows: shop.model.predict(rows) + 9e-7, known) == ""
    assert changed_answers(lambda rows: shop.model.predict(rows) + 2e-6, known)


def test_a_version_from_before_answers_were_recorded_works_and_says_so(unrecorded: Shop) -> None:
    shop = unrecorded
    found = shop.monitor()
    (remark,) = [each for each in found.problems if "recorded" in each]
    assert remark == (
        f"version {shop.version} was judged before the gate recorded answers: "
        "its reference is what it answers today"
    )
    assert found.refresher is not None and found.refresher.computed
    report = Report(found)
    assert report.baseline is not None and len(report.baseline.holdout) == len(shop.holdout)
    assert remark in card(found, shop.settings)._repr_html_()
    assert batch.production(shop.models, shop.settings, shop.tables).version == shop.version
    sample = holdout_sample(shop.models, shop.tables, shop.version, shop.settings)
    assert sample.origin == "its training recorded"
    assert (shop.model.predict(sample.rows) == sample.expected).all()


def test_a_version_that_was_deleted_at_production_is_an_alert_with_a_way_back() -> None:
    shop = Shop()
    name, number = shop.models.model_name, shop.version
    shop.models.client.delete_model_version(name, str(number))
    found = shop.monitor()
    assert [each.cause for each in found.causes] == ["answers_changed"]
    assert (found.verdict, found.retrain) == ("investigate", False)
    assert f"has no version {number} any more, though Production and Staging" in found.sentence
    assert "churn rollback --to" in found.sentence
