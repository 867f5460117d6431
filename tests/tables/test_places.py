"""A store works in whatever folder it lies, stays whole when it moves, and a folder that cannot work is refused."""

import datetime
import os
import shutil
import subprocess
from pathlib import Path

import ibis
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner

from churn_lib import registry, settings, tables
from churn_lib.cli import app as cli
from churn_lib.data import files
from churn_lib.data.files import SourceError
from churn_lib.settings import SettingsError
from churn_lib.tables import DeltaTables, TableError
from tests.conftest import run_job

ROOT = Path(__file__).parents[2]
MONDAY = datetime.date(2024, 1, 1)

# each of them alone, then all of them together
SIGNS = [
    *" %#?{}*'\"&;=+~$`<>:(),@!-",
    "ü",
    "日本",
    "😀",
    "\N{NO-BREAK SPACE}",
    "u\N{COMBINING DIAERESIS}",
]
NAMES = [
    *(f"a{sign}b" for sign in SIGNS),
    *SIGNS[1:],
    " lead",
    "trail ",
    "100%",
    "%4",
    "%zz",
    "?a=b#c",
    "{}{0}{x!r}",
    "$(HOME)",
    "--flag",
    "file:x",
    "amount=7",
    "day=1999-09-09",
    "s3:",
]
EVERYTHING = "a day=1 " + "".join(SIGNS)


def place(folder: Path) -> settings.Settings:
    """Settings of a project in `folder`, small enough for a few customers."""
    folder.mkdir(parents=True)
    text = (ROOT / "settings.ini").read_text()
    for key, value in {
        "data.snapshots": "2",
        "data.horizon_days": "30",
        "gate.min_slice": "30",
    }.items():
        lines = (
            f"{key} = {value}" if line.startswith(f"{key} =") else line
            for line in text.splitlines()
        )
        text = "\n".join(lines)
    (folder / "settings.ini").write_text(text)
    return settings.load("local", folder / "settings.ini")


@pytest.mark.parametrize("name", NAMES)
def test_tables_below_a_folder_of_any_name_hold_what_was_written(tmp_path: Path, name: str) -> None:
    store = DeltaTables(settings.load("local", _settings(tmp_path / name)).store)
    for amount in (1, 2):
        rows = ibis.memtable({"amount": [amount, 7]}).mutate(day=ibis.literal(MONDAY))
        store.overwrite("gold.sales", rows, {"day": MONDAY})
    found = store.read("gold.sales").order_by("amount").to_pandas()
    assert found["amount"].tolist() == [2, 7]
    assert found["day"].astype(str).tolist() == ["2024-01-01", "2024-01-01"]
    assert store.read("gold.sales", 0).amount.min().to_pyarrow().as_py() == 1
    assert store.names() == ["gold.sales"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def _settings(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return Path(shutil.copy(ROOT / "settings.ini", folder))


def test_every_step_works_below_a_folder_with_every_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = place(tmp_path / EVERYTHING)
    monkeypatch.setenv("CHURN_SETTINGS", str(config.root / "settings.ini"))
    monkeypatch.setenv("CHURN_TASK_VALUES", str(tmp_path / "values"))
    events = config.root / "events.csv"
    lines = [
        f"c{customer},{MONDAY + datetime.timedelta(days=day)}"
        for customer in range(300)
        for day in range(customer % 6, min(180, 20 + customer * 37 % 300), 6)
    ]
    events.write_text("\n".join(["customer_id,event_ts", *lines]))
    runner = CliRunner()
    loaded = runner.invoke(cli.app, ["data", "load", "--events", str(events), "--json"])
    assert loaded.exit_code == 0, loaded.output + repr(loaded.exception)
    run_job("01_feature_engineering", tmp_path, monkeypatch)
    trained = run_job("02_train_and_register", tmp_path, monkeypatch)
    models, store = registry.connect(config), tables.connect(config)
    models.set_alias(registry.PRODUCTION, trained["model_version"])
    run_job("05_score_customers", tmp_path, monkeypatch)
    assert store.read("gold.predictions").count().to_pyarrow().as_py() > 0
    listed = runner.invoke(cli.app, ["models", "--json"])
    assert listed.exit_code == 0 and '"Production"' in listed.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [EVERYTHING, "values"]
    made = {path.name for path in config.root.iterdir()}
    assert made == {".churn", "settings.ini", "events.csv"}


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("a [old]", "["),
        ("old]", "]"),
        ("a|b", "|"),
        ("a^b", "^"),
        ("a\\b", "\\"),
        ("a%20b", "%20"),
        ("%%41", "%41"),
        ("two\nlines", "\n"),
        ("tab\there", "\t"),
        ("\x7f", "\x7f"),
        (os.fsdecode(b"caf\xe9"), "\udce9"),
    ],
)
def test_a_folder_that_delta_rs_cannot_take_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, sign: str
) -> None:
    path = _settings(tmp_path / name)
    with pytest.raises(SettingsError) as refused:
        settings.load("local", path)
    message = str(refused.value)
    assert message.isprintable() and repr(sign) in message and "[local] store" in message
    with pytest.raises(TableError, match="no Delta table can be kept"):
        DeltaTables(path.parent / "tables")
    (path.parent / "theirs" / "_delta_log").mkdir(parents=True)
    with pytest.raises(SourceError, match="no Delta table can be read"):
        files.find(str(path.parent / "theirs"))
    assert sorted(each.name for each in path.parent.iterdir()) == ["settings.ini", "theirs"]
    text = path.read_text().replace("store = .churn", f"store = {tmp_path / 'store'}")
    path.write_text(text)
    assert settings.load("local", path).store == tmp_path / "store"


def test_a_delta_table_of_others_is_read_below_a_folder_with_every_sign(tmp_path: Path) -> None:
    folder = tmp_path / EVERYTHING / "theirs"
    rows = {"customer_id": ["a", "b"], "shop": ["north & süd", "%41 [x]"]}
    write_deltalake(folder, ibis.memtable(rows).to_pyarrow(), partition_by=["shop"])
    source = files.find(str(folder))
    found = ibis.duckdb.connect().raw_sql(f"SELECT * FROM ({files.scan_sql(source)})").fetchall()
    assert sorted(row[1:] for row in found) == [("a", "north & süd"), ("b", "%41 [x]")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ('a "b', 'a blank and "'),
        ("a $b", "a blank and $"),
        ("a `b", "a blank and `"),
        ("a \\b", "a blank and \\"),
        ("a:b", "a colon"),
    ],
)
def test_a_folder_in_which_no_environment_works_is_refused_before_one_is_made(
    tmp_path: Path, name: str, reason: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    command = ["sh", str(ROOT / "tools/install.sh"), ".venv", "requirements.lock"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and list(folder.iterdir()) == []
    assert done.stderr == (
        f"install: no virtual environment works below {folder}: it has {reason}; rename the folder\n"
    )
