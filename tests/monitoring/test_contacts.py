"""What contacting does: found where it does something, not found where it does nothing, and each customer once."""

import datetime
import json
from dataclasses import asdict

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from churn_lib import registry, scoring, settings, tables
from churn_lib.cli.monitoring import as_markdown
from churn_lib.features import snapshot
from churn_lib.monitoring import Verdict, contacts, monitor, read_verdict
from churn_lib.monitoring.contacts import CONTACT_EFFECT, ContactEffect, contact_effects
from churn_lib.monitoring.report import Report, card
from churn_lib.monitoring.report import contacts as shown
from churn_lib.statistics import share_difference
from churn_lib.tables import Tables
from churn_lib.tables.spark import SparkTables
from churn_lib.testing import TODAY, scratch_settings, shop_tables
from churn_lib.training import read_data_set, register
from churn_lib.training.train import train

SECOND = TODAY + datetime.timedelta(days=14)
HORIZON = 90
FEW = hypothesis_settings(max_examples=60, deadline=None)


def moment(day: datetime.date) -> pd.Timestamp:
    """Noon of a day."""
    return pd.Timestamp(day, tz="UTC") + pd.Timedelta(hours=12)


class Shop:
    """A shop that scores on two days; whoever is contacted on the first leaves less often by `factor`."""

    def __init__(self, factor: float, share: float = 0.25, customers: int = 3_000):
        changes = {"data.snapshots": 2, "scoring.control_share": share}
        self.settings = scratch_settings(changes=changes)
        self.tables: Tables = shop_tables(self.settings, customers)
        self.models = registry.connect(self.settings)
        version = self.tables.version("gold.features")
        data = read_data_set(self.tables.read("gold.features", version), version, self.settings)
        made = register(self.models, train(data, self.settings, git_sha="abc"))
        self.models.set_alias(registry.PRODUCTION, made)
        self.scorer = scoring.production(self.models)
        self.first = self.score(TODAY)
        self.come_back(self.first, factor)
        self.second = self.score(SECOND)

    def score(self, day: datetime.date) -> pd.DataFrame:
        """The predictions of a day, by customer."""
        events, customers = (self.tables.read(f"bronze.{name}") for name in ("events", "customers"))
        rows = snapshot(events, customers, day, day, self.settings)
        self.tables.overwrite("gold.features", rows, {"feature_date": day})
        share = self.settings.scoring.control_share
        found = scoring.read_snapshot(self.tables, day, self.scorer)
        done = scoring.score(self.tables, found, self.scorer, "abc", control_share=share)
        written = scoring.read_predictions(self.tables, day, done.model_version, done.version)
        return written.to_pandas().set_index("customer_id")

    def come_back(self, scored: pd.DataFrame, factor: float) -> None:
        """Let every customer stay with the odds of the model, the contacted with better ones."""
        rng = np.random.default_rng(1)
        risk = 0.25 + 0.5 * scored.churn_probability
        risk = risk.where(~scored.contacted.astype(bool), factor * risk)
        staying = scored.index[rng.uniform(size=len(scored)) >= risk]
        days = rng.integers(1, HORIZON, len(staying))
        times = [moment(TODAY + datetime.timedelta(days=int(each))) for each in days]
        # somebody buys every day, or the newest days would count as not yet loaded
        daily = [moment(TODAY + datetime.timedelta(days=each)) for each in range(120)]
        rows = pd.DataFrame(
            {"customer_id": [*staying, *["passer-by"] * len(daily)], "event_ts": [*times, *daily]}
        )
        known = self.tables.read("bronze.events")
        rows = rows.assign(
            event_id=[f"later {number}" for number in range(len(rows))],
            session_id=[f"visit {number}" for number in range(len(rows))],
            product_id="p1",
        ).sort_values("event_ts")
        arrow = pa.Table.from_pandas(rows[list(known.columns)], preserve_index=False)
        self.tables.append("bronze.events", ibis.memtable(arrow.cast(known.schema().to_pyarrow())))

    def monitor(self, day: datetime.date) -> Verdict:
        """What the monitor says on a day."""
        return monitor(self.tables, self.models, self.settings, day, "abc", notify=False)


@pytest.fixture(scope="module")
def working() -> Shop:
    """A contact halves the risk to leave."""
    return Shop(0.5)


def counted_by_hand(shop: Shop) -> ContactEffect:
    """The experiment of a shop, all labels known, customer by customer."""
    events = shop.tables.read("bronze.events").to_pandas()
    groups: dict[bool, list[bool]] = {True: [], False: []}
    for day, scored, others in ((TODAY, shop.first, None), (SECOND, shop.second, shop.first)):
        start, end = (
            pd.Timestamp(day, tz="UTC"),
            pd.Timestamp(day, tz="UTC") + pd.Timedelta(days=HORIZON),
        )
        back = set(events[(events.event_ts > start) & (events.event_ts <= end)].customer_id)
        earlier = set() if others is None else set(others.index[others.decision == 1])
        for name, row in scored[scored.decision == 1].iterrows():
            if name not in earlier:
                groups[bool(row.contacted)].append(name not in back)
    called, held = groups[True], groups[False]
    counts = len(called), sum(called), len(held), sum(held)
    return ContactEffect(0.25, HORIZON, TODAY, SECOND, *counts, 0, None)


