"""`churn reproduce`: a clone of the project, its pipeline, and every version made again."""

import datetime
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import ibis
import numpy as np
import pandas as pd
import pytest

from churn_lib import registry, tables
from churn_lib import settings as settings_module
from churn_lib.data import simulation
from churn_lib.job_context import git
from churn_lib.provenance import checkout
from churn_lib.registry.evidence import all_reports
from churn_lib.reproduction import ReproductionError, _check, compare, first_difference
from churn_lib.training import read_record
from tests.checkouts import churn, commit, make_checkout, reproduced


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git checkout of this project with 3,000 made-up customers, and version 1 at Production."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    make_checkout(folder, settings={"data.snapshots": "2"})
    store = store_of(folder)
    names = ("bronze.events", "bronze.customers")
    for name, rows in zip(names, simulation.simulate(3_000), strict=True):
        store.overwrite(name, ibis.memtable(rows))
    answer = churn(folder, "run", "training_job")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder


def store_of(folder: Path) -> tables.DeltaTables:
    return tables.connect(settings_module.load("local", folder / "settings.ini"))


def models_of(folder: Path) -> registry.Registry:
    return registry.connect(settings_module.load("local", folder / "settings.ini"))


def test_a_clone_that_has_moved_on_makes_a_version_again_and_changes_nothing_else(
    project: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "elsewhere"
    git(tmp_path, "clone", "--quiet", str(project), str(clone))
    text = (clone / "settings.ini").read_text()
    (clone / "settings.ini").write_text(
        text.replace("training.random_state = 42", "training.random_state = 7")
    )
    commit(clone)
    store = f"\nstore = {project / '.churn'}"
    (tmp_path / "settings.ini").write_text(text.replace("\nstore = .churn", store))
    shutil.copy(project / "requirements.lock", tmp_path)
    before = models_of(project).aliases()
    answer = reproduced(clone, 1, CHURN_SETTINGS=str(tmp_path / "settings.ini"))
    assert answer["difference"] == ""
    assert (answer["identical"], answer["code"]) == (True, 0)
    assert answer["predictions"] > 100
    assert answer["metrics"] > 10
    assert answer["environment"] == []
    assert models_of(project).aliases() == before
    assert models_of(project).numbers() == [1]
    for folder in (project, clone):
        assert git(folder, "worktree", "list").count(b"\n") == 1
        assert git(folder, "status", "--porcelain") == b""
    assert list((project / ".churn" / "reproductions").iterdir()) == []


def test_uncommitted_changes_are_part_of_the_record(project: Path) -> None:
    both = (
        project / "churn_lib" / "training" / "estimators.py",
        project / "nbs" / "lib" / "training" / "estimators.ipynb",
    )
    committed = {path: path.read_text() for path in both}
    try:
        for path, text in committed.items():
            path.write_text(text.replace("learning_rate=0.03", "learning_rate=0.07"))
        (project / "note.txt").write_text("new\n")
        answer = churn(project, "run", "training_job", "--only", "train_and_register")
        assert answer.returncode == 0, answer.stdout + answer.stderr
    finally:
        for path, text in committed.items():
            path.write_text(text)
        (project / "note.txt").unlink()
    record = read_record(models_of(project), 2)
    assert record.tags["git_dirty"] == "true"
    assert record.tags["git_sha"].endswith("-dirty")
    assert b"learning_rate=0.07" in record.patch and b"note.txt" in record.patch
    first = read_record(models_of(project), 1)
    assert first.predictions is not None and record.predictions is not None
    assert first_difference(first.predictions, record.predictions)
    assert reproduced(project, 2)["identical"] is True


def test_what_differs_is_shown_first_customer_first_metric_or_model(project: Path) -> None:
    models, store = models_of(project), store_of(project)
    record = read_record(models, 1)
    assert record.predictions is not None and record.environment is not None
    assert compare(models, store, record, record).identical
    changed = record.predictions.copy()
    changed.loc[3, "churn_probability"] = np.nextafter(changed.churn_probability[3], 1)
    where = {**record.environment, "python": "3.0.0"}
    answer = compare(models, store, record, replace(record, predictions=changed, environment=where))
    assert f"1 of {len(changed)} rows differ in churn_probability" in answer.difference
    assert f"first customer {changed.customer_id[3]}" in answer.difference
    assert [name for name, _, _ in answer.environment] == ["python"]
    assert "NOT identical" in answer.sentences()[0]
    measured = replace(record, metrics={**record.metrics, "roc_auc": 0.99})
    assert "metric roc_auc is 0.99" in compare(models, store, record, measured).difference
    changed_record = replace(record, predictions=changed)
    assert (
        "registered model is not what"
        in compare(models, store, changed_record, changed_record).difference
    )


def test_a_commit_that_is_not_here_is_refused_in_one_line(project: Path) -> None:
    models = models_of(project)
    old = models.version(1).tags["git_sha"]
    models.tag(1, {"git_sha": "0123456789abcdef0123456789abcdef01234567"})
    try:
        answer = churn(project, "reproduce", "1")
    finally:
        models.tag(1, {"git_sha": old})
    assert answer.returncode == 2
    assert "--unshallow" in answer.stderr
    assert answer.stderr.startswith("churn: commit 0123456789abcdef")
    assert "git fetch --all" in answer.stderr


@pytest.mark.parametrize("sha", ["", "unknown"])
def test_a_version_made_outside_git_is_refused(project: Path, sha: str) -> None:
    record = read_record(models_of(project), 1)
    made = replace(record, tags={**record.tags, "git_sha": sha})
    with pytest.raises(ReproductionError, match="version 1 was made outside git"):
        _check(made, store_of(project))


def test_the_patch_leaves_secrets_and_large_new_files_out(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.py").write_text("old\n")
    commit(tmp_path)
    (tmp_path / "a.py").write_text("new\n")
    (tmp_path / "deep").mkdir()
    for name in (".env", "deep/.env.local", "deep/key.pem", ".databrickscfg"):
        (tmp_path / name).write_text("hunter2\n")
    (tmp_path / "data.bin").write_bytes(os.urandom(1_100_000))
    (tmp_path / "small.bin").write_bytes(bytes(range(256)))
    made = checkout(tmp_path)
    assert made.dirty == "true"
    assert b"hunter2" not in made.patch and b"data.bin" not in made.patch
    clone = tmp_path.parent / f"{tmp_path.name}-clone"
    git(tmp_path, "clone", "--quiet", str(tmp_path), str(clone))
    (clone / "uncommitted.patch").write_bytes(made.patch)
    git(clone, "apply", "uncommitted.patch")
    assert (clone / "a.py").read_text() == "new\n"
    assert (clone / "small.bin").read_bytes() == bytes(range(256))


def test_a_change_in_the_moment_of_the_commit_is_in_the_patch(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "core.trustctime", "false")  # what a coarse clock does by itself
    changed = tmp_path / "a.py"
    moment = (10**18, 10**18)  # git compares seconds: a copy of the index in a later one hides it
    changed.write_text("old\n")
    os.utime(changed, ns=moment)
    commit(tmp_path)
    changed.write_text("new\n")
    for each in (changed, tmp_path / ".git/index"):
        os.utime(each, ns=moment)
    assert b"+new" in checkout(tmp_path).patch


def test_a_version_is_judged_on_new_days_by_the_features_of_its_own_commit(
    project: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "later"
    git(tmp_path, "clone", "--quiet", str(project), str(clone))
    shutil.copytree(project / ".churn", clone / ".churn")
    for changed in ("churn_lib/features/definitions.py", "nbs/lib/features/definitions.ipynb"):
        text = (clone / changed).read_text()
        assert text.count("day.before(30)") == 1
        (clone / changed).write_text(text.replace("day.before(30)", "day.before(21)"))
    commit(clone)
    earlier = "as_of=2025-06-10"  # a day that no snapshot was built for
    trained = churn(clone, "run", "training_job", "-p", earlier)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    judged = churn(clone, "run", "validation_job", "-p", earlier, "-p", "model_version=1")
    (report,) = [json.loads(row["report"]) for row in all_reports(store_of(clone))]
    failed = {check["name"] for check in report["checks"] if check["passed"] is False}
    assert failed <= {"leakage_time"}, judged.stdout  # it has seen days after that holdout
    assert report["holdout_date"] == "2025-03-12"
    assert list((clone / ".churn" / "reproductions").iterdir()) == []
    answers = recorded_answers_of(clone)
    rows = store_of(clone).read("gold.features")
    now = rows.filter(rows.feature_date == datetime.date(2025, 3, 12)).to_pandas()
    both = answers.merge(now, on="customer_id", suffixes=("", "_now"))
    assert len(both) == len(answers) > 100
    assert (both.events_last_30d >= both.events_last_30d_now).all()
    assert (both.events_last_30d > both.events_last_30d_now).any()
    assert both.total_events.equals(both.total_events_now.astype(float))


def recorded_answers_of(folder: Path) -> pd.DataFrame:
    """What the only report has kept: the held-out customers as the version was asked about them."""
    rows = store_of(folder).read("gold.gate_answers").to_pandas()
    features = pd.DataFrame(list(map(json.loads, rows["features"])))
    return pd.concat([rows[["customer_id"]], features], axis=1)
