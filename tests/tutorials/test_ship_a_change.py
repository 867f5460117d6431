"""The tutorial Ship a change, followed word for word on a fresh clone with the real data."""

from pathlib import Path

import pytest

from churn_lib import registry, settings
from churn_lib.serving.local import process
from tests.conftest import ROOT
from tests.tutorials.following import Checkout, Step, missing, steps

PAGE = ROOT / "nbs" / "tutorials" / "ship_a_change.ipynb"
DEFINITIONS = "nbs/lib/features/definitions.ipynb"


def together(found: list[Step]) -> list[tuple[str, list[Step]]]:
    """Steps in their order; cells that follow each other are one notebook."""
    made: list[tuple[str, list[Step]]] = []
    for step in found:
        if made and step.kind == made[-1][0] != "sh":
            made[-1][1].append(step)
        else:
            made.append((step.kind, [step]))
    return made


@pytest.mark.timeout(1_800)
def test_what_the_tutorial_shows_is_what_its_reader_gets(tmp_path: Path) -> None:
    place, found = Checkout(tmp_path / "clone"), steps(PAGE)
    assert {"sh", "python", "cell"} == {step.kind for step in found}
    differences = []
    try:
        for kind, group in together(found):
            sources, shown = [step.source for step in group], group[-1].shown
            came = ""
            if kind == "cell":
                came = place.execute(place.folder / "nbs" / "Untitled.ipynb", sources)
            elif kind == "python":
                place.add_cells(place.folder / DEFINITIONS, "## The contract", sources)
            else:
                came = place.run(sources[0])
            if wrong := missing(shown, came):
                differences.append("\n".join([f"$ {sources[-1]}", *wrong, "it showed:", came]))
    finally:
        process.stop(settings.load("local", place.folder / "settings.ini"))
    assert not differences, "\n\n".join(differences)
    models = registry.connect(settings.load("local", place.folder / "settings.ini"))
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
