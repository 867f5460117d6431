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
# # 06 Monitor
#
# > Whether the model still is what the gate let pass: a verdict, and what it rests on.

# %% tags=["parameters"]
from datetime import date
from typing import Optional

git_sha: str = ""  # commit that judges; empty: what is checked out
as_of: Optional[date] = None  # reference date, YYYY-MM-DD; empty: as monitoring.today says
target: str = "local"  # section of settings.ini
rehearsal: bool = True  # show what would happen and change nothing official; jobs pass false

# %%
from churn_lib import settings, tables
from churn_lib.monitoring import databricks, report as monitoring_report, verdict
from churn_lib import registry
from churn_lib import job_context

# %%
job = job_context.parameters(globals())
config = settings.load(job.target)
store = tables.connect(config, job.rehearsal)
models = registry.connect(config)

# %% [markdown]
# ## Verdict
#
# A rehearsal computes for this notebook only and sends nothing. Every window that is new, still growing or has got its labels is computed; then the rule looks at the
# latest ones. A dot is a window: green is quiet, red violates, a ring is not known.

# %%
found = verdict.monitor(store, models, config, job.as_of, job.git_sha, notify=not job.rehearsal)
monitoring_report.card(found, config)

# %%
job_context.task_values.set("verdict", found.verdict)
job_context.task_values.set("retrain", "true" if found.retrain else "false")
job_context.task_values.set("sentence", found.sentence)
job_context.task_values.set("alerts", ", ".join(verdict.asking_for_training(found)))

# %% [markdown]
# ## Then and now
#
# The columns of the newest window that are furthest beyond their limit, against the data the model was
# trained on.

# %%
report = monitoring_report.Report(found)
monitoring_report.distributions(report)

# %% [markdown]
# ## Column by column
#
# Drift, and whether a column still goes with the others: one that is zeroed, shuffled or in another unit shows
# there, also where it moves so much by itself that its drift cannot be seen.

# %%
monitoring_report.drift_table(report)

# %% [markdown]
# ## Over time
#
# What was estimated before the labels came, and what turned out to be true. A window without labels has
# no measured quality, which does not mean that it is good.

# %%
monitoring_report.quality(report)

# %%
monitoring_report.quality_table(report)

# %% [markdown]
# ## Calibration then and now

# %%
monitoring_report.calibration(report)

# %% [markdown]
# ## Slices of the newest window

# %%
monitoring_report.slices(report)

# %% [markdown]
# ## What contacting does
#
# The labels of the customers on the call list beside those of the control, who were listed as they were and are not contacted.
# Each customer counts once, on the first day that listed it.

# %%
monitoring_report.contacts(report)

# %% [markdown]
# ## Serving

# %%
monitoring_report.serving(report)

# %% [markdown]
# ## Alerts
#
# Open ones; `churn monitor acknowledge ALERT_ID` acknowledges one.

# %%
monitoring_report.open_alerts(report)

# %% [markdown]
# ## Databricks
#
# There the predictions get a data profile of the platform as well, with the same baseline.

# %%
if not job.rehearsal:
    print(databricks.update_profile(found, config))
