"""The page of errors has every class that a user can meet."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator

import churn_lib
from churn_lib.settings import ChurnError
from tests.conftest import ROOT


def kinds(parent: type) -> Iterator[type]:
    """All classes below one."""
    for each in parent.__subclasses__():
        yield each
        yield from kinds(each)


def test_the_page_has_each_error_of_the_package_with_its_meaning() -> None:
    for each in pkgutil.walk_packages(churn_lib.__path__, "churn_lib."):
        importlib.import_module(each.name)
    cells = json.loads((ROOT / "nbs/reference/errors.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    page = "\n".join("".join(each["data"].get("text/markdown", ())) for each in outputs)
    own = {each for each in kinds(ChurnError) if each.__module__.startswith("churn_lib.")}
    assert len(own) > 30
    for each in own:
        place = each.__module__.removeprefix("churn_lib.")
        assert f"`{each.__name__}` | {place} | {inspect.getdoc(each)} |" in page, each
