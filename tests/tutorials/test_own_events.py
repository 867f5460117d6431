"""The tutorial Your own events, followed word for word on a fresh clone."""

from pathlib import Path

import pytest

from churn_lib import registry, tables
from tests.conftest import ROOT
from tests.tutorials.following import Checkout, follow, steps

PAGE = ROOT / "nbs" / "tutorials" / "own_events.ipynb"


@pytest.mark.timeout(1_800)
def test_what_the_tutorial_shows_is_what_its_reader_gets(tmp_path: Path) -> None:
    place = Checkout(tmp_path / "clone")
    assert {"sh", "ini", "cell"} == {step.kind for step in steps(PAGE)}
    differences = follow(PAGE, place)
    assert not differences, differences
    store = tables.connect(place.settings())
    assert registry.connect(place.settings()).aliases() == {"Staging": 1, "Production": 1}
    events = store.read("bronze.events")
    corrected = events.filter(events.event_id == "e0000054273").to_pandas()
    assert list(corrected.product_id) == ["p0777"]
    assert "c00000007" not in events.customer_id.to_pyarrow().to_pylist()
