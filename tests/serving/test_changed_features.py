"""Features that come, change and go under a model that serves: every version is asked with its own columns."""

import datetime
import json
from collections.abc import Iterator
from dataclasses import replace

import ibis
import numpy as np
import pandas as pd
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import BadRequest
from databricks.sdk.service.serving import Route, ServedEntityInput, TrafficConfig
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from sklearn.ensemble import HistGradientBoostingClassifier

from churn_lib import registry, scoring
from churn_lib.features import EXAMPLE, FEATURES, LABEL, FeatureError, feature_dates, rows_for
from churn_lib.features.declaration import Day
from churn_lib.features.definitions import DECLARED
from churn_lib.features.snapshots import TABLE, build, recorded_fingerprints, refuse_removed
from churn_lib.model import ChurnModel
from churn_lib.registry import PRODUCTION, evidence, promotion
from churn_lib.registry.models import PREVIOUS
from churn_lib.registry.promotion import PromotionRefused
from churn_lib.scoring.batch import ScoringError
from churn_lib.serving import deploy as serving
from churn_lib.serving.deploy import DeploymentFailed
from churn_lib.settings import Settings
from churn_lib.tables import Tables
from churn_lib.testing import TODAY, register_version, shop_tables
from tests.serving import serving_store
from tests.shared import empty_mlflow

JUDGED = TODAY - datetime.timedelta(days=90)


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    """The declarations of the process, as they were afterwards."""
    before = dict(DECLARED)
    yield
    DECLARED.clear()
    DECLARED.update(before)
    _take()


def _take() -> None:
    # what a new process would take from the declarations
    FEATURES[:] = DECLARED.columns(retired=False)
    EXAMPLE.clear()
    EXAMPLE.update({name: DECLARED[name].example for name in DECLARED.columns()})


class Shop:
    """A store with its models, its endpoint and the commits of its data scientist."""

    def __init__(self, config: Settings):
        self.config, self.tables = config, shop_tables(config, 300)
        self.models = registry.connect(config)

    def prepare(self, today: datetime.date = TODAY) -> None:
        """What a commit of other declarations and 01_feature_engineering do."""
        _take()
        refuse_removed(registry.needed_inputs(self.models))
        bronze = {name: self.tables.version(name) for name in ("bronze.events", "bronze.customers")}
        list(build(self.tables, bronze, feature_dates(today, self.config), today, self.config))

    def train(self) -> int:
        """A version on the features of now, which the gate has passed and whose answers it has kept."""
        rows = rows_of(self.tables, JUDGED)
        X = rows[FEATURES].astype("float64")
        model = ChurnModel(HistGradientBoostingClassifier(max_iter=20, random_state=0), 0.5)
        known = recorded_fingerprints(self.tables)[str(JUDGED)]
        tags = {"delta_feature_version": str(self.tables.version(TABLE))}
        number = register_version(
            self.models,
            model.fit(X, rows[LABEL].astype(int)),
            tags | {"holdout_feature_date": str(JUDGED), "decision_threshold": "0.5"},
            signature=ModelSignature(Schema([ColSpec(DataType.double, name) for name in FEATURES])),
            metadata={"features": {name: known[name] for name in FEATURES}},
        )
        serving_store.judge(self.config, number)
        held = rows[rows.in_holdout_bucket].drop(columns="in_holdout_bucket")
        answers = model.predict(held[FEATURES].astype("float64"))
        whole = (self.tables, f"report-{number}-PASS", self.models.model_name, number)
        evidence.write_answers(*whole, held, answers)
        return number

    def follow(self, version: int) -> None:
        quiet = {"git_sha": "abc", "log": lambda line: None}
        serving.move(self.config, self.models, self.tables, version, **quiet)

    def to(self, version: int, force: bool = True) -> None:
        """Production, and the endpoint by a canary, to a version."""
        promotion.rollback(
            self.models, self.tables, "a test", "abc", version, force=force, follow=self.follow
        )

    def score(self, day: datetime.date = TODAY) -> pd.Series:
        """Production's probabilities by customer."""
        scorer = scoring.production(self.models, self.config, self.tables)
        done = scoring.score(
            self.tables, scoring.read_snapshot(self.tables, day, scorer), scorer, "abc"
        )
        assert done.model_version == self.models.version_of(PRODUCTION)
        rows = scoring.read_predictions(self.tables, done.feature_date, done.model_version)
        return rows.to_pandas().set_index("customer_id").churn_probability.sort_index()

    def serves(self) -> tuple[int | None, dict[str, int]]:
        """The version at Production, and the traffic of each that is served."""
        served = serving.status(self.config)["served"]
        traffic = {each["version"]: each["traffic"] for each in served}
        return self.models.version_of(PRODUCTION), traffic


