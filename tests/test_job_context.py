"""What a job notebook sees: its parameters and task values, here and on Databricks."""

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import nbformat
import papermill
import pytest

from churn_lib import job_context
from churn_lib.bundle import run_plan
from churn_lib.bundle.plan import declared_parameters
from churn_lib.bundle.run import JobRun
from churn_lib.job_context import JobError
from tests.conftest import Project, after, notebook_task

NOTEBOOKS = sorted((Path(__file__).parents[1] / "nbs" / "jobs").glob("*.ipynb"))


class Widgets:
    """dbutils.widgets of a job run: values that were passed win over defaults."""

    def __init__(self, passed: dict[str, str]):
        self.passed = passed
        self.declared: dict[str, str] = {}

    def text(self, name: str, defaultValue: str, label: str | None = None) -> None:
        if not (type(name) is str and type(defaultValue) is str):
            raise TypeError(f"widgets hold text, got {name!r} = {defaultValue!r}")
        self.declared[name] = self.passed.get(name, defaultValue)

    def get(self, name: str) -> str:
        if name not in self.declared:
            raise RuntimeError(f"InputWidgetNotDefined: No input widget named {name} is defined")
        return self.declared[name]


class TaskValues:
    """dbutils.jobs.taskValues: keywords, JSON, 48 KiB, and None for `no default`."""

    def __init__(self, upstream: dict[str, dict[str, Any]]):
        self.upstream = upstream
        self.own: dict[str, Any] = {}

    def set(self, *, key: str, value: Any) -> None:
        text = json.dumps(value, allow_nan=False)
        if len(text.encode()) > 48 * 1024:
            raise ValueError("the JSON representation of the value exceeds 48 KiB")
        self.own[key] = json.loads(text)

    def get(self, *, taskKey: str, key: str, default: Any = None, debugValue: Any = None) -> Any:
        if key in self.upstream.get(taskKey, {}):
            return self.upstream[taskKey][key]
        if default is None:
            raise ValueError(f"no value with key {key} of task {taskKey}")
        return default


def make_dbutils(
    passed: dict[str, str] | None = None, upstream: dict[str, dict[str, Any]] | None = None
) -> Any:
    """A stand-in for the dbutils of a cluster."""
    inside = SimpleNamespace(taskValues=TaskValues(upstream or {}))
    return SimpleNamespace(widgets=Widgets(passed or {}), jobs=inside)


def namespace(source: str, **more: Any) -> dict[str, Any]:
    """The globals of a notebook whose parameters cell is `source`."""
    names: dict[str, Any] = {"__name__": "__main__", **more}
    exec(source, names)
    return names


# --- parameters ----------------------------------------------------------------------------------


@pytest.fixture
def outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_job_notebook_takes_every_parameter_from_its_widget_in_its_type(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    (source,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    declared = namespace(source)["__annotations__"]
    samples = {str: "passed", int: "17", float: "0.25", bool: "true", date | None: "2024-02-29"}
    passed = {name: samples[kind] for name, kind in declared.items()}
    job = job_context.parameters(namespace(source, dbutils=make_dbutils(passed)))
    converted = {str: "passed", int: 17, float: 0.25, bool: True, date | None: date(2024, 2, 29)}
    assert vars(job) == {name: converted[kind] for name, kind in declared.items()}
    (asking,) = [cell for cell in cells if "job_context.parameters(globals())" in cell.source]
    assert cells.index(asking) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermill_and_the_plan_read_the_same_parameters_from_a_job_notebook(path: Path) -> None:
    declared = declared_parameters(path)
    assert list(papermill.inspect_notebook(path)) == list(declared)
    assert None not in declared.values()


def test_a_widget_that_was_not_passed_has_the_default_of_the_cell() -> None:
    dbutils = make_dbutils({"limit": "12"})
    source = "limit: int = 3\nshare: float = 0.5\nforce: bool = True\nday: date | None = None"
    job = job_context.parameters(namespace(source, dbutils=dbutils, date=date))
    assert vars(job) == {"limit": 12, "share": 0.5, "force": True, "day": None}
    assert dbutils.widgets.declared["day"] == ""
    assert all(type(value) is str for value in dbutils.widgets.declared.values())


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("int", "-4", -4),
        ("int", "+17", 17),
        ("int", "007", 7),
        ("float", "1e-3", 0.001),
        ("float", ".5", 0.5),
        ("float", "-5.", -5.0),
        ("float", "2", 2.0),
        ("bool", "TRUE", True),
        ("bool", "false", False),
        ("str", "007", "007"),
        ("str", "", ""),
        ("str", "two\nlines", "two\nlines"),
        ("date", "2024-02-29", date(2024, 2, 29)),
        ("date", "1900-01-01", date(1900, 1, 1)),
        ("date | None", "1998-05-01", date(1998, 5, 1)),
        ("date | None", "", None),
        ("Optional[date]", "1998-05-01", date(1998, 5, 1)),
        ("Optional[date]", "", None),
        ("int | None", "", None),
        ("int | None", "3", 3),
    ],
)
def test_text_becomes_the_declared_type(kind: str, text: str, value: object) -> None:
    job = job_context.parameters(namespace(f"x: {kind} = {text!r}", date=date, Optional=Optional))
    assert (type(job.x), job.x) == (type(value), value)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("x: int = 4", 4),
        ("x: float = 4", 4.0),
        ("x: bool = True", True),
        ("x: str = 1234567", "1234567"),  # what papermill makes of a commit of digits alone
        ("x: date = date(1998, 5, 1)", date(1998, 5, 1)),
        ("x: date | None = None", None),
    ],
)
def test_a_value_of_python_is_taken_as_it_is_where_it_fits(source: str, value: object) -> None:
    job = job_context.parameters(namespace(source, date=date))
    assert (type(job.x), job.x) == (type(value), value)


