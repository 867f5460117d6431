"""Twenty ways to get a bad model to Production; each is refused by the check that should refuse it."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import ibis
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from churn_lib import gate, registry, settings, tables
from churn_lib.features import FEATURES, LABEL
from churn_lib.gate import comparison, judge, probe
from churn_lib.gate.report import GateReport
from churn_lib.registry import promotion_log
from churn_lib.registry.evidence import REPORTS, SCHEMA
from churn_lib.registry.promotion import GateFailed, PromotionRefused, promote
from churn_lib.training import record
from tests.gate import cases
from tests.gate.cases import FITTED, JUDGED, answers, blurred, evidence, given, good, make_holdout
from tests.shared import empty_mlflow

# a model's process does not know the tests: what is pickled takes its functions along
for module in (cases, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(module)

CONFIG = settings.load("local", Path(__file__).parents[2] / "settings.ini")
HOLDOUT = make_holdout(0)


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    """How many draws there are is the matter of tests/test_statistics.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWS", 200)
        yield


def refused(report: GateReport) -> dict[str, str]:
    """Name and sentence of the checks that refuse by what they measured."""
    assert report.verdict == "FAIL"
    return {found.name: found.sentence for found in report.failures}


def sabotaged(predict: Callable[[pd.DataFrame], Any] = good, **known: Any) -> dict[str, str]:
    """What refuses a candidate that is to replace a good champion."""
    return refused(judge(evidence(HOLDOUT, predict, **known), answers(HOLDOUT), HOLDOUT, CONFIG))


def test_without_sabotage_the_candidate_passes() -> None:
    report = judge(
        evidence(HOLDOUT), answers(HOLDOUT, lambda rows: blurred(rows, 0.2)), HOLDOUT, CONFIG
    )
    assert report.verdict == "PASS", refused(report)


def test_shuffled_labels() -> None:
    rows = make_holdout(1)
    label = rows[LABEL].sample(frac=1, random_state=0).to_numpy()
    model = LogisticRegression(max_iter=1000).fit(rows[FEATURES], label)
    found = sabotaged(lambda asked: model.predict_proba(asked.fillna(0))[:, 1])
    assert {"roc_auc", "champion_roc_auc", "beats_single_column", "beats_base_rate"} <= set(found)
    assert "against total_events alone: no column may be seen" in found["beats_single_column"]


def test_a_constant_model() -> None:
    rate = float(HOLDOUT[LABEL].mean())
    found = sabotaged(lambda asked: np.full(len(asked), rate))
    assert {"roc_auc", "f1_score", "beats_single_column", "beats_base_rate"} <= set(found)
    assert f"better than telling everybody {rate:.1%}" in found["beats_base_rate"]


def test_swapped_columns() -> None:
    swapped = (FEATURES[1], FEATURES[0], *FEATURES[2:])
    assert sabotaged(columns=swapped, trained_on=tuple(FEATURES)) == {
        "signature": "input 1 of the signature is total_sessions, its training has total_events"
    }


def test_columns_that_were_swapped_behind_the_signature() -> None:
    names = {"days_since_last_event": "customer_tenure_days", "total_events": "distinct_products"}
    both = {**names, **{new: old for old, new in names.items()}}
    found = sabotaged(lambda asked: good(asked.rename(columns=both)))
    assert {"roc_auc", "beats_single_column", "champion_roc_auc"} <= set(found)


def test_a_missing_column() -> None:
    found = sabotaged(columns=tuple(FEATURES[:-1]), trained_on=tuple(FEATURES))
    sentence = "the signature lacks engagement_score, which its training has noted"
    assert found == {"signature": sentence}


def test_a_column_that_no_table_has() -> None:
    found = sabotaged(columns=(*FEATURES, "visits"))
    sentence = "the signature asks for visits, which gold.features does not have"
    assert found == {"signature": sentence}


def test_the_label_leaked_as_a_feature() -> None:
    rows = HOLDOUT.assign(engagement_score=HOLDOUT[LABEL])
    case = judge(evidence(rows, lambda r: 0.1 + 0.8 * r.engagement_score.eq(1)), None, rows, CONFIG)
    found = refused(case)
    assert (
        found["leakage_features"]
        == "engagement_score alone tells who churned: is it made from the label?"
    )


