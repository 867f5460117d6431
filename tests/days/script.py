"""What happens in the 120 days: changes of the customers, accidents of the source, and work of people."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from churn_lib import tables
from tests.days import world
from tests.days.delivery import Ran
from tests.days.rehearsal import Day, Rehearsal

SETTINGS = {
    "data.horizon_days": "30",
    "data.snapshots": "3",
    "store": "../../store",
    # a shop of some thousand customers shows less on its holdout than a big one
    "gate.margin": "0.02",
    "gate.calibration_margin": "0.05",
    "gate.f1_margin": "0.08",
    "gate.value_margin": "0.15",
    "gate.slice_margin": "0.10",
    "gate.max_contacted_change": "0.5",
    "gate.min_f1_score": "0.60",
    "gate.min_precision": "0.50",
    "gate.min_roc_auc": "0.70",
    # how busy the machine is that plays both workspaces says nothing about the days
    "gate.max_latency_ms": "60000",
    "gate.max_batch_ms": "60000",
    "serving.max_endpoint_latency_ms": "60000",
    "monitoring.max_latency_p95_ms": "60000",
    # events come each day here
    "monitoring.max_days_without_predictions": "2",
}

FEATURE = """#| export
@DECLARED.feature(
    "events in (feature_date - 7 days, feature_date]", "events", direction=FALLS, example=1
)
def events_last_7d(events: Table, day: Day) -> Value:
    return events.count(where=events.event_ts > day.before(7))"""
WORSE = '{"max_iter": 2, "learning_rate": 0.01, "max_leaf_nodes": 2}'


# alerts that customers who behave otherwise give rise to, and a source that does not deliver
CHANGED = frozenset({"drift", "label_drift", "estimated_quality", "quality"})
STOPPED = frozenset({"no_data", "source", "volume"})


@dataclass(frozen=True)
class Cause:
    """Something that the monitor of production has to notice, and until when an alert may be open for it."""

    what: str
    day: int
    alerts: frozenset[str]  # any of these
    within: int  # days in which one of them has to be open
    until: int  # the last day


@dataclass
class Script:
    """All of it, for so many days."""

    source: world.Source
    steps: dict[int, list[Callable[[Rehearsal], str]]] = field(default_factory=dict)
    killed: dict[int, tuple[str, str]] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)


def live(whole: Script, folder: Path) -> Iterator[tuple[Day, Rehearsal]]:
    """Each day when it is over."""
    with Rehearsal(folder, whole.source) as rehearsal:
        rehearsal.steps, rehearsal.killed = whole.steps, whole.killed
        rehearsal.settings(SETTINGS)
        rehearsal.commit("Settings of the rehearsal")
        for day in range(whole.source.days + 1):
            yield rehearsal.live(day), rehearsal


def unexplained(days: list[Day], causes: list[Cause]) -> Iterator[str]:
    """Alerts without a cause in the script, and causes without an alert in time."""
    for day in days:
        for target, found in day.alerts.items():
            for alert in found:
                if not any(c.day <= day.day <= c.until and alert in c.alerts for c in causes):
                    yield f"day {day.day}: {target}: {alert} without a cause in the script"
    for cause in causes:
        last = cause.day + cause.within
        seen = [day for day in days if cause.day <= day.day <= last]
        if last <= days[-1].day and not any(
            cause.alerts & {*day.alerts.get("production", ())} for day in seen
        ):
            yield f"{cause.what} of day {cause.day}: no alert of production in {cause.within} days"


def outcome(ended: list[Ran]) -> str:
    """A run of cd.yml in a few words."""
    last = ended[-1]
    return f"stops in {last.job} at “{last.failed}”" if last.failed else "goes to production"


def wanted(ended: list[Ran], failing: str = "") -> None:
    """Stop the rehearsal when a run of cd.yml has ended otherwise than it should."""
    last = ended[-1]
    if last.failed != failing:
        raise AssertionError(
            f"{last.job} failed at {last.failed!r}, not {failing!r}: {last.output}"
        )


def first_deployment(rehearsal: Rehearsal) -> str:
    ended = rehearsal.merge("The first version of everything")
    wanted(ended)
    return f"first commit {outcome(ended)}"


def adds_a_feature(rehearsal: Rehearsal) -> str:
    rehearsal.developer.add_cells(
        rehearsal.developer.folder / "nbs/lib/features/definitions.ipynb",
        "## The contract",
        [FEATURE],
    )
    rehearsal.developer.run(".venv/bin/nbdev-export")
    ended = rehearsal.merge("Add events_last_7d")
    wanted(ended)
    return f"a commit that adds a feature {outcome(ended)}"


def makes_it_worse(rehearsal: Rehearsal) -> str:
    rehearsal.settings({"training.estimator_parameters": WORSE})
    ended = rehearsal.merge("Two small trees will do")
    wanted(ended, "the gate")
    return f"a commit that makes the model worse {outcome(ended)}"


def is_reverted(rehearsal: Rehearsal) -> str:
    rehearsal.settings({"training.estimator_parameters": "{}"})
    ended = rehearsal.merge("Revert: two small trees will do")
    wanted(ended)
    return f"it is reverted, and that {outcome(ended)}"


def rolls_back(rehearsal: Rehearsal) -> str:
    place = rehearsal.production
    before = rehearsal.version(place)
    done = place.run("promotion_job", action="rollback", reason="complaints of the call centre")
    if done.state != "SUCCESS":
        raise AssertionError([task.error for task in done.tasks])
    return f"rollback of production from version {before} to {rehearsal.version(place)}"


def production_retrains(rehearsal: Rehearsal) -> str:
    """As its monitor does when the model is worse: a version that staging does not have."""
    place = rehearsal.production
    for job in ("training_job", "validation_job", "deployment_job"):
        done = place.run(job)
        assert done.state == "SUCCESS", [task.error for task in done.tasks]
    return f"production trains by itself; its version {rehearsal.version(place)} serves"


def follows_a_retraining(rehearsal: Rehearsal) -> str:
    """The copy was never compared with what production has trained: the gate there does it."""
    place = rehearsal.production
    own = rehearsal.version(place)
    rehearsal.settings({"training.estimator_parameters": "{}"})
    ended = rehearsal.merge("Revert: two small trees will do")
    wanted(ended)
    reports = tables.connect(place.settings).read("gold.gate_reports").to_pandas()
    mine = reports[reports.model_name == place.settings.model_name]
    # a copied report names no champion: this one is of the gate there
    compared = mine[mine.champion_version == own]
    assert len(compared) == 1, mine[["model_version", "champion_version", "verdict"]]
    assert place.run("scoring_job").state == "SUCCESS"  # not before tomorrow morning otherwise
    verdict = compared.verdict.iloc[0]
    return f"a commit {outcome(ended)}; there its version is compared with {own}: {verdict}"


def two_within_an_hour(rehearsal: Rehearsal) -> str:
    earlier = rehearsal.delivery(rehearsal.commit("The first of two"))
    one = earlier.job("staging", rehearsal.staging.workspace)
    later = rehearsal.delivery(rehearsal.commit("The second of two"))
    two = earlier.job("production", rehearsal.production.workspace)
    wanted([one])
    wanted([two], "this is main's newest commit")
    ended = rehearsal.deliver(later)
    wanted(ended)
    return f"two merges within an hour: the first {outcome([two])}, the second {outcome(ended)}"


def wants_approval(rehearsal: Rehearsal) -> str:
    path = rehearsal.developer.folder / "settings.ini"
    path.write_text(
        path.read_text().rstrip() + "\ngate.require_approval = true\n"
    )  # [production] is last
    before = rehearsal.version(rehearsal.production)
    ended = rehearsal.merge("Ask for an approval in production")
    wanted(ended)
    assert rehearsal.version(rehearsal.production) == before, "nobody has approved it"
    return f"a commit that asks for an approval; version {pending(rehearsal)[-1]} waits for one"


def pending(rehearsal: Rehearsal) -> list[int]:
    """Versions of production that wait for somebody."""
    place = rehearsal.production
    versions = place.workspace.metastore.models[place.settings.model_name].versions
    return [n for n, each in versions.items() if each.tags.get("approval") == "pending"]


def approves(rehearsal: Rehearsal) -> str:
    """The newest version that waits is approved, promoted and deployed, as `churn approve` says."""
    place = rehearsal.production
    if not (waiting := pending(rehearsal)):
        return ""
    done = place.command("approve", str(waiting[-1]), "--by", "Ann Example")
    assert done["code"] == 0, done
    jobs = [
        place.run("validation_job", model_version=str(waiting[-1])),
        place.run("deployment_job"),
    ]
    assert [job.state for job in jobs] == ["SUCCESS"] * 2, [job.tasks for job in jobs]
    assert rehearsal.version(place) == waiting[-1]
    return f"version {waiting[-1]} is approved and served"


def restarts(rehearsal: Rehearsal) -> str:
    rehearsal.restart()
    return "both workspaces and all processes are started again"


def full() -> Script:
    """The 120 days."""
    source = world.Source(
        customers=8_000,
        days=120,
        changes=(("activity", 40), ("gradual", 70)),
        empty=frozenset({20}),
        stopped=frozenset({55, 56, 57}),
        late={85: 90},
    )
    steps = {
        0: [first_deployment],
        30: [adds_a_feature],
        48: [makes_it_worse],
        49: [is_reverted],
        63: [rolls_back],
        76: [two_within_an_hour],
        80: [wants_approval],
        **{day: [approves] for day in range(87, 121)},  # somebody is back from a week's leave
        100: [restarts, approves],
    }
    killed = {
        day: ("production", ("scoring_job", "monitoring_job")[day // 10 % 2])
        for day in range(10, 121, 10)
    }
    causes = [
        # most customers of this shop are silent anyway: what the others do less is seen in the labels
        Cause("half the visits", 40, CHANGED, within=30, until=120),
        # after 50 days visits are a seventh fewer, and a count over 90 days half of that
        Cause("fewer visits, slowly", 70, CHANGED, within=50, until=120),
        Cause("a source that has stopped", 55, STOPPED, within=4, until=62),
    ]
    return Script(source, steps, killed, causes)


def short() -> Script:
    """Two weeks with one of each: what `make test` lives."""
    source = world.Source(
        customers=6_000,
        days=14,
        changes=(("activity", 6),),
        empty=frozenset({3}),
        stopped=frozenset({9, 10, 11}),
        late={5: 7},
    )
    steps = {
        0: [first_deployment],
        2: [adds_a_feature],
        4: [makes_it_worse],
        5: [rolls_back],
        8: [restarts],
        14: [production_retrains, follows_a_retraining],
    }
    killed = {3: ("production", "scoring_job"), 6: ("production", "monitoring_job")}
    causes = [
        Cause("half the visits", 6, CHANGED, within=8, until=14),
        Cause("a source that has stopped", 9, STOPPED, within=3, until=12),
    ]
    return Script(source, steps, killed, causes)
