"""Late, corrected and deleted events: exactly the snapshots that they change are built again."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import ibis
import pandas as pd
import pytest

from churn_lib import settings
from churn_lib.data import BRONZE, removal, simulation
from churn_lib.features import snapshots
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables

ROOT = Path(__file__).parents[2]
EVENTS, WHO = simulation.simulate(300)
TODAY = datetime.date(2025, 6, 1)
DAYS = [datetime.date(2024, 10, 1) + datetime.timedelta(days=30 * k) for k in range(8)]


@pytest.fixture(scope="module")
def config() -> Settings:
    return settings.load("local", ROOT / "settings.ini")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, config: Settings) -> Path:
    folder = tmp_path_factory.mktemp("built")
    tables = DeltaTables(folder)
    tables.overwrite("bronze.events", ibis.memtable(EVENTS))
    tables.overwrite("bronze.customers", ibis.memtable(WHO))
    build(tables, config)
    return folder


@pytest.fixture
def store(tmp_path: Path, built: Path) -> DeltaTables:
    shutil.copytree(built, tmp_path / "tables", ignore=shutil.ignore_patterns(".*"))
    return DeltaTables(tmp_path / "tables")


def versions(store: DeltaTables) -> dict[str, int]:
    return {name: store.version(name) for name in BRONZE}


def build(store: DeltaTables, config: Settings, days: list[datetime.date] = DAYS) -> list[Any]:
    return list(snapshots.build(store, versions(store), days, TODAY, config))


def rows_now(store: DeltaTables, config: Settings, day: datetime.date) -> pd.DataFrame:
    """What the snapshot of a day would be if it were made from the events of now."""
    raw = [store.read(name) for name in BRONZE]
    rows = snapshots.snapshot(*raw, day, TODAY, config)
    return rows.order_by("customer_id").to_pandas()


def event(store: DeltaTables, at: str, customer: str | None = None) -> ibis.Table:
    first = WHO.to_pandas().sort_values("signup_ts").customer_id.iloc[0]
    row = {"event_id": f"late-{at}", "customer_id": customer or first, "session_id": "s"}
    row |= {"event_ts": pd.Timestamp(at, tz="UTC"), "product_id": "p"}
    return ibis.memtable(pd.DataFrame([row])).cast(store.read("bronze.events").schema())


def affected(at: pd.Timestamp, horizon: int) -> set[datetime.date]:
    """Point in time: by the definition, in words of dates alone."""
    found = set()
    for day in DAYS:
        midnight = pd.Timestamp(day, tz="UTC")
        end = midnight + pd.Timedelta(days=horizon)
        if at <= midnight or (at <= end and end.date() <= TODAY):
            found.add(day)
    return found


@pytest.mark.parametrize(
    "at",
    [
        "2024-11-30 00:00:00",  # the midnight of a snapshot belongs to it
        "2024-11-30 00:00:00.000001",
        "2024-11-29 23:59:59.999999",
        "2025-02-10 12:00",
        "2025-04-30 00:00:01",  # after the last snapshot, in the horizon of none with labels ...
        "2025-06-10 12:00",  # ... and beyond what is known
    ],
)
def test_a_late_event_changes_the_snapshots_after_it_and_the_labels_that_hold_it(
    at: str, store: DeltaTables, config: Settings
) -> None:
    store.append("bronze.events", event(store, at))
    expected = affected(pd.Timestamp(at, tz="UTC"), config.data.horizon_days)
    assert set(snapshots.changed_since_built(store, versions(store))) == expected
    before = {tuple(row.items()) for row in store.history("gold.features").tags}
    assert len(before) == len(DAYS)
    assert {each.feature_date for each in build(store, config) if each.built} == expected
    assert snapshots.changed_since_built(store, versions(store)) == {}
    for day in DAYS:
        table = store.read("gold.features")
        there = table.filter(table.feature_date == day).order_by("customer_id").to_pandas()
        now = rows_now(store, config, day)
        pd.testing.assert_frame_equal(there[now.columns], now, check_dtype=False)


def test_a_customer_who_comes_late_changes_only_the_snapshots_that_hold_the_customer(
    store: DeltaTables, config: Settings
) -> None:
    joined = pd.Timestamp("2025-02-10 12:00", tz="UTC")
    new = pd.DataFrame({"customer_id": ["new"], "signup_ts": [joined]})
    store.append("bronze.events", event(store, "2025-02-10 12:00", "new"))
    store.append("bronze.customers", ibis.memtable(new).cast(store.read(BRONZE[1]).schema()))
    after = {day for day in DAYS if pd.Timestamp(day, tz="UTC") >= joined}
    # the event is in label horizons of snapshots that do not know the customer: no label of theirs
    assert set(snapshots.changed_since_built(store, versions(store))) == after


def test_an_event_of_nobody_changes_nothing(store: DeltaTables, config: Settings) -> None:
    store.append("bronze.events", event(store, "2024-01-10 12:00", "nobody"))
    assert snapshots.changed_since_built(store, versions(store)) == {}
    assert not any(each.built for each in build(store, config))


def test_deleted_and_corrected_events_are_sentence_apart(
    store: DeltaTables, config: Settings
) -> None:
    events = store.read("bronze.events")
    one = events.filter(events.event_ts < pd.Timestamp("2024-09-01", tz="UTC").to_pydatetime())
    chosen = one.order_by("event_id").limit(1).event_id.to_pyarrow()[0].as_py()
    store.overwrite("bronze.events", events.filter(events.event_id != chosen))
    found = snapshots.changed_since_built(store, versions(store))
    assert set(found.values()) == {"1 fewer event before it"} and list(found) == DAYS
    corrected = events.mutate(
        product_id=ibis.ifelse(events.event_id == chosen, "another", events.product_id)
    )
    store.overwrite("bronze.events", corrected)
    found = snapshots.changed_since_built(store, versions(store))
    assert set(found.values()) == {"corrected events before it"}
    store.overwrite("bronze.events", ibis.memtable(EVENTS))
    assert snapshots.changed_since_built(store, versions(store)) == {}


def test_rows_that_were_only_rewritten_change_nothing(store: DeltaTables, config: Settings) -> None:
    store.overwrite("bronze.events", ibis.memtable(EVENTS).order_by(ibis.desc("event_ts")))
    for name in BRONZE:
        store.compact(name)
    assert not any(each.built for each in build(store, config))


def test_snapshots_without_digits_are_held_against_the_events_they_name(
    store: DeltaTables, config: Settings
) -> None:
    """A store of a former release: its commits name versions of bronze and have no digits."""
    table, former = store.read("gold.features"), store.history("gold.features").tags
    for tags in reversed(former.tolist()):
        day = datetime.date.fromisoformat(tags["feature_date"])
        old = {name: value for name, value in tags.items() if name != "content"}
        store.overwrite(
            "gold.features", table.filter(table.feature_date == day), {"feature_date": day}, old
        )
    store.append("bronze.events", event(store, "2025-02-10 12:00"))
    expected = affected(pd.Timestamp("2025-02-10 12:00", tz="UTC"), config.data.horizon_days)
    assert set(snapshots.changed_since_built(store, versions(store))) == expected
    assert {each.feature_date for each in build(store, config) if each.built} == expected


def test_what_cannot_be_compared_any_more_is_built_again(
    store: DeltaTables, config: Settings
) -> None:
    table, tags = store.read("gold.features"), dict(store.history("gold.features").tags[0])
    day = datetime.date.fromisoformat(tags["feature_date"])
    del tags["content"]
    rows = table.filter(table.feature_date == day)
    store.overwrite("gold.features", rows, {"feature_date": day}, tags)
    store.overwrite("bronze.events", ibis.memtable(EVENTS))
    store.retain("bronze.events", 0)
    assert snapshots.changed_since_built(store, versions(store)) == {}
    (again,) = build(store, config, [day])
    assert (again.built, again.reason) == (True, "the events it was built from are gone")


def test_a_forgotten_customer_leaves_every_table_and_the_snapshots_are_built_again(
    store: DeltaTables, config: Settings
) -> None:
    customer = WHO.to_pandas().sort_values("signup_ts").customer_id.iloc[0]
    store.append("gold.predictions", ibis.memtable({"customer_id": [customer, "other"]}))
    odd = {"row": [f'{{"customer_id":"{customer}"}}', "other,tomorrow"]}
    store.append("bronze.rejected", ibis.memtable(odd))
    found = removal.forget(store, [customer])
    assert {"gold.features", "gold.predictions", "bronze.rejected", *BRONZE} == set(found)
    assert found["gold.features"] == len(DAYS)
    for name in found:
        assert customer not in store.read(name).to_pandas().astype(str).to_string()
    changed = snapshots.changed_since_built(store, versions(store))
    assert list(changed) == DAYS and "1 fewer customer who had joined" in changed[DAYS[0]]
    assert all(each.built for each in build(store, config))
    table = store.read("gold.features")
    assert table.feature_date.nunique().to_pyarrow().as_py() == len(DAYS)


def test_a_version_knows_which_of_its_rows_have_changed(
    store: DeltaTables, config: Settings
) -> None:
    tags = {"delta_feature_version": str(store.version("gold.features"))}
    tags |= {"training_feature_dates": f"{DAYS[0]},{DAYS[1]}", "holdout_feature_date": str(DAYS[2])}
    assert snapshots.changed_since_trained(store, tags) == ""
    store.append("bronze.events", event(store, "2025-02-20 12:00"))  # in the horizon of DAYS[2]
    build(
        store, config
    )  # the table has been brought up to date: the version still has the old rows
    sentence = snapshots.changed_since_trained(store, tags)
    assert sentence.startswith("1 of 3 snapshots") and str(DAYS[2]) in sentence
    assert snapshots.changed_since_trained(store, tags | {"copied_from": "churn_staging"}) == ""


def test_a_commit_keeps_what_the_snapshot_was_made_from(store: DeltaTables) -> None:
    tags = store.history("gold.features").tags
    contents = {each["feature_date"]: json.loads(each["content"]) for each in tags}
    assert set(contents[str(DAYS[0])]) == {"events", "customers", "labels"}
    assert "labels" not in contents[str(DAYS[-1])]
