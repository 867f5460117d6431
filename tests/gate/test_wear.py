"""A holdout wears out: who was compared on it is counted, and the next one has to be surer."""

import datetime
from pathlib import Path

import numpy as np
import pytest

from benchmarks.holdout_wear import RULES, Holdout, passes, simulate
from churn_lib import settings
from churn_lib.gate import judge
from churn_lib.statistics import false_pass, worn_confidence
from tests.gate.cases import answers, blurred, evidence, make_holdout

CONFIG = settings.load("local", Path(__file__).parents[2] / "settings.ini")
HOLDOUT = make_holdout(0)


def test_the_more_versions_the_surer_and_the_first_as_sure_as_ever() -> None:
    confidences = [worn_confidence(0.95, k) for k in range(1, 60)]
    assert confidences[0] == pytest.approx(0.95) and confidences == sorted(confidences)
    spent = np.cumsum([1 - each for each in confidences])
    assert [false_pass(0.95, k) for k in range(1, 60)] == pytest.approx(np.minimum(spent, 1))
    assert false_pass(0.95, 50, corrected=False) == 1.0


def test_what_passes_first_may_be_refused_as_the_hundredth() -> None:
    def verdict(compared: range) -> tuple[bool, str, dict]:
        rival = answers(HOLDOUT, lambda rows: blurred(rows, 0.02))
        loose = CONFIG.updated({"gate.margin": 0.012})
        report = judge(
            evidence(HOLDOUT, lambda rows: blurred(rows, 0.12)),
            rival,
            HOLDOUT,
            loose,
            compared=compared,
        )
        found = next(each for each in report.results if each.name == "champion_roc_auc")
        return found.verdict == "passed", found.sentence, report.to_dict()["holdout"]

    first, alone, fresh = verdict(range(0))
    last, sentence, worn = verdict(range(100, 199))
    assert "compared on this holdout" not in alone and fresh["compared_versions"] == 1
    assert "version 100 compared on this holdout, so with 99.95% and not 95%" in sentence
    assert worn["confidence"] == pytest.approx(0.9995) and worn["false_pass_at_most"] < 0.3
    assert first and not last, (alone, sentence)


def test_a_version_that_is_judged_again_counts_once() -> None:
    again = judge(evidence(HOLDOUT), None, HOLDOUT, CONFIG, compared=(evidence(HOLDOUT).version,))
    assert again.to_dict()["holdout"]["compared_versions"] == 1
    assert datetime.date.fromisoformat(again.to_dict()["holdout_date"])


def test_the_rule_lets_fewer_coin_flips_past_and_a_sister_still_gets_through() -> None:
    found = simulate(6, 0.05, CONFIG.gate.margin)
    assert found["alpha / k"]["false"].sum() < found["alpha"]["false"].sum()
    assert found["alpha / k"]["sister"].mean() >= 0.5
    assert set(found) == set(RULES)


def test_a_coin_flip_that_loses_ten_margins_passes_by_no_rule() -> None:
    lost = Holdout(np.random.default_rng(1)).compared(0.38, 10 * CONFIG.gate.margin)
    assert not passes(lost, 0.05, CONFIG.gate.margin)
