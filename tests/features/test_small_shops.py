"""A shop that is too small or too young to learn from: one line that is true and says what to do."""

import datetime
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from churn_lib import features
from churn_lib import settings as settings_module
from churn_lib.data import events
from churn_lib.features import snapshots
from churn_lib.features.declaration import FeatureError
from churn_lib.features.holdout import in_holdout_bucket
from churn_lib.settings import ChurnError
from churn_lib.tables import DeltaTables
from churn_lib.training import train
from churn_lib.training.record import TrainingError

CONFIG = settings_module.load("local", Path(__file__).parents[2] / "settings.ini")
START = pd.Timestamp("2023-01-01", tz="UTC")
MORE = "load the events of more customers, hundreds of them"
Shop = dict[str, np.ndarray]  # customer to the days of the events


def regular(names: list[str], days: int = 700, every: int = 10, until: int = 10**6) -> Shop:
    """Customers who come every so many days, until one day."""
    first = enumerate(names)
    return {name: np.arange(at % 20, min(days, until), every) for at, (name) in first}


def names(count: int, held_out: bool | None = None) -> list[str]:
    every = (f"c{number}" for number in range(100 * count))
    chosen = (
        name
        for name in every
        if held_out in (None, in_holdout_bucket(name, CONFIG.data.holdout_share))
    )
    return [name for name, _ in zip(chosen, range(count), strict=False)]


def prepare(shop: Shop, folder: Path) -> train.DataSet:
    """The rows that the jobs would train on and judge by."""
    store = DeltaTables(folder)
    owned = [
        (name, START + pd.Timedelta(days=int(day), hours=10)) for name in shop for day in shop[name]
    ]
    rows = pd.DataFrame(owned, columns=["customer_id", "event_ts"])
    rows = rows.assign(event_id=rows.index.astype(str), session_id="s", product_id="p")
    bought = pa.Table.from_pandas(rows[events.EVENTS.names], events.EVENTS, preserve_index=False)
    store.overwrite("bronze.events", ibis.memtable(bought))
    store.overwrite("bronze.customers", ibis.memtable(events.customers_of(rows)))
    today = features.coverage(store.read("bronze.events")).today
    days = features.feature_dates(today, CONFIG)
    features.check_reach(store.read("bronze.customers"), days)
    built = list(snapshots.build(store, events.ensure_bronze(store), days, today, CONFIG))
    table = store.read("gold.features", built[-1].version)
    snapshots.check_leakage(table.filter(table.feature_date == days[1]))
    return train.read_data_set(table, built[-1].version, CONFIG)


def refusal(shop: Shop, folder: Path) -> str:
    with pytest.raises(ChurnError) as refused:
        prepare(shop, folder)
    assert isinstance(refused.value, FeatureError | TrainingError)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("count", [1, 300])
def test_one_day_of_events_teaches_nothing(count: int, tmp_path: Path) -> None:
    message = refusal({name: np.array([0]) for name in names(count)}, tmp_path)
    assert message.endswith(
        "events of one day teach nothing, whatever the settings; load older events"
    )


def test_a_young_shop_hears_which_horizon_its_history_carries(tmp_path: Path) -> None:
    shop = regular(names(300), days=100)
    message = refusal(shop, tmp_path)
    assert (
        "(the first joined 2023-01-01): in settings.ini, lower data.horizon_days to 24 or less"
        in message
    )
    today = datetime.date(2023, 4, 11)
    customers = DeltaTables(tmp_path).read("bronze.customers")
    for horizon, enough in ((24, True), (25, False)):
        config = CONFIG.updated({"data.horizon_days": horizon})
        days = features.feature_dates(today, config)
        if enough:
            features.check_reach(customers, days)
        else:
            with pytest.raises(FeatureError, match=r"lower data\.horizon_days to 24"):
                features.check_reach(customers, days)


def test_a_day_before_all_events_is_no_day_to_stand_on(tmp_path: Path) -> None:
    refusal(regular(names(3), days=100), tmp_path)
    customers = DeltaTables(tmp_path).read("bronze.customers")
    days = features.feature_dates(datetime.date(2022, 6, 1), CONFIG)
    with pytest.raises(FeatureError, match="choose a later as_of than 2022-06-01"):
        features.check_reach(customers, days)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_handful_of_customers_is_too_few_whatever_they_do(count: int, tmp_path: Path) -> None:
    chosen = names(count, held_out=False)
    shop = regular(chosen[:1]) | regular(chosen[1:], until=300)
    message = refusal(shop, tmp_path)
    of = "1 customer" if count == 1 else f"{count} customers"
    assert message.endswith(f"they are of {of}: {MORE}")


def test_nobody_in_the_holdout_and_nobody_else_are_told_by_name(tmp_path: Path) -> None:
    staying, leaving = names(60, held_out=False)[:30], names(60, held_out=False)[30:]
    shop = regular(staying) | regular(leaving, until=300)
    message = refusal(shop, tmp_path / "none")
    assert message.startswith("none of the 60 customers of 2024-")
    assert message.endswith(
        f"is in the holdout bucket (data.holdout_share = 0.2, a hash of customer_id): {MORE}"
    )
    message = refusal(regular(names(60, held_out=True)), tmp_path / "all")
    assert message.startswith("nobody is left to train on: the 60 customers of ")
    assert message.endswith(MORE)


def test_a_shop_that_everybody_left_or_nobody_leaves(tmp_path: Path) -> None:
    one = names(301)[-1:]
    message = refusal(regular(names(300), until=30) | regular(one), tmp_path / "left")
    assert "fewer than 10 of each; raise data.horizon_days in settings.ini" in message
    message = refusal(regular(names(300)), tmp_path / "stayed")
    assert "0 churned and " in message
    assert "fewer than 10 of each; lower data.horizon_days in settings.ini" in message


def test_a_shop_of_a_few_hundred_is_enough(tmp_path: Path) -> None:
    rng, shop = np.random.default_rng(0), Shop()
    for name in names(300):
        end = rng.integers(100, 900)
        shop |= regular([name], until=int(end), every=int(rng.integers(5, 40)))
    data = prepare(shop, tmp_path)
    assert data.training.churned.nunique() == data.holdout.churned.nunique() == 2
