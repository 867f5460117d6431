"""The workflows are valid, safe and pinned, and the gate is in the way: each is broken on purpose."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import ibis
import psutil
import pytest

from tools import benchmark_history, gate_comment, hooks, smoke_test, wheel, workflows

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COPIED = (
    ".github",
    ".gitignore",
    "Makefile",
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-deploy.lock",
    "requirements-monitor.lock",
    "azure-pipelines.yml",
    "databricks.yml",
    "tools",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What the checks read, to be broken."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, tmp_path / name)
    return tmp_path


def edit(root: Path, name: str, old: str, new: str, count: int = 1) -> None:
    """Replace a piece of a file; it stands there `count` times or more."""
    text = (root / name).read_text()
    assert text.count(old) >= 1, f"{name} has no {old!r}"
    (root / name).write_text(text.replace(old, new, count))


CI, CD, AZURE = ".github/workflows/ci.yml", ".github/workflows/cd.yml", "azure-pipelines.yml"
CHECKOUT = "actions/checkout@de0fac2e4500dabe0009e67214ff5f5447ce83dd # v6.0.2"
STEP = "      - run: make test\n"


def test_pins_and_gate_hold_in_the_workflows_as_they_are() -> None:
    """The slower checks of them are `make workflows`."""
    for check in (
        workflows.pins, workflows.github_gate, workflows.azure_gate, workflows.shell, workflows.scripts,
        workflows.sign_ins, workflows.clean_trees, workflows.installs,
    ):  # fmt: skip
        assert list(check(ROOT)) == []


@pytest.mark.parametrize(
    ("check", "name", "old", "new", "expected"),
    [
        (workflows.pins, CI, CHECKOUT, "actions/checkout@v6", "pin actions/checkout@v6 by commit"),
        (workflows.pins, CI, " # v6.0.2", "", "version beside it"),
        (workflows.actionlint, CI, STEP, "      - run: echo ${{ steps.no.outputs.x }}\n", '"no"'),
        (workflows.actionlint, CD, "needs: staging", "needs: stagin", "stagin"),
        (
            workflows.zizmor,
            CI,
            STEP,
            "      - run: echo ${{ github.event.pull_request.title }}\n",
            "template-injection",
        ),
        (workflows.zizmor, ".github/workflows/gate-comment.yml", "  # zizmor: ignore[dangerous-triggers]", "  #", "dangerous-triggers"),
        (workflows.zizmor, CI, "permissions: {}", "permissions: write-all", "excessive-permissions"),
        (workflows.schemas, CI, "timeout-minutes: 60", "timeout: 60", "timeout"),
        (workflows.schemas, AZURE, "  - stage: staging", "  - stag: staging", "stag"),
        (workflows.schemas, ".github/dependabot.yml", "interval: weekly", "interval: hourly", "hourly"),
        (workflows.shell, CI, STEP, "      - run: cd $HOME && rm -rf $x\n", "SC2086"),
        (workflows.shell, "tools/run_job.sh", '"$job"', "$job", "SC2086"),
        (workflows.shell, CD, 'echo "version=$version"', 'echo "version=$(tools/production_version.sh production)"', "SC2312"),
        (workflows.shell, AZURE, 'if [ "${now:-none}"', 'if [ "$(tools/production_version.sh production)"', "SC2312"),
        (workflows.shell, AZURE, "install_databricks_cli.sh\n", 'install_databricks_cli.sh "$(databricks version)"\n', "SC2312"),
        (workflows.scripts, "tools/run_job.sh", "databricks jobs get-run", "databricks jobs list-runs", "does not ask for the state"),
        (workflows.scripts, "tools/run_job.sh", '!= "TERMINATED SUCCESS"', '= "TERMINATED FAILED"', "takes a run for a success"),
        (workflows.scripts, "tools/run_job.sh", '("--$pair")', '("$pair")', "joined"),
        (workflows.scripts, "tools/run_job.sh", ' >>"$GITHUB_STEP_SUMMARY"', "", "summary of GitHub"),
        (workflows.scripts, "tools/run_job.sh", "##vso[task.uploadsummary]", "", "summary of Azure DevOps"),
        (workflows.scripts, "tools/run_job.sh", "tail -n 1", "head -n 1", "head ends a pipe early"),
        (workflows.scripts, "tools/promotion.sh", "*) fail", "*) true #", "lets a promotion pass"),
        (workflows.scripts, "tools/production_version.sh", "for pause in 5 15 0", "for again in 0", "first question that fails"),
        (workflows.scripts, "tools/newest_commit.sh", 'if [ "$newest" != "$1" ]', "if false", "does not compare it with the commit"),
        (workflows.scripts, "tools/newest_commit.sh", "git ls-remote --exit-code origin refs/heads/main", "git rev-parse HEAD", "does not ask which commit"),
        (workflows.scripts, "tools/wait_for_runs.sh", "databricks jobs list-runs", "echo", "does not ask what an earlier deployment"),
        (workflows.scripts, CD, 'promotion_job action=rollback "git_sha=$GIT_SHA"', "promotion_job action=rollback,git_sha=$GIT_SHA", "joins parameters"),
        (workflows.scripts, AZURE, 'action=copy "git_sha=$BUILD_SOURCEVERSION"', '"action=copy,git_sha=$BUILD_SOURCEVERSION"', "joins parameters"),
        (workflows.installs, CD, "make .venv/.deploy-installed", "make .venv/.dev-installed", "cd.yml: staging can sign in, and installs by 'make .venv/.dev-installed'"),
        (workflows.installs, CD, "make .venv/.deploy-installed", "pip install databricks-sdk", "cd.yml: staging can sign in"),
        (workflows.installs, ".github/workflows/monitor.yml", "make .venv/.monitor-installed", "make .venv/.run-installed", "alerts can sign in"),
        (workflows.installs, CI, '          python-version: "3.11"\n      - uses: databricks', '          python-version: "3.11"\n          cache: pip\n      - uses: databricks', "bundle can sign in, and installs by 'cache"),
        (workflows.installs, AZURE, "make .venv/.deploy-installed", "make .venv/.dev-installed", "azure-pipelines.yml: staging can sign in"),
        (workflows.installs, "Makefile", "requirements-deploy.lock --hashes", "requirements-deploy.lock", "does not install requirements-deploy.lock by its hashes"),
        (workflows.installs, "tools/install.sh", "--require-hashes -r", "-r", "does not ask for hashes"),
        (workflows.installs, "requirements.lock", "alembic==", "alembic>=", "alembic>=1"),
        (workflows.installs, "requirements-dev.lock", "-r requirements.lock", "--index-url https://example.org", "names a place"),
        (workflows.installs, "requirements-deploy.lock", "build==1.6.1 \\\n", "build==1.6.1\n", "has no hash"),
        *(
            (workflows.installs, ".github/CODEOWNERS", f"{name} ", "/other ", f"{name} runs where CI has signed in")
            for name in ("/Makefile", "/pyproject.toml", "/requirements*.lock", "/churn_lib/", "/nbs/lib/", "/tools/")
        ),
        (workflows.clean_trees, "databricks.yml", "    predeploy: ", "    postdeploy: ", "predeploy is not"),
        (workflows.clean_trees, "databricks.yml", "clean_tree.sh ${bundle.target}", "clean_tree.sh dev", "predeploy is not"),
        (workflows.clean_trees, ".gitignore", "/plan.json\n", "", "cd.yml: writes plan.json"),
        (workflows.clean_trees, ".gitignore", "/gate/\n", "", "ci.yml: writes gate/gate.json"),
        (workflows.clean_trees, ".gitignore", "/benchmark-history/\n", "", "nightly.yml: writes benchmark-history"),
        (workflows.clean_trees, AZURE, "> gate.md", "> other.md", "azure-pipelines.yml: writes other.md"),
        (workflows.sign_ins, CD, "  DATABRICKS_TOKEN_AUDIENCE: ${{ vars.DATABRICKS_TOKEN_AUDIENCE }}", "  NONE: x", "production signs in without DATABRICKS_TOKEN_AUDIENCE"),
        (workflows.sign_ins, CI, "vars.DATABRICKS_TOKEN_AUDIENCE", "vars.OTHER", "bundle signs in without DATABRICKS_TOKEN_AUDIENCE"),
        (workflows.sign_ins, CI, "/Workspace/Users/", "/Workspace/Bundles/", "not its principal's own"),
        (workflows.sign_ins, ".github/workflows/monitor.yml", "      DATABRICKS_TOKEN_AUDIENCE: ${{ vars.DATABRICKS_TOKEN_AUDIENCE }}\n", "", "alerts signs in without"),
        (workflows.sign_ins, "tools/azure_variables.sh", "export DATABRICKS_TOKEN_AUDIENCE", "export OTHER", "signs in without"),
        (workflows.sign_ins, "tools/required_variables.sh", "DATABRICKS_TOKEN_AUDIENCE", "", "does not ask for"),
        (workflows.github_gate, CD, "for name in $ALLOWED_LOSSES", "for name in $NONE", "does not read ALLOWED_LOSSES"),
        (workflows.azure_gate, AZURE, "for name in ${ALLOWED_LOSSES:-}", "for name in $NONE", "does not read ALLOWED_LOSSES"),
        (workflows.pins, CI, STEP, "      - {uses: actions/checkout@v6}\n", "pin actions/checkout@v6 by commit"),
        (workflows.variables, CD, "BUNDLE_VAR_readers", "BUNDLE_VAR_reader", "does not know BUNDLE_VAR_readers"),
        (workflows.variables, "databricks.yml", "variables:\n  catalog:", "variables:\n  fresh: {}\n  catalog:", "BUNDLE_VAR_fresh, which databricks.yml leaves open"),
        (workflows.cli_versions, CD, "version: 1.7.0", "version: 0.200.0", "CLI 0.200.0"),
        (workflows.cli_versions, AZURE, "tools/install_databricks_cli.sh", "tools/other.sh", "does not install the Databricks CLI"),
        (workflows.cli_versions, CD, "# v1.7.0", "# v1.6.0", "CLI 1.6.0"),
        (workflows.cli_versions, "tools/install_databricks_cli.sh", "setup-cli v1.7.0", "setup-cli v1.8.0", "CLI 1.8.0"),
        (workflows.cli_versions, CI, "setup-cli@bc7e6aab", "setup-cli@ac7e6aab", "pin several commits of setup-cli"),
        (workflows.cli_versions, "databricks.yml", ">= 1.7.0", ">= 1.8.0", "policy.py: names Databricks CLI 1.7.0"),
        (workflows.cli_versions, "databricks.yml", ">= 1.7.0", ">= 1.8.0", "CLI 1.7.0"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)  # fmt: skip
def test_what_is_broken_on_purpose_is_found(
    project: Path,
    check: Callable[[Path], Iterator[str]],
    name: str,
    old: str,
    new: str,
    expected: str,
) -> None:
    edit(project, name, old, new)
    found = list(check(project))
    assert [line for line in found if expected in line and "\n" not in line], found


NEWEST = '        run: tools/newest_commit.sh "$GIT_SHA"\n'
SETTLE = '          tools/run_job.sh production promotion_job action=settle "git_sha=$GIT_SHA"\n'
WAIT = "          tools/wait_for_runs.sh production promotion_job deployment_job\n"
GATE = '      - name: the gate\n        run: tools/run_job.sh staging validation_job "git_sha=$GIT_SHA"\n'


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        (CD, "    needs: staging\n", "", "production does not wait for staging"),
        (CD, GATE, "", "staging lacks tools/run_job.sh staging validation_job"),
        (CD, GATE, GATE.rstrip("\n") + " || true\n", "staging swallows an error"),
        (CD, GATE, GATE + "        continue-on-error: true\n", "staging goes on after an error"),
        (CD, GATE, GATE.replace("tools/run_job.sh", "echo tools/run_job.sh"), "staging lacks tools/run_job.sh staging validation_job"),
        (CD, GATE, GATE.rstrip("\n") + "; date\n", "staging swallows an error"),
        (CD, "failure() && ", "false && ", "production does not go back"),
        (CD, "          now=$(tools", "          then=$(tools", "production does not go back"),
        (AZURE, "and(failed(), ne", "and(false, ne", "production does not go back"),
        (".github/workflows/nightly.yml", "    name: Spark\n", "    name: Spark\n    environment: production\n", "enters the environment production"),
        (CD, GATE, GATE + "        if: false\n", "only if false"),
        (CD, "    needs: staging\n", "    needs: staging\n    if: always()\n", "a condition of its own"),
        (CD, "branches: [main]", "branches: [main, hotfix]", "a push to main alone"),
        (CD, "  push:\n", "  workflow_dispatch:\n  push:\n", "a push to main alone"),
        (CD, "    environment: production\n", "", "not in the environment production"),
        (CD, "${{ needs.staging.outputs.model_version }}", '"7"', "the version that staging validated"),
        (CD, "cancel-in-progress: false", "cancel-in-progress: true", "cancelled half-way"),
        (CD, "  production:\n    name", "  shortcut:\n    name", "staging and production alone deploy"),
        (CD, "          .venv/bin/churn bundle guard plan.json", "          true", "staging lacks"),
        (CI, STEP, "      - run: databricks bundle deploy -t production\n", "changes a workspace besides cd.yml"),
        (CD, "databricks bundle deploy --target production --plan plan.json", "databricks bundle deploy --target production", "production lacks databricks bundle deploy --target production --plan plan.json"),
        (CD, "tools/prepare_plan.sh production plan.json", "tools/prepare_plan.sh staging plan.json", "production lacks tools/prepare_plan.sh production plan.json"),
        (AZURE, "databricks bundle deploy --target staging --plan plan.json", "databricks bundle deploy --target staging", "staging lacks databricks bundle deploy --target staging --plan plan.json"),
        (AZURE, "tools/prepare_plan.sh production plan.json", "true", "production lacks tools/prepare_plan.sh production plan.json"),
        (AZURE, "    dependsOn: staging\n", "    dependsOn: checks\n", "production does not wait"),
        (AZURE, "tools/run_job.sh staging validation_job", "echo", "staging lacks tools/run_job.sh staging validation_job"),
        (AZURE, "and(succeeded(), eq", "and(always(), eq", "for checks that passed"),
        (AZURE, "        environment: production\n", "", "not in the environment production"),
        (CD, NEWEST, "        run: date\n", "production lacks tools/newest_commit.sh"),
        (CD, NEWEST, NEWEST + "        continue-on-error: true\n", "production goes on after an error"),
        (CD, NEWEST, NEWEST.rstrip("\n") + " || true\n", "production swallows an error"),
        (CD, NEWEST, NEWEST + "        if: github.run_attempt == 1\n", "only if github.run_attempt == 1"),
        (AZURE, "tools/newest_commit.sh", "echo", "production lacks tools/newest_commit.sh"),
        (CD, SETTLE, "", "production lacks tools/production_version.sh production, or has it too early"),
        (CD, SETTLE, SETTLE.rstrip("\n") + " || true\n", "production swallows an error"),
        (CD, SETTLE, SETTLE.replace("settle", "show"), "production lacks tools/production_version.sh production, or has it too early"),
        (CD, WAIT, "", "production lacks tools/wait_for_runs.sh production promotion_job deployment_job"),
        (CD, WAIT, WAIT.replace(" deployment_job", ""), "production lacks tools/wait_for_runs.sh"),
        (CD, "  " + SETTLE, "", "production does not go back"),
        (AZURE, "promotion_job action=settle", "promotion_job action=show", "production lacks tools/production_version.sh production, or has it too early"),
        (AZURE, "wait_for_runs.sh production promotion_job deployment_job", "wait_for_runs.sh production deployment_job", "production lacks tools/wait_for_runs.sh"),
        (AZURE, "promotion_job action=rollback", "promotion_job action=show", "production does not go back"),
        (CD, "promotion=$(tools/promotion.sh production)", "promotion=copy", "production lacks tools/promotion.sh production"),
        (CD, 'echo "promotion=$promotion"', 'echo "$promotion"', "asks for promotion and tells no step"),
        (CD, "promotion == 'copy'", "promotion == 'retrain'", "only if ${{ steps.how.outputs.promotion == 'retrain' }}"),
        (CD, "        if: ${{ steps.how.outputs.promotion == 'copy' }}\n", "", "whatever promotion is"),
        (CD, 'production training_job "git_sha=$GIT_SHA"', 'production scoring_job "git_sha=$GIT_SHA"', "production lacks tools/run_job.sh production training_job"),
        (CD, 'production validation_job "git_sha=$GIT_SHA"', 'production scoring_job "git_sha=$GIT_SHA"', "production lacks tools/run_job.sh production validation_job"),
        (AZURE, "promotion=$(tools/promotion.sh production)", "promotion=copy", "production lacks tools/promotion.sh production"),
        (AZURE, "variable=promotion]", "variable=other]", "asks for promotion and tells no step"),
        (AZURE, "eq(variables['promotion'], 'copy')", "ne(variables['promotion'], 'retrain')", "only if and(succeeded(), ne("),
        (AZURE, "                  condition: and(succeeded(), eq(variables['promotion'], 'copy'))\n", "", "whatever promotion is"),
        (AZURE, "run_job.sh production validation_job", "run_job.sh production scoring_job", "production lacks tools/run_job.sh production validation_job"),
        (AZURE, 'sh "$BUILD_SOURCEVERSION"', 'sh "$BUILD_SOURCEVERSION" || true', "production swallows an error"),
    ],
)  # fmt: skip
def test_a_way_around_the_gate_is_found(
    project: Path, name: str, old: str, new: str, expected: str
) -> None:
    edit(project, name, old, new)
    found = [*workflows.github_gate(project), *workflows.azure_gate(project)]
    assert [line for line in found if expected in line], found


@pytest.mark.parametrize(("name", "key"), [(CD, "run"), (AZURE, "bash")])
def test_an_older_run_is_stopped_before_it_has_done_anything(name: str, key: str) -> None:
    content = workflows.read(ROOT / name)
    jobs = content["jobs"] if name == CD else {each["stage"]: each for each in content["stages"]}
    first = next(step for step in workflows.steps(jobs["production"]) if key in step)
    assert first[key].startswith("tools/newest_commit.sh ")


def test_production_is_not_changed_before_the_newest_commit_was_asked_for(project: Path) -> None:
    text = (project / CD).read_text()
    step = text[text.index("      - name: this is main's newest commit\n") :]
    step = step[: step.index(NEWEST) + len(NEWEST)]
    deploy = "        run: databricks bundle deploy --target production --plan plan.json\n"
    (project / CD).write_text(text.replace(step, "").replace(deploy, deploy + step))
    assert any("or has it too early" in line for line in workflows.github_gate(project))


def test_what_was_left_is_settled_before_anybody_asks_what_serves(project: Path) -> None:
    """Else the version that nobody has proven would be the one to go back to."""
    text = (project / CD).read_text()
    step = text[text.index("      - name: what a cancelled run has left is settled\n") :]
    step = step[: step.index(SETTLE) + len(SETTLE)]
    move = "      - name: the version that staging validated, and no other\n"
    (project / CD).write_text(text.replace(step, "").replace(move, step + move))
    assert any("or has it too early" in line for line in workflows.github_gate(project))


@pytest.mark.parametrize(("name", "key"), [(CD, "run"), (AZURE, "bash")])
@pytest.mark.parametrize(
    ("now", "before", "action"), [("2", "2", "settle"), ("3", "2", "rollback")]
)
def test_after_a_failure_what_has_moved_goes_back_and_what_has_not_is_settled(
    tmp_path: Path, name: str, key: str, now: str, before: str, action: str
) -> None:
    content = workflows.steps(workflows.read(ROOT / name))
    body = next(step[key] for step in content if "action=rollback" in step.get(key, ""))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/azure_variables.sh").touch()
    stand_in(tmp_path / "tools", "production_version.sh", f"echo {now}")
    stand_in(tmp_path / "tools", "run_job.sh", "")
    known = {**os.environ, "BEFORE": before, "GIT_SHA": "abc", "BUILD_SOURCEVERSION": "abc"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", body]
    subprocess.run(command, cwd=tmp_path, env=known, check=True, capture_output=True)
    _, asked = (tmp_path / "tools/asked").read_text().splitlines()
    assert asked.startswith(f"production promotion_job action={action} git_sha=abc")


@pytest.mark.parametrize(
    ("promotion", "code"), [("copy", 0), ("retrain", 0), ("both", 1), (None, 1)]
)
def test_ci_knows_how_a_version_comes_into_production(
    tmp_path: Path, promotion: str | None, code: int
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "tools/promotion.sh", tmp_path / "tools")
    known = {} if promotion is None else {"promotion": promotion}
    stand_in(tmp_path / ".venv/bin", "churn", f"echo '{json.dumps(known)}'")
    command = ["bash", str(tmp_path / "tools/promotion.sh"), "production"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.strip() == (promotion if code == 0 else "")
    assert (tmp_path / ".venv/bin/asked").read_text() == "settings --target production --json\n"
    if code:
        assert done.stderr.startswith("promotion.sh: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [CD, AZURE])
@pytest.mark.parametrize(
    ("promotion", "jobs"),
    [("copy", ["promotion_job"]), ("retrain", ["training_job", "validation_job"])],
)
def test_one_way_into_production_runs_and_the_other_does_not(
    name: str, promotion: str, jobs: list[str]
) -> None:
    """Between the question what serves and the deployment, by the conditions of the steps."""
    content = workflows.read(ROOT / name)
    parts = content["jobs"] if name == CD else {each["stage"]: each for each in content["stages"]}
    each_way = [form.format(promotion) for form in workflows.WHEN]
    ran = []
    for step in workflows.steps(parts["production"]):
        body = step.get("run") or step.get("bash") or ""
        condition = step.get("if") or step.get("condition")
        if "fail" in (condition or "") or (condition and condition not in each_way):
            continue
        ran += re.findall(r"run_job\.sh production (\w+)", body)
    assert ran == ["promotion_job", *jobs, "deployment_job"]  # the first one settles


def test_what_the_checks_run_is_all_there_is() -> None:
    own = {path.relative_to(ROOT) for path in (ROOT / ".github/workflows").iterdir()}
    assert own == {path.relative_to(ROOT) for path in workflows.workflows(ROOT)}
    assert len(workflows.CHECKS) == 13


# --- the steps that need no cloud, in a clean clone ------------------------------------------------------

CLOUD = (
    "databricks ",
    "run_job.sh",
    "production_version.sh",
    "smoke_test",
    "comment.sh",
    "install_databricks_cli",
    "prepare_plan",
    "alert_issues",
    "newest_commit.sh",
    "wait_for_runs.sh",
)
# these are `make test` itself, or what it does: running them here would run the tests in the tests
LONG = (
    "make test",
    "make coverage",
    "make lock",
    "make docs",
    "spark_tests.sh",
    "benchmark_history",
    "public_bundles",
    "tests.faults",
    "make rehearsal",
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone with the environment of this run as its .venv."""
    root = tmp_path_factory.mktemp("clone") / "project"
    command = ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(root)]
    subprocess.run(command, check=True, capture_output=True)
    files = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, files):  # as it would be committed now
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
            shutil.copymode(ROOT / name, root / name)
    (root / ".venv").symlink_to(BIN.parent, target_is_directory=True)
    for stamp in (".run-installed", ".dev-installed"):
        path = root / ".venv" / stamp
        if path.exists():
            os.utime(path)
    return root


