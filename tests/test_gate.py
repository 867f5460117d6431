"""What no candidate can get away with, on random holdouts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from churn_lib import settings as settings_module
from churn_lib.features import FEATURES, LABEL
from churn_lib.validation import Answers, GateReport, ask, judge

CONFIG = settings_module.load("local", Path(__file__).parent.parent / "settings.ini")
SEEDS = st.integers(0, 2**32 - 1)
MANY = hypothesis_settings(max_examples=60, deadline=None)


def make_holdout(seed: int) -> pd.DataFrame:
    """400 rows whose label depends on two columns and chance."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(rng.exponential(10, (400, len(FEATURES))), columns=FEATURES)
    signal = rows.days_since_last_event + rows.total_events
    rows[LABEL] = (signal + rng.normal(0, 5, len(rows)) > 12).astype(int)
    return rows


def answers(rows: pd.DataFrame, version: int, seed: int, noise: float) -> Answers:
    """A model that knows the truth of `make_holdout`, blurred by `noise`."""
    signal = rows.days_since_last_event + rows.total_events
    blur = np.random.default_rng(seed).normal(0, noise, len(rows))
    return ask(lambda _: 1 / (1 + np.exp((12 - signal - blur) / 3)), rows, version)


@MANY
@given(SEEDS, SEEDS, st.floats(0, 30), st.floats(0, 30))
def test_nothing_worse_than_production_is_promoted(
    seed: int, other: int, noise: float, rival_noise: float
) -> None:
    rows = make_holdout(seed)
    candidate, champion = answers(rows, 2, seed, noise), answers(rows, 1, other, rival_noise)
    report = judge(candidate, champion, rows, CONFIG)
    worse = roc_auc_score(rows[LABEL], candidate.probability) < roc_auc_score(
        rows[LABEL], champion.probability
    )
    if worse:
        assert "champion" in {check.name for check in report.failures}
        assert not report.passed


@MANY
@given(SEEDS, st.floats(0, 20))
def test_the_verdict_does_not_depend_on_the_order_of_rows(seed: int, noise: float) -> None:
    rows = make_holdout(seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    candidate, champion = answers(rows, 2, seed, noise), answers(rows, 1, seed + 1, 5)

    def shuffled(asked: Answers) -> Answers:
        assert asked.probability is not None
        return Answers(asked.version, asked.probability[order], "", asked.threshold)

    first = judge(candidate, champion, rows, CONFIG)
    again = judge(shuffled(candidate), shuffled(champion), rows.iloc[order], CONFIG)
    assert [check.passed for check in first.checks] == [check.passed for check in again.checks]


@MANY
@given(SEEDS, st.integers(1, 399), st.sampled_from([np.nan, np.inf, -np.inf, -0.01, 1.01]))
def test_one_bad_answer_is_enough_to_be_refused(seed: int, at: int, value: float) -> None:
    rows = make_holdout(seed)
    good = answers(rows, 2, seed, 0).probability
    assert good is not None
    bad = good.copy()
    bad[at] = value
    report = judge(ask(lambda _: bad, rows, 2), None, rows, CONFIG)
    assert [check.name for check in report.failures] == ["output_contract"]


@MANY
@given(SEEDS)
def test_inverted_probabilities_are_refused(seed: int) -> None:
    rows = make_holdout(seed)
    good = answers(rows, 2, seed, 0).probability
    assert good is not None
    assume(roc_auc_score(rows[LABEL], good) > 0.6)
    report = judge(ask(lambda _: 1 - good, rows, 2), None, rows, CONFIG)
    assert {"roc_auc", "beats_single_column"} <= {check.name for check in report.failures}


@pytest.mark.parametrize(
    ("predict", "problem"),
    [
        (lambda rows: np.zeros((len(rows), 2)), "shape (400, 2)"),
        (lambda rows: np.zeros(len(rows) - 1), "shape (399,)"),
        (lambda rows: np.array(["churn"] * len(rows)), "expected numbers"),
        (lambda rows: 0.5, "shape ()"),
        (lambda rows: rows["no such column"], "predict raised KeyError"),
    ],
)
def test_answers_of_the_wrong_make_are_a_finding_and_no_crash(
    predict: object, problem: str
) -> None:
    rows = make_holdout(0)
    report: GateReport = judge(ask(predict, rows, 2), None, rows, CONFIG)  # type: ignore[arg-type]
    assert problem in report.failures[0].sentence
    assert not report.passed


def test_the_same_answers_on_every_row_are_a_tie() -> None:
    rows = make_holdout(1)
    report = judge(answers(rows, 2, 3, 0), answers(rows, 1, 3, 0), rows, CONFIG)
    assert report.tie and report.passed
