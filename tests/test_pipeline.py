"""The pipeline as users run it: on CDNOW once, and job by job on a small made-up store."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ibis
import mlflow
import pandas as pd
import papermill
import pytest
from sklearn.dummy import DummyClassifier

from churn_lib import features, registry, settings, tables
from churn_lib.data import simulation
from churn_lib.serving.local import process
from churn_lib.training import train
from tests.conftest import run_job

ROOT = Path(__file__).parent.parent
JOBS = ROOT / "nbs" / "jobs"
BIN = Path(sys.executable).parent
TASK = "feature_engineering"


def environment(folder: Path) -> dict[str, str]:
    """An environment whose store is in `folder`, whatever the one outside says."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CHURN_", "MLFLOW_", "DATABRICKS_"))
    }
    return {**kept, "CHURN_SETTINGS": str(folder / "settings.ini")}


def make_store(folder: Path, changes: dict[str, str] | None = None) -> settings.Settings:
    """A settings.ini in `folder`, the project's with some values changed."""
    lines = (ROOT / "settings.ini").read_text().splitlines()
    for key, value in (changes or {}).items():
        number = next(n for n, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[number] = f"{key} = {value}"
    (folder / "settings.ini").write_text("\n".join(lines) + "\n")
    return settings.load("local", folder / "settings.ini")


def churn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The `churn` command on the store in `folder`."""
    return subprocess.run(
        [str(BIN / "churn"), *arguments],
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def churn_json(folder: Path, *arguments: str) -> dict:
    """The JSON answer of a `churn` command that has to succeed."""
    answer = churn(folder, *arguments, "--json")
    assert answer.returncode == 0, answer.stderr + answer.stdout
    return json.loads(answer.stdout)


def connect(folder: Path) -> registry.Registry:
    """The registry of the store in `folder`."""
    return registry.connect(settings.load("local", folder / "settings.ini"))


def values(run: dict) -> dict:
    """All task values of a run."""
    return {key: value for task in run["tasks"] for key, value in task["values"].items()}


@pytest.fixture(scope="module")
def cdnow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict]]:
    """The whole pipeline on CDNOW, and its answer."""
    folder = tmp_path_factory.mktemp("cdnow")
    config = make_store(folder)
    try:
        yield folder, churn_json(folder, "pipeline", "--param", "git_sha=abc123")
    finally:
        process.stop(config)


@pytest.fixture(scope="module")
def second(cdnow: tuple[Path, dict]) -> dict:
    """Training and validation on CDNOW, once more."""
    given = ("--param", "git_sha=def456")
    jobs = ("training_job", "validation_job")
    return {"jobs": [churn_json(cdnow[0], "run", job, *given) for job in jobs]}


def test_the_pipeline_on_cdnow_ends_in_a_model_at_production(cdnow: tuple[Path, dict]) -> None:
    _, answer = cdnow
    assert answer["state"] == "SUCCESS"
    jobs = [job["job"] for job in answer["jobs"]]
    assert jobs == [
        "training_job",
        "validation_job",
        "deployment_job",
        "scoring_job",
        "monitoring_job",
    ]
    assert values(answer["jobs"][1])["production_version"] == 1
    assert values(answer["jobs"][2])["served_version"] == 1


def test_each_task_says_in_a_sentence_what_it_did(cdnow: tuple[Path, dict]) -> None:
    tasks = [task for job in cdnow[1]["jobs"] for task in job["tasks"] if task["notebook"]]
    found = {task["task_key"]: task["values"].get("sentence", "") for task in tasks}
    assert {name for name, sentence in found.items() if not sentence.endswith(".")} == set()
    assert found["train_and_register"].startswith("Version 1 is at Staging: ROC-AUC 0.8367 ")
    assert found["validate_model"].startswith("Gate: PASS. Promoted version 1 to Production")
    assert found["deploy_endpoint"].endswith("serves churn-prediction-gbm version 1.")
    assert found["score_customers"].startswith("23,570 customers of 1998-07-01 scored by version 1")


def test_afterwards_the_state_of_the_project_asks_for_nothing(cdnow: tuple[Path, dict]) -> None:
    found = churn_json(cdnow[0], "status")
    assert found["data"]["events"] == 69_659 and found["data"]["sample"] == "CDNOW"
    assert (found["production"]["version"], found["production"]["verdict"]) == (1, "PASS")
    assert found["scores"]["model_version"] == 1
    assert [each["version"] for each in found["endpoint"]["served"]] == ["1"]
    assert {run["state"] for run in found["runs"].values()} == {"SUCCESS"}
    assert found["next"] == [], found["next"]


def test_it_beats_the_bound_and_the_best_single_column(cdnow: tuple[Path, dict]) -> None:
    run_id = values(cdnow[1]["jobs"][0])["run_id"]
    connect(cdnow[0])
    measured = mlflow.get_run(run_id).data.metrics
    assert measured["roc_auc"] >= 0.80
    assert measured["roc_auc"] > measured["best_single_column_roc_auc"]


def test_the_run_says_what_it_was_made_from(cdnow: tuple[Path, dict]) -> None:
    folder, answer = cdnow
    models = connect(folder)
    handed_over = values(answer["jobs"][0])
    run = mlflow.get_run(handed_over["run_id"])
    assert run.data.tags["git_sha"] == "abc123"
    assert run.data.tags["delta_feature_version"] == str(handed_over["delta_feature_version"])
    assert run.data.tags["training_feature_dates"] == "1997-07-06,1997-10-04,1998-01-02"
    assert run.data.tags["holdout_feature_date"] == "1998-04-02"
    config = settings.load("local", folder / "settings.ini")
    assert run.data.tags["settings_fingerprint"] == settings.fingerprint(config)
    assert models.version(1).tags["git_sha"] == "abc123"
    names = {"roc_auc", "f1_score", "precision", "recall", "average_precision", "brier"}
    assert names <= run.data.metrics.keys()
    assert "max_leaf_nodes" in run.data.params  # by autologging
    assert run.data.metrics["training_rows"] == 56_595
    assert run.data.tags["delta_bronze_events_version"] == "0"
    assert run.data.tags["delta_bronze_customers_version"] == "0"
    assert run.data.tags["git_dirty"] in ("true", "false", "unknown")
    assert {each.dataset.name for each in run.inputs.dataset_inputs} == {
        "gold.features training",
        "gold.features holdout",
    }
    for each in run.inputs.dataset_inputs:
        assert each.dataset.source_type == "delta_table"
        where = json.loads(each.dataset.source)
        assert where["delta_table_version"] == handed_over["delta_feature_version"]
        assert where["path"].endswith("/gold/features")


def test_the_logged_model_has_the_metrics_and_names_the_rows_they_were_measured_on(
    cdnow: tuple[Path, dict],
) -> None:
    models = connect(cdnow[0])
    handed_over = values(cdnow[1]["jobs"][0])
    run = mlflow.get_run(handed_over["run_id"])
    logged = mlflow.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert models.version(1).source == f"models:/{logged.model_id}"
    found = {each.key: each for each in logged.metrics}
    assert found["roc_auc"].value == run.data.metrics["roc_auc"]
    assert found["roc_auc"].dataset_name == "gold.features holdout"
    assert found["decision_threshold"].dataset_name == "gold.features training"
    inputs = {each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs}
    measured = [each for each in logged.metrics if each.dataset_name]
    assert all(inputs[each.dataset_name] == each.dataset_digest for each in measured)
    assert "max_leaf_nodes" in logged.params


def test_the_model_card_carries_intervals_slices_and_the_verdict(cdnow: tuple[Path, dict]) -> None:
    models = connect(cdnow[0])
    version = models.version(1)
    card = version.description
    for heading in ("Purpose", "Data", "Population", "Metrics", "Slices", "Limits", "Gate"):
        assert f"## {heading}" in card
    assert "**PASS** against no champion on 4,705 customers of 1998-04-02" in card
    assert "| recency_tier 3 |" in card
    assert "churn reproduce 1" in card
    line = next(line for line in card.splitlines() if line.startswith("| roc_auc | 0.8"))
    value, low, high = (float(cell) for cell in line.split("|")[2:5])
    assert low < value < high < low + 0.1
    page = mlflow.artifacts.load_text(f"runs:/{version.run_id}/model_card.html")
    assert "<table" in page and "http" not in page
    assert mlflow.artifacts.load_text(f"runs:/{version.run_id}/model_card.md") == card


def test_the_lock_hash_is_that_of_the_lock_beside_the_settings(tmp_path: Path) -> None:
    config = make_store(tmp_path)
    assert train.lock_hash(config) == "absent"
    (tmp_path / "requirements.lock").write_text("mlflow==3.8.1\n")
    assert train.lock_hash(config) == hashlib.sha256(b"mlflow==3.8.1\n").hexdigest()[:12]


def test_the_run_holds_plots_and_settings(cdnow: tuple[Path, dict]) -> None:
    connect(cdnow[0])
    run_id = values(cdnow[1]["jobs"][0])["run_id"]
    logged = {each.path for each in mlflow.MlflowClient().list_artifacts(run_id)}
    plots = {"roc.png", "precision_recall.png", "calibration.png", "importance.png"}
    assert plots | {"settings.json", "environment.json", "holdout_predictions.parquet"} <= logged


def test_the_logged_model_answers_one_probability_and_needs_no_package_of_ours(
    cdnow: tuple[Path, dict],
) -> None:
    folder, _ = cdnow
    models = connect(folder)
    served = models.load(1)
    assert [column.name for column in served.metadata.signature.inputs] == features.FEATURES
    assert served.metadata.signature.outputs is not None
    location = mlflow.artifacts.download_artifacts(
        f"models:/{models.model_name}/1", dst_path=str(folder / "model")
    )
    requirements = (Path(location) / "requirements.txt").read_text()
    assert "scikit-learn==1.6.1" in requirements
    script = (
        "import sys; sys.modules['ibis'] = sys.modules['deltalake'] = None\n"
        "import mlflow, json, pathlib\n"
        f"model = mlflow.pyfunc.load_model({location!r})\n"
        f"split = json.loads(pathlib.Path({location!r}, 'serving_input_example.json').read_text())\n"
        "import pandas as pd\n"
        "rows = pd.DataFrame(**split['dataframe_split'])\n"
        "print(json.dumps(list(model.predict(rows))))\n"
    )
    answered = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder
    )
    probabilities = json.loads(answered.stdout)
    assert len(probabilities) == 5
    assert all(0 < probability < 1 for probability in probabilities)


def test_a_second_run_makes_version_2_and_the_gate_compares_it_with_version_1(
    cdnow: tuple[Path, dict], second: dict
) -> None:
    judged = values(second["jobs"][1])
    assert judged["candidate_version"] == 2
    assert judged["production_version"] == 1
    assert judged["verdict"].startswith("Tie: version 2 answers exactly as version 1")


def test_a_second_run_builds_no_snapshot_again_and_a_rebuild_makes_the_same_rows(
    cdnow: tuple[Path, dict], second: dict
) -> None:
    store = tables.connect(settings.load("local", cdnow[0] / "settings.ini"))
    first = values(cdnow[1]["jobs"][0])["delta_feature_version"]
    assert values(second["jobs"][0])["delta_feature_version"] == first
    answer = churn_json(cdnow[0], "run", "training_job", "--rebuild", "--only", TASK)
    again = values(answer)["delta_feature_version"]
    assert again > first
    order = ["feature_date", "customer_id"]
    before, after = (
        store.read("gold.features", version).order_by(order).to_pandas()
        for version in (first, again)
    )
    pd.testing.assert_frame_equal(before, after)
    assert len(before) == 5 * 23_570


def test_models_are_listed_with_their_origin(cdnow: tuple[Path, dict], second: dict) -> None:
    listed = churn_json(cdnow[0], "models")["versions"]
    assert [row["version"] for row in listed] == [2, 1]
    assert listed[0]["aliases"] == ["Staging"]
    assert listed[1]["aliases"] == ["Production"]
    assert listed[1]["git_sha"] == "abc123"
    assert listed[1]["roc_auc"] >= 0.80
    assert "abc123" in churn(cdnow[0], "models").stdout


def test_a_candidate_with_shuffled_labels_is_refused_and_production_stays(
    cdnow: tuple[Path, dict], second: dict
) -> None:
    folder, _ = cdnow
    config = settings.load("local", folder / "settings.ini")
    store, models = tables.connect(config), registry.connect(config)
    version = store.version("gold.features")
    data = train.read_data_set(store.read("gold.features", version), version, config)
    shuffled = data.training["churned"].sample(frac=1, random_state=0).to_numpy()
    data.training["churned"] = shuffled
    staged = train.register(models, train.train(data, config, git_sha="sabotage"))
    answer = churn(folder, "run", "validation_job", "--param", "git_sha=abc123")
    assert answer.returncode == 1
    assert "GateFailed: version" in answer.stdout
    assert "promotion.py" not in answer.stdout  # the reasons, and no traceback
    assert "beats_single_column" in answer.stdout
    assert models.version_of(registry.PRODUCTION) == 1
    assert models.version(staged).tags["gate"] == "failed"


def test_a_model_of_another_make_is_judged_by_its_answers(
    cdnow: tuple[Path, dict], second: dict
) -> None:
    folder, _ = cdnow
    models = connect(folder)
    frame = pd.DataFrame(0.0, range(4), features.FEATURES)
    with mlflow.start_run():
        logged = mlflow.sklearn.log_model(
            DummyClassifier(strategy="constant", constant=1).fit(frame, [0, 1, 1, 1]),
            name="constant",
            serialization_format="cloudpickle",
            pip_requirements=["scikit-learn"],
        )
        mlflow.log_metric("roc_auc", 0.99)  # what somebody logs is no evidence
    number = models.register(logged.model_uri, {})
    answer = churn(
        folder, "run", "validation_job", "-p", f"model_version={number}", "-p", "git_sha=a"
    )
    assert answer.returncode == 1
    assert "roc_auc: 0.5000 against 0.8000" in answer.stdout
    assert models.version_of(registry.PRODUCTION) == 1


def test_a_parameter_that_the_job_does_not_have_is_refused_in_one_line(tmp_path: Path) -> None:
    make_store(tmp_path)
    answer = churn(tmp_path, "run", "training_job", "--param", "nonsense=1")
    assert answer.returncode == 2
    assert answer.stderr == (
        "churn: training_job has no parameter 'nonsense'; it has git_sha, as_of, rebuild, rehearsal, "
        "cause\n"
    )
    assert not (tmp_path / ".churn").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the events of 4,000 made-up customers, and settings that suit them."""
    folder = tmp_path_factory.mktemp("small")
    config = make_store(folder, {"data.snapshots": "3"})
    store = tables.connect(config)
    names = ("bronze.events", "bronze.customers")
    for name, rows in zip(names, simulation.simulate(4_000), strict=True):
        store.overwrite(name, ibis.memtable(rows))
    return folder


def run_notebook(folder: Path, name: str, **parameters: object) -> Path:
    """papermill on a job notebook, as a user would call it for real; returns the executed notebook."""
    output = folder / f"{name}.ipynb"
    given = {"rehearsal": False, **parameters}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_SETTINGS", str(folder / "settings.ini"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        papermill.execute_notebook(
            JOBS / f"{name}.ipynb", output, given, progress_bar=False, cwd=str(ROOT)
        )
    return output


