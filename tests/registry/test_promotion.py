"""Moves of Production: killed anywhere, raced by rivals, on SQLite and on a server over HTTP."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args

import ibis
import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from churn_lib import gate, registry, tables
from churn_lib import settings as settings_module
from churn_lib.cli import doctor, jobs, overview
from churn_lib.gate import comparison, judge
from churn_lib.gate.report import GateReport
from churn_lib.registry import (
    Registry,
    copy,
    promotion,
    promotion_log,
)
from churn_lib.registry.models import StoreError
from churn_lib.registry.promotion import GateFailed, PromotionRefused
from churn_lib.settings import Settings
from churn_lib.tables import DeltaTables
from tests.checkouts import change_settings
from tests.gate.cases import answers, blurred, given, good, make_holdout
from tests.shared import PROCESSES, empty_mlflow

ROOT = Path(__file__).parents[2]
NEWEST = date(2025, 3, 26)
NAMES = get_args(settings_module.GateCheck)
COMPLETE = {
    "checks": [{"name": name, "passed": True} for name in NAMES],
    "checks_expected": NAMES,
}
WRITES = [
    (DeltaTables, "append"),
    (DeltaTables, "append_if_unchanged"),
    (mlflow.MlflowClient, "log_text"),
    (mlflow.MlflowClient, "log_dict"),
    (mlflow.MlflowClient, "set_registered_model_alias"),
    (mlflow.MlflowClient, "set_registered_model_tag"),
    (mlflow.MlflowClient, "set_model_version_tag"),
    (mlflow.MlflowClient, "copy_model_version"),
]


def config(store: Path, model_name: str = "churn", **changes: Any) -> Settings:
    made = settings_module.load("local", ROOT / "settings.ini")
    return made.model_copy(update={"store": store, "model_name": model_name, **changes})


def judged(
    store: DeltaTables, model_name: str, version: int, champion: int | None, **changes: Any
) -> str:
    """Write a row of gold.gate_reports; its report_id."""
    row = {
        "report_id": uuid.uuid4().hex,
        "created_at": datetime.now(UTC),
        "model_name": model_name,
        "model_version": version,
        "champion_version": champion,
        "verdict": "PASS",
        "run_id": "run",
        "feature_date": NEWEST,
        "delta_feature_version": 0,
        "holdout_rows": 2,
        "git_sha": "abc",
        "report": json.dumps(COMPLETE),
        **changes,
    }
    types = {"created_at": pa.timestamp("us", tz="UTC"), "champion_version": pa.int64()}
    columns = {name: pa.array([value], types.get(name)) for name, value in row.items()}
    store.append("gold.gate_reports", ibis.memtable(pa.table(columns)))
    return str(row["report_id"])


def make(settings: Settings, versions: int = 3) -> tuple[Registry, DeltaTables]:
    """A registered model of a few versions, and labelled holdout rows."""
    models, store = registry.connect(settings), tables.connect(settings)
    models.client.create_registered_model(settings.model_name)
    for _ in range(versions):
        models.client.create_model_version(settings.model_name, "s3://nobody/loads-it")
    rows = ibis.memtable({"churned": [0, 1], "in_holdout_bucket": [True, True]})
    store.overwrite("gold.features", rows.mutate(feature_date=ibis.literal(NEWEST)))
    return models, store


def promote(settings: Settings, version: int, **more: Any) -> promotion.Decision:
    models, store = registry.connect(settings), tables.connect(settings)
    return promotion.promote(models, store, version, settings, "abc", by="ann", **more)


def moves(settings: Settings) -> list[tuple[str, int | None, int]]:
    """Action, from and to of each move, oldest first."""
    seen = promotion_log.read(tables.connect(settings), settings.model_name)
    return [(move.action, move.from_version, move.to_version) for move in seen.moves]


@retry(
    retry=retry_if_exception_type((urllib.error.URLError, OSError)),
    wait=wait_fixed(0.1),
    stop=stop_after_delay(120),
    reraise=True,
)
def wait_for(address: str) -> None:
    urllib.request.urlopen(f"{address}/health", timeout=5).close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real `mlflow server`; its address."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    artifacts = ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *store, *artifacts], stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = config(tmp_path / "store")
    empty_mlflow(made)
    return made


@pytest.fixture(params=["sqlite", "http"])
def place(
    request: pytest.FixtureRequest, local: Settings, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Settings of a model of its own, on each kind of store."""
    if request.param == "http":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server"))
    return local.model_copy(update={"model_name": f"churn-{uuid.uuid4().hex[:8]}"})


