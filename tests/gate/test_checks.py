"""What no candidate can get away with, on random holdouts, and what settings can and cannot do."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume
from hypothesis import given as drawn
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from churn_lib import settings as settings_module
from churn_lib.features import FEATURES, LABEL
from churn_lib.gate import comparison, judge
from churn_lib.gate.checks import CHECKS
from churn_lib.gate.probe import Answers, Evidence, extreme_input_problem, repeat_problem
from churn_lib.settings import GateCheck
from tests.gate.cases import answers, blurred, evidence, given, good, make_holdout

CONFIG = settings_module.load("local", Path(__file__).parents[2] / "settings.ini")
HOLDOUT = make_holdout(0)
SEEDS = st.integers(0, 2**32 - 1)
MANY = hypothesis_settings(max_examples=12, deadline=None)
FEW = hypothesis_settings(max_examples=5, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    """How many draws there are is the matter of tests/test_statistics.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWS", 200)
        yield


def noisy(seed: int, amount: float) -> np.ndarray:
    """Answers of a model that sees HOLDOUT through noise."""
    blur = np.random.default_rng(seed).normal(0, amount, len(HOLDOUT))
    return np.clip(np.asarray(good(HOLDOUT)) + blur, 0, 1)


@MANY
@drawn(SEEDS, SEEDS, st.floats(0, 0.4), st.floats(0, 0.4), st.sampled_from([0.0, 0.005, 0.02]))
def test_nothing_worse_by_more_than_the_margin_is_promoted(
    seed: int, other: int, noise: float, rival_noise: float, margin: float
) -> None:
    config = CONFIG.updated({"gate.margin": margin})
    candidate = given(HOLDOUT, noisy(seed, noise), 2)
    champion = Answers(1, noisy(other, rival_noise))
    report = judge(candidate, champion, HOLDOUT, config)
    lost = roc_auc_score(HOLDOUT[LABEL], champion.probability) - roc_auc_score(
        HOLDOUT[LABEL], candidate.probability
    )
    if lost > margin:
        assert "champion_roc_auc" in {found.name for found in report.failures}
        assert report.verdict == "FAIL"


@FEW
@drawn(SEEDS, st.floats(0, 0.3))
def test_the_verdict_does_not_depend_on_the_order_of_rows(seed: int, noise: float) -> None:
    order = np.random.default_rng(seed).permutation(len(HOLDOUT))
    first, second = noisy(seed, noise), noisy(seed + 1, 0.1)
    report = judge(given(HOLDOUT, first), Answers(1, second), HOLDOUT, CONFIG)
    shuffled = HOLDOUT.iloc[order]
    again = judge(given(shuffled, first[order]), Answers(1, second[order]), shuffled, CONFIG)
    for name in ("roc_auc_difference", "brier_difference", "p_value_of_loss"):
        one, other = (each.to_dict()["comparison"][name] for each in (report, again))
        assert one == pytest.approx(other, abs=1e-9)


@MANY
@drawn(SEEDS, st.integers(1, 999), st.sampled_from([np.nan, np.inf, -np.inf, -0.01, 1.01]))
def test_one_bad_answer_is_enough_to_be_refused(seed: int, at: int, value: float) -> None:
    bad = np.asarray(good(HOLDOUT)).copy()
    bad[at] = value
    candidate = evidence(HOLDOUT, lambda rows: bad if len(rows) == len(bad) else good(rows))
    report = judge(candidate, None, HOLDOUT, CONFIG)
    assert [found.name for found in report.failures] == ["output_contract"]
    assert "roc_auc" in {found.name for found in report.unmeasured}


@MANY
@drawn(SEEDS, st.floats(0, 0.3))
def test_inverted_probabilities_are_refused(seed: int, noise: float) -> None:
    probability = noisy(seed, noise)
    assume(roc_auc_score(HOLDOUT[LABEL], probability) > 0.6)
    report = judge(given(HOLDOUT, 1 - probability), None, HOLDOUT, CONFIG)
    assert {"roc_auc", "beats_single_column"} <= {found.name for found in report.failures}