@pytest.mark.parametrize(("day", "days"), [("1998-04-02", 90), ("1998-01-03", 1)])
def test_the_future_leaked(day: str, days: int) -> None:
    found = sabotaged(training_rows=FITTED.assign(feature_date=pd.Timestamp(day)))
    assert list(found) == ["leakage_time"]
    assert f"training reaches {day} and its labels 90 days further" in found["leakage_time"]
    assert found["leakage_time"].endswith(f"{days} days of its future")


def test_a_nan_among_the_answers() -> None:
    def predict(asked: pd.DataFrame) -> pd.Series:
        return good(asked).where(asked.total_events < asked.total_events.max())

    assert sabotaged(predict)["output_contract"] == "1 answers are not finite"


def test_inverted_probabilities() -> None:
    found = sabotaged(lambda asked: 1 - good(asked))
    assert {"roc_auc", "champion_roc_auc", "beats_single_column", "beats_base_rate"} <= set(found)


def test_one_slice_is_ruined() -> None:
    found = sabotaged(lambda asked: good(asked).where(asked.recency_tier != 2, 1 - good(asked)))
    assert found["slices"].startswith("more than gate.slice_margin is lost in ")
    assert "recency_tier 2 by 0.9" in found["slices"]


def test_a_miscalibrated_model() -> None:
    found = sabotaged(lambda asked: good(asked) ** 0.3, threshold=0.8)
    assert set(found) == {"champion_brier", "champion_calibration", "slice_calibration"}
    assert "gate.brier_margin allows 0.005 more" in found["champion_brier"]


def test_trained_on_holdout_customers() -> None:
    rows = HOLDOUT[["customer_id"]].head(3).assign(feature_date=FITTED.feature_date[0])
    found = sabotaged(training_rows=pd.concat([FITTED, rows]))
    failures = "3 of 1000 held-out customers are in the training rows"
    assert found == {"leakage_customers": failures}


def test_a_stale_alias() -> None:
    report = judge(
        evidence(HOLDOUT, version=1, alias="Staging"),
        answers(HOLDOUT, lambda rows: blurred(rows, 0.2), version=2),
        HOLDOUT,
        CONFIG,
    )
    found = refused(report)
    assert list(found) == ["freshness"]
    assert found["freshness"].startswith("Staging is stale: it points at version 1")


def test_a_candidate_equal_to_the_champion_changes_nothing_and_fails_nothing() -> None:
    for version in (2, 1):
        report = judge(evidence(HOLDOUT, version=version), answers(HOLDOUT), HOLDOUT, CONFIG)
        assert (report.verdict, report.passed) == ("TIE", True)


def test_a_slower_model() -> None:
    def slow(asked: pd.DataFrame) -> pd.Series:
        time.sleep(0.03)  # the latency is what is tested
        return good(asked)

    strict = CONFIG.updated({"gate.max_latency_ms": 30.0})
    found = refused(judge(evidence(HOLDOUT, slow), None, HOLDOUT, strict))
    assert (
        found["single_row_latency"]
        == "at most gate.max_latency_ms milliseconds for one row, median"
    )


def test_an_empty_holdout() -> None:
    rows = HOLDOUT.head(0)
    report = judge(evidence(rows), answers(HOLDOUT), rows, CONFIG)
    assert refused(report) == {"holdout_labels": "the holdout has no rows"}
    assert "roc_auc" in {found.name for found in report.unmeasured}
    assert report.to_dict()["holdout_date"] is None


def test_a_holdout_of_one_class() -> None:
    rows = HOLDOUT.assign(**{LABEL: 1.0})
    found = refused(judge(evidence(rows), answers(rows), rows, CONFIG))
    failures = "1000 churned and 0 stayed; at least 10 of each are needed"
    assert found == {"holdout_labels": failures}


def test_missing_labels() -> None:
    rows = HOLDOUT.assign(**{LABEL: HOLDOUT[LABEL].where(HOLDOUT.index > 0)})
    found = refused(judge(evidence(rows), None, rows, CONFIG))
    assert found == {"holdout_labels": "1 of 1000 labels are missing"}