DOES_NOT_FIT = {
    "int": [
        "1.5",
        "1.0",
        "1e3",
        "",
        " 5 ",
        "1_000",
        "٣",
        "0x10",
        "9" * 30,
        "9" * 5000,
        "true",
        "five",
    ],
    "float": [
        "high",
        "nan",
        "inf",
        "-Infinity",
        "1e999",
        "1_0.5",
        "0,5",
        "",
        " 0.5",
        "٠.٥",
        "1e",
        ".",
    ],
    "bool": ["yes", "1", "0", "on", "", " true", "truee", "None"],
    "date": [
        *("soon", "", "1998-5-1", "19980501", "1998-02-30", "1998-13-01", "1998-05-01T00:00:00"),
        *("0000-01-01", "0001-01-01", "1899-12-31", "2201-01-01", "9999-12-31", "99999-01-01"),
        *("1998-W18-5", "01.05.1998", "05/01/1998", "1998-05-01 ", " 1998-05-01", "١٩٩٨-٠٥-٠١"),
        *("1998-05-01\n", "-1998-05-01", "1998–05–01"),
    ],
}


@pytest.mark.parametrize("kind", DOES_NOT_FIT)
def test_text_that_does_not_fit_is_refused_with_the_parameter_and_the_value(kind: str) -> None:
    nouns = {"int": "a whole number", "float": "a number", "bool": "a bool", "date": "a date"}
    for text in DOES_NOT_FIT[kind]:
        with pytest.raises(JobError) as caught:
            job_context.parameters(namespace(f"x: {kind} = {text!r}", date=date))
        message = str(caught.value)
        assert message.startswith(f"parameter x = {text!r}"[:90])
        assert f" is not {nouns[kind]}: " in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("x: int = True", "parameter x = True is not a whole number: write digits, such as 12"),
        ("x: int = 1.9", "parameter x = 1.9 is not a whole number"),
        ("x: float = False", "parameter x = False is not a number"),
        ("x: float = float('nan')", "parameter x = nan is not a number"),
        ("x: bool = 1", "parameter x = 1 is not a bool: write true or false"),
        ("x: str = None", "parameter x = None is not text"),
        ("x: date = None", "parameter x = None is not a date"),
        ("x: date = 19980501", "parameter x = 19980501 is not a date"),
        ("import datetime\nx: date = datetime.datetime(1998, 5, 1)", "is not a date"),
        ("x: date | None = 'soon'", "'soon' is not a date: write YYYY-MM-DD, or leave it empty"),
        ("x: date | None = '1998-02-30'", "is not a date: day is out of range for month"),
        ("x: list = []", "parameter x is declared <class 'list'>; use str, int, float, bool, date"),
        ("x: int | str = 1", "parameter x is declared int | str; use"),
        ("x = 1", "no typed parameters"),
    ],
)
def test_a_value_that_does_not_fit_is_named(source: str, detail: str) -> None:
    with pytest.raises(JobError) as caught:
        job_context.parameters(namespace(source, date=date))
    assert detail in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["soon", "1998-02-30", " 1998-05-01"])
def test_a_widget_with_a_date_that_is_none_is_refused_on_databricks_too(text: str) -> None:
    dbutils = make_dbutils({"as_of": text})
    with pytest.raises(JobError, match=f"parameter as_of = '{text}' is not a date"):
        job_context.parameters(namespace("as_of: date | None = None", dbutils=dbutils, date=date))


