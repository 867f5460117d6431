"""The serving endpoints of a workspace of the rehearsal, answered by the versions of its registry."""

from typing import Any

import mlflow

from tests.serving.workspace import Workspace as Endpoints
from tests.workspaces import Refused, Workspace


class ServingEndpoints(Endpoints):
    """An API of `tests.workspaces.Workspace`: endpoints load the files that the metastore has of a version."""

    def __init__(self, workspace: Workspace):
        super().__init__(settings=None)  # type: ignore[arg-type]
        self.workspace = workspace

    def load(self, name: str, number: str) -> Any:
        """The version of a model as it was uploaded."""
        folder = self.workspace.metastore.files(name, int(number))
        return mlflow.pyfunc.load_model(str(folder))

    def api(self, method: str, path: str, given: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request about endpoints; None when it is about something else."""
        if not path.startswith(("/serving-endpoints/", "/api/2.0/serving-endpoints", "/api/2.0/permissions/serving-endpoints")):  # fmt: skip
            return None
        with self.lock:
            status, answer = self.answer(method, path, given)
        if status != 200:
            raise Refused(status, answer["error_code"], answer["message"])
        return answer

    def served(self, name: str) -> dict[str, int]:
        """Version to its share of the traffic; empty without such an endpoint."""
        config = (self.endpoints.get(name) or {}).get("config")
        if not config:
            return {}
        versions = {each["name"]: each["entity_version"] for each in config["entities"]}
        return {versions[entity]: share for entity, share in config["shares"].items() if share}
