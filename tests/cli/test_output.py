"""What the commands print: one JSON document with --json, whole numbers in terminals of any width."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import typer
from typer.testing import CliRunner

from churn_lib import registry
from churn_lib.cli import app as cli
from churn_lib.cli.console import keep_for_json
from churn_lib.settings import Settings
from tests.conftest import CHURN, ROOT, Project, good
from tests.serving import serving_store
from tests.terminals import CONTROL, Terminal

EVENTS = "customer_id,event_ts,session_id,product_id\n" + "".join(
    f"{number % 7},2024-01-{1 + number % 28:02d} 10:00:00,{number},p{number % 3}\n"
    for number in range(100)
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Three versions with metrics, one of them made Production by force, and events."""
    folder = tmp_path_factory.mktemp("output")
    config = serving_store.make(folder)
    models = registry.connect(config)
    for version, value in ((1, 0.83612345), (2, 0.9), (3, 0.5)):
        run = models.version(version).run_id
        for name in ("roc_auc", "f1_score", "precision"):
            mlflow.MlflowClient().log_metric(run, name, value)
    models.client.set_model_version_tag(config.model_name, "2", "git_sha", f"{'ab' * 20}-dirty")
    (folder / "events.csv").write_text(EVENTS)
    return config


# Every command of the list inside one process, as a terminal or a script runs it: `-c` is how
# DuckDB takes Python to be interactive. A terminal is made as narrow as the test wants.
SEVERAL = """
import fcntl, json, os, struct, sys, termios
from churn_lib import cli

for width, arguments in json.loads(sys.argv[1]):
    if os.isatty(1):
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    sys.argv = ["churn", *arguments]
    code = None
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    for file in (1, 2):
        os.write(file, f"\\n--- {code}\\n".encode())
"""


def several(commands: list[tuple[int, list[str]]]) -> list[str]:
    return [sys.executable, "-c", SEVERAL, json.dumps(commands)]


# --- JSON ----------------------------------------------------------------------------------------------


def with_json(app: typer.Typer) -> set[str]:
    """The commands that have --json."""
    found = set()

    def walk(command: Any, path: tuple[str, ...]) -> None:
        for name, each in getattr(command, "commands", {}).items():
            walk(each, (*path, name))
        if any("--json" in parameter.opts for parameter in command.params):
            found.add(" ".join(path))

    walk(typer.main.get_command(app), ())
    return found