def test_a_deleted_experiment_is_in_the_way_of_no_move(place: Settings) -> None:
    place = place.model_copy(update={"experiment": f"/deleted/{uuid.uuid4().hex[:8]}"})
    models, store = make(place)
    found = mlflow.get_experiment_by_name(place.experiment)
    models.client.delete_experiment(found.experiment_id)
    for version, champion in ((1, None), (2, 1)):
        judged(store, place.model_name, version, champion)
        promote(place, version)
    promotion.rollback(registry.connect(place), store, "too many letters", "abc", by="bob")
    assert registry.connect(place).aliases() == {"Production": 1, "Previous": 2}
    with pytest.raises(StoreError, match=f"restore --experiment-id {found.experiment_id}` brings"):
        registry.use_experiment(place)


def test_a_second_store_on_one_server_is_shown_the_first_ones_version_and_told_apart(
    local: Settings, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    name = f"churn-{uuid.uuid4().hex[:8]}"
    for each in ("first", "second"):
        (tmp_path / each).mkdir()
        shutil.copy(ROOT / "settings.ini", tmp_path / each)
        change_settings(tmp_path / each, {"model_name": name})
    monkeypatch.setenv("CHURN_SETTINGS", str(tmp_path / "first" / "settings.ini"))
    first = settings_module.load("local")
    make(first)
    judged(tables.connect(first), name, 1, None)
    promote(first, 1)
    found = {each.about: each for each in doctor.examine("local")}
    assert (found["MLflow"].state, found["MLflow"].detail) == ("ok", f"{server} answers")
    monkeypatch.setenv("CHURN_SETTINGS", str(tmp_path / "second" / "settings.ini"))
    assert overview.overview("local")["production"]["version"] == 1
    found = {each.about: each for each in doctor.examine("local")}
    assert found["MLflow"].state == "worth knowing"
    page = (ROOT / "nbs/how-to/share_an_mlflow_server.ipynb").read_text()
    shown = found["MLflow"].detail.replace(server, "http://127.0.0.1:5000")
    assert f"worth knowing MLflow: {shown.replace(name, 'churn-prediction-gbm')}" in page
    assert found["MLflow"].fix in page
    assert not (tmp_path / "second" / ".churn").exists(), "who looks makes nothing"


def test_an_address_is_shown_without_its_password(
    local: Settings, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_password = server.replace("http://", "http://ann:secret@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password)
    about = local.model_copy(update={"experiment": f"/deleted/{uuid.uuid4().hex[:8]}"})
    models = registry.connect(about)
    found = mlflow.get_experiment_by_name(about.experiment)
    models.client.delete_experiment(found.experiment_id)
    with pytest.raises(StoreError) as refused:
        registry.use_experiment(about)
    shown = [str(refused.value), jobs._next_steps(with_password)]
    shown += [each.detail for each in doctor.examine("local")]
    assert f"{server} answers" in shown and server in shown[1]
    assert not any("secret" in each for each in shown)


def test_history_tells_promote_promote_rollback(place: Settings) -> None:
    models, store = make(place)
    first = judged(store, place.model_name, 1, None)
    assert promote(place, 1).state == "PROMOTED"
    second = judged(store, place.model_name, 2, 1)
    assert promote(place, 2).sentence == "Promoted version 2 to Production (previous: version 1)."
    assert models.aliases() == {"Production": 2, "Previous": 1}
    promotion.rollback(models, store, "too many letters", "abc", by="bob")
    assert models.aliases() == {"Production": 1, "Previous": 2}
    story = promotion.history(models, store)
    entries = [
        (each["action"], each["by"], each["from_version"], each["to_version"]) for each in story
    ]
    assert entries == [
        ("rollback", "bob", 2, 1),
        ("promote", "ann", 1, 2),
        ("promote", "ann", None, 1),
    ]
    assert story[0]["reason"] == "too many letters"
    assert story[0]["evidence"] is None
    assert [each["evidence"]["report_id"] for each in story[1:]] == [second, first]
    assert story[1]["evidence"]["verdict"] == "PASS"
    assert all(datetime.fromisoformat(each["at"]).tzinfo for each in story)
    json.dumps(story)


def test_what_was_rolled_back_does_not_come_back_by_itself(place: Settings) -> None:
    models, store = make(place)
    for version, champion in ((1, None), (2, 1)):
        judged(store, place.model_name, version, champion)
        promote(place, version)
    promotion.rollback(models, store, "too many letters", "abc", by="bob")
    judged(store, place.model_name, 2, 1)
    with pytest.raises(PromotionRefused, match="by bob: too many letters"):
        promote(place, 2)
    promotion.rollback(models, store, "it was the printer", "abc", to=2)
    assert models.version_of("Production") == 2
    judged(store, place.model_name, 2, 2)
    assert promote(place, 2).state == "KEPT"


def test_a_copy_takes_its_evidence_along_and_happens_once(place: Settings) -> None:
    models, store = make(place)
    there = place.model_copy(
        update={"catalog": "there", "model_name": f"{place.model_name}-there", "target": "there"}
    )
    with pytest.raises(PromotionRefused, match="nothing at Production"):
        copy.copy(place, there, "abc")
    with pytest.raises(PromotionRefused, match="has no gate report"):
        copy.copy(place, there, "abc", version=2)
    judged(store, place.model_name, 1, None, verdict="FAIL")
    with pytest.raises(GateFailed):
        copy.copy(place, there, "abc", version=1)
    judged(store, place.model_name, 1, None)
    models.tag(1, {"approval": "approved", "approved_by": "ann", "approved_for": "elsewhere/1"})
    promote(place, 1)
    careful = there.updated({"gate.require_approval": True})
    assert copy.copy(place, careful, "abc").state == "PENDING"
    theirs = registry.connect(careful)
    assert theirs.aliases() == {}
    promotion.approve(theirs, 1, "Eve")
    assert copy.copy(place, careful, "abc", by="cd").state == "PROMOTED"
    assert copy.copy(place, careful, "abc", by="cd").state == "KEPT"
    assert theirs.numbers() == [1]
    assert theirs.aliases() == {"Production": 1}
    (entry,) = promotion.history(theirs, tables.connect(careful))
    assert entry["action"] == "copy"
    assert entry["reason"] == f"copied from {place.model_name} version 1"
    assert entry["evidence"]["verdict"] == "PASS"


def test_approval_waits_for_a_person_and_counts_for_one_version_only(place: Settings) -> None:
    models, store = make(place)
    careful = place.updated({"gate.require_approval": True})
    with pytest.raises(PromotionRefused, match="does not wait for approval"):
        promotion.approve(models, 1, "Ann")
    judged(store, place.model_name, 1, None)
    assert promote(careful, 1).state == "PENDING"
    assert models.version(1).tags["approval"] == "pending"
    assert models.aliases() == {}
    models.set_alias("Staging", 1)
    assert "next validation_job" in promotion.approve(models, 1, " Ann ")
    assert "already been approved by Ann" in promotion.approve(models, 1, "Bob")
    assert promote(careful, 1).state == "PROMOTED"
    assert promotion.history(models, store)[0]["reason"] == "passed the gate, approved by Ann"
    judged(store, place.model_name, 2, 1)
    assert promote(careful, 2).state == "PENDING"
    assert "`churn run validation_job -p model_version=2`" in promotion.approve(models, 2, "Ann")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"git_sha": "old"}, "judged by the code of commit old"),
        ({"feature_date": date(2024, 12, 26)}, "the holdout of 2024-12-26, and the newest is"),
        ({"champion_version": 3}, "compared with 3, and Production is empty now"),
        ({"verdict": "FAIL"}, "stays a candidate"),
        ({"model_version": 2}, "has no gate report"),
        ({"model_name": "another"}, "has no gate report"),
    ],
)
def test_what_is_no_proof_of_this_version_today_is_refused(
    local: Settings, changes: dict[str, Any], reason: str
) -> None:
    models, store = make(local)
    row = {"model_name": local.model_name, "version": 1, "champion": None}
    judged(store, **{**row, **changes})
    with pytest.raises(PromotionRefused, match=reason):
        promote(local, 1)
    assert models.aliases() == {}
    assert moves(local) == []


