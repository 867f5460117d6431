"""The inside of a job on Databricks: a stand-in for dbutils as strict as the real one."""

import json
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell

from churn_lib import job_context

STRICT = '''
import json
from types import SimpleNamespace


class InputWidgetNotDefined(Exception):
    """What Databricks raises for a widget nobody declared."""


class Widgets:
    def __init__(self, **passed):
        self.passed, self.declared = passed, {}

    def text(self, name, defaultValue, label=None):
        if not isinstance(name, str) or not isinstance(defaultValue, str):
            raise TypeError("widgets hold text")
        self.declared.setdefault(name, defaultValue)

    def get(self, name):
        if name in self.passed:
            return self.passed[name]
        if name not in self.declared:
            raise InputWidgetNotDefined(name)
        return self.declared[name]


class TaskValues:
    def __init__(self, **upstream):
        self.upstream, self.own = upstream, {}

    def set(self, *, key, value):
        if not isinstance(key, str):
            raise TypeError("key is text")
        text = json.dumps(value, allow_nan=False)
        if len(text.encode()) > 48 * 1024:
            raise ValueError("value is larger than 48 KiB")
        self.own[key] = value

    def get(self, *, taskKey, key, default=None, debugValue=None):
        values = self.upstream.get(taskKey, {})
        if key in values:
            return values[key]
        if default is None:
            raise ValueError(f"no value {key} of {taskKey}")
        return default


def make_dbutils(passed, upstream):
    task_values = TaskValues(**upstream)
    return SimpleNamespace(widgets=Widgets(**passed), jobs=SimpleNamespace(taskValues=task_values))
'''


def make_dbutils(passed: dict[str, str], upstream: dict[str, dict[str, Any]]) -> Any:
    """The stand-in, in this process."""
    namespace: dict[str, Any] = {}
    exec(STRICT, namespace)
    return namespace["make_dbutils"](passed, upstream)


def test_widgets_give_the_values_and_the_declaration_gives_the_type() -> None:
    cells = {
        "__annotations__": {"git_sha": str, "limit": int, "force": bool, "share": float},
        "git_sha": "",
        "limit": 3,
        "force": False,
        "share": 0.5,
        "dbutils": make_dbutils({"git_sha": "abc", "limit": "12", "force": "true"}, {}),
    }
    job = job_context.parameters(cells)
    assert (job.git_sha, job.limit, job.force, job.share) == ("abc", 12, True, 0.5)


def test_a_widget_of_the_wrong_type_is_named() -> None:
    cells = {
        "__annotations__": {"limit": int},
        "limit": 3,
        "dbutils": make_dbutils({"limit": "many"}, {}),
    }
    with pytest.raises(
        job_context.JobError, match="parameter limit = 'many' is not a whole number"
    ):
        job_context.parameters(cells)


@pytest.fixture
def on_databricks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A notebook shell that has dbutils, as on a cluster."""
    shell = InteractiveShell.instance()
    dbutils = make_dbutils({}, {"features": {"version": 4}})
    monkeypatch.setitem(shell.user_ns, "dbutils", dbutils)
    yield dbutils
    InteractiveShell.clear_instance()


def test_task_values_go_through_dbutils(on_databricks: Any) -> None:
    job_context.task_values.set("rows", 10)
    assert on_databricks.jobs.taskValues.own == {"rows": 10}
    assert job_context.task_values.get("features", "version") == 4
    assert job_context.task_values.get("features", "gone", default=0.5) == 0.5
    with pytest.raises(job_context.JobError, match="has set no value 'gone'"):
        job_context.task_values.get("features", "gone")


@pytest.mark.parametrize(
    ("value", "problem"), [(float("nan"), "not JSON"), ("x" * 49_152, "49154")]
)
def test_a_value_that_databricks_would_refuse_is_refused_first(
    on_databricks: Any, value: object, problem: str
) -> None:
    with pytest.raises(job_context.JobError, match=problem):
        job_context.task_values.set("rows", value)
    assert on_databricks.jobs.taskValues.own == {}


def test_a_real_job_notebook_takes_its_values_from_widgets(tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "nbs/jobs/02_train_and_register.ipynb"
    notebook = nbformat.read(source, as_version=4)
    number = next(
        n for n, cell in enumerate(notebook.cells) if "job_context.parameters" in cell.source
    )
    passed = {
        "git_sha": "abc",
        "as_of": "1998-05-01",
        "delta_feature_version": "9",
        "target": "dev",
    }
    stand_in = nbformat.v4.new_code_cell(f"{STRICT}\ndbutils = make_dbutils({passed!r}, {{}})")
    showing = nbformat.v4.new_code_cell("import json\nprint(json.dumps(vars(job), default=str))")
    notebook.cells = [stand_in, *notebook.cells[: number + 1], showing]
    nbformat.write(notebook, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", progress_bar=False, cwd=str(tmp_path)
    )
    assert json.loads(done.cells[-1].outputs[0].text) == {
        **passed,
        "delta_feature_version": 9,
        "cause": "",
        "rebuild": False,
        "rehearsal": True,  # as in a notebook that somebody runs there by hand
    }