def run_step(clone: Path, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a step as GitHub does, with the clone's package in front."""
    script = clone.parent / "step.sh"
    script.write_text(body)
    known = {
        **os.environ,
        "PYTHONPATH": str(clone),
        "OMP_NUM_THREADS": "1",  # threads that wait for each other on a busy machine take minutes
        "GIT_SHA": "0" * 40,
        "PULL_REQUEST": "7",
        "GITHUB_STEP_SUMMARY": str(clone.parent / "summary.md"),
        "GITHUB_OUTPUT": str(clone.parent / "output"),
        "CHURN_SETTINGS": str(clone / "settings.ini"),
        **environment,
    }
    with subprocess.Popen(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=clone,
        env=known,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as step:
        try:
            output, errors = step.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(step.pid).children(recursive=True):
                process.kill()  # kernels have process groups of their own
            raise
    return subprocess.CompletedProcess(step.args, step.returncode, output, errors)


def free_steps() -> list[tuple[str, str]]:
    """Shell steps of both systems that need no cloud, each once, with the file."""
    seen: dict[str, str] = {}
    for path in (*workflows.workflows(ROOT), ROOT / AZURE):
        for step in workflows.steps(workflows.read(path)):
            body = str(step.get("run") or step.get("bash") or "")
            if body and not any(word in body for word in (*CLOUD, *LONG)):
                # both systems run the pipeline: once is enough
                seen.setdefault(body.replace("$BUILD_SOURCEVERSION", "$GIT_SHA"), path.name)
    return [(name, body) for body, name in seen.items()]


@pytest.mark.timeout(1200)
def test_the_steps_that_need_no_cloud_run_in_a_clean_clone(clone: Path) -> None:
    ran = []
    for name, body in free_steps():
        if "make .venv" in body:  # installs what this test runs with: its target has to exist
            target = body.strip().split()[-1]
            makefile = (clone / "Makefile").read_text()
            assert f"$(VENV){target.removeprefix('.venv')}:" in makefile
            continue
        variables = {}
        if "required_variables" in body:
            listed = (clone / "tools/required_variables.sh").read_text()
            names = [word for word in listed.split() if word.startswith(("DATABRICKS_", "BUNDLE_"))]
            variables = {word.strip(";\\"): "x" for word in names}
        if "render < gate/gate.json > comment.md" in body:
            assert (clone / "gate/gate.json").exists() or not (clone / "gate").exists()
            (clone / "gate").mkdir(exist_ok=True)
            (clone / "gate/gate.json").touch()
        done = run_step(clone, body, **variables)
        assert done.returncode == 0, f"{name}: {body}\n{done.stdout}\n{done.stderr}"
        ran.append(body)
    text = "\n".join(ran)
    for wanted in ("churn run training_job", "churn run validation_job", "bundle check", "wheel"):
        assert wanted in text
    assert "### Gate" in (clone.parent / "summary.md").read_text()


def test_deploying_without_a_variable_is_refused(clone: Path) -> None:
    done = run_step(clone, "bash tools/required_variables.sh", DATABRICKS_HOST="x")
    assert done.returncode == 1
    assert "BUNDLE_VAR_service_principal is empty" in done.stderr
    assert "DATABRICKS_HOST" not in done.stderr


# --- the comment ------------------------------------------------------------------------------------------

REPORT = {
    "model_version": "2",
    "champion_version": "1",
    "verdict": "FAIL",
    "git_sha": "abcdef0123456789",
    "feature_date": "1998-04-01",
    "holdout_rows": "4705",
    "checks": [
        {"name": "roc_auc", "value": 0.7123, "bound": 0.8, "passed": False, "sentence": "at least"}
    ],
}


def test_a_gate_report_becomes_a_table() -> None:
    text = gate_comment.render(REPORT)
    assert text.startswith(f"{gate_comment.MARKER}\n### Gate: refused\n")
    assert "| roc&#95;auc | 0.7123 | 0.8000 | no | at least |" in text
    assert "against Production (1)" in text


@pytest.mark.parametrize("report", [None, {}, [], "text", {"verdict": ""}, {"checks": "x"}])
def test_whatever_is_no_report_says_that_the_gate_was_not_reached(report: Any) -> None:
    assert "The gate was not reached" in gate_comment.render(report)


@pytest.mark.parametrize(
    "evil",
    [
        "@everybody look",
        "a | b\n| c",
        "<img src=x onerror=alert(1)>",
        "[click](https://x.example)",
        "`code` **bold** ${{ x }}",
        "www.x.example and http://x.example, #7",
        10**400,
        "x" * 10_000,
    ],
)
def test_what_a_fork_has_sent_stays_one_plain_cell(evil: Any) -> None:
    check = {**REPORT["checks"][0], "name": evil, "sentence": evil}
    text = gate_comment.render({**REPORT, "verdict": evil, "checks": [check]})
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert table[2].count("|") == 6
    assert not set("@<[`*").intersection(table[2])
    assert not re.search(r"&#64;\w|#7|://|www\.\w", table[2])
    assert len(text) < 2_500


def test_the_newest_row_of_gate_reports_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, date, datetime

    import pyarrow as pa

    shutil.copyfile(ROOT / "settings.ini", tmp_path / "settings.ini")
    monkeypatch.setenv("CHURN_SETTINGS", str(tmp_path / "settings.ini"))
    assert gate_comment.collect("local") == {}
    rows = [
        {
            "report_id": f"r{number}",
            "created_at": datetime(2026, 1, number, tzinfo=UTC),
            "model_name": "m",
            "model_version": number,
            "champion_version": champion,
            "verdict": "PASS",
            "run_id": "r",
            "feature_date": date(1998, 4, 1),
            "delta_feature_version": 1,
            "holdout_rows": 9,
            "git_sha": "a" * 40,
            "report": json.dumps({"checks": REPORT["checks"]}),
        }
        for number, champion in ((2, 1), (3, None), (1, 1))
    ]
    from churn_lib import settings, tables

    store = tables.connect(settings.load("local"))
    table = pa.Table.from_pylist(rows)
    if hasattr(store, "append"):
        store.append("gold.gate_reports", ibis.memtable(table))
    else:
        store.overwrite("gold.gate_reports", ibis.memtable(table), None, {})
    report = gate_comment.collect("local")
    assert (report["model_version"], report["champion_version"]) == ("3", None)
    assert "against Production (none)" in gate_comment.render(report)


# --- the wheel, the smoke test, hooks, history -----------------------------------------------------


def test_the_same_code_is_the_same_wheel_and_other_code_another(tmp_path: Path) -> None:
    for name in wheel.SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, tmp_path / name)
    first = wheel.build(tmp_path)
    content, made = first.read_bytes(), first.stat().st_mtime_ns
    assert wheel.build(tmp_path).stat().st_mtime_ns == made
    first.unlink()
    assert wheel.build(tmp_path).read_bytes() == content
    with (tmp_path / "churn_lib/settings.py").open("a") as module:
        module.write("\n# changed\n")
    second = wheel.build(tmp_path)
    assert second.name != first.name
    assert list((tmp_path / "dist").glob("*.whl")) == [second]


class _Endpoint(BaseHTTPRequestHandler):
    """Serves `answer` to a request that has one record with the ten features."""

    answer: ClassVar[Any] = {"predictions": [0.25]}

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (record,) = body["dataframe_records"]
        from churn_lib.features import FEATURES

        known = self.path == "/serving-endpoints/here/invocations" and list(record) == FEATURES
        text = json.dumps(self.answer if known else {"error_code": "NOT_FOUND", "message": "no"})
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("DATABRICKS_TOKEN", "of-this-test")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "answer", "code"),
    [
        ("here", {"predictions": [0.25]}, 0),
        ("here", {"predictions": [{"churn_probability": 0.25}]}, 0),
        ("here", {"predictions": [1.5]}, 1),
        ("here", {"predictions": [[0.2, 0.8]]}, 1),
        ("here", {"predictions": []}, 1),
        ("here", {"predictions": [True]}, 1),
        ("here", [], 1),
        ("gone", {"predictions": [0.25]}, 1),
    ],
)
def test_the_smoke_test_wants_one_probability(
    endpoint: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    answer: Any,
    code: int,
) -> None:
    monkeypatch.setattr(_Endpoint, "answer", answer)
    with pytest.raises(SystemExit) as ended:
        smoke_test.main(name)
    assert ended.value.code == code
    assert capsys.readouterr().out.count("\n") == 1


