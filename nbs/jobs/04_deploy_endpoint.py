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
# # 04 Deploy endpoint
#
# > The version at Production behind the serving endpoint, asked about recorded customers before the traffic moves.

# %% tags=["parameters"]
from datetime import date
from typing import Optional

git_sha: str = ""  # commit that deploys; empty: what is checked out
as_of: Optional[date] = None  # every job has it; a deployment does not depend on the day
target: str = "local"  # section of settings.ini
rehearsal: bool = True  # show what would happen and change nothing official; jobs pass false
model_version: int = 0  # version to deploy; 0: the one at the alias Production
force: bool = False  # deploy also a version that the gate has not passed
reason: str = ""  # of a forced deployment: why; it goes on record
may_query: str = ""  # service principal that may ask the endpoint of a workspace, too

# %%
import pandas as pd
from IPython.display import display

from churn_lib import settings, tables
from churn_lib.serving import deploy
from churn_lib import registry
from churn_lib import job_context

# %%
job = job_context.parameters(globals())
job

# %% [markdown]
# ## What is there

# %%
config = settings.load(job.target)
models = registry.connect(config)
store = tables.connect(config)
before = deploy.status(config)
beside = deploy.beside_production(config, models, store, before)
print(*beside["differences"], sep="\n")
pd.DataFrame(before.get("served", []))

# %% [markdown]
# ## The deployment
#
# A new version first gets `serving.canary_percent` of the traffic and has to answer holdout customers as the
# registered model does. When anything fails, endpoint and alias are put back, and the task fails here. A
# version that the gate has not passed is refused unless `force` and a `reason` are given. A rehearsal deploys
# nothing.

# %%
asked = {"version": job.model_version, "force": job.force, "reason": job.reason}
if job.rehearsal:
    deployed = None
    version = job.model_version or models.version_of(registry.PRODUCTION)
    print(
        f"Rehearsal: {config.serving.endpoint_name} would get version {version or 'none'} of the model."
    )
else:
    deployed = deploy.deploy(config, models, store, git_sha=job.git_sha, **asked)
    print(deployed)
if deployed and job.may_query:
    deploy.let_query(config, job.may_query)

# %% [markdown]
# ## The smoke test

# %%
deployed and deployed.smoke

# %%
if deployed:
    job_context.task_values.set("endpoint", deployed.endpoint)
    job_context.task_values.set("served_version", deployed.version)
    job_context.task_values.set("url", deployed.url)
    job_context.task_values.set("sentence", str(deployed))
job_context.task_values.set("outcome", deployed.outcome if deployed else "rehearsal")

# %% [markdown]
# ## Ask it yourself

# %%
if deployed:
    print(deploy.how_to_ask(config, deployed.url, deployed.example))

# %% [markdown]
# ## All deployments

# %%
if store.exists("gold.deployments"):
    history = store.read("gold.deployments").order_by("deployed_at").to_pandas()
    names = ["deployed_at", "from_version", "to_version", "outcome", "reason"]
    display(history[names].tail(10))
