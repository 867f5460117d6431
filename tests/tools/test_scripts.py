"""The scripts of the deployment, with a workspace on loopback and a stand-in of each command they call."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tools.stand_ins import TOKEN, Workspace, command, serving
from tools import wheel

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with serving(Workspace()) as made:
        yield made


def run(
    tmp_path: Path, workspace: Workspace, *words: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A script of tools/, with `databricks` on PATH."""
    command(tmp_path / "bin", "databricks")
    known = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "DATABRICKS_HOST": workspace.url,
        "DATABRICKS_TOKEN": TOKEN,
        "RUN_JOB_PAUSE": "0.01",
        "PRODUCTION_VERSION_PAUSE": "0.01",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
        **environment,
    }
    return subprocess.run(
        ["bash", *words], env=known, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )


JOB = str(ROOT / "tools/run_job.sh")


def ended(result: str, cycle: str = "TERMINATED") -> dict[str, str]:
    return {"life_cycle_state": cycle, "result_state": result, "state_message": f"said {result}"}


RUNNING = {"life_cycle_state": "RUNNING"}


def test_a_run_that_succeeds_is_a_step_that_succeeds(tmp_path: Path, workspace: Workspace) -> None:
    workspace.ends = [RUNNING, ended("SUCCESS")]
    done = run(tmp_path, workspace, JOB, "staging", "some_job", "a=1")
    assert done.returncode == 0, done.stderr
    page = f"{workspace.url}/jobs/7/runs/88?o=900800700"
    assert f"Run URL: {page}" in done.stdout
    summary = (tmp_path / "summary.md").read_text()
    assert summary == f"- some_job on staging: TERMINATED SUCCESS, [run]({page})\n"


@pytest.mark.parametrize(
    "state",
    [
        *(
            ended(result)
            for result in (
                "FAILED",
                "TIMEDOUT",
                "CANCELED",
                "EXCLUDED",
                "UPSTREAM_FAILED",
                "UPSTREAM_CANCELED",
                "DISABLED",
                "SUCCESS_WITH_FAILURES",
                "MAXIMUM_CONCURRENT_RUNS_REACHED",
                "A_STATE_OF_TOMORROW",
            )
        ),
        {"life_cycle_state": "SKIPPED"},
        {"life_cycle_state": "INTERNAL_ERROR", "result_state": "FAILED"},
        {"life_cycle_state": "TERMINATED"},
    ],
    ids=lambda state: state.get("result_state", state["life_cycle_state"]),
)
def test_a_run_that_ends_in_another_state_is_a_step_that_fails(
    tmp_path: Path, workspace: Workspace, state: dict[str, str]
) -> None:
    workspace.ends = [state]
    done = run(tmp_path, workspace, JOB, "staging", "some_job")
    assert done.returncode == 1
    shown = " ".join(filter(None, (state["life_cycle_state"], state.get("result_state"))))
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"some_job on staging ended as {shown}, which is no success: ")
    assert f"some_job on staging: {shown}, [run](" in (tmp_path / "summary.md").read_text()


def test_values_reach_the_job_whole(tmp_path: Path, workspace: Workspace) -> None:
    workspace.ends = [ended("SUCCESS")]
    reason = 'late, wrong = "bad"; see a|b $HOME'
    done = run(tmp_path, workspace, JOB, "staging", "some_job", "git_sha=a", f"reason={reason}")
    assert done.returncode == 0, done.stderr
    (body,) = [body for method, path, body in workspace.asked if path.endswith("run-now")]
    assert body["job_parameters"] == {"git_sha": "a", "reason": reason}


def test_what_is_no_parameter_starts_nothing(tmp_path: Path, workspace: Workspace) -> None:
    done = run(tmp_path, workspace, JOB, "staging", "some_job", "git_sha")
    assert (done.returncode, workspace.asked) == (2, [])


def test_a_question_that_fails_once_decides_nothing(tmp_path: Path, workspace: Workspace) -> None:
    """The CLI gives up at it while the run goes on; the end of the run is awaited all the same."""
    for states, code in (([RUNNING, RUNNING, RUNNING, ended("SUCCESS")], 0), ([RUNNING, ended("FAILED")], 1)):  # fmt: skip
        workspace.ends = [*states]
        answers = iter((None, 500))  # the second question, which is the CLI's

        def fails(question: str, *, answers: Any = answers) -> bool:
            return question.endswith("runs/get") and next(answers, None) == 500

        workspace.fails = fails  # type: ignore[method-assign]
        done = run(tmp_path, workspace, JOB, "staging", "some_job")
        assert done.returncode == code, done.stdout + done.stderr


