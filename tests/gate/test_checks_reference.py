"""The page of the gate's checks has every check, and every setting of theirs."""

import inspect
import json
from functools import partial
from typing import Any

import yaml

from churn_lib import settings
from churn_lib.gate import checks
from churn_lib.gate.checks import CHECKS
from tests.conftest import ROOT

PAGE = ROOT / "nbs/reference/gate_checks.ipynb"
KNOWN: dict[str, Any] = yaml.safe_load(PAGE.with_suffix(".yml").read_text())


def shown() -> dict[str, str]:
    """Check to its section of the page."""
    outputs = [o for each in json.loads(PAGE.read_text())["cells"] for o in each.get("outputs", ())]
    text = "".join("".join(o["data"].get("text/markdown", ())) for o in outputs)
    sections = (each.partition("\n") for each in f"\n{text}".split("\n## ")[1:])
    return {name: section for name, _, section in sections}


def test_the_page_has_the_checks_in_their_order() -> None:
    names = [each.name for each in CHECKS]
    assert list(KNOWN) == names
    assert list(shown()) == names


def test_the_page_has_each_question_and_each_bound_as_it_is() -> None:
    sections, now = shown(), dict(settings.load("local", ROOT / "settings.ini").flat())
    for each in CHECKS:
        function = each.measure.func if isinstance(each.measure, partial) else each.measure
        assert (inspect.getdoc(function) or "?").rstrip(".") in sections[each.name]
        for key in KNOWN[each.name].get("settings", ()):
            assert f"`{key}` = {now[key] or 'none'}" in sections[each.name]


def test_no_setting_of_the_gate_that_a_check_reads_is_left_out() -> None:
    """`case.settings.gate.NAME` anywhere in the checks is on the page."""
    source = inspect.getsource(checks)
    named = {key for each in KNOWN.values() for key in each.get("settings", ())}
    every = set(dict(settings.load("local", ROOT / "settings.ini").flat()))
    read = {key for key in every if key.startswith("gate.") and key.removeprefix("gate.") in source}
    assert read - named - {"gate.advisory"} == set()