def test_the_newest_report_of_a_version_counts(local: Settings) -> None:
    _models, store = make(local)
    judged(store, local.model_name, 1, None)
    low = {"name": "roc_auc", "value": 0.5, "bound": 0.8, "passed": False, "sentence": "low"}
    slow = {"name": "latency", "value": 9.0, "bound": 1.0, "passed": False, "advisory": True}
    report = json.dumps({"checks": [low, slow]})
    judged(store, local.model_name, 1, None, verdict="FAIL", report=report)
    with pytest.raises(GateFailed) as refused:
        promote(local, 1)
    assert "roc_auc: 0.5000 against 0.8000, low" in str(refused.value)
    assert "latency" not in str(refused.value)


def test_a_tie_moves_only_where_settings_say_so(local: Settings) -> None:
    models, store = make(local)
    judged(store, local.model_name, 1, None)
    promote(local, 1)
    judged(store, local.model_name, 2, 1, verdict="TIE")
    assert promote(local, 2).sentence.startswith("Tie: version 2 answers exactly as version 1")
    assert models.version_of("Production") == 1
    assert promote(local.updated({"gate.promote_on_tie": True}), 2).state == "PROMOTED"


def test_rollback_goes_back_one_step_at_a_time_and_refuses_what_never_served(
    local: Settings,
) -> None:
    models, store = make(local, versions=4)
    with pytest.raises(PromotionRefused, match="nothing is at Production to go back from"):
        promotion.rollback(models, store, "why", "abc")
    for version, champion in ((1, None), (2, 1), (3, 2)):
        judged(store, local.model_name, version, champion)
        promote(local, version)
    for target in (2, 1):
        assert promotion.rollback(models, store, "back", "abc").to_version == target
    with pytest.raises(PromotionRefused, match="nothing was at Production before version 1"):
        promotion.rollback(models, store, "back", "abc")
    with pytest.raises(PromotionRefused, match="version 4 was never at Production"):
        promotion.rollback(models, store, "forward", "abc", to=4)
    with pytest.raises(registry.RegistryError, match="has no version 9"):
        promotion.rollback(models, store, "forward", "abc", to=9, force=True)
    with pytest.raises(PromotionRefused, match="already is Production"):
        promotion.rollback(models, store, "again", "abc", to=1)
    promotion.rollback(models, store, "forward", "abc", to=4, force=True)
    assert models.aliases() == {"Production": 4, "Previous": 1}


