"""Reports and moves that were edited, removed, inserted or forged are named; those that were not are not."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pytest

from churn_lib import registry, settings, tables
from churn_lib.registry import Registry, chain, evidence, promotion, promotion_log
from churn_lib.registry.evidence import REPORTS
from churn_lib.registry.promotion import PromotionRefused
from churn_lib.settings import Settings
from churn_lib.tables import Tables
from tests.registry.test_promotion import COMPLETE, NEWEST

ROOT = Path(__file__).parents[2]
CHURN = Path(sys.executable).parent / "churn"
NOW = datetime.now(UTC).replace(microsecond=0)
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Three versions, six reports and four moves; nobody has touched them."""
    folder = tmp_path_factory.mktemp("chain")
    shutil.copy(ROOT / "settings.ini", folder)
    config = settings.load("local", folder / "settings.ini")
    models, store = registry.connect(config), tables.connect(config)
    models.client.create_registered_model(config.model_name)
    for _ in range(3):
        models.client.create_model_version(config.model_name, "s3://nobody/loads-it", "run")
    rows = ibis.memtable({"churned": [0, 1], "in_holdout_bucket": [True, True]})
    store.overwrite("gold.features", rows.mutate(feature_date=ibis.literal(NEWEST)))
    for version, champion in ((1, None), (2, 1), (3, 2)):
        judge(models, store, f"no-{version}", version, champion, "FAIL")
        judge(models, store, f"yes-{version}", version, champion)
        promotion.promote(models, store, version, config, "abc", by="ann")
    promotion.rollback(models, store, "too many letters", "abc", by="bob")
    return config


def judge(
    models: Registry,
    store: Tables,
    name: str,
    version: int,
    champion: int | None,
    verdict: str = "PASS",
) -> dict[str, Any]:
    row = {
        "report_id": name,
        "created_at": datetime.now(UTC),
        "model_name": models.model_name,
        "model_version": version,
        "champion_version": champion,
        "verdict": verdict,
        "run_id": "run",
        "feature_date": NEWEST,
        "git_sha": "abc",
        "report": json.dumps(COMPLETE),
    }
    written = evidence.append_report(models, store, row)
    models.tag(version, {"gate_report_id": name})
    return written


@pytest.fixture
def config(template: Settings, tmp_path: Path) -> Settings:
    shutil.copytree(template.store.parent, tmp_path / "project")
    return settings.load("local", tmp_path / "project" / "settings.ini")


def reports(config: Settings) -> Rows:
    return evidence.all_reports(tables.connect(config))


def write(config: Settings, name: str, rows: Rows, schema: pa.Schema) -> None:
    tables.connect(config).overwrite(name, ibis.memtable(pa.Table.from_pylist(rows, schema)))


def found(config: Settings) -> chain.Verification:
    return chain.verify(registry.connect(config), tables.connect(config))


def inserted(rows: Rows, **changes: Any) -> Rows:
    """A report that allows version 3, beside the others."""
    return [*rows, {**rows[-1], "report_id": "mine", **changes}]


def linked(rows: Rows, at: int) -> str:
    """JSON of a report that follows the row `at`."""
    return json.dumps({**COMPLETE, "previous": evidence.row_digest(rows[at]), "position": at + 1})


def edit(rows: Rows, at: int, **changes: Any) -> Rows:
    return [{**row, **changes} if number == at else row for number, row in enumerate(rows)]


