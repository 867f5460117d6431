"""settings.ini: what is accepted, and what is said about the rest."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

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
        ("training.estimator", "package.module:"),
        ("training.estimator_parameters", "[1]"),
        ("training.estimator_parameters", "{max_iter: 5}"),
        ("training.estimator_parameters", '{"max_iter": 5, "max_iter": 6}'),
        ("training.estimator_parameters", '{"max_iter": NaN}'),
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


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("min_roc_auc", "gate.min_roc_auc"),
        ("horizon_days", "data.horizon_days"),
        ("monitor_today", "monitoring.today"),
        ("training_threads", "training.threads"),
        ("serving_secrets", "serving.secrets"),
    ],
)
@pytest.mark.parametrize("section", ["DEFAULT", "production"])
def test_a_name_from_before_the_groups_is_refused_with_the_one_it_has_now(
    ini: Path, former: str, present: str, section: str
) -> None:
    ini.write_text(ini.read_text().replace(f"[{section}]\n", f"[{section}]\n{former} = 1\n"))
    with pytest.raises(settings.SettingsError) as caught:
        settings.load("production", ini)
    assert str(caught.value) == f"{ini} [production] {former} is {present} now; rename it"


def test_a_section_of_a_target_changes_a_key_of_a_group(ini: Path) -> None:
    ini.write_text(ini.read_text().replace("[staging]\n", "[staging]\ngate.margin = 0.01\n"))
    assert settings.load("staging", ini).gate.margin == 0.01
    assert settings.load("production", ini).gate.margin == 0.005


def test_every_key_is_in_the_file_with_its_meaning_above_it() -> None:
    text = (ROOT / "settings.ini").read_text()
    written = re.findall(r"(?m)^([a-z_0-9.]+) =", text.partition("[local]")[0])
    assert written == list(settings.all_keys())
    assert settings.commented(text) == text
    stale = text.replace("# Least ROC-AUC on the holdout", "# The most ROC-AUC\n# on the holdout")
    assert settings.commented(stale) == text
    assert all(field.description for field in settings.all_keys().values())


def test_no_two_keys_share_the_name_they_had_without_groups() -> None:
    short = [name.rpartition(".")[2] for name in settings.all_keys()]
    assert len(set(short)) == len(short)


def test_changed_settings_are_checked_as_the_file_is() -> None:
    config = settings.load("local", ROOT / "settings.ini")
    assert config.updated({"gate.margin": 0.5, "catalog": "other"}).gate.margin == 0.5
    with pytest.raises(ValueError, match=r"gate\.margin"):
        config.updated({"gate.margin": 2})


def test_a_key_is_explained_by_its_full_or_its_former_name(ini: Path) -> None:
    change(ini, "monitoring.today", "data")
    found = settings.explain("monitor_today", ini)
    assert found["key"] == "monitoring.today"
    assert found["allowed"] == "data | calendar"
    assert found["values"] == {
        "local": "data",
        "dev": "data",
        "staging": "data",
        "production": "calendar",
    }
    assert settings.explain("gate.margin", ini)["allowed"] == "a number, at least 0, below 1"
    with pytest.raises(settings.SettingsError, match=r"did you mean gate\.margin\?"):
        settings.explain("gate.margn", ini)
    with pytest.raises(settings.SettingsError, match="`churn settings` lists them"):
        settings.explain("xyz", ini)


def test_a_record_from_before_the_groups_is_read_under_the_names_of_now() -> None:
    old = {"target": "local", "horizon_days": 30, "monitor_slices": ["tier"], "gone": 1}
    assert settings.named_as_now(old) == {
        "target": "local",
        "data.horizon_days": 30,
        "monitoring.slices": ["tier"],
        "gone": 1,
        "training.threshold": "f1",  # what held before there was a choice
        "training.estimator_parameters": {},
    }
    chosen = {"training.threshold": "value", "training.estimator_parameters": {"max_iter": 5}}
    assert settings.named_as_now(chosen) == chosen


def test_the_reference_of_the_site_is_what_the_keys_say() -> None:
    page = json.loads((ROOT / "nbs/reference/settings.ipynb").read_text())
    shown = "".join(page["cells"][-1]["outputs"][0]["data"]["text/markdown"])
    rows = settings.reference("local", ROOT / "settings.ini")
    for row in rows:
        if row["key"] != "store":  # a path of this machine
            line = next(each for each in shown.splitlines() if f"| `{row['key']}` |" in each)
            assert row["meaning"].replace("<", "&lt;") in line
            assert row["value"] in line
    assert len(shown.splitlines()) == len(rows) + 1


VALUES = st.dictionaries(
    st.sampled_from(["max_depth", "C", "loss"]),
    st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5)),
    max_size=3,
)


@hypothesis_settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(VALUES, st.sampled_from(["local", "staging"]))
def test_a_written_value_is_read_back_and_nothing_else_changes(
    ini: Path, value: dict[str, object], target: str
) -> None:
    text = (ROOT / "settings.ini").read_text()
    ini.write_text(text)
    before = dict(settings.load(target, ini).flat())
    key = "training.estimator_parameters"
    assert settings.write_values(ini, target, {key: value}) == {key: "DEFAULT"}
    after = dict(settings.load(target, ini).flat())
    assert after.pop(key) == value
    before.pop(key)
    assert after == before
    lines, old = ini.read_text().splitlines(), text.splitlines()
    assert [a for a, b in zip(lines, old, strict=True) if a != b] == (
        [settings.setting_line(key, value)] if value else []
    )


def test_a_value_of_a_target_is_changed_in_its_section_with_all_its_lines(ini: Path) -> None:
    key, own = "training.estimator_parameters", '{"max_depth":\n    3}'
    ini.write_text(ini.read_text().replace("[staging]\n", f"[staging]\n{key} = {own}\n"))
    assert settings.load("staging", ini).training.estimator_parameters == {"max_depth": 3}
    assert settings.write_values(ini, "staging", {key: {"C": 1}}) == {key: "staging"}
    assert settings.load("staging", ini).training.estimator_parameters == {"C": 1}
    assert settings.load("local", ini).training.estimator_parameters == {}
    assert ini.read_text().count(key) == 2


def test_a_value_that_is_refused_leaves_the_file_as_it_was(ini: Path) -> None:
    text = ini.read_text()
    with pytest.raises(settings.SettingsError, match=re.escape(f"{ini} [local] gate.margin = '2'")):
        settings.write_values(ini, "local", {"gate.margin": 2})
    with pytest.raises(settings.SettingsError, match=r"nothing\.here is missing"):
        settings.write_values(ini, "local", {"nothing.here": 2})
    assert ini.read_text() == text
    assert [path.name for path in ini.parent.iterdir()] == ["settings.ini"]