def test_a_run_whose_state_is_not_known_is_no_success(tmp_path: Path, workspace: Workspace) -> None:
    workspace.ends = [RUNNING]
    answers = iter((False,))
    workspace.fails = lambda question: question.endswith("runs/get") and next(answers, True)  # type: ignore[method-assign]
    done = run(tmp_path, workspace, JOB, "staging", "some_job")
    assert done.returncode == 1
    assert "cannot be asked for" in done.stderr.splitlines()[-1]
    assert "state not known, [run](" in (tmp_path / "summary.md").read_text()


def test_a_job_that_cannot_be_started_says_so(tmp_path: Path, workspace: Workspace) -> None:
    workspace.fail_once = {"POST /api/2.2/jobs/run-now"}
    done = run(tmp_path, workspace, JOB, "staging", "some_job")
    assert done.returncode == 1
    assert done.stderr == "some_job on staging has not started (databricks exited with 1)\n"
    assert (tmp_path / "summary.md").read_text() == "- some_job on staging: not started\n"


def test_azure_devops_gets_the_address_as_a_page(tmp_path: Path, workspace: Workspace) -> None:
    workspace.ends = [ended("SUCCESS")]
    azure = {"TF_BUILD": "True", "AGENT_TEMPDIRECTORY": str(tmp_path), "GITHUB_STEP_SUMMARY": ""}
    done = run(tmp_path, workspace, JOB, "staging", "some_job", **azure)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    page = Path(last.removeprefix("##vso[task.uploadsummary]"))
    assert page.name == "some_job.md"
    assert "/jobs/7/runs/88" in page.read_text()


# --- the version at Production -------------------------------------------------------------------------


@pytest.fixture
def version(tmp_path: Path) -> str:
    """production_version.sh of a project whose `churn` answers."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/production_version.sh", tmp_path / "tools")
    source = """
        import sys
        if sys.argv[3] != "staging":
            sys.exit("churn: settings.ini has no section")
        print('{"model_name": "a.b.c"}')
    """
    command(tmp_path / ".venv/bin", "churn", source)
    return str(tmp_path / "tools/production_version.sh")


@pytest.mark.parametrize(
    ("aliases", "printed"),
    [
        ([{"alias_name": "Staging", "version_num": 4}], ""),
        ([{"alias_name": "Staging", "version_num": 4}, {"alias_name": "Production", "version_num": 3}], "3\n"),
        (None, ""),
    ],
)  # fmt: skip
def test_the_version_at_production_is_asked_of_unity_catalog(
    tmp_path: Path, workspace: Workspace, version: str, aliases: Any, printed: str
) -> None:
    workspace.aliases = aliases
    done = run(tmp_path, workspace, version, "staging")
    assert (done.returncode, done.stdout) == (0, printed)
    assert workspace.asked[0][1].endswith("/models/a.b.c")


def test_one_failed_question_about_production_is_asked_again(
    tmp_path: Path, workspace: Workspace, version: str
) -> None:
    workspace.aliases = [{"alias_name": "Production", "version_num": 3}]
    workspace.fail_once = {"GET /api/2.1/unity-catalog/models"}
    done = run(tmp_path, workspace, version, "staging")
    assert (done.returncode, done.stdout) == (0, "3\n")


@pytest.mark.parametrize(
    ("target", "aliases", "reason"),
    [
        ("stagin", [], "the settings of stagin cannot be read"),
        ("staging", "none", "no answer of Unity Catalog"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_no_version(
    tmp_path: Path, workspace: Workspace, version: str, target: str, aliases: Any, reason: str
) -> None:
    workspace.aliases = aliases
    done = run(tmp_path, workspace, version, target)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert reason in done.stderr.splitlines()[-1]


def test_a_workspace_that_refuses_is_named(
    tmp_path: Path, workspace: Workspace, version: str
) -> None:
    done = run(tmp_path, workspace, version, "staging", DATABRICKS_TOKEN="another")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("what is at Production of a.b.c is not known")


# --- what is deployed ------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A commit of what the wheel is made of, with its wheel built."""
    folder = tmp_path / "project"
    (folder / "tools").mkdir(parents=True)
    for name in ("tools/clean_tree.sh", "tools/wheel.py", "tools/__init__.py", ".gitignore", *wheel.SOURCES[1:]):  # fmt: skip
        shutil.copy(ROOT / name, folder / name)
    (folder / "churn_lib").mkdir()
    (folder / "churn_lib/__init__.py").write_text('__version__ = "0.1.0"\n')
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1], target_is_directory=True)
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (("init", "-q"), ("add", "--all"), (*identity, "commit", "-qm", "first")):
        subprocess.run(["git", *words], cwd=folder, check=True)
    wheel.build(folder)
    return folder


