"""The same snapshot in several ways: ours, DuckDB by hand, polars, pandas, and a mere scan.

Run in a process of its own by `benchmarks.features`: `python -m benchmarks.feature_paths NAME FOLDER
ANSWER` computes the snapshot of the tables in FOLDER, prints seconds and peak memory as JSON, and
leaves the rows in ANSWER for comparison, which is not measured.
"""

import dataclasses
import datetime
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from churn_lib import settings as settings_module
from churn_lib.features import FEATURES, LABEL, snapshot
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables

EVENTS = "bronze.events"
CLUSTERED = "bronze.events_by_customer"
SHOWN = ["customer_id", *FEATURES, LABEL]


@dataclasses.dataclass(frozen=True)
class Input:
    """The tables, and the day of the newest labelled snapshot."""

    tables: DeltaTables
    settings: Settings
    events: list[str]  # Parquet files
    customers: list[str]
    day: datetime.date
    as_of: datetime.date

    @property
    def moments(self) -> dict[str, datetime.datetime]:
        """The limits of the windows."""
        midnight = datetime.datetime(*self.day.timetuple()[:3], tzinfo=datetime.UTC)
        ages = {"d0": 0, "d30": 30, "d90": 90, "after": -self.settings.data.horizon_days}
        return {name: midnight - datetime.timedelta(days=age) for name, age in ages.items()}


def open_input(folder: Path) -> Input:
    """What every path is given; made before the clock starts."""
    settings, tables = settings_module.load("local"), DeltaTables(folder)
    as_of = datetime.date.fromisoformat((folder / "as_of").read_text())
    day = as_of - datetime.timedelta(days=settings.data.horizon_days)
    events, customers = (
        sorted(str(path) for path in tables.path(name).glob("*.parquet"))
        for name in (EVENTS, "bronze.customers")
    )
    return Input(tables, settings, events, customers, day, as_of)


def scan(given: Input) -> None:
    """The floor: read the four columns that the features need."""
    columns = ("customer_id", "event_ts", "session_id", "product_id")
    chosen = ", ".join(f"max({column})" for column in columns)
    duckdb.connect().read_parquet(given.events).aggregate(chosen).fetchall()


def ours(given: Input, name: str = EVENTS) -> pa.Table:
    """`features.snapshot` on Delta tables, as the job runs it."""
    tables = given.tables
    events, customers = tables.read(name), tables.read("bronze.customers")
    rows = snapshot(events, customers, given.day, given.as_of, given.settings)
    return tables.connection.to_pyarrow(rows)


def clustered(given: Input) -> pa.Table:
    """The same on events that lie customer by customer."""
    return ours(given, CLUSTERED)


def cluster(given: Input) -> None:
    """What clustering costs: sort the events by customer into a second table."""
    events = given.tables.read(EVENTS)
    given.tables.overwrite(CLUSTERED, events.order_by("customer_id", "event_ts"))


SQL = """
WITH counts AS (
    SELECT customer_id,
        count(*) FILTER (event_ts <= $d0) AS total_events,
        count(DISTINCT session_id) FILTER (event_ts <= $d0) AS total_sessions,
        count(DISTINCT product_id) FILTER (event_ts <= $d0) AS distinct_products,
        count(*) FILTER (event_ts > $d30 AND event_ts <= $d0) AS events_last_30d,
        count(*) FILTER (event_ts > $d90 AND event_ts <= $d0) AS events_last_90d,
        max(event_ts) FILTER (event_ts <= $d0) AS last_ts,
        count(*) FILTER (event_ts > $d0) AS events_after
    FROM read_parquet($events) WHERE event_ts <= $after GROUP BY customer_id
), joined AS (
    SELECT customer_id, coalesce(total_events, 0) AS total_events,
        coalesce(total_sessions, 0) AS total_sessions,
        coalesce(distinct_products, 0) AS distinct_products,
        coalesce(events_last_30d, 0) AS events_last_30d,
        coalesce(events_last_90d, 0) AS events_last_90d,
        CAST(floor((epoch($d0) - floor(epoch(coalesce(last_ts, signup_ts)))) / 86400)
            AS BIGINT) AS silent,
        CAST(floor((epoch($d0) - floor(epoch(signup_ts))) / 86400) AS BIGINT) AS tenure,
        coalesce(events_after, 0) AS events_after
    FROM read_parquet($customers) LEFT JOIN counts USING (customer_id) WHERE signup_ts <= $d0
)
SELECT customer_id, total_events, total_sessions, distinct_products, events_last_30d,
    events_last_90d, silent AS days_since_last_event, tenure AS customer_tenure_days,
    silent / greatest(tenure, 1) AS silent_share,
    total_events / greatest(tenure, 1) AS avg_events_per_day,
    CAST(silent > 7 AS BIGINT) + CAST(silent > 30 AS BIGINT) + CAST(silent > 90 AS BIGINT)
        AS recency_tier,
    50 * 30 / (30 + silent) + 30 * events_last_90d / (3 + events_last_90d)
        + 20 * total_sessions / (5 + total_sessions) AS engagement_score,
    CAST(events_after = 0 AS BIGINT) AS churned,
    substr(md5(customer_id), 1, 8) < $bucket AS in_holdout_bucket, $day AS feature_date
FROM joined
"""