def test_an_effect_is_found_with_each_customer_once(working: Shop) -> None:
    late = SECOND + datetime.timedelta(days=HORIZON)
    verdict = working.monitor(late)
    (effect,) = verdict.effects
    assert effect == counted_by_hand(working)
    assert set(working.second.index[working.second.decision == 1]) & set(
        working.first.index[working.first.decision == 1]
    )
    difference = effect.difference
    assert difference is not None and difference.upper < 0
    # the risk was 0.25 to 0.75, and half of it for the contacted
    assert -0.45 < difference.value < -0.1
    assert effect.sentence.startswith("Contacting lowers churn by ")

    # where the other numbers are: the table, the card, the part of the report, JSON and markdown
    row = working.tables.read(CONTACT_EFFECT).filter(ibis._.as_of == late).to_pandas().iloc[0]
    assert row.difference == {
        "value": difference.value,
        "low": difference.lower,
        "high": difference.upper,
    }
    assert (row.contacted, row.control, row.sentence) == (
        effect.contacted,
        effect.control,
        effect.sentence,
    )
    content = json.loads(json.dumps(verdict.to_dict()))
    assert content["contact_effect"][0]["control_ones"] == effect.control_ones
    assert effect.sentence in as_markdown(content)
    html = card(verdict, working.settings)._repr_html_()
    assert "Contacting lowers churn by" in html
    table = shown(Report(verdict))._repr_html_()
    assert f"{effect.control:,}" in table and f"{difference.value:+.1%}" in table
    again = read_verdict(working.tables, working.models, working.settings, late)
    assert again.effects == verdict.effects


def test_only_customers_whose_horizon_has_passed_count(working: Shop) -> None:
    known = TODAY + datetime.timedelta(days=HORIZON)
    (effect,) = working.monitor(known).effects
    listed = working.first[working.first.decision == 1]
    assert (effect.contacted, effect.control) == (
        listed.contacted.sum(),
        (~listed.contacted).sum(),
    )
    new = working.second[working.second.decision == 1].index.difference(listed.index)
    assert effect.waiting == len(new) > 0
    assert effect.next_label == SECOND + datetime.timedelta(days=HORIZON)
    (early,) = working.monitor(known - datetime.timedelta(days=1)).effects
    assert (early.contacted, early.control, early.difference) == (0, 0, None)
    assert early.next_label == known
    assert f"the next {known}" in early.sentence and "Too few" in early.sentence


def test_where_contacting_does_nothing_nothing_is_found() -> None:
    shop = Shop(1.0)
    (effect,) = shop.monitor(SECOND + datetime.timedelta(days=HORIZON)).effects
    assert effect == counted_by_hand(shop)
    assert effect.difference is not None
    assert effect.difference.lower < 0 < effect.difference.upper
    assert effect.sentence.startswith("No effect of contacting is shown")


def test_without_a_control_nothing_is_said_and_nothing_is_written() -> None:
    shop = Shop(1.0, share=0.0, customers=1_000)
    verdict = shop.monitor(SECOND + datetime.timedelta(days=HORIZON))
    assert verdict.effects == () and verdict.to_dict()["contact_effect"] == []
    assert not shop.tables.exists(CONTACT_EFFECT)
    assert "scoring.control_share" in shown(Report(verdict)).paragraphs[0]
    # and predictions from before there was a column
    rows = shop.tables.read("gold.predictions").drop("contacted", "control_share").to_pandas()
    old = scratch_settings()
    former = registry_free_tables(old, rows)
    assert contact_effects(former, old.model_name, SECOND, SECOND, lambda _: HORIZON) == []


def registry_free_tables(own: settings.Settings, rows: pd.DataFrame) -> Tables:
    """A store with predictions alone."""

    found = tables.connect(own)
    found.overwrite("gold.predictions", ibis.memtable(rows.drop(columns="reasons")))
    return found


DAYS = [datetime.date(2025, 1, 1) + datetime.timedelta(days=30 * each) for each in range(4)]


def predictions(
    rows: list[tuple[str, int, int, bool, float]], versions: dict[int, int]
) -> pa.Table:
    """Rows of gold.predictions: customer, number of the day, decision, contacted, control share."""
    return pa.table(
        {
            "customer_id": [row[0] for row in rows],
            "feature_date": pa.array([DAYS[row[1]] for row in rows], pa.date32()),
            "model_name": ["m"] * len(rows),
            "model_version": pa.array([versions[row[1]] for row in rows], pa.int64()),
            "decision": pa.array([row[2] for row in rows], pa.int64()),
            "contacted": [row[3] for row in rows],
            "control_share": [row[4] for row in rows],
            "scored_at": pa.array(
                [moment(DAYS[row[1]]) for row in rows], pa.timestamp("us", "UTC")
            ),
        }
    )