def clean(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    call = ["bash", str(folder / "tools/clean_tree.sh"), target]
    known = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(call, env=known, capture_output=True, text=True, timeout=60)


def test_a_commit_is_deployed_and_what_ci_has_written_beside_it_does_not_count(
    checkout: Path,
) -> None:
    (checkout / "gate").mkdir()
    for name in ("plan.json", "again.json", "gate/gate.json", "comment.md", "gate.md"):
        (checkout / name).write_text("{}")
    done = clean(checkout, "staging")
    assert done.returncode == 0, done.stderr


def _edit(folder: Path) -> None:
    with (folder / "pyproject.toml").open("a") as file:
        file.write("# changed\n")


def _add(folder: Path) -> None:
    (folder / "churn_lib/more.py").touch()


def _stage(folder: Path) -> None:
    _add(folder)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)


def _build_before(folder: Path) -> None:  # a wheel of another state than the commit's
    _add(folder)
    wheel.build(folder)
    (folder / "churn_lib/more.py").unlink()


def _build_nothing(folder: Path) -> None:
    shutil.rmtree(folder / "dist")


def _leave_git(folder: Path) -> None:
    shutil.rmtree(folder / ".git")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_edit, "1 file(s) differ from it"),
        (_add, "1 file(s) differ from it"),
        (_stage, "1 file(s) differ from it"),
        (_build_before, "dist/ has not the wheel of this commit"),
        (_build_nothing, "dist/ has not the wheel of this commit"),
        (_leave_git, "this is no checkout of git"),
    ],
)
def test_what_no_commit_holds_is_deployed_to_dev_alone(
    checkout: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(checkout)
    for target in ("staging", "production"):
        done = clean(checkout, target)
        assert done.returncode == 1
        assert reason in done.stderr.splitlines()[-1]
    assert clean(checkout, "dev").returncode == 0


@pytest.mark.parametrize("right", [True, False])
def test_what_is_installed_by_hashes_is_the_very_file(tmp_path: Path, right: bool) -> None:
    name = "of_this_test-1.0-py3-none-any.whl"
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("of_this_test.py", "")
        for file, text in (
            ("METADATA", "Metadata-Version: 2.1\nName: of-this-test\nVersion: 1.0\n"),
            ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("RECORD", ""),
        ):
            archive.writestr(f"of_this_test-1.0.dist-info/{file}", text)
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() if right else "0" * 64
    lock = tmp_path / "requirements-deploy.lock"
    lock.write_text(f"of-this-test==1.0 \\\n    --hash=sha256:{digest}\n")
    known = {
        "PATH": "/usr/bin:/bin",  # pip, and no uv
        "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }
    call = [str(ROOT / "tools/install.sh"), "environment", lock.name, "--hashes"]
    done = subprocess.run(
        call, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=120
    )
    asked = subprocess.run([tmp_path / "environment/bin/python", "-c", "import of_this_test"])
    assert (asked.returncode == 0) == right, done.stderr
    assert ("THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr) != right


# --- the comment on a pull request -----------------------------------------------------------------------

GH = """
    import json, os, sys
    from pathlib import Path
    words = sys.argv[1:]
    place = Path(__file__).parent / "comments.json"
    comments = json.loads(place.read_text())
    if words[1].endswith("/pulls/7"):
        print("abc")
    elif words[1] == "--paginate":
        for page in comments:  # a page of an answer is written when it has come
            sys.stdout.write("".join(str(each) + "\\n" for each in page))
            sys.stdout.flush()
    else:
        with (place.parent / "asked").open("a") as asked:
            asked.write(" ".join(words[1:4]) + "\\n")
"""


@pytest.mark.parametrize(
    ("comments", "asked"),
    [
        ([[]], ["--method POST repos/o/r/issues/7/comments"]),
        ([[42]], ["--method PATCH repos/o/r/issues/comments/42"]),
        (
            [[42], [43], [*range(100_000, 120_000)][:3]],
            [
                "--method PATCH repos/o/r/issues/comments/42",
                *(
                    f"--method DELETE repos/o/r/issues/comments/{number}"
                    for number in (43, 100_000, 100_001, 100_002)
                ),
            ],
        ),
    ],
)
def test_a_pull_request_has_one_report(
    tmp_path: Path, workspace: Workspace, comments: list[list[int]], asked: list[str]
) -> None:
    command(tmp_path / "bin", "gh", GH)
    (tmp_path / "bin/comments.json").write_text(json.dumps(comments))
    (tmp_path / "number").write_text("7\n")
    known = {"REPOSITORY": "o/r", "HEAD_SHA": "abc"}
    done = run(tmp_path, workspace, str(ROOT / "tools/comment.sh"), "number", "comment.md", **known)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bin/asked").read_text().splitlines() == asked


# --- the plan that is deployed ---------------------------------------------------------------------------

WHEEL = "churn_lib-0.1.0+abc-py3-none-any.whl"
FOLDER = "/Workspace/Bundles/churn-prediction/staging/artifacts/.internal"
# answers `bundle plan` with what stands in now.json, and writes down what it is asked
DATABRICKS = """#!/usr/bin/env bash
echo "$*" >> asked
if [ "$2" = plan ]; then cat now.json; fi
"""


def prepare(folder: Path, plan: dict, now: dict) -> subprocess.CompletedProcess[str]:
    """Prepare a plan in `folder`; now: what the workspace would answer."""
    (folder / "dist").mkdir()
    (folder / "dist" / WHEEL).touch()
    (folder / "databricks").write_text(DATABRICKS)
    (folder / "databricks").chmod(0o755)
    for name, content in (("plan.json", plan), ("now.json", now)):
        (folder / name).write_text(json.dumps(content))
    call = ["bash", str(ROOT / "tools/prepare_plan.sh"), "staging", "plan.json"]
    known = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(call, cwd=folder, env=known, capture_output=True, text=True, timeout=60)


def planned(wheel_name: str = WHEEL, **more: str) -> dict:
    """A plan with one job that needs a wheel twice."""
    libraries = [{"whl": f"{FOLDER}/{wheel_name}"}, {"whl": f"{FOLDER}/{wheel_name}"}]
    tasks = {"tasks": [{"libraries": libraries}]}
    return {**more, "plan": {"resources.jobs.a": {"new_state": {"value": tasks}}}}


def test_the_wheel_of_a_plan_is_uploaded_where_the_plan_looks_for_it(tmp_path: Path) -> None:
    done = prepare(tmp_path, planned(lineage="x"), {})
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"workspace import-dir dist {FOLDER} --overwrite"]


def test_a_first_plan_is_stale_when_somebody_has_deployed_since(tmp_path: Path) -> None:
    done = prepare(tmp_path, planned(), planned(lineage="x"))
    assert done.returncode == 1 and "deployed for the first time since plan.json" in done.stderr
    assert "import-dir" not in (tmp_path / "asked").read_text()


def test_a_first_plan_is_good_while_there_is_no_deployment(tmp_path: Path) -> None:
    done = prepare(tmp_path, planned(), planned())
    assert done.returncode == 0 and "import-dir" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (planned("other.whl", lineage="x"), "plan.json wants other.whl, which is not in dist"),
        ({"lineage": "x", "plan": {}}, "plan.json names no wheel"),
    ],
)
def test_a_plan_of_another_commit_or_bundle_is_refused(
    tmp_path: Path, plan: dict, message: str
) -> None:
    done = prepare(tmp_path, plan, {})
    assert done.returncode == 1 and message in done.stderr
    assert not (tmp_path / "asked").exists()
