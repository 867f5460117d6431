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
# # 01 Feature engineering
#
# > Raw events become one snapshot of features for each feature date, in the Delta table `gold.features`.
#
# Parameters come from the job; every value that is empty has a sensible meaning, so Run All works. It is
# a rehearsal then. The table is brought up to date all the same: it follows from the raw events, and a run of
# other code or settings builds its own snapshots again.

# %% tags=["parameters"]
from datetime import date
from typing import Optional

git_sha: str = ""  # commit the tables are tied to; empty: what is checked out
as_of: Optional[date] = None  # reference date, YYYY-MM-DD; empty: after the last complete day
rebuild: bool = False  # build snapshots even when nothing they come from has changed
newest_only: bool = False  # build the snapshot of the reference date alone; scoring needs no other
target: str = "local"  # section of settings.ini
backfill: bool = False  # scores of a day that has passed; features are built as for any other
cause: str = ""  # alerts that the training answers; train_and_register records them
rehearsal: bool = True  # show what would happen and change nothing official; jobs pass false

# %%
import pandas as pd

from churn_lib import settings, tables
from churn_lib import registry
from churn_lib.registry import promotion
from churn_lib.features import snapshots
from churn_lib import features
from churn_lib.data import events
from churn_lib import job_context

# %%
job = job_context.parameters(globals())
job

# %% [markdown]
# ## Raw data
#
# The bronze tables, or CDNOW when there are none yet. Both are read at the versions shown here, so
# that data arriving meanwhile does not split a run in two.

# %%
config = settings.load(job.target)
store = tables.connect(config)
shared = tables.on_databricks() and job.target in promotion.SHARED
bronze = events.ensure_bronze(store, sample=not shared)
bronze

# %%
raw_events = store.read("bronze.events", bronze["bronze.events"])
raw_customers = store.read("bronze.customers", bronze["bronze.customers"])
raw_events.aggregate(
    events=raw_events.count(),
    customers=raw_events.customer_id.nunique(),
    first=raw_events.event_ts.min(),
    last=raw_events.event_ts.max(),
).to_pandas()

# %% [markdown]
# ## Features that are still needed
#
# A feature may be removed from the code once no version at Staging, Production or Previous is asked with it. Until
# then it is retired, and the job stops here when it is gone. Nothing was removed where every column of the table is
# declared.

# %%
known = (
    features.feature_columns(store.read("gold.features")) if store.exists("gold.features") else []
)
removed = snapshots.undeclared(known)
needed = registry.needed_inputs(registry.connect(config)) if removed else {}
snapshots.refuse_removed(needed)
pd.DataFrame({"removed": removed})

# %%
covered = features.coverage(raw_events)
today = features.resolve_as_of(job.as_of, covered)
for dropped in snapshots.drop_uncovered(store, covered.today):
    print(f"{dropped}: dropped, the events end before it")
days = features.feature_dates(today, config)[: 1 if job.newest_only else None]
features.check_reach(raw_customers, days)
warnings = covered.warnings(days, config.data.horizon_days)
print(*warnings, sep="\n")
days

# %% [markdown]
# Each snapshot replaces its partition whole: a second run ends with the same rows, not with twice as
# many. One whose events, settings and code have not changed since it was built stays as it is.

# %%
built = []
options = (job.git_sha, job.rebuild, covered.strays)
for each in snapshots.build(store, bronze, days, today, config, *options):
    built.append(each)
    print(
        f"{each.feature_date}: {f'built ({each.reason})' if each.built else 'unchanged, not built again'}"
    )

# %% [markdown]
# Other snapshots of the table, such as those of the days that were scored: [events that came late, were corrected or
# deleted](../how-to/correct_your_data.ipynb) change the ones after them, and these are built again, no others.

# %%
changed = snapshots.changed_since_built(store, bronze)
again = [day for day in changed if day not in days]
for each in snapshots.build(store, bronze, again, covered.today, config, *options[:1]):
    print(f"{each.feature_date}: built again ({changed[each.feature_date]})")
version = store.version("gold.features")
pd.DataFrame(built)

# %% [markdown]
# ## What was written

# %%
written = store.read("gold.features", version)
chosen = written.filter(written.feature_date.isin(days))
by_day = chosen.group_by("feature_date").aggregate(
    customers=chosen.count(),
    labelled=chosen[features.LABEL].count(),
    **{features.TARGET.rate_column: chosen[features.LABEL].mean()},
)
by_day.order_by("feature_date").to_pandas()

# %%
newest = written.filter(written.feature_date == today)
columns = {name: newest[name] for name in features.FEATURES}
spread = {
    "mean": newest.aggregate(**{name: column.mean() for name, column in columns.items()}),
    "least": newest.aggregate(**{name: column.min() for name, column in columns.items()}),
    "most": newest.aggregate(**{name: column.max() for name, column in columns.items()}),
}
pd.concat({kind: row.to_pandas().iloc[0] for kind, row in spread.items()}, axis=1).round(2)

# %% [markdown]
# How well each feature alone tells the labels apart, in the newest snapshot with labels, where one was asked for.
# Above 0.99 the job stops: such a column holds what it should predict.

# %%
labelled = max((each.feature_date for each in built if each.labelled), default=None)
chosen = written.filter(written.feature_date == labelled) if labelled else None
alone = pd.Series(name="roc_auc") if chosen is None else snapshots.check_leakage(chosen)
alone.round(4).to_frame()

# %% [markdown]
# ## Hand over
#
# The version of the table goes to the training task: it reads exactly this state, whatever is written
# in between.

# %%
job_context.task_values.set("delta_feature_version", version)
job_context.task_values.set("feature_date", str(today))
sentence = f"Features of {newest.count().to_pyarrow().as_py():,} customers on {today}"
sentence += f", and of {len(days) - 1} days with labels." if len(days) > 1 else "."
job_context.task_values.set("sentence", sentence)
if warnings:
    job_context.task_values.set("warning", "; ".join(warnings))
pd.Series(
    {"delta_feature_version": version, "feature_date": str(today)}, name="task values"
).to_frame()