@pytest.fixture(scope="module")
def promoted(small: Path) -> Path:
    """The same store after its first three jobs."""
    run_notebook(small, "01_feature_engineering", git_sha="abc")
    run_notebook(small, "02_train_and_register", git_sha="abc")
    run_notebook(small, "03_validate_and_promote", git_sha="abc")
    return small


def test_the_job_notebooks_run_by_papermill_one_after_the_other(promoted: Path) -> None:
    models = connect(promoted)
    assert models.aliases() == {"Staging": 1, "Production": 1}
    config = settings.load("local", promoted / "settings.ini")
    tagged = tables.connect(config).history("gold.features").tags.iloc[0]
    assert tagged["git_sha"] == "abc"
    assert tagged["bronze.events"] == "0"


def test_training_without_features_says_which_notebook_makes_them(tmp_path: Path) -> None:
    make_store(tmp_path)
    with pytest.raises(papermill.PapermillExecutionError, match=r"gold.features does not exist"):
        run_notebook(tmp_path, "02_train_and_register", git_sha="abc")


def test_validation_without_a_candidate_says_which_job_makes_one(tmp_path: Path) -> None:
    make_store(tmp_path)
    with pytest.raises(papermill.PapermillExecutionError, match=r"run training_job first"):
        run_notebook(tmp_path, "03_validate_and_promote", git_sha="abc")