def rows_of(tables: Tables, day: datetime.date, version: int | None = None) -> pd.DataFrame:
    table = tables.read(TABLE, version)
    return table.filter(table.feature_date == day).order_by("customer_id").to_pandas()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("changed")
    config = serving_store.settings_in(folder).updated({"data.snapshots": 2})
    empty_mlflow(config)
    shop = Shop(config)
    with serving_store.ended(config):
        assert shop.train() == 1
        promotion.rollback(shop.models, shop.tables, "the first", "abc", to=1, force=True)
        serving.deploy(config, shop.models, shop.tables, log=lambda line: None)
        yield shop


@pytest.fixture
def shop(base: Shop) -> Shop:
    """Version 1 at Production and behind the endpoint, and the features it was trained on."""
    if base.models.version_of(PRODUCTION) != 1:
        base.to(1)
    base.follow(1)
    base.models.client.delete_registered_model_alias(base.models.model_name, PREVIOUS)
    base.prepare()
    return base


def last_week(events: ibis.Table, day: Day) -> ibis.Value:
    return events.count(where=events.event_ts > day.before(7))


def years_with_us(row: ibis.Table) -> ibis.Value:
    return row.customer_tenure_days / 365


def add_last_week() -> None:
    DECLARED.declare(last_week, meaning="events in the last 7 days", unit="events", example=1)


def ask(client: WorkspaceClient, version: int, rows: pd.DataFrame) -> list[float]:
    """What one of the served versions answers."""
    path = "/serving-endpoints/churn-prediction-endpoint/served-models"
    body = {"dataframe_records": rows.to_dict("records")}
    path = f"{path}/churn-prediction-gbm-{version}/invocations"
    return client.api_client.do("POST", path, body=body)["predictions"]


def test_a_rollback_across_an_added_feature_brings_alias_endpoint_and_scores_to_one_version(
    shop: Shop,
) -> None:
    before = shop.score()
    add_last_week()
    shop.prepare()
    number = shop.train()
    shop.to(number)
    assert shop.serves() == (number, {str(number): 100})
    assert len(shop.score()) == len(before)
    shop.to(1, force=False)
    assert shop.serves() == (1, {"1": 100})
    pd.testing.assert_series_equal(shop.score(), before)


def test_a_retired_feature_is_computed_for_the_version_that_has_it_and_may_not_be_removed(
    shop: Shop,
) -> None:
    before = shop.score()
    DECLARED["distinct_products"] = replace(DECLARED["distinct_products"], retired=True)
    shop.prepare()
    number = shop.train()
    assert "distinct_products" not in registry.inputs_of(shop.models, number)
    shop.to(number)
    assert shop.serves() == (number, {str(number): 100})
    shop.score()
    shop.to(1, force=False)
    pd.testing.assert_series_equal(shop.score(), before)
    version = shop.tables.version(TABLE)
    del DECLARED["distinct_products"]
    message = r"feature distinct_products is not declared any more, and version 1 \(at Staging"
    with pytest.raises(FeatureError, match=message):
        shop.prepare()
    assert shop.tables.version(TABLE) == version
    shop.to(number)  # Previous is version 1 now
    with pytest.raises(FeatureError, match=message):
        shop.prepare()


def test_a_version_whose_feature_was_removed_is_refused_before_the_alias_moves(shop: Shop) -> None:
    add_last_week()
    shop.prepare()
    number = shop.train()
    shop.to(number)
    shop.to(1)
    shop.models.set_alias(PREVIOUS, 1)
    del DECLARED["last_week"]
    shop.prepare()  # no alias leads to it any more
    message = f"version {number} is asked with last_week, which this code does not compute"
    with pytest.raises(PromotionRefused, match=message) as refused:
        shop.to(number, force=False)
    assert "declare last_week again, with retired=True" in str(refused.value)
    assert shop.serves() == (1, {"1": 100})
    DECLARED.declare(last_week, meaning="events in 7 days", unit="events", retired=True)
    shop.prepare()
    shop.to(number, force=False)
    assert shop.serves() == (number, {str(number): 100})
    assert len(shop.score()) > 0


