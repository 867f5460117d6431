"""What has to hold on every day, asked of tables, registry, endpoint and files from outside."""

from collections.abc import Iterator
from typing import Any

import mlflow
import pandas as pd

from churn_lib import features, tables
from churn_lib.monitoring import alerts
from churn_lib.registry import promotion_log
from tests.days.endpoints import ServingEndpoints
from tests.days.environments import Environment


def production(place: Environment) -> int | None:
    """The version at the alias, as the registry has it."""
    model = place.workspace.metastore.models.get(place.settings.model_name)
    return model.aliases.get("Production") if model else None


def scores(place: Environment) -> Iterator[str]:
    """What is wrong with the scores after the scoring of a morning."""
    store, version = tables.connect(place.settings), production(place)
    if version is None:
        return
    today = features.coverage(store.read("bronze.events")).today
    people = store.read("bronze.customers").to_pandas()
    known = set(people[people.signup_ts < pd.Timestamp(today, tz="UTC")].customer_id)
    if not store.exists("gold.predictions"):
        yield "no predictions"
        return
    predictions = store.read("gold.predictions")
    rows = predictions.filter(predictions.feature_date == today).to_pandas()
    mine = rows[rows.model_version == version]
    if missing := known - set(mine.customer_id):
        yield f"{len(missing)} of {len(known)} customers have no score of {today} by version {version}"
    if mine.customer_id.duplicated().any():
        yield f"a customer is scored twice on {today} by version {version}"
    if not mine.churn_probability.between(0, 1).all():
        yield f"a score of {today} is no probability"


def agreement(place: Environment, endpoints: ServingEndpoints) -> Iterator[str]:
    """What alias, promotion log, endpoint and gate reports say differently."""
    config, version = place.settings, production(place)
    store = tables.connect(config)
    logged = promotion_log.read(store, config.model_name).production
    if logged != version:
        yield f"the alias is at {version}, the promotion log at {logged}"
    served = endpoints.served(config.serving.endpoint_name)
    if served != ({str(version): 100} if version else {}):
        yield f"the alias is at {version}, the endpoint serves {served}"
    if version:
        reports = store.read("gold.gate_reports")
        own = reports.filter((reports.model_version == version) & (reports.model_name == config.model_name))  # fmt: skip
        verdicts = own.order_by("created_at").to_pandas().verdict.tolist()
        if not {"PASS", "TIE"} & {*verdicts}:
            yield f"version {version} is at Production, its reports say {verdicts or 'nothing'}"


def orphans(place: Environment) -> Iterator[str]:
    """What a run has left half done."""
    model = place.workspace.metastore.models.get(place.settings.model_name)
    for number, version in model.versions.items() if model else ():
        if version.status != "READY":
            yield f"version {number} is {version.status}"
    for path in (place.settings.store / "tables" / place.settings.catalog).rglob("*"):
        if path.suffix in (".part", ".tmp"):
            yield f"{path.name} is left"
    client = mlflow.MlflowClient(f"http://127.0.0.1:{place.workspace.port}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    for run in client.search_runs(experiments, "attributes.status = 'RUNNING'"):
        yield f"MLflow run {run.info.run_id} ({run.info.run_name}) is RUNNING"


def open_alerts(place: Environment) -> list[Any]:
    """The alerts that are open."""
    return alerts.open_alerts(tables.connect(place.settings), place.settings.model_name)


def disk(place: Environment) -> int:
    """Bytes of tables and model files of an environment."""
    folders = [place.settings.store / "tables" / place.settings.catalog]
    folders.append(place.workspace.metastore.files(place.settings.model_name, 0).parent)
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())  # fmt: skip


def over_budget(used: int, day: int) -> Iterator[str]:  # bytes of both environments
    """What is wrong with the disk: some days' rows are what a day may cost, and not ever more."""
    budget = 20_000_000 + 2_000_000 * day
    if used > budget:
        yield f"{used / 1e6:.0f} MB are used after {day} days, {budget / 1e6:.0f} MB are the budget"


def quality(place: Environment) -> pd.DataFrame:
    """ROC-AUC of each day's scores: measured once the labels have come, estimated before."""
    store, names = (
        tables.connect(place.settings),
        ["measured_roc_auc_score", "estimated_roc_auc_score"],
    )
    if not store.exists("gold.profile_metrics"):  # before the first monitoring
        return pd.DataFrame(columns=[name.removesuffix("_score") for name in names], dtype=float)
    rows = store.read("gold.profile_metrics").to_pandas()
    rows = rows[(rows.column_name == ":table") & rows.slice_key.isna()]
    newest = rows.sort_values("as_of").groupby("window_date").last()
    values = (
        newest[names].map(lambda each: each["value"] if each else float("nan")).astype("float64")
    )
    return values.rename(columns=lambda name: name.removesuffix("_score"))


def probabilities(place: Environment) -> pd.Series:
    """Mean probability of each day's scores, as the last scoring of the day has them."""
    store = tables.connect(place.settings)
    if not store.exists("gold.predictions"):
        return pd.Series(dtype=float)
    rows = store.read("gold.predictions")
    made = rows.group_by("feature_date", "model_version").agg(mean=rows.churn_probability.mean())
    return made.order_by("model_version").to_pandas().groupby("feature_date")["mean"].last()
