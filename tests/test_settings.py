"""settings.ini: what is accepted, and what is said about the rest."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from churn_lib import settings
from churn_lib.settings import SettingsError, load, short_name

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


# --- what each developer has of their own ----------------------------------------------------------------

WRITTEN = ("catalog", "model_name", "experiment", "serving.endpoint_name")


def written(target: str = "dev") -> dict[str, str]:
    """What a target writes to on Databricks, by key."""
    return {
        key: value for key, value in load(target, ROOT / "settings.ini").flat() if key in WRITTEN
    }


def test_two_developers_and_a_pull_request_share_nothing_that_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHURN_USER", "jane.doe@example.com")
    jane, change = written(), written("dev@pr_17")
    monkeypatch.setenv("CHURN_USER", "john.doe@example.com")
    john = written()
    assert len(jane) == len(WRITTEN)
    for key in WRITTEN:
        assert len({jane[key], john[key], change[key]}) == 3, key
    assert written("dev@pr_17") == change  # whoever deploys it
    assert jane["model_name"].startswith(f"{jane['catalog']}.")


@pytest.mark.parametrize("target", ["local", "staging", "production"])
def test_other_targets_are_the_same_for_all(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_USER", "jane")
    jane = written(target)
    monkeypatch.setenv("CHURN_USER", "john")
    assert written(target) == jane
    with pytest.raises(SettingsError, match=f"{target}] has nothing of one user: leave @jane away"):
        load(f"{target}@jane", ROOT / "settings.ini")


@pytest.mark.parametrize(
    ("user", "name"),
    [  # the first ones as the CLI's own tests have them
        ("test.user.1234@example.com", "test_user_1234"),
        ("test$.user@example.com", "test_user"),
        ("first+tag@email.com", "first_tag"),
        ("email@sub.domain.com", "email"),
        ('"_quoted"@domain.com', "quoted"),
        ("name-o'mally@website.org", "name_o_mally"),
        ("user(1986)@mail.com", "user_1986"),
        ("JANE.DOE@EXAMPLE.COM", "jane_doe"),
        ("a--b..c", "a_b_c"),
    ],
)
def test_a_name_is_made_legal_as_a_bundle_makes_it(user: str, name: str) -> None:
    assert short_name(user) == name


@pytest.mark.parametrize(
    "user",
    ["jöhn.dœ@x.org", "日本@x.org", "a" * 80, "9" * 31, "aaaaaaaa-bbbb-4ccc-dddd-eeeeeeeeeeee"],
)
def test_what_a_catalog_or_an_endpoint_cannot_hold_is_told_apart_by_digits(
    user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_USER", user)
    one = written()
    assert re.fullmatch("[a-z0-9_]{1,30}", short_name(user))
    monkeypatch.setenv("CHURN_USER", f"{user.partition('@')[0]}ä")
    assert not {*one.values()} & {*written().values()}


@pytest.mark.parametrize("user", ["@example.com", "..."])
def test_a_user_without_a_name_is_refused(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHURN_USER", user)
    with pytest.raises(
        SettingsError, match="needs a user with a letter or a digit: set CHURN_USER"
    ):
        written()


def test_on_databricks_the_user_is_who_the_job_runs_as(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = me if "Me" in self.path else {}
            asked.append({"path": self.path})
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("CHURN_USER", raising=False)
        monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "18.0")
        monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("DATABRICKS_TOKEN", "none")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        me = {"userName": "jane.doe@example.com", "displayName": "Jane"}
        assert written()["catalog"] == "churn_dev_jane_doe"
        principal = "aaaaaaaa-bbbb-4ccc-dddd-eeeeeeeeeeee"
        me = {"userName": principal, "displayName": "ci runner"}
        assert written()["catalog"] == "churn_dev_ci_runner"
        before = len(asked)
        written("staging")
        assert len(asked) == before  # who has nothing of their own is not asked for
        server.shutdown()


def test_a_secret_in_place_of_its_name_is_refused_without_being_shown(tmp_path: Path) -> None:
    path = tmp_path / "settings.ini"
    text = (ROOT / "settings.ini").read_text()
    path.write_text(re.sub(r"(?m)^serving\.secrets =.*$", "serving.secrets = KEY=hunter2", text))
    with pytest.raises(SettingsError, match=r"serving\.secrets is not of the form NAME=") as caught:
        settings.load("local", path)
    assert "hunter2" not in str(caught.value)
