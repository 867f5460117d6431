"""Two weeks of two environments, day by day; `make rehearsal` lives 120 of them."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from churn_lib import tables
from tests.days import checks, report, script
from tests.days.delivery import value_of
from tests.days.rehearsal import Day, Rehearsal
from tests.test_tables_reference import differences

pytestmark = pytest.mark.timeout(3_600)


@pytest.fixture(scope="module")
def whole() -> script.Script:
    """Made before the clock is moved, in which none of it has happened yet."""
    return script.short()


@pytest.fixture(scope="module")
def lived(
    whole: script.Script, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Rehearsal, list[Day]]]:
    """The two weeks, and what was looked at on each evening."""
    days: list[Day] = []
    for row, rehearsal in script.live(whole, tmp_path_factory.mktemp("days") / "days"):
        days.append(row)
        if len(days) == 15:
            yield rehearsal, days


def test_on_each_evening_scores_aliases_endpoints_and_records_agree(
    lived: tuple[Rehearsal, list[Day]],
) -> None:
    _, days = lived
    assert {day.day: day.wrong for day in days if day.wrong} == {}


def test_each_cause_has_its_alert_in_time_and_each_alert_its_cause(
    whole: script.Script, lived: tuple[Rehearsal, list[Day]]
) -> None:
    _, days = lived
    assert list(script.unexplained(days, whole.causes)) == []
    # and without a script none of them has one
    assert any("without a cause" in each for each in script.unexplained(days, []))


def test_the_script_was_played_whole(lived: tuple[Rehearsal, list[Day]]) -> None:
    _, days = lived
    text = "\n".join(each for day in days for each in day.happened)
    for part in (
        "first commit goes to production",
        "a commit that adds a feature goes to production",
        "makes the model worse stops in staging at “the gate”",
        "rollback of production",
        "is killed at write",
        "are started again",
        "production trains by itself",
        "a commit goes to production; there its version is compared with",
    ):
        assert part in text, text
    assert lived[0].limits.refused > 20, "requests that had to be made again"
    # a killed task is tried again by the job itself
    assert [each for day in days for each in day.failed] == []


def test_the_table_has_a_row_for_each_day(lived: tuple[Rehearsal, list[Day]]) -> None:
    rehearsal, days = lived
    made = report.table(rehearsal)
    assert list(made.day) == [day.day for day in days]
    scored = made[made.day.isin([1, 2, 14])]
    assert scored.mean_probability.between(0, 1).all()
    assert made.production_version.iloc[-1] == rehearsal.version(rehearsal.production)
    assert made.megabytes.iloc[-1] > 1


def test_each_table_that_there_is_has_the_columns_of_the_reference(
    lived: tuple[Rehearsal, list[Day]],
) -> None:
    rehearsal, _ = lived
    store = tables.connect(rehearsal.production.settings)
    names = {*store.names()} - {
        "gold.features"
    }  # has the feature of a commit that the page is without
    found = {name: store.read(name).limit(0).to_pyarrow().schema for name in names}
    assert len(found) > 10
    assert {name: differences(name, schema) for name, schema in found.items()} == {
        name: {} for name in found
    }


def test_what_is_wrong_is_found(lived: tuple[Rehearsal, list[Day]]) -> None:
    rehearsal, _ = lived
    place, endpoints = rehearsal.production, rehearsal.endpoints["production"]
    model = place.workspace.metastore.models[place.settings.model_name]
    assert [
        *checks.agreement(place, endpoints),
        *checks.scores(place),
        *checks.orphans(place),
    ] == []
    at = model.aliases["Production"]
    model.aliases["Production"] = at + 1 if at + 1 in model.versions else at - 1
    found = "\n".join(checks.agreement(place, endpoints))
    assert "the promotion log at" in found and "the endpoint serves" in found
    assert any("have no score" in each for each in checks.scores(place))
    model.aliases["Production"] = at
    model.versions[at].status = "PENDING_REGISTRATION"
    (place.settings.store / "tables" / place.settings.catalog / "gold" / "x.part").touch()
    mlflow.MlflowClient(f"http://127.0.0.1:{place.workspace.port}").create_run("0")
    assert len([*checks.orphans(place)]) == 3
    store = tables.connect(place.settings)
    predictions = store.read("gold.predictions")
    newest = predictions.feature_date.max().to_pyarrow().as_py()
    rows = predictions.filter(predictions.feature_date == newest).mutate(churn_probability=1.5)
    store.append("gold.predictions", rows)
    found = "\n".join(checks.scores(place))
    assert "scored twice" in found and "no probability" in found


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("github.sha", "abc"),
        ("steps.before.outputs.version", "3"),
        ("steps.none.outputs.version", ""),
        ("failure() && steps.before.outcome == 'success'", True),
        ("success() && steps.before.outcome == 'success'", False),
        ("success() || always()", True),
        ("!success()", True),
        ("steps.before.outcome != 'success'", False),
        ("needs.staging.outputs.model_version == ''", False),
    ],
)
def test_expressions_of_a_workflow_mean_what_they_mean_on_github(
    expression: str, value: object
) -> None:
    context = {
        "github": {"sha": "abc"},
        "steps": {"before": {"outcome": "success", "outputs": {"version": "3"}}},
        "needs": {"staging": {"outputs": {"model_version": "7"}}},
        "failure": True,
        "success": False,
        "always": True,
        "cancelled": False,
    }
    assert value_of(expression, context) == value


def test_on_some_mornings_no_file_has_come(whole: script.Script, tmp_path: Path) -> None:
    mornings = range(whole.source.days + 1)
    without = {day for day in mornings if whole.source.files(day, tmp_path) is None}
    # in the morning after a day on which nobody bought anything there is none either
    assert without == whole.source.stopped | {day + 1 for day in whole.source.empty}
