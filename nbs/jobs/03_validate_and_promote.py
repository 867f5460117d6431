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
# # 03 Validate and promote
#
# > The candidate is asked again on held-out customers, compared with Production, and promoted or refused.

# %% tags=["parameters"]
git_sha: str = ""  # commit that judges; empty: what is checked out
as_of: str = ""  # day to stand on, YYYY-MM-DD; empty: the newest snapshot in the table
target: str = "local"  # section of settings.ini
model_version: int = 0  # version to judge; 0: the one at the alias Staging

# %%
import pandas as pd

from churn_lib import evaluation, jobs, model_card, promotion, registry, settings, tables, training
from churn_lib import validation

# %%
job = jobs.parameters(globals())
job

# %% [markdown]
# ## Who is compared

# %%
config = settings.load(job.target)
models = registry.connect(config)
candidate_version = models.candidate(job.model_version)
champion_version = models.version_of(registry.PRODUCTION)
pd.DataFrame({"version": {"candidate": candidate_version, "champion": champion_version or "none"}})

# %% [markdown]
# ## On what
#
# The newest labelled snapshot in the table, and of it the customers no model has trained on.

# %%
store = tables.connect(config)
feature_version = store.version("gold.features")
features = store.read("gold.features", feature_version)
data = training.read_data_set(features, feature_version, config, job.as_of)
data.summary().loc["holdout"]

# %% [markdown]
# ## The answers of both, on the same rows

# %%
candidate = validation.ask_version(models, candidate_version, data.holdout)
champion = None
if champion_version is not None:
    champion = validation.ask_version(models, champion_version, data.holdout)

# %% [markdown]
# ## The report

# %%
report = validation.judge(candidate, champion, data.holdout, config)
report

# %%
answers = {
    f"version {asked.version}": asked.probability
    for asked in (candidate, champion)
    if asked is not None and asked.probability is not None
}
evaluation.roc_plot(data.holdout["churned"], answers)

# %%
evaluation.calibration_plot(data.holdout["churned"], answers)

# %% [markdown]
# ## The record
#
# A row in `gold.gate_reports`, and the model card with the verdict on it.

# %%
report_id = validation.record(store, models, report, data.holdout, feature_version, job.git_sha)
card = model_card.publish(models, store, candidate_version)
card

# %% [markdown]
# ## The consequence
#
# A failed check raises here: the task fails, and Production stays what it was.

# %%
jobs.task_values.set("candidate_version", candidate_version)
jobs.task_values.set("passed", report.passed)
decision = promotion.promote(models, store, candidate_version, config, job.git_sha)
print(decision.sentence)

# %%
jobs.task_values.set("verdict", decision.sentence)
jobs.task_values.set("production_version", models.version_of(registry.PRODUCTION))
listed = pd.DataFrame(registry.versions(models)).set_index("version")
listed[["aliases", "delta_feature_version", "roc_auc", "f1_score", "precision", "created"]]
