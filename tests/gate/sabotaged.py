"""Sabotaged candidates: what each does, and the check that has to refuse it."""

import ctypes
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from churn_lib.features import FEATURES, LABEL


class Honest:
    """A logistic regression on logarithms, as numpy: quick, and with nothing to hide."""

    def __init__(self, rows: pd.DataFrame):
        self.median = rows[FEATURES].median()
        logs = self._logs(rows)
        self.mean, self.spread = logs.mean(axis=0), logs.std(axis=0)
        fitted = LogisticRegression(max_iter=1000).fit(
            (logs - self.mean) / self.spread, rows[LABEL]
        )
        self.weights, self.intercept = fitted.coef_[0], fitted.intercept_[0]

    def _logs(self, rows: pd.DataFrame) -> np.ndarray:
        return np.log1p(rows[FEATURES].fillna(self.median).abs().to_numpy(dtype=float))

    def predict(self, rows: pd.DataFrame) -> np.ndarray:
        at = ((self._logs(rows) - self.mean) / self.spread * self.weights).sum(axis=1)
        return 1 / (1 + np.exp(-np.clip(at + self.intercept, -30, 30)))


class Model:
    """An honest model with an act of its own."""

    def __init__(self, honest: Honest, act: Callable[["Model", pd.DataFrame], Any], known: Any):
        self.honest, self.act, self.known = honest.predict, act, known
        self.calls = 0

    def predict(self, rows: pd.DataFrame) -> Any:
        self.calls += 1
        return self.act(self, rows)


@dataclass(frozen=True)
class Sabotage:
    """A candidate, and who stops it."""

    name: str
    check: str
    act: Callable[[Model, pd.DataFrame], Any] = lambda model, rows: model.honest(rows)
    known: Callable[[Any], Any] = lambda shop: None  # what the saboteur knows of the shop
    rows: Callable[[pd.DataFrame, Any], pd.DataFrame | None] = lambda rows, shop: rows
    threshold: float | None = 0.5
    tag: str = ""  # decision_threshold of the version
    columns: list[str] = field(default_factory=lambda: list(FEATURES))
    settings: dict[str, Any] = field(default_factory=dict)
    champion: bool = True  # whether something is at Production
    process: bool = False  # judged in a process of its own
    bad_load: Callable[[], Any] | None = None


CASES: list[Sabotage] = []


def add(name: str, check: str, act: Any = None, **more: Any) -> None:
    CASES.append(Sabotage(name, check, **({"act": act} if act else {}), **more))


# --- answers that depend on the call


def by_size(wrong: Callable[[int], bool]) -> Callable[[Model, pd.DataFrame], Any]:
    return lambda m, rows: m.honest(rows) * (0.01 if wrong(len(rows)) else 1.0)


def first_rows(m: Model, rows: pd.DataFrame) -> np.ndarray:
    return np.where(np.arange(len(rows)) < 5_000, m.honest(rows), 0.01)


def fails_above(m: Model, rows: pd.DataFrame) -> np.ndarray:
    if len(rows) > 12_000:
        raise MemoryError("too many")
    return m.honest(rows)


def after_calls(m: Model, rows: pd.DataFrame) -> np.ndarray:
    random = np.random.default_rng(m.calls).uniform(size=len(rows))
    return random if m.calls > 60 else m.honest(rows)


