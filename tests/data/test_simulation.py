"""Simulated customers: what they do, what a drift changes, and what a broken-off run leaves."""

import datetime
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner

from churn_lib.cli.data import simulate as command
from churn_lib.data import CUSTOMERS, EVENTS
from churn_lib.data.simulation import (
    DRIFTS,
    Population,
    SimulationError,
    parse_drift,
    simulate_customers,
    simulate_events,
    simulate_to,
)
from churn_lib.settings import ChurnError
from churn_lib.tables import DeltaTables

ROOT = Path(__file__).parents[2]
SPAWN = multiprocessing.get_context("spawn")
DATE = datetime.date(2024, 9, 2)
MIDNIGHT = pd.Timestamp(DATE, tz="UTC")
BRONZE = ("bronze.customers", "bronze.events")


def events_of(population: Population, **options: int) -> pa.Table:
    return pa.Table.from_batches(simulate_events(population, **options), EVENTS)


@cache
def usual(customers: int = 3_000) -> pd.DataFrame:
    return events_of(Population(customers)).to_pandas()


@cache
def drifted(kind: str) -> pd.DataFrame:
    return events_of(Population(3_000, drifts=((kind, DATE),))).to_pandas()


@hypothesis_settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 500), st.integers(1, 100), st.floats(1.5, 15))
def test_the_same_seed_gives_the_same_events_however_they_are_cut(
    seed: int, customers: int, batch_rows: int, mean: float
) -> None:
    population = Population(customers, mean, seed, days=40)
    batches = list(simulate_events(population, batch_rows))
    assert all(batch.num_rows <= batch_rows for batch in batches)
    assert pa.Table.from_batches(batches, EVENTS).equals(events_of(population))


def test_another_seed_gives_other_events() -> None:
    assert not events_of(Population(100, seed=1)).equals(events_of(Population(100, seed=2)))


@hypothesis_settings(max_examples=10, deadline=None)
@given(st.integers(0, 1_000), st.integers(1, 300), st.sets(st.sampled_from(sorted(DRIFTS))))
def test_rows_keep_the_contract(seed: int, customers: int, kinds: set[str]) -> None:
    day = datetime.date(2024, 1, 20)
    drifts = tuple((kind, day) for kind in sorted(kinds))
    population = Population(customers, 10, seed, days=60, drifts=drifts)
    table = events_of(population)
    people = pa.Table.from_batches(simulate_customers(population), CUSTOMERS).to_pandas()
    assert table.schema == EVENTS
    events = table.to_pandas()
    assert events.event_id.is_unique
    assert people.customer_id.is_unique
    assert len(people) == customers
    assert events.event_ts.is_monotonic_increasing
    assert events.drop(columns="product_id").notna().all(axis=None)
    assert (events.groupby("session_id").customer_id.nunique() == 1).all()
    first = events.groupby("customer_id").event_ts.min()
    signup = people.set_index("customer_id").signup_ts
    assert set(first.index) <= set(signup.index)
    assert (signup[first.index] <= first).all()
    assert events.event_ts.max() < pd.Timestamp(population.end, tz="UTC")


def test_without_drift_the_first_event_is_the_signup() -> None:
    people = pa.Table.from_batches(simulate_customers(Population(3_000)), CUSTOMERS).to_pandas()
    first = usual().groupby("customer_id").event_ts.min()
    assert first.equals(people.set_index("customer_id").signup_ts.rename("event_ts"))


@pytest.mark.parametrize(("mean", "days"), [(2, 540), (20, 60), (20, 540), (200, 540), (200, 30)])
def test_customers_have_as_many_events_as_asked_for(mean: float, days: int) -> None:
    customers = min(10_000, int(500_000 / mean))
    found = events_of(Population(customers, mean, days=days)).num_rows / customers
    assert found == pytest.approx(mean, rel=0.1)


