"""A bundle that is right, broken in one place at a time: each mistake is found, at its line."""

import configparser
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from databricks.bundles.core import Bundle as DeployedBundle
from databricks.bundles.jobs import Job
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from churn_lib.bundle import BundleError
from churn_lib.bundle.files import place_of, read_sources
from churn_lib.bundle.lint import LintFinding, changes, losses, policy
from churn_lib.bundle.lint.check import LOSSES, check
from churn_lib.bundle.lint.rules import cron_problem
from churn_lib.bundle.resolve import choose_compute, choose_trigger
from churn_lib.cli.bundle import app
from tests.conftest import Project, notebook

GOOD = """
bundle: {name: tiny}
include: [more.yml]
variables:
  catalog: {default: shop_dev}
targets:
  dev:
    mode: development
  production:
    mode: production
    workspace: {root_path: "/Workspace/Bundles/${bundle.name}/${bundle.target}"}
    variables: {catalog: {default: shop}}
    permissions:
      - {level: CAN_RUN, group_name: readers}
    resources:
      experiments:
        trials:
          name: /Bundles/tiny/production/trials
      schemas:
        gold_schema: {catalog_name: "${var.catalog}", name: gold}
      volumes:
        files:
          catalog_name: ${var.catalog}
          schema_name: ${resources.schemas.gold_schema.name}
          name: files
          volume_type: MANAGED
      registered_models:
        model:
          catalog_name: ${var.catalog}
          schema_name: ${resources.schemas.gold_schema.name}
          name: churn
      quality_monitors:
        watch:
          table_name: ${var.catalog}.gold.predictions
          assets_dir: /Workspace/Bundles/tiny
          output_schema_name: ${resources.schemas.gold_schema.name}
          snapshot: {}
      secret_scopes:
        vault:
          name: vault
          backend_type: AZURE_KEYVAULT
          keyvault_metadata:
            dns_name: https://v.vault.azure.net/
            resource_id: /subscriptions/x
resources:
  jobs:
    first:
      name: first
      run_as: {user_name: somebody}
      max_concurrent_runs: 1
      schedule:
        quartz_cron_expression: "0 30 6 * * ?"
        timezone_id: Europe/Berlin
      permissions:
        - {level: CAN_MANAGE_RUN, group_name: operators}
      parameters:
        - name: git_sha
          default: ${bundle.git.commit}
      job_clusters:
        - job_cluster_key: main
          new_cluster:
            spark_version: 18.x-cpu-ml-scala2.13
            node_type_id: Standard_D4ds_v5
            autoscale:
              min_workers: 1
              max_workers: 4
      environments:
        - environment_key: light
          spec: {environment_version: "5"}
      tasks:
        - task_key: make
          job_cluster_key: main
          notebook_task:
            notebook_path: nbs/make.ipynb
            base_parameters: {size: 3}
        - task_key: use
          depends_on:
            - task_key: make
          environment_key: light
          notebook_task:
            notebook_path: nbs/use.ipynb
            base_parameters:
              made: "{{tasks.make.values.made}}"
              size: "{{job.parameters.git_sha}}"
        - task_key: next
          depends_on:
            - task_key: use
          run_job_task:
            job_id: ${resources.jobs.second.id}
            job_parameters: {git_sha: "{{job.parameters.git_sha}}"}
"""
MORE = """
resources:
  jobs:
    second:
      run_as: {user_name: somebody}
      parameters:
        - {name: git_sha, default: "${bundle.git.commit}"}
      tasks:
        - task_key: again
          existing_cluster_id: 1234-567890-abcd
          notebook_task: {notebook_path: nbs/again.ipynb}
"""


def default_settings(**changes: str) -> str:
    """The project's [DEFAULT] section with some values changed."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(Path(__file__).parents[2] / "settings.ini")
    values = {**parser.defaults(), **changes}
    return "\n".join(["[DEFAULT]", *(f"{key} = {value}" for key, value in values.items())])


SETTINGS = f"""
{default_settings(model_name="churn", experiment="/Shared/trials", catalog="shop_dev")}
[local]
[dev]
[production]
catalog = shop
model_name = shop.gold.churn
experiment = /Workspace/Bundles/tiny/production/trials
"""


@pytest.fixture(scope="module")
def pristine(make_project: Callable[[str], Project]) -> Project:
    """A bundle without a mistake, committed."""
    project = make_project("pristine")
    declared = "git_sha: str = ''\nsize: str = ''\ncount: int = 1\nmade: str = ''\n"
    set_value = "%matplotlib inline\nfrom churn_lib import job_context\njob_context.task_values.set('made', 1)"
    for name in ("make", "use", "again"):
        source = set_value if name == "make" else "1"
        notebook(project.root / f"nbs/{name}.ipynb", source, parameters=declared)
    (project.root / "databricks.yml").write_text(GOOD)
    (project.root / "more.yml").write_text(MORE)
    project.commit()
    return project


@pytest.fixture
def bundle(pristine: Project, tmp_path: Path) -> Project:
    """A copy of it to break."""
    shutil.copytree(pristine.root, tmp_path / "project")
    return Project(tmp_path / "project")


def line_of(finding: LintFinding) -> str:
    """What is written where a finding points to."""
    return finding.path.read_text().splitlines()[finding.line - 1]


def edit(root: Path, old: str, new: str, name: str = "databricks.yml") -> None:
    """Replace a piece of a file that stands there once."""
    text = (root / name).read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
    (root / name).write_text(text.replace(old, new))


def test_a_bundle_without_a_mistake_has_no_findings(bundle: Project) -> None:
    assert check(bundle.root) == []


USE = """          environment_key: light
          notebook_task:
            notebook_path: nbs/use.ipynb
            base_parameters:
              made: "{{tasks.make.values.made}}"
              size: "{{job.parameters.git_sha}}"