def test_an_alias_moved_by_hand_stays_and_shows_in_the_history(local: Settings) -> None:
    models, store = make(local)
    judged(store, local.model_name, 1, None)
    promote(local, 1)
    models.set_alias("Production", 3)
    judged(store, local.model_name, 2, 3)
    assert promotion.history(models, store)[0]["action"] == "unrecorded"
    promote(local, 2)
    entries = [
        (e["action"], e["from_version"], e["to_version"]) for e in promotion.history(models, store)
    ]
    assert entries == [("promote", 3, 2), ("unrecorded", 1, 3), ("promote", None, 1)]


def test_an_alias_that_is_gone_comes_back_by_the_command_that_the_gate_names(
    local: Settings,
) -> None:
    models, store = make(local)
    judged(store, local.model_name, 1, None)
    promote(local, 1)
    models.client.delete_registered_model_alias("churn", "Production")
    assert promotion_log.recover(models, store).production == 1
    assert models.version_of("Production") is None  # nobody guesses why it is gone
    with pytest.raises(PromotionRefused, match="put one there with --to 1"):
        promotion.rollback(models, store, "somebody deleted it", "abc")
    with pytest.raises(PromotionRefused, match="version 3 was never at Production"):
        promotion.rollback(models, store, "somebody deleted it", "abc", to=3)
    promotion.rollback(models, store, "somebody deleted it", "abc", to=1)
    assert models.version_of("Production") == 1


