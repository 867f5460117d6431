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
# # 02 Train and register
#
# > One version of the feature table becomes one version of the model, at the alias Staging.

# %% tags=["parameters"]
from datetime import date
from typing import Optional

git_sha: str = ""  # commit the model is tied to; empty: what is checked out
as_of: Optional[date] = None  # reference date, YYYY-MM-DD; empty: the newest snapshot in the table
rebuild: bool = False  # of the features; the parameters of a job reach all of its tasks
target: str = "local"  # section of settings.ini
rehearsal: bool = True  # show what would happen and change nothing official; jobs pass false
delta_feature_version: int = -1  # version of gold.features to train on; -1: the latest
cause: str = ""  # alerts of the monitor that this training answers; goes on record

# %%
import pandas as pd

from churn_lib import settings, tables
from churn_lib.training import card, train
from churn_lib import registry
from churn_lib.features import snapshots
from churn_lib import job_context

# %%
job = job_context.parameters(globals())
job

# %% [markdown]
# ## Data
#
# Training rows come from the older snapshots and never from customers in the holdout bucket; the
# holdout is the newest labelled snapshot of exactly those customers.

# %%
config = settings.load(job.target)
store = tables.connect(config)
version = job.delta_feature_version
if version < 0:
    version = store.version("gold.features")
data = train.read_data_set(store.read("gold.features", version), version, config, job.as_of)
snapshots.check_labels(store, data.days, config, version)
data.summary()

# %% [markdown]
# The bar to clear: how well each single column ranks the holdout, all by itself.

# %%
snapshots.single_column_roc_auc(data.holdout).round(4).to_frame()

# %% [markdown]
# ## Training

# %%
models = registry.connect(config)
origin = train.source(store, version, config)
trained = train.train(data, config, job.git_sha, origin, job.rehearsal)
trained.model.estimator

# %%
pd.Series(trained.metrics, name="holdout").round(4).to_frame()

# %%
trained.figures["roc.png"]

# %%
trained.figures["precision_recall.png"]

# %%
trained.figures["calibration.png"]

# %%
trained.figures["importance.png"]

# %% [markdown]
# ## Registration
#
# The run becomes a version, and the alias Staging moves to it: this is the candidate that the gate
# will judge. A rehearsal has its run, and no version.

# %%
model_version = 0 if job.rehearsal else train.register(models, trained, job.cause)
registry.versions_table(models)

# %% [markdown]
# ## Model card
#
# Generated from what the run has logged; the gate adds its verdict.

# %%
card.publish(models, store, model_version) if model_version else None

# %%
job_context.task_values.set("run_id", trained.run_id)
job_context.task_values.set("model_version", model_version)
job_context.task_values.set("roc_auc", round(trained.metrics["roc_auc"], 6))
what = f"Version {model_version} is at Staging" if model_version else "A rehearsal, no version"
what += f": ROC-AUC {trained.metrics['roc_auc']:.4f} on held-out customers."
job_context.task_values.set("sentence", what)
pd.Series({"run_id": trained.run_id, "model_version": model_version}, name="task values").to_frame()
