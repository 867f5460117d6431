"""The tutorial A day in production, followed word for word on a fresh clone."""

from pathlib import Path

import pytest

from churn_lib import registry
from tests.conftest import ROOT
from tests.tutorials.following import Checkout, follow, steps

PAGE = ROOT / "nbs" / "tutorials" / "a_day_in_production.ipynb"


@pytest.mark.timeout(1_800)
def test_what_the_tutorial_shows_is_what_its_reader_gets(tmp_path: Path) -> None:
    place = Checkout(tmp_path / "clone")
    assert {"sh", "cell"} == {step.kind for step in steps(PAGE)}
    differences = follow(PAGE, place)
    assert not differences, differences
    models = registry.connect(place.settings())
    assert models.aliases() == {"Staging": 2, "Production": 2, "Previous": 1}
    assert models.version(2).tags["retrained_for"] == "quality-v1-2026-02-11"
