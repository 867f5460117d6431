"""Draw how the jobs of the bundle follow each other: `python -m tools.flow` writes nbs/flow.svg.

Jobs, their tasks, their times and what starts what are read from the bundle, so that the drawing cannot be
of another pipeline than the one that runs. The colours follow the reader's light or dark mode.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from churn_lib import bundle
from churn_lib.bundle import Bundle

PATH = Path(__file__).parent.parent / "nbs" / "flow.svg"
TEXT = (
    "From events to a model that serves: training_job makes features and a version at Staging, validation_job"
    " is the gate to Production, deployment_job serves it; scoring_job and monitoring_job run every day, and"
    " monitoring_job starts the first three again when the model is worse."
)
WIDTH, STEP, LEFT = 172, 248, 14  # of a box, from a box to the next one, of the first
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2933; }
.name { font-weight: 600; } .small { font-size: 11.5px; fill: #52606d; }
.job { fill: #eef4ff; stroke: #3b82f6; } .kept { fill: #f4f5f7; stroke: #8d949e; }
.arrow { stroke: #52606d; fill: none; stroke-width: 1.5; marker-end: url(#head); } #head path { fill: #52606d; }
.again { stroke: #d6453d; stroke-dasharray: 5 4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e7eb; } .small { fill: #b8c2cc; }
  .job { fill: #16233b; } .kept { fill: #23272e; }
  .arrow { stroke: #b8c2cc; } #head path { fill: #b8c2cc; } .again { stroke: #ff8a80; }
}"""


@dataclass(frozen=True)
class Box:
    """A job, or what one leaves: in a column of a row."""

    name: str
    column: float
    row: int
    lines: tuple[str, ...] = ()
    kind: str = "kept"

    @property
    def left(self) -> float:
        """Pixels from the left side of the drawing."""
        return LEFT + self.column * STEP

    @property
    def top(self) -> float:
        """Pixels from its upper side."""
        return 24 + self.row * 132

    @property
    def height(self) -> float:
        """As many pixels as its lines take."""
        return 34 + 17 * len(self.lines)

    def svg(self) -> str:
        """The box with its text."""
        lines = [
            f'<text class="small" x="{self.left + 12:g}" y="{self.top + 40 + 17 * number:g}">{escape(line)}</text>'
            for number, line in enumerate(self.lines)
        ]
        rect = f'x="{self.left:g}" y="{self.top:g}" width="{WIDTH}" height="{self.height:g}" rx="7"'
        head = f'<text class="name" x="{self.left + 12:g}" y="{self.top + 22:g}">{escape(self.name)}</text>'
        return "\n".join([f'<rect class="{self.kind}" {rect}/>', head, *lines])


def job(read: Bundle, name: str, column: float, row: int) -> Box:
    """The box of a job: its tasks, and when it runs by itself."""
    body = read.config["resources"]["jobs"][name]
    tasks = [task["task_key"] for task in body["tasks"] if "notebook_task" in task]
    lines = [*tasks, *when(body)]
    return Box(name, column, row, tuple(lines), "job")


def when(body: dict) -> list[str]:  # type: ignore[type-arg]
    """The schedule of a job in words."""
    schedule = body.get("schedule")
    if not schedule:
        return []
    _, minute, hour, *_ = schedule["quartz_cron_expression"].split()
    return [f"every day at {int(hour):02d}:{int(minute):02d} {schedule['timezone_id']}"]


def arrow(start: Box, end: Box, kind: str = "") -> str:
    """From the right side of a box to the left side of the next one in its row."""
    height = start.top + 26
    path = f"M {start.left + WIDTH:g} {height:g} H {end.left - 4:g}"
    return f'<path class="arrow {kind}" d="{path}"/>'


def down(start: Box, end: Box, kind: str = "") -> str:
    """From the lower side of a box to the upper side of one below it."""
    middle, x = (start.top + start.height + end.top) / 2, end.left + WIDTH / 2
    path = f"M {start.left + WIDTH / 2:g} {start.top + start.height:g} V {middle:g} H {x:g} V {end.top - 4:g}"
    return f'<path class="arrow {kind}" d="{path}"/>'


def draw(read: Bundle) -> str:
    """The whole drawing, as SVG."""
    events = Box("bronze.events", 0, 0, ("purchases, visits",))
    training, gate, deployment = (
        job(read, name, column, 0)
        for column, name in enumerate(("training_job", "validation_job", "deployment_job"), start=1)
    )
    scoring, monitoring = job(read, "scoring_job", 1, 1), job(read, "monitoring_job", 2, 1)
    maintenance = job(read, "maintenance_job", 4, 1)
    promotion = job(read, "promotion_job", 4, 0)
    endpoint = Box("endpoint", 3, 1, ("answers, smoke-tested",))
    started = {
        key
        for task in read.config["resources"]["jobs"]["monitoring_job"]["tasks"]
        for key in ("training_job", "validation_job", "deployment_job")
        if key in str(task.get("run_job_task", ""))
    }
    if started != {"training_job", "validation_job", "deployment_job"}:
        raise ValueError(f"monitoring_job starts {sorted(started)}: draw that instead")
    boxes = (
        events,
        training,
        gate,
        deployment,
        promotion,
        scoring,
        monitoring,
        maintenance,
        endpoint,
    )
    arrows = [
        arrow(events, training),
        arrow(training, gate),
        arrow(gate, deployment),
        arrow(deployment, promotion),
        arrow(scoring, monitoring),
        down(events, scoring),
        down(deployment, endpoint),
    ]
    labels = [
        (training, "Staging"),
        (gate, "Production"),
        (deployment, "copy"),
        (scoring, "scores"),
    ]
    words = [
        f'<text class="small" x="{box.left + WIDTH + 3:g}" y="{box.top + 18:g}">{escape(word)}</text>'
        for box, word in labels
    ]
    again = (
        f"M {monitoring.left + WIDTH / 2:g} {monitoring.top:g} V {monitoring.top - 20:g} "
        f"H {training.left + WIDTH - 20:g} V {training.top + training.height + 5:g}"
    )
    words += [
        f'<text class="small" x="{monitoring.left + WIDTH / 2 + 6:g}" y="{monitoring.top - 8:g}">worse: train, judge, serve again</text>'
    ]
    width = LEFT * 2 + 4 * STEP + WIDTH
    height = max(box.top + box.height for box in boxes) + 14
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
            f"<title>{escape(TEXT)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
            '<path d="M 0 0 L 8 4 L 0 8 z"/></marker></defs>',
            *(box.svg() for box in boxes),
            *arrows,
            f'<path class="arrow again" d="{again}"/>',
            *words,
            "</svg>\n",
        ]
    )


def main() -> int:
    """Write the drawing."""
    PATH.write_text(draw(bundle.load("production")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
