"""databricks.yml as Databricks reads it: merging, references, and what is said about mistakes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from churn_lib import bundle
from churn_lib.bundle import Bundle, BundleError, make_plan
from churn_lib.settings import ChurnError
from tests.conftest import Project, good, notebook_task


def load(root: Path, text: str | dict[str, Any], target: str = "local") -> Bundle:
    """The bundle that `text` makes, as text or as what YAML would give."""
    text = text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False)
    (root / "databricks.yml").write_text(text)
    return bundle.load(target, root)


def job(**fields: Any) -> dict[str, Any]:
    """A bundle with one job named job."""
    return {"resources": {"jobs": {"job": {"tasks": [good("a")], **fields}}}}


def refusal(root: Path, text: str | dict[str, Any], target: str = "local") -> str:
    """What is said when the bundle or its job is refused."""
    with pytest.raises(BundleError) as caught:
        load(root, text, target).job("job")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- merging -------------------------------------------------------------------------------------


@pytest.fixture
def merged(tmp_path: Path) -> Bundle:
    """A job that stands in three places: an include, databricks.yml and a target."""
    clusters = [
        {"job_cluster_key": "main", "new_cluster": {"num_workers": 1, "spark_version": "1"}}
    ]
    first = job(
        name="included",
        tasks=[good("a", max_retries=1), good("b")],
        parameters=[{"name": "x", "default": "1"}, {"name": "y", "default": "1"}],
        job_clusters=clusters,
        permissions=[{"level": "CAN_VIEW", "group_name": "all"}],
    )
    more = {
        "name": "overridden",
        "tasks": [{"task_key": "b", "timeout_seconds": 9}, good("c")],
        "parameters": [{"name": "y", "default": "2"}, {"name": "z", "default": "2"}],
        "job_clusters": [{"job_cluster_key": "main", "new_cluster": {"num_workers": 8}}],
        "permissions": [{"level": "CAN_MANAGE", "group_name": "some"}],
    }
    (tmp_path / "one.yml").write_text(yaml.safe_dump(first, sort_keys=False))
    targets = {"dev": {"resources": {"jobs": {"job": more}}}, "empty": None}
    main = {"include": ["*one.yml"], "targets": targets}
    load(tmp_path, {**main, "resources": {"jobs": {"other": job()["resources"]["jobs"]["job"]}}})
    return bundle.load("dev", tmp_path)


def test_included_jobs_stand_beside_those_of_the_root_file(merged: Bundle) -> None:
    assert merged.job_keys == ["other", "job"]


def test_a_target_changes_tasks_parameters_and_clusters_by_their_names(merged: Bundle) -> None:
    changed = merged.job("job")
    assert changed.name == "overridden"
    assert [(each.task_key, each.max_retries, each.timeout_seconds) for each in changed.tasks] == [
        ("a", 1, 0),
        ("b", 0, 9),
        ("c", 0, 0),
    ]
    assert {each.name: each.default for each in changed.parameters} == {
        "x": "1",
        "y": "2",
        "z": "2",
    }
    assert merged.config["resources"]["jobs"]["job"]["job_clusters"] == [
        {"job_cluster_key": "main", "new_cluster": {"num_workers": 8, "spark_version": "1"}}
    ]


def test_a_target_adds_to_lists_whose_items_have_no_name(merged: Bundle) -> None:
    permissions = merged.config["resources"]["jobs"]["job"]["permissions"]
    assert [each["level"] for each in permissions] == ["CAN_VIEW", "CAN_MANAGE"]


@pytest.mark.parametrize("target", ["local", "empty"])
def test_another_target_is_left_as_it_was(merged: Bundle, target: str) -> None:
    untouched = bundle.load(target, merged.root).job("job")
    assert (untouched.name, len(untouched.tasks)) == ("included", 2)


@pytest.mark.parametrize(
    ("file", "written", "expected"),
    [
        ("resources/deep/one.yml", "../../nbs/a.ipynb", "nbs/a.ipynb"),
        ("resources/one.yml", "./../a.ipynb", "a.ipynb"),
        ("resources/one.yml", "${var.where}", "nbs/v.ipynb"),
        ("resources/one.yml", "/Workspace/a", "/Workspace/a"),
    ],
)
def test_a_notebook_path_is_relative_to_the_file_it_stands_in(
    tmp_path: Path, file: str, written: str, expected: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    body = job(tasks=[{"task_key": "a", "notebook_task": {"notebook_path": written}}])
    (tmp_path / file).write_text(yaml.safe_dump(body))
    main = {"include": ["resources/**/*.yml"], "variables": {"where": {"default": "nbs/v.ipynb"}}}
    (task,) = load(tmp_path, main).job("job").tasks
    assert task.spec("notebook_task")["notebook_path"] == expected


def test_a_notebook_path_in_a_target_is_relative_to_the_root_file(tmp_path: Path) -> None:
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources/one.yml").write_text(
        yaml.safe_dump(job(tasks=[notebook_task("a", "../nbs/first")]))
    )
    targets = {"dev": job(tasks=[notebook_task("a", "nbs/second")])}
    content = {"include": ["resources/*.yml"], "targets": targets}
    (task,) = load(tmp_path, content, "dev").job("job").tasks
    assert task.spec("notebook_task")["notebook_path"] == "nbs/second.ipynb"


def test_an_anchor_can_be_merged_into_a_job(tmp_path: Path) -> None:
    text = """
