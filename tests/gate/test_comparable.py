"""Versions of another horizon or of sample data: not compared in silence, and replaced on record only."""

import datetime
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ibis
import mlflow
import numpy as np
import pytest

from churn_lib import registry, scoring, tables
from churn_lib import settings as settings_module
from churn_lib.data import events, simulation
from churn_lib.data.simulation import Population, simulate_to
from churn_lib.features import FEATURES, read_holdout, snapshots
from churn_lib.features.declaration import FeatureError
from churn_lib.features.holdout import in_holdout_bucket, newest_holdout
from churn_lib.features.labels import labels_of
from churn_lib.gate import comparison, judge
from churn_lib.gate.probe import Answers
from churn_lib.gate.report import GateReport
from churn_lib.monitoring import metrics
from churn_lib.registry import RegistryError, copy, promotion
from churn_lib.registry.models import Basis
from churn_lib.registry.promotion import GateFailed, PromotionRefused
from churn_lib.scoring import call_list
from churn_lib.settings import Settings
from churn_lib.testing import shop_tables
from churn_lib.training import TrainingError, train
from tests.conftest import run_job
from tests.gate.cases import evidence, good, make_holdout

ROOT = Path(__file__).parents[2]
CONFIG = settings_module.load("local", ROOT / "settings.ini")
HOLDOUT = make_holdout(0)
JOBS = ("01_feature_engineering", "02_train_and_register", "03_validate_and_promote")


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "DRAWS", 200)
        yield


def judged(ours: Basis | None, theirs: Basis | None, **more: Any) -> GateReport:
    """A candidate that answers as Production does, and far better than the bounds ask."""
    config = CONFIG.updated({"data.horizon_days": ours.horizon_days if ours else 90})
    champion = Answers(1, np.asarray(good(HOLDOUT)), basis=theirs)
    return judge(evidence(HOLDOUT, basis=ours), champion, HOLDOUT, config, **more)


def sentence(report: GateReport, name: str = "comparable") -> tuple[str, str]:
    (found,) = (finding for finding in report.results if finding.name == name)
    return found.verdict, found.sentence


OWN, MONTH = Basis(90, 0.2), Basis(30, 0.2)
CDNOW, SIMULATED = Basis(90, 0.2, "CDNOW"), Basis(90, 0.2, "simulation")


@pytest.mark.parametrize("pair", [(OWN, OWN), (CDNOW, CDNOW), (OWN, None), (None, OWN)])
def test_the_same_basis_or_one_that_nobody_knows_is_compared(
    pair: tuple[Basis | None, Basis | None],
) -> None:
    report = judged(*pair)
    assert (report.verdict, report.case.difference) == ("TIE", "")
    assert sentence(report) == ("passed", "predicts what version 1 predicts")


@pytest.mark.parametrize("pair", [(MONTH, OWN), (Basis(30, 0.2, "CDNOW"), CDNOW), (CDNOW, OWN)])
def test_another_horizon_or_a_sample_against_own_events_needs_a_reason(
    pair: tuple[Basis, Basis],
) -> None:
    report = judged(*pair)
    assert [found.name for found in report.failures] == ["comparable"]
    assert 'churn run validation_job -p replace_reason="..."' in sentence(report)[1]
    assert sentence(report, "champion_roc_auc")[0] == "not applicable"
    assert not report.tie
    blank = judged(*pair, replace_reason="  ")
    assert blank.verdict == "FAIL"
    replaced = judged(*pair, replace_reason="we write every month")
    assert replaced.verdict == "PASS"
    assert "replaced on purpose: we write every month" in sentence(replaced)[1]
    assert replaced.to_dict()["not_compared"] == report.case.difference
    assert replaced.best == 2


@pytest.mark.parametrize("theirs", [CDNOW, Basis(30, 0.2, "CDNOW")])
@pytest.mark.parametrize("ours", [OWN, SIMULATED])
def test_a_model_of_a_sample_gives_way_and_the_report_says_so(ours: Basis, theirs: Basis) -> None:
    report = judged(ours, theirs)
    data = "your own events" if ours is OWN else "the sample simulation"
    message = f"version 2 was trained on {data}, version 1 on the sample CDNOW"
    assert (report.verdict, report.case.difference) == ("PASS", message)
    assert "a model of a sample gives way" in sentence(report)[1]
    assert f"against no champion (not compared: {message})" in repr(report)


