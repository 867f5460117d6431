"""An MLflow store or a workspace that cannot be used: one line, and what puts it right."""

import json
import os
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import pytest

from churn_lib import registry, scoring, tables
from churn_lib.registry import PRODUCTION, STAGING, RegistryError, promotion, promotion_log
from churn_lib.registry.models import StoreError
from churn_lib.serving import deploy
from churn_lib.settings import Settings, load
from churn_lib.training import train
from tests.serving import serving_store
from tests.shared import empty_mlflow, warm_churn

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    """A store in which MLflow has been once."""
    made = load("local", ROOT / "settings.ini").model_copy(update={"store": tmp_path / "store"})
    empty_mlflow(made)
    registry.connect(made)
    return made


@pytest.fixture
def database(config: Settings) -> Path:
    return config.store / "mlflow.db"


def reason_of(action: Callable[[], object]) -> str:
    """The one line that an action ends with."""
    with pytest.raises(StoreError) as raised:
        action()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def execute(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(statement)
        connection.commit()


def as_folder(database: Path) -> None:
    database.unlink()
    database.mkdir()


def as_garbage(database: Path) -> None:
    database.write_bytes(b"neither tables nor pages" * 1000)


def as_half(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 5)


def as_newer(database: Path) -> None:
    execute(database, "UPDATE alembic_version SET version_num = 'ffff00001111'")


def as_other(database: Path) -> None:
    execute(database, "UPDATE alembic_version SET version_num = '451aebb31d03'")


@pytest.mark.parametrize(
    ("spoil", "fix"),
    [
        (as_folder, "cannot be opened: it has to be a file"),
        (as_garbage, "is damaged, or no SQLite database: put a copy of it back"),
        (as_half, "is damaged, or no SQLite database: put a copy of it back"),
        (as_newer, f"was written by a newer MLflow than {mlflow.__version__}"),
        (as_other, f"has another schema than MLflow {mlflow.__version__}: make a copy, then"),
    ],
)
def test_a_database_that_mlflow_cannot_use_is_named_at_once(
    config: Settings, database: Path, spoil: Callable[[Path], None], fix: str
) -> None:
    # MLflow keeps what it has opened: another path is another store to it
    moved = config.model_copy(update={"store": config.store.with_name("spoiled")})
    config.store.rename(moved.store)
    spoil(moved.store / "mlflow.db")
    began = time.monotonic()
    message = reason_of(lambda: registry.connect(moved))
    assert message.startswith(f"MLflow's store sqlite:///{moved.store / 'mlflow.db'} {fix}")
    assert time.monotonic() - began < 60  # MLflow itself tries a hundred seconds and more


def test_a_locked_database_is_waited_for_and_then_named(
    config: Settings, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.models._CONNECT, "sqlite", {"timeout": 0.1})
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "is locked by another process" in reason_of(lambda: registry.connect(config))
    registry.connect(config)


def test_a_store_below_a_file_is_refused(config: Settings, database: Path) -> None:
    below = config.model_copy(update={"store": database / "store"})
    assert "correct `store` in settings.ini" in reason_of(lambda: registry.connect(below))


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        ("http://127.0.0.1:{port}", "does not answer: start it, or correct MLFLOW_TRACKING_URI"),
        ("http://user:secret@127.0.0.1:{port}", "does not answer"),
        ("postgresql://user:secret@127.0.0.1:{port}/mlflow", "needs a driver: No module named"),
        ("carrier-pigeon://home", "is no address of MLflow"),
    ],
)
def test_a_store_elsewhere_that_does_not_answer_is_named_without_its_password(
    config: Settings, monkeypatch: pytest.MonkeyPatch, address: str, fix: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address.format(port=closed_port()))
    began = time.monotonic()
    message = reason_of(lambda: registry.connect(config))
    assert fix in message
    assert "secret" not in message
    assert time.monotonic() - began < 60