def test_a_model_that_was_registered_anew_inherits_no_alias(local: Settings) -> None:
    models, store = make(local)
    judged(store, local.model_name, 1, None)
    promote(local, 1)
    models.client.delete_registered_model("churn")
    models.client.create_registered_model("churn")
    models.client.create_model_version("churn", "s3://nobody/another-model")
    assert promotion_log.recover(models, store).production == 1
    assert models.aliases() == {}


def test_what_follows_the_alias_is_made_up_for_when_it_failed(local: Settings) -> None:
    models, store = make(local)
    for version, champion in ((1, None), (2, 1)):
        judged(store, local.model_name, version, champion)
        promote(local, version)

    def broken(version: int) -> None:
        raise ConnectionError("no endpoint")

    followed: list[int] = []
    with pytest.raises(ConnectionError):
        promotion.rollback(models, store, "back", "abc", follow=broken)
    again = promotion.rollback(models, store, "back", "abc", follow=followed.append)
    assert (again.to_version, followed) == (1, [1])
    assert [action for action, _, _ in moves(local)] == ["promote", "promote", "rollback"]


# A child process that dies at one of its writes ---------------------------------------------------


def _promote(settings: Settings) -> None:
    promotion.promote(
        registry.connect(settings), tables.connect(settings), 2, settings, "abc", by="ann"
    )


def _rollback(settings: Settings) -> None:
    models, store = registry.connect(settings), tables.connect(settings)
    promotion.rollback(models, store, "back", "abc", by="ann")


def _approve(settings: Settings) -> None:
    promotion.approve(registry.connect(settings), 2, "Ann")


def _copy(settings: Settings) -> None:
    there = settings.model_copy(update={"catalog": "there", "model_name": "there"})
    copy.copy(settings, there, "abc", by="ann")


def _record(report: GateReport, settings: Settings) -> None:
    gate.report.page = lambda *_: ""  # type: ignore[assignment]  # nobody looks at its plots
    models, store = registry.connect(settings), tables.connect(settings)
    gate.record(report, models, store, 0, "abc")


def die_at(number: int, command: Callable[[Settings], None], settings: Settings) -> None:
    """Run a command and end the process, as kill -9 does, before its write `number`."""
    done = 0

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments, **options)

        return wrapper

    for owner, name in WRITES:
        setattr(owner, name, counted(getattr(owner, name)))
    command(settings)


def killed_everywhere(
    template: Settings, command: Callable[[Settings], None]
) -> Iterator[Settings]:
    """Copies of a store, in each of which a process was killed one write later."""
    for number in range(1, 40):
        store = template.store.parent / f"killed-{number}"
        shutil.copytree(template.store, store)
        settings = template.model_copy(update={"store": store})
        process = PROCESSES.Process(target=die_at, args=(number, command, settings))
        process.start()
        process.join()
        yield settings
        if process.exitcode == 0:
            assert number > 3, "a command of fewer writes than there should be"
            return
        assert process.exitcode == -signal.SIGKILL
    pytest.fail("the command never came to its end")