def test_a_version_is_scored_by_the_former_meaning_of_a_redefined_feature(shop: Shop) -> None:
    before = shop.score()
    DECLARED["silent_share"] = replace(DECLARED["silent_share"], expression=years_with_us)
    shop.prepare()
    pd.testing.assert_series_equal(shop.score(), before)
    number = shop.train()
    shop.to(number)
    assert not np.allclose(shop.score(), before)
    shop.to(1, force=False)
    assert shop.serves() == (1, {"1": 100})
    pd.testing.assert_series_equal(shop.score(), before)
    labelled = scoring.read_labelled(
        shop.tables, scoring.production(shop.models), JUDGED
    ).to_pandas()
    former = rows_for(shop.tables, JUDGED, registry.inputs_of(shop.models, 1)).to_pandas()
    assert np.isclose(labelled.silent_share.sum(), former.silent_share.sum())
    now = rows_of(shop.tables, JUDGED)
    assert np.allclose(now.silent_share, now.customer_tenure_days / 365)
    assert not np.allclose(former.silent_share, former.customer_tenure_days / 365)
    tomorrow = TODAY + datetime.timedelta(days=1)
    shop.prepare(tomorrow)
    message = "version 1 of churn-prediction-gbm cannot be asked: gold.features has no snapshot of"
    with pytest.raises(ScoringError, match=f"{message} {tomorrow} with silent_share as the"):
        shop.score(tomorrow)


def test_in_a_canary_each_version_answers_to_its_own_columns_and_names_what_is_missing(
    shop: Shop,
) -> None:
    old = rows_of(shop.tables, TODAY)[FEATURES].astype(float).head(5)
    add_last_week()
    shop.prepare()
    number = shop.train()
    client, name = serving.connect(shop.config), shop.config.serving.endpoint_name
    entities = [
        ServedEntityInput(
            name=f"churn-prediction-gbm-{version}",
            entity_name=shop.config.model_name,
            entity_version=str(version),
        )
        for version in (1, number)
    ]
    routes = [Route(served_model_name=each.name, traffic_percentage=50) for each in entities]
    client.serving_endpoints.update_config(
        name, served_entities=entities, traffic_config=TrafficConfig(routes=routes)
    )
    serving.wait_until_ready(serving.Deployer(client, shop.config), entities[1])
    new = rows_of(shop.tables, TODAY)[FEATURES].astype(float).head(5)
    expected = {version: shop.models.load(version).predict(new) for version in (1, number)}
    for version in (1, number):  # the new columns, of which version 1 knows all but one
        np.testing.assert_allclose(ask(client, version, new), expected[version], rtol=0, atol=1e-12)
    np.testing.assert_allclose(ask(client, 1, old), expected[1], rtol=0, atol=1e-12)
    with pytest.raises(BadRequest, match="row 0: column last_week is missing"):
        ask(client, number, old)
    answers = client.serving_endpoints.query(name, dataframe_records=[EXAMPLE]).predictions
    assert 0 <= answers[0] <= 1


@pytest.mark.parametrize("why", ["latency", "files", "columns"])
def test_a_rollback_that_fails_at_the_endpoint_leaves_everything_at_the_version_before(
    shop: Shop, why: str
) -> None:
    add_last_week()
    shop.prepare()
    number = shop.train()
    shop.to(number)
    scores = shop.score()
    own = shop.config
    if why == "latency":
        shop.config = own.updated({"serving.max_endpoint_latency_ms": 0.001})
    target = 1
    if why == "files":
        target = shop.train()
        serving_store.break_version(shop.models, target)
    if why == "columns":  # it wants a column that nobody sends
        rows = rows_of(shop.tables, JUDGED)[FEATURES].astype(float)
        model = HistGradientBoostingClassifier(max_iter=2).fit(rows, np.arange(len(rows)) % 2)
        columns = [ColSpec(DataType.double, name) for name in [*FEATURES, "visits"]]
        signature = ModelSignature(Schema(columns))
        target = register_version(shop.models, model, {}, signature=signature)
    try:
        with pytest.raises(DeploymentFailed) as failed:
            shop.to(target)
    finally:
        shop.config = own
    assert f"Production is version {number} again" in str(failed.value)
    assert shop.serves() == (number, {str(number): 100})
    pd.testing.assert_series_equal(shop.score(), scores)
    moves = promotion.history(shop.models, shop.tables)
    assert [(each["action"], each["to_version"]) for each in moves[:2]] == [
        ("rollback", number),
        ("rollback", target),
    ]
    assert "its deployment failed" in moves[0]["reason"]
    shop.to(1)  # nothing is left half done
    assert shop.serves() == (1, {"1": 100})


def test_a_request_about_an_example_customer_fits_whatever_is_declared(shop: Shop) -> None:
    DECLARED["distinct_products"] = replace(DECLARED["distinct_products"], retired=True)
    shop.prepare()
    inputs = registry.inputs_of(shop.models, 1)
    assert {*inputs} <= {*EXAMPLE}
    example = serving.example_customer(shop.tables, inputs)
    assert [*example] == [*inputs]
    client = serving.connect(shop.config)
    assert 0 < ask(client, 1, pd.DataFrame([example]))[0] < 1
    assert 0 < ask(client, 1, pd.DataFrame([json.loads(json.dumps(EXAMPLE))]))[0] < 1
