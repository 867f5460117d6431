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
from datetime import date
from typing import Optional

git_sha: str = ""  # commit that judges; empty: what is checked out
as_of: Optional[date] = None  # reference date, YYYY-MM-DD; empty: the newest day with labels
target: str = "local"  # section of settings.ini
rehearsal: bool = True  # show what would happen and change nothing official; jobs pass false
model_version: int = 0  # version to judge; 0: the one at the alias Staging
model_name: str = ""  # given by Unity Catalog; another than the target's model is refused
replace_reason: str = ""  # why a Production that cannot be compared may be replaced; goes on record

# %%
import pandas as pd
from IPython.display import display

from churn_lib import settings, tables
from churn_lib import gate
from churn_lib.gate import probe
from churn_lib.training import card
from churn_lib.registry import evidence, promotion, promotion_log
from churn_lib import registry
from churn_lib.features import LABEL, TARGET, newest_snapshot
from churn_lib.features import read_holdout, read_older_holdout, snapshots
from churn_lib import job_context, provenance, reproduction

# %%
job = job_context.parameters(globals())
job

# %% [markdown]
# ## Who is compared

# %%
config = settings.load(job.target)
promotion.refuse_other_model(job.model_name, config)
models = registry.connect(config)
store = tables.connect(config)
moves = promotion_log.read(store, models.model_name)
if not job.rehearsal:
    moves = promotion_log.recover(models, store)  # finishes a move that a crash has cut short
candidate_version = models.candidate(job.model_version)
promotion.refuse_sample(models, store, candidate_version, config)
champion_version = models.version_of(registry.PRODUCTION)
best_version = gate.best_so_far(store, models, champion_version)
compared = {
    "candidate": candidate_version,
    "champion": champion_version or "none",
    "best so far": best_version or champion_version or "none",
}
numbers = {candidate_version, champion_version, best_version} - {None}
bases = {number: registry.basis(models, number, config, store) for number in numbers}
known = {name: vars(bases[number]) for name, number in compared.items() if number in bases}
pd.DataFrame({"version": compared}).join(pd.DataFrame(known).T)

# %% [markdown]
# ## On what
#
# The newest labelled snapshot in the table, and of it the customers none of these versions has trained on. The
# same customers in older snapshots make the comparison surer; the newest snapshot of all is what will be scored
# next. Where the table has labels of no day that the training knew nothing of, those of the newest days are built
# first: after days of scoring alone, or for a version from another workspace.

# %%
known_until = [snapshots.trained_until(models.version(number).tags) for number in numbers]
if not job.as_of and any(known_until):
    for each in snapshots.label_after(store, max(filter(None, known_until)), config, job.git_sha):
        print(f"{each.feature_date}: {f'built ({each.reason})' if each.built else 'unchanged'}")
feature_version = store.version("gold.features")
features = store.read("gold.features", feature_version)
today = job.as_of or newest_snapshot(features)
share = min(each.holdout_share for each in bases.values())
holdout, holdout_day = read_holdout(features, config, job.as_of, share)
older = holdout.head(0)
if holdout_day:
    older = read_older_holdout(features, config, holdout_day, share)
rows = pd.concat([older, holdout], ignore_index=True)
judged_days = sorted({day.date() for day in pd.to_datetime(rows["feature_date"])})
snapshots.check_labels(store, judged_days, config, feature_version)
pd.DataFrame(
    {
        "holdout": {
            "gold.features version": feature_version,
            "feature_date": holdout_day,
            "customers": len(holdout),
            TARGET.yes: holdout[LABEL].sum(),
            "labels missing": holdout[LABEL].isna().sum(),
            "rows of older snapshots": len(older),
        }
    }
)

# %% [markdown]
# ## What the candidate shows, and what Production answers, on the same rows

# %%
alias = "" if job.model_version else registry.STAGING
newest = probe.newest_rows(features)
problem = probe.training_problem_of(models, candidate_version, store, feature_version, config)
known = {"newest": newest, "training_problem": problem}
built = {}
if not tables.on_databricks():  # where the commits are at hand
    built = {number: reproduction.former_rows(models, config, number, today) for number in numbers}
table = probe.FeatureTable(store, feature_version, built)
basis = bases[candidate_version]
candidate = probe.examine(models, candidate_version, rows, alias, basis, config, table, **known)
champion, best = (
    None
    if version is None
    else probe.ask_version(models, version, rows, bases[version], config, table)
    for version in (champion_version, best_version)
)

# %% [markdown]
# ## The report

# %%
rivals = (best, moves.production, job.replace_reason)
differing = provenance.settings_differing(config, job.git_sha)
worn = evidence.compared_versions(models, store).get(holdout_day, ())
report = gate.judge(candidate, champion, rows, config, *rivals, differing, worn)
report

# %%
for figure in gate.figures(report).values():
    display(figure)

# %%
gate.slices_table(report)

# %% [markdown]
# HTML and JSON go to the candidate's run, tags to its version, a row to `gold.gate_reports`: whatever the
# verdict is. A rehearsal leaves nothing.

# %%
report_id = "none"
if not job.rehearsal:
    report_id = gate.record(report, models, store, feature_version, job.git_sha)
job_context.task_values.set("candidate_version", candidate_version)
job_context.task_values.set("passed", report.passed)
job_context.task_values.set("gate_verdict", report.verdict)
job_context.task_values.set("gate_report_id", report_id)
warnings = [f"advisory failure: {result.name}" for result in report.warnings]
warnings += [f"settings not as committed: {each}" for each in differing or ()]
if report.case.difference:
    warnings.append(f"not compared with Production: {report.case.difference}")
if warnings:
    job_context.task_values.set("warning", "; ".join(warnings))
f"{report.verdict}, report {report_id}"

# %% [markdown]
# The model card carries the verdict, too.

# %%
None if job.rehearsal else card.publish(models, store, candidate_version)

# %% [markdown]
# ## The consequence
#
# A failed check raises here: the task fails, and Production stays what it was. What counts is the report that
# was just written, by its id.

# %%
if job.rehearsal:
    sentence = f"Rehearsal: {report.verdict}, and Production stays {champion_version or 'empty'}."
else:
    decision = promotion.promote(
        models, store, candidate_version, config, job.git_sha, report_id=report_id
    )
    sentence = decision.sentence
print(sentence)

# %%
job_context.task_values.set("verdict", sentence)
job_context.task_values.set("sentence", f"Gate: {report.verdict}. {sentence}")
job_context.task_values.set("production_version", models.version_of(registry.PRODUCTION))
registry.versions_table(models)
