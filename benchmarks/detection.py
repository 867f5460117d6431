"""Which changes does the monitor find, how soon, and how often does it cry wolf?

    python -m benchmarks.detection --kept .cache/detection.jsonl    # 20 draws of each world
    python -m benchmarks.detection --draws 5 --world seasonal
    python -m benchmarks.detection --simulated --kept .cache/simulated.jsonl

A draw that is in the kept file is not made again, so a run that was stopped goes on where it was; one
that was made by other code or other settings does not count.

Each world is a population of customers whose features, churn and number are drawn week by week; one
thing changes at a known week. Features, predictions and labels go through the monitor's own statistics,
limits and rule. Labels are known 13 weeks late, as with a horizon of 90 days. With --simulated the
customers are those of `churn data simulate --drift`, one kind of drift in each world.
"""

import argparse
import datetime
import hashlib
import inspect
import itertools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import simulated_worlds
from benchmarks.simulated_worlds import NAMES, Shop
from churn_lib import features, settings
from churn_lib.data import simulation
from churn_lib.features import ANSWER, FEATURES, LABEL
from churn_lib.model import ChurnModel
from churn_lib.monitoring import (
    Window,
    alerts,
    drift,
    integrity,
    metrics,
    quality,
    verdict,
    windows,
)
from churn_lib.monitoring.metrics import (
    check_rows,
    drift_rows,
    observe,
    profile_rows,
    quality_row,
)
from churn_lib.monitoring.windows import DECISION, Baseline, make_baseline
from churn_lib.training import make_estimator

ROWS, LATE, CHANGE, WEEKS, QUIET = 2_000, 13, 6, 26, 52
START = datetime.date(2025, 1, 6)
THRESHOLD = 0.5


@dataclass(frozen=True)
class World:
    """What the population is like in one week."""

    rows: int = ROWS
    silence: float = 40.0  # mean days since the last event
    activity: float = 2.0  # events a month
    level: float = -1.6  # churn at rest, log-odds
    effect_of_silence: float = 1.2  # per 30 days
    effect_of_activity: float = -0.35
    churners: float | None = None  # share of churners among those scored; None: as it comes
    broken: str | None = None  # a column that arrives empty of content


def population(world: World, rng: np.random.Generator) -> pd.DataFrame:
    """Features and label of `world.rows` customers."""
    wanted = world.rows if world.churners is None else 4 * world.rows
    tenure = rng.integers(1, 720, wanted)
    silence = np.minimum(rng.exponential(world.silence, wanted).astype(int), tenure)
    activity = rng.gamma(1.5, world.activity / 1.5, wanted)
    total = 1 + rng.poisson(activity * tenure / 30)
    recent = np.where(silence < 30, rng.poisson(activity), 0)
    quarter = np.where(silence < 90, recent + rng.poisson(2 * activity), 0)
    sessions = np.maximum(1, rng.binomial(total, 0.8))
    frame = pd.DataFrame(
        {
            "total_events": total,
            "total_sessions": sessions,
            "distinct_products": np.maximum(1, rng.binomial(total, 0.6)),
            "events_last_30d": recent,
            "events_last_90d": quarter,
            "days_since_last_event": silence,
            "customer_tenure_days": tenure,
            "silent_share": silence / tenure,
            "avg_events_per_day": total / tenure,
            "recency_tier": (silence > 7).astype(int) + (silence > 30) + (silence > 90),
        }
    )
    frame["engagement_score"] = (
        1500 / (30 + silence) + 30 * quarter / (3 + quarter) + 20 * sessions / (5 + sessions)
    )
    odds = world.level + world.effect_of_silence * silence / 30 + world.effect_of_activity * quarter
    frame[LABEL] = (rng.uniform(size=wanted) < 1 / (1 + np.exp(-odds))).astype(int)
    if world.churners is not None:
        frame = _with_share(frame, world, rng)
    if world.broken:
        frame[world.broken] = 0
    return frame


def _with_share(frame: pd.DataFrame, world: World, rng: np.random.Generator) -> pd.DataFrame:
    """As many churners as asked for; among churners and among stayers nothing changes."""
    share = world.churners or 0.0
    weight = np.where(
        frame[LABEL] == 1, share / frame[LABEL].mean(), (1 - share) / (1 - frame[LABEL].mean())
    )
    chosen = rng.choice(len(frame), world.rows, p=weight / weight.sum())
    return frame.iloc[chosen].reset_index(drop=True)


