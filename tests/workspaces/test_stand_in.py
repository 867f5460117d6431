"""The stand-in refuses what Unity Catalog refuses, and keeps the workspaces apart."""

import json
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature

from churn_lib import registry
from churn_lib.features import FEATURES
from churn_lib.testing import customer_rows, fitted_model
from tests.workspaces import Limits, Refused, Workspace

UC = "/api/2.0/mlflow/unity-catalog"
Both = tuple[Workspace, Workspace]


def ask(where: Workspace, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and answer to a request, whatever it is."""
    content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    request = urllib.request.Request(
        where.address + path, content if method != "GET" else None, method=method
    )
    request.add_header("Authorization", f"Bearer {where.token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error_code"]


@pytest.fixture
def name() -> str:
    return f"churn_staging.ml.model_{uuid.uuid4().hex[:8]}"


def log(experiment: str = "/Shared/stand-in") -> str:
    """Log a model where one is signed in; its address."""
    mlflow.set_experiment(experiment)
    rows = customer_rows(50)
    signature = infer_signature(rows[FEATURES], [0.5] * len(rows))
    with mlflow.start_run():
        return mlflow.sklearn.log_model(
            fitted_model(rows), name="model", signature=signature, pip_requirements=[]
        ).model_uri


def test_a_version_goes_from_its_run_into_the_registry_and_is_loaded(
    workspaces: Both, name: str
) -> None:
    staging, production = workspaces
    with staging.signed_in():
        models = registry.Registry(name)
        number = models.register(log(), {"horizon_days": "90"})
        models.set_alias("Production", number)
        run_id = models.version(number).run_id
        assert mlflow.get_run(run_id).info.status == "FINISHED"
    version = staging.metastore.models[name].versions[1]
    assert (version.status, version.tags) == ("READY", {"horizon_days": "90"})
    assert version.workspace_id == staging.id
    with production.signed_in():
        theirs = registry.Registry(name)
        assert theirs.aliases() == {"Production": 1}
        assert len(theirs.load(1).predict(customer_rows(3)[FEATURES])) == 3
        with pytest.raises(MlflowException, match="not found"):
            mlflow.get_run(run_id)
        with pytest.raises(MlflowException, match="not found"):
            theirs.client.copy_model_version(f"models:/{name}/1", f"{name}_copy")


def test_a_version_is_pending_until_all_its_files_are_there(workspaces: Both, name: str) -> None:
    staging, _ = workspaces
    place = "/api/2.0/fs/files/Models/" + name.replace(".", "/")
    number = {"name": name, "version": "1"}
    assert (
        ask(staging, "POST", f"{UC}/model-versions/create", {"name": name, "source": "x"})[0] == 404
    )
    assert ask(staging, "POST", f"{UC}/registered-models/create", {"name": name})[0] == 200
    answer = ask(staging, "POST", f"{UC}/registered-models/create", {"name": name})
    assert answer == (409, "RESOURCE_ALREADY_EXISTS")
    _, made = ask(staging, "POST", f"{UC}/model-versions/create", {"name": name, "source": "x"})
    assert made["model_version"]["status"] == "PENDING_REGISTRATION"
    alias = {**number, "alias": "Production"}
    assert ask(staging, "POST", f"{UC}/registered-models/alias", alias)[0] == 400
    assert ask(staging, "PUT", f"{place}/1/MLmodel?overwrite=true", b"flavors: {}")[0] == 204
    assert ask(staging, "PUT", f"{place}/1/MLmodel", b"flavors: {}") == (409, "ALREADY_EXISTS")
    assert ask(staging, "GET", f"{place}/1/MLmodel") == (409, "RESOURCE_CONFLICT")
    assert ask(staging, "POST", f"{UC}/model-versions/finalize", number)[0] == 200
    assert ask(staging, "POST", f"{UC}/model-versions/finalize", number)[0] == 409
    assert ask(staging, "PUT", f"{place}/1/more", b"")[0] == 403
    assert ask(staging, "POST", f"{UC}/registered-models/alias", alias)[0] == 200
    assert ask(staging, "DELETE", f"{UC}/model-versions/delete", number)[0] == 400


def test_a_version_without_its_description_fails_and_its_number_does_not_come_back(
    workspaces: Both, name: str
) -> None:
    staging, _ = workspaces
    ask(staging, "POST", f"{UC}/registered-models/create", {"name": name})
    for number in ("1", "2"):
        _, made = ask(staging, "POST", f"{UC}/model-versions/create", {"name": name, "source": "x"})
        own = {"name": name, "version": number}
        assert made["model_version"]["version"] == number
        assert ask(staging, "POST", f"{UC}/model-versions/finalize", own)[0] == 400
        assert staging.metastore.models[name].versions[int(number)].status == "FAILED_REGISTRATION"
        assert ask(staging, "DELETE", f"{UC}/model-versions/delete", own)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "given"),
    [
        ("POST", f"{UC}/registered-models/create", {"name": "a.b.c", "owner": "ann"}),
        ("POST", f"{UC}/registered-models/create", {"name": "two.levels"}),
        ("GET", f"{UC}/model-versions/search?filter=run_id%3D'1'", None),
        ("POST", "/api/2.0/mlflow/experiments/create", {"name": "no-path"}),
    ],
)
def test_what_the_api_does_not_know_is_a_bad_request(
    workspaces: Both, method: str, path: str, given: Any
) -> None:
    assert ask(workspaces[0], method, path, given) == (400, "INVALID_PARAMETER_VALUE")


def test_a_search_answers_in_pages_and_without_tags(workspaces: Both, name: str) -> None:
    staging, _ = workspaces
    ask(staging, "POST", f"{UC}/registered-models/create", {"name": name})
    for _ in range(5):
        tags = [{"key": "a", "value": "b"}]
        made = {"name": name, "source": "x", "tags": tags}
        assert ask(staging, "POST", f"{UC}/model-versions/create", made)[0] == 200
    with staging.signed_in():
        assert registry.Registry(name).numbers() == [1, 2, 3, 4, 5], "though none is found yet"
    _, page = ask(staging, "GET", f"{UC}/model-versions/search?filter=name%3D'{name}'")
    assert [each["version"] for each in page["model_versions"]] == ["1", "2"]
    assert page["next_page_token"] and "tags" not in page["model_versions"][0]
    with staging.signed_in():
        assert registry.Registry(name).numbers() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("key", "value"), [("a.b", "x"), ("a/b", "x"), ("k" * 256, "x"), ("k", "x" * 1001)]
)
def test_tags_have_their_limits(workspaces: Both, name: str, key: str, value: str) -> None:
    staging, _ = workspaces
    ask(staging, "POST", f"{UC}/registered-models/create", {"name": name})
    tag = {"name": name, "key": key, "value": value}
    assert ask(staging, "POST", f"{UC}/registered-models/set-tag", tag)[0] == 400


def test_another_workspaces_token_and_logged_models_count_for_nothing(
    workspaces: Both, name: str
) -> None:
    staging, production = workspaces
    with staging.signed_in():
        model_id = log().removeprefix("models:/")
    ask(staging, "POST", f"{UC}/registered-models/create", {"name": name})
    made = {"name": name, "source": f"models:/{model_id}", "model_id": model_id}
    refused = (404, "RESOURCE_DOES_NOT_EXIST")
    assert ask(production, "POST", f"{UC}/model-versions/create", made) == refused
    assert ask(staging, "POST", f"{UC}/model-versions/create", made)[0] == 200
    request = urllib.request.Request(f"{staging.address}{UC}/registered-models/search")
    request.add_header("Authorization", f"Bearer {production.token}")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=30)


def test_a_hook_limits_the_rate_and_an_api_answers_what_is_not_there(
    workspaces: Both, tmp_path: Path
) -> None:
    staging, _ = workspaces

    def limit(method: str, path: str, given: dict[str, Any]) -> None:
        if path.endswith("/search"):
            raise Refused(429, "REQUEST_LIMIT_EXCEEDED", "too many")

    def jobs(method: str, path: str, given: dict[str, Any]) -> dict[str, Any] | None:
        return {"jobs": []} if path == "/api/2.2/jobs/list" else None

    assert ask(staging, "GET", "/api/2.2/jobs/list") == (404, "ENDPOINT_NOT_FOUND")
    staging.before.append(limit)
    staging.apis.append(jobs)
    try:
        assert ask(staging, "GET", f"{UC}/registered-models/search")[0] == 429
        assert ask(staging, "GET", "/api/2.2/jobs/list") == (200, {"jobs": []})
    finally:
        staging.before.remove(limit)
        staging.apis.remove(jobs)


def test_a_search_does_not_find_what_was_made_just_before(workspaces: Both) -> None:
    staging, _ = workspaces
    name = "churn_staging.ml.late"
    assert ask(staging, "POST", f"{UC}/registered-models/create", {"name": name})[0] == 200
    made = {"name": name, "source": "dbfs:/x"}
    assert ask(staging, "POST", f"{UC}/model-versions/create", made)[0] == 200
    wanted = f"{UC}/model-versions/search?filter=name%3D'{name}'"
    numbers = [
        [each["version"] for each in ask(staging, "GET", wanted)[1].get("model_versions", [])]
        for _ in range(2)
    ]
    assert numbers == [[], ["1"]]
    place = f"{UC}/model-versions/get?name={name}&version=1"
    assert ask(staging, "GET", place)[0] == 200, "who names it finds it at once"


def test_each_of_so_many_requests_is_refused_and_clients_ask_again(workspaces: Both) -> None:
    staging, _ = workspaces
    limits = Limits(3)
    staging.before.append(limits)
    try:
        with staging.signed_in():
            client = mlflow.MlflowClient()
            for number in range(6):
                client.create_registered_model(f"churn_staging.ml.limited_{number}")
        assert limits.refused >= 2
    finally:
        staging.before.remove(limits)
