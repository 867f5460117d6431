"""The drawing of the jobs is of the bundle that runs."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from churn_lib import bundle
from tools import flow

SVG = "{http://www.w3.org/2000/svg}"


def texts(drawing: str) -> list[str]:
    return [str(each.text) for each in ElementTree.fromstring(drawing).iter(f"{SVG}text")]


def test_the_file_is_what_the_bundle_gives_and_names_every_job_and_task() -> None:
    read = bundle.load("production")
    drawing = flow.draw(read)
    assert flow.PATH.read_text() == drawing, "run `make prepare`"
    bodies = read.config["resources"]["jobs"]
    tasks = {t["task_key"] for b in bodies.values() for t in b["tasks"] if "notebook_task" in t}
    assert {*bodies} | tasks <= {*texts(drawing)}


def test_another_schedule_is_drawn_and_another_order_refused() -> None:
    read = bundle.load("production")
    jobs: dict[str, Any] = read.config["resources"]["jobs"]
    jobs["scoring_job"]["schedule"]["quartz_cron_expression"] = "0 30 5 * * ?"
    assert "every day at 05:30 UTC" in texts(flow.draw(read))
    jobs["monitoring_job"]["tasks"] = [
        each for each in jobs["monitoring_job"]["tasks"] if each["task_key"] != "validate"
    ]
    with pytest.raises(ValueError, match="draw that instead"):
        flow.draw(read)


def test_it_has_a_text_for_who_cannot_see_it_and_colours_for_the_dark() -> None:
    drawing = ElementTree.fromstring(Path(flow.PATH).read_text())
    assert drawing.get("role") == "img"
    assert drawing.findtext(f"{SVG}title") == flow.TEXT
    assert "prefers-color-scheme: dark" in str(drawing.findtext(f"{SVG}style"))