@pytest.fixture
def serving(local: Settings) -> Settings:
    """Version 1 at Production, version 2 judged against it."""
    _, store = make(local)
    judged(store, "churn", 1, None)
    promote(local, 1)
    judged(store, "churn", 2, 1)
    return local


def settled(settings: Settings) -> dict[str, int]:
    """The aliases, once no move is half done."""
    models = registry.connect(settings)
    seen = promotion_log.read(tables.connect(settings), settings.model_name)
    assert promotion_log.unfinished(models, seen) is None
    return models.aliases()


def test_a_promotion_killed_at_any_write_is_whole_after_a_rerun(serving: Settings) -> None:
    for settings in killed_everywhere(serving, _promote):
        _promote(settings)
        assert settled(settings) == {"Production": 2, "Previous": 1}
        assert moves(settings) == [("promote", None, 1), ("promote", 1, 2)]
        assert len(promotion.history(registry.connect(settings), tables.connect(settings))) == 2


def test_a_judgement_killed_at_any_write_is_whole_after_a_rerun(
    local: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "DRAWS", 50)
    monkeypatch.setattr(gate.report, "page", gate.report.page)  # `_record` replaces it
    models, store = make(local, versions=1)
    judged(store, "churn", 1, None)
    promote(local, 1)
    files = local.store / "model"
    files.mkdir()
    (files / "model.pkl").write_bytes(b"a model")
    with mlflow.start_run() as run:
        models.client.create_model_version("churn", files.as_uri(), run.info.run_id)
    holdout = make_holdout(0, 400).assign(feature_date=pd.Timestamp(NEWEST))
    champion = answers(holdout, lambda rows: blurred(rows, 0.2))
    report = judge(given(holdout, np.asarray(good(holdout))), champion, holdout, local)
    assert report.verdict == "PASS"
    for settings in killed_everywhere(local, partial(_record, report)):
        models, store = registry.connect(settings), tables.connect(settings)
        tagged = models.version(2).tags.get("gate_report_id")
        found = promotion.latest_report(models, store, 2)
        assert tagged is None or (found and found["report_id"] == tagged)
        _record(report, settings)
        newest = promotion.latest_report(models, store, 2)
        assert newest and newest["report_id"] == models.version(2).tags["gate_report_id"]
    assert promote(settings, 2).state == "PROMOTED"


def test_a_rollback_killed_at_any_write_is_one_rollback_after_a_rerun(serving: Settings) -> None:
    promote(serving, 2)
    judged(tables.connect(serving), "churn", 3, 2)
    promote(serving, 3)
    for settings in killed_everywhere(serving, _rollback):
        last = moves(settings)[-1]
        complete = last[0] == "rollback" and not promotion_log.unfinished(
            registry.connect(settings), promotion_log.read(tables.connect(settings), "churn")
        )
        if not complete:  # else a second rollback would be one
            _rollback(settings)
        assert settled(settings) == {"Production": 2, "Previous": 3}
        assert moves(settings)[2:] == [("promote", 2, 3), ("rollback", 3, 2)]


def test_an_approval_killed_at_any_write_is_none_until_it_is_whole(serving: Settings) -> None:
    careful = serving.updated({"gate.require_approval": True})
    assert promote(careful, 2).state == "PENDING"
    for settings in killed_everywhere(careful, _approve):
        tags = registry.connect(settings).version(2).tags
        assert (tags["approval"] == "approved") == (promote(settings, 2).state == "PROMOTED")
        if settled(settings)["Production"] == 1:
            _approve(settings)
            assert promote(settings, 2).state == "PROMOTED"


