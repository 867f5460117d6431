"""Who is held out, and which rows follow from it, against the rule in plain Python."""

import datetime
import hashlib

import ibis
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from churn_lib.features import (
    FEATURES,
    LABEL,
    holdout_rows,
    newest_holdout,
    read_holdout,
    to_frame,
    training_rows,
)
from churn_lib.features.holdout import in_holdout_bucket
from churn_lib.features.snapshots import single_column_roc_auc
from churn_lib.testing import customer_rows, scratch_settings

OLD, MIDDLE, NEW = (datetime.date(2025, month, 1) for month in (1, 4, 7))


def frame(day: datetime.date, labelled: bool) -> pd.DataFrame:
    rows = customer_rows(200, seed=day.month, feature_date=day)
    label = rows[LABEL] if labelled else [None] * len(rows)
    return rows.assign(**{LABEL: pd.array(label, dtype="Int64")})


ROWS = pd.concat([frame(OLD, True), frame(MIDDLE, True), frame(NEW, False)])
FEATURE_TABLE = ibis.memtable(ROWS.sample(frac=1, random_state=0))


def held_out(customer: str, share: float) -> bool:
    """The rule, written down another way: the first 32 bits of the MD5, as a number."""
    return int(hashlib.md5(customer.encode()).hexdigest()[:8], 16) < int(share * 2**32)


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.2, 0.5, 0.9999])
def test_the_bucket_is_a_share_of_the_hashes(share: float) -> None:
    for number in range(500):
        assert in_holdout_bucket(f"c{number}", share) == held_out(f"c{number}", share)


def test_training_and_holdout_share_no_customer_and_leave_out_nobody() -> None:
    trained = set(training_rows(FEATURE_TABLE, [OLD, MIDDLE]).customer_id.to_pandas())
    judged = set(holdout_rows(FEATURE_TABLE, MIDDLE).customer_id.to_pandas())
    assert judged == {name for name in ROWS.customer_id if held_out(name, 0.2)}
    assert trained == set(ROWS.customer_id) - judged


def test_rows_without_a_label_are_asked_for() -> None:
    assert holdout_rows(FEATURE_TABLE, NEW).count().to_pyarrow().as_py() == 0
    assert training_rows(FEATURE_TABLE, [NEW]).count().to_pyarrow().as_py() == 0
    found = to_frame(holdout_rows(FEATURE_TABLE, NEW, labelled=False))
    assert len(found) and found[LABEL].isna().all()


def test_a_frame_is_in_order_and_of_one_type() -> None:
    found = to_frame(training_rows(FEATURE_TABLE, [OLD, MIDDLE]))
    assert found.equals(
        found.sort_values(["feature_date", "customer_id"], ignore_index=True, kind="stable")
    )
    assert set(found[[*FEATURES, LABEL]].dtypes.astype(str)) == {"float64"}


def test_the_newest_holdout_has_labels() -> None:
    assert newest_holdout(FEATURE_TABLE) == MIDDLE
    assert newest_holdout(FEATURE_TABLE, until=MIDDLE - datetime.timedelta(days=1)) == OLD
    assert newest_holdout(FEATURE_TABLE, until=OLD - datetime.timedelta(days=1)) is None


def test_the_gate_reads_one_horizon_back_and_keeps_missing_labels() -> None:
    settings = scratch_settings(changes={"data.horizon_days": (NEW - MIDDLE).days})
    rows, day = read_holdout(FEATURE_TABLE, settings)
    assert (day, rows[LABEL].isna().sum()) == (MIDDLE, 0)
    later = NEW + datetime.timedelta(days=settings.data.horizon_days)
    unlabelled, day = read_holdout(FEATURE_TABLE, settings, later)
    assert day == NEW and unlabelled[LABEL].isna().all()
    fewer, _ = read_holdout(FEATURE_TABLE, settings, share=0.05)
    assert fewer.customer_id.tolist() == [c for c in rows.customer_id if held_out(c, 0.05)]


def test_days_that_were_built_to_be_scored_do_not_take_the_place_of_the_newest_with_labels() -> (
    None
):
    settings = scratch_settings(changes={"data.horizon_days": 7})
    rows, day = read_holdout(
        FEATURE_TABLE, settings
    )  # no snapshot lies a horizon before the newest
    assert day == MIDDLE and len(rows) and rows[LABEL].notna().all()
    strict, day = read_holdout(FEATURE_TABLE, settings, NEW)  # who names a day means it
    assert day == NEW - datetime.timedelta(days=7) and strict.empty
    # labels that the newest could not know of are not looked at
    settings = scratch_settings(changes={"data.horizon_days": (NEW - MIDDLE).days + 1})
    assert read_holdout(FEATURE_TABLE, settings)[1] == OLD


def test_an_empty_table_has_no_holdout() -> None:
    rows, day = read_holdout(FEATURE_TABLE.limit(0), scratch_settings())
    assert (len(rows), day) == (0, None)
    assert list(rows.columns) == ["customer_id", "feature_date", *FEATURES, LABEL]


def test_one_column_ranks_as_scikit_learn_says_whatever_is_missing() -> None:
    rows = customer_rows(500)
    rows.loc[::7, "total_events"] = None
    expected = {}
    for name in FEATURES:
        area = roc_auc_score(rows[LABEL], rows[name].fillna(0))
        expected[name] = max(area, 1 - area)
    for given in (rows, ibis.memtable(rows)):
        found = single_column_roc_auc(given)
        assert found.to_dict() == pytest.approx(expected, abs=1e-12)
        assert found.is_monotonic_decreasing
