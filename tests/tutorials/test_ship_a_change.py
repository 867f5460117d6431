"""The tutorial Ship a change, followed word for word on a fresh clone with the real data."""

from pathlib import Path

import pytest

from churn_lib import registry
from tests.conftest import ROOT
from tests.tutorials.following import Checkout, follow, missing, steps

PAGE = ROOT / "nbs" / "tutorials" / "ship_a_change.ipynb"
DEFINITIONS = "nbs/lib/features/definitions.ipynb"


@pytest.mark.timeout(1_800)
def test_what_the_tutorial_shows_is_what_its_reader_gets(tmp_path: Path) -> None:
    place = Checkout(tmp_path / "clone")
    assert {"sh", "python", "cell"} == {step.kind for step in steps(PAGE)}
    differences = follow(PAGE, place, (DEFINITIONS, "## The contract"))
    assert not differences, differences
    models = registry.connect(place.settings())
    assert models.aliases() == {"Staging": 2, "Production": 2, "Previous": 1}
    added = set(registry.inputs_of(models, 2)) - set(registry.inputs_of(models, 1))
    assert added == {"expected_purchases"}
    assert "expected_purchases" in place.run(f"git show main:{DEFINITIONS}")


def test_the_change_is_one_cell_and_its_example() -> None:
    cells = [step.source for step in steps(PAGE) if step.kind == "python"]
    assert len(cells) == 2 and sum(len(cell.splitlines()) for cell in cells) <= 15


def test_a_page_that_shows_something_else_is_found_out() -> None:
    came = "version  aliases\n2        Production\n1        Previous  0.8361\n[main abc1234] Add it"
    assert missing("2 Production\n...\n1 Previous 0.8362\n[main 1234567] Add it", came) == []
    assert missing("1 Production", came) == ["1 Production"]
    assert missing("1 Previous 0.8461", came) == ["1 Previous 0.8461"]
    assert missing("1 Previous 0.8361\n2 Production", came) == ["2 Production"]
    assert missing("[main 1234567] Add that", came) == ["[main 1234567] Add that"]
