"""The gate's paired bootstrap: 2,000 draws on 100,000 rows, against scikit-learn's area in a loop.

    python -m benchmarks.gate [--rows 100000] [--draws 2000]

The peer draws rows with replacement and calls `sklearn.metrics.roc_auc_score` for both models, which is
what one writes first. It is run for a few draws and scaled up; both are timed in this process.
"""

import argparse
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from churn_lib.statistics import bootstrap_roc_auc, roc_auc_difference

PEER_DRAWS = 20


def two_models(rows: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels, and the probabilities of two correlated models."""
    rng = np.random.default_rng(0)
    leaning = rng.normal(0, 1.5, rows)
    y = (rng.random(rows) < 1 / (1 + np.exp(-leaning))).astype(int)
    return y, [1 / (1 + np.exp(-leaning - rng.normal(0, noise, rows))) for noise in (0.4, 0.5)]


def peer(y: np.ndarray, probabilities: list[np.ndarray], draws: int) -> np.ndarray:
    """The same draws as rows, scored one by one; shape (draws, models)."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(draws):
        rows = rng.integers(0, len(y), len(y))
        scores.append([roc_auc_score(y[rows], p[rows]) for p in probabilities])
    return np.array(scores)


def main() -> None:
    """Print seconds, ratio, and that both find the same spread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=2_000)
    options = parser.parse_args()
    y, probabilities = two_models(options.rows)
    start = time.perf_counter()
    peer(y, probabilities, PEER_DRAWS)
    loop = (time.perf_counter() - start) / PEER_DRAWS * options.draws
    start = time.perf_counter()
    drawn = bootstrap_roc_auc(y, probabilities, options.draws)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    delong = roc_auc_difference(y, *probabilities)
    test = time.perf_counter() - start
    spread = (drawn[:, 0] - drawn[:, 1]).std()
    print(f"{options.draws} paired draws on {options.rows} rows")
    print(f"  roc_auc_score in a loop   {loop:8.2f} s  (scaled up from {PEER_DRAWS} draws)   1.0x")
    print(f"  bootstrap_roc_auc         {ours:8.2f} s  {loop / ours:38.1f}x faster")
    print(f"  DeLong, one call          {test:8.3f} s")
    print(f"standard error: bootstrap {spread:.6f}, DeLong {delong.standard_error:.6f}")


if __name__ == "__main__":
    main()
