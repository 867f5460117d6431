"""A version that was changed after it was judged is promoted, served, scored, copied and reproduced by nobody."""

import json
import re
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, get_args

import ibis
import mlflow
import pytest

from churn_lib import registry, reproduction, scoring, settings, tables
from churn_lib.registry import Registry, copy, evidence, promotion
from churn_lib.registry.evidence import VersionChanged
from churn_lib.registry.promotion import PromotionRefused
from churn_lib.serving import deploy
from churn_lib.serving.deploy import DeploymentRefused
from churn_lib.serving.local.endpoints import load_version
from churn_lib.settings import Settings
from churn_lib.tables import Tables
from tests.serving import serving_store

NAMES = get_args(settings.GateCheck)
COMPLETE = {
    "checks": [{"name": name, "passed": True} for name in NAMES],
    "checks_expected": NAMES,
}


def judge(models: Registry, store: Tables, version: int, champion: int | None) -> None:
    """A report as the gate leaves it."""
    row = {
        "report_id": f"report-{version}-{champion}",
        "created_at": datetime.now(UTC),
        "model_name": models.model_name,
        "model_version": version,
        "champion_version": champion,
        "verdict": "PASS",
        "run_id": models.version(version).run_id,
        "feature_date": date(2025, 1, 1),
        "git_sha": "abc",
        "report": json.dumps({**COMPLETE, **evidence.judged_parts(models, version)}),
    }
    evidence.append_report(models, store, row)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 was at Production, 2 is, 3 has passed."""
    folder = tmp_path_factory.mktemp("changed")
    config = serving_store.settings_in(folder)
    models, store = registry.connect(config), tables.connect(config)
    rows = ibis.memtable(serving_store.feature_rows(50, seed=9).assign(customer_id=range(50)))
    rows = rows.mutate(in_holdout_bucket=True, churned=0, feature_date=ibis.date("2025-01-01"))
    store.overwrite("gold.features", rows)
    tags = {"delta_feature_version": "0", "holdout_feature_date": "2025-01-01"}
    for version in (1, 2, 3):
        serving_store.register(models, 4 + version, decision_threshold="0.4", **tags)
        judge(models, store, version, version - 1 or None)
        if version < 3:
            promotion.promote(models, store, version, config, "abc", by="ann")
    return folder


@pytest.fixture
def config(template: Path, tmp_path: Path) -> Settings:
    shutil.copytree(template, tmp_path / "project")
    return settings.load("local", tmp_path / "project" / "settings.ini")


def threshold(models: Registry, version: int) -> None:
    models.tag(version, {"decision_threshold": "0.99"})


def file(models: Registry, version: int) -> None:
    """The model of another version in the place of this one's."""
    address = f"models:/{models.model_name}"
    ours, theirs = (
        Path(mlflow.artifacts.download_artifacts(f"{address}/{number}")) / "model.pkl"
        for number in (version, version % 3 + 1)
    )
    ours.write_bytes(theirs.read_bytes())


Change = Callable[[Registry, int], None]
CHANGES = pytest.mark.parametrize(
    ("change", "what"),
    [(threshold, r"decision_threshold is 0\.99, was 0\.4"), (file, r"model\.pkl differs")],
)
USES: dict[str, tuple[int, Callable[[Registry, Tables, Settings], Any]]] = {
    "promotion": (3, lambda m, s, c: promotion.promote(m, s, 3, c, "abc")),
    "rollback": (1, lambda m, s, c: promotion.rollback(m, s, "why", "abc")),
    "scoring": (2, lambda m, s, c: scoring.batch.production(m, c, s)),
    "server": (2, lambda m, s, c: load_version(m.model_name, 2, 9, lambda line: None, lambda: s)),
    "deployment": (2, lambda m, s, c: deploy.deploy(c, m, s)),
    "reproduction": (2, lambda m, s, c: reproduction.reproduce(m, c, 2)),
    "copy": (2, lambda m, s, c: copy.copy(c, elsewhere(c), "abc")),
}


def elsewhere(config: Settings) -> Settings:
    return config.model_copy(update={"catalog": "there", "model_name": "there", "target": "there"})


@CHANGES
@pytest.mark.parametrize("use", USES)
def test_a_changed_version_is_refused_in_one_line(
    config: Settings, change: Change, what: str, use: str
) -> None:
    models, store = registry.connect(config), tables.connect(config)
    version, act = USES[use]
    change(models, version)
    aliases = models.aliases()
    with pytest.raises((VersionChanged, PromotionRefused, DeploymentRefused)) as refused:
        act(models, store, config)
    text = str(refused.value)
    assert "\n" not in text
    assert f"version {version} of {models.model_name} is not what gate report report-" in text
    assert re.search(what, text)
    assert f"`churn run validation_job -p model_version={version}` judges it again" in text
    assert models.aliases() == aliases


def test_what_nobody_has_changed_is_used(config: Settings) -> None:
    models, store = registry.connect(config), tables.connect(config)
    assert scoring.batch.production(models, config, store).version == 2
    assert load_version(models.model_name, 2, 9, lambda line: None, lambda: store).version == 2
    assert promotion.promote(models, store, 3, config, "abc").state == "PROMOTED"
    assert promotion.rollback(models, store, "why", "abc").to_version == 2


def test_a_forced_rollback_is_on_record_and_accepts_this_change_only(config: Settings) -> None:
    models, store = registry.connect(config), tables.connect(config)
    threshold(models, 1)
    with pytest.raises(PromotionRefused, match="--force puts it there as it is"):
        promotion.rollback(models, store, "no other way", "abc", by="bob")
    promotion.rollback(models, store, "no other way", "abc", by="bob", force=True)
    assert scoring.batch.production(models, config, store).threshold == 0.99
    (row,) = store.read(evidence.ACCEPTED).to_pyarrow().to_pylist()
    assert (row["model_version"], row["reason"]) == (1, "no other way")
    models.tag(1, {"decision_threshold": "0.98"})
    with pytest.raises(VersionChanged, match=r"decision_threshold is 0\.98"):
        scoring.batch.production(models, config, store)


def test_a_new_judgement_lets_the_changed_version_through(config: Settings) -> None:
    models, store = registry.connect(config), tables.connect(config)
    threshold(models, 3)
    judge(models, store, 3, 2)
    assert promotion.promote(models, store, 3, config, "abc").state == "PROMOTED"
    assert scoring.batch.production(models, config, store).threshold == 0.99


def test_a_forced_deployment_serves_the_changed_version_on_record(config: Settings) -> None:
    models, store = registry.connect(config), tables.connect(config)
    with serving_store.ended(config):
        threshold(models, 2)
        with pytest.raises(DeploymentRefused, match=r"was 0\.4.*--force --reason"):
            deploy.deploy(config, models, store, log=lambda line: None)
        done = deploy.deploy(
            config, models, store, log=lambda line: None, force=True, reason="a fair"
        )
        assert (done.outcome, done.version) == ("created", 2)
    (row,) = store.read(promotion.FORCED).to_pyarrow().to_pylist()
    assert "decision_threshold is 0.99, was 0.4" in row["objection"]
