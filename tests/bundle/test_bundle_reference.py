"""The page of jobs and variables says what the bundle is now."""

import json

import papermill
import pytest

from churn_lib import bundle
from churn_lib.bundle.files import dig, read_yaml
from tests.conftest import ROOT

JOBS = bundle.load("production", ROOT).config["resources"]["jobs"]
VARIABLES = read_yaml(ROOT / "databricks.yml")["variables"]


def page() -> str:
    """All tables of the page, as Markdown."""
    cells = json.loads((ROOT / "nbs/reference/bundle.ipynb").read_text())["cells"]
    outputs = [output for each in cells for output in each.get("outputs", ())]
    return "\n".join("".join(each["data"].get("text/markdown", ())) for each in outputs)


def rows(text: str) -> dict[str, list[str]]:
    """First column to the others."""
    cells = (line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `"))
    return {each[0].strip(" `"): [cell.strip() for cell in each[1:]] for each in cells}


@pytest.mark.parametrize("name", sorted(JOBS))
def test_the_page_has_each_task_and_parameter_of_the_job(name: str) -> None:
    body = JOBS[name]
    section = page().partition(f"### {name}\n")[2].partition("\n### ")[0]
    found = rows(section)
    for task in body["tasks"]:
        path = dig(task, "notebook_task", "notebook_path")
        job = dig(task, "run_job_task", "job_id")
        assert (path or job or "whether").split("nbs/")[-1] in found[task["task_key"]][0]
    notebooks = {dig(each, "notebook_task", "notebook_path") for each in body["tasks"]} - {None}
    known = [papermill.inspect_notebook(str(ROOT / each)) for each in notebooks]
    for each in body["parameters"]:
        default, meaning = found[each["name"]]
        assert each["name"] == "git_sha" or default.strip("`") == each["default"]
        helps = {one[each["name"]]["help"] for one in known if each["name"] in one}
        assert meaning and meaning in helps, each["name"]


def test_the_page_has_each_variable_with_its_meaning_and_default() -> None:
    found = rows(page())
    for name, each in VARIABLES.items():
        meaning, default, _ = found[name]
        assert meaning == each["description"]
        assert (default == "") == ("default" not in each)


def test_every_parameter_of_a_job_notebook_has_a_comment_that_papermill_shows() -> None:
    for path in sorted((ROOT / "nbs/jobs").glob("0*.ipynb")):
        for name, each in papermill.inspect_notebook(str(path)).items():
            assert each["help"], f"{path.name}: {name}"