def test_a_candidate_of_another_horizon_than_the_labels_is_refused_for_any_reason() -> None:
    month = CONFIG.updated({"data.horizon_days": 30})
    report = judge(evidence(HOLDOUT, basis=OWN), None, HOLDOUT, month, replace_reason="please")
    assert sentence(report) == (
        "failed",
        "version 2 predicts churn within 90 days, and the labels are of data.horizon_days = 30: train a "
        "new version, or judge this one with data.horizon_days = 90 in settings.ini",
    )


def test_a_best_version_of_another_horizon_holds_nobody_up() -> None:
    best = Answers(1, np.asarray(good(HOLDOUT)), basis=OWN)
    production = Answers(2, np.asarray(good(HOLDOUT)) * 0.999, basis=MONTH)
    config = CONFIG.updated({"data.horizon_days": 30})
    report = judge(evidence(HOLDOUT, version=3, basis=MONTH), production, HOLDOUT, config, best)
    assert sentence(report, "best_so_far") == ("passed", "Production is the best version so far")
    assert report.best in (2, 3)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A small shop's own events; what its models are worth is no matter here."""
    folder = tmp_path_factory.mktemp("shop")
    text = (ROOT / "settings.ini").read_text()
    own = "roc_auc, f1_score, precision, beats_single_column, beats_base_rate"
    changes = {"data.snapshots": "2", "gate.advisory": f"{own}, single_row_latency, batch_latency"}
    lines = (f"{key} = {value}" for key, value in changes.items())
    text = text.replace("[local]", "[local]\n" + "\n".join(lines))
    (folder / "settings.ini").write_text(text)
    made = settings_module.load("local", folder / "settings.ini")
    for name, rows in zip(events.BRONZE, simulation.simulate(2_500), strict=True):
        tables.connect(made).overwrite(name, ibis.memtable(rows))
    return made


