# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 Score customers
#
# > The model at Production answers for every customer of the newest snapshot, into `gold.predictions`, and lists the customers to contact.

# %% tags=["parameters"]
from datetime import date
from typing import Optional

git_sha: str = ""  # commit the scores are tied to; empty: what is checked out
as_of: Optional[date] = None  # snapshot to score, YYYY-MM-DD; empty: the newest in the table
target: str = "local"  # section of settings.ini
backfill: bool = False  # as_of has passed; marked as made later, left out where scores are there
rehearsal: bool = True  # show what would happen and change nothing official; jobs pass false

# %%
from datetime import timedelta

import pandas as pd

from churn_lib import settings, tables
from churn_lib import scoring
from churn_lib.features import TARGET, labels
from churn_lib.scoring import call_list
from churn_lib.registry import promotion
from churn_lib import registry
from churn_lib import job_context

# %%
job = job_context.parameters(globals())
job

# %% [markdown]
# ## Who answers
#
# The alias is resolved here, once. Reasons are exact Shapley values; for an estimator that has none the line
# `reasons` says so.

# %%
config = settings.load(job.target)
store, models = tables.connect(config, job.rehearsal), registry.connect(config)
scorer = scoring.production(models, config, store)
origin = {
    "model": scorer.model_name,
    "version": scorer.version,
    "predicts": f"{TARGET.noun} within {scorer.basis.horizon_days} days",
    "trained on": scorer.basis.data,
    "decision_threshold": scorer.threshold,
    "reasons": scorer.reasons,
}
against = promotion.objection(models, store, scorer.version, config)
warning = "; ".join(filter(None, [against, scorer.warning(config)]))
print(f"Warning: {warning}" if warning else "It passed the gate.")
pd.Series(origin, name="Production").to_frame()

# %% [markdown]
# ## Who is scored

# %%
snapshot = scoring.read_snapshot(store, job.as_of, scorer)
snapshot

# %%
there = scoring.already_scored(store, snapshot.feature_date, scorer) if job.backfill else None
if there:
    print(
        f"{there.feature_date} was scored by version {there.model_version} already: it stays as it is"
    )
scored = there or scoring.score(
    store,
    snapshot,
    scorer,
    job.git_sha,
    progress=lambda done, total: print(f"{done:,} of {total:,} customers"),
    control_share=config.scoring.control_share,
    backfilled=job.backfill,
)
scored

# %% [markdown]
# ## What was written
#
# One partition of `gold.predictions`, for this day and this version of the model; in a rehearsal it is there
# for this notebook only. Decile 1 is the
# tenth of the customers with the highest probability. Customers of one probability are in the order of
# `customer_id`; `tied` counts those of a decile who share theirs with customers of another one.

# %%
predictions = scoring.read_predictions(
    store, scored.feature_date, scored.model_version, scored.version
)
scoring.by_decile(predictions).round(4)

# %% [markdown]
# ## Customers to contact
#
# The highest probabilities first, each with the features that moved the probability most: a plus speaks
# for it, a minus against it, in log-odds. Customers whom `scoring.control_share` holds back are not on it.

# %%
call_list.call_list(predictions, limit=20)

# %% [markdown]
# ## What the list is worth
#
# Nobody knows yet which of these customers will leave. So the same model answers for the newest
# customers of whom it is known and whom it has not seen in training: the holdout of the snapshot named
# in the charts. The dot is what the decision threshold would have called.

# %%
horizon = config.data.horizon_days
known = labels.labels_of(store, config)
until = snapshot.feature_date - timedelta(days=horizon)
features = scoring.read_labelled(store, scorer, until, known)
call_list.gains_report(
    scorer, features, snapshot.feature_date, horizon, config.scoring.control_share
)

# %% [markdown]
# ## Hand over

# %%
job_context.task_values.set("predictions_version", scored.version)
job_context.task_values.set("feature_date", str(scored.feature_date))
job_context.task_values.set("model_version", scored.model_version)
job_context.task_values.set("customers", scored.customers)
job_context.task_values.set("to_call", scored.to_call)
job_context.task_values.set("control", scored.control)
sentence = f"{scored.customers:,} customers of {scored.feature_date} scored by version {scored.model_version}"
job_context.task_values.set("sentence", f"{sentence}, {scored.to_call:,} to contact.")
if warning:
    job_context.task_values.set("warning", warning)
scored