def test_a_server_that_takes_the_call_and_never_answers_is_given_up(
    config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.models, "_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert f"MLflow's store {address} does not answer" in reason_of(
            lambda: registry.connect(config)
        )


@pytest.fixture
def refusing() -> Iterator[Any]:
    """A server at which every token has expired, if it does not give another `answer`; its `address`."""

    class Refusing(BaseHTTPRequestHandler):
        answer: ClassVar[Any] = (
            403,
            {"error_code": "PERMISSION_DENIED", "message": "Invalid access token."},
        )
        address = ""

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, content = self.answer
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_POST = do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Refusing.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield Refusing
        server.shutdown()


def _who() -> None:
    with registry.models.explained():
        registry.workspace().current_user.me()


def test_expired_credentials_are_named_for_mlflow_and_for_the_workspace(
    config: Settings, monkeypatch: pytest.MonkeyPatch, refusing: Any
) -> None:
    monkeypatch.setenv("DATABRICKS_HOST", refusing.address)
    monkeypatch.setenv("DATABRICKS_TOKEN", "expired")
    assert "refuses the credentials: renew them" in reason_of(_who)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", refusing.address)
    assert "refuses the credentials" in reason_of(lambda: registry.connect(config))


@pytest.mark.parametrize(
    ("code", "name", "words", "fix"),
    [
        (400, "INVALID_TOKEN", "Invalid Token", "does not know the token: renew it"),
        (400, "BAD_REQUEST", "no such field", "does not accept the request"),
        (500, "INTERNAL_ERROR", "once", "has failed by itself: try again"),
    ],
)
@pytest.mark.parametrize("command", [("endpoint", "status"), ("endpoint", "query"), ("history",)])
def test_a_workspace_that_fails_is_one_line(
    refusing: Any,
    command: tuple[str, ...],
    code: int,
    name: str,
    words: str,
    fix: str,
) -> None:
    refusing.answer = (code, {"error_code": name, "message": words})
    environment = {
        **os.environ,
        "CHURN_SETTINGS": str(ROOT / "settings.ini"),
        "MLFLOW_TRACKING_URI": "databricks",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "DATABRICKS_HOST": refusing.address,
        "DATABRICKS_TOKEN": "any",
    }
    done = warm_churn(*command, "--target", "production", environment=environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert fix in done.stderr.splitlines()[-1]


def test_a_workspace_without_a_way_in_is_one_line(
    config: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where databricks-sdk looks for profiles
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    nobody = reason_of(lambda: registry.connect(config))
    assert "no way into the Databricks workspace (profile DEFAULT: default auth" in nobody
    monkeypatch.setenv("DATABRICKS_CONFIG_PROFILE", "nosuch")
    for action in (
        lambda: registry.connect(config),
        lambda: deploy.status(config),
        lambda: deploy.connect(config),
    ):
        assert "(profile nosuch: " in reason_of(action)
    (tmp_path / ".databrickscfg").write_text("[other]\nhost = https://example.org\n")
    assert "has no nosuch profile" in reason_of(lambda: registry.connect(config))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks://missing")
    assert "(profile missing: " in reason_of(lambda: registry.connect(config))


def test_a_workspace_that_is_not_there_is_not_waited_for(
    config: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.models, "_SECONDS", 1)
    address = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("DATABRICKS_HOST", address)
    monkeypatch.setenv("DATABRICKS_TOKEN", "any")
    assert f"the Databricks workspace {address} does not answer" in reason_of(registry.workspace)


def test_what_no_user_can_put_right_stays_what_it_is() -> None:
    assert registry.explain("KeyError", "database is locked") == ""
    assert registry.explain("MlflowException", "Invalid parameter: 'x'") == ""
    with pytest.raises(ZeroDivisionError), registry.models.explained():
        divmod(1, 0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Versions 1 to 3, all passed; 1 and then 2 at Production."""
    made = serving_store.make(tmp_path_factory.mktemp("shop"))
    models, store = registry.connect(made), tables.connect(made)
    for version in (1, 2):
        promotion.rollback(models, store, "a start", "abc", to=version, force=True)
    with serving_store.ended(made):
        yield made


def churn(config: Settings, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CHURN_SETTINGS": str(config.root / "settings.ini"), **more}
    return warm_churn(*arguments, environment=environment)


def test_a_deleted_experiment_stops_training_only_and_the_command_brings_it_back(
    shop: Settings,
) -> None:
    models, store = registry.connect(shop), tables.connect(shop)
    experiment = mlflow.get_experiment_by_name(shop.experiment)
    models.client.delete_experiment(experiment.experiment_id)
    assert registry.connect(shop).numbers() == [1, 2, 3]
    assert models.load(1).predict(serving_store.feature_rows(2)).shape == (2,)
    promotion.rollback(models, store, "it works without", "abc", to=1, force=True)
    assert promotion.history(models, store)[0]["to_version"] == 1
    assert scoring.production(models).version == 1
    message = reason_of(lambda: train.train(None, shop, "abc"))
    assert message.startswith(f"experiment {shop.experiment} is deleted")
    (command,) = re.findall(r"`(.+?)`", message)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})
    registry.use_experiment(shop)
    assert shlex.split(command)[0].startswith("MLFLOW_TRACKING_URI=sqlite:///")


def test_an_alias_that_a_deleted_version_left_is_named(shop: Settings) -> None:
    models, store = registry.connect(shop), tables.connect(shop)
    first = models.version(1)
    gone = models.register(first.source, first.tags)
    for alias in (STAGING, PRODUCTION):
        models.set_alias(alias, gone)
    models.client.delete_model_version(shop.model_name, str(gone))
    named = f"has no version {gone} any more, though Production and Staging is set to it"
    with pytest.raises(RegistryError, match=named):
        models.candidate()
    with pytest.raises(RegistryError, match=named):
        deploy.deploy(shop, models, store)
    with pytest.raises(RegistryError, match=named):
        scoring.production(models)
    assert registry.versions(models)[0]["version"] == 3
    assert promotion.history(models, store)[0]["action"] == "unrecorded"
    promotion.rollback(models, store, "it was deleted", "abc", to=2, force=True)
    assert models.version_of(PRODUCTION) == 2


def test_a_version_whose_run_is_deleted_is_listed_and_loads(shop: Settings) -> None:
    models = registry.connect(shop)
    models.client.delete_run(models.version(1).run_id)
    assert [row["version"] for row in registry.versions(models)] == [3, 2, 1]
    assert models.load(1).predict(serving_store.feature_rows(2)).shape == (2,)
    models.client.restore_run(models.version(1).run_id)


def test_a_version_without_its_files_says_so(shop: Settings) -> None:
    with pytest.raises(RegistryError, match=r"the files of version 3 .* are not all there .*model"):
        registry.connect(shop).load(3)


def test_a_model_that_is_deleted_leaves_nothing_to_finish(shop: Settings) -> None:
    other = shop.model_copy(update={"model_name": "deleted"})
    models, store = registry.connect(other), tables.connect(other)
    models.client.create_registered_model("deleted")
    models.client.create_model_version("deleted", "s3://nobody/loads-it")
    promotion.rollback(models, store, "a start", "abc", to=1, force=True)
    models.client.delete_registered_model("deleted")
    assert promotion_log.unfinished(models, promotion_log.read(store, "deleted")) is None
    with pytest.raises(RegistryError, match="has no version 1"):
        promotion.rollback(models, store, "back", "abc", to=1, force=True)


def test_a_database_that_may_only_be_read_lists_and_refuses_a_move_in_one_line(
    shop: Settings,
) -> None:
    read_only = f"sqlite:///file:{shop.store / 'mlflow.db'}?mode=ro&uri=true"
    listed = churn(shop, "models", "--json", MLFLOW_TRACKING_URI=read_only)
    assert (listed.returncode, listed.stderr) == (0, "")
    refused = churn(
        shop, "rollback", "--to", "1", "--force", "--reason", "x", MLFLOW_TRACKING_URI=read_only
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "cannot be written: make the file and its folder writable" in refused.stderr


def test_the_status_of_the_endpoint_does_without_a_store_that_does_not_answer(
    shop: Settings,
) -> None:
    dead = f"http://127.0.0.1:{closed_port()}"
    shown = churn(shop, "endpoint", "status", MLFLOW_TRACKING_URI=dead)
    assert shown.stdout.startswith("churn-prediction-endpoint (local): STOPPED\n")
    assert f"Production is not known: MLflow's store {dead} does not answer" in shown.stdout
    assert shown.stderr == ""


def served_in_turn(config: Settings, *versions: int) -> None:
    """Make versions Production one after the other."""
    models, store = registry.connect(config), tables.connect(config)
    for version in versions:
        if models.version_of(PRODUCTION) != version:
            promotion.rollback(models, store, "by hand", "abc", to=version, force=True)


def test_every_command_that_lists_names_an_alias_whose_version_is_gone(shop: Settings) -> None:
    models = registry.connect(shop)
    first = models.version(1)
    gone = models.register(first.source, first.tags)
    served_in_turn(shop, 1, gone)
    models.client.delete_model_version(shop.model_name, str(gone))
    note = f"Production is set to version {gone}"
    for command in (("models",), ("history",), ("endpoint", "status")):
        done = churn(shop, *command)
        assert done.stderr == "", command  # no traceback; a stopped endpoint has its own exit code
        text = " ".join(done.stdout.split())
        assert note in text and "which was deleted: `churn rollback --reason" in text, command
    answer = json.loads(churn(shop, "models", "--json").stdout)
    assert note in answer["missing"]
    back = churn(shop, "rollback", "--to", str(gone), "--reason", "x")
    assert back.returncode == 2
    assert f"version {gone} was deleted: name another" in back.stderr and "(1" in back.stderr
    assert churn(shop, "rollback", "--reason", "it was deleted", "--force").returncode == 0
    assert registry.connect(shop).version_of(PRODUCTION) == 1
    left = json.loads(churn(shop, "models", "--json").stdout).get("missing", "")
    assert "Production" not in left


def test_a_rollback_to_a_version_that_is_gone_offers_those_that_are_left(shop: Settings) -> None:
    models, store = registry.connect(shop), tables.connect(shop)
    first = models.version(1)
    gone = models.register(first.source, first.tags)
    served_in_turn(shop, 1, gone, 2)
    models.client.delete_model_version(shop.model_name, str(gone))
    with pytest.raises(promotion.PromotionRefused, match=rf"version {gone} was deleted.*\(1"):
        promotion.rollback(models, store, "back", "abc")
    promotion.rollback(models, store, "back", "abc", to=1)
    assert models.version_of(PRODUCTION) == 1


def test_an_alias_moved_by_hand_to_a_version_that_is_gone_goes_back_to_the_recorded_one(
    shop: Settings,
) -> None:
    models, store = registry.connect(shop), tables.connect(shop)
    served_in_turn(shop, 1, 2)
    gone = models.register(models.version(1).source, {})
    models.set_alias(PRODUCTION, gone)
    models.client.delete_model_version(shop.model_name, str(gone))
    assert promotion.rollback(models, store, "back", "abc").to_version == 2


def test_a_rollback_needs_neither_the_run_nor_the_experiment_of_a_version(shop: Settings) -> None:
    models, store = registry.connect(shop), tables.connect(shop)
    served_in_turn(shop, 1, 2)
    found = models.client.get_run(models.version(1).run_id).info
    models.client.delete_run(found.run_id)
    models.client.delete_experiment(found.experiment_id)
    try:
        assert promotion.rollback(models, store, "back", "abc").to_version == 1
        assert scoring.production(models, shop, store).version == 1
        assert promotion.history(models, store)[0]["action"] == "rollback"
    finally:
        models.client.restore_experiment(found.experiment_id)
        models.client.restore_run(found.run_id)
