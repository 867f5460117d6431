"""What is refused before anything starts, and which tasks run after what."""

from datetime import date
from itertools import permutations
from typing import Any

import pytest

from churn_lib import bundle
from churn_lib.bundle import PlanError, make_plan
from churn_lib.bundle.plan import (
    circle,
    compare,
    decide,
    declared_parameters,
    job_graph,
    reachable,
    task_graph,
)
from churn_lib.settings import ChurnError
from tests.conftest import Project, after, bad, good, notebook_task


@pytest.fixture
def project(project: Project) -> Project:
    project.notebook("echo", "text", parameters="text: str = ''\nnumber = 0")
    return project


def refusal(project: Project, jobs: dict[str, Any], key: str = "job", **given: str) -> str:
    """What is said when a job is refused; nothing of a run is left."""
    project.write(jobs)
    with pytest.raises(ChurnError) as caught:
        project.plan(key, **given)
    assert "\n" not in str(caught.value)
    assert not project.runs.exists()
    return str(caught.value)


def echo(task_key: str = "a", **base: Any) -> dict[str, Any]:
    """A task that runs the notebook echo."""
    return notebook_task(task_key, "echo", base_parameters=base)


def condition(left: str, task_key: str = "c", **more: Any) -> dict[str, Any]:
    """A condition on `left`."""
    body = {"op": "EQUAL_TO", "left": left, "right": "1"}
    return {"task_key": task_key, "condition_task": body, **more}


def run_job(key: str = "inner", task_key: str = "r", **parameters: Any) -> dict[str, Any]:
    """A task that runs another job of the bundle."""
    reference = f"${{resources.jobs.{key}.id}}"
    return {
        "task_key": task_key,
        "run_job_task": {"job_id": reference, "job_parameters": parameters},
    }


# --- order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "circle"),
    [
        ([good("a", depends_on=after("a"))], {"a"}),
        (
            [
                good("a", depends_on=after("c")),
                good("b", depends_on=after("a")),
                good("c", depends_on=after("b")),
                good("d", depends_on=after("c")),
            ],
            {"a", "b", "c"},
        ),
    ],
)
def test_tasks_that_wait_for_each_other_are_named(
    project: Project, tasks: list[dict[str, Any]], circle: set[str]
) -> None:
    message = refusal(project, {"job": tasks})
    place, _, names = message.partition(": tasks wait for each other: ")
    assert place == "job"
    assert set(names.split(" -> ")) == circle


def test_every_task_follows_those_it_depends_on_however_they_are_written(project: Project) -> None:
    tasks = [
        good("a"),
        good("b", depends_on=after("a")),
        good("c", depends_on=after("a")),
        good("d", depends_on=after("b", "c")),
    ]
    for written in permutations(tasks):
        project.write({"job": list(written)})
        order = [step.task.task_key for step in project.plan("job").steps]
        assert (order[0], sorted(order[1:3]), order[3]) == ("a", ["b", "c"], "d")


# --- tasks -----------------------------------------------------------------------------------------

KINDS = ("spark_python_task", "for_each_task", "python_wheel_task", "sql_task", "dbt_task")


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_kind_that_cannot_run_here_is_named(project: Project, kind: str) -> None:
    jobs = {"job": [good("first"), {"task_key": "a", kind: {"x": "y"}}]}
    assert refusal(project, jobs).startswith(f"job.a: {kind} cannot run here; notebook_task, ")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (bad("a", run_if="ALWAYS"), "run_if 'ALWAYS' is unknown"),
        (
            {"task_key": "a", "condition_task": {"op": "EQUAL_TO"}},
            "condition_task lacks left, right",
        ),
        (
            {"task_key": "a", "condition_task": {"op": "==", "left": "1", "right": "1"}},
            "op '==' is unknown; use one of EQUAL_TO",
        ),
        ({"task_key": "a", "run_job_task": {}}, "run_job_task lacks job_id"),
        ({"task_key": "a", "notebook_task": None}, "notebook_path '' is not an .ipynb file"),
        (notebook_task("a", "folder/.."), "no such notebook"),
    ],
)
def test_a_task_that_is_not_whole_is_named(
    project: Project, task: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(project, {"job": [task]})


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("maybe", "job.b: outcome 'maybe' is neither 'true' nor 'false'"),
        ("true", None),
        (True, None),
    ],
)
def test_an_outcome_is_true_or_false(project: Project, outcome: Any, expected: str | None) -> None:
    jobs = {"job": [good("a"), good("b", depends_on=after("a", outcome=outcome))]}
    if expected:
        assert refusal(project, jobs) == expected
    else:
        project.write(jobs)
        assert len(project.plan("job").steps) == 2


