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
# # 08 Maintain
#
# > What no version, label, alert or record needs any more goes after its time; the table says what stayed and why.

# %% tags=["parameters"]
git_sha: str = ""  # commit that the deletions are tied to; empty: what is checked out
target: str = "local"  # section of settings.ini
rehearsal: bool = True  # show what would happen and change nothing official; jobs pass false

# %%
from churn_lib import settings, tables
from churn_lib import maintenance
from churn_lib import registry
from churn_lib import job_context

# %%
job = job_context.parameters(globals())
config = settings.load(job.target)
store, models = tables.connect(config), registry.connect(config)

# %% [markdown]
# ## What is needed
#
# Versions that an alias leads to, that wait for an approval, or that were at Production last and can be rolled back to.

# %%
maintenance.needed_versions(maintenance.Upkeep(config, store, models))

# %% [markdown]
# ## What went
#
# Each kind by its setting in the group `keep` of settings.ini; `why` says what keeps older ones. A rehearsal removes
# nothing.

# %%
found = maintenance.maintain(config, store, models, job.rehearsal, job.git_sha)
maintenance.table(found, job.rehearsal)

# %% [markdown]
# ## Hand over

# %%
went = {each.what: each.removed for each in found if each.removed}
job_context.task_values.set("would_go" if job.rehearsal else "removed", went)
went
