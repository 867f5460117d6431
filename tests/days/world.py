"""The customers of a shop, and the files of their events as they arrive day by day."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from churn_lib.data.simulation import Population, simulate_customers, simulate_events

BEFORE = 300  # days before day 1 on which events begin; on day 0 they are all there
START = datetime.date(2024, 3, 1)  # day 1


@dataclass
class Source:
    """Where the events come from: a file for each day, in the night after it, unless something is wrong."""

    customers: int  # who arrive in all the time
    days: int
    changes: tuple[tuple[str, int], ...] = ()  # kind of churn_lib.data.simulation.DRIFTS, day
    empty: frozenset[int] = frozenset()  # days on which nobody bought anything
    stopped: frozenset[int] = (
        frozenset()
    )  # mornings on which no file comes; the next one has it all
    late: dict[int, int] = field(
        default_factory=dict
    )  # day whose second half comes on another morning
    events: pd.DataFrame = field(init=False)
    people: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        first = START - datetime.timedelta(days=BEFORE)
        drifts = tuple((kind, date(day)) for kind, day in self.changes)
        population = Population(
            self.customers, start=first, days=BEFORE + self.days + 1, drifts=drifts
        )
        self.events, self.people = (
            pa.Table.from_batches(make(population)).to_pandas()
            for make in (simulate_events, simulate_customers)
        )
        self.events = self.events[~self._day(self.events.event_ts).isin(self.empty)]
        happened = self._day(self.events.event_ts)
        self.events = self.events.assign(arrives=happened.clip(lower=-1) + 1)
        self._delay(happened)

    def _day(self, moments: pd.Series) -> pd.Series:  # the number of each moment's day
        start = pd.Timestamp(START, tz="UTC")
        return (moments.dt.floor("D") - start).dt.days + 1

    def _delay(self, happened: pd.Series) -> None:
        for day, morning in self.late.items():
            second_half = (happened == day) & (self.events.event_ts.dt.hour >= 12)
            self.events.loc[second_half, "arrives"] = morning
        for morning in sorted(self.stopped):  # in order: the next one may be without a file as well
            self.events.loc[self.events.arrives == morning, "arrives"] = morning + 1

    def news(self, day: int) -> str:
        """What is otherwise with the customers or the files from this day on."""
        kinds = {
            "activity": "from today on half the visits",
            "gradual": "from today on ever fewer visits",
        }
        found = [kinds[kind] for kind, first in self.changes if first == day]
        found += ["nobody buys anything"] * (day in self.empty)
        found += ["no file comes"] * (day in self.stopped)
        found += [
            f"half of the events wait until day {late}"
            for first, late in self.late.items()
            if first == day
        ]
        found += ["late events come"] * (day in self.late.values())
        return "; ".join(found)

    def files(self, morning: int, folder: Path) -> tuple[Path, Path] | None:
        """Events and customers that have come by this morning; None when no file has."""
        events = self.events[self.events.arrives == morning].drop(columns="arrives")
        if morning in self.stopped or not len(events):
            return None
        known = self.people[self._day(self.people.signup_ts) < max(morning, 0)]
        folder.mkdir(parents=True, exist_ok=True)
        paths = (
            folder / f"events-{date(morning)}.parquet",
            folder / f"people-{date(morning)}.parquet",
        )
        for path, rows in zip(paths, (events, known), strict=True):
            rows.to_parquet(path, index=False, coerce_timestamps="us")
        return paths


def date(day: int) -> datetime.date:
    """The date of a day by its number."""
    return START + datetime.timedelta(days=day - 1)


def rows(path: Path) -> int:
    """Of a Parquet file."""
    return pq.read_metadata(path).num_rows