def test_an_empty_git_sha_is_the_commit_and_has_to_be_given_elsewhere(
    project: Project, monkeypatch: pytest.MonkeyPatch, outside_git: Path
) -> None:
    source = "git_sha: str = ''"
    with pytest.raises(JobError, match="git_sha is empty and this is no git checkout"):
        job_context.parameters(namespace(source))
    assert job_context.parameters({**namespace(source), "git_sha": "abc"}).git_sha == "abc"
    commit = project.commit()
    monkeypatch.chdir(project.root)
    assert job_context.parameters(namespace(source)).git_sha == commit


# --- task values -----------------------------------------------------------------------------------


@pytest.fixture
def on_databricks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A notebook shell that has dbutils, as on a cluster."""
    upstream = {"before": {"number": 0, "flag": False, "parts": [1, {"a": None}]}}
    dbutils = make_dbutils(upstream=upstream)
    shell = SimpleNamespace(user_ns={"dbutils": dbutils})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    return dbutils


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The same task values, as a run on this machine keeps them."""
    monkeypatch.setenv("CHURN_TASK_VALUES", str(tmp_path))
    monkeypatch.setenv("CHURN_TASK_KEY", "now")
    values = {"number": 0, "flag": False, "parts": [1, {"a": None}]}
    job_context.write_values(tmp_path, "before", values)
    return tmp_path


@pytest.fixture(params=["here", "on_databricks"])
def own_values(request: pytest.FixtureRequest) -> Callable[[], dict[str, Any]]:
    """What the task has set, wherever it runs."""
    place = request.getfixturevalue(request.param)
    if request.param == "here":
        return lambda: job_context.read_values(place, "now")
    return lambda: place.jobs.taskValues.own


@pytest.mark.parametrize(
    "value", [0, -1.5, "", "déjà vu", True, None, [], [1, "a", None], {"a": {"b": [1]}}]
)
def test_a_value_is_kept_as_the_json_it_is(own_values: Callable[[], Any], value: object) -> None:
    job_context.task_values.set("k", "old")
    job_context.task_values.set("other", 1)
    job_context.task_values.set("k", value)
    assert own_values() == {"k": value, "other": 1}


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ({1, 2}, "task value k is not JSON: Object of type set"),
        (b"x", "task value k is not JSON"),
        (float("inf"), "task value k is not JSON"),
        ("x" * (48 * 1024 - 1), "task value k has 49153 bytes, at most 49152 are allowed"),
    ],
)
def test_a_value_that_cannot_be_handed_on_is_refused_everywhere(
    own_values: Callable[[], Any], value: object, detail: str
) -> None:
    with pytest.raises(JobError) as caught:
        job_context.task_values.set("k", value)
    assert detail in str(caught.value)
    assert own_values() == {}


def test_a_value_may_be_exactly_48_kib_large(own_values: Callable[[], Any]) -> None:
    job_context.task_values.set("k", "x" * (48 * 1024 - 2))
    assert len(json.dumps(own_values()["k"])) == 48 * 1024


@pytest.mark.parametrize("key", ["number", "flag", "parts"])
def test_a_value_of_an_earlier_task_wins_over_the_default(
    own_values: Callable[[], Any], key: str
) -> None:
    expected = {"number": 0, "flag": False, "parts": [1, {"a": None}]}
    assert job_context.task_values.get("before", key) == expected[key]
    assert job_context.task_values.get("before", key, default="default") == expected[key]


@pytest.mark.parametrize("default", ["text", 0, False, [], None])
@pytest.mark.parametrize("task_key", ["before", "nobody"])
def test_an_absent_value_is_the_default_even_when_that_is_none(
    own_values: Callable[[], Any], task_key: str, default: object
) -> None:
    assert job_context.task_values.get(task_key, "gone", default=default) == default


@pytest.mark.parametrize("task_key", ["before", "nobody"])
def test_an_absent_value_without_a_default_is_named(
    own_values: Callable[[], Any], task_key: str
) -> None:
    with pytest.raises(JobError, match=f"task {task_key} has set no value 'gone'"):
        job_context.task_values.get(task_key, "gone")


def test_outside_a_job_values_go_nowhere_and_come_from_the_default() -> None:
    job_context.task_values.set("k", 1)
    assert job_context.task_values.get("before", "k", default=2) == 2
    with pytest.raises(JobError, match="pass a default"):
        job_context.task_values.get("before", "k")
    with pytest.raises(JobError, match="not JSON"):
        job_context.task_values.set("k", {1})


# --- in real kernels -----------------------------------------------------------------------------------

SHOW = """
from churn_lib import job_context
job = job_context.parameters(globals())
for name, value in vars(job).items():
    job_context.task_values.set(name, value)
"""