CHANGES: list[tuple[Callable[[Rows], Rows], str]] = [
    (lambda rows: edit(rows, 0, verdict="PASS"), "report no-1 .* was edited or forged"),
    (lambda rows: edit(rows, 2, verdict="PASS"), "report no-2 .* was edited or forged"),
    (lambda rows: edit(rows, 5, verdict="TIE"), "report yes-3 .* was edited: version 3 has"),
    (lambda rows: rows[1:], "the first reports were removed or edited: report yes-1"),
    (
        lambda rows: rows[:2] + rows[4:],
        "2 reports were removed between report yes-1 .* report no-3",
    ),
    (lambda rows: rows[:-1], "the newest report of version 3 was removed or edited"),
    (
        lambda rows: inserted(rows, report=json.dumps(COMPLETE), created_at=NOW.replace(year=2099)),
        "report mine .* was inserted",
    ),
    (
        lambda rows: inserted(rows, report=json.dumps(COMPLETE), created_at=NOW.replace(year=2001)),
        "report mine .* was inserted",
    ),
    (
        lambda rows: inserted(rows, report=linked(rows, 2)),
        "report .* was inserted: report .* the same place",
    ),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_report_that_is_not_as_the_gate_wrote_it_is_named(
    config: Settings, change: Callable[[Rows], Rows], message: str
) -> None:
    write(config, REPORTS, change(reports(config)), evidence.SCHEMA)
    assert re.search(message, found(config).reports.problem)
    assert found(config).moves.problem == ""


def moves(config: Settings) -> Rows:
    store = tables.connect(config)
    return store.read(promotion_log.TABLE).order_by("sequence").to_pyarrow().to_pylist()


def renumbered(rows: Rows) -> Rows:
    """A move out of nowhere, with digests as if it had always been there."""
    forged = {**rows[-1], "sequence": 5, "action": "promote", "to_version": 3, "from_version": 2}
    known = tuple(promotion_log.Move(**row) for row in rows)
    move = promotion_log.Move(**{**forged, "digest": None})
    return [*rows, {**forged, "digest": promotion_log.digest_after(known[:-2], move)}]


MOVES: list[tuple[Callable[[Rows], Rows], str]] = [
    (
        lambda rows: edit(rows, 1, reason="passed, really"),
        r"move 2 \(promote to version 2, .* was edited",
    ),
    (lambda rows: edit(rows, 3, to_version=3), r"move 4 \(rollback to version 3, .* was edited"),
    (lambda rows: [rows[0], *rows[2:]], "move 2 was removed: move 3"),
    (lambda rows: rows[:-1], "move 4, the last one that the registry has noted, was removed"),
    (lambda rows: [*rows, {**rows[-1], "sequence": 5, "digest": None}], "move 5 .* was inserted"),
    (lambda rows: [*rows, {**rows[-1], "reason": "x"}], "move 4 .* was inserted"),
    (renumbered, "move 5 .* was edited, or forged was what it follows: move 4"),
    (
        lambda rows: [
            *rows[:3],
            {
                **rows[3],
                "reason": "x",
                "digest": promotion_log.digest_after(
                    tuple(promotion_log.Move(**row) for row in rows[:3]),
                    promotion_log.Move(**{**rows[3], "reason": "x", "digest": None}),
                ),
            },
        ],
        "move 4 was edited: the registry has noted another digest",
    ),
]


@pytest.mark.parametrize(("change", "message"), MOVES)
def test_a_move_that_is_not_as_it_was_written_is_named(
    config: Settings, change: Callable[[Rows], Rows], message: str
) -> None:
    write(config, promotion_log.TABLE, change(moves(config)), promotion_log.SCHEMA)
    assert re.search(message, found(config).moves.problem)
    assert found(config).reports.problem == ""


def test_what_nobody_has_touched_is_as_written(config: Settings) -> None:
    assert found(config).intact
    assert found(config).sentences() == ["all 6 reports and 4 moves are as written"]


def churn(config: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHURN), *arguments]
    return subprocess.run(
        command, cwd=config.store.parent, capture_output=True, text=True, timeout=120
    )


def test_the_command_says_it_and_its_exit_code_too(config: Settings) -> None:
    done = churn(config, "history", "--verify")
    assert (done.returncode, done.stdout) == (0, "all 6 reports and 4 moves are as written\n")
    write(config, REPORTS, edit(reports(config), 2, verdict="PASS"), evidence.SCHEMA)
    done = churn(config, "history", "--verify")
    assert done.returncode == 1
    assert done.stdout.startswith("report no-2 (version 2, ") and done.stdout.count("\n") == 1
    done = churn(config, "history", "--verify", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["intact"], answer["moves"]["rows"]) == (1, False, 4)
    assert answer["reports"]["problem"].startswith("report no-2")