def run(config: Settings, name: str, **given: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHURN_SETTINGS", str(config.root / "settings.ini"))
        patch.setenv("CHURN_TASK_VALUES", str(config.root / "values"))
        return run_job(name, config.root, patch, **given)


@pytest.fixture(scope="module")
def month(config: Settings) -> Settings:
    """Version 1 at Production for 90 days; data.horizon_days is 30 now, and version 2 at Staging."""
    for name in JOBS:
        run(config, name)
    path = config.root / "settings.ini"
    path.write_text(path.read_text().replace("[local]", "[local]\ndata.horizon_days = 30"))
    for name in JOBS[:2]:
        run(config, name)
    return settings_module.load("local", path)


def test_a_version_says_its_horizon_holdout_and_data(month: Settings) -> None:
    models, store = registry.connect(month), tables.connect(month)
    assert registry.basis(models, 1, month, store) == Basis(90, 0.2)
    assert registry.basis(models, 2, month, store) == Basis(30, 0.2)
    for number, horizon in ((1, "90"), (2, "30")):
        tags = models.version(number).tags
        assert (tags["horizon_days"], tags["data_sample"]) == (horizon, "none")
    assert [row["horizon_days"] for row in registry.versions(models)] == ["30", "90"]


def test_a_version_without_the_tags_is_read_as_its_run_has_it(month: Settings) -> None:
    models, client = registry.connect(month), mlflow.MlflowClient()
    run_id = models.version(1).run_id
    address = f"runs:/{run_id}/churn-gbm"
    bare = client.create_model_version(month.model_name, address, run_id=run_id)
    assert registry.basis(models, int(bare.version), month).horizon_days == 90
    with mlflow.start_run() as foreign:
        mlflow.log_params({"horizon_days": 45})
    by_params = client.create_model_version(month.model_name, address, run_id=foreign.info.run_id)
    assert registry.basis(models, int(by_params.version), month) == Basis(45, 0.2)
    unknown = client.create_model_version(month.model_name, address)
    assert registry.basis(models, int(unknown.version), month) == Basis(30, 0.2)
    models.tag(int(unknown.version), {"horizon_days": "soon"})
    with pytest.raises(RegistryError, match="horizon_days = 'soon'"):
        registry.basis(models, int(unknown.version), month)
    for version in (bare, by_params, unknown):
        client.delete_model_version(month.model_name, version.version)


def test_the_gate_refuses_another_horizon_until_somebody_says_why(month: Settings) -> None:
    models, store = registry.connect(month), tables.connect(month)
    with pytest.raises(GateFailed, match="version 2 predicts churn within 30 days, version 1"):
        run(month, JOBS[2])
    assert models.version_of("Production") == 1
    values = run(month, JOBS[2], replace_reason="we write every month")
    assert values["production_version"] == 2
    assert values["warning"].startswith("not compared with Production: version 2 predicts")
    reason = promotion.history(models, store)[0]["reason"]
    assert reason == (
        "passed the gate; not compared: version 2 predicts churn within 30 days, version 1 within 90; "
        "on purpose: we write every month"
    )
    promotion.rollback(models, store, "a test needs it", "abc123", to=1)


def test_scores_and_monitor_keep_to_the_horizon_of_the_version(month: Settings) -> None:
    models, store = registry.connect(month), tables.connect(month)
    scorer = scoring.production(models, month, store)
    assert (scorer.version, scorer.basis) == (1, Basis(90, 0.2))
    message = "version 1: it predicts churn within 90 days, and data.horizon_days is 30 now"
    assert scorer.warning(month) == message
    today = datetime.date(2025, 6, 24)
    refresher = metrics.Refresher(store, models, month, today, today)
    assert refresher.settings_of(1).data.horizon_days == 90
    assert refresher.settings_of(2).data.horizon_days == 30
    assert refresher.settings_of(99).data.horizon_days == 30
    features = store.read("gold.features")
    assert call_list.gains_report(scorer, features, today, 30).feature_date is None


def test_labels_of_another_horizon_are_not_taken_for_those_of_this_one(month: Settings) -> None:
    store, day = tables.connect(month), datetime.date(2025, 4, 25)
    snapshots.check_labels(store, [day], month)
    longer = month.updated({"data.horizon_days": 60})
    with pytest.raises(FeatureError, match="has labels of 30 days for 2025-04-25"):
        snapshots.check_labels(store, [day], longer)
    # a version made again reads the table as it was then, whatever has been built since
    quarter, day = month.updated({"data.horizon_days": 90}), datetime.date(2025, 3, 26)
    tags = registry.connect(month).version(1).tags
    snapshots.check_labels(store, [day], quarter, int(tags["delta_feature_version"]))


def test_back_at_the_former_horizon_nobody_is_judged_by_labels_of_the_other(
    month: Settings, tmp_path: Path
) -> None:
    shutil.copytree(month.root, tmp_path / "back")
    path = tmp_path / "back" / "settings.ini"
    changed = "data.horizon_days = 90\ngate.promote_on_tie = true"
    path.write_text(
        path.read_text().replace("[local]\ndata.horizon_days = 30", f"[local]\n{changed}")
    )
    back = settings_module.load("local", path)
    models, store = registry.connect(back), tables.connect(back)
    today, shared = datetime.date(2025, 6, 24), datetime.date(2025, 3, 26)
    # a day of both rows of snapshots: its labels are of the horizon it was built for last
    rows = snapshots.snapshot(
        store.read("bronze.events"), store.read("bronze.customers"), shared, today, month
    )
    tags = {"feature_date": str(shared), "horizon_days": "30"}
    store.overwrite("gold.features", rows, {"feature_date": shared}, tags)
    scorer = scoring.production(models, back, store)
    assert scorer.basis == Basis(90, 0.2)
    report = call_list.gains_report(scorer, labels_of(store, back), today, 90)
    assert report.feature_date == datetime.date(2024, 12, 26)  # the newest of 90 days
    run(back, JOBS[0])
    assert newest_holdout(store.read("gold.features")) > shared  # labels of 30 days stay
    assert newest_holdout(labels_of(store, back)) == shared
    report = call_list.gains_report(scorer, labels_of(store, back), today, 90)
    assert report.feature_date == shared
    number = run(back, JOBS[1])["model_version"]
    judged = run(back, JOBS[2])
    # the last month has newer labels, and its snapshots hold nobody up
    assert judged["production_version"] == number


def test_versions_of_two_shares_are_compared_on_customers_that_both_held_back(
    month: Settings,
) -> None:
    features = tables.connect(month).read("gold.features")
    everybody, _ = read_holdout(features, month)
    fewer, _ = read_holdout(features, month, share=0.1)
    expected = [name for name in everybody.customer_id if in_holdout_bucket(name, 0.1)]
    assert fewer.customer_id.tolist() == expected
    assert 0 < len(fewer) < len(everybody)


def bare_version(config: Settings, **tags: str) -> registry.Registry:
    """A version that only its tags are known of, and that passed the gate."""
    models, store = registry.connect(config), tables.connect(config)
    models.client.create_registered_model(config.model_name)
    models.client.create_model_version(config.model_name, "s3://nobody/loads-it", tags=tags)
    row = {"report_id": "a", "model_name": config.model_name, "model_version": 1, "verdict": "PASS"}
    row |= {"created_at": datetime.datetime.now(datetime.UTC), "report": json.dumps({})}
    store.append("gold.gate_reports", ibis.memtable([row]))
    return models


@pytest.mark.parametrize("tags", [{"data_sample": "CDNOW"}, {"delta_bronze_events_version": "0"}])
def test_a_version_of_a_sample_is_neither_copied_nor_promoted_nor_deployed_in_production(
    tags: dict[str, str], tmp_path: Path
) -> None:
    changes = {"store": tmp_path, "model_name": "here"}
    here = CONFIG.model_copy(update=changes)
    events.ensure_bronze(tables.connect(here))
    models = bare_version(here, **tags)
    there = here.model_copy(update={"catalog": "there", "model_name": "there"})
    with pytest.raises(PromotionRefused, match="was trained on the sample CDNOW: it is not copied"):
        copy.copy(here, there, "abc", version=1)
    assert registry.connect(there).numbers() == []
    store = tables.connect(here)
    assert promotion.objection(models, store, 1, here) == ""
    for target in ("dev", "staging"):
        trying = here.model_copy(update={"target": target})
        assert promotion.objection(models, store, 1, trying) == ""
    production = here.model_copy(update={"target": "production"})
    reason = "version 1 was trained on the sample CDNOW, and production is for your own customers"
    assert promotion.objection(models, store, 1, production).startswith(f"{reason}: load their")
    with pytest.raises(PromotionRefused, match=reason):
        promotion.promote(models, store, 1, production, "abc")
    assert models.aliases() == {}


def test_production_trains_on_no_sample(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"store": tmp_path})
    store = shop_tables(config, 2_000)
    version = store.version("gold.features")
    data = train.read_data_set(store.read("gold.features", version), version, config)
    origin = replace(train.source(store, version, config), sample="simulation")
    here = config.model_copy(update={"target": "production"})
    with pytest.raises(
        TrainingError, match=r"bronze\.events of production is the sample simulation"
    ):
        train.train(data, here, "abc", origin)
    assert not (tmp_path / "mlflow.db").exists()  # there is no run