x-defaults: &defaults
  timeout_seconds: 7
  name: usual
resources:
  jobs:
    job:
      <<: *defaults
      name: mine
      tasks:
        - task_key: a
          condition_task: {op: EQUAL_TO, left: "1", right: "1"}
"""
    merged_job = load(tmp_path, text).job("job")
    assert (merged_job.name, merged_job.timeout_seconds) == ("mine", 7)


@pytest.mark.parametrize(
    ("written", "default"),
    [("1998-05-01", "1998-05-01"), ("3", "3"), ("0.5", "0.5"), ("true", "true"), ("'0'", "0")],
)
def test_a_default_is_text_however_yaml_reads_it(
    tmp_path: Path, written: str, default: str
) -> None:
    text = yaml.safe_dump(job(parameters=[{"name": "x", "default": "HERE"}]))
    (parameter,) = load(tmp_path, text.replace("HERE", written)).job("job").parameters
    assert parameter.default == default


# --- variables and other references ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "environment", "expected"),
    [
        ("local", None, "default"),
        ("plain", None, "of the target"),
        ("mapping", None, "of the mapping"),
        ("plain", "of the environment", "of the environment"),
        ("local", "", ""),
    ],
)
def test_a_variable_comes_from_environment_then_target_then_default(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    environment: str | None,
    expected: str,
) -> None:
    if environment is not None:
        monkeypatch.setenv("BUNDLE_VAR_who", environment)
    targets = {
        "plain": {"variables": {"who": "of the target"}},
        "mapping": {"variables": {"who": {"default": "of the mapping"}}},
    }
    variables = {"who": {"description": "somebody", "default": "default"}}
    content = {**job(name="[${var.who}]"), "variables": variables, "targets": targets}
    assert load(tmp_path, content, target).job("job").name == f"[{expected}]"


def test_a_variable_may_be_a_mapping_and_name_another(tmp_path: Path) -> None:
    variables = {
        "workers": {"default": 3},
        "cluster": {"default": {"num_workers": "${var.workers}"}},
    }
    content = {**job(new_cluster="${var.cluster}"), "variables": variables}
    resolved = load(tmp_path, content).config["resources"]["jobs"]["job"]
    assert resolved["new_cluster"] == {"num_workers": 3}


REFERENCES = {
    "${bundle.name}": "tiny",
    "${bundle.target}": "dev",
    "${bundle.git.commit}": "",
    "${resources.jobs.job.id}": "job",
    "${resources.jobs.job.name}": "the name",
    "${workspace.root_path}": "/Workspace/tiny/dev",
    "${workspace.current_user.userName}": "ada",
    "{{job.run_id}}": "{{job.run_id}}",
}


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_is_replaced_by_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.setenv("USER", "ada")
    workspace = {"root_path": "/Workspace/${bundle.name}/${bundle.target}"}
    content = {
        "bundle": {"name": "tiny"},
        "targets": {"dev": {"workspace": workspace}},
        **job(name="the name", description=f"<{reference}>"),
    }
    resolved = load(tmp_path, content, "dev").config["resources"]["jobs"]["job"]
    assert resolved["description"] == f"<{REFERENCES[reference]}>"


def test_the_commit_is_the_checked_out_one_and_dirty_once_a_file_differs(project: Project) -> None:
    project.write(job(name="${bundle.git.commit}")["resources"]["jobs"])
    commit = project.commit()
    assert bundle.load("local", project.root).job("job").name == commit
    (project.root / "databricks.yml").open("a").write("# changed\n")
    assert bundle.load("local", project.root).job("job").name == f"{commit}-dirty"


def test_a_checkout_without_a_commit_has_no_sha(project: Project) -> None:
    project.write(job(name="[${bundle.git.commit}]")["resources"]["jobs"])
    project.git("init", "--quiet")
    assert bundle.load("local", project.root).job("job").name == "[]"


# --- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("${var.nope}", "var.nope"),
        ("${resources.jobs.gone.id}", "resources.jobs.gone.id"),
        ("${bundle.moon}", "bundle.moon"),
        ("${var.", "${var."),
        ("${var.circle}", "Recursive interpolation"),
    ],
)
def test_a_reference_to_nothing_names_file_and_reference(
    tmp_path: Path, name: str, expected: str
) -> None:
    variables = {"circle": {"default": "${var.circle}"}} if "circle" in name else {}
    message = refusal(tmp_path, {**job(name=name), "variables": variables})
    assert message.startswith(f"{tmp_path / 'databricks.yml'}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"description": "somebody"}, "variable who has no value; set a default or BUNDLE_VAR_who"),
        (None, "variable who has no value; set a default or BUNDLE_VAR_who"),
        (
            {"lookup": {"cluster": "x"}},
            "variable who is looked up in a workspace; set BUNDLE_VAR_who",
        ),
    ],
)
def test_a_variable_without_a_value_says_how_to_give_one(
    tmp_path: Path, declared: dict[str, Any] | None, expected: str
) -> None:
    assert expected in refusal(tmp_path, {**job(name="${var.who}"), "variables": {"who": declared}})


def test_an_unknown_target_is_named_with_the_known_ones(tmp_path: Path) -> None:
    message = refusal(tmp_path, {**job(), "targets": {"dev": {}}}, "moon")
    assert message == f"{tmp_path / 'databricks.yml'} has no target 'moon'; it has local, dev"


@pytest.mark.parametrize(
    ("content", "known"), [({}, "none"), ({"resources": {"jobs": {"x": {}, "y": {}}}}, "x, y")]
)
def test_an_unknown_job_is_named_with_the_known_ones(
    tmp_path: Path, content: dict[str, Any], known: str
) -> None:
    assert refusal(tmp_path, content).endswith(f"has no job 'job'; it has {known}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"resources: {jobs: {a: {}, a: {}}}", "line 1: duplicate key 'a'"),
        (b"resources: [", "not valid YAML"),
        (b"resources: \xff", "not valid YAML"),
        (b"just text", "keys and values are needed at the top, found 'just text'"),
    ],
)
def test_a_broken_include_is_the_file_that_is_named(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "one.yml").write_bytes(content)
    message = refusal(tmp_path, {"include": ["one.yml"]})
    assert message.startswith(f"{tmp_path / 'one.yml'}: ")
    assert expected in message


def test_a_pattern_may_match_nothing_but_a_named_file_has_to_exist(tmp_path: Path) -> None:
    assert load(tmp_path, {**job(), "include": ["gone/*.yml"]}).job_keys == ["job"]
    message = refusal(tmp_path, {**job(), "include": ["gone.yml"]})
    assert message.startswith(f"{tmp_path / 'databricks.yml'}: include gone.yml matches no file")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"tasks": [good("a", max_retries="soon")]},
            "resources.jobs.job.tasks.0.max_retries = 'soon'",
        ),
        ({"tasks": [good("a", timeout_seconds=-1)]}, "tasks.0.timeout_seconds = -1"),
        ({"tasks": [good("a b")]}, "tasks.0.task_key = 'a b'"),
        ({"tasks": [{"run_if": "ALL_DONE"}]}, "resources.jobs.job.tasks.0.task_key"),
        ({"tasks": [good("a", depends_on=["b"])]}, "tasks.0.depends_on.0 = 'b'"),
        ({"parameters": [{"name": "x"}]}, "resources.jobs.job.parameters.0.default"),
        ({"parameters": [{"name": "x", "default": "", "dflt": ""}]}, "parameters.0.dflt"),
        ({"timeout_seconds": "1 h"}, "resources.jobs.job.timeout_seconds = '1 h'"),
        ({"tasks": []}, "resources.jobs.job.tasks = []"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_place(
    tmp_path: Path, fields: dict[str, Any], expected: str
) -> None:
    message = refusal(tmp_path, job(**fields))
    assert message.startswith(f"{tmp_path / 'databricks.yml'}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("resources: [a]", "resources"),
        ("resources: {jobs: [a]}", "jobs"),
        ("resources: {jobs: {job: text}}", "job"),
        ("resources: {jobs: {job: {tasks: [text]}}}", "tasks"),
        (
            "resources: {jobs: {job: {tasks: [{task_key: a, notebook_task: a.ipynb}]}}}",
            "notebook_task",
        ),
        ("targets: [dev]", "targets"),
        ("variables: [who]", "variables"),
        ("bundle: tiny", "bundle"),
        ("workspace: here", "workspace"),
        ("include: resources/*.yml", "include: a list is needed|include.*'resources/.*'"),
        ("include: [/etc/*.yml]", "include"),
    ],
)
def test_text_or_a_list_in_place_of_a_mapping_is_one_line_with_file_and_place(
    tmp_path: Path, text: str, place: str
) -> None:
    message = refusal(tmp_path, text + "\n")
    assert str(tmp_path / "databricks.yml") in message
    assert re.search(place, message)


def test_a_job_without_tasks_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ChurnError) as caught:
        make_plan(load(tmp_path, {"resources": {"jobs": {"job": {"name": "x"}}}}), "job")
    assert "None" not in str(caught.value)
    assert "tasks" in str(caught.value)


def test_the_project_is_found_from_a_folder_below(project: Project) -> None:
    project.write({"job": [good("a")]})
    below = project.root / "nbs" / "deep"
    below.mkdir(parents=True)
    assert bundle.find_root(below) == project.root
    with pytest.raises(BundleError, match=r"no databricks\.yml here or above"):
        bundle.find_root(project.root.parent)
