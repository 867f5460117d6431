"""A metastore: registered models, their versions and files, as Unity Catalog keeps them."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from mlflow.protos import databricks_pb2
from mlflow.protos import databricks_uc_registry_messages_pb2 as messages
from mlflow.protos.databricks_uc_registry_service_pb2 import UcModelRegistryService
from mlflow.utils.proto_json_utils import message_to_json

PREFIX = "/api/2.0/mlflow/unity-catalog"
FILES = "/api/2.0/fs/files/Models/"
FOLDERS = "/api/2.0/fs/directories/Models/"
# https://docs.databricks.com/aws/en/database-objects/tags
TAGS, KEY, VALUE = 50, 255, 1_000
FORBIDDEN_IN_KEYS = re.compile(r"[.,\-=/:]")


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, error_code: str, message: str):
        super().__init__(message)
        self.status, self.error_code = status, error_code


def missing(what: str) -> Refused:
    return Refused(404, "RESOURCE_DOES_NOT_EXIST", f"{what} does not exist")


def invalid(message: str) -> Refused:
    return Refused(400, "INVALID_PARAMETER_VALUE", message)


def conflict(message: str) -> Refused:
    return Refused(409, "RESOURCE_CONFLICT", message)


def _methods() -> Iterator[tuple[tuple[str, str], Any]]:
    for method in UcModelRegistryService.DESCRIPTOR.methods:
        for endpoint in method.GetOptions().Extensions[databricks_pb2.rpc].endpoints:
            yield (endpoint.method, f"/api/2.0{endpoint.path}"), method


METHODS = dict(_methods())  # MLflow's own definition of the API: verb and path to method


def _message(kind: Any, content: dict[str, Any], refusal: type[Exception]) -> Any:
    try:
        return ParseDict(content, getattr(messages, kind.name)())
    except ParseError as error:
        raise refusal(str(error)) from None


class _BadRequest(Refused):
    def __init__(self, message: str):
        super().__init__(400, "INVALID_PARAMETER_VALUE", message)


@dataclass
class Version:
    """One version of a registered model."""

    number: int
    source: str
    user: str
    run_id: str = ""
    model_id: str = ""
    workspace_id: str = ""  # of the run
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    status: str = "PENDING_REGISTRATION"
    created: int = field(default_factory=lambda: int(time.time() * 1_000))
    updated: int = field(default_factory=lambda: int(time.time() * 1_000))
    unseen: int = 0  # searches to come that do not find it yet


@dataclass
class Model:
    """A registered model."""

    name: str
    user: str
    versions: dict[int, Version] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""
    deployment_job_id: str = ""
    created: int = field(default_factory=lambda: int(time.time() * 1_000))
    last: int = 0  # number that was given out; a deleted one does not come back


def _pairs(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in sorted(tags.items())]


def _set_tag(tags: dict[str, str], key: str, value: str) -> None:
    if not key or len(key) > KEY or FORBIDDEN_IN_KEYS.search(key) or key != key.strip():
        raise invalid(f"Invalid tag key {key!r}")
    if len(value) > VALUE:
        raise invalid(f"Tag value of {key!r} is longer than {VALUE} characters")
    if key not in tags and len(tags) >= TAGS:
        raise invalid(f"At most {TAGS} tags can be assigned")
    tags[key] = value


class Metastore:
    """All registered models with their files; workspaces ask it over HTTP."""

    def __init__(self, folder: Path, page: int = 2, behind: int = 1):
        # page: versions that one answer to a search has; behind: searches that a new one is not in yet
        self.folder, self.page, self.behind = folder, page, behind
        self.models: dict[str, Model] = {}
        self.lock = threading.RLock()

    def answer(
        self,
        method: str,
        path: str,
        given: dict[str, Any],
        user: str,
        workspace_id: str,
        knows: Any,  # whether a model id belongs to the workspace that asks
    ) -> str:
        """What the registry's API answers, as JSON; raises `Refused`."""
        if (method, path) not in METHODS:
            raise Refused(404, "ENDPOINT_NOT_FOUND", f"No API found for '{method} {path}'")
        call = METHODS[method, path]
        asked = _message(call.input_type, given, _BadRequest)
        model_id = getattr(asked, "model_id", "")
        if model_id and not knows(model_id):
            raise missing(f"Logged model {model_id} of workspace {workspace_id}")
        handle = getattr(self, re.sub(r"(?<!^)(?=[A-Z])", "_", call.name).lower())
        with self.lock:
            found = handle(asked, user=user)
        return message_to_json(_message(call.output_type, found or {}, AssertionError))

    # --- registered models

    def model(self, name: str) -> Model:
        if len(name.split(".")) != 3 or not all(name.split(".")):
            raise invalid(f"{name!r} is not of the form catalog.schema.model")
        if name not in self.models:
            raise missing(f"Registered model '{name}'")
        return self.models[name]

    def _shown(self, model: Model, complete: bool) -> dict[str, Any]:
        made = {"name": model.name, "user_id": model.user, "creation_timestamp": model.created}
        if model.description:
            made["description"] = model.description
        if not complete:
            return made
        aliases = [{"alias": a, "version": str(n)} for a, n in sorted(model.aliases.items())]
        job = {"deployment_job_id": model.deployment_job_id} if model.deployment_job_id else {}
        return {**made, **job, "aliases": aliases, "tags": _pairs(model.tags)}

    def create_registered_model(self, asked: Any, user: str) -> dict[str, Any]:
        if len(asked.name.split(".")) != 3:
            raise invalid(f"{asked.name!r} is not of the form catalog.schema.model")
        if asked.name in self.models:
            message = f"Registered model '{asked.name}' already exists"
            raise Refused(409, "RESOURCE_ALREADY_EXISTS", message)
        model = Model(asked.name, user, description=asked.description)
        for tag in asked.tags:
            _set_tag(model.tags, tag.key, tag.value)
        self.models[asked.name] = model
        return {"registered_model": self._shown(model, True)}

    def update_registered_model(self, asked: Any, user: str) -> dict[str, Any]:
        model = self.model(asked.name)
        if asked.HasField("description"):
            model.description = asked.description
        if asked.HasField("deployment_job_id"):
            model.deployment_job_id = asked.deployment_job_id
        return {"registered_model": self._shown(model, True)}

    def delete_registered_model(self, asked: Any, user: str) -> None:
        self.model(asked.name)
        del self.models[asked.name]
        shutil.rmtree(self.folder.joinpath(*asked.name.split(".")), ignore_errors=True)

    def get_registered_model(self, asked: Any, user: str) -> dict[str, Any]:
        return {"registered_model": self._shown(self.model(asked.name), True)}

    def search_registered_models(self, asked: Any, user: str) -> dict[str, Any]:
        return {"registered_models": [self._shown(m, False) for m in self.models.values()]}

    def set_registered_model_tag(self, asked: Any, user: str) -> None:
        _set_tag(self.model(asked.name).tags, asked.key, asked.value)

    def delete_registered_model_tag(self, asked: Any, user: str) -> None:
        self.model(asked.name).tags.pop(asked.key, None)

    def set_registered_model_alias(self, asked: Any, user: str) -> None:
        model, version = self.model(asked.name), self.version(asked.name, asked.version)
        if version.status != "READY":
            raise invalid(f"Version {version.number} of '{model.name}' is {version.status}")
        model.aliases[asked.alias] = version.number

    def delete_registered_model_alias(self, asked: Any, user: str) -> None:
        self.model(asked.name).aliases.pop(asked.alias, None)

    def get_model_version_by_alias(self, asked: Any, user: str) -> dict[str, Any]:
        model = self.model(asked.name)
        if asked.alias not in model.aliases:
            raise missing(f"Alias '{asked.alias}' of '{asked.name}'")
        version = self.version(asked.name, str(model.aliases[asked.alias]))
        return {"model_version": self._shown_version(model, version, True)}

    # --- versions

    def version(self, name: str, number: str) -> Version:
        model = self.model(name)
        if not number.isdecimal():
            raise invalid(f"version {number!r} is no number")
        if int(number) not in model.versions:
            raise missing(f"Version {number} of registered model '{name}'")
        return model.versions[int(number)]

    def _shown_version(self, model: Model, version: Version, complete: bool) -> dict[str, Any]:
        texts = {
            "run_id": version.run_id,
            "model_id": version.model_id,
            "run_tracking_server_id": version.workspace_id,
            "description": version.description,
        }
        made = {
            "name": model.name,
            "version": str(version.number),
            "creation_timestamp": version.created,
            "last_updated_timestamp": version.updated,
            "user_id": version.user,
            "source": version.source,
            "status": version.status,
            "storage_location": f"abfss://models@metastore/{model.name}/{version.number}",
            **{name: value for name, value in texts.items() if value},
        }
        if not complete:  # a search has neither tags nor aliases
            return made
        aliases = [
            {"alias": alias, "version": str(number)}
            for alias, number in sorted(model.aliases.items())
            if number == version.number
        ]
        return {**made, "tags": _pairs(version.tags), "aliases": aliases}

    def create_model_version(self, asked: Any, user: str) -> dict[str, Any]:
        model = self.model(asked.name)
        if not asked.source:
            raise invalid("source is missing")
        version = Version(model.last + 1, asked.source, user, unseen=self.behind)
        version.run_id, version.model_id = asked.run_id, asked.model_id
        version.workspace_id = asked.run_tracking_server_id
        version.description = asked.description
        for tag in asked.tags:
            _set_tag(version.tags, tag.key, tag.value)
        model.last = version.number
        model.versions[version.number] = version
        return {"model_version": self._shown_version(model, version, True)}

    def finalize_model_version(self, asked: Any, user: str) -> dict[str, Any]:
        model, version = self.model(asked.name), self.version(asked.name, asked.version)
        if version.status != "PENDING_REGISTRATION":
            raise conflict(f"Version {version.number} of '{model.name}' is {version.status}")
        if not (self.files(model.name, version.number) / "MLmodel").exists():
            version.status = "FAILED_REGISTRATION"
            raise invalid(f"Version {version.number} of '{model.name}' has no file MLmodel")
        version.status, version.updated = "READY", int(time.time() * 1_000)
        return {"model_version": self._shown_version(model, version, True)}

    def get_model_version(self, asked: Any, user: str) -> dict[str, Any]:
        version = self.version(asked.name, asked.version)
        return {"model_version": self._shown_version(self.model(asked.name), version, True)}

    def update_model_version(self, asked: Any, user: str) -> dict[str, Any]:
        version = self.version(asked.name, asked.version)
        version.description, version.updated = asked.description, int(time.time() * 1_000)
        return {"model_version": self._shown_version(self.model(asked.name), version, True)}

    def delete_model_version(self, asked: Any, user: str) -> None:
        model, version = self.model(asked.name), self.version(asked.name, asked.version)
        if left := sorted(a for a, number in model.aliases.items() if number == version.number):
            raise invalid(f"Version {version.number} has the aliases {', '.join(left)}")
        del model.versions[version.number]
        shutil.rmtree(self.files(model.name, version.number), ignore_errors=True)

    def search_model_versions(self, asked: Any, user: str) -> dict[str, Any]:
        found = re.fullmatch(r"\s*name\s*=\s*(['\"])([^'\"]+)\1\s*", asked.filter)
        if not found:
            raise invalid(f"Unsupported filter {asked.filter!r}")
        model = self.model(found[2])
        at = int(asked.page_token or 0)
        numbers = sorted(n for n, each in model.versions.items() if not each.unseen)
        for each in model.versions.values():
            each.unseen = max(0, each.unseen - 1)
        size = min(asked.max_results or self.page, self.page)
        shown = [self._shown_version(model, model.versions[n], False) for n in numbers[at:][:size]]
        more = {"next_page_token": str(at + size)} if at + size < len(numbers) else {}
        return {"model_versions": shown, **more}

    def set_model_version_tag(self, asked: Any, user: str) -> None:
        _set_tag(self.version(asked.name, asked.version).tags, asked.key, asked.value)

    def delete_model_version_tag(self, asked: Any, user: str) -> None:
        self.version(asked.name, asked.version).tags.pop(asked.key, None)

    def emit_model_version_lineage(self, asked: Any, user: str) -> None:
        self.version(asked.name, asked.version)

    def is_databricks_sdk_models_artifact_repository_enabled(
        self, asked: Any, user: str
    ) -> dict[str, Any]:
        return {"is_databricks_sdk_models_artifact_repository_enabled": True}

    def generate_temporary_model_version_credentials(self, asked: Any, user: str) -> None:
        raise Refused(403, "PERMISSION_DENIED", "no temporary credentials: use the Files API")

    def get_model_version_download_uri(self, asked: Any, user: str) -> dict[str, Any]:
        version = self.version(asked.name, asked.version)
        return {"artifact_uri": f"abfss://models@metastore/{asked.name}/{version.number}"}

    # --- files

    def files(self, name: str, number: int) -> Path:
        """The folder of a version's files."""
        return self.folder.joinpath(*name.split("."), str(number))

    def _place(self, rest: str, write: bool) -> Path:
        """The path of catalog/schema/model/version/..., if that version may be read or written."""
        parts = PurePosixPath(rest).parts
        if len(parts) < 4 or ".." in parts:
            raise invalid(f"/Models/{rest} is no path of a model version")
        name, number = ".".join(parts[:3]), parts[3]
        version = self.version(name, number)
        if write and version.status != "PENDING_REGISTRATION":
            message = f"/Models/{rest}: files of a version that is {version.status} are fixed"
            raise Refused(403, "PERMISSION_DENIED", message)
        if not write and version.status != "READY":
            raise conflict(f"/Models/{rest}: version {number} of '{name}' is {version.status}")
        return self.files(name, version.number).joinpath(*parts[4:])

    def upload(self, rest: str, content: bytes, overwrite: bool) -> None:
        with self.lock:
            path = self._place(rest, True)
            if path.exists() and not overwrite:
                raise Refused(409, "ALREADY_EXISTS", f"/Models/{rest} already exists")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def download(self, rest: str) -> bytes:
        with self.lock:
            path = self._place(rest, False)
            if not path.is_file():
                raise Refused(404, "NOT_FOUND", f"/Models/{rest} is not there")
            return path.read_bytes()

    def listed(self, rest: str) -> list[dict[str, Any]]:
        with self.lock:
            path = self._place(rest, False)
            if not path.is_dir():
                raise Refused(404, "NOT_FOUND", f"/Models/{rest} is no folder")
            base = f"/Models/{rest.strip('/')}"
            return [self._entry(base, each) for each in sorted(path.iterdir())]

    @staticmethod
    def _entry(base: str, path: Path) -> dict[str, Any]:
        made: dict[str, Any] = {"path": f"{base}/{path.name}", "name": path.name}
        if path.is_dir():
            return {**made, "is_directory": True}
        return {**made, "is_directory": False, "file_size": path.stat().st_size}