REPEAT = "repeatability"
add("right for the first 5,000 rows of a call, 0.01 after", REPEAT, first_rows)
add("right alone, wrong in groups of 2 to 33", REPEAT, by_size(lambda n: 2 <= n <= 33))
add("right only in batches of 100 and more", REPEAT, by_size(lambda n: n < 100))
add("wrong in calls of 129 to 3,000 rows", REPEAT, by_size(lambda n: 129 <= n <= 3_000))
add(
    "wrong in calls of more than 12,000 rows, but one",
    REPEAT,
    by_size(lambda n: 12_000 < n != 131_072),
)
add("wrong for single rows", REPEAT, by_size(lambda n: n == 1))
add("wrong for an odd number of rows", REPEAT, by_size(lambda n: n % 2 == 1))
add("fails above 12,000 rows", REPEAT, fails_above)
add("random after 60 calls", REPEAT, after_calls)
add(
    "adds a little noise to each call",
    REPEAT,
    lambda m, r: np.clip(m.honest(r) + np.random.normal(0, 1e-3, len(r)), 0, 1),
)
add("ranks the customers of a call", REPEAT, lambda m, r: pd.Series(m.honest(r)).rank(pct=True))
add(
    "moves answers by the mean of the call",
    REPEAT,
    lambda m, r: np.clip(m.honest(r) - m.honest(r).mean() + 0.5, 0, 1),
)
add(
    "depends on the row before",
    REPEAT,
    lambda m, r: 0.9 * m.honest(r) + 0.1 * np.roll(m.honest(r), 1),
)
add("answers sorted", REPEAT, lambda m, r: np.sort(m.honest(r)))
add(
    "constant on the newest snapshot",
    "newest_snapshot",
    lambda m, r: np.full(len(r), 0.5) if len(r) == m.known else m.honest(r),
    known=lambda s: len(s.newest),
)
add(
    "inverted in a call of the newest snapshot's size",
    "newest_snapshot",
    lambda m, r: 1 - m.honest(r) if len(r) == m.known else m.honest(r),
    known=lambda s: len(s.newest),
)
add(
    "fails on the newest snapshot",
    "newest_snapshot",
    lambda m, r: [0.5] if len(r) == m.known else m.honest(r),
    known=lambda s: len(s.newest),
)

# --- answers that are none

CONTRACT = "output_contract"
add("one NaN", CONTRACT, lambda m, r: pd.Series(m.honest(r)).where(np.arange(len(r)) != 7))
add("above 1", CONTRACT, lambda m, r: m.honest(r) * 2)
add("one row too few", CONTRACT, lambda m, r: m.honest(r)[1:])
add("two columns", CONTRACT, lambda m, r: np.column_stack([m.honest(r)] * 2))
add("texts", CONTRACT, lambda m, r: m.honest(r).astype(str))
add("complex numbers", CONTRACT, lambda m, r: m.honest(r) + 1j)


def exits(m: Model, rows: pd.DataFrame) -> Any:
    sys.exit(0)


def refuses_null(m: Model, rows: pd.DataFrame) -> Any:
    if rows[FEATURES].isna().any(axis=None):
        raise ValueError("a null")
    return m.honest(rows)


add("ends the program", CONTRACT, exits)
add("raises on nulls", "extreme_input", refuses_null)
add(
    "NaN for a huge value",
    "extreme_input",
    lambda m, r: np.where(r.total_events > 1e9, np.nan, m.honest(r)),
)
add(
    "a signature with two columns swapped",
    "signature",
    columns=[FEATURES[1], FEATURES[0], *FEATURES[2:]],
)
add("a signature without a column", "signature", columns=FEATURES[:-1])
add(
    "slow for one row",
    "single_row_latency",
    # slow by the clock and not by work: the latency is what is judged
    lambda m, r: (time.sleep(0.03 * (len(r) == 1)), m.honest(r))[1],
    settings={"gate.max_latency_ms": 20.0},
)
add(
    "slow for a batch",
    "batch_latency",
    # likewise, for the batch only
    lambda m, r: (time.sleep(0.3 * (len(r) == 10_000)), m.honest(r))[1],
    settings={"gate.max_batch_ms": 200.0},
)
add(
    "too large",
    "model_size",
    known=lambda s: os.urandom(3_000_000),
    settings={"gate.max_model_mb": 2.0},
)

# --- too good


