"""The how-to "Another problem than churn", followed on a copy: its own edits, its own commands, and what they bring about."""

import datetime
import html
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import nbformat
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from churn_lib import features, registry, tables
from churn_lib import settings as settings_module
from churn_lib.job_context import git
from churn_lib.registry.models import inputs_of
from churn_lib.serving.local import process
from churn_lib.settings import Settings
from tests.checkouts import ROOT, change_settings, environment, make_checkout

PAGE = ROOT / "nbs" / "how-to" / "another_problem.ipynb"
MORE = ("tools", "README.md", "azure-pipelines.yml", ".github/workflows/cd.yml")
NAME = "repurchase-prediction-gbm"
# `make prepare` would set up an environment and git hooks first
PREPARE = f"{shlex.quote(sys.executable)} -m tools.notebooks prepare"
EDIT = re.compile(r"# (\S+\.ipynb), (instead of|after|without) the cell with: (.+)")
FENCED = re.compile(r"^```(\w+)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
# the software's own names
OWN = r"churn_lib|ChurnModel|\.churn\b|CHURN_\w+|churn (?:reproduce|monitor|run|report|approve|rollback|models)\b|churn(?= {2,}#)"


@dataclass
class Followed:
    """A copy after the page."""

    folder: Path
    start: str  # the commit before
    shown: list[tuple[str, str, str]] = field(default_factory=list)  # commands, output, page's

    @property
    def settings(self) -> Settings:
        return settings_module.load("local", self.folder / "settings.ini")

    def output(self, command: str) -> str:
        return next(output for commands, output, _ in self.shown if command in commands)


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """What the page asks for, in its order: edits of notebooks and of settings, commands, their output."""
    for cell in nbformat.read(page, 4).cells:
        if cell.cell_type == "code" and EDIT.match(cell.source):
            yield "edit", cell.source
        elif cell.cell_type == "markdown":
            yield from FENCED.findall(cell.source)


def edit_notebook(folder: Path, text: str) -> None:
    """Do what the first line says, with the lines below it."""
    match, source = EDIT.match(text), text.partition("\n")[2]
    assert match, text
    path, how, found = folder / match[1], match[2], match[3]
    notebook = nbformat.read(path, 4)
    (at,) = (number for number, cell in enumerate(notebook.cells) if found in cell.source)
    if how == "instead of":
        notebook.cells[at].source = f"#| export\n{source}"
    elif how == "after":
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(f"#| export\n{source}"))
    else:
        del notebook.cells[at]
    nbformat.write(notebook, path)