# --- parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("a: int = 1  # one\nb = 'x'", ["a", "b"]),
        ("'''A text.'''\na: str", ["a"]),
        ("a = b = 1", ["a", "b"]),
        ("import os\nos.x = 1\nfor i in (): pass", []),
    ],
)
def test_parameters_are_what_the_tagged_cell_assigns(
    project: Project, source: str, names: list[str]
) -> None:
    path = project.notebook("some", "later = 1", parameters=source)
    assert list(declared_parameters(path)) == names


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("from datetime import date\na: date | None = None", date | None),
        ("from typing import Optional\na: Optional[date] = None", date | None),
        ("import typing\na: typing.Optional[datetime.date] = None", date | None),
        ("import datetime\na: datetime.date = ''", date),
        ("a: int = 1", int),
        ("a: float|None = 1", float | None),
        ("a = 1", None),
        ("a: list[int] = []", None),
        ("a: None = None", None),
        ("a: int | str = 1", None),
        ("a: Optional[list] = None", None),
        ("a: 'Some' = 1", None),
    ],
)
def test_the_type_of_a_parameter_is_read_from_the_cell_without_running_it(
    project: Project, source: str, kind: Any
) -> None:
    path = project.notebook("some", parameters=source)
    assert declared_parameters(path) == {"a": kind}


TYPED = "from datetime import date\nfrom typing import Optional\nday: Optional[date] = None\nnumber: int = 0\nforce: bool = False"


@pytest.mark.parametrize("value", ["soon", "1998-02-30", "19980501"])
def test_a_value_that_does_not_fit_is_refused_before_the_run_wherever_it_comes_from(
    project: Project, value: str
) -> None:
    project.notebook("typed", parameters=TYPED)
    expected = f"parameter day = '{value}' is not a date: "
    task = notebook_task("a", "typed", base_parameters={})
    given = {"parameters": [{"name": "day", "default": ""}], "tasks": [task]}
    assert refusal(project, {"job": given}, day=value).startswith(f"job.a: {expected}")
    default = {"parameters": [{"name": "day", "default": value}], "tasks": [task]}
    assert refusal(project, {"job": default}).startswith(f"job.a: {expected}")
    base = notebook_task("a", "typed", base_parameters={"day": value})
    assert refusal(project, {"job": [base]}).startswith(f"job.a: {expected}")
    nested = {"job": [run_job(day=value)], "inner": given}
    assert refusal(project, nested).startswith(f"inner.a: {expected}")
    handed_on = {
        "parameters": [{"name": "when", "default": ""}],
        "tasks": [run_job(day="{{job.parameters.when}}")],
    }
    assert refusal(project, {"job": handed_on, "inner": given}, when=value).startswith(
        f"inner.a: {expected}"
    )


def test_values_of_the_declared_types_are_taken(project: Project) -> None:
    project.notebook("typed", parameters=TYPED)
    base = {"number": 5, "force": True}  # YAML's own
    parameters = [{"name": "day", "default": ""}]
    tasks = [notebook_task("a", "typed", base_parameters=base)]
    project.write({"job": {"parameters": parameters, "tasks": tasks}})
    assert project.plan("job", day="1998-05-01").parameters == {"day": "1998-05-01"}
    assert project.plan("job").parameters == {"day": ""}


def test_a_job_parameter_hides_a_base_parameter_that_would_not_fit(project: Project) -> None:
    project.notebook("typed", parameters=TYPED)
    parameters = [{"name": "day", "default": "1998-05-01"}]
    project.write(
        {
            "job": {
                "parameters": parameters,
                "tasks": [notebook_task("a", "typed", base_parameters={"day": "x"})],
            }
        }
    )
    assert project.plan("job").parameters == {"day": "1998-05-01"}


def test_a_notebook_without_the_tag_takes_no_parameter(project: Project) -> None:
    project.notebook("untagged", "text: str = ''")
    message = refusal(
        project, {"job": [notebook_task("a", "untagged", base_parameters={"text": ""})]}
    )
    assert message == "job.a: untagged.ipynb declares no parameter 'text'; it declares none"


def test_a_parameters_cell_with_a_magic_is_refused_with_the_notebook(project: Project) -> None:
    path = project.notebook("magic", parameters="%pip install x")
    message = refusal(project, {"job": [notebook_task("a", "magic")]})
    assert message.startswith(f"{path}: the parameters cell is not plain Python")


