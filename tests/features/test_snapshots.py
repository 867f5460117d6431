"""gold.features: what is built, what is left alone, and labels that come with time."""

import datetime
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import pytest
from ibis.expr.types import Table, Value

from churn_lib import features, settings
from churn_lib.data import events
from churn_lib.features import snapshots
from churn_lib.features.declaration import FeatureError, add_label
from churn_lib.features.definitions import DECLARED
from churn_lib.features.target import TARGET
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables
from churn_lib.training import train

ROOT = Path(__file__).parents[2]
TODAY = datetime.date(1998, 6, 1)


@pytest.fixture(scope="module")
def config() -> Settings:
    loaded = settings.load("local", ROOT / "settings.ini")
    return loaded.updated({"data.snapshots": 2})


@pytest.fixture
def store(tmp_path: Path) -> DeltaTables:
    tables = DeltaTables(tmp_path)
    events.ensure_bronze(tables)
    return tables


def built(
    store: DeltaTables, config: Settings, today: datetime.date = TODAY, **more: Any
) -> list[bool]:
    bronze = events.ensure_bronze(store)
    days = features.feature_dates(today, config)
    return [each.built for each in snapshots.build(store, bronze, days, today, config, **more)]


def labelled(store: DeltaTables, day: datetime.date) -> int:
    table = store.read("gold.features")
    return table.filter(table.feature_date == day).churned.count().to_pyarrow().as_py()


def test_nothing_is_built_twice_from_the_same_inputs(store: DeltaTables, config: Settings) -> None:
    assert built(store, config) == [True] * 3
    version = store.version("gold.features")
    assert built(store, config) == [False] * 3
    assert store.version("gold.features") == version
    assert built(store, config, rebuild=True) == [True] * 3


def test_new_events_and_changed_settings_build_again(store: DeltaTables, config: Settings) -> None:
    built(store, config)
    seed = config.updated({"training.random_state": 7})  # no feature depends on it
    assert built(store, seed) == [False] * 3
    share = config.updated({"data.holdout_share": 0.3})
    assert built(store, share) == [True] * 3
    store.append("bronze.events", ibis.memtable(events.cdnow()[0].slice(0, 1)))
    assert built(store, share) == [True] * 3


def test_changed_code_builds_again(
    store: DeltaTables, config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(store, config)
    changed = replace(DECLARED["engagement_score"], expression=lambda row: row.total_events * 1.0)
    monkeypatch.setitem(DECLARED, "engagement_score", changed)
    assert built(store, config) == [True] * 3


def test_a_build_that_was_cut_off_goes_on_where_it_was(
    store: DeltaTables, config: Settings
) -> None:
    bronze, days = events.ensure_bronze(store), features.feature_dates(TODAY, config)
    next(snapshots.build(store, bronze, days, TODAY, config))
    assert built(store, config) == [False, True, True]


def test_labels_appear_once_the_horizon_has_passed(store: DeltaTables, config: Settings) -> None:
    early = TODAY - datetime.timedelta(days=config.data.horizon_days)
    built(store, config, early)
    assert labelled(store, early) == 0
    assert built(store, config, TODAY) == [True, True, False]
    assert labelled(store, early) > 20_000


def test_a_commit_says_what_of_the_events_was_left_out(
    store: DeltaTables, config: Settings
) -> None:
    built(store, config, left_out="1 event of 1998-08-05 is left out")
    assert train.source(store, 2, config).left_out == "1 event of 1998-08-05 is left out"


def test_a_snapshot_that_the_events_do_not_reach_is_dropped_and_built_again_when_they_do(
    store: DeltaTables, config: Settings
) -> None:
    late = TODAY + datetime.timedelta(days=20)
    built(store, config)
    built(store, config, late)
    assert snapshots.drop_uncovered(store, late) == []
    assert snapshots.drop_uncovered(store, TODAY) == [late]
    rows = store.read("gold.features")
    assert rows.feature_date.max().to_pyarrow().as_py() == TODAY
    assert built(store, config) == [False] * 3
    assert built(store, config, late)[0]


def test_a_table_of_another_question_is_refused_before_anything_is_written(
    store: DeltaTables, config: Settings
) -> None:
    rows = ibis.memtable({"customer_id": ["ann"], "bought_again": [1]})
    version = store.overwrite("gold.features", rows)
    with pytest.raises(FeatureError, match="no column churned: it was made for another question"):
        built(store, config)
    assert store.version("gold.features") == version


def sold(events: Table) -> Value:
    return events.product_id.nunique()


def test_a_label_is_a_yes_or_no_of_what_follows() -> None:
    customers = ibis.memtable({"customer_id": ["ann", "ben"]})
    later = ibis.memtable({"customer_id": ["ann"], "product_id": ["book"]})
    for twice, expected in ((False, {"ann": 1, "ben": 0}), (True, {"ann": 0, "ben": 1})):
        target = replace(
            TARGET,
            outcome=(lambda events: events.count() > 1)
            if twice
            else (lambda events: events.count() > 0),
            without_events=int(twice),
        )
        target.outcome.__name__ = "back"
        found = add_label(later, customers, target).to_pandas()
        assert found.set_index("customer_id").back.to_dict() == expected
    with pytest.raises(FeatureError, match="label sold is of type int64: return true or false"):
        add_label(later, customers, replace(TARGET, outcome=sold))
    with pytest.raises(FeatureError, match=r"label sold cannot be computed: .*product_id"):
        add_label(later.drop("product_id"), customers, replace(TARGET, outcome=sold))
