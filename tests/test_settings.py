"""settings.ini: what is accepted, and what is said about the rest."""

import re
from pathlib import Path

import pytest

from churn_lib import settings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    return Path(
        (tmp_path / "settings.ini").write_text((ROOT / "settings.ini").read_text())
        and tmp_path / "settings.ini"
    )


def change(path: Path, key: str, value: str) -> None:
    text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", path.read_text(), count=1)
    assert count == 1
    path.write_text(text)


@pytest.mark.parametrize("target", ["local", "dev", "staging", "production"])
def test_every_target_of_the_project_loads(target: str) -> None:
    assert settings.load(target, ROOT / "settings.ini").target == target


def test_targets_keep_their_models_and_catalogs_apart() -> None:
    loaded = [settings.load(target, ROOT / "settings.ini") for target in settings.targets()]
    assert len({each.model_name for each in loaded}) == len(loaded)
    assert len({each.catalog for each in loaded}) == len(loaded)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.horizon_days", "soon"),
        ("data.horizon_days", "0"),
        ("data.snapshots", "1"),
        ("data.holdout_share", "1.5"),
        ("gate.min_roc_auc", "high"),
        ("gate.promote_on_tie", "perhaps"),
        ("training.estimator", "random_forest"),
        ("catalog", "my catalog"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_section_key_and_value(
    ini: Path, key: str, value: str
) -> None:
    change(ini, key, value)
    with pytest.raises(settings.SettingsError) as caught:
        settings.load("local", ini)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(ini), "[local]", key, repr(value)):
        assert part in message


def test_an_unknown_key_is_named(ini: Path) -> None:
    ini.write_text(ini.read_text() + "\nmin_roc_acu = 0.9\n")
    with pytest.raises(
        settings.SettingsError, match=r"\[production\] min_roc_acu is not a setting"
    ):
        settings.load("production", ini)


@pytest.mark.parametrize("key", ["target", "root"])
def test_a_computed_value_cannot_be_set(ini: Path, key: str) -> None:
    ini.write_text(ini.read_text().replace("[local]", f"[local]\n{key} = x"))
    with pytest.raises(settings.SettingsError, match=rf"\[local\] {key} is not a setting"):
        settings.load("local", ini)


def test_a_missing_key_is_named(ini: Path) -> None:
    ini.write_text(ini.read_text().replace("data.snapshots = 4", ""))
    with pytest.raises(settings.SettingsError, match=r"\[local\] data\.snapshots is missing"):
        settings.load("local", ini)


@pytest.mark.parametrize("text", ["horizon_days = 90\n", "[local\n", "[a]\nx=1\nx=2\n", "\x00"])
def test_a_file_that_is_no_ini_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.ini"
    path.write_text(text)
    with pytest.raises(settings.SettingsError) as caught:
        settings.load("local", path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHURN_SETTINGS", raising=False)
    with pytest.raises(settings.SettingsError, match=re.escape(f"{tmp_path}: no settings.ini")):
        settings.find_settings(tmp_path)
    monkeypatch.setenv("CHURN_SETTINGS", str(tmp_path / "gone.ini"))
    with pytest.raises(settings.SettingsError, match=r"gone.ini: no such file"):
        settings.load("local")


def test_the_store_lies_beside_the_file(ini: Path) -> None:
    assert settings.load("local", ini).store == ini.parent / ".churn"


def test_the_fingerprint_changes_with_a_number_and_not_with_the_folder(ini: Path) -> None:
    before = settings.fingerprint(settings.load("local", ini))
    assert before == settings.fingerprint(settings.load("local", ROOT / "settings.ini"))
    change(ini, "gate.min_roc_auc", "0.81")
    assert settings.fingerprint(settings.load("local", ini)) != before