@pytest.fixture(scope="module")
def done(make_project: Callable[[str], Project]) -> tuple[Project, JobRun]:
    """Values on their way through two jobs, and a notebook that believes it is on Databricks."""
    project = make_project("context")
    project.notebook(
        "first",
        "from churn_lib import job_context",
        "job_context.task_values.set('number', 3)\njob_context.task_values.set('flag', True)\n"
        "job_context.task_values.set('text', 'déjà {vu}')\njob_context.task_values.set('parts', [1, {'a': None}])",
        kernelspec={"name": "gone", "display_name": "Gone", "language": "python"},
    )
    project.notebook(
        "second",
        SHOW,
        parameters="number: int = 0\nflag: bool = False\ntext: str = ''\nparts: str = ''\n"
        "written: str = ''",
    )
    project.notebook(
        "third",
        "from churn_lib import job_context",
        "job_context.task_values.set('seen', job_context.task_values.get('first', 'number', default='none'))",
        parameters="number: str = ''",
    )
    project.notebook(
        "cloud",
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from tests.test_job_context import make_dbutils\n"
        "dbutils = make_dbutils({'limit': '12'}, {'first': {'number': 44}})",
        SHOW,
        "job_context.task_values.set('number', job_context.task_values.get('first', 'number'))\n"
        "open('cloud.json', 'w').write(__import__('json').dumps(dbutils.jobs.taskValues.own))",
        parameters="limit: int = 3\nday: str = 'monday'",
    )
    references = {name: f"{{{{tasks.first.values.{name}}}}}" for name in ("number", "flag", "text")}
    base = {**references, "parts": "{{tasks.first.values.parts}}", "written": True}
    reference = {"number": "{{tasks.first.values.number}}"}
    inner = {
        "parameters": [{"name": "number", "default": ""}],
        "tasks": [notebook_task("first_inside", "third")],
    }
    condition = {"op": "EQUAL_TO", "left": "{{tasks.first.values.flag}}", "right": True}
    nested = {"job_id": "${resources.jobs.inner.id}", "job_parameters": reference}
    project.write(
        {
            "job": [
                notebook_task("first"),
                notebook_task("second", base_parameters=base, depends_on=after("first")),
                notebook_task("third", base_parameters={}, depends_on=after("second")),
                notebook_task("cloud"),
                {"task_key": "is_set", "depends_on": after("first"), "condition_task": condition},
                {"task_key": "nested", "depends_on": after("first"), "run_job_task": nested},
            ],
            "inner": inner,
        }
    )
    return project, run_plan(project.plan("job"), project.runs)


def values(done: tuple[Project, JobRun], task_key: str) -> dict[str, Any]:
    (task,) = [task for task in done[1].tasks if task.task_key == task_key]
    assert task.state == "SUCCESS", task.error
    return task.values


def test_references_reach_the_notebook_as_text_and_its_types_bring_them_back(
    done: tuple[Project, JobRun],
) -> None:
    sent = {"number": 3, "flag": True, "text": "déjà {vu}", "parts": [1, {"a": None}]}
    assert values(done, "first") == sent
    got = values(done, "second")
    assert {name: got[name] for name in ("number", "flag", "text")} == {
        name: sent[name] for name in ("number", "flag", "text")
    }
    assert json.loads(got["parts"]) == sent["parts"]


def test_a_true_in_yaml_is_the_text_that_databricks_makes_of_it(
    done: tuple[Project, JobRun],
) -> None:
    assert values(done, "second")["written"] == "true"
    assert values(done, "is_set") == {"outcome": "true"}


def test_a_notebook_may_ask_for_values_of_any_earlier_task_of_its_job_only(
    done: tuple[Project, JobRun],
) -> None:
    assert values(done, "third") == {"seen": 3}
    record = done[0].record("inner")
    assert record["run_id"] == values(done, "nested")["run_id"]
    assert record["parameters"] == {"number": "3"}
    assert record["tasks"][0]["values"] == {"seen": "none"}


def test_one_task_alone_still_finds_the_values_of_every_task_before_it(
    done: tuple[Project, JobRun],
) -> None:
    alone = run_plan(done[0].plan("job", only="third"), done[0].runs)
    assert [(task.state, task.values) for task in alone.tasks] == [("SUCCESS", {"seen": 3})]


def test_with_dbutils_in_the_kernel_widgets_and_its_task_values_are_used(
    done: tuple[Project, JobRun],
) -> None:
    assert values(done, "cloud") == {}
    own = json.loads((done[0].root / "cloud.json").read_text())
    assert own == {"limit": 12, "day": "monday", "number": 44}
