"""Splits: nobody on both sides, nothing from later times; the interval of a difference covers it."""

import datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from churn_lib.experiments.judging import cross_validate, differences
from churn_lib.experiments.recipes import Recipe
from churn_lib.experiments.splits import ExperimentError, splits

FIRST = datetime.date(2024, 1, 1)
ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=6, max_size=60, unique=True
)


def frame_of(rows: list[tuple[int, int]]) -> pd.DataFrame:
    days = [FIRST + datetime.timedelta(90 * day) for _, day in rows]
    return pd.DataFrame({"customer_id": [f"c{who}" for who, _ in rows], "feature_date": days})


@hypothesis_settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(2, 5), st.integers(1, 3), st.integers(0, 99))
def test_no_customer_is_on_both_sides_and_nothing_comes_from_later(
    rows: list[tuple[int, int]], folds: int, repeats: int, seed: int
) -> None:
    frame = frame_of(rows)
    if frame.customer_id.nunique() < folds:
        with pytest.raises(ExperimentError, match=f"folds = {folds} is more than"):
            list(splits(frame.customer_id, frame.feature_date, folds, repeats, seed))
        return
    found = list(splits(frame.customer_id, frame.feature_date, folds, repeats, seed))
    several = frame.feature_date.nunique() > 1
    for split in found:
        fitted, judged = frame.iloc[split.fit], frame.iloc[split.judge]
        assert not set(fitted.customer_id) & set(judged.customer_id)
        assert set(judged.feature_date) <= {split.day}
        assert all(day < split.day if several else day == split.day for day in fitted.feature_date)


@hypothesis_settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(2, 5), st.integers(1, 3))
def test_every_row_but_the_oldest_day_s_is_judged_once_in_each_repeat(
    rows: list[tuple[int, int]], folds: int, repeats: int
) -> None:
    frame = frame_of(rows)
    if frame.customer_id.nunique() < folds:
        return
    counts = np.zeros(len(frame))
    for split in splits(frame.customer_id, frame.feature_date, folds, repeats):
        counts[split.judge] += 1
    oldest = frame.feature_date == frame.feature_date.min()
    expected = np.where(oldest & (frame.feature_date.nunique() > 1), 0, repeats)
    assert counts.tolist() == expected.tolist()


def test_the_order_of_rows_does_not_change_who_is_judged_together() -> None:
    frame = frame_of([(who, day) for who in range(20) for day in range(2)])
    other = frame.sample(frac=1, random_state=1).reset_index(drop=True)

    def parts(rows: pd.DataFrame) -> list[set[str]]:
        found = splits(rows.customer_id, rows.feature_date)
        return [set(rows.customer_id.iloc[split.judge]) for split in found]

    assert parts(frame) == parts(other)


def test_two_equally_good_recipes_are_seldom_found_to_differ() -> None:
    """Two columns that say equally much: about one experiment in twenty may find a difference."""
    found_differing, experiments = 0, 120
    for seed in range(experiments):
        rng = np.random.default_rng(seed)
        people = 300
        truth = rng.normal(size=people)
        y = (truth + rng.normal(0, 1.5, people) > 0).astype(int)
        columns = {name: truth + rng.normal(0, 1, people) for name in ("one", "other")}
        frame = pd.DataFrame(columns)
        who = pd.Series([f"c{number}" for number in range(people)])
        split = list(splits(who, pd.Series([FIRST] * people), 5, 2, seed))
        both = [
            cross_validate(Recipe(name, LogisticRegression(), frame[[name]]), y, split)
            for name in columns
        ]
        found = differences(*both, 5)["roc_auc"]
        found_differing += not found.lower <= 0 <= found.upper
    # binomial: 13 or more of 120 have a chance of 0.005 when the interval holds in 95 of 100
    assert found_differing <= 12