def test_an_endpoint_that_may_not_be_asked_says_who_grants_it(
    endpoint: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As at the end of the first deployment, when the runner has just made it."""

    def refuse(self: _Endpoint) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        text = b'{"error_code": "PERMISSION_DENIED", "message": "no CAN_QUERY"}'
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text)

    monkeypatch.setattr(_Endpoint, "do_POST", refuse)
    with pytest.raises(SystemExit) as ended:
        smoke_test.main("here")
    assert ended.value.code == 1
    assert "may not query it: deployment_job grants that" in capsys.readouterr().out


def test_git_has_the_drivers_and_the_checks_of_this_project(clone: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [str(clone / ".venv/bin/python"), "-m", "tools.hooks"]
    subprocess.run(command, cwd=clone, env=environment, check=True, capture_output=True)
    for key, tool in (
        ("merge.jupyternotebook.driver", "nbdev-merge"),
        ("diff.jupyternotebook.command", "nbdev-diff-driver"),
    ):
        driver = hooks.git(clone, "config", key).decode().split('"')[1]
        assert driver == f".venv/bin/{tool}"
        assert (clone / driver).exists()
    pre_commit = (clone / ".git/hooks/pre-commit").read_text()
    assert "pre_commit" in pre_commit or "pre-commit" in pre_commit
    assert b"jupyternotebook" in hooks.git(clone, "check-attr", "merge", "nbs/index.ipynb")
    job = clone / "nbs/jobs/02_train_and_register.ipynb"
    before = job.read_bytes()
    content = json.loads(before)
    code = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    code["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["customer 00042\n"]}]
    job.write_text(json.dumps(content))
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    committing = ["git", *identity, "commit", "--all", "--message", "with outputs"]
    environment |= {"PRE_COMMIT_HOME": str(tmp_path / "pre-commit")}
    run = subprocess.run(committing, cwd=clone, env=environment, capture_output=True, text=True)
    job.write_bytes(before)
    assert run.returncode == 1
    assert (
        f"{job.relative_to(clone)} has outputs, or what papermill leaves" in run.stdout + run.stderr
    )


def test_a_benchmark_adds_a_line_to_its_history(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    source = "print('ratio 2.0')\nif __name__ == '__main__':\n    raise SystemExit(0)\n"
    (tmp_path / "benchmarks/fast.py").write_text(source)
    (tmp_path / "benchmarks/__init__.py").touch()
    history = tmp_path / "history"
    assert benchmark_history.main(history, tmp_path) == 0
    assert benchmark_history.main(history, tmp_path) == 0
    lines = [json.loads(line) for line in (history / "fast.jsonl").read_text().splitlines()]
    assert [line["output"] for line in lines] == ["ratio 2.0\n"] * 2
    # of another length: Python takes a module of the same second and length for unchanged
    (tmp_path / "benchmarks/fast.py").write_text(source.replace("(0)", "(13)"))
    assert benchmark_history.main(history, tmp_path) == 1
    (tmp_path / "benchmarks/fast.py").unlink()
    assert benchmark_history.main(history, tmp_path) == 1


# --- scripts that ask GitHub and Databricks, with a stand-in for their commands ------------------------


def stand_in(folder: Path, name: str, body: str) -> dict[str, str]:
    """A command of that name which notes how it was called; the environment that finds it."""
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$*" >> "{folder}/asked"\n{body}\n')
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("number", "head", "code"), [("7", "newer", 0), ("7; ls", "abc", 1), ("", "abc", 1)]
)
def test_a_run_cannot_comment_on_a_pull_request_that_is_not_its_own(
    tmp_path: Path, number: str, head: str, code: int
) -> None:
    environment = {**stand_in(tmp_path, "gh", f"echo {head}"), "REPOSITORY": "o/r"}
    (tmp_path / "number").write_text(number)
    command = ["bash", str(ROOT / "tools/comment.sh"), "number", "comment.md"]
    run = subprocess.run(
        command, cwd=tmp_path, env={**environment, "HEAD_SHA": "abc"}, timeout=60, check=False
    )
    assert run.returncode == code
    asked = tmp_path / "asked"
    assert "--method" not in (asked.read_text() if asked.exists() else "")


@pytest.mark.parametrize(("name", "key"), [(CD, "run"), (AZURE, "bash")])
def test_a_step_that_cannot_ask_what_serves_fails_and_says_nothing(
    tmp_path: Path, name: str, key: str
) -> None:
    """Every step that asks; none goes on with an empty answer."""
    asking = [
        step[key]
        for step in workflows.steps(workflows.read(ROOT / name))
        if "production_version.sh" in step.get(key, "")
    ]
    assert len(asking) == 3
    (tmp_path / "tools").mkdir()
    version = tmp_path / "tools/production_version.sh"
    version.write_text("#!/bin/sh\nexit 1\n")
    version.chmod(0o755)
    (tmp_path / "tools/azure_variables.sh").touch()
    run_job = tmp_path / "tools/run_job.sh"
    run_job.write_text("#!/bin/sh\ntouch moved\n")
    run_job.chmod(0o755)
    for body in asking:
        environment = {**os.environ, "GITHUB_OUTPUT": str(tmp_path / "output"), "BEFORE": "2"}
        environment |= {"GIT_SHA": "abc", "BUILD_SOURCEVERSION": "abc"}
        command = ["bash", "--noprofile", "--norc", "-e", "-c", body]
        run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode != 0, body
        assert "##vso" not in run.stdout
        assert not (tmp_path / "moved").exists() and not (tmp_path / "output").exists()


# --- main's newest commit, with a real repository and a server that wants a token -----------------------


def git_in(folder: Path, *arguments: str) -> str:
    """What git prints; no settings of this machine."""
    known = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    run = subprocess.run([*command, *arguments], env=known, check=True, capture_output=True)
    return run.stdout.decode().strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout as the actions make it, of a repository whose main has two commits."""
    origin = tmp_path / "origin"
    origin.mkdir()
    git_in(origin, "init", "--quiet", "--initial-branch", "main")
    for number in (1, 2):
        git_in(origin, "commit", "--quiet", "--allow-empty", "--message", f"number {number}")
    git_in(tmp_path, "clone", "--quiet", "--depth", "1", origin.as_uri(), "checkout")
    return tmp_path / "checkout"


def newest(folder: Path, commit: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the step's script in a checkout, without any settings of this machine."""
    script = str(ROOT / "tools/newest_commit.sh")
    known = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "HOME": str(folder)}
    known |= {"GIT_CONFIG_NOSYSTEM": "1", **environment}
    command = ["bash", script, commit]
    return subprocess.run(
        command, cwd=folder, env=known, capture_output=True, text=True, timeout=60
    )


def test_only_the_newest_commit_of_main_goes_on(checkout: Path) -> None:
    origin = checkout.parent / "origin"
    commits = [git_in(origin, "rev-parse", name) for name in ("main~1", "main")]
    older, last = (newest(checkout, commit) for commit in commits)
    assert (last.returncode, last.stdout) == (0, f"{commits[1]} is main's newest commit\n")
    assert (older.returncode, older.stdout, older.stderr.count("\n")) == (1, "", 1)
    assert f"main is at {commits[1]} by now, this run is of {commits[0]}" in older.stderr
    git_in(origin, "commit", "--quiet", "--allow-empty", "--message", "merged meanwhile")
    assert newest(checkout, commits[1]).returncode == 1
    git_in(origin, "branch", "--move", "trunk")
    unknown = newest(checkout, commits[1])
    assert unknown.returncode == 1
    assert "does not say which commit of main is the newest" in unknown.stderr


class _Repository(BaseHTTPRequestHandler):
    """The refs of a private repository, for whoever has the right header."""

    wanted: ClassVar[str] = ""
    commit: ClassVar[str] = "a" * 40

    def do_GET(self) -> None:
        known = self.headers.get("Authorization", "") == self.wanted
        self.send_response(200 if known else 401)
        if not known:
            self.send_header("WWW-Authenticate", 'Basic realm="repository"')
        body = f"{self.commit}\trefs/heads/main\n".encode() if known else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def private(checkout: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Repository)
    Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_address[1]}"
    git_in(checkout, "remote", "set-url", "origin", f"{host}/o/r")
    yield host
    server.shutdown()
    server.server_close()


def test_a_private_repository_is_asked_with_the_token_of_the_run(
    checkout: Path, private: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Repository, "wanted", "Basic eC1hY2Nlc3MtdG9rZW46YWJj")  # of abc
    token = {"GITHUB_SERVER_URL": private, "GH_TOKEN": "abc"}
    assert newest(checkout, "a" * 40, **token).returncode == 0
    assert newest(checkout, "b" * 40, **token).returncode == 1
    for refused in ({}, {**token, "GH_TOKEN": "other"}):
        assert "does not say which commit" in newest(checkout, "a" * 40, **refused).stderr


def test_what_the_checkout_has_left_is_used_and_taken_away(
    checkout: Path, private: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Repository, "wanted", "bearer abc")
    key = f"http.{private}/o/r.extraheader"
    git_in(checkout, "config", "--local", key, "AUTHORIZATION: bearer abc")
    assert newest(checkout, "a" * 40).returncode == 0
    assert "bearer" not in (checkout / ".git/config").read_text()
