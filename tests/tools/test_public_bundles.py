"""The nightly check of public bundles: names and counts, and a failure for a false alarm alone."""

import re
from pathlib import Path

import pytest
import yaml

from tools import public_bundles

ROOT = Path(__file__).parents[2]
RIGHT = "bundle: {name: a}\nresources: {jobs: {j: {tasks: [{task_key: a, run_job_task: {job_id: 7}}]}}}\n"
WRONG = "bundle: {name: secret}\nresources: {jobs: {j: {max_concurent_runs: 1}}}\n"


def write(folder: Path, **bundles: str) -> Path:
    """A folder of bundles, `a__b` for a/b."""
    for name, text in bundles.items():
        path = folder / name.replace("__", "/") / "databricks.yml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return folder


def test_bundles_without_a_finding_pass_by_name_and_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert public_bundles.main(write(tmp_path, one=RIGHT, deep__two=RIGHT)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "deep/two: 0 findings, 1 notes",
        "one: 0 findings, 1 notes",
        "2 bundles, 0 with a false alarm or a mistake that is not known",
    ]


def test_a_finding_fails_and_nothing_of_the_bundle_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert public_bundles.main(write(tmp_path, one=RIGHT, two=WRONG)) == 1
    printed = capsys.readouterr().out
    assert "two: 1 findings, 0 notes <--" in printed
    assert "secret" not in printed and "concurent" not in printed


def test_a_mistake_that_is_known_passes_and_one_more_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_bundles, "KNOWN", {"two": 1})
    assert public_bundles.main(write(tmp_path, two=WRONG)) == 0
    text = WRONG.replace("}}}", ", max_retrys: 1}}}")
    (tmp_path / "two/databricks.yml").write_text(text)
    assert public_bundles.main(tmp_path) == 1


def test_a_template_is_no_bundle_and_a_folder_without_any_fails(tmp_path: Path) -> None:
    write(tmp_path / "{{.project}}", one=WRONG)
    assert public_bundles.bundles(tmp_path) == []
    assert public_bundles.main(tmp_path) == 1


def test_the_nightly_checks_one_commit_of_the_examples() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/nightly.yml").read_text())["jobs"]
    steps = jobs["bundles"]["steps"]
    (examples,) = [step["with"] for step in steps if "repository" in step.get("with", {})]
    assert examples["repository"] == "databricks/bundle-examples"
    assert re.fullmatch("[0-9a-f]{40}", examples["ref"])
    assert examples["persist-credentials"] is False
    assert steps[-1]["run"].endswith(f"-m tools.public_bundles {examples['path']}")
