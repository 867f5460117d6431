"""How many of fifty candidates that lose the margin one holdout lets past, and what a correction costs the fifty-first.

    python -m benchmarks.holdout_wear [--holdouts 200]

A holdout is 4,705 customers and four labelled snapshots, drawn as `benchmarks.gate_power` draws them, with one
Production. Fifty candidates answer what Production answers with a coin flip in it for each customer, and truly lose
`gate.margin`; then an honest one comes, which loses nothing: a sister of Production or a stranger to it. Rules differ
in the risk that the k-th candidate may take: `alpha`, `alpha / sqrt(k)`, `alpha / k`, and `alpha * 6 / (pi k)^2`,
which sums up to alpha however many come.
"""

import argparse
from dataclasses import replace

import numpy as np

from benchmarks.gate_power import AREAS, CUSTOMERS, OWN, RATES, SHARED, noise, signal
from churn_lib import settings as settings_module
from churn_lib.statistics import DailyDifference, daily_roc_auc_difference

CANDIDATES, COIN, SISTER, STRANGER = 50, 0.38, 0.18, 0.38
RULES = {
    "alpha": lambda k: 1.0,
    "alpha / sqrt(k)": lambda k: k**-0.5,
    "alpha / k": lambda k: 1 / k,
    "alpha 6 / (pi k)^2": lambda k: 6 / (np.pi * k) ** 2,
}


class Holdout:
    """Customers, their labels, and Production's answers on each day."""

    def __init__(self, rng: np.random.Generator):
        from scipy.stats import norm

        self.rng = rng
        risk, self.shared = (noise(rng, CUSTOMERS, SHARED) for _ in range(2))
        self.y = (risk < norm.ppf(RATES)[:, None]).astype(int)
        self.flips = noise(rng, CUSTOMERS, OWN)

    def answers(self, own: np.ndarray, spread: float, loss: float) -> np.ndarray:
        """Scores of a model whose own part has a deviation of `spread`."""
        apart = signal(np.array(AREAS) - loss)[:, None] * np.sqrt(1 + spread**2)
        return apart * self.y + self.shared + spread * own

    def compared(self, spread: float, loss: float) -> DailyDifference:
        """A new candidate against Production."""
        candidate = self.answers(noise(self.rng, CUSTOMERS, OWN), spread, loss)
        champion = self.answers(self.flips, spread, 0.0)
        days, customers = np.indices(self.y.shape)
        given = self.y, candidate, champion, days, customers
        return daily_roc_auc_difference(*(each.ravel() for each in given))


def passes(found: DailyDifference, risk: float, margin: float) -> bool:
    """Whether a loss of `margin` is ruled out with this risk."""
    surer = replace(found, confidence=1 - risk)
    return min(surer.pooled.lower, surer.newest_lower) >= -margin


def simulate(holdouts: int, risk: float, margin: float) -> dict[str, dict[str, np.ndarray]]:
    """For each rule and holdout: false passes of fifty, and whether an honest fifty-first passes."""
    found: dict[str, dict[str, list[float]]] = {
        rule: {"false": [], "sister": [], "stranger": []} for rule in RULES
    }
    for rng in np.random.default_rng(0).spawn(holdouts):
        holdout = Holdout(rng)
        losers = [holdout.compared(COIN, margin) for _ in range(CANDIDATES)]
        honest = {
            "sister": holdout.compared(SISTER, 0.0),
            "stranger": holdout.compared(STRANGER, 0.0),
        }
        for rule, share in RULES.items():
            through = [passes(each, risk * share(k), margin) for k, each in enumerate(losers, 1)]
            found[rule]["false"].append(sum(through))
            for name, each in honest.items():
                found[rule][name].append(passes(each, risk * share(CANDIDATES + 1), margin))
    return {
        rule: {name: np.array(values, dtype=float) for name, values in each.items()}
        for rule, each in found.items()
    }


def main() -> None:
    """Print one line for each rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--holdouts", type=int, default=200)
    holdouts, gate = parser.parse_args().holdouts, settings_module.load("local").gate
    print(
        f"{holdouts} holdouts, {CANDIDATES} candidates that lose gate.margin {gate.margin:g} on each"
    )
    print(f"{'risk of candidate k':22}{'get through':>13}{'at least one':>14}", end="")
    print(f"{'51st, sister':>14}{'51st, stranger':>16}")
    for rule, each in simulate(holdouts, 1 - gate.confidence, gate.margin).items():
        print(
            f"{rule:22}{each['false'].mean():13.2f}{(each['false'] > 0).mean():14.1%}"
            f"{each['sister'].mean():14.1%}{each['stranger'].mean():16.1%}"
        )


if __name__ == "__main__":
    main()