def season(week: int) -> World:
    """A quarter more and less activity over the year."""
    return World(activity=2 * (1 + 0.25 * math.sin(2 * math.pi * week / 52)))


BASE = World()
WORLDS: dict[str, Callable[[int], World]] = {
    "none": lambda week: BASE,
    "feature shift": lambda week: replace(BASE, silence=80) if week >= CHANGE else BASE,
    "label shift": lambda week: replace(BASE, churners=0.75) if week >= CHANGE else BASE,
    "concept change": lambda week: (
        replace(BASE, effect_of_silence=0.4, level=-0.4) if week >= CHANGE else BASE
    ),
    "slow drift": lambda week: replace(BASE, silence=40 * 1.03 ** max(0, week - CHANGE)),
    "seasonal": season,
    "broken column": lambda week: (
        replace(BASE, broken="total_sessions") if week >= CHANGE else BASE
    ),
    "volume drop": lambda week: replace(BASE, rows=ROWS * 3 // 10) if week >= CHANGE else BASE,
}


def scored(frame: pd.DataFrame, model: ChurnModel) -> pd.DataFrame:
    """With the model's answers and decisions."""
    answer = model.predict(frame[FEATURES].astype(float))
    return frame.assign(**{ANSWER: answer, DECISION: (answer >= THRESHOLD).astype(int)})


Weeks = Callable[[int], pd.DataFrame]  # features and label of those who are scored in a week


def drawn(name: str, rng: np.random.Generator) -> Weeks:
    """The weeks of one of WORLDS; those before the first watched one have more rows."""

    def week_of(week: int) -> pd.DataFrame:
        world = WORLDS[name](week)
        return population(replace(world, rows=3_000) if week < 0 else world, rng)

    return week_of


def trained(weeks: Weeks) -> tuple[Baseline, ChurnModel]:
    """A model made of three snapshots a quarter apart, and what it was judged on a quarter later."""
    frames = [
        weeks(week).assign(feature_date=START + datetime.timedelta(weeks=week))
        for week in (-52, -39, -26, -13)
    ]
    training, holdout = pd.concat(frames[:3], ignore_index=True), frames[3]
    model = ChurnModel(make_estimator("hist_gradient_boosting", 42), THRESHOLD)
    model.fit(training[FEATURES].astype(float), training[LABEL])
    rows = (scored(training, model), scored(holdout, model))
    return make_baseline(1, *rows, THRESHOLD), model


def flags(
    week: int, rows: pd.DataFrame, baseline: Baseline, config: settings.Settings
) -> tuple[dict[str, bool], int]:
    """What one window violates when its labels are known, and its number of rows."""
    start = START + datetime.timedelta(weeks=week)
    window = Window(start, start + datetime.timedelta(7), 1, (start,))
    seen = observe(window, rows)
    drift = drift_rows(seen, baseline.distributions, baseline.limits(start, config), config)
    drift = drift.assign(window_date=start)
    profiles = pd.DataFrame(profile_rows(seen, quality_row(rows, baseline, config)))
    profiles["window_date"] = start
    totals = profiles[profiles.column_name == ":table"]
    found = [
        verdict.broken_signal(check_rows(seen, baseline, drift).assign(window_date=start)),
        verdict.drift_signal(drift, config),
        verdict.drift_signal(drift, config, "label_drift"),
        verdict.quality_signal(totals, "estimated_quality"),
        verdict.quality_signal(totals, "quality"),
    ]
    return {each.cause: bool(each.violations[-1]) for each in found}, len(rows)


NEEDS_LABELS = ("label_drift", "quality")


def signals_at(
    week: int, history: list[tuple[dict[str, bool], int]], config: settings.Settings
) -> list[alerts.Signal]:
    """What is known in a week: labels of the last 13 windows are not."""
    days = tuple(START + datetime.timedelta(weeks=each) for each in range(week + 1))
    found = []
    for cause in history[0][0]:
        known: list[bool | None] = [seen[cause] for seen, _ in history[: week + 1]]
        if cause in NEEDS_LABELS:
            known[max(0, week + 1 - LATE) :] = [None] * min(LATE, week + 1)
        found.append(alerts.Signal(cause, tuple(known), days, cause))
    counts = pd.DataFrame({"window_date": days, "count": [rows for _, rows in history[: week + 1]]})
    return [*found, verdict.volume_signal(counts, config)]


def live(
    name: str, draw: int, config: settings.Settings, weeks: int
) -> list[tuple[int, str, list[str]]]:  # Fired
    """Week, verdict and causes of every week in which something fires."""
    week_of: Weeks
    if name in WORLDS:
        week_of = drawn(name, np.random.default_rng([draw, *name.encode()]))
    else:
        week_of = Shop(name, draw, START, CHANGE, weeks, config)
    baseline, model = trained(week_of)
    history = [flags(week, scored(week_of(week), model), baseline, config) for week in range(weeks)]
    if isinstance(week_of, Shop):
        for week, (seen, _) in enumerate(history):
            seen["source"] = week_of.source_violates(week)
    fired = []
    rule = (config.monitoring.alert_violations, config.monitoring.alert_windows)
    for week in range(weeks):
        causes = [each.cause for each in alerts.firing(signals_at(week, history, config), *rule)]
        if causes:
            fired.append((week, alerts.verdict(causes), causes))
    return fired


STILL = ("none", "seasonal", "no drift")
Fired = list[tuple[int, str, list[str]]]


def weeks_of(name: str) -> int:
    """How long a world is watched."""
    return QUIET if name in STILL else WEEKS


def measured_code(config: settings.Settings) -> str:
    """Changes with the worlds, with the code that watches them and with the settings."""
    modules = (alerts, drift, windows, integrity, quality, verdict, metrics)
    modules += (features.definitions, features.snapshots, simulated_worlds, simulation)
    parts = [Path(__file__).read_text(), *map(inspect.getsource, modules), str(config)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def one(given: tuple[str, int]) -> tuple[str, int, Fired]:
    """A draw of a world, for a worker."""
    name, draw = given
    return name, draw, live(name, draw, settings.load("local"), weeks_of(name))


def draws(wanted: list[tuple[str, int]], kept: Path | None) -> Iterator[tuple[str, int, Fired]]:
    """What happened in each draw, those first that are kept."""
    code, found = measured_code(settings.load("local")), set()
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    for line in map(json.loads, lines):
        if line["code"] == code and (key := (line["world"], line["draw"])) in wanted:
            found.add(key)
            yield *key, line["fired"]
    os.environ["OMP_NUM_THREADS"] = "1"  # of each worker: their threads would wait for each other
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), context) as pool:
        for name, draw, fired in pool.map(one, [each for each in wanted if each not in found]):
            if kept:
                line = {"code": code, "world": name, "draw": draw, "fired": fired}
                with kept.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            yield name, draw, fired


