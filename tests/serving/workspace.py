"""Serving endpoints of a workspace over HTTP, as strict as the real ones; the test says when an update is ready.

Only one update at a time (409 for the second), no update can be stopped, a share of the traffic for each
served entity that adds up to 100, and answers of the registered versions themselves.
"""

import json
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pandas as pd
from databricks.sdk import WorkspaceClient
from mlflow.utils.proto_json_utils import dataframe_from_parsed_json

from churn_lib import registry
from churn_lib.settings import Settings

TOKEN = "of-this-test"
Answer = tuple[int, Any]  # status, body


def refused(status: int, code: str, message: str) -> Answer:
    """An error as the REST API has it."""
    return status, {"error_code": code, "message": message}


@dataclass
class Workspace:
    """Endpoints by name; `ready` decides at each request whether an update under way has ended."""

    settings: Settings
    ready: Callable[[], bool] = lambda: True
    on_request: Callable[[str, str], None] = lambda method, path: None
    failing: int = 0  # the number of the request that is answered with 500; 0: none
    requests: list[tuple[str, str]] = field(default_factory=list)
    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    server: ThreadingHTTPServer = field(init=False)
    lock: threading.RLock = field(default_factory=threading.RLock)
    models: dict[tuple[str, str], Any] = field(default_factory=dict)  # by name and version

    def __enter__(self) -> "Workspace":
        handler = type("Handler", (_Handler,), {"workspace": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def host(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def client(self) -> WorkspaceClient:
        """The client that users have."""
        return WorkspaceClient(host=self.host, token=TOKEN, auth_type="pat")

    def traffic(self) -> dict[str, int]:
        """Version to its share, as the only endpoint serves now."""
        (endpoint,) = self.endpoints.values()
        served = {each["name"]: each["entity_version"] for each in endpoint["config"]["entities"]}
        return {served[name]: share for name, share in endpoint["config"]["shares"].items()}

    def changes(self) -> list[str]:
        """The requests that were no questions."""
        return [f"{m} {p}" for m, p in self.requests if m != "GET" and "invocations" not in p]

    # --- the API ---------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let an update take effect once it is ready, as the real service does by itself."""
        if any(endpoint["pending"] for endpoint in self.endpoints.values()) and self.ready():
            for endpoint in self.endpoints.values():
                endpoint["config"] = endpoint["pending"] or endpoint["config"]
                endpoint["pending"] = None

    def answer(self, method: str, path: str, body: Any) -> Answer:
        """What the workspace answers, and what it keeps."""
        self.requests.append((method, path))
        self.on_request(method, path)
        if len(self.requests) == self.failing:
            return refused(500, "INTERNAL_ERROR", "an error of the workspace")
        self.settle()
        if found := re.fullmatch(r"/serving-endpoints/([^/]+)(?:/served-models/([^/]+))?/invocations", path):  # fmt: skip
            return self.invoke(found[1], found[2], body)
        if found := re.fullmatch(r"/api/2\.0/permissions/serving-endpoints/id-of-([^/]+)", path):
            return self.permit(method, found[1], body)
        found = re.fullmatch(r"/api/2\.0/serving-endpoints(?:/([^/]+))?(/.*)?", path)
        if found is None:
            return refused(404, "ENDPOINT_NOT_FOUND", path)
        name, rest = found[1], found[2] or ""
        if method == "POST" and not name:
            return self.create(body)
        if name not in self.endpoints:
            return refused(404, "RESOURCE_DOES_NOT_EXIST", f"endpoint {name} does not exist")
        if (method, rest) == ("GET", ""):
            return 200, self.shown(name)
        if (method, rest) == ("PUT", "/config"):
            return self.update(name, body)
        if (method, rest) == ("PUT", "/ai-gateway"):
            self.endpoints[name]["ai_gateway"] = body
            return 200, body
        if (method, rest) == ("DELETE", ""):
            del self.endpoints[name]
            return 200, {}
        if method == "GET" and rest.endswith("/build-logs"):
            return 200, {"logs": "building the container"}
        return refused(404, "ENDPOINT_NOT_FOUND", path)

    def permit(self, method: str, name: str, body: Any) -> Answer:
        if name not in self.endpoints:
            return refused(404, "RESOURCE_DOES_NOT_EXIST", f"endpoint {name} does not exist")
        rights = self.endpoints[name]["rights"]
        if method == "PUT":  # sets all of them
            rights.clear()
        for entry in body["access_control_list"] if method in ("PUT", "PATCH") else ():
            who, level = entry["service_principal_name"], entry["permission_level"]
            if set(entry) != {"service_principal_name", "permission_level"} or not who:
                return refused(400, "INVALID_PARAMETER_VALUE", f"entry {entry}")
            if level not in ("CAN_VIEW", "CAN_QUERY", "CAN_MANAGE"):
                return refused(400, "INVALID_PARAMETER_VALUE", f"permission level {level}")
            rights[who] = level
        return 200, {"object_type": "serving-endpoint", "access_control_list": []}

    def create(self, body: Any) -> Answer:
        name = body["name"]
        if name in self.endpoints:
            return refused(409, "RESOURCE_ALREADY_EXISTS", f"endpoint {name} exists")
        endpoint = {"config": None, "pending": None, "ai_gateway": body.get("ai_gateway")}
        endpoint["rights"] = {"the runner": "CAN_MANAGE"}
        if problem := self.begin(endpoint, body["config"]):
            return problem
        self.endpoints[name] = endpoint
        return 200, self.shown(name)

    def update(self, name: str, body: Any) -> Answer:
        if self.endpoints[name]["pending"]:
            message = f"endpoint {name} is being updated: wait for the update to complete or fail"
            return refused(409, "RESOURCE_CONFLICT", message)
        return self.begin(self.endpoints[name], body) or (200, self.shown(name))

    def begin(self, endpoint: dict[str, Any], config: Any) -> Answer | None:
        entities = config["served_entities"]
        names = [each["name"] for each in entities]
        routes = (config.get("traffic_config") or {}).get("routes")
        shares = {route["served_model_name"]: route["traffic_percentage"] for route in routes or []}
        shares = shares or {names[0]: 100}
        if (
            sum(shares.values()) != 100
            or not shares.keys() <= {*names}
            or len({*names}) < len(names)
        ):
            return refused(400, "INVALID_PARAMETER_VALUE", f"traffic {shares} of {names}")
        endpoint["pending"] = {"entities": entities, "shares": shares}
        return None

    def shown(self, name: str) -> dict[str, Any]:
        endpoint = self.endpoints[name]
        update = "IN_PROGRESS" if endpoint["pending"] else "NOT_UPDATING"
        state = {"ready": "READY" if endpoint["config"] else "NOT_READY", "config_update": update}
        answer = {
            "name": name,
            "id": f"id-of-{name}",
            "state": state,
            "ai_gateway": endpoint["ai_gateway"],
        }
        for key, field_name in (("config", "config"), ("pending", "pending_config")):
            if endpoint[key]:
                routes = [
                    {"served_model_name": served, "traffic_percentage": share}
                    for served, share in endpoint[key]["shares"].items()
                ]
                shown = {"served_entities": endpoint[key]["entities"]}
                answer[field_name] = {**shown, "traffic_config": {"routes": routes}}
        return answer

    def invoke(self, name: str, entity: str | None, body: Any) -> Answer:
        config = self.endpoints.get(name, {}).get("config")
        served = {each["name"]: each for each in config["entities"]} if config else {}
        if not served or (entity and entity not in served):
            return refused(404, "RESOURCE_DOES_NOT_EXIST", f"{name} does not serve {entity or ''}")
        shares = config["shares"]
        entity = entity or random.choices([*shares], weights=[*shares.values()])[0]
        number = served[entity]["entity_version"]
        model = (served[entity]["entity_name"], number)
        if model not in self.models:
            self.models[model] = self.load(*model)
        try:
            predictions = self.models[model].predict(rows_of(body, self.models[model]))
        except Exception as error:
            return refused(400, "BAD_REQUEST", str(error))
        return 200, {"predictions": list(map(float, predictions)), "served": entity}

    def load(self, name: str, number: str) -> Any:
        """The model that an entity serves."""
        return registry.connect(self.settings).load(int(number))


def rows_of(body: dict[str, Any], model: Any) -> pd.DataFrame:
    """The rows of a request, in the types of the model's signature, as MLflow's scoring server reads them."""
    (form,) = {"dataframe_records", "dataframe_split"} & body.keys()
    orient, schema = form.removeprefix("dataframe_"), model.metadata.get_input_schema()
    return dataframe_from_parsed_json(body[form], orient, schema)


class _Handler(BaseHTTPRequestHandler):
    workspace: Workspace

    def do_GET(self) -> None:
        """Each request is answered whole before the next."""
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if self.path.startswith("/.well-known/"):  # asked by each new client, of any host
            status, answer = refused(404, "ENDPOINT_NOT_FOUND", self.path)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, answer = refused(401, "UNAUTHENTICATED", "who are you?")
        else:
            with self.workspace.lock:
                path = self.path.partition("?")[0]
                status, answer = self.workspace.answer(self.command, path, body)
        served = answer.pop("served", "") if isinstance(answer, dict) else ""
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if served:
            self.send_header("served-model-name", served)
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass
