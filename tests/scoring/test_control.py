"""Who is held back from the call list: the same customers everywhere, about the share, and independent of the holdout."""

import datetime
import json
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from churn_lib import registry, scoring, settings, tables
from churn_lib.features.holdout import holdout_bucket, in_holdout_bucket
from churn_lib.scoring import call_list
from churn_lib.scoring.control import control_bucket, in_control_bucket
from tests.scoring.test_batch import (
    LABELLED,
    NEWEST,
    churn,
    config,
    make_config,
    make_tables,
    models,
    one_thread,
    store,
)

__all__ = ["config", "models", "one_thread", "store"]  # fixtures, made for this file once more
SHARES = st.floats(0, 1, exclude_max=True)
FEW = hypothesis_settings(max_examples=40, deadline=None)


@FEW
@given(st.lists(st.text(max_size=20).filter(lambda text: "\0" not in text), min_size=1), SHARES)
def test_python_and_the_engine_hold_back_the_same_customers(names: list[str], share: float) -> None:
    rows = ibis.memtable(pd.DataFrame({"customer_id": pd.Series(names, dtype="string")}))
    found = rows.mutate(held=control_bucket(rows.customer_id, share)).to_pandas()
    assert dict(zip(found.customer_id, found.held, strict=True)) == {
        name: in_control_bucket(name, share) for name in names
    }