def row(name: str, lives: list[Fired]) -> str:
    """One line of the table."""
    calm = weeks_of(name) if name in STILL else CHANGE
    delays, words = [], set[str]()
    alarms = sum(week < calm for fired in lives for week, _, _ in fired)
    for fired in lives:
        hits = [(week, word, causes) for week, word, causes in fired if week >= calm]
        if hits:
            week, _, causes = hits[0]
            # the first labelled window after the change, the first whole week of its events
            unknown = LATE if causes[0] in NEEDS_LABELS else int(causes[0] == "source")
            delays.append(week - CHANGE + 1 - unknown)
            words |= {word for _, word, _ in hits} | {f"({causes[0]})"}
    found = "nothing to find" if name in STILL else f"{len(delays)} of {len(lives)}"
    soon = f"{np.median(delays):.0f} ({min(delays)} to {max(delays)})" if delays else "-"
    verdicts = " ".join(sorted(words)) or "ok"
    return f"| {name} | {found} | {soon} | {verdicts} | {alarms} in {calm * len(lives):,} |"


def main() -> None:
    """Print the table as markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20, help="draws of each world")
    parser.add_argument("--simulated", action="store_true", help="worlds of churn data simulate")
    parser.add_argument("--world", choices=[*WORLDS, *NAMES], help="this one only")
    parser.add_argument("--kept", type=Path, help="file that keeps what has been drawn")
    given = parser.parse_args()
    names = [given.world] if given.world else [*(NAMES if given.simulated else WORLDS)]
    lives: dict[str, list[Fired]] = {name: [] for name in names}
    # draw by draw, so that a run that is stopped has seen every world
    wanted = [(name, draw) for draw, name in itertools.product(range(given.draws), names)]
    for name, _, fired in draws(wanted, given.kept):
        lives[name].append(fired)
    print("| world | detected | windows until the alert | verdict and first cause | false alarms |")
    print("|---|---|---|---|---|")
    for name in names:
        print(row(name, lives[name]))


if __name__ == "__main__":
    main()