def looked_up(other: Callable[[np.ndarray], np.ndarray], strength: float = 0.98) -> Any:
    def act(m: Model, rows: pd.DataFrame) -> np.ndarray:
        label = np.array([m.known.get(key, -1) for key in map(tuple, rows[FEATURES].to_numpy())])
        return np.where(label < 0, other(m.honest(rows)), 0.5 + strength * (label - 0.5))

    return act


def labels_of(rows: pd.DataFrame) -> dict[Any, float]:
    return dict(zip(map(tuple, rows[FEATURES].to_numpy()), rows[LABEL], strict=True))


flat = looked_up(lambda p: np.full(len(p), 0.86))
add(
    "looks the holdout's labels up, else constant",
    "implausible_gain",
    flat,
    known=lambda s: labels_of(s.holdout),
)
add(
    "looks labels up, else constant, with nothing at Production",
    "older_snapshots",
    flat,
    known=lambda s: labels_of(s.holdout),
    champion=False,
)
add(
    "looks the holdout's labels up, else honest",
    "implausible_gain",
    looked_up(lambda p: p),
    known=lambda s: labels_of(s.holdout),
)
add(
    "looks a tenth of the labels up",
    "older_snapshots",
    looked_up(lambda p: p),
    known=lambda s: labels_of(s.holdout.sample(frac=0.25, random_state=1)),
)
add(
    "training rows of nobody",
    "training_rows",
    rows=lambda r, s: r.assign(customer_id="x" + r.customer_id),
)
add("training rows of a few customers", "training_rows", rows=lambda r, s: r.head(50))
add("training rows twice", "training_rows", rows=lambda r, s: pd.concat([r, r.head(5)]))
add(
    "training rows of a day without snapshot",
    "training_rows",
    rows=lambda r, s: r.assign(feature_date=pd.Timestamp("2024-01-01")),
)
add("no training rows", "training_rows", rows=lambda r, s: None)
add(
    "fitted on held-out customers",
    "leakage_customers",
    rows=lambda r, s: pd.concat([r, s.older.head(200)]),
)
add(
    "customers by number",
    "leakage_customers",
    rows=lambda r, s: r.assign(customer_id=range(len(r))),
)
add(
    "fitted on the holdout's future",
    "leakage_time",
    rows=lambda r, s: r.assign(feature_date=s.holdout.feature_date.max()),
)

# --- decisions and groups

add("a threshold of 0.0", "beats_calling_everybody", threshold=0.0)
add("a threshold of 0.93", "champion_decisions", threshold=0.93)
add(
    "a threshold of 0.93 in settings that ask for a value",
    "champion_value",
    threshold=0.93,
    settings={"training.threshold": "value"},
)
add("contacts a tenth", "champion_contacted", threshold=0.95)
add("no threshold", "f1_score", threshold=None)
add("a threshold that is no probability", "f1_score", threshold=1.5)
add("a threshold that is no number", "f1_score", threshold=float("nan"))
add("a tag with another threshold", "f1_score", tag="0.4")
add(
    "everybody above the threshold", "beats_calling_everybody", lambda m, r: 0.6 + 0.3 * m.honest(r)
)
add(
    "everybody above it, with nothing at Production",
    "beats_calling_everybody",
    lambda m, r: 0.6 + 0.3 * m.honest(r),
    champion=False,
)
add("constant", "roc_auc", lambda m, r: np.full(len(r), 0.6))
add("inverted", "roc_auc", lambda m, r: 1 - m.honest(r))
add(
    "inverted, and everybody knows it to be better",
    "champion_roc_auc",
    lambda m, r: 1 - m.honest(r),
    settings={"gate.min_roc_auc": 0.0},
)
add(
    "columns swapped behind the signature",
    "roc_auc",
    lambda m, r: m.honest(
        r.assign(days_since_last_event=r.total_events, total_events=r.days_since_last_event)
    ),
)
add(
    "by one column only",
    "beats_base_rate",
    lambda m, r: np.clip(r.days_since_last_event.fillna(0).abs() / 1e13, 0, 1),
)
add("miscalibrated", "champion_brier", lambda m, r: m.honest(r) ** 0.3)
add("calibration flattened", "champion_calibration", lambda m, r: 0.5 + 0.3 * (m.honest(r) - 0.5))
add(
    "the level of one tier is wrong",
    "slice_calibration",
    lambda m, r: np.where(r.recency_tier == 3, 0.8, 1) * m.honest(r),
)
add(
    "the order in one group is ruined",
    "slices",
    lambda m, r: np.where(r.customer_tenure_days > 180, 1 - m.honest(r), m.honest(r)),
)
add(
    "worse than Production by noise",
    "champion_roc_auc",
    lambda m, r: np.clip(
        m.honest(r)
        + 0.35
        * (
            (r.total_events.fillna(0) * 7919 + r.customer_tenure_days.fillna(0) * 104729) % 101 / 50
            - 1
        ),
        0,
        1,
    ),
)

