"""Weeks of a shop whose events are made by `churn data simulate --drift`, as rows of features and label.

One kind of drift begins with week CHANGE. Unlike the populations of `benchmarks.detection`, which change
from one week to the next as a whole, customers go on living: a change of their habits reaches the
features as fast as the days go by that the features look back on.
"""

import datetime

import ibis
import pandas as pd
import pyarrow as pa

from churn_lib.data import CUSTOMERS, EVENTS
from churn_lib.data.simulation import DRIFTS, Population, simulate_customers, simulate_events
from churn_lib.features import snapshot
from churn_lib.monitoring.verdict import source_signal
from churn_lib.settings import Settings

CUSTOMERS_IN_ALL, BEFORE = 6_000, datetime.timedelta(days=3 * 365)
NAMES = ("no drift", *DRIFTS)


class Shop:
    """Customers who are all scored at the beginning of every week."""

    def __init__(
        self, name: str, seed: int, start: datetime.date, change: int, weeks: int, config: Settings
    ):
        self.start, self.config = start, config
        drifts = () if name not in DRIFTS else ((name, start + datetime.timedelta(weeks=change)),)
        days = (BEFORE + datetime.timedelta(weeks=weeks, days=config.data.horizon_days)).days
        self.population = Population(
            CUSTOMERS_IN_ALL, seed=seed, start=start - BEFORE, days=days, drifts=drifts
        )
        self.connection = ibis.duckdb.connect()
        self.connection.raw_sql("SET TimeZone = 'UTC'")
        self.connection.raw_sql("SET threads = 1")  # every worker has a processor of its own
        self.events, self.customers = (
            self.connection.create_table(
                table, pa.Table.from_batches(rows(self.population), schema)
            )
            for table, rows, schema in (
                ("events", simulate_events, EVENTS),
                ("customers", simulate_customers, CUSTOMERS),
            )
        )

    def day(self, week: int) -> datetime.date:
        return self.start + datetime.timedelta(weeks=week)

    def __call__(self, week: int) -> pd.DataFrame:
        """Features and label of every customer."""
        end = self.population.end
        rows = snapshot(self.events, self.customers, self.day(week), end, self.config)
        return self.connection.to_pandas(rows)

    def source_violates(self, week: int) -> bool:
        """What the monitor makes of the events of the week before."""
        found = source_signal(self.events, self.day(week), self.config)
        return bool(found.violations[-1])
