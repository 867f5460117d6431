"""The same moves in Unity Catalog: MLflow's own client against a strict stand-in for a workspace."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import mlflow
import pytest

from churn_lib import registry, tables
from churn_lib import settings as settings_module
from churn_lib.registry import RegistryError, promotion
from churn_lib.settings import Settings
from tests.registry.test_promotion import ROOT, judged, promote

UC = "/api/2.0/mlflow/unity-catalog"
FIELDS = {
    ("GET", f"{UC}/registered-models/get"): {"name"},
    ("POST", f"{UC}/registered-models/alias"): {"name", "alias", "version"},
    ("POST", f"{UC}/registered-models/set-tag"): {"name", "key", "value"},
    ("GET", f"{UC}/model-versions/get"): {"name", "version"},
    ("GET", f"{UC}/model-versions/search"): {"filter", "max_results", "page_token"},
    ("POST", f"{UC}/model-versions/set-tag"): {"name", "version", "key", "value"},
    ("PATCH", f"{UC}/model-versions/update"): {"name", "version", "description"},
    ("GET", "/api/2.0/mlflow/experiments/get-by-name"): {"experiment_name"},
    ("GET", "/api/2.0/preview/scim/v2/Me"): set(),
}


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, error_code: str, message: str):
        super().__init__(message)
        self.status, self.error_code = status, error_code


class Catalog:
    """What the workspace holds: one registered model of a few versions."""

    def __init__(self, name: str, versions: int):
        self.name = name
        self.aliases: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.versions: dict[str, dict[str, str]] = {str(n): {} for n in range(1, versions + 1)}

    def version(self, number: str, complete: bool) -> dict[str, Any]:
        if number not in self.versions:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Model version {number} does not exist")
        made = {"name": self.name, "version": number, "creation_timestamp": 1, "status": "READY"}
        tags = [{"key": key, "value": value} for key, value in self.versions[number].items()]
        return {**made, "tags": tags} if complete else made

    def answer(self, method: str, path: str, given: dict[str, str]) -> dict[str, Any]:
        if (method, path) not in FIELDS:
            raise Refused(404, "ENDPOINT_NOT_FOUND", f"No API found for '{method} {path}'")
        if unknown := given.keys() - FIELDS[method, path]:
            raise Refused(400, "INVALID_PARAMETER_VALUE", f"unknown field {sorted(unknown)[0]}")
        named = given.get("name") or given.get("filter", f"'{self.name}'").split("'")[1]
        if named != self.name:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"{named} does not exist")
        if path.endswith("/Me"):
            return {"userName": "pipeline@example.org"}
        if path.endswith("get-by-name"):
            found = {"experiment_id": "7", "name": given["experiment_name"]}
            return {"experiment": {**found, "lifecycle_stage": "active"}}
        return self.registry(path.removeprefix(UC), given)

    def registry(self, path: str, given: dict[str, str]) -> dict[str, Any]:
        if path == "/registered-models/alias":
            self.version(given["version"], True)
            self.aliases[given["alias"]] = given["version"]
            return {}
        if path == "/registered-models/set-tag":
            self.tags[given["key"]] = given["value"]
            return {}
        if path == "/model-versions/set-tag":
            self.version(given["version"], True)
            self.versions[given["version"]][given["key"]] = given["value"]
            return {}
        if path == "/model-versions/search":  # without tags, one version a page
            numbers = sorted(self.versions)
            if not numbers:
                return {}
            at = int(given.get("page_token") or 0)
            more = {"next_page_token": str(at + 1)} if at + 1 < len(numbers) else {}
            return {"model_versions": [self.version(numbers[at], False)], **more}
        if path == "/registered-models/get":
            aliases = [{"alias": a, "version": v} for a, v in self.aliases.items()]
            tags = [{"key": key, "value": value} for key, value in self.tags.items()]
            return {"registered_model": {"name": self.name, "aliases": aliases, "tags": tags}}
        return {"model_version": self.version(given["version"], True)}


def handler(catalog: Catalog) -> type[BaseHTTPRequestHandler]:
    class Workspace(BaseHTTPRequestHandler):
        def do(self) -> None:
            address = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = {**dict(parse_qsl(address.query)), **(json.loads(body) if body else {})}
            try:
                if self.headers.get("Authorization") != "Bearer secret":
                    raise Refused(401, "UNAUTHENTICATED", "no token")
                status, answer = 200, catalog.answer(self.command, address.path, given)
            except Refused as error:
                status, answer = error.status, {"error_code": error.error_code}
                answer["message"] = str(error)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PATCH = do_DELETE = do

        def log_message(self, *arguments: Any) -> None:
            pass

    return Workspace


@pytest.fixture
def workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Catalog, Settings]]:
    """A job on a cluster, whose workspace has the production model."""
    settings = settings_module.load("production", ROOT / "settings.ini")
    settings = settings.model_copy(update={"store": tmp_path})
    catalog = Catalog(settings.model_name, versions=3)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(catalog))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    monkeypatch.setenv("DATABRICKS_HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("DATABRICKS_TOKEN", "secret")
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "18.0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    # the registry is the matter here: Spark has its own tests, and no cluster is at hand
    monkeypatch.setattr(
        tables, "connect", lambda known: tables.DeltaTables(known.store / "tables" / known.catalog)
    )
    yield catalog, settings
    mlflow.set_tracking_uri(before[0])
    mlflow.set_registry_uri(before[1])
    server.shutdown()
    thread.join()
    server.server_close()


def holdout(settings: Settings) -> None:
    import ibis

    from tests.registry.test_promotion import NEWEST

    rows = ibis.memtable({"churned": [0, 1], "in_holdout_bucket": [True, True]})
    tables.connect(settings).overwrite(
        "gold.features", rows.mutate(feature_date=ibis.literal(NEWEST))
    )


def test_promote_promote_rollback_in_unity_catalog(workspace: tuple[Catalog, Settings]) -> None:
    catalog, settings = workspace
    holdout(settings)
    models, store = registry.connect(settings), tables.connect(settings)
    assert mlflow.get_registry_uri() == "databricks-uc"
    for version, champion in ((1, None), (2, 1)):
        judged(store, settings.model_name, version, champion)
        assert promote(settings, version).state == "PROMOTED"
    assert catalog.aliases == {"Production": "2", "Previous": "1"}
    assert catalog.tags["ledger_sequence"] == "2"
    assert catalog.tags["promotions_head"].startswith("2 sha256:")
    promotion.rollback(models, store, "back", "abc")
    assert catalog.aliases == {"Production": "1", "Previous": "2"}
    newest = promotion.history(models, store)[0]
    assert (newest["by"], newest["action"]) == ("pipeline@example.org", "rollback")


def test_approval_and_listing_in_unity_catalog(workspace: tuple[Catalog, Settings]) -> None:
    catalog, settings = workspace
    holdout(settings)
    careful = settings.updated({"gate.require_approval": True})
    models, store = registry.connect(careful), tables.connect(careful)
    judged(store, settings.model_name, 3, None)
    assert promote(careful, 3).state == "PENDING"
    assert catalog.versions["3"]["approval"] == "pending"
    promotion.approve(models, 3, "Ann")
    assert promote(careful, 3).state == "PROMOTED"
    catalog.versions["3"]["git_sha"] = "abc"
    listed = registry.versions(models)
    assert [row["version"] for row in listed] == [3, 2, 1]
    assert (listed[0]["git_sha"], listed[0]["aliases"]) == ("abc", ["Production"])


def test_no_alias_is_an_answer_and_no_access_an_error(
    workspace: tuple[Catalog, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, settings = workspace
    models = registry.connect(settings)
    assert models.version_of("Production") is None
    assert registry.Registry("churn_production.ml.another").aliases() == {}
    with pytest.raises(RegistryError, match="has no version 9"):
        models.version(9)
    monkeypatch.setenv("DATABRICKS_TOKEN", "expired")
    with pytest.raises(mlflow.MlflowException, match="no token"):
        registry.Registry(settings.model_name).version_of("Production")