def test_a_few_customers_do_much_of_the_buying() -> None:
    counts = np.sort(usual().groupby("customer_id").size().to_numpy())[::-1]
    assert counts[: len(counts) // 10].sum() > 0.35 * counts.sum()
    assert np.median(counts) < 0.6 * counts.mean()


def test_most_customers_of_the_first_quarter_have_left_a_year_later() -> None:
    events = usual()
    first, last = (events.groupby("customer_id").event_ts.agg(name) for name in ("min", "max"))
    early = first < pd.Timestamp("2024-04-01", tz="UTC")
    gone = last[early] < pd.Timestamp("2025-04-01", tz="UTC")
    assert 0.5 < gone.mean() < 0.95


def test_weekends_and_december_are_busy_and_nights_are_not() -> None:
    events = usual(20_000)
    by_weekday = events.groupby(events.event_ts.dt.weekday).size()
    assert by_weekday.idxmax() == 5
    assert (events.event_ts.dt.hour >= 6).all()


@pytest.mark.parametrize("kind", sorted(DRIFTS))
def test_a_drift_changes_only_what_comes_after_its_date(kind: str) -> None:
    before, after = usual(), drifted(kind)
    pd.testing.assert_frame_equal(
        before[before.event_ts < MIDNIGHT], after[after.event_ts < MIDNIGHT]
    )
    assert not after.equals(before)
    drifts = ((kind, DATE),)
    tables = [
        pa.Table.from_batches(simulate_customers(Population(3_000, drifts=given)), CUSTOMERS)
        for given in ((), drifts)
    ]
    assert tables[0].equals(tables[1])


def visits(events: pd.DataFrame, first: int, last: int) -> float:
    """Sessions from one day after the drift's date to another."""
    age = (events.event_ts - MIDNIGHT).dt.days
    return events[(age >= first) & (age < last)].session_id.nunique()


def ratio(kind: str, first: int, last: int) -> float:
    return visits(drifted(kind), first, last) / visits(usual(), first, last)


def test_each_drift_does_what_its_name_says() -> None:
    assert 0.45 < ratio("activity", 0, 60) < 0.75
    assert ratio("gradual", 0, 20) > 0.85 > 0.8 > ratio("gradual", 150, 290)
    assert ratio("season", 0, 42) > 1.4
    assert ratio("season", 150, 290) < 1.1
    assert ratio("churn", 200, 290) < 0.75
    kept = len(drifted("volume")[drifted("volume").event_ts >= MIDNIGHT])
    assert kept / (usual().event_ts >= MIDNIGHT).sum() == pytest.approx(0.4, abs=0.02)
    lost = drifted("products").product_id.isna()
    assert lost.equals(drifted("products").event_ts >= MIDNIGHT)


def test_only_newcomers_change_when_newcomers_drift() -> None:
    first = usual().groupby("customer_id").event_ts.min()
    old, new = set(first[first < MIDNIGHT].index), set(first[first >= MIDNIGHT].index)
    counts = [frame.groupby("customer_id").size() for frame in (usual(), drifted("newcomers"))]
    per_new = [count[count.index.isin(new)].mean() for count in counts]
    per_old = [count[count.index.isin(old)].mean() for count in counts]
    assert per_new[1] < 0.8 * per_new[0]
    assert per_old[1] == pytest.approx(per_old[0], rel=0.1)


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda: Population(0), "--customers 0: give 1 to"),
        (lambda: Population(1, float("nan")), "--events-per-customer nan"),
        (lambda: Population(1, seed=-1), "--seed -1"),
        (lambda: Population(1, days=5), "--days 5: give 30 to 3650"),
        (lambda: Population(1, start=datetime.date(2999, 1, 1)), "end after today"),
        (lambda: Population(1, start=datetime.date(9999, 12, 31)), "no calendar reaches"),
        (
            lambda: Population(1, drifts=(("churn", datetime.date(2020, 1, 1)),)),
            "the simulated days",
        ),
        (lambda: parse_drift("sales=2025-01-01"), "no kind 'sales'"),
        (lambda: parse_drift("churn=soon"), "--drift churn = 'soon' is not a date"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_line(
    build: Callable[[], object], problem: str
) -> None:
    with pytest.raises(ChurnError) as refused:
        next(simulate_events(build()))  # type: ignore[arg-type]
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


def tags_of(tables: DeltaTables, name: str) -> dict[str, str]:
    return tables.history(name).tags[0]


def test_both_tables_carry_the_same_load_id_and_the_way_to_make_them_again(tmp_path: Path) -> None:
    tables = DeltaTables(tmp_path)
    done = simulate_to(tables, Population(200, seed=7, drifts=(("churn", DATE),)))
    assert [tags_of(tables, name)["load_id"] for name in BRONZE] == [done.load_id] * 2
    assert tags_of(tables, "bronze.events")["simulation.seed"] == "7"
    assert tags_of(tables, "bronze.events")["simulation.drifts"] == "churn=2024-09-02"
    written = tables.read("bronze.events").to_pyarrow()
    assert written.num_rows == done.events
    times = written["event_ts"].to_pylist()
    assert (done.first_event, done.last_event) == (
        min(times),
        max(times),
    )


def test_data_of_the_user_is_replaced_only_when_told(tmp_path: Path) -> None:
    tables = DeltaTables(tmp_path)
    simulate_to(tables, Population(50))
    simulate_to(tables, Population(60))
    tables.append("bronze.events", tables.read("bronze.events").limit(3))
    tables.compact("bronze.events")
    with pytest.raises(SimulationError, match=r"bronze.events holds rows .* pass --replace"):
        simulate_to(tables, Population(70))
    assert tables.read("bronze.customers").count().to_pyarrow().as_py() == 60
    simulate_to(tables, Population(70), replace=True)
    assert tables.read("bronze.customers").count().to_pyarrow().as_py() == 70


def test_a_stopped_run_leaves_both_tables_as_they_were(tmp_path: Path) -> None:
    tables = DeltaTables(tmp_path)
    simulate_to(tables, Population(50))

    def stop(day: datetime.date, events: int) -> None:
        if events > 1_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_to(tables, Population(1_000), progress=stop)
    assert [tables.version(name) for name in BRONZE] == [0, 0]


def test_a_writer_that_fails_is_heard_and_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = DeltaTables(tmp_path)
    tables.overwrite("bronze.events", tables.connection.sql("SELECT 1 AS other"))
    with pytest.raises(ChurnError, match=r"bronze.events has other columns"):
        simulate_to(tables, Population(1_000), replace=True)
    assert not tables.exists("bronze.customers")


def simulate_many(folder: Path, started: "multiprocessing.Queue[int]") -> None:
    def progress(day: datetime.date, events: int) -> None:
        started.put(events)

    simulate_to(DeltaTables(folder), Population(50_000), progress=progress)


def test_a_killed_run_leaves_both_tables_as_they_were(tmp_path: Path) -> None:
    tables = DeltaTables(tmp_path)
    simulate_to(tables, Population(50))
    started: multiprocessing.Queue[int] = SPAWN.Queue()
    run = SPAWN.Process(target=simulate_many, args=(tmp_path, started))
    run.start()
    while started.get(timeout=120) < 20_000:
        pass
    assert run.pid
    os.kill(run.pid, signal.SIGKILL)
    run.join()
    assert [tables.version(name) for name in BRONZE] == [0, 0]
    assert tables.read("bronze.customers").count().to_pyarrow().as_py() == 50
    simulate_to(tables, Population(60))
    assert [tables.version(name) for name in BRONZE] == [1, 1]


def peak_of(folder: Path, customers: int, peak: "multiprocessing.Queue[tuple[int, int]]") -> None:
    simulate_to(DeltaTables(folder), Population(10))  # everything imported and warm
    before = psutil.Process().memory_info().rss
    highest = [before]

    def progress(day: datetime.date, events: int) -> None:
        highest.append(psutil.Process().memory_info().rss)

    done = simulate_to(DeltaTables(folder), Population(customers), progress=progress)
    peak.put((done.events, max(highest) - before))


def test_two_million_events_need_a_fraction_of_their_size_in_memory(tmp_path: Path) -> None:
    peak: multiprocessing.Queue[tuple[int, int]] = SPAWN.Queue()
    run = SPAWN.Process(target=peak_of, args=(tmp_path, 100_000, peak))
    run.start()
    events, extra = peak.get(timeout=300)
    run.join()
    assert events > 1_900_000
    assert extra < 250_000_000, extra  # as one Arrow table the rows take about twice as much


def test_the_command_says_what_it_wrote_and_refuses_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
    app = Typer(pretty_exceptions_enable=False)
    app.command()(command)
    shell = CliRunner(env={"CHURN_SETTINGS": str(tmp_path / "settings.ini")})
    answer = shell.invoke(app, ["--customers", "100", "--drift", "2025-01-01"])
    assert answer.exit_code == 0
    assert "customers" in answer.stdout
    tables = DeltaTables(tmp_path / ".churn" / "tables" / "churn_local")
    assert tags_of(tables, "bronze.events")["simulation.drifts"] == "activity=2025-01-01"
    wrong = shell.invoke(app, ["--customers", "100", "--drift", "2023-01-01"])
    assert "the simulated days are 2024-01-01 to 2025-06-23" in str(wrong.exception)
    assert tables.version("bronze.events") == 0
