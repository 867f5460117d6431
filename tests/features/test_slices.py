"""Slices: every row in one slice of a feature, and the same cut wherever they are measured."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from churn_lib.features import FEATURES
from churn_lib.features.slices import (
    SLICED,
    slice_table,
    sliced_features,
    slices,
    value_slices,
)
from churn_lib.settings import SettingsError

VALUES = st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(0, 3))


def customers(values: list) -> pd.DataFrame:
    """Rows whose features are all alike."""
    column = np.array([np.nan if value is None else value for value in values], dtype=float)
    return pd.DataFrame(dict.fromkeys(FEATURES, column))


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40))
def test_each_row_is_in_one_slice_of_each_feature(values: list) -> None:
    rows = customers(values)
    found = slices(rows)
    for feature in SLICED:
        own = [at for name, at in found.items() if name.startswith(f"{feature} ")]
        assert sorted(np.concatenate(own)) == list(range(len(rows)))


def test_quartiles_cut_a_feature_of_many_values() -> None:
    found = slices(customers(list(range(100))))
    names = [name for name in found if name.startswith("total_events ")]
    bands = ["0 to 24", "25 to 49", "50 to 74", "75 to 99"]
    assert names == [f"total_events {band}" for band in bands]
    assert [len(found[name]) for name in names] == [25, 25, 25, 25]


def test_an_extra_feature_is_sliced_once_and_has_to_exist() -> None:
    assert sliced_features(("total_events", "engagement_score")) == [*SLICED, "engagement_score"]
    with pytest.raises(SettingsError, match="extra_slices = 'colour' is no feature"):
        sliced_features(("colour",))


def test_values_are_text_and_the_largest_come_first() -> None:
    rows = pd.DataFrame({"tier": [2.0, 2.0, 2.5, np.nan, 0.0, 0.0, 0.0], "kind": list("aabbbbc")})
    tiers = value_slices(rows, "tier")
    assert {value: list(at) for value, at in tiers.items()} == {
        "0": [4, 5, 6],
        "2": [0, 1],
        "2.5": [2],
    }
    assert list(value_slices(rows, "kind", most=2)) == ["b", "a"]


def test_a_table_has_a_row_for_each_slice_and_gaps_for_what_was_not_measured() -> None:
    groups = {"few": np.array([0]), "many": np.array([1, 2])}
    table = slice_table(groups, lambda at: {"rows": len(at)}, ["rows", "mean"])
    assert table["slice"].tolist() == ["few", "many"] and table["rows"].tolist() == [1, 2]
    assert table["mean"].isna().all()
    assert list(slice_table({}, lambda at: {}, ["rows"]).columns) == ["slice", "rows"]