def test_a_day_that_cannot_be_stood_on_is_refused_before_anything_is_written(small: Path) -> None:
    config = settings.load("local", small / "settings.ini")
    store = tables.connect(config)
    before = store.version("gold.features") if store.exists("gold.features") else None
    problem = "no customer had joined by 2023-06-05"
    with pytest.raises(papermill.PapermillExecutionError, match=problem):
        run_notebook(small, "01_feature_engineering", git_sha="abc", as_of="2024-03-01")
    after = store.version("gold.features") if store.exists("gold.features") else None
    assert after == before


def test_maintenance_spares_the_version_a_model_was_trained_on(
    tmp_path: Path, promoted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(promoted / ".churn", tmp_path / ".churn")
    config = make_store(tmp_path, {"data.snapshots": "3"})
    store = tables.connect(config)
    trained = int(registry.versions(connect(tmp_path))[0]["delta_feature_version"])
    expected = store.read("gold.features", trained).count().to_pyarrow().as_py()
    monkeypatch.setenv("CHURN_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("CHURN_TASK_VALUES", str(tmp_path / "values"))
    for _ in range(2):  # a later state that nobody needs, and the newest
        rebuilt = run_job("01_feature_engineering", tmp_path, monkeypatch, rebuild=True)
        assert int(rebuilt["delta_feature_version"]) > trained
    answer = churn_json(tmp_path, "data", "maintain", "--keep-days", "0")
    kept = {row["table"]: row["kept_for_models"] for row in answer["tables"]}
    assert kept["gold.features"] == [trained]
    again = tables.connect(config)
    assert again.read("gold.features", trained).count().to_pyarrow().as_py() == expected
    with pytest.raises(Exception, match=r"No files found|not find|No such file"):
        again.read("gold.features", trained + 1).count().to_pyarrow()