# From here on with a real registry.


class Good:
    """A model as scikit-learn would make one, of one function."""

    def __init__(self, amount: float = 0.0):
        self.amount = amount

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        return blurred(rows, self.amount).to_numpy()


class Shop:
    """A store with a registered model."""

    def __init__(self, folder: Path):
        self.settings = CONFIG.model_copy(update={"store": folder})
        self.models = registry.connect(self.settings)
        self.store = tables.connect(self.settings)
        held_out = HOLDOUT.assign(in_holdout_bucket=True, feature_date=JUDGED.date())
        self.store.overwrite("gold.features", ibis.memtable(held_out))

    def promote(self, number: int) -> str:
        """What the job does with a report that is on record."""
        return promote(self.models, self.store, number, self.settings, "abc123").sentence

    def register(self, amount: float, names: list[str] = FEATURES) -> int:
        """A new version at Staging; `amount` is how badly it sees."""
        inputs = Schema([ColSpec(DataType.double, name) for name in names])
        outputs = Schema([ColSpec(DataType.double)])
        with mlflow.start_run():
            record.log_training_rows(FITTED)
            mlflow.log_metrics({"roc_auc": 0.99, "f1_score": 0.99, "precision": 0.99})
            logged = mlflow.sklearn.log_model(
                Good(amount),
                name="churn-gbm",
                signature=ModelSignature(inputs, outputs),
                serialization_format="cloudpickle",
                pip_requirements=["scikit-learn"],
                metadata={"decision_threshold": 0.5},
            )
        number = self.models.register(logged.model_uri, {})
        self.models.set_alias(registry.STAGING, number)
        return number

    def judge(self, number: int) -> GateReport:
        """What the job does, up to the report's record."""
        champion = self.models.version_of(registry.PRODUCTION)
        best = gate.best_so_far(self.store, self.models, champion)
        asked = [
            None if version is None else probe.ask_version(self.models, version, HOLDOUT)
            for version in (champion, best)
        ]
        candidate = probe.examine(self.models, number, HOLDOUT, registry.STAGING)
        recorded = promotion_log.recover(self.models, self.store).production
        report = judge(candidate, asked[0], HOLDOUT, self.settings, asked[1], recorded)
        gate.record(report, self.models, self.store, 0, "abc123")
        return report


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    empty_mlflow(CONFIG.model_copy(update={"store": tmp_path}))
    return Shop(tmp_path)


def test_metrics_logged_by_hand_as_099(shop: Shop) -> None:
    number = shop.register(2.0)
    found = refused(shop.judge(number))
    assert {"roc_auc", "beats_single_column"} <= set(found)
    run_id = shop.models.version(number).run_id
    assert mlflow.get_run(run_id).data.metrics["roc_auc"] == 0.99
    assert shop.models.version(number).tags["gate"] == "failed"
    assert "roc_auc" in shop.models.version(number).tags["gate_failures"].split(",")


def test_a_registered_model_is_judged_on_the_columns_of_its_own_signature(shop: Shop) -> None:
    fewer = [name for name in FEATURES if name != "distinct_products"]
    more = [*FEATURES, "visits"]
    report = shop.judge(shop.register(0.0, fewer))
    assert report.passed, refused(report)
    assert report.case.candidate.own_rows is not None
    assert list(report.case.candidate.own_rows)[2:-1] == fewer
    found = refused(shop.judge(shop.register(0.0, more)))
    assert found["signature"].startswith("the signature asks for visits")


def test_a_version_that_cannot_be_deserialized(shop: Shop) -> None:
    number = shop.register(0.0)
    (pickled,) = (shop.settings.store / "mlartifacts").rglob("model.pkl")
    pickled.write_bytes(b"not a pickle")
    report = shop.judge(number)
    found = refused(report)
    assert list(found) == ["loads"]
    assert found["loads"].startswith("loading raised ")
    with pytest.raises(GateFailed, match=r"(?s)loads: loading raised .*not measured: signature"):
        shop.promote(number)


