"""How often `champion_roc_auc` lets a candidate pass, by simulation: the rule of all snapshots against the newest alone.

    python -m benchmarks.gate_power [--judgements 2000] [--bootstrap]

A judgement draws 4,705 held-out customers and four labelled snapshots of them, as CDNOW has: churn rates of 0.82
to 0.86, Production's ROC-AUC 0.74 to 0.84, risks and answers correlated from day to day by customer. What two
models do not share is nearly independent from day to day: on CDNOW, differences of two days correlate by
-0.02 to 0.03. Scores of churners and stayers are normal, so true areas are exact. The rule before: the lower
bound on the newest snapshot alone, by DeLong, and with `--bootstrap` the lower of DeLong and 2,000 paired
draws. Percentages have 95 % intervals (Clopper and Pearson).
"""

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

from churn_lib import settings as settings_module
from churn_lib.gate.checks import _non_inferior
from churn_lib.gate.comparison import DRAWS, Comparison
from churn_lib.settings import Settings
from churn_lib.statistics import (
    Estimate,
    bootstrap_roc_auc,
    daily_roc_auc_difference,
    roc_auc_difference,
)

CUSTOMERS, RATES = 4_705, (0.82, 0.835, 0.85, 0.857)  # oldest snapshot first
AREAS = (0.74, 0.78, 0.81, 0.84)  # ROC-AUC of Production on each
SHARED, OWN = 0.6, 0.03  # correlation between days of what models share, and of what they do not


@dataclass(frozen=True)
class World:
    """What a candidate's answers are made of: Production's, and noise of its own."""

    name: str
    noise: float  # standard deviation of what the two models do not share
    loss: tuple[float, ...] = (0.0,) * len(RATES)  # true loss of ROC-AUC on each day


WORLDS = (
    World("equal sister, close", 0.09),
    World("equal sister, far", 0.18),
    World("equal stranger", 0.38),
    World("loses the margin on every day, sister", 0.18, (1.0,) * 4),
    World("loses the margin on every day, stranger", 0.38, (1.0,) * 4),
    World("loses the margin on the newest day, sister", 0.18, (0.0, 0.0, 0.0, 1.0)),
    World("loses the margin on the newest day, stranger", 0.38, (0.0, 0.0, 0.0, 1.0)),
)


def noise(rng: np.random.Generator, customers: int, same: float) -> np.ndarray:
    """Standard normal, shape (days, customers), correlated from day to day by customer."""
    kept = rng.standard_normal(customers)
    own = rng.standard_normal((len(RATES), customers))
    return np.sqrt(same) * kept + np.sqrt(1 - same) * own


def signal(area: np.ndarray) -> np.ndarray:
    """How far apart churners and stayers lie for an ROC-AUC, both normal with deviation 1."""
    return np.sqrt(2) * norm.ppf(area)


def draw(
    world: World, margin: float, rng: np.random.Generator, customers: int = CUSTOMERS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, candidate's and Production's scores, each of shape (days, customers)."""
    risk, shared = (noise(rng, customers, SHARED) for _ in range(2))
    ours, theirs = (noise(rng, customers, OWN) for _ in range(2))
    y = (risk < norm.ppf(RATES)[:, None]).astype(int)
    spread, areas = np.sqrt(1 + world.noise**2), np.array(AREAS)
    champion = signal(areas)[:, None] * spread * y + shared + world.noise * theirs
    candidate = signal(areas - margin * np.array(world.loss))[:, None] * spread * y + shared
    return y, candidate + world.noise * ours, champion


def judge(
    y: np.ndarray, candidate: np.ndarray, champion: np.ndarray, settings: Settings, bootstrap: bool
) -> dict[str, float]:
    """Whether the candidate passes by the rule of now and by the former one, and how sure a day is."""
    confidence, margin = settings.gate.confidence, settings.gate.margin
    days, customers = np.indices(y.shape)
    flat = [each.ravel() for each in (y, candidate, champion, days, customers)]
    daily = daily_roc_auc_difference(*flat, confidence=confidence)
    newest = roc_auc_difference(y[-1], candidate[-1], champion[-1], confidence)
    nothing = Estimate(0.0, 0.0, 0.0, 0.0, confidence)
    found = Comparison(
        1, newest, (newest.lower, newest.upper), np.empty(0), nothing, nothing, y.shape[1], daily
    )
    lower = newest.lower
    if bootstrap and newest.lower >= -margin:  # else it changes nothing
        areas = bootstrap_roc_auc(y[-1], [candidate[-1], champion[-1]], DRAWS, 0)
        low = np.quantile(areas[:, 0] - areas[:, 1], 1 - confidence)
        lower = min(lower, float(low))
    return {
        "now": float(_non_inferior(found, settings)[2]),
        "before": float(lower >= -margin),
        "error": newest.standard_error,
        "of all": daily.pooled.standard_error,
    }


def simulate(
    world: World, judgements: int, settings: Settings, bootstrap: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """One value a judgement of each of `judge`'s answers."""
    generators = np.random.default_rng(seed).spawn(judgements)
    made = [
        judge(*draw(world, settings.gate.margin, rng), settings, bootstrap) for rng in generators
    ]
    return {name: np.array([each[name] for each in made]) for name in made[0]}


def share(passed: np.ndarray) -> str:
    """How many pass, in percent, with the interval."""
    low, high = binomtest(int(passed.sum()), len(passed)).proportion_ci(0.95, "exact")
    return f"{passed.mean():6.1%} ({low:.1%} to {high:.1%})"


def main() -> None:
    """Print one line for each kind of candidate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judgements", type=int, default=2_000)
    parser.add_argument("--bootstrap", action="store_true")
    options = parser.parse_args()
    settings = settings_module.load("local")
    print(f"{options.judgements} judgements each, gate.margin {settings.gate.margin:g}")
    head = f"{'candidate':46}{'error, 1 day':>13}{'all':>9}  {'passes now':26}"
    print(f"{head}newest day alone")
    for world in WORLDS:
        found = simulate(world, options.judgements, settings, options.bootstrap)
        print(
            f"{world.name:46}{found['error'].mean():13.5f}{found['of all'].mean():9.5f}  "
            f"{share(found['now']):26}{share(found['before'])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
