"""The table of the days, as a CSV file that the page of the documentation shows and draws."""

from pathlib import Path

import pandas as pd

from tests.days import checks, world
from tests.days.rehearsal import Day, Rehearsal


def row(day: Day) -> dict[str, object]:
    """A day as a row of the table."""
    return {
        "day": day.day,
        "date": str(world.date(day.day)),
        "events": day.events,
        "happened": "; ".join(day.happened),
        "jobs_that_failed": "; ".join(each.split(": ")[1] for each in day.failed),
        **{f"{target}_version": number for target, number in day.production.items()},
        **{f"{target}_alerts": ", ".join(found) for target, found in day.alerts.items()},
        "monitor": day.sentence,
        "megabytes": round(day.disk / 1e6, 1),
        "wrong": "; ".join(day.wrong),
    }


def table(rehearsal: Rehearsal) -> pd.DataFrame:
    """All days, with what production's scores of each turned out to be worth."""
    rows = pd.DataFrame(map(row, rehearsal.days))
    known = checks.quality(rehearsal.production).round(4)
    means = checks.probabilities(rehearsal.production).round(4).rename("mean_probability")
    for each in (known, means):
        each.index = pd.to_datetime(each.index).strftime("%Y-%m-%d")
    whole = rows.join(known, on="date").join(means, on="date")
    versions = [name for name in whole.columns if name.endswith("_version")]
    return whole.astype(dict.fromkeys(versions, "Int64"))


def write(rehearsal: Rehearsal, path: Path) -> None:
    """Write the table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    table(rehearsal).to_csv(part, index=False)
    part.replace(path)