@pytest.mark.parametrize(
    ("predict", "problem"),
    [
        (lambda rows: np.zeros((len(rows), 2)), "shape (1000, 2)"),
        (lambda rows: pd.DataFrame({"churn": good(rows)}), "shape (1000, 1)"),
        (lambda rows: np.zeros(len(rows) - 1), "shape (999,)"),
        (lambda rows: np.array(["churn"] * len(rows)), "expected numbers"),
        (lambda rows: 0.5, "shape ()"),
        (lambda rows: rows["no such column"], "predict raised KeyError"),
        (lambda rows: sys.exit(0), "predict raised SystemExit"),
    ],
)
def test_answers_of_the_wrong_make_are_a_finding_and_no_crash(
    predict: object, problem: str
) -> None:
    report = judge(evidence(HOLDOUT, predict), None, HOLDOUT, CONFIG)  # type: ignore[arg-type]
    named = {found.name: found.sentence for found in report.failures}
    assert problem in named["output_contract"]


def test_every_check_is_in_every_report_and_settings_know_each_by_name() -> None:
    names = list(get_args(GateCheck))
    assert [check.name for check in CHECKS] == names
    for report in (
        judge(evidence(HOLDOUT), answers(HOLDOUT), HOLDOUT, CONFIG),
        judge(Evidence(2, None, "gone", load_problem="gone"), None, HOLDOUT.head(0), CONFIG),
    ):
        assert [found.name for found in report.results] == names
        assert report.table().shape == (len(names), 5)


def test_an_advisory_check_warns_and_still_says_what_it_found() -> None:
    candidate = given(HOLDOUT, noisy(0, 0.4))
    marked = {
        "gate.advisory": (
            "champion_roc_auc",
            "champion_brier",
            "champion_calibration",
            "champion_decisions",
            "slices",
            "slice_calibration",
        )
    }
    strict = judge(candidate, answers(HOLDOUT), HOLDOUT, CONFIG)
    loose = judge(candidate, answers(HOLDOUT), HOLDOUT, CONFIG.updated(marked))
    assert strict.verdict == "FAIL" and loose.verdict == "PASS"
    assert {found.name for found in loose.warnings} == {found.name for found in strict.failures}
    assert "advisory failures: champion_roc_auc, champion_brier" in loose._repr_html_()


def test_a_check_that_could_not_be_measured_refuses_even_when_it_is_advisory() -> None:
    every = CONFIG.updated({"gate.advisory": tuple(get_args(GateCheck))})
    report = judge(Evidence(2, None, "no answer"), None, HOLDOUT, every)
    assert report.failures == [] and report.verdict == "FAIL"


def test_without_a_threshold_nothing_is_decided() -> None:
    known = {"threshold": None, "threshold_problem": "the model stores 0.4, its tag says 0.5"}
    report = judge(evidence(HOLDOUT, **known), None, HOLDOUT, CONFIG)
    named = {found.name: found.sentence for found in report.failures}
    assert named == dict.fromkeys(("f1_score", "precision"), known["threshold_problem"])


def ranked(rows: pd.DataFrame) -> np.ndarray:
    """Answers that depend on who else is asked about."""
    return rows[FEATURES].rank(pct=True).mean(axis=1).to_numpy()


def test_a_model_whose_answer_depends_on_its_company_is_found() -> None:
    assert "each row alone" in repeat_problem(ranked, HOLDOUT, ranked(HOLDOUT))
    rng = np.random.default_rng(0)
    guessed = rng.random(len(HOLDOUT))
    assert "asked twice" in repeat_problem(lambda rows: rng.random(len(rows)), HOLDOUT, guessed)
    assert repeat_problem(good, HOLDOUT, np.asarray(good(HOLDOUT))) == ""