@pytest.fixture(scope="module")
def answers(store: Settings) -> dict[str, tuple[str, str]]:
    """Exit code and standard output of every command that has --json, and the bundle's of two more."""
    project = Project(store.root)
    project.write({"training_job": [good("a")], "validation_job": [good("a")]})
    events = ["--events", str(store.root / "events.csv")]
    commands = [
        ["status"],
        ["report"],
        ["doctor"],
        ["run", "training_job"],
        ["run", "training_job", "--dry-run"],
        ["pipeline"],
        ["models"],
        ["rollback", "--reason", "to see", "--to", "1", "--force"],
        ["history"],
        ["copy", "staging", "production"],
        ["reproduce", "1"],
        ["compare", "1", "2"],
        ["try"],
        ["tune"],
        ["settings"],
        ["data", "load", *events],
        ["data", "load", *events],
        ["data", "simulate", "--customers", "20", "--days", "40", "--replace"],
        ["data", "maintain"],
        ["maintain", "--dry-run"],
        ["data", "status"],
        ["data", "forget", "c00000001"],
        ["backfill", "2024-01-21", "2024-01-20"],
        ["deploy", "--version", "3"],
        ["endpoint", "settle"],
        ["endpoint", "status"],
        ["monitor", "status"],
        ["monitor", "alerts"],
        ["monitor", "acknowledge", "nothing-1-2024-01-01"],
        ["bundle", "check"],
    ]
    assert {" ".join(command[:2]) for command in commands} | {
        command[0] for command in commands
    } >= with_json(cli.app)
    environment = {**os.environ, "CHURN_SETTINGS": str(store.root / "settings.ini")}
    with serving_store.ended(store):
        done = subprocess.run(
            several([(80, [*command, "--json"]) for command in commands]),
            cwd=store.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    parts = re.split(r"\n--- (\w+)\n", done.stdout)
    errors = re.split(r"\n--- \w+\n", done.stderr)
    names = [" ".join(command) for command in commands]
    return {
        f"{number} {name}": (code, text, error)
        for number, (name, text, code, error) in enumerate(
            zip(names, parts[::2], parts[1::2], errors, strict=False)
        )
    }


def test_with_json_standard_output_is_one_document_or_nothing(answers: dict[str, Any]) -> None:
    for name, (code, text, error) in answers.items():
        if text.strip():
            json.loads(text)
        else:
            assert (code, error.splitlines()[-1][:7]) in (("2", "churn: "), ("1", "churn: ")), (
                name,
                error,
            )
        assert "Traceback" not in error, error


def test_most_commands_answer_on_a_store_with_models(answers: dict[str, Any]) -> None:
    silent = {
        name.split(" ", 1)[1].split(" --")[0]
        for name, (_, text, _) in answers.items()
        if not text.strip()
    }
    assert silent <= {
        "copy staging production",
        "reproduce 1",
        "try",
        "tune",
        "data load",
        "backfill 2024-01-21 2024-01-20",
        "deploy",
        "monitor status",
        "monitor acknowledge nothing-1-2024-01-01",
    }, {name: error for name, (_, text, error) in answers.items() if not text.strip()}


NOISE = """
import os, subprocess, sys, warnings
sys.argv = ["churn", *sys.argv[1:]]
from churn_lib.cli.console import print_json, steady_streams

with steady_streams():
    print("a remark")
    os.write(1, b"a progress bar\\n")
    subprocess.run(["echo", "a child"])
    warnings.warn("a warning")
    print_json({"value": float("nan"), "name": "Zoë"})
    print("a farewell")
print("after")
"""


@pytest.mark.parametrize("asked", [True, False])
def test_what_libraries_and_children_print_never_reaches_the_json(asked: bool) -> None:
    command = [sys.executable, "-c", NOISE, *["--json"] * asked]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    lines = ("a remark", "a progress bar", "a child", "a farewell")
    if asked:
        document, end = answer.stdout[: -len("after\n")], answer.stdout[-len("after\n") :]
        assert json.loads(document) == {"value": None, "name": "Zoë"}
        assert end == "after\n"
    assert all(line in (answer.stderr if asked else answer.stdout) for line in lines)


def test_keeping_standard_output_for_json_does_nothing_where_somebody_listens_inside_the_process() -> (
    None
):
    answer = CliRunner().invoke(cli.app, ["settings", "--json"])
    keep_for_json()
    assert json.loads(answer.stdout)["target"] == "local"


LOADS = """
import sys
from pathlib import Path
import duckdb
from churn_lib import settings, tables
from churn_lib.data import loading
from churn_lib.data import files as sources
from churn_lib.tables.delta import quiet_duckdb

def bar(connection):
    wanted = "current_setting('enable_progress_bar'), current_setting('enable_progress_bar_print')"
    return connection.execute(f"SELECT {wanted}").fetchall()[0]

assert bar(duckdb.connect()) == (True, True)  # as DuckDB is where Python is interactive
folder = Path(sys.argv[1])
config = settings.load("local", folder / "settings.ini")
store = tables.connect(config)
assert not bar(store.connection.con)[0] and not bar(quiet_duckdb())[0] and not bar(sources._duckdb())[0]
store.folder.mkdir(parents=True)
with loading._staging(store) as connection:
    assert bar(connection.con) == (True, False)  # it counts and prints nothing
assert not bar(store.connection.con)[0]
"""


def test_duckdb_draws_no_progress_bar_also_where_python_is_interactive(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_bytes((ROOT / "settings.ini").read_bytes())
    command = [sys.executable, "-c", LOADS, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, ""), answer.stderr


# --- numbers in tables ---------------------------------------------------------------------------------

WIDTHS = (40, 60, 80, 200)


@pytest.fixture(scope="module")
def shown(answers: Any, store: Settings) -> dict[str, dict[int, list[str]]]:
    """The lines of each command that draws, for each width; after `answers`, whose rollback it shows."""
    commands: list[list[str]] = [
        ["models"],
        ["history"],
        ["settings"],
        ["data", "maintain"],
        ["maintain", "--dry-run"],
        ["data", "status"],
        ["data", "forget", "c00000001"],
        ["data", "load", "--events", "events.csv", "--replace"],
        ["data", "simulate", "--customers", "20", "--days", "40", "--replace"],
        ["endpoint", "status"],
        ["monitor", "alerts"],
        ["run", "training_job", "--dry-run"],
        ["run", "training_job"],
    ]
    calls = [(width, command) for command in commands for width in WIDTHS]
    terminal = Terminal(
        several(calls), store.root, 80, {"CHURN_SETTINGS": str(store.root / "settings.ini")}
    )
    assert terminal.end() == 0, terminal.text[-3000:]
    found: dict[str, dict[int, list[str]]] = {}
    parts = re.split(r"(?:\r\n--- \w+\r\n){2}", terminal.raw)
    for (width, command), part in zip(calls, parts, strict=False):
        assert "Traceback" not in part, part
        _, _, after = part.rpartition("\x1b[?25h")
        lines = CONTROL.sub("", after).splitlines()
        found.setdefault(" ".join(command[:3]), {})[width] = lines
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_are_whole_in_a_terminal_of_any_width(
    shown: dict[str, dict[int, list[str]]], width: int
) -> None:
    def text(command: str) -> str:
        return "\n".join(shown[command][width])

    for command in shown:
        assert "…" not in text(command)
        assert "..." not in text(command)
    for number in ("0.8361", "0.9000", "0.5000"):
        assert text("models").count(number) == 3
    assert re.search(r"rollback none to 1\b", text("history"))
    assert re.search(r"events +│ 100 *│", text("data load --events"))
    assert re.search(r"customers +│ 20 *│", text("data simulate --customers"))


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_of_a_table_is_wider_than_the_terminal(
    shown: dict[str, dict[int, list[str]]], width: int
) -> None:
    for command, lines in shown.items():
        if command != "endpoint status":  # it ends in an address
            # sentences, which may be folded anywhere
            apart = ("churn: ", "Reports: ", "Today is ", "The sample ")
            drawn = [line for line in lines[width] if not line.startswith(apart)]
            assert [line for line in drawn if len(line) > width] == [], command


def test_the_star_is_explained_where_there_is_one(shown: dict[str, dict[int, list[str]]]) -> None:
    for lines in shown["models"].values():
        assert any(re.search(r"\babababa\*", line) for line in lines)
        assert any("* made from a tree with changes" in line for line in lines)


def test_without_a_star_there_is_no_explanation(tmp_path: Path) -> None:
    config = serving_store.make(tmp_path)
    environment = {**os.environ, "CHURN_SETTINGS": str(config.root / "settings.ini")}
    answer = subprocess.run(
        [str(CHURN), "models"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert "*" not in answer.stdout
