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
# # 07 Move Production
#
# > The version that staging has validated comes into this environment as it is, or the previous version comes back.

# %% tags=["parameters"]
git_sha: str = ""  # commit that moves it; empty: what is checked out
target: str = "local"  # section of settings.ini whose Production is moved
rehearsal: bool = True  # show what would happen and change nothing official; jobs pass false
action: str = "show"  # show, settle, copy or rollback
origin: str = "staging"  # copy: section of settings.ini that has judged the version
model_version: int = 0  # copy: version in origin; 0: the one at Production there
force: bool = False  # copy: also an older version, or one that was not compared
reason: str = ""  # rollback and forced copy: why; it goes on record

# %%
import pandas as pd

from churn_lib import settings
from churn_lib import registry
from churn_lib import job_context

# %%
job = job_context.parameters(globals())
job

# %% [markdown]
# ## Before

# %%
config = settings.load(job.target)
models = registry.connect(config)
before = models.version_of(registry.PRODUCTION)
pd.Series({"model": config.model_name, "Production": before or "none"}).to_frame("before")

# %% [markdown]
# ## The move
#
# Settling deploys and verifies what is at Production when a run before has not come that far, or rolls it back. A copy
# is refused without a gate report that passed, and when the origin has replaced the version since; what is in this
# environment already is not copied again. Where Production has become another version than those that the origin has compared
# it with, such as one that was retrained here, the gate of this environment compares them next, and decides. A rollback needs a reason, and so does a copy by `force`. A rehearsal
# moves nothing.

# %%
if job.action not in ("show", "settle", "copy", "rollback"):
    raise job_context.JobError(f"action = {job.action!r}: use show, settle, copy or rollback")
if job.rehearsal and job.action != "show":
    print(f"Rehearsal: no {job.action}, Production stays {before or 'empty'}.")

# %%
if job.action == "settle" and not job.rehearsal:
    from churn_lib import tables
    from churn_lib.serving import deploy

    print(deploy.settle(config, models, tables.connect(config), job.git_sha).sentence)

# %%
to_judge = 0  # a copy that the gate has to compare here first; none when 0
if job.action == "copy" and not job.rehearsal:
    from churn_lib.registry import copy

    judged = settings.load(job.origin)
    forced = {"force": job.force, "reason": job.reason}
    try:
        decision = copy.copy(judged, config, job.git_sha, job.model_version or None, **forced)
        print(decision.sentence)
    except copy.NotCompared as error:
        to_judge = error.copied
        print(error)

# %%
if job.action == "rollback" and not job.rehearsal:
    from churn_lib import tables
    from churn_lib.serving import deploy
    from churn_lib.registry import promotion

    store = tables.connect(config)

    def follow(version: int) -> None:
        deploy.move(config, models, store, version, job.git_sha, reason=job.reason)

    promotion.rollback(models, store, job.reason, job.git_sha, follow=follow)

# %% [markdown]
# ## After

# %%
after = models.version_of(registry.PRODUCTION)
job_context.task_values.set("production_version", after)
job_context.task_values.set("to_judge", to_judge)
pd.Series({"before": before or "none", "after": after or "none"}, name="Production").to_frame()
