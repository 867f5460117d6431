"""A copy replaces Production only on a recent report that compares it with what is there."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from churn_lib import registry, tables
from churn_lib.registry import Registry, copy, evidence, promotion, promotion_log
from churn_lib.registry.promotion import PromotionRefused
from churn_lib.settings import Settings
from churn_lib.tables import Tables
from tests.registry.test_promotion import config as settings_in
from tests.registry.test_promotion import judged, make, promote
from tests.serving import serving_store
from tests.shared import empty_mlflow


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    """Versions 1, 2 and 3 replaced each other at Production, each compared with the one before."""
    config = settings_in(tmp_path / "store").model_copy(update={"target": "staging"})
    empty_mlflow(config)
    _models, store = make(config, versions=4)
    for version, champion in ((1, None), (2, 1), (3, 2)):
        judged(store, config.model_name, version, champion)
        promote(config, version)
    return config


@pytest.fixture
def there(here: Settings) -> Settings:
    return here.model_copy(
        update={"catalog": "there", "model_name": "there", "target": "production"}
    )


def stores(config: Settings) -> tuple[Registry, Tables]:
    return registry.connect(config), tables.connect(config)


def production_of(config: Settings, origin: Settings) -> int | None:
    """The version in the origin of which Production is a copy."""
    models = registry.connect(config)
    number = models.version_of("Production")
    if number is None:
        return None
    source = models.version(number).tags["copied_from"]
    return int(source.removeprefix(f"models:/{origin.model_name}/"))


def test_what_was_compared_step_by_step_with_what_is_there_may_follow_it(
    here: Settings, there: Settings
) -> None:
    assert copy.copy(here, there, "abc", force=True, reason="first", version=1).state == "PROMOTED"
    assert copy.copy(here, there, "abc").state == "PROMOTED"
    assert production_of(there, here) == 3
    assert copy.copy(here, there, "abc").state == "KEPT"


def test_the_first_copy_needs_no_comparison(here: Settings, there: Settings) -> None:
    assert copy.copy(here, there, "abc").state == "PROMOTED"


def test_an_older_version_does_not_come_back_without_force_and_reason(
    here: Settings, there: Settings
) -> None:
    copy.copy(here, there, "abc")
    with pytest.raises(PromotionRefused) as refused:
        copy.copy(here, there, "abc", version=1)
    text = str(refused.value)
    assert "version 1 of churn is older than version 3, which has replaced it" in text
    assert "`churn copy staging production --version 1 --force --reason" in text
    assert "`churn rollback --target production" in text
    with pytest.raises(PromotionRefused, match="a forced copy needs a reason"):
        copy.copy(here, there, "abc", version=1, force=True)
    assert production_of(there, here) == 3
    done = copy.copy(here, there, "abc", version=1, force=True, reason="3 is too slow")
    assert (done.state, production_of(there, here)) == ("PROMOTED", 1)
    last = promotion_log.read(tables.connect(there), "there").last
    assert last is not None and last.reason.endswith("version 1; by force: 3 is too slow")


def test_what_the_origin_has_replaced_is_not_copied(here: Settings, there: Settings) -> None:
    copy.copy(here, there, "abc", force=True, reason="first", version=1)
    with pytest.raises(PromotionRefused, match="version 2 of churn is older than version 3"):
        copy.copy(here, there, "abc", version=2)
    assert production_of(there, here) == 1


def test_an_older_run_that_is_approved_late_does_not_even_fill_an_empty_production(
    here: Settings, there: Settings
) -> None:
    with pytest.raises(PromotionRefused, match="version 2 of churn is older than version 3, which"):
        copy.copy(here, there, "abc", version=2)
    models, store = stores(there)
    assert (models.numbers(), promotion_log.read(store, "there").moves) == ([], ())
    done = copy.copy(here, there, "abc", version=2, force=True, reason="3 has no approval yet")
    assert (done.state, production_of(there, here)) == ("PROMOTED", 2)


def test_what_the_origin_has_replaced_does_not_replace_what_was_trained_there(
    here: Settings, there: Settings
) -> None:
    make(there, versions=1)
    models, store = stores(there)
    judged(store, "there", 1, None)
    promote(there, 1)
    with pytest.raises(PromotionRefused, match="version 2 of churn is older than version 3, which"):
        copy.copy(here, there, "abc", version=2)
    assert models.numbers() == [1]


def test_what_the_origin_has_taken_back_is_not_copied_but_may_be_asked_for_again(
    here: Settings, there: Settings
) -> None:
    """A run that is repeated asks for the version that its first attempt has brought."""
    copy.copy(here, there, "abc")
    promotion.rollback(*stores(here), "3 is too slow", "abc")
    assert copy.copy(here, there, "abc", version=3).state == "KEPT"
    empty = there.model_copy(update={"catalog": "empty", "model_name": "empty"})
    expected = (
        r"is no longer Production in staging, where version 2 came \(rollback: 3 is too slow\)"
    )
    with pytest.raises(PromotionRefused, match=expected):
        copy.copy(here, empty, "abc", version=3)
    assert copy.copy(here, empty, "abc").state == "PROMOTED"
    assert production_of(empty, here) == 2


def test_a_version_that_is_there_may_be_asked_for_again_however_old_its_report(
    here: Settings, there: Settings
) -> None:
    copy.copy(here, there, "abc")
    strict = there.updated({"gate.max_report_age_days": 1})
    old = datetime.now(UTC) - timedelta(days=2)
    judged(tables.connect(here), here.model_name, 3, 2, created_at=old)
    assert copy.copy(here, strict, "abc", version=3).state == "KEPT"


def test_a_report_that_was_compared_with_nothing_replaces_nothing(
    here: Settings, there: Settings
) -> None:
    copy.copy(here, there, "abc")
    judged(tables.connect(here), here.model_name, 4, None)
    with pytest.raises(PromotionRefused) as refused:
        copy.copy(here, there, "abc", version=4)
    text = str(refused.value)
    assert "version 4 of churn was compared with nothing, and Production of production is" in text
    assert "`churn run validation_job --target production -p model_version=2` compares" in text
    assert "`churn run validation_job --target staging -p model_version=4` while version 3" in text
    judged(tables.connect(here), here.model_name, 4, 3)
    assert copy.copy(here, there, "abc", version=4).state == "PROMOTED"


def test_a_production_that_was_trained_there_is_compared_with_there(
    here: Settings, there: Settings
) -> None:
    make(there, versions=1)
    models, store = stores(there)
    judged(store, "there", 1, None)
    promote(there, 1)
    with pytest.raises(
        copy.NotCompared, match=r"is version 1 \(not from there\): `churn run"
    ) as why:
        copy.copy(here, there, "abc")
    assert why.value.copied == 2, "promotion_job hands it to the gate"
    judged(store, "there", 2, 1)
    assert copy.copy(here, there, "abc").state == "PROMOTED"
    assert models.version_of("Production") == 2


def test_an_old_report_is_no_reason_to_copy(here: Settings, there: Settings) -> None:
    old = datetime.now(UTC) - timedelta(days=31)
    judged(tables.connect(here), here.model_name, 4, 3, created_at=old)
    with pytest.raises(PromotionRefused, match=r"was judged 31 days ago .* is 30 in production"):
        copy.copy(here, there, "abc", version=4)
    patient = there.updated({"gate.max_report_age_days": 40})
    assert copy.copy(here, patient, "abc", version=4).state == "PROMOTED"


def test_a_copy_brings_its_answers_and_its_report_into_the_chain(
    here: Settings, there: Settings
) -> None:
    models, store = stores(here)
    report_id = evidence.latest_report(models, store, 3)["report_id"]  # type: ignore[index]
    holdout = serving_store.feature_rows(5).assign(
        customer_id=list("abcde"), feature_date=date(2025, 3, 26), churned=0.0
    )
    evidence.write_answers(store, report_id, here.model_name, 3, holdout, np.linspace(0, 1, 5))
    copy.copy(here, there, "abc")
    ours, beside = stores(there)
    known = evidence.recorded_answers(ours, beside, 1)
    assert known is not None and known.churn_probability.tolist() == [0, 0.25, 0.5, 0.75, 1]
    (row,) = evidence.all_reports(beside)
    assert (row["report_id"], evidence.previous_of(row)) == (report_id, "")
    assert promotion.objection(ours, beside, 1, there.model_copy(update={"target": "there"})) == ""