def test_a_job_parameter_wins_over_a_base_parameter_and_a_given_one_over_its_default(
    project: Project,
) -> None:
    parameters = [{"name": "text", "default": "of the job"}]
    project.write({"job": {"parameters": parameters, "tasks": [echo(text="of the task")]}})
    assert project.plan("job").parameters == {"text": "of the job"}
    assert project.plan("job", text="given").parameters == {"text": "given"}


def test_base_parameters_as_a_list_are_refused(project: Project) -> None:
    task = {"task_key": "a", "notebook_task": {"notebook_path": "echo.ipynb"}}
    task["notebook_task"]["base_parameters"] = ["text"]
    assert "base_parameters" in refusal(project, {"job": [task]})


def test_an_empty_git_sha_is_refused_outside_git_wherever_it_would_be_used(
    project: Project,
) -> None:
    sha = {"parameters": [{"name": "git_sha", "default": "${bundle.git.commit}"}]}
    jobs = {"job": [run_job()], "inner": {**sha, "tasks": [good("a")]}}
    assert "pass --param git_sha=" in refusal(project, jobs)
    assert "pass --param git_sha=" in refusal(project, jobs, "inner", git_sha="")
    assert project.plan("inner", git_sha="abc").git_sha == "abc"


# --- references ----------------------------------------------------------------------------------------

NOWHERE = (
    "{{job.id}}",
    "{{job.run_id.x}}",
    "{{tasks.first.values}}",
    "{{tasks.first.result_state}}",
    "{{tasks.first.values.a.b}}",
    "{{secrets.scope.key}}",
    "{{input}}",
    "{{}}",
)


@pytest.mark.parametrize("place", ["base_parameters", "condition", "job_parameters", "default"])
@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        *((reference, "is not a reference that can be filled in here") for reference in NOWHERE),
        ("{{job.parameters.nope}}", "names no parameter of the job"),
        ("{{tasks.last.values.k}}", "last is not a task that ends before this one"),
        ("{{tasks.a.values.k}}", "a is not a task that ends before this one"),
        ("{{tasks.gone.values.k}}", "gone is not a task that ends before this one"),
    ],
)
def test_a_reference_that_cannot_be_filled_in_is_quoted(
    project: Project, place: str, reference: str, expected: str
) -> None:
    task, parameters = echo(), []
    if place == "base_parameters":
        task = echo(text=f"before {reference} behind")
    elif place == "condition":
        task = condition(reference, "a")
    elif place == "job_parameters":
        task = run_job(task_key="a", text=reference)
    else:
        parameters, expected = [{"name": "text", "default": reference}], "cannot be filled in here"
    inner = {"parameters": [{"name": "text", "default": ""}], "tasks": [echo()]}
    tasks = [
        good("first"),
        {**task, "depends_on": after("first")},
        good("last", depends_on=after("a")),
    ]
    message = refusal(project, {"job": {"parameters": parameters, "tasks": tasks}, "inner": inner})
    assert reference in message
    assert expected in message
    assert message.startswith("job" if place == "default" else "job.a: ")


def test_values_may_come_from_any_task_that_ends_before(project: Project) -> None:
    tasks = [
        good("a"),
        good("b", depends_on=after("a")),
        {**echo("c", text="{{ tasks.a.values.k }}"), "depends_on": after("b")},
    ]
    project.write({"job": tasks})
    assert len(project.plan("job").steps) == 3


# --- jobs that run jobs --------------------------------------------------------------------------------