def test_simulated_events_are_a_sample_and_replace_cdnow_unasked(tmp_path: Path) -> None:
    store = tables.DeltaTables(tmp_path)
    events.ensure_bronze(store)
    assert events.sample_of(store) == "CDNOW"
    store.compact("bronze.events")
    simulate_to(store, Population(50))
    assert events.sample_of(store) == "simulation"
    assert events.sample_of(store, 0) == "CDNOW"
    store.append("bronze.events", store.read("bronze.events").limit(1))
    assert events.sample_of(store) == ""


def test_what_a_sample_led_to_goes_with_it_and_stays_readable(tmp_path: Path) -> None:
    store = tables.DeltaTables(tmp_path)
    bronze = events.ensure_bronze(store)
    day, config = datetime.date(1998, 4, 2), CONFIG
    list(snapshots.build(store, bronze, [day], datetime.date(1998, 7, 1), config))
    assert events.empty_derived(store, "CDNOW") == ""
    rows = store.read("gold.features").count().to_pyarrow().as_py()
    assert rows == 23_570
    assert events.empty_derived(store, "") == "CDNOW"
    assert store.read("gold.features").count().to_pyarrow().as_py() == 0
    assert store.read("gold.features", 0).count().to_pyarrow().as_py() == rows
    # the same events once more, as after a load that was cut off: built, not taken as unchanged
    (again,) = snapshots.build(store, bronze, [day], datetime.date(1998, 7, 1), config)
    assert again.built
    assert set(FEATURES) <= set(store.read("gold.features").columns)