def test_the_champion_is_gone(shop: Shop) -> None:
    first = shop.register(0.1)
    shop.judge(first)
    assert "to Production (no previous version)" in shop.promote(first)
    for pickled in (shop.settings.store / "mlartifacts").rglob("model.pkl"):
        pickled.unlink()
    found = refused(shop.judge(shop.register(0.0)))
    assert list(found) == ["champion"]
    assert "version 1 (Production) cannot be compared with: loading raised" in found["champion"]
    # deleted together with its alias: the record remembers
    shop.models.client.delete_registered_model_alias(shop.models.model_name, registry.PRODUCTION)
    found = refused(shop.judge(2))
    assert "version 1 was made Production, but the alias is gone" in found["champion"]


def test_two_candidates_at_once(shop: Shop) -> None:
    first = shop.register(0.2)
    shop.judge(first)
    shop.promote(first)
    reports = [shop.judge(shop.register(amount)) for amount in (0.1, 0.0)]
    assert [report.verdict for report in reports] == ["PASS", "PASS"]
    shop.promote(2)
    with pytest.raises(PromotionRefused, match="compared with 1, and Production is 2 now"):
        shop.promote(3)
    assert shop.models.version_of(registry.PRODUCTION) == 2
    shop.judge(3)  # judged against the new Production, it may
    assert "(previous: version 2)" in shop.promote(3)


def test_every_judgement_leaves_a_row_and_artifacts(shop: Shop) -> None:
    number = shop.register(0.0)
    shop.judge(number)
    shop.judge(number)
    rows = shop.store.read(REPORTS).to_pandas()
    assert list(rows.columns) == SCHEMA.names
    assert (rows.verdict == "PASS").all() and rows.report_id.nunique() == 2
    assert (pd.to_datetime(rows.feature_date) == JUDGED).all()
    assert rows.champion_version.isna().all()
    names = {each.path for each in shop.models.client.list_artifacts(rows.run_id[0], "gate")}
    assert names == {f"gate/{one}.{kind}" for one in rows.report_id for kind in ("html", "json")}


def test_the_best_version_so_far_is_read_from_the_reports(shop: Shop) -> None:
    number = shop.register(0.0)
    uri = f"runs:/{shop.models.version(number).run_id}/churn-gbm"
    assert shop.models.register(uri, {}) == 2
    first = given(HOLDOUT, np.asarray(good(HOLDOUT)), 1)
    second = given(HOLDOUT, np.asarray(blurred(HOLDOUT, 0.05)), 2)
    wide = CONFIG.updated({"gate.margin": 0.02})
    report = judge(second, first, HOLDOUT, wide)
    assert (report.verdict, report.best) == ("PASS", 1)
    gate.record(report, shop.models, shop.store, 0, "abc123")
    assert gate.best_so_far(shop.store, shop.models, 2) == 1
    assert gate.best_so_far(shop.store, shop.models, 1) is None
    assert gate.best_so_far(shop.store, shop.models, None) is None


def last_promoted(rows: pd.DataFrame, config: settings.Settings, bounded: bool) -> np.ndarray:
    """What serves after ten candidates, each a little worse than the one before."""
    best = serving = given(rows, np.asarray(good(rows)), 1)
    for number, amount in enumerate(np.linspace(0.03, 0.3, 10), start=2):
        candidate = given(rows, np.asarray(blurred(rows, amount)), number)
        report = judge(candidate, serving, rows, config, best if bounded else None)
        if report.verdict == "PASS":
            serving = candidate
    assert serving.probability is not None
    return serving.probability


def test_small_losses_do_not_add_up() -> None:
    rows = make_holdout(3, 2_000)
    wide = {"gate.margin": 0.008, "gate.brier_margin": 0.2, "gate.calibration_margin": 0.5} | {
        "gate.slice_margin": 0.5
    }
    config = CONFIG.updated(wide)
    lost = [
        roc_auc_score(rows[LABEL], good(rows))
        - roc_auc_score(rows[LABEL], last_promoted(rows, config, bounded))
        for bounded in (True, False)
    ]
    assert 0 < lost[0] <= config.gate.margin
    assert (
        lost[1] > 2 * config.gate.margin
    )  # what comparing with Production alone would let through