@FEW
@given(st.text(max_size=30), SHARES, SHARES)
def test_who_is_held_back_by_a_share_is_held_back_by_every_larger_one(
    name: str, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    assert in_control_bucket(name, small) <= in_control_bucket(name, large)
    assert not in_control_bucket(name, 0.0)


@FEW
@given(st.integers(0, 10**9), st.floats(0.02, 0.5), st.floats(0.02, 0.5))
def test_the_control_is_near_its_share_and_independent_of_the_holdout(
    start: int, share: float, holdout_share: float
) -> None:
    names = [str(number) for number in range(start, start + 4_000)]
    held = np.array([in_control_bucket(name, share) for name in names])
    untrained = np.array([in_holdout_bucket(name, holdout_share) for name in names])
    # forty examples of each: a false alarm in a hundred thousand runs of this test
    assert stats.binomtest(int(held.sum()), len(held), share).pvalue > 1e-7
    table = [[int((held & untrained).sum()), int((held & ~untrained).sum())]]
    table.append([int((~held & untrained).sum()), int((~held & ~untrained).sum())])
    assert stats.fisher_exact(table).pvalue > 1e-7


def test_the_two_buckets_are_made_by_different_hashes() -> None:
    rows = ibis.memtable({"customer_id": [str(number) for number in range(1_000)]})
    both = rows.mutate(
        control=control_bucket(rows.customer_id, 0.2), holdout=holdout_bucket(rows.customer_id, 0.2)
    ).to_pandas()
    assert not both.control.equals(both.holdout)


def scored(store: tables.Tables, models: registry.Registry, share: float) -> pd.DataFrame:
    """What a run with a share writes, by customer."""
    scorer, snapshot = scoring.production(models), scoring.read_snapshot(store)
    done = scoring.score(store, snapshot, scorer, "abc", control_share=share)
    rows = scoring.read_predictions(store, done.feature_date, 1, done.version).to_pandas()
    listed = rows.decision == 1
    assert (done.to_call, done.control) == (
        int(rows.contacted.sum()),
        int((listed & ~rows.contacted.astype(bool)).sum()),
    )
    return rows.set_index("customer_id").sort_index()


def test_a_control_changes_who_is_called_and_nothing_else(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    without, held = scored(store, models, 0.0), scored(store, models, 0.25)
    assert without.contacted.equals((without.decision == 1).rename("contacted"))
    assert set(without.control_share) == {0.0} and set(held.control_share) == {0.25}
    same = [name for name in without if name not in ("contacted", "control_share", "scored_at")]
    pd.testing.assert_frame_equal(without[same], held[same])
    expected = [
        bool(decision) and not in_control_bucket(name, 0.25)
        for name, decision in held.decision.items()
    ]
    assert held.contacted.tolist() == expected
    control = held[(held.decision == 1) & ~held.contacted]
    assert 0.2 < len(control) / held.decision.sum() < 0.3


def test_the_lists_leave_out_those_held_back(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    rows = scored(store, models, 0.25)
    written = scoring.read_predictions(store, NEWEST, 1)
    found = call_list.call_list(written, limit=10_000)
    assert (found.to_call, found.control) == (
        rows.contacted.sum(),
        ((rows.decision == 1) & ~rows.contacted).sum(),
    )
    assert set(found.first.customer_id) == set(rows.index[rows.contacted])
    assert found.first.index.tolist() == [*range(1, found.to_call + 1)]
    assert f"{found.control:,} more are held back as a control" in found._repr_html_()
    deciles = scoring.by_decile(written)
    assert (deciles.to_call.sum(), deciles.control.sum()) == (found.to_call, found.control)
    # an empty list, and one of which everybody is held back
    nobody = written.mutate(contacted=ibis.literal(False))
    assert call_list.call_list(nobody).to_call == 0
    assert call_list.call_list(nobody).control == rows.decision.sum()


def test_the_dot_of_the_charts_lies_where_the_control_leaves_it(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    features, scorer = store.read("gold.features"), scoring.production(models)
    plain, held = (
        call_list.gains_report(scorer, features, NEWEST, 90, control_share=share)
        for share in (0.0, 0.25)
    )
    expected = tuple(0.75 * each for each in call_list._at_threshold(plain))
    assert call_list._at_threshold(held) == pytest.approx(expected)
    figure = call_list.gain_plot(held)
    assert "25% held back" in figure.axes[0].get_legend().get_texts()[-1].get_text()
    # a larger list, and the same lift: the control is a random part of it
    shown = call_list.lift_plot(held).axes[0].lines[-1].get_ydata()[0]
    assert shown == pytest.approx(call_list.lift_plot(plain).axes[0].lines[-1].get_ydata()[0])


def test_the_job_keeps_the_control_of_its_target_off_the_list(
    config: settings.Settings, tmp_path: Path
) -> None:
    text = (config.root / "settings.ini").read_text()
    kept = text.replace(
        "[local]\n", f"[local]\nstore = {config.store}\nscoring.control_share = 0.3\n"
    )
    (tmp_path / "settings.ini").write_text(kept)
    own = settings.load("local", tmp_path / "settings.ini")
    assert own.scoring.control_share == 0.3 and settings.load("dev", own.root / "settings.ini")
    assert settings.load("dev", own.root / "settings.ini").scoring.control_share == 0
    answer = churn(
        own, "run", "scoring_job", "--only", "score_customers", "--param", "git_sha=abc", "--json"
    )
    assert answer.returncode == 0, answer.stderr + answer.stdout
    (task,) = json.loads(answer.stdout)["tasks"]
    rows = scoring.read_predictions(tables.connect(own), NEWEST, 1).to_pandas()
    control = rows[(rows.decision == 1) & ~rows.contacted]
    assert task["values"]["to_call"] == rows.contacted.sum()
    assert task["values"]["control"] == len(control) > 0
    report = Path(task["notebook"]).with_suffix(".html").read_text()
    assert f"{len(control):,} more are held back as a control" in report
    assert not [name for name in control.customer_id if name in report]


def test_another_day_holds_back_the_same_customers(
    store: tables.DeltaTables, models: registry.Registry
) -> None:
    scorer = scoring.production(models)
    found = {}
    for day in (LABELLED, NEWEST):
        snapshot = scoring.read_snapshot(store, day)
        scoring.score(store, snapshot, scorer, "abc", control_share=0.25)
        rows = scoring.read_predictions(store, day, 1).to_pandas()
        found[day] = rows[rows.decision == 1].set_index("customer_id").contacted
    both = found[LABELLED].to_frame("one").join(found[NEWEST].rename("other"), how="inner")
    assert len(both) > 100 and not both.one.all()
    assert both.one.equals(both.other.rename("one"))


@pytest.mark.parametrize("value", ["1", "-0.1", "nan", "some"])
def test_a_share_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    make_config(tmp_path)
    path = tmp_path / "settings.ini"
    path.write_text(
        path.read_text().replace("scoring.control_share = 0", f"scoring.control_share = {value}")
    )
    with pytest.raises(settings.SettingsError, match=r"scoring\.control_share"):
        settings.load("local", path)


def test_a_day_without_customers_to_contact_has_no_control(tmp_path: Path) -> None:
    class Calm:
        def predict(self, rows: pd.DataFrame) -> np.ndarray:
            return np.full(len(rows), 0.1)

    own = make_tables(make_config(tmp_path))
    scorer = scoring.Scorer("m", 9, Calm(), 0.5, None)
    done = scoring.score(own, scoring.read_snapshot(own), scorer, "abc", control_share=0.2)
    assert (done.to_call, done.control) == (0, 0)
    rows = scoring.read_predictions(own, datetime.date(2024, 7, 1), 9).to_pandas()
    assert not rows.contacted.any() and rows.contacted.notna().all()