def test_a_nested_job_is_planned_with_its_parameters(project: Project) -> None:
    inner = {"parameters": [{"name": "text", "default": "x"}], "tasks": [echo()]}
    project.write({"job": [run_job(text=7)], "inner": inner})
    nested = project.plan("job").steps[0].job
    assert nested is not None
    assert (nested.job, nested.parameters) == ("inner", {"text": "7"})


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ({"job": [run_job(nope="1")], "inner": [good("a")]}, "inner has no parameter 'nope'"),
        (
            {"job": [run_job()], "inner": [notebook_task("a", "gone")]},
            "gone.ipynb: no such notebook",
        ),
        (
            {"job": [{"task_key": "a", "run_job_task": {"job_id": 123}}]},
            "has no job '123'; it has job",
        ),
        (
            {"job": [run_job("two")], "two": [run_job("three")], "three": [run_job("two")]},
            "three.r: jobs run each other: job -> two -> three -> two",
        ),
    ],
)
def test_a_nested_job_that_cannot_run_refuses_the_outer_one(
    project: Project, jobs: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(project, jobs)


def test_one_job_may_be_run_twice(project: Project) -> None:
    project.write({"job": [run_job(task_key="r"), run_job(task_key="s")], "inner": [good("a")]})
    assert [step.job.job for step in project.plan("job").steps if step.job] == ["inner", "inner"]


# --- one task alone ------------------------------------------------------------------------------------


def test_one_task_alone_is_chosen_after_the_whole_job_was_checked(project: Project) -> None:
    project.write({"job": [good("a"), good("b", depends_on=after("a"))]})
    assert [step.task.task_key for step in project.plan("job", only="b").steps] == ["b"]
    with pytest.raises(PlanError, match=r"^job has no task 'c'; it has a, b$"):
        project.plan("job", only="c")
    project.write({"job": [good("a"), notebook_task("b", "gone")]})
    with pytest.raises(PlanError, match="no such notebook"):
        project.plan("job", only="a")


# --- run_if --------------------------------------------------------------------------------------------

RUN_IF = (
    "ALL_SUCCESS",
    "AT_LEAST_ONE_SUCCESS",
    "NONE_FAILED",
    "ALL_DONE",
    "AT_LEAST_ONE_FAILED",
    "ALL_FAILED",
)
STATE = {"S": "SUCCESS", "F": "FAILED", "T": "TIMEDOUT", "K": "SKIPPED", "C": "CANCELED"}
STATES = {**STATE, "X": "EXCLUDED"}
VERDICT = {"+": "RUN", "-": "SKIPPED", "x": "EXCLUDED"}

# One column for each run_if above: + runs, - is skipped, x is excluded.
TABLE = {
    "S": "++++xx",
    "SS": "++++xx",
    "F": "---+++",
    "FF": "---+++",
    "T": "---+++",
    "K": "---+++",
    "C": "---+++",
    "FTK": "---+++",
    "SF": "-+-++x",
    "SK": "-+-++x",
    "SX": "++++xx",
    "SFX": "-+-++x",
    "X": "xxxxxx",
    "XX": "xxxxxx",
}


@pytest.mark.parametrize("states", TABLE)
def test_every_run_if_decides_as_the_table_of_databricks_says(states: str) -> None:
    expected = [VERDICT[sign] for sign in TABLE[states]]
    for order in permutations(states):
        given = [STATES[sign] for sign in order]
        assert [decide(run_if, given) for run_if in RUN_IF] == expected


@pytest.mark.parametrize(
    "op", ["GREATER_THAN", "GREATER_THAN_OR_EQUAL", "LESS_THAN", "LESS_THAN_OR_EQUAL"]
)
@pytest.mark.parametrize(("left", "right"), [("many", "1"), ("1", ""), ("[1]", "1")])
def test_an_order_of_what_is_no_number_is_refused_with_both_sides(
    op: str, left: str, right: str
) -> None:
    with pytest.raises(PlanError) as caught:
        compare(op, left, right)
    assert str(caught.value) == f"{op} compares numbers, got {left!r} and {right!r}"


def test_a_plan_is_made_from_the_bundle_alone(project: Project) -> None:
    project.write({"job": {"name": "The job", "timeout_seconds": 60, "tasks": [echo(number=5)]}})
    plan = make_plan(project.plan("job").bundle, "job")
    assert (plan.job, plan.name, plan.timeout_seconds) == ("job", "The job", 60)
    assert plan.steps[0].notebook == project.root / "echo.ipynb"
    assert not project.runs.exists()


# --- the graph ---------------------------------------------------------------------------------------


def test_what_is_reached_includes_a_member_only_within_a_circle() -> None:
    graph = {"a": [], "b": ["a"], "c": ["b", "a"], "x": ["y"], "y": ["x", "gone"]}
    assert {name: reachable(graph, name) for name in ("a", "c", "x", "none")} == {
        "a": set(),
        "c": {"a", "b"},
        "x": {"x", "y", "gone"},
        "none": set(),
    }
    assert circle(graph) in (["x", "y", "x"], ["y", "x", "y"])
    assert circle({"b": ["a"], "a": []}) == []


def test_the_graphs_of_a_bundle_are_read_also_where_a_job_cannot_run(project: Project) -> None:
    calls = {"task_key": "call", "run_job_task": {"job_id": "${resources.jobs.two.id}"}}
    project.write({"one": [calls, good("late", depends_on=after("call", "gone"))], "two": [{}]})
    loaded = bundle.load("local", project.root)
    assert task_graph(loaded.job_bodies["one"]) == {"call": [], "late": ["call", "gone"]}
    assert job_graph(loaded) == {"one": ["two"], "two": []}