"""


def for_each(notebook: str) -> tuple[str, str]:
    """The second task, repeated: what is replaced, and by what."""
    inner = f"{{task_key: each, notebook_task: {{{notebook}}}}}"
    return USE, f"          for_each_task: {{inputs: '[1]', task: {inner}}}\n"


# what is replaced, by what, what is said, and what stands at the line that is named
BREAKS = [
    # fields
    ("max_concurrent_runs: 1", "max_concurent_runs: 1", "did you mean max_concurrent_runs", "concurent"),
    ("max_concurrent_runs: 1", "max_concurrent_runs: many", "a whole number is needed, found 'many'", "many"),
    ("max_concurrent_runs: 1", "max_concurrent_runs: 1.5", "a whole number is needed, found 1.5", "1.5"),
    ("max_concurrent_runs: 1", "tags: [a]", "keys and values are needed", "tags"),
    ("max_concurrent_runs: 1", "name2: a\n      id: 7", "id is set by Databricks", "id: 7"),
    ("volume_type: MANAGED", "volume_type: MANGED", "did you mean MANAGED", "volume_type"),
    ("            notebook_path: nbs/use.ipynb\n", "", "NotebookTask needs notebook_path", "notebook_task"),
    ("      registered_models:", "      registered_model:", "no resource type; did you mean registered_models", "registered_model"),
    ("          job_cluster_key: main\n          notebook_task",
     "          job_cluster_key: main\n          run_if: NOW\n          notebook_task", "'NOW' is not allowed", "run_if"),
    ("depends_on:\n            - task_key: make", "depends_on: make", "a list is needed, found 'make'", "depends_on"),
    # names
    ("- task_key: use\n          depends_on", "- task_key: make\n          depends_on", "duplicate task_key make in tasks", "- task_key: make"),
    ("- task_key: next\n          depends_on", "- depends_on", "an item of tasks has no task_key", "depends_on"),
    ("        - name: git_sha\n", "        - {name: git_sha, default: b}\n        - name: git_sha\n", "duplicate name git_sha in parameters", "- name: git_sha"),
    ("      environments:", "        - job_cluster_key: main\n          new_cluster: {spark_version: 15.4.x-scala2.12}\n      environments:", "duplicate job_cluster_key main", "job_cluster_key"),
    ("      max_concurrent_runs: 1", "      name: again", "line 50: duplicate key 'name'", ""),
    # tasks
    ("            - task_key: use\n", "            - task_key: sue\n", "depends_on sue, which is no task of first; did you mean use", "sue"),
    ("        - task_key: make\n          job", "        - task_key: make\n          depends_on: [{task_key: use}]\n          job", "tasks wait for each other: ", "tasks:"),
    ("            base_parameters: {size: 3}", "            base_parameters: {size: 3}\n          condition_task: {op: EQUAL_TO, left: a, right: a}", "a task has one type, found notebook_task, condition_task", "task_key: make"),
    ("environment_key: light\n          notebook", "environment_key: lite\n          notebook", "environment_key lite is not in environments; did you mean light", "lite"),
    ("          job_cluster_key: main\n          notebook", "          job_cluster_key: mian\n          notebook", "job_cluster_key mian is not in job_clusters", "mian"),
    ("          environment_key: light\n          notebook_task:\n            notebook_path: nbs/use.ipynb\n            base_parameters:\n              made: \"{{tasks.make.values.made}}\"\n              size: \"{{job.parameters.git_sha}}\"\n",
     "          python_wheel_task: {package_name: a, entry_point: b}\n", "task use has no compute", "task_key: use"),
    ("          environment_key: light\n          notebook", "          environment_key: light\n          job_cluster_key: main\n          notebook", "two kinds of compute", "_key"),
    ("          environment_key: light\n          notebook_task:\n            notebook_path: nbs/use.ipynb\n            base_parameters:\n              made: \"{{tasks.make.values.made}}\"\n              size: \"{{job.parameters.git_sha}}\"\n",
     "          for_each_task: {inputs: \"[1]\", task: {task_key: each, spark_python_task: {python_file: a.py}}}\n", "task each has no compute", "for_each_task"),
    # references
    ("{{tasks.make.values.made}}", "{{tasks.mak.values.made}}", "mak is no task that ends before use; did you mean make", "notebook_task"),
    ("{{tasks.make.values.made}}", "{{tasks.make.values.mad}}", "sets no value mad; did you mean made", "notebook_task"),
    ('size: "{{job.parameters.git_sha}}"', 'size: "{{job.parameters.sha}}"', "sha is no parameter of the job", "notebook_task"),
    ('size: "{{job.parameters.git_sha}}"', 'size: "{{jobs.run_id}}"', "nothing that can be referred to", "notebook_task"),
    ('job_parameters: {git_sha: ', 'job_parameters: {gitsha: ', "second has no parameter gitsha; did you mean git_sha", "gitsha"),
    ("${resources.jobs.second.id}", "${resources.jobs.secnd.id}", "no resource jobs.secnd; did you mean jobs.second", "secnd"),
    ("${resources.jobs.second.id}", "the second", "job_id the second is no job of the bundle", "second"),
    ("${resources.jobs.second.id}", "${resources.jobs.first.id}", "jobs run each other: first -> first", "tasks"),
    ("          name: files\n", "          name: ${var.fils}\n", "no variable fils; known: catalog", "fils"),
    ("name: first\n", "name: first-${bundl.target}\n", "Interpolation key 'bundl.target' not found", "bundl"),
    ("${resources.schemas.gold_schema.name}\n          name: churn", "${resources.schemas.gold_schema.nam}\n          name: churn", "gold_schema.nam' not found", ".nam}"),
    # parameters
    ("base_parameters: {size: 3}", "base_parameters: {sise: 3}", "declares no parameter sise; did you mean size", "sise"),
    ("base_parameters: {size: 3}", "base_parameters: {count: many}", "parameter count = 'many' is not a whole number", "many"),
    ("          default: ${bundle.git.commit}\n", "          default: a\n        - {name: more, default: b}\n", "make.ipynb declares no parameter more", "more"),
    ("nbs/make.ipynb", "nbs/gone.ipynb", "nbs/gone.ipynb: no such notebook", "gone"),
    # clusters
    ("min_workers: 1", "min_workers: 9", "min_workers 9 is above max_workers 4", "min_workers"),
    ("18.x-cpu-ml-scala2.13", "auto:latest-lts", "runtime 'auto:latest-lts' is not pinned", "spark_version"),
    ("            autoscale:\n", "            num_workers: 2\n            autoscale:\n", "num_workers and autoscale give the size; keep one", "num_workers"),
    ("            autoscale:\n              min_workers: 1\n              max_workers: 4\n", "            num_workers: 0\n", "no workers: add is_single_node: true", "num_workers"),
    # what a for_each_task repeats
    (*for_each("notebook_path: nbs/gone.ipynb"), "nbs/gone.ipynb: no such notebook", "for_each_task"),
    (*for_each("notebook_path: nbs/use.ipynb, base_parameters: {made: '{{tasks.mak.values.made}}'}"), "mak is no task that ends before use", "for_each_task"),
    (*for_each("notebook_path: nbs/use.ipynb, base_parameters: {mde: a}"), "nbs/use.ipynb declares no parameter mde; did you mean made?", "for_each_task"),
    (*for_each("notebook_path: nbs/use.ipynb, base_parameters: {count: many}"), "parameter count = 'many' is not a whole number", "for_each_task"),
    # files
    ("include: [more.yml]", "include: [more.yml]\npython: {venv_path: .vnv}", ".vnv is no virtual environment; correct it", "venv_path"),
    ("include: [more.yml]", "include: [more.yml]\npython: {mutators: [churn_lib.bundle.resolve:choose_compte]}", "churn_lib.bundle.resolve has no choose_compte; did you mean choose_compute?", "mutators"),
    ("include: [more.yml]", "include: [more.yml]\npython: {mutators: [churn_lib.bundle.resolv:choose_compute]}", "there is no module churn_lib.bundle.resolv", "mutators"),
    ("include: [more.yml]", "include: [more.yml]\npython: {resources: [churn_lib.bundle.resolve]}", "is no function; write package.module:function", "resources"),
    ("include: [more.yml]", "include: [more.yml]\nsync: {exclude: [mlruns, '*.ipynb']}", "*.ipynb keeps nbs/make.ipynb back, which a job runs", "exclude"),
    ("include: [more.yml]", "include: [more.yml]\nsync: {exclude: [nbs/]}", "nbs/ keeps nbs/make.ipynb back, which a job runs (2 more with it)", "exclude"),
    # schedule
    ('"0 30 6 * * ?"', '"30 6 * * *"', "has 5 fields; Quartz wants 6 or 7", "quartz"),
    ('"0 30 6 * * ?"', '"0 30 26 * * ?"', "26 is no hours", "quartz"),
    ("Europe/Berlin", "Europe/Berln", "time zone 'Europe/Berln' is unknown", "Berln"),
    ("      schedule:\n", "      continuous: {pause_status: PAUSED}\n      schedule:\n", "schedule and continuous start it; keep one", "continuous"),
    # around the resources
    ("resources:\n  jobs:\n    first", "resource: {}\nresources:\n  jobs:\n    first", "resource is no key of a bundle; did you mean resources?", "resource:"),
    ("    mode: development", "    mode: developing", "mode 'developing' is not allowed; did you mean development?", "mode"),
    ("    mode: development", "    mode: development\n    preset: {}", "preset is no key of targets.dev; did you mean presets?", "preset"),
    ("    mode: development", "    mode: development\n    presets: {name_prefx: a}", "name_prefx is no key of targets.dev.presets", "prefx"),
    ("    mode: development", "    mode: development\n    variables: {catlog: a}", "variable catlog is declared nowhere; did you mean catalog?", "catlog"),
    ("{default: shop_dev}", "{defalt: shop_dev}", "defalt is no key of variables.catalog", "defalt"),
    ("bundle: {name: tiny}", "bundle: {name: tiny, cli_version: 1}", "cli_version is no key of bundle", "cli_version"),
    ("- {level: CAN_RUN, group", "- {level: CAN_SEE, group", "level: 'CAN_SEE' is not allowed", "CAN_SEE"),
    ("- {level: CAN_RUN, group", "- {level: CAN_RUN, user_name: a, group", "a permission is of one principal, found group_name, user_name", "user_name"),
    # deployment
    ("    mode: development", "    mode: development\n    presets: {name_prefix: dev_}", "name_prefix of a development target lacks the user's name", "name_prefix"),
    ("    mode: development", "    mode: development\n    workspace: {root_path: /Workspace/Bundles/tiny}", "root_path of a development target lacks the user's name", "root_path"),
    ("    mode: development", "    mode: development\n    presets: {trigger_pause_status: UNPAUSED}", "a development target does not start by itself", "UNPAUSED"),
    ("    mode: development", "    mode: development\n    run_as: {user_name: a}\n    resources: {model_serving_endpoints: {e: {name: e}}}", "run_as at the top does not go together with model_serving_endpoints", "run_as"),
    ("    mode: development", "    mode: development\n    run_as: {user_name: a}\n    resources: {apps: {e: {name: e, source_code_path: app}}}", "run_as at the top does not go together with apps", "run_as"),
    ("      schemas:\n", "      instance_pools: {pool: {instance_pool_name: a, node_type_id: b}}\n      schemas:\n", "which CI pins, knows no instance_pools", "instance_pools"),
    ("      schemas:\n", "      pipelines: {etl: {name: etl, development: true}}\n      schemas:\n", "production does not take the pipeline etl", "pipelines"),
    ("/Workspace/Bundles/${bundle.name}", "/Workspace/Shared/${bundle.name}", "can be written by everybody", "root_path"),
    ('    workspace: {root_path: "/Workspace/Bundles/${bundle.name}/${bundle.target}"}\n', "", "production without workspace.root_path", "mode: production"),
    ("{root_path: ", "{host: https://x.example, root_path: ", "the host is written down", "host"),
    ("group_name: operators", "group_name: readers", "readers is in the permissions of the bundle too", "readers"),
    ("      run_as: {user_name: somebody}\n      max", "      max", "production runs first as whoever deployed last", "first:"),
    ("  production:\n    mode: production\n", "  production:\n    mode: production\n    run_as: {user_name: me}\n", "does not go together with quality_monitors", "run_as"),
    ("          schema_name: ${resources.schemas.gold_schema.name}\n          name: files", "          schema_name: gold\n          name: files", "write ${resources.schemas.gold_schema.name}", "schema_name"),
    ("            resource_id: /subscriptions/x\n", "", "AzureKeyVaultSecretScopeMetadata needs resource_id", "keyvault_metadata"),
    ("          keyvault_metadata:\n            dns_name: https://v.vault.azure.net/\n            resource_id: /subscriptions/x\n", "", "a Key Vault scope needs keyvault_metadata with", "vault:"),
    ("- {level: CAN_RUN, group", "- {level: CAN_VIEW, group", "CAN_VIEW for readers is READ on every secret of vault; give it to", "CAN_VIEW"),
    ("- {level: CAN_RUN, group", "- {level: CAN_MANAGE, group", "CAN_MANAGE for readers is MANAGE on every secret of vault", "CAN_MANAGE"),
    ("- {level: CAN_RUN, group_name: readers", "- {level: CAN_VIEW, service_principal_name: other", "CAN_VIEW for other is READ on every secret", "other"),
    ("          name: vault\n", "          name: vault\n          permissions: [{level: READ, group_name: readers}]\n", "readers reads every secret of vault; leave it to", "readers"),
    ("          backend_type: AZURE_KEYVAULT\n", "", "keyvault_metadata is ignored", "vault:"),
    ("/Bundles/tiny/production/trials", "/teams/churn/trials", "nobody creates the folder /teams/churn", "trials"),
    ("include: [more.yml]", "include: [more.yml]\nartifacts: {lib: {type: whl, build: make, dynamic_version: true}}", "updates every job on every deploy", "artifacts"),
    ("        gold_schema: {", "        second: {catalog_name: a, name: b}\n        gold_schema: {", "schemas.second and jobs.second in more.yml share a key", "second"),
    ("        gold_schema: {", "        gold_schema: {comment: [a], ", "comment: text is needed", "gold_schema"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "expected", "shown"), BREAKS, ids=[case[2][:40] for case in BREAKS]
)
def test_a_mistake_is_found_at_its_line(
    bundle: Project, old: str, new: str, expected: str, shown: str
) -> None:
    edit(bundle.root, old, new)
    found = check(bundle.root)
    matching = [
        finding for finding in found if any(s in finding.message for s in expected.split("|"))
    ]
    assert matching, [finding.text(bundle.root) for finding in found]
    assert any(shown in line_of(finding) for finding in matching), [
        (finding.line, line_of(finding)) for finding in matching
    ]
    for finding in found:
        assert "\n" not in finding.text(bundle.root)
        assert str(bundle.root) not in finding.text(bundle.root)


# --- what is not one line of YAML ------------------------------------------------------------------


def lines_of(root: Path, target: str | None = None) -> list[str]:
    """The findings as the command prints them."""
    return [finding.text(root) for finding in check(root, target)]


def test_the_settings_of_a_target_and_the_bundle_name_the_same(bundle: Project) -> None:
    (bundle.root / "settings.ini").write_text(SETTINGS)
    bundle.commit()
    assert lines_of(bundle.root) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("catalog = shop\n", "catalog = shops\n", "'shop' here, catalog = shops in settings.ini"),
        ("shop.gold.churn", "shop.ml.churn", "'shop.gold.churn' here, model_name = shop.ml.churn"),
        ("tiny/production/trials", "tiny/trials", "experiment = /Bundles/tiny/trials"),
        (
            "[production]\ncatalog = shop\nmodel_name",
            "[prod]\nmodel_name",
            "no section [production]",
        ),
        ("data.holdout_share = 0.2", "data.holdout_share = 2", "data.holdout_share"),
    ],
)
def test_settings_that_disagree_with_the_bundle_are_found(
    bundle: Project, old: str, new: str, message: str
) -> None:
    (bundle.root / "settings.ini").write_text(SETTINGS)
    edit(bundle.root, old, new, "settings.ini")
    found = lines_of(bundle.root, "production")
    assert [line for line in found if message in line], found


def test_a_commit_that_is_empty_is_found(project: Project) -> None:
    project.write({"job": {"name": "${bundle.git.commit}", "tasks": [{"task_key": "a"}]}})
    project.git("init", "--quiet")
    assert [line for line in lines_of(project.root) if "there is no commit here" in line]


def test_a_notebook_that_no_job_runs_is_found(bundle: Project) -> None:
    notebook(bundle.root / "nbs/idle.ipynb", "1")
    assert lines_of(bundle.root)[0].startswith("databricks.yml:")
    assert "no job runs nbs/idle.ipynb" in lines_of(bundle.root)[0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nbs/again.py", "nbs/again.py: no such notebook; correct notebook_path"),
        ("nbs/again", "nbs/again has no suffix; name again.ipynb"),
        ("nbs/gone", "nbs/gone has no suffix; name a notebook that is there"),
        ("more.yml", "more.yml is no notebook; its name ends in .ipynb, .py, .r, .scala, .sql"),
        ("plain.py", "plain.py is no notebook: its first line is not 'Databricks notebook source'"),
    ],
)
def test_a_file_that_is_no_notebook_is_found_once(bundle: Project, path: str, message: str) -> None:
    (bundle.root / "plain.py").write_text("print(1)\n")
    edit(bundle.root, "nbs/again.ipynb", path, "more.yml")
    wrong = [line for line in lines_of(bundle.root) if "note: " not in line]
    assert [line for line in wrong if "no job runs" not in line] == [f"more.yml:11: {message}"]


def test_a_job_with_a_notebook_that_runs_on_databricks_alone_is_noted(
    bundle: Project,
) -> None:
    edit(
        bundle.root,
        "notebook_task: {notebook_path: nbs/again.ipynb}",
        "python_wheel_task: {package_name: a, entry_point: b}",
        "more.yml",
    )
    (bundle.root / "nbs/again.ipynb").unlink()
    (line,) = lines_of(bundle.root)  # the job without a notebook is left alone
    assert line.startswith("databricks.yml:47: note: churn run first refuses this: second.again: ")


def test_the_types_that_the_cli_lacks_are_those_of_the_version_that_ci_pins() -> None:
    root = Path(__file__).parents[2]
    for name in (".github/workflows/cd.yml", ".github/workflows/ci.yml"):
        versions = re.findall(r"setup-cli@\w+ # v([\d.]+)", (root / name).read_text())
        assert set(versions) == {policy.CLI}


@pytest.mark.parametrize(
    ("folder", "wrong"),
    [(".venv", False), ("tools/venv", False), ("gone/.venv", True), (".vnv", True), ("nbs", True)],
)
def test_an_environment_with_a_usual_name_may_be_made_later(
    bundle: Project, folder: str, wrong: bool
) -> None:
    (bundle.root / "tools").mkdir()
    edit(
        bundle.root, "include: [more.yml]", f"include: [more.yml]\npython: {{venv_path: {folder}}}"
    )
    (found,) = check(bundle.root)
    assert (found.kind, line_of(found)) == (
        "error" if wrong else "note",
        f"python: {{venv_path: {folder}}}",
    )


def test_an_environment_beside_the_one_that_is_there_is_found(bundle: Project) -> None:
    edit(bundle.root, "include: [more.yml]", "include: [more.yml]\npython: {venv_path: venv}")
    (bundle.root / ".venv/bin").mkdir(parents=True)
    (bundle.root / ".venv/bin/python3").touch()
    assert [finding.kind for finding in check(bundle.root)] == ["error"]
    edit(bundle.root, "venv_path: venv", "venv_path: .venv")
    assert check(bundle.root) == []


def test_a_key_that_two_resources_share_is_found_where_the_second_stands(bundle: Project) -> None:
    edit(bundle.root, "resources:\n", "resources:\n  volumes: {first: {name: x}}\n", "more.yml")
    assert (
        "more.yml:3: volumes.first and jobs.first in databricks.yml share a key; rename one"
        in lines_of(bundle.root)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "more.yml:1: keys and values are needed at the top, found a list"),
        (b"resources: {jobs: [a]}", "more.yml:1: resources.jobs = ['a']: Input should be"),
        (b"\n\nresources:\n\tjobs: {}", "more.yml:4: not valid YAML"),
        (b"resources: {jobs: {a: {name: \xff}}}", "more.yml:1: not valid YAML"),
        (b"resources: &a\n  jobs: {j: {tags: *a}}", "more.yml:1: an alias stands inside its own"),
        (b"resources: *nowhere", "more.yml:1: not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_finding(
    bundle: Project, content: bytes, message: str
) -> None:
    (bundle.root / "more.yml").write_bytes(content)
    (line,) = lines_of(bundle.root)
    assert line.startswith(message)
    (bundle.root / "more.yml").unlink()
    (bundle.root / "more.yml").mkdir()
    assert lines_of(bundle.root) == ["more.yml:1: cannot be read: Is a directory; correct include"]


def test_includes_that_bring_in_nothing_are_noted(bundle: Project) -> None:
    (bundle.root / "databricks.yml").write_text("bundle: {name: a}\ninclude: [resource/*.yml]\n")
    assert lines_of(bundle.root) == [
        "databricks.yml:2: note: include resource/*.yml matches no file; correct or remove it"
    ]
    (bundle.root / "databricks.yml").write_text("bundle: {name: a}\ntargets: {dev: {}}\n")
    assert lines_of(bundle.root) == [
        "databricks.yml:1: note: the bundle has no resources; add them here or include their files"
    ]


def test_a_file_that_differs_from_an_include_in_its_suffix_alone_is_found(bundle: Project) -> None:
    edit(bundle.root, "include: [more.yml]", "include: [more.yml, resources/*.yml]")
    (bundle.root / "resources").mkdir()
    (bundle.root / "resources/x.yaml").write_text("resources: {schemas: {a: {name: a}}}")
    (bundle.root / "resources/y.yaml").write_text("version: 2\nmodels: []\n")  # of dbt
    (bundle.root / "resources/z.yaml").write_text("a: [\n")
    (line,) = lines_of(bundle.root)
    assert "include resources/*.yml leaves out resources/x.yaml; include it or rename it" in line


@pytest.mark.parametrize("built", [True, False])
def test_a_wheel_that_is_looked_for_beside_the_wrong_file_is_found(
    bundle: Project, built: bool
) -> None:
    edit(bundle.root, "include: [more.yml]", "include: [resources/more.yml]")
    (bundle.root / "resources").mkdir()
    task = "existing_cluster_id: 1234-567890-abcd\n          libraries: [{whl: ./dist/*.whl}]"
    edit(bundle.root, "existing_cluster_id: 1234-567890-abcd", task, "more.yml")
    edit(bundle.root, "nbs/again", "../nbs/again", "more.yml")
    (bundle.root / "more.yml").rename(bundle.root / "resources/more.yml")
    if built:
        (bundle.root / "dist").mkdir()
        (bundle.root / "dist/a-1-py3-none-any.whl").touch()
    fix = "./dist/*.whl is relative to resources/more.yml; write ../dist/*.whl"
    assert lines_of(bundle.root) == [f"resources/more.yml:11: {fix}"]
    edit(bundle.root, "./dist/*.whl", "../dist/*.whl", "resources/more.yml")
    assert lines_of(bundle.root) == []


def test_two_default_targets_are_found_where_the_second_stands(bundle: Project) -> None:
    text = (bundle.root / "databricks.yml").read_text()
    text = text.replace("    mode: ", "    default: true\n    mode: ")
    (bundle.root / "databricks.yml").write_text(text)
    (line,) = lines_of(bundle.root)
    assert line == "databricks.yml:11: dev is the default target already; keep one"


def test_two_jobs_that_run_each_other_are_found(bundle: Project) -> None:
    back = '        - {task_key: back, run_job_task: {job_id: "${resources.jobs.first.id}"}}\n'
    path = bundle.root / "more.yml"
    path.write_text(path.read_text() + back)
    assert [line for line in lines_of(bundle.root) if "jobs run each other" in line]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ("volumes: {v: {catalog_name: c, schema_name: s, name: v}}", "share the volume v"),
        ("secret_scopes: {s: {name: plain}}", "share the scope s"),
    ],
)
def test_what_two_developers_would_share_is_found_in_development_alone(
    bundle: Project, resources: str, message: str
) -> None:
    path = bundle.root / "more.yml"
    path.write_text(path.read_text() + f"  {resources}\n")
    (line,) = [line for line in lines_of(bundle.root) if message in line]
    assert line.endswith(" [dev]")


def test_a_finding_of_one_target_says_which(bundle: Project) -> None:
    edit(bundle.root, "/Workspace/Bundles/$", "/Shared/Bundles/$")
    assert all(line.endswith(" [production]") for line in lines_of(bundle.root))
    assert lines_of(bundle.root, "dev") == []


def test_an_unknown_target_is_refused(bundle: Project) -> None:
    with pytest.raises(BundleError, match="has no target 'prod'; it has dev, production"):
        check(bundle.root, "prod")


# --- bundles that are right and not like ours ------------------------------------------------------

RIGHT = {
    "a wheel, a pipeline and includes for later": """
        bundle: {name: sales, uuid: 0b3a3b52-0000-4000-8000-000000000000}
        include: [jobs/*.yml, "jobs/*/*.yml"]
        variables:
          catalog: {description: given when deploying}
          schema: {}
          warehouse: {lookup: {warehouse: Shared}}
        artifacts: {wheel: {type: whl, build: uv build --wheel}}
        targets:
          dev:
            mode: development
            default: true
            presets: {name_prefix: "dev_${workspace.current_user.short_name}_"}
            variables: {schema: "${workspace.current_user.short_name}"}
          prod:
            mode: production
            workspace: {root_path: "/Workspace/Users/a@example.com/.bundle/${bundle.name}"}
            run_as: {user_name: a@example.com}
            permissions: [{user_name: a@example.com, level: CAN_MANAGE}]
        resources:
          pipelines:
            etl:
              name: etl
              catalog: ${var.catalog}
              schema: ${var.schema}
              libraries: [{glob: {include: src/etl/**}}]
              environment: {dependencies: ["--editable ${workspace.file_path}"]}
          jobs:
            refresh:
              trigger: {periodic: {interval: 1, unit: DAYS}}
              email_notifications: {on_failure: ["${workspace.current_user.userName}"]}
              tasks:
                - task_key: pipeline
                  pipeline_task: {pipeline_id: "${resources.pipelines.etl.id}"}
                - task_key: wheel
                  depends_on: [{task_key: pipeline}]
                  environment_key: default
                  python_wheel_task: {package_name: a, entry_point: main, parameters: ["${var.catalog}"]}
                - task_key: query
                  sql_task: {warehouse_id: "${var.warehouse}", file: {path: a.sql}}
              environments:
                - environment_key: default
                  spec: {environment_version: "4", dependencies: [dist/*.whl]}
    """,
    "anchors, a complex variable and a target that says more": """
        bundle: {name: sales, databricks_cli_version: ">=0.250.0", git: {branch: main}}
        x-defaults: &defaults {max_retries: 2, timeout_seconds: 600}
        variables:
          cluster:
            type: complex
            default: {spark_version: 16.4.x-scala2.12, node_type_id: a, num_workers: 1}
          least: 1
        targets:
          dev:
            resources:
              jobs:
                nightly:
                  tasks: [{task_key: load, max_retries: 0}]
          prod:
            mode: production
            workspace: {root_path: "/Workspace/Bundles/${bundle.name}/${bundle.environment}"}
            run_as: {service_principal_name: a}
            presets: {trigger_pause_status: UNPAUSED, tags: {team: sales}}
            variables:
              cluster:
                spark_version: 16.4.x-photon-scala2.12
                node_type_id: a
                autoscale: {min_workers: "${var.least}", max_workers: 4}
        resources:
          jobs:
            nightly:
              continuous: {pause_status: PAUSED}
              webhook_notifications: {on_failure: [{id: a}]}
              job_clusters: [{job_cluster_key: main, new_cluster: "${var.cluster}"}]
              tasks:
                - <<: *defaults
                  task_key: load
                  job_cluster_key: main
                  notebook_task:
                    notebook_path: load.ipynb
                    base_parameters: {run: "{{job.run_id}}"}
            each:
              schedule: {quartz_cron_expression: "0 0/15 8-18 ? * MON-FRI", timezone_id: America/Sao_Paulo}
              tasks:
                - task_key: each
                  for_each_task:
                    inputs: "[1, 2]"
                    task:
                      task_key: one
                      new_cluster: {policy_id: a, num_workers: 0}
                      spark_python_task: {python_file: a.py, parameters: ["{{input}}"]}
    """,
    "experiments, models, monitors and what a deployment knows": """
        bundle: {name: ml}
        permissions: [{level: CAN_VIEW, group_name: users}, {level: CAN_RUN, group_name: ops}]
        targets:
          test: {workspace: {root_path: ~/.bundle/test}}
          prod:
            mode: production
            workspace: {root_path: "/Workspace/Deployments/${bundle.name}"}
            resources: {jobs: {train: {run_as: {service_principal_name: a}}}}
        resources:
          schemas:
            ml: {catalog_name: main, name: ml, grants: [{principal: users, privileges: [SELECT]}]}
          volumes:
            data: {catalog_name: main, schema_name: "${resources.schemas.ml.name}", name: data}
          experiments:
            own: {name: "/Users/${workspace.current_user.userName}/own"}
            of_somebody: {name: /Users/a@example.com/trials}
            below: {name: "${workspace.root_path}/below/trials"}
          quality_monitors:
            watch:
              table_name: main.ml.predictions
              assets_dir: /Workspace/Users/a
              output_schema_name: main.${resources.schemas.ml.name}
              snapshot: {}
              schedule: {quartz_cron_expression: "0 0 8 L * ?", timezone_id: UTC}
          database_instances: {online: {name: online, capacity: CU_1}}
          clusters:
            shared: {spark_version: 15.4.x-scala2.12, node_type_id: a, num_workers: 1}
          jobs:
            train:
              tasks:
                - task_key: load
                  existing_cluster_id: ${resources.clusters.shared.id}
                  spark_python_task:
                    python_file: a.py
                    parameters: ["${resources.volumes.data.volume_path}", "${resources.jobs.train.url}"]
    """,
}


@pytest.mark.parametrize("content", RIGHT.values(), ids=RIGHT)
def test_a_bundle_that_is_right_has_no_findings(project: Project, content: str) -> None:
    notebook(project.root / "load.ipynb", "1", parameters="run = ''\n")
    (project.root / "databricks.yml").write_text(textwrap.dedent(content))
    if "load.ipynb" not in content:
        (project.root / "load.ipynb").unlink()
    project.commit()
    assert lines_of(project.root) == []


# each is accepted by the real CLI: what stands in the bundle, and the notes about it
ACCEPTED: dict[str, tuple[str, list[str]]] = {
    "an outcome without quotes": (
        """
        tasks:
          - {task_key: a, condition_task: {op: EQUAL_TO, left: "1", right: "1"}}
          - {task_key: b, depends_on: [{task_key: a, outcome: true}], notebook_task: {notebook_path: load.ipynb}}
        """,
        [],
    ),
    "serverless notebooks": (
        "tasks: [{task_key: a, notebook_task: {notebook_path: load.ipynb}}]",
        [],
    ),
    "a job outside the bundle": (
        "tasks: [{task_key: a, run_job_task: {job_id: 123456789}}]",
        ["job 123456789 is not in the bundle; not checked"],
    ),
    "notebooks of another repository": (
        """
        git_source: {git_url: "https://example.com/a.git", git_provider: gitHub, git_branch: main}
        tasks: [{task_key: a, notebook_task: {notebook_path: nbs/there}}]
        """,
        ["nbs/there is in another repository; not checked"],
    ),
    "a notebook of the workspace": (
        "tasks: [{task_key: a, notebook_task: {notebook_path: /Shared/there}}]",
        ["/Shared/there is in the workspace; not checked"],
    ),
    "notebooks as text": (
        """
        tasks:
          - {task_key: a, notebook_task: {notebook_path: as_text.py, base_parameters: {x: 1}}}
          - {task_key: b, notebook_task: {notebook_path: as_text.sql, warehouse_id: w}}
        """,
        [
            "parameters and values of as_text.py are not checked",
            "parameters and values of as_text.sql are not checked",
        ],
    ),
    "a job parameter that no notebook declares": (
        """
        parameters: [{name: other, default: a}]
        tasks: [{task_key: a, notebook_task: {notebook_path: load.ipynb}}]
        """,
        ["load.ipynb declares no parameter other, nor does another notebook of the job"],
    ),
    "parameters that a notebook reads as widgets": (
        "tasks: [{task_key: a, notebook_task: {notebook_path: widgets.ipynb, base_parameters: {x: 1}}}]",
        [
            "churn run job refuses this: job.a: widgets.ipynb declares no parameter 'x'; it declares none"
        ],
    ),
    "every dynamic value": (
        """
        parameters: [{name: run.day, default: a}]
        tasks:
          - {task_key: a, sql_task: {warehouse_id: w, query: {query_id: q}}}
          - task_key: b
            depends_on: [{task_key: a}]
            notebook_task:
              notebook_path: as_text.py
              base_parameters:
                p01: "{{job.parameters.[run.day]}} {{job.id}} {{job.name}} {{job.run_id}}"
                p02: "{{job.repair_count}} {{job.start_time.iso_date}} {{job.start_time.[timestamp_ms]}}"
                p03: "{{job.trigger.type}} {{job.trigger.time.iso_datetime}} {{job.trigger.file_arrival.location}}"
                p04: "{{task.name}} {{task.run_id}} {{task.execution_count}} {{task.notebook_path}}"
                p05: "{{tasks.a.run_id}} {{tasks.a.result_state}} {{tasks.a.error_code}} {{tasks.a.execution_count}}"
                p06: "{{tasks.a.output.rows}} {{tasks.a.output.first_row.total}} {{tasks.a.output.alert_state}}"
                p07: "{{workspace.id}} {{workspace.url}} {{backfill.iso_datetime}} {{input}} {{input.key}}"
                p08: "{{job_id}} {{run_id}} {{start_date}} {{task_retry_count}} {{any_text}} {{our.own}}"
        """,
        ["parameters and values of as_text.py are not checked"],
    ),
    "every reference": (
        """
        description: >-
          ${bundle.name} ${bundle.target} ${bundle.environment} ${bundle.uuid} ${bundle.mode}
          ${bundle.git.branch} ${bundle.git.commit} ${bundle.git.origin_url} ${bundle.git.bundle_root_path}
          ${workspace.host} ${workspace.profile} ${workspace.root_path} ${workspace.file_path}
          ${workspace.artifact_path} ${workspace.state_path} ${workspace.resource_path} ${workspace.workspace_id}
          ${workspace.current_user.userName} ${workspace.current_user.displayName} ${workspace.current_user.id}
          ${workspace.current_user.short_name} ${workspace.current_user.domain_friendly_name}
          ${workspace.current_user.name} ${workspace.current_user.emails[0].value} ${variables.size.value}
          ${var.size} ${resources.jobs.job.id} ${resources.jobs.job.creator_user_name}
          ${resources.schemas.gold.full_name} ${resources.schemas.gold.storage_root} ${var.size_${var.one}}
        tasks: [{task_key: a, notebook_task: {notebook_path: load.ipynb}}]
        """,
        [],
    ),
    "a field that is an anchor": (
        """
        shared: &shared {max_retries: 1}
        tasks: [{<<: *shared, task_key: a, notebook_task: {notebook_path: load.ipynb}}]
        """,
        [],
    ),
}
AROUND = """
bundle: {{name: other}}
include: ["jobs/*.yml", "jobs/*/*.yml"]
common: &common {{timeout_seconds: 60}}
definitions: {{a: {{b: 1}}}}
variables: {{size: 3, one: {{default: one}}, size_one: {{default: 1}}}}
artifacts: {{lib: {{type: whl, build: "echo ${{HOME}}; uv build --wheel"}}}}
targets: {{dev: {{mode: development}}}}
resources:
  schemas: {{gold: {{name: gold, catalog_name: main}}}}
  jobs:
    job:
      <<: *common
      name: job
{job}
"""


@pytest.fixture
def other(project: Project) -> Project:
    """A folder with notebooks of every kind, without a settings.ini."""
    notebook(project.root / "load.ipynb", "1", parameters="run = ''\n")
    notebook(project.root / "widgets.ipynb", "dbutils.widgets.get('x')")
    (project.root / "as_text.py").write_text("# Databricks notebook source\nprint(1)\n")
    (project.root / "as_text.sql").write_text("-- Databricks notebook source\nselect 1\n")
    return project


@pytest.mark.parametrize(("job", "notes"), ACCEPTED.values(), ids=ACCEPTED)
def test_what_the_cli_accepts_passes_and_a_note_says_what_was_not_checked(
    other: Project, job: str, notes: list[str]
) -> None:
    body = textwrap.indent(textwrap.dedent(job).strip(), " " * 6)
    (other.root / "databricks.yml").write_text(AROUND.format(job=body))
    found = check(other.root, policies=False)
    assert [finding.text(other.root) for finding in found if finding.kind != "note"] == []
    assert [finding.message for finding in found] == notes


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ("postgres_projects: {p: {project_id: a}}", "postgres_projects: not checked"),
        ("moon_bases: {m: {name: a}}", "moon_bases: unknown here, not checked"),
        ("schemas: {s: {name: a, catalog_name: b, id: 7}}", "id is set by Databricks and skipped"),
    ],
)
def test_a_resource_of_a_newer_schema_passes_with_a_note(
    other: Project, resources: str, message: str
) -> None:
    (other.root / "databricks.yml").write_text(
        f"bundle: {{name: a}}\nresources: {{{resources}, jobs: {{j: {{name: '${{resources.{resources.split(':')[0]}.{resources.split('{')[1].split(':')[0]}.uid}}'}}}}}}\n"
    )
    (found,) = check(other.root, policies=False)
    assert (found.kind, message in found.message) == ("note", True)


def test_what_is_declared_by_nothing_is_still_found(other: Project) -> None:
    for wrong, message in [
        ("${bundl.target}", "'bundl.target' not found"),
        ("${HOME}", "'HOME' not found"),  # `databricks bundle plan` refuses it here
        ("${workspace.moon}", "'workspace.moon' not found"),
        ("${resources.schemas.gold.nam}", "'resources.schemas.gold.nam' not found"),
    ]:
        job = f"      description: {wrong}\n      tasks: [{{task_key: a, notebook_task: {{notebook_path: load.ipynb}}}}]"
        (other.root / "databricks.yml").write_text(AROUND.format(job=job))
        assert [line for line in lines_of(other.root) if message in line], wrong


def test_a_path_that_a_variable_holds_is_relative_to_the_file_that_names_it(other: Project) -> None:
    (other.root / "jobs").mkdir()
    (other.root / "databricks.yml").write_text(
        "bundle: {name: a}\ninclude: [jobs/*.yml]\nvariables: {where: {default: ../load.ipynb}}\n"
    )
    job = "tasks: [{task_key: a, notebook_task: {notebook_path: '${var.where}'}}]"
    (other.root / "jobs/one.yml").write_text(f"resources: {{jobs: {{job: {{{job}}}}}}}\n")
    assert check(other.root, policies=False) == []


# --- the commands -----------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_finding_and_exits_1(bundle: Project) -> None:
    edit(bundle.root, "min_workers: 1", "min_workers: 9")
    done = bundle.churn("bundle", "check", folder="nbs")
    assert done.returncode == 1
    line = (
        (bundle.root / "databricks.yml")
        .read_text()
        .splitlines()
        .index("              min_workers: 9")
    )
    assert done.stdout == (
        f"databricks.yml:{line + 1}: min_workers 9 is above max_workers 4; exchange them\n"
    )


def test_the_command_answers_in_json_and_exits_0_without_findings(
    bundle: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.root / "nbs")
    done = CliRunner().invoke(app, ["check", "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"findings": []})
    edit(bundle.root, "min_workers: 1", "min_workers: 9")
    done = CliRunner().invoke(app, ["check", "--json", "--target", "dev"])
    (found,) = json.loads(done.stdout)["findings"]
    assert (done.exit_code, found["path"]) == (1, "databricks.yml")
    assert line_of(LintFinding(bundle.root / found["path"], found["line"], "")).endswith(": 9")


def plan(**resources: str) -> dict[str, object]:
    """What `databricks bundle plan -o json` prints, for `kind__key="action"`."""
    entries = {
        "resources." + name.replace("__", "."): {"action": action}
        for name, action in resources.items()
    }
    return {"plan_version": 1, "cli_version": "1.7.0", "plan": entries}


@pytest.mark.parametrize("action", LOSSES)
def test_a_plan_that_loses_a_resource_is_stopped(tmp_path: Path, action: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan(schemas__gold=action, jobs__a="update", jobs__b="create")))
    done = CliRunner().invoke(app, ["guard", str(path)])
    assert (done.exit_code, done.stdout) == (1, f"{action} resources.schemas.gold\n")
    done = CliRunner().invoke(app, ["guard", str(path), "--allow", "schemas.gold"])
    assert done.exit_code == 0


def test_a_plan_without_a_loss_passes_and_its_changes_are_known() -> None:
    harmless = plan(
        jobs__a="update", jobs__b="create", volumes__v="skip", jobs__a__permissions="delete"
    )
    assert losses(harmless) == []
    assert changes(harmless) == [
        "update resources.jobs.a",
        "create resources.jobs.b",
        "delete resources.jobs.a.permissions",
    ]
    assert changes(plan(jobs__a="skip")) == []


def test_what_is_gone_already_is_no_loss() -> None:
    entry = {"action": "delete", "gone": True}
    assert losses({"plan": {"resources.jobs.a": entry}}) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"plan": {"resources.jobs.a": {}}}', "Error: x"])
def test_what_is_no_plan_is_refused_rather_than_passed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    done = CliRunner().invoke(app, ["guard", str(path)])
    assert isinstance(done.exception, BundleError)
    assert "\n" not in str(done.exception)


# --- compute ----------------------------------------------------------------------------------------


def test_the_mutator_gives_the_cli_the_job_that_is_checked_here() -> None:
    body = {
        "job_clusters": [{"job_cluster_key": "main", "new_cluster": {"spark_version": "1"}}],
        "environments": [{"environment_key": "light"}],
        "tasks": [
            {
                "task_key": "a",
                "job_cluster_key": "main",
                "libraries": [{"whl": "dist/*.whl"}],
                "notebook_task": {"notebook_path": "a.ipynb"},
            },
            {"task_key": "b", "run_job_task": {"job_id": "${resources.jobs.a.id}"}},
        ],
    }
    job = Job.from_dict(body)  # type: ignore[arg-type]
    classic = choose_compute.function(DeployedBundle(target="dev"), job).as_dict()
    assert "environments" not in classic
    assert classic["tasks"][0]["job_cluster_key"] == "main"
    variables = {"compute": "serverless"}
    light = choose_compute.function(
        DeployedBundle(target="dev", variables=variables), job
    ).as_dict()
    assert "job_clusters" not in light
    assert light["tasks"][0]["environment_key"] == "light"
    assert not {"job_cluster_key", "libraries"} & light["tasks"][0].keys()
    assert "environment_key" not in light["tasks"][1]


@pytest.mark.parametrize(
    ("variables", "kept"),
    [({}, "schedule"), ({"scoring_trigger": "table_update"}, "trigger")],
)
def test_the_cli_starts_a_job_by_one_thing(variables: dict[str, str], kept: str) -> None:
    watched = {"table_update": {"table_names": ["shop.bronze.events"]}}
    daily = {"quartz_cron_expression": "0 0 4 * * ?", "timezone_id": "UTC"}
    target = DeployedBundle(target="dev", variables=variables)
    for own in (
        {"schedule": daily, "trigger": watched},
        {kept: {"schedule": daily, "trigger": watched}[kept]},
    ):
        job = Job.from_dict({"name": "scoring", "tasks": [{"task_key": "a"}], **own})
        found = choose_trigger.function(target, job).as_dict()
        assert found.keys() & {"schedule", "trigger"} == {kept}
    # a job that somebody starts by a schedule and something else is for the lint to name
    both = {"schedule": daily, "trigger": {"periodic": {"interval": 1, "unit": "DAYS"}}}
    job = Job.from_dict({"name": "other", "tasks": [{"task_key": "a"}], **both})
    assert {"schedule", "trigger"} <= choose_trigger.function(target, job).as_dict().keys()


# --- schedules and lines, on random input -----------------------------------------------------------

FIELDS = st.tuples(
    *(st.integers(least, most) for least, most in ((0, 59), (0, 59), (0, 23), (1, 31), (1, 12)))
)


@given(FIELDS, st.booleans())
def test_a_plain_moment_is_a_schedule(fields: tuple[int, ...], weekly: bool) -> None:
    second, minute, hour, day, month = fields
    days = f"? {month} {day % 7 + 1}" if weekly else f"{day} {month} ?"
    assert cron_problem(f"{second} {minute} {hour} {days}") is None
    assert cron_problem(f"{second + 60} {minute} {hour} {days}") is not None
    assert cron_problem(f"{minute} {hour} {days}") is not None


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_schedule_or_a_sentence(text: str) -> None:
    problem = cron_problem(text)
    assert problem is None or isinstance(problem, str)


@pytest.mark.parametrize("target", ["local", "dev", "production"])
def test_every_part_of_a_bundle_has_the_line_it_is_written_in(bundle: Project, target: str) -> None:
    content = read_sources(bundle.root, target).content

    def walk(part: object, parts: tuple[str | int, ...]) -> None:
        items = (
            part.items()
            if isinstance(part, dict)
            else enumerate(part)
            if isinstance(part, list)
            else ()
        )
        for key, value in items:
            place = place_of(content, (*parts, key))
            assert place is not None
            line = place.path.read_text().splitlines()[place.line - 1]
            assert str(key) in line if isinstance(key, str) else "-" in line or "[" in line, (
                parts,
                key,
                line,
            )
            walk(value, (*parts, key))

    walk(content, ())


def places(content: object, parts: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something stands in a file, however deep."""
    if parts:
        yield parts
    below = content.items() if isinstance(content, dict) else ()
    below = enumerate(content) if isinstance(content, list) else below
    for key, part in below:
        yield from places(part, (*parts, key))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([1.5, float("inf"), "", "x", "true", [], {}, [None], [[]], {"x": None}]),
    st.sampled_from([{"x": {"y": 1}}, {1: 2}, ["x"], [{}], "*", "2026-01-01"]),
    st.sampled_from(
        ["${", "${var.}", "${var.run_as}", "${var.catalog}", "${resources.jobs.first}"]
    ),
    st.sampled_from(
        ["${resources.jobs.first.id}", "{{tasks.make.values.made}}", "{{job.x}}", "{{"]
    ),
)
WAYS = st.sampled_from(["another value", "gone", "renamed", "in a list", "below a key", "one more"])


def changed(content: dict, place: tuple[str | int, ...], way: str, value: object) -> None:
    """Change one thing in a file."""
    *above, last = place
    parent: Any = content
    for part in above:
        parent = parent[part]
    if way == "gone":
        del parent[last]
    elif way == "renamed" and isinstance(parent, dict):
        parent[value if isinstance(value, str | int | None) else "x"] = parent.pop(last)
    elif way == "one more":
        parent[last] = {**parent[last], 1: 1} if isinstance(parent[last], dict) else [None]
    else:
        made = {"in a list": [parent[last]], "below a key": {"x": parent[last]}}
        parent[last] = made.get(way, value)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_is_changed_ends_in_findings_and_not_in_a_traceback(
    bundle: Project, data: st.DataObject
) -> None:
    name, text = data.draw(st.sampled_from([("databricks.yml", GOOD), ("more.yml", MORE)]))
    content = yaml.safe_load(text)
    place = data.draw(st.sampled_from(list(places(content))))
    changed(content, place, data.draw(WAYS), data.draw(ODD))
    (bundle.root / name).write_text(yaml.safe_dump(content))
    try:
        for found in check(bundle.root):
            assert "\n" not in str(found) and found.line >= 1
    except BundleError as error:
        assert "\n" not in str(error)
    finally:
        (bundle.root / name).write_text(text)