def test_a_copy_killed_at_any_write_is_one_copy_after_a_rerun(serving: Settings) -> None:
    for settings in killed_everywhere(serving, _copy):
        _copy(settings)
        there = settings.model_copy(update={"catalog": "there", "model_name": "there"})
        assert settled(there) == {"Production": 1}
        assert moves(there) == [("copy", None, 1)]
        assert registry.connect(there).numbers() == [1]
        reports = tables.connect(there).read("gold.gate_reports")
        assert reports.count().to_pyarrow().as_py() == 1


# Rivals -------------------------------------------------------------------------------------------


def race(settings: Settings, version: int, start: Any, results: Any) -> None:
    """Promote, but write no move before every rival has decided to."""
    write = DeltaTables.append_if_unchanged

    def together(self: DeltaTables, name: str, *arguments: Any) -> int:
        if name == promotion_log.TABLE and not waited:
            waited.append(True)
            start.wait(120)
        return write(self, name, *arguments)

    waited: list[bool] = []
    DeltaTables.append_if_unchanged = together  # type: ignore[method-assign]
    models, store = registry.connect(settings), tables.connect(settings)
    try:
        who = f"user-{version}"
        answer = promotion.promote(models, store, version, settings, "abc", by=who)
        results.put((version, answer.state, answer.sentence))
    except promotion_log.ConcurrentPromotionError as error:
        results.put((version, "LOST", str(error)))


def run_rivals(settings: Settings, versions: tuple[int, int]) -> list[tuple[int, str, str]]:
    start, results = PROCESSES.Barrier(2), PROCESSES.Queue()
    rivals = [PROCESSES.Process(target=race, args=(settings, v, start, results)) for v in versions]
    for rival in rivals:
        rival.start()
    answers = [results.get(timeout=240) for _ in rivals]
    for rival in rivals:
        rival.join()
    return answers


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(serving: Settings) -> None:
    judged(tables.connect(serving), "churn", 3, 1)
    answers = {state: (version, message) for version, state, message in run_rivals(serving, (2, 3))}
    assert answers.keys() == {"PROMOTED", "LOST"}
    winner, (loser, message) = answers["PROMOTED"][0], answers["LOST"]
    assert f"version {loser} of churn is not at Production" in message
    assert f"user-{winner} has just moved it from 1 to {winner}" in message
    assert settled(serving) == {"Production": winner, "Previous": 1}
    assert moves(serving) == [("promote", None, 1), ("promote", 1, winner)]


def test_two_promotions_of_one_version_are_one_move(serving: Settings) -> None:
    answers = run_rivals(serving, (2, 2))
    assert sorted(state for _, state, _ in answers) == ["KEPT", "PROMOTED"]
    assert settled(serving) == {"Production": 2, "Previous": 1}
    assert len(moves(serving)) == 2


def test_a_slow_process_puts_right_the_alias_it_overwrites(
    serving: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(tables.connect(serving), "churn", 3, 2)
    at_once, set_alias = [True], Registry.set_alias

    def slow(self: Registry, alias: str, number: int) -> None:
        if alias == "Production" and number == 2 and at_once:
            at_once.clear()
            promote(serving, 3)  # somebody else finishes this move and makes the next one
        set_alias(self, alias, number)

    monkeypatch.setattr(Registry, "set_alias", slow)
    promote(serving, 2)
    assert settled(serving) == {"Production": 3, "Previous": 2}
    assert moves(serving)[1:] == [("promote", 1, 2), ("promote", 2, 3)]


def test_moves_of_another_model_in_the_table_are_no_rivals(local: Settings) -> None:
    _models, store = make(local)
    judged(store, local.model_name, 1, None)
    seen = promotion_log.read(store, local.model_name)
    other = promotion_log.next_move(
        seen,
        promoted_by="ann",
        model_name="another",
        from_version=None,
        to_version=7,
        git_sha="abc",
        report_id=None,
        action="promote",
        reason="passed the gate",
    )
    promotion_log.append(store, seen, other)
    mine = promotion_log.Move(**{**vars(other), "model_name": local.model_name, "to_version": 1})
    promotion_log.append(store, seen, mine)
    assert moves(local) == [("promote", None, 1)]