class Moody:
    """Right the first time, a little off afterwards, or only ever in a large batch."""

    def __init__(self, batch: int):
        self.batch, self.asked = batch, 0

    def __call__(self, rows: pd.DataFrame) -> pd.Series:
        self.asked += 1
        off = 0.001 * self.asked * (len(rows) >= self.batch)
        return (good(rows) - off).clip(0, 1)


@pytest.mark.parametrize("batch", [1, 900])
def test_a_model_that_changes_its_mind_is_refused_by_that_alone(batch: int) -> None:
    report = judge(evidence(HOLDOUT, Moody(batch)), None, HOLDOUT, CONFIG)
    assert [found.name for found in report.failures] == ["repeatability"]


def test_a_model_that_writes_into_its_input_changes_nothing_for_the_gate() -> None:
    def scribble(rows: pd.DataFrame) -> pd.Series:
        answer = good(rows)
        rows.loc[:, :] = -1.0
        return answer

    before = HOLDOUT.copy()
    report = judge(evidence(HOLDOUT, scribble), None, HOLDOUT, CONFIG)
    assert report.verdict == "PASS"
    pd.testing.assert_frame_equal(HOLDOUT, before)


def test_a_model_that_raises_on_a_null_is_refused_by_that_alone() -> None:
    def strict(rows: pd.DataFrame) -> pd.Series:
        if rows.isna().any(axis=None):
            raise ValueError("null in features")
        return good(rows)

    report = judge(evidence(HOLDOUT, strict), None, HOLDOUT, CONFIG)
    expected = {found.name: found.sentence for found in report.failures}
    assert expected == {"extreme_input": "predict raised ValueError: null in features"}


def test_training_rows_with_other_ids_prove_nothing() -> None:
    rows = HOLDOUT.assign(customer_id=[f"{number:05}" for number in range(len(HOLDOUT))])
    seen = pd.DataFrame({"customer_id": [7], "feature_date": pd.Timestamp("1998-01-02")})
    report = judge(evidence(rows, training_rows=seen), None, rows, CONFIG)
    expected = {found.name: found.sentence for found in report.failures}
    assert list(expected) == ["leakage_customers"]
    assert "name customers by int64, the holdout by str" in expected["leakage_customers"]


def test_a_model_that_does_not_survive_nulls_is_found() -> None:
    assert "not finite" in extreme_input_problem(lambda rows: rows.total_events * 0 + 0.5)
    assert extreme_input_problem(good) == ""


def test_a_tie_leaves_production_unless_settings_say_otherwise() -> None:
    report = judge(evidence(HOLDOUT), answers(HOLDOUT), HOLDOUT, CONFIG)
    assert report.tie and report.passed and report.verdict == "TIE"
    replacing = CONFIG.updated({"gate.promote_on_tie": True, "gate.margin": 0.0})
    again = judge(evidence(HOLDOUT), answers(HOLDOUT), HOLDOUT, replacing)
    assert again.tie and again.verdict == "PASS"


def test_an_advisory_name_that_no_check_has_is_refused(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "settings.ini").read_text()
    (tmp_path / "settings.ini").write_text(
        text.replace("gate.advisory =", "gate.advisory = slices, rocauc")
    )
    with pytest.raises(settings_module.SettingsError, match=r"\[local\] gate.advisory = 'rocauc'"):
        settings_module.load("local", tmp_path / "settings.ini")


def test_the_report_says_everything_in_json() -> None:
    champion = answers(HOLDOUT, lambda rows: blurred(rows, 0.2))
    report = judge(evidence(HOLDOUT), champion, HOLDOUT, CONFIG).to_dict()
    assert report["holdout_rows"] == 1_000 and report["holdout_date"] == "1998-04-02"
    found = report["comparison"]
    assert found["roc_auc_difference"]["lower"] < found["roc_auc_difference"]["value"]
    assert 0 < found["smallest_detectable"] < 0.1
    assert 0 <= found["p_value_of_loss"] < 0.05
    assert {row["slice"] for row in report["slices"]} >= {"recency_tier 0", "recency_tier 3"}
