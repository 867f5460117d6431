"""How often `champion_roc_auc` lets candidates past whose true difference is known: the simulation, small and seeded."""

import numpy as np
import pytest

from benchmarks.gate_power import AREAS, RATES, WORLDS, World, draw, simulate
from churn_lib import settings
from churn_lib.statistics import roc_auc_estimate

LOCAL = settings.load("local")
BY_NAME = {world.name: world for world in WORLDS}


def passing(world: World, judgements: int) -> tuple[float, float]:
    """Share that passes by the rule of now and by the one before."""
    found = simulate(world, judgements, LOCAL)
    return float(found["now"].mean()), float(found["before"].mean())


def test_the_simulated_customers_are_those_that_are_described() -> None:
    world, margin = BY_NAME["loses the margin on the newest day, stranger"], 0.02
    y, candidate, champion = draw(world, margin, np.random.default_rng(0), 100_000)
    assert y.mean(axis=1) == pytest.approx(RATES, abs=0.005)
    for day, area in enumerate(AREAS):
        lost = margin if day == 3 else 0.0
        assert roc_auc_estimate(y[day], champion[day]).value == pytest.approx(area, abs=0.005)
        expected = pytest.approx(area - lost, abs=0.005)
        assert roc_auc_estimate(y[day], candidate[day]).value == expected


def test_an_equal_sister_passes_nearly_always() -> None:
    assert passing(BY_NAME["equal sister, close"], 40)[0] >= 0.95


def test_all_snapshots_let_more_equal_strangers_past_than_the_newest_alone() -> None:
    now, before = passing(BY_NAME["equal stranger"], 100)
    assert now > before + 0.1


def test_a_candidate_that_loses_the_margin_seldom_passes() -> None:
    world = BY_NAME["loses the margin on every day, stranger"]
    assert passing(world, 100)[0] <= 0.10  # 5 % and more than two standard errors


def test_who_loses_four_margins_is_refused() -> None:
    lost = World("loses four margins", 0.38, (4.0,) * 4)
    assert passing(lost, 20)[0] == 0.0