CHANGING = [
    ("old", 0, 1, True, 0.0),  # listed before there was a control, and again later
    ("old", 1, 1, False, 0.1),
    ("twice", 1, 1, True, 0.1),
    ("twice", 2, 1, True, 0.1),
    ("switched", 1, 1, True, 0.1),  # another share holds it back: it stays where it was
    ("switched", 2, 1, False, 0.3),
    ("later", 1, 0, False, 0.1),
    ("later", 2, 1, False, 0.3),
    ("never", 2, 0, False, 0.3),
    ("another horizon", 3, 1, True, 0.3),
]
VERSIONS = {0: 1, 1: 1, 2: 2, 3: 3}
SEEN = pa.table(
    {
        # the midnight a horizon begins with does not count, the one it ends with does
        "customer_id": ["twice", "later", "old", "another horizon"],
        "event_ts": pa.array(
            [
                pd.Timestamp(DAYS[1], tz="UTC"),
                pd.Timestamp(DAYS[2] + datetime.timedelta(days=60), tz="UTC"),
                pd.Timestamp(DAYS[1] + datetime.timedelta(days=61), tz="UTC"),
                moment(DAYS[3]),
            ],
            pa.timestamp("us", "UTC"),
        ),
    }
)


def changing(store: Tables) -> list[ContactEffect]:
    """What is found where the share and the horizon change."""
    store.overwrite("gold.predictions", ibis.memtable(predictions(CHANGING, VERSIONS)))
    store.overwrite("bronze.events", ibis.memtable(SEEN))
    until = DAYS[3] + datetime.timedelta(days=60)
    horizons = {1: 60, 2: 60, 3: 30}
    return contact_effects(store, "m", until, until, lambda number: horizons[number])


def test_the_column_counts_when_the_share_or_the_horizon_changes() -> None:

    found = changing(tables.connect(scratch_settings()))
    expected = [
        ContactEffect(0.3, 30, DAYS[3], DAYS[3], 1, 0, 0, 0, 0, None),
        ContactEffect(0.3, 60, DAYS[2], DAYS[2], 0, 0, 1, 0, 0, None),
        ContactEffect(0.1, 60, DAYS[1], DAYS[1], 2, 2, 1, 1, 0, None),
    ]
    assert found == expected
    assert all("30 of each are needed" in each.sentence for each in found)


def test_spark_counts_the_same(spark_tables: SparkTables) -> None:

    here = changing(tables.connect(scratch_settings()))
    assert changing(spark_tables) == here
    contacts.write_effects(spark_tables, here, "m", DAYS[3], "abc")
    contacts.write_effects(spark_tables, here, "m", DAYS[3], "abc")
    assert contacts.read_effects(spark_tables, "m", DAYS[3]) == here


def test_later_monitors_do_not_reach_an_earlier_day() -> None:

    store = tables.connect(scratch_settings())
    effect = ContactEffect(0.1, 60, DAYS[0], DAYS[1], 40, 10, 50, 20, 3, DAYS[3])
    contacts.write_effects(store, [effect], "m", DAYS[2])
    contacts.write_effects(store, [], "m", DAYS[3])  # the predictions were removed
    assert contacts.read_effects(store, "m", DAYS[1]) == []
    assert contacts.read_effects(store, "m", DAYS[2]) == [effect]
    assert contacts.read_effects(store, "another", DAYS[2]) == []
    assert asdict(effect)["waiting"] == 3


@FEW
@given(st.integers(0, 400), st.integers(1, 400), st.integers(0, 400), st.integers(1, 400))
def test_the_interval_is_made_of_wilsons_as_scipy_has_them(a: int, m: int, b: int, n: int) -> None:
    a, b = min(a, m), min(b, n)
    found = share_difference(a, m, b, n, confidence=0.975)
    one, other = (
        stats.binomtest(k, total).proportion_ci(0.95, method="wilson")
        for k, total in ((a, m), (b, n))
    )
    p, q = a / m, b / n
    assert found.lower == pytest.approx(
        max(-1, p - q - np.hypot(p - one.low, other.high - q)), abs=1e-12
    )
    assert found.upper == pytest.approx(
        min(1, p - q + np.hypot(one.high - p, q - other.low)), abs=1e-12
    )
    assert -1 <= found.lower <= found.value <= found.upper <= 1


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    contacted, control = rng.binomial(900, 0.2, 2_000), rng.binomial(100, 0.4, 2_000)
    found = [
        share_difference(a, 900, b, 100, 0.975) for a, b in zip(contacted, control, strict=True)
    ]
    covered = np.mean([each.lower <= -0.2 <= each.upper for each in found])
    assert 0.935 < covered < 0.97
