"""The newest gate report as a comment for a pull request.

`python -m tools.gate_comment collect TARGET > gate.json` reads it from gold.gate_reports, where the
pipeline has run. `python tools/gate_comment.py render < gate.json` makes Markdown of it with the
standard library alone, because it runs where a token may write: what a fork has sent is data there,
checked and escaped, and no code of the fork.
"""

import html
import json
import math
import re
import sys
from typing import Any

MARKER = "<!-- churn: gate report -->"
COLUMNS = (
    "model_version",
    "champion_version",
    "verdict",
    "git_sha",
    "feature_date",
    "holdout_rows",
)
LIMIT = 200  # characters of a cell
VERDICTS = {"PASS": "passed", "FAIL": "refused", "TIE": "a tie"}


def collect(target: str) -> dict[str, Any]:
    """The newest row of gold.gate_reports, or nothing when the gate has not been reached."""
    from churn_lib import settings, tables
    from churn_lib.registry.evidence import all_reports

    rows = all_reports(tables.connect(settings.load(target)))
    if not rows:
        return {}
    row = rows[-1]
    known = {name: None if row[name] is None else str(row[name]) for name in COLUMNS}
    return {**known, "checks": json.loads(row["report"]).get("checks", [])}


def cell(value: Any) -> str:
    """A value as a cell of a Markdown table: one line, no markup, nobody mentioned."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else str(value)
    text = " ".join(str("" if value is None else value).split())[:LIMIT]
    # GitHub finds people, issues and addresses in what Markdown has made of this: a space of no width
    text = re.sub(r"[@#:]|www\.", lambda found: f"{found.group()}\u200b", text)
    text = html.escape(text, quote=False)
    return re.sub(r"([\\`*_\[\](){}#+!|~@])", lambda found: f"&#{ord(found.group(1))};", text)


def render(report: Any) -> str:
    """Markdown of a report; of whatever else, a sentence."""
    if not isinstance(report, dict) or not report.get("verdict"):
        return f"{MARKER}\n### Gate\n\nThe gate was not reached: see the run for why.\n"
    verdict = VERDICTS.get(str(report["verdict"]), cell(report["verdict"]))
    champion = cell(report.get("champion_version")) or "none"
    lines = [
        MARKER,
        f"### Gate: {verdict}",
        "",
        f"Version {cell(report.get('model_version'))} at {cell(report.get('git_sha'))[:12]}, "
        f"against Production ({champion}), on {cell(report.get('holdout_rows'))} held-out customers "
        f"of {cell(report.get('feature_date'))}.",
        "",
        "| check | value | bound | passed | meaning |",
        "|---|---|---|---|---|",
    ]
    checks = report.get("checks")
    for check in checks[:50] if isinstance(checks, list) else []:
        if isinstance(check, dict):
            names = ("name", "value", "bound", "passed", "sentence")
            lines.append("| " + " | ".join(cell(check.get(name)) for name in names) + " |")
    return "\n".join([*lines, "", "The executed notebooks are among the run's artifacts.", ""])


def main(arguments: list[str]) -> None:
    """Collect or render, as the first argument says."""
    if arguments[:1] == ["collect"] and len(arguments) == 2:
        print(json.dumps(collect(arguments[1])))
    elif arguments == ["render"]:
        try:
            report = json.loads(sys.stdin.read(1_000_000))
        except (ValueError, RecursionError):
            report = None
        print(render(report), end="")
    else:
        sys.exit("usage: gate_comment.py collect TARGET | gate_comment.py render < gate.json")


if __name__ == "__main__":
    main(sys.argv[1:])