def raw_sql(given: Input) -> pa.Table:
    """What one would write by hand for DuckDB."""
    bucket = f"{int(given.settings.data.holdout_share * 16**8):08x}"
    values: dict[str, Any] = {**given.moments, "events": given.events, "bucket": bucket}
    values |= {"customers": given.customers, "day": given.day}
    return duckdb.connect().execute(SQL, values).to_arrow_table()


def whole_days(moments: pd.Series, day: datetime.datetime) -> pd.Series:
    return (day - moments.dt.floor("s")).dt.days


def with_pandas(given: Input) -> pa.Table:
    """As a user would write it: read, filter, group, join."""
    at = given.moments
    events = pd.read_parquet(given.events).drop(columns="event_id")
    customers = pd.read_parquet(given.customers)
    past = events[events.event_ts <= at["d0"]]
    later = events[(events.event_ts > at["d0"]) & (events.event_ts <= at["after"])]
    by_customer = past.groupby("customer_id")
    row = customers[customers.signup_ts <= at["d0"]].set_index("customer_id")
    row["total_events"] = by_customer.size()
    row["total_sessions"] = by_customer.session_id.nunique()
    row["distinct_products"] = by_customer.product_id.nunique()
    for days in (30, 90):
        recent = past[past.event_ts > at[f"d{days}"]]
        row[f"events_last_{days}d"] = recent.groupby("customer_id").size()
    last = by_customer.event_ts.max().reindex(row.index).fillna(row.signup_ts)
    counts = row.columns.drop("signup_ts")
    row[counts] = row[counts].fillna(0).astype("int64")
    silent = row["days_since_last_event"] = whole_days(last, at["d0"])
    tenure = row["customer_tenure_days"] = whole_days(row.signup_ts, at["d0"])
    row["silent_share"] = silent / tenure.clip(lower=1)
    row["avg_events_per_day"] = row.total_events / tenure.clip(lower=1)
    row["recency_tier"] = np.searchsorted([7, 30, 90], silent)
    row["engagement_score"] = engagement(silent, row.events_last_90d, row.total_sessions)
    row[LABEL] = (~row.index.isin(later.customer_id.unique())).astype("int64")
    return pa.Table.from_pandas(row.reset_index()[SHOWN], preserve_index=False)


def engagement(silent: Any, active: Any, sessions: Any) -> Any:
    return 50 * 30 / (30 + silent) + 30 * active / (3 + active) + 20 * sessions / (5 + sessions)


def with_polars(given: Input) -> pa.Table:
    """As a user would write it: one lazy query, run by the streaming engine."""
    import polars as pl

    at, when = given.moments, pl.col("event_ts")
    events = pl.scan_parquet(given.events).filter(when <= at["after"])
    past = when <= at["d0"]
    counts = events.group_by("customer_id").agg(
        total_events=past.sum(),
        total_sessions=pl.col("session_id").filter(past).drop_nulls().n_unique(),
        distinct_products=pl.col("product_id").filter(past).drop_nulls().n_unique(),
        events_last_30d=(past & (when > at["d30"])).sum(),
        events_last_90d=(past & (when > at["d90"])).sum(),
        last_ts=when.filter(past).max(),
        events_after=(~past).sum(),
    )
    customers = pl.scan_parquet(given.customers).filter(pl.col("signup_ts") <= at["d0"])
    row = customers.join(counts, on="customer_id", how="left").with_columns(
        pl.selectors.by_dtype(pl.UInt32).fill_null(0).cast(pl.Int64)
    )
    midnight = pl.lit(at["d0"])

    def days(moment: pl.Expr) -> pl.Expr:
        return (midnight - moment.dt.truncate("1s")).dt.total_seconds() // 86_400

    row = row.with_columns(
        days_since_last_event=days(pl.coalesce("last_ts", "signup_ts")),
        customer_tenure_days=days(pl.col("signup_ts")),
    )
    silent, tenure = pl.col("days_since_last_event"), pl.col("customer_tenure_days")
    row = row.with_columns(
        silent_share=silent / tenure.clip(lower_bound=1),
        avg_events_per_day=pl.col("total_events") / tenure.clip(lower_bound=1),
        recency_tier=sum(((silent > limit).cast(pl.Int64) for limit in (7, 30, 90)), pl.lit(0)),
        engagement_score=engagement(silent, pl.col("events_last_90d"), pl.col("total_sessions")),
        churned=(pl.col("events_after") == 0).cast(pl.Int64),
    )
    return row.select(SHOWN).collect(engine="streaming").to_arrow()


PATHS: dict[str, Callable[[Input], pa.Table | None]] = {
    "scan": scan,
    "ours": ours,
    "raw SQL": raw_sql,
    "polars": with_polars,
    "pandas": with_pandas,
    "cluster": cluster,
    "clustered": clustered,
}


def main() -> None:
    """Run one path and say what it took."""
    name, folder, answer = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    given = open_input(folder)
    # both start from a warm library, none from warm data of its own
    ibis.memtable({"a": [1]}).execute()
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    rows = PATHS[name](given)
    seconds = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    figures = {"seconds": seconds, "cpu_seconds": cpu, "peak_gb": used.ru_maxrss * 1024 / 1e9}
    if rows is not None:
        pq.write_table(rows.select(SHOWN), answer)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