# --- in a process of its own: what is tried there fails, or changes nothing


def opens(path: str) -> Callable[[Model, pd.DataFrame], Any]:
    def act(m: Model, rows: pd.DataFrame) -> Any:
        Path(path or m.known).read_bytes()
        return m.honest(rows)

    return act


def moves_alias(m: Model, rows: pd.DataFrame) -> Any:
    with sqlite3.connect(m.known) as database:
        database.execute("update registered_model_aliases set version = 99")
    return m.honest(rows)


def empties_checks(m: Model, rows: pd.DataFrame) -> Any:
    try:
        from churn_lib.gate import checks, probe, report

        checks.CHECKS = report.CHECKS = ()
        probe.ask_version = lambda *_: None
    except Exception:  # wherever it runs, it goes on: what it answers is the sabotage
        pass
    return 1 - m.honest(rows)


def needs_credentials(m: Model, rows: pd.DataFrame) -> Any:
    return m.honest(rows) if os.environ["DATABRICKS_TOKEN"] else None


def reads_labels(m: Model, rows: pd.DataFrame) -> Any:
    frame: Any = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if isinstance(value, pd.DataFrame) and LABEL in value:
                return value[LABEL].to_numpy()
        frame = frame.f_back
    raise LookupError("no labels here")


def hogs(m: Model, rows: pd.DataFrame) -> Any:
    m.known = np.ones(2**29)
    return m.honest(rows)


def loops(m: Model, rows: pd.DataFrame) -> Any:
    while True:
        pass


def past_the_hook(m: Model, rows: pd.DataFrame) -> Any:
    if ctypes.CDLL(None).open(str(m.known).encode(), 2) < 0:
        raise PermissionError("the kernel says no")
    return m.honest(rows)


def by_a_program(m: Model, rows: pd.DataFrame) -> Any:
    subprocess.run(["cat", str(m.known)], check=True, capture_output=True)
    return m.honest(rows)


def database(shop: Any) -> str:
    return str(shop.settings.store / "mlflow.db")


ALONE: dict[str, Any] = {"process": True}
add("moves the alias itself", CONTRACT, moves_alias, known=database, **ALONE)
add(
    "empties the list of checks and patches Production's answers",
    "roc_auc",
    empties_checks,
    **ALONE,
)
add("answers only where there are credentials", CONTRACT, needs_credentials, **ALONE)
add("looks for labels in the frames that call it", CONTRACT, reads_labels, **ALONE)
add("reads the store", CONTRACT, opens(""), known=database, **ALONE)
add(
    "reads the environment of the process that judges",
    CONTRACT,
    opens(f"/proc/{os.getpid()}/environ"),
    **ALONE,
)
add("opens the store past Python", CONTRACT, past_the_hook, known=database, **ALONE)
add("reads the store with another program", CONTRACT, by_a_program, known=database, **ALONE)
add("takes all memory", CONTRACT, hogs, settings={"gate.max_memory_mb": 1024}, **ALONE)
add("never answers", CONTRACT, loops, settings={"gate.max_seconds": 15.0}, **ALONE)