def test_rows_from_before_the_chain_are_counted_and_covered_by_it(config: Settings) -> None:
    """A store of an earlier release: no digest column, no links; it is read and goes on."""
    plain = [{**row, "report": json.dumps(COMPLETE)} for row in reports(config)]
    write(config, REPORTS, plain, evidence.SCHEMA)
    old = pa.schema([field for field in promotion_log.SCHEMA if field.name != "digest"])
    earlier = moves(config)
    shutil.rmtree(config.store / "tables" / config.catalog / "gold" / "promotions")
    write(config, promotion_log.TABLE, earlier, old)
    models, store = registry.connect(config), tables.connect(config)
    models.client.delete_registered_model_tag(config.model_name, promotion_log.HEAD)
    for version in ("1", "2", "3"):
        models.client.delete_model_version_tag(config.model_name, version, "gate_report_digest")
    old_rows = "6 reports and 4 moves are from before the chain: not chained"
    assert found(config).sentences() == ["all 0 reports and 0 moves are as written", old_rows]
    judge(models, store, "new", 1, 2)
    for version in (1, 2):
        promotion.rollback(models, store, "to and fro", "abc", by="bob", to=version)
    assert found(config).sentences() == ["all 1 reports and 2 moves are as written", old_rows]
    assert [row["digest"] is None for row in moves(config)] == [True] * 4 + [False] * 2
    write(config, REPORTS, edit(reports(config), 1, verdict="TIE"), evidence.SCHEMA)
    assert "one of the 6 reports from before the chain" in found(config).reports.problem
    write(config, promotion_log.TABLE, edit(moves(config), 1, reason="x"), promotion_log.SCHEMA)
    assert "move 5" in found(config).moves.problem


def test_a_report_from_the_future_promotes_nobody(config: Settings) -> None:
    """A constant model was refused; a row dated 2099 says that it passed."""
    models, store = registry.connect(config), tables.connect(config)
    refused = judge(models, store, "refused", 3, 2, "FAIL")
    forged = {**refused, "report_id": "forged", "verdict": "PASS", "report": json.dumps(COMPLETE)}
    forged["created_at"] = datetime.now(UTC).replace(year=2099)
    store.append(REPORTS, ibis.memtable(pa.Table.from_pylist([forged], evidence.SCHEMA)))
    promotion.rollback(models, store, "make room", "abc", to=1)
    for name, message in (
        ("", "version 3 stays a candidate, Production stays 2"),
        ("refused", "version 3 stays a candidate, Production stays 2"),
        ("forged", "is dated 2099-.* which has not come yet: `churn history --verify` names"),
    ):
        with pytest.raises(PromotionRefused, match=message):
            promotion.promote(models, store, 3, config, "abc", report_id=name)
    assert models.version_of("Production") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ahead": timedelta(minutes=1)}, "does not follow any report"),
        ({"ahead": timedelta(days=-1)}, "does not follow any report"),
        ({"ahead": timedelta(hours=1)}, "which has not come yet"),
        ({"linked": 0}, "is not the one that the gate has noted"),
        ({"linked": -1}, "is not the one that the gate has noted"),
    ],
)
def test_a_report_that_somebody_else_has_written_promotes_nobody(
    config: Settings, changes: dict[str, Any], message: str
) -> None:
    models, store = registry.connect(config), tables.connect(config)
    refused = judge(models, store, "refused", 1, 2, "FAIL")
    rows = reports(config)
    forged = {**refused, "report_id": "forged", "verdict": "PASS", "report": json.dumps(COMPLETE)}
    if "linked" in changes:
        at = changes["linked"] % len(rows)
        forged |= {"report": linked(rows, at), "created_at": datetime.now(UTC)}
    else:
        forged["created_at"] = datetime.now(UTC) + changes["ahead"]
    store.append(REPORTS, ibis.memtable(pa.Table.from_pylist([forged], evidence.SCHEMA)))
    with pytest.raises(PromotionRefused):
        promotion.promote(models, store, 1, config, "abc")
    with pytest.raises(PromotionRefused, match=message):
        promotion.promote(models, store, 1, config, "abc", report_id="forged")
    assert models.version_of("Production") == 2


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({}, "lists no check that was to be made"),
        ({"checks": [], "checks_expected": []}, "lists no check that was to be made"),
        ({**COMPLETE, "checks": COMPLETE["checks"][1:]}, "is without the checks loads"),
        (
            {"checks": COMPLETE["checks"][:2], "checks_expected": COMPLETE["checks_expected"][:2]},
            "is without the checks .*roc_auc.*",
        ),
        (
            {**COMPLETE, "checks": [{"name": "loads", "passed": False}, *COMPLETE["checks"][1:]]},
            "passes, though loads fails in it",
        ),
    ],
)
def test_a_report_without_every_check_promotes_nobody(
    config: Settings, report: dict[str, Any], message: str
) -> None:
    models, store = registry.connect(config), tables.connect(config)
    row = judge(models, store, "whole", 1, 2)
    evidence.append_report(models, store, {**row, "report_id": "few", "report": json.dumps(report)})
    with pytest.raises(PromotionRefused, match=f"gate report few of version 1 of .* {message}"):
        promotion.promote(models, store, 1, config, "abc")
    assert promotion.promote(models, store, 1, config, "abc", report_id="whole").state == "PROMOTED"