def run(folder: Path, commands: str) -> str:
    """The output of a block of commands, each of which has to succeed."""
    who = {
        f"GIT_{role}_{key}": "t" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    here = environment(folder, COLUMNS="200", **who)
    here["PATH"] = f"{Path(sys.executable).parent}:{here['PATH']}"
    script = "set -e\n" + commands.replace("make prepare", PREPARE)
    answer = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=here, capture_output=True, text=True, timeout=1_200
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    folder = make_checkout(tmp_path_factory.mktemp("another") / "project", MORE)
    made = Followed(folder, git(folder, "rev-parse", "HEAD").decode().strip())
    try:
        for kind, text in steps(PAGE):
            if kind == "edit":
                edit_notebook(folder, text)
            elif kind == "ini":
                section = re.findall(r"^\[(\w+)\]$", text, re.MULTILINE)[0]
                pairs = re.findall(r"^(\S+) = (.*)$", text, re.MULTILINE)
                change_settings(folder, dict(pairs), section)
            elif kind == "sh":
                made.shown.append((text, run(folder, text), ""))
            elif EDIT.match(text):
                for line in text.splitlines():
                    edit_notebook(folder, line)
            else:
                made.shown[-1] = (*made.shown[-1][:2], text)
        yield made
    finally:
        process.stop(made.settings)


def holdout(followed: Followed) -> pd.DataFrame:
    """Labelled rows that the model has not seen."""
    rows = tables.connect(followed.settings).read("gold.features")
    labelled = rows.filter(rows.bought_again.notnull(), rows.in_holdout_bucket)
    return labelled.filter(labelled.feature_date == labelled.feature_date.max()).to_pandas()


def answers(followed: Followed, rows: pd.DataFrame) -> np.ndarray:
    """What version 1 says of each row."""
    models = registry.connect(followed.settings)
    return models.load(1).predict(rows[list(inputs_of(models, 1))].astype("float64"))


def words(page: str) -> str:
    """What a reader sees of HTML."""
    bare = re.sub(r"(?s)<(style|script)\b.*?</\1>|data:image[^\"]*", "", page)
    return html.unescape(re.sub(r"<[^>]+>", " ", bare))


def speaks_of_churn(text: str) -> list[str]:
    return re.findall(r"(?i).{0,40}churn.{0,40}", re.sub(OWN, "", text))


def test_the_page_shows_what_came(followed: Followed) -> None:
    shown = [(output, expected) for _, output, expected in followed.shown if expected]
    assert len(shown) >= 3
    for output, expected in shown:
        for line in expected.splitlines():
            assert line.strip() in output, output


def test_nothing_but_the_named_places_was_changed(followed: Followed) -> None:
    changed = git(followed.folder, "diff", "--name-only", followed.start, "HEAD").decode().split()
    of_names = re.compile(
        r"settings\.ini|databricks\.yml|resources/.*|azure-pipelines\.yml|\.github/.*"
    )
    of_notebooks = {
        *(f"nbs/lib/features/{name}.ipynb" for name in ("definitions", "target")),
        *(f"churn_lib/features/{name}.py" for name in ("definitions", "target")),
        "churn_lib/_modidx.py",
    }
    assert {name for name in changed if not of_names.fullmatch(name)} == of_notebooks
    assert git(followed.folder, "status", "--porcelain") == b""


def test_the_label_is_the_opposite_of_churn_at_the_same_horizon(followed: Followed) -> None:
    settings, store = followed.settings, tables.connect(followed.settings)
    assert settings.data.horizon_days == 30
    rows = holdout(followed)
    day = pd.Timestamp(rows.feature_date.iloc[0]).date()
    events, customers = store.read("bronze.events"), store.read("bronze.customers")
    as_of = day + datetime.timedelta(days=settings.data.horizon_days)
    churn = features.snapshot(events, customers, day, as_of, settings).to_pandas()
    both = rows.merge(churn[["customer_id", "churned"]], on="customer_id")
    assert len(both) == len(rows) > 4_000
    assert (both.bought_again == 1 - both.churned).all()
    assert 0.04 < both.bought_again.mean() < 0.1


def test_the_probability_is_of_buying_again(followed: Followed) -> None:
    rows = holdout(followed)
    probability = answers(followed, rows)
    assert roc_auc_score(rows.bought_again, probability) > 0.84
    assert abs(probability.mean() - rows.bought_again.mean()) < 0.01
    regular = (rows.total_events >= 5) & (rows.days_since_last_event <= 30)
    assert probability[regular].mean() > 0.2 > 10 * probability[rows.total_events == 1].mean()


def test_the_directions_hold(followed: Followed) -> None:
    rows = holdout(followed).head(200)
    for name, direction in (("days_since_last_event", -1), ("events_last_180d", 1)):
        values = np.linspace(0, 400, 9)
        asked = [rows.assign(**{name: value}) for value in values]
        moved = np.diff([answers(followed, each) for each in asked], axis=0) * direction
        assert (moved >= 0).all() and (moved > 0).any(), name


def test_everything_is_under_the_new_names(followed: Followed) -> None:
    settings, models = followed.settings, registry.connect(followed.settings)
    assert settings.model_name == NAME
    assert [model.name for model in models.client.search_registered_models()] == [NAME]
    assert models.version_of(registry.PRODUCTION) == 1
    run_of = models.client.get_run(models.version(1).run_id)
    assert models.client.get_experiment(run_of.info.experiment_id).name.startswith("/repurchase")
    (logged,) = mlflow.search_logged_models([run_of.info.experiment_id], output_format="list")
    assert logged.name == "repurchase-gbm"
    store = tables.connect(settings)
    schemas = (followed.folder / ".churn" / "tables").iterdir()
    assert [path.name for path in schemas] == ["repurchase_local"]
    predictions = store.read("gold.predictions")
    assert "purchase_probability" in predictions.columns
    everything = [
        column
        for table in (followed.folder / ".churn" / "tables" / "repurchase_local" / "gold").iterdir()
        for column in store.read(f"gold.{table.name}").columns
    ]
    assert len(everything) > 60
    assert not [column for column in everything if "churn" in column]


def test_reports_card_and_lists_speak_of_buying_again(followed: Followed) -> None:
    models = registry.connect(followed.settings)
    reports = sorted((followed.folder / ".churn" / "runs").rglob("*.html"))
    texts = {path.stem: words(path.read_text()) for path in reports}
    assert len(texts) >= 6
    with_card = mlflow.artifacts.download_artifacts(
        run_id=models.version(1).run_id, artifact_path="gate"
    )
    texts |= {path.name: words(path.read_text()) for path in Path(with_card).glob("*.html")}
    texts["card"] = models.version(1).description
    texts["pipeline"] = followed.output("churn pipeline")
    assert {name: speaks_of_churn(text) for name, text in texts.items()} == {
        name: [] for name in texts
    }
    assert "The probability that a customer buys again in the 30 days" in texts["card"]
    assert "repurchase rate" in texts["card"]
    assert "repurchase within 30 days" in texts["score_customers"]


def test_the_likeliest_buyers_are_called_first(followed: Followed) -> None:
    predictions = tables.connect(followed.settings).read("gold.predictions").to_pandas()
    called = predictions[predictions.decision == 1]
    assert 0 < len(called) < 0.2 * len(predictions)
    assert (
        called.purchase_probability.min()
        > predictions[predictions.decision == 0].purchase_probability.max()
    )
    assert set(called.decile) <= {1, 2}
