"""Quality on rows that nobody contacted: weights counted by hand, a good model that stays good, and all rows where they are too few."""

import datetime

import ibis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from churn_lib import tables
from churn_lib.features import ANSWER
from churn_lib.monitoring import metrics
from churn_lib.monitoring.metrics import quality_row, read_metrics, whole
from churn_lib.monitoring.quality import measure_quality
from churn_lib.monitoring.report import (
    Report,
    _churned_by_answer,
    calibration_picture,
    quality_table,
)
from churn_lib.monitoring.uncontacted import WEIGHT, contact_weights, measured_on, with_weights
from churn_lib.monitoring.windows import PROFILE_METRICS, make_baseline
from churn_lib.statistics import mean_estimate, roc_auc_estimate
from churn_lib.tables.spark import SparkTables
from churn_lib.testing import TODAY, scratch_settings
from tests.monitoring.test_contacts import DAYS, HORIZON, SECOND, Shop, predictions
from tests.monitoring.test_false_alarms import DAYS as BASELINE_DAYS
from tests.monitoring.test_false_alarms import scored

FEW = hypothesis_settings(max_examples=40, deadline=None)
CONFIG = scratch_settings()


@FEW
@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_weighted_figures_are_those_of_rows_that_stand_there_as_often(
    seed: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    answers = rng.uniform(size=60)
    answers = np.round(answers * levels) / levels if levels else answers
    y = (rng.uniform(size=60) < 0.5).astype(int)
    y[:2] = 0, 1
    weights = rng.choice([0.0, 1.0, 2.0, 5.0], 60)
    weights[:2] = 1.0
    found = measure_quality(y, answers, 0.5, weights)
    often = np.repeat(np.arange(60), weights.astype(int))
    repeated = measure_quality(y[often], answers[often], 0.5)
    assert found["roc_auc_score"].value == pytest.approx(
        roc_auc_score(y, answers, sample_weight=weights)
    )
    for name, measured in found.items():
        assert measured.value == pytest.approx(repeated[name].value), name
    for name, of in (
        ("f1_score", f1_score),
        ("precision", precision_score),
        ("recall", recall_score),
    ):
        expected = of(y, answers >= 0.5, sample_weight=weights, zero_division=0)
        assert found[name].value == pytest.approx(expected, abs=1e-9)


@FEW
@given(st.integers(0, 2**32 - 1))
def test_equal_weights_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, answers = (rng.uniform(size=80) < 0.4).astype(int), np.round(rng.uniform(size=80), 1)
    y[:2] = 0, 1
    weighted = measure_quality(y, answers, 0.5, np.full(80, 1.0))
    for name, plain in measure_quality(y, answers, 0.5).items():
        found = weighted[name]
        expected = (plain.value, plain.low, plain.high)
        assert (found.value, found.low, found.high) == pytest.approx(expected, abs=1e-9)
    more = roc_auc_estimate(y, answers, weights=np.full(80, 7.0))
    assert more.standard_error == pytest.approx(roc_auc_estimate(y, answers).standard_error)


def test_the_weighted_mean_and_its_error_are_those_counted_by_hand() -> None:
    # weights 1, 1, 4: mean (0 + 1 + 4 * 1) / 6 = 5/6; the deviations times the weights are -5/6, 1/6
    # and 4/6, their squares add up to 42/36, over 6 * 6 that is 42/1296, and by 3/2 for three rows
    found = mean_estimate(np.array([0.0, 1.0, 1.0]), weights=np.array([1.0, 1.0, 4.0]))
    assert found.value == pytest.approx(5 / 6)
    assert found.standard_error**2 == pytest.approx(42 / 1296 * 3 / 2)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_intervals_of_weighted_figures_cover_what_all_would_have_shown(share: float) -> None:
    rng = np.random.default_rng(0)
    truth = {"roc_auc_score": 0.0, "calibration_gap": 0.0, "brier_score": 0.0, "precision": 0.0}
    chance = rng.beta(1, 2, 400_000)
    everybody = measure_quality(rng.uniform(size=len(chance)) < chance, chance, 0.4)
    covered = dict.fromkeys(truth, 0)
    runs = 300
    for _ in range(runs):
        answers = rng.beta(1, 2, 2_000)
        y = rng.uniform(size=2_000) < answers
        listed, held = answers >= 0.4, rng.uniform(size=2_000) < share
        weights = np.select([listed & held, listed], [1 / share, 0.0], 1.0)
        found = measure_quality(y & ~(listed & ~held), answers, 0.4, weights)
        for name in truth:
            covered[name] += found[name].low <= everybody[name].value <= found[name].high
    assert all(0.9 < count / runs <= 1 for count in covered.values()), covered


ROWS = [
    ("before", 0, 1, True, 0.0),
    ("before", 1, 0, False, 0.2),  # called before there was a control: history, for both groups
    ("never", 1, 0, False, 0.2),
    ("contacted", 1, 1, True, 0.2),
    ("contacted later", 1, 0, False, 0.2),
    ("contacted later", 2, 1, True, 0.5),
    ("held back", 1, 1, False, 0.2),
    ("held back", 2, 1, False, 0.5),
    ("held back later", 2, 1, False, 0.5),
    ("after the horizon", 3, 1, True, 0.5),
]
VERSIONS = {0: 1, 1: 1, 2: 2, 3: 2}


def weights_of(store: tables.Tables, until: datetime.date) -> dict[str, float] | None:
    """What customers of the second day stand for."""
    store.overwrite("gold.predictions", ibis.memtable(predictions(ROWS, VERSIONS)))
    found = contact_weights(store.read("gold.predictions"), "m", DAYS[1], until)
    return None if found is None else found.to_dict()


EXPECTED = {
    "contacted": 0.0,
    "contacted later": 0.0,
    "held back": 5.0,  # 1 / 0.2: whoever a fifth holds back, half of them does, too
    "held back later": 2.0,
}


def test_a_row_counts_by_every_list_of_its_customer_up_to_the_end_of_its_horizon() -> None:
    store = tables.connect(scratch_settings())
    assert weights_of(store, DAYS[3]) == EXPECTED
    assert weights_of(store, DAYS[2]) == {"contacted": 0.0, "held back": 5.0}
    table = store.read("gold.predictions")
    assert contact_weights(table, "m", DAYS[0], DAYS[3]) is None  # no control on that day
    assert contact_weights(table, "another", DAYS[1], DAYS[3]) is None
    assert contact_weights(table.drop("contacted"), "m", DAYS[1], DAYS[3]) is None


def test_spark_weighs_the_same(spark_tables: SparkTables) -> None:
    assert weights_of(spark_tables, DAYS[3]) == EXPECTED


def test_where_the_control_ended_nobody_stands_for_those_contacted() -> None:
    store = tables.connect(scratch_settings())
    ended = [*ROWS[:-1], ("all are called", 2, 1, True, 0.0)]
    store.overwrite("gold.predictions", ibis.memtable(predictions(ended, VERSIONS)))
    table = store.read("gold.predictions")
    found = contact_weights(table, "m", DAYS[1], DAYS[3])
    assert found is not None and np.isnan(found["contacted"]) and np.isnan(found["all are called"])
    window = pd.DataFrame({"customer_id": ["never", "contacted"], "feature_date": DAYS[1]})
    weights, note = measured_on(with_weights(window, table, "m", {DAYS[1]: DAYS[3]}), 1)
    assert weights is None and "the control ended before their labels came" in note
    # a day without a control in the same window counts as it is
    both = pd.concat([window, window.assign(feature_date=DAYS[0])], ignore_index=True)
    spans = {DAYS[0]: DAYS[2], DAYS[1]: DAYS[2]}
    assert with_weights(both, table, "m", spans)[WEIGHT].tolist() == [1.0, 0.0, 1.0, 1.0]


def acted_upon(works: float, share: float = 0.3) -> pd.DataFrame:
    """Labelled customers of a model that knows their odds, contacted from 0.5 on but for a control."""
    rows = scored(7, BASELINE_DAYS[3], 12_000)
    rng = np.random.default_rng(7)
    listed, held = rows[ANSWER] >= 0.5, rng.uniform(size=len(rows)) < share
    kept = listed & ~held & (rng.uniform(size=len(rows)) < works)
    return rows.assign(
        churned=rows.churned.where(~kept, 0),
        **{WEIGHT: np.select([listed & held, listed], [1 / share, 0.0], 1.0)},
    )


def test_contacts_that_work_do_not_make_a_good_model_look_bad() -> None:
    training = pd.concat([scored(0, BASELINE_DAYS[0]), scored(1, BASELINE_DAYS[1])])
    baseline = make_baseline(1, training.reset_index(drop=True), scored(2, BASELINE_DAYS[2]), 0.5)
    rows = acted_upon(works=0.5)
    fooled = quality_row(rows.drop(columns=WEIGHT), baseline, CONFIG)
    assert fooled["quality"] == "lost" and fooled["measured_on"] is None
    judged = quality_row(rows, baseline, CONFIG)
    assert judged["quality"] == "held", judged["quality_detail"]
    assert judged["labelled_rows"] == len(rows)
    held, alone = (rows[WEIGHT] > 1).sum(), (rows[WEIGHT] > 0).sum()
    assert judged["measured_on"] == (
        f"on {alone:,} customers nobody contacted, of whom {held:,} held back stand for those who were"
    )
    assert judged["measured_roc_auc_score"]["value"] == pytest.approx(
        roc_auc_score(rows.churned, rows[ANSWER], sample_weight=rows[WEIGHT])
    )
    # leaving out those contacted is no remedy: the top of the scores goes with them
    left = rows[rows[WEIGHT] == 1].drop(columns=WEIGHT)
    assert quality_row(left, baseline, CONFIG)["quality"] == "lost"
    # too few held back: all rows, and a note
    few = quality_row(rows, baseline, CONFIG.updated({"gate.min_slice": int(held) + 1}))
    assert few["measured_on"].startswith("on all 12,000 customers, contacted or not: only")
    assert few["quality"] == "lost"


def test_a_model_that_got_worse_is_seen_through_the_contacts() -> None:
    training = pd.concat([scored(0, BASELINE_DAYS[0]), scored(1, BASELINE_DAYS[1])])
    baseline = make_baseline(1, training.reset_index(drop=True), scored(2, BASELINE_DAYS[2]), 0.5)
    rows = acted_upon(works=0.5)
    rng = np.random.default_rng(0)
    shuffled = rows.assign(churned=rng.permutation(rows.churned.to_numpy()))
    assert quality_row(shuffled, baseline, CONFIG)["quality"] == "lost"


def test_calibration_is_drawn_of_rows_that_nobody_contacted() -> None:
    training = pd.concat([scored(0, BASELINE_DAYS[0]), scored(1, BASELINE_DAYS[1])])
    baseline = make_baseline(1, training.reset_index(drop=True), scored(2, BASELINE_DAYS[2]), 0.5)
    rows = acted_upon(works=1.0)
    share, mean = _churned_by_answer(rows, fewest=200)
    np.testing.assert_allclose(share, mean, atol=0.06)  # the model knows the odds
    fooled, at = _churned_by_answer(rows, fewest=10**6)
    assert (at - fooled).max() > 0.3
    assert "<svg" in calibration_picture(baseline, rows)._repr_html_()


def test_the_monitor_measures_on_rows_that_nobody_contacted() -> None:
    shop = Shop(0.3, share=0.4, customers=3_000)
    late = SECOND + datetime.timedelta(days=HORIZON)
    shop.settings = shop.settings.updated({"gate.min_slice": 30})
    verdict = shop.monitor(late)
    assert not [each for each in verdict.problems if "is measured on all" in each]
    rows = whole(read_metrics(shop.tables, PROFILE_METRICS)).query("column_name == ':table'")
    rows = rows.set_index("window_date")
    first, other = shop.first, shop.second
    # a customer leaves with the first contact of either day, and stands for 2.5 when held back
    contacted = set(first.index[first.contacted]) | set(other.index[other.contacted])
    listed = set(first.index[first.decision == 1]) | set(other.index[other.decision == 1])
    weights = np.array(
        [0.0 if name in contacted else 2.5 if name in listed else 1.0 for name in first.index]
    )
    events = shop.tables.read("bronze.events").to_pandas()
    start = pd.Timestamp(TODAY, tz="UTC")
    span = (events.event_ts > start) & (events.event_ts <= start + pd.Timedelta(days=HORIZON))
    churned = ~first.index.isin(events[span].customer_id)
    expected = roc_auc_score(churned, first.churn_probability, sample_weight=weights)
    assert rows.loc[TODAY].measured_roc_auc_score["value"] == pytest.approx(expected)
    assert f"on {(weights > 0).sum():,} customers nobody contacted" in rows.loc[TODAY].measured_on
    shown = quality_table(Report(verdict))
    assert shown.loc[TODAY, "measured"] == rows.loc[TODAY].measured_on

    # the same with too few: said in the table and among the notes of the card
    shop.settings = shop.settings.updated({"gate.min_slice": 10_000})
    few = shop.monitor(late)
    assert [each for each in few.problems if "is measured on all" in each]
    rows = whole(read_metrics(shop.tables, PROFILE_METRICS)).query("column_name == ':table'")
    row = rows.set_index("window_date").loc[TODAY]
    assert row.measured_on.startswith("on all")
    plain = roc_auc_score(churned, first.churn_probability)
    assert row.measured_roc_auc_score["value"] == pytest.approx(plain)


def test_metrics_from_before_a_control_are_read_on() -> None:
    shop = Shop(1.0, share=0.0, customers=1_000)
    late = SECOND + datetime.timedelta(days=HORIZON)
    verdict = shop.monitor(late)
    written = read_metrics(shop.tables, PROFILE_METRICS)
    assert written.measured_on.isna().all()
    assert "measured" not in quality_table(Report(verdict))
    table = shop.tables.read(PROFILE_METRICS).drop("measured_on").to_pyarrow()
    former = tables.connect(scratch_settings())
    former.overwrite(PROFILE_METRICS, ibis.memtable(table))
    assert "measured_on" not in metrics.read_metrics(former, PROFILE_METRICS)
    report = Report(verdict)
    report.profiles = report.profiles.drop(columns="measured_on")
    assert len(quality_table(report)) == 2
