"""An account, its workspaces and the issuers of tokens, as strict as the real ones about who may what.

Account and workspaces are servers of their own and do not answer each other's questions. A token of CI
is exchanged for one of a principal when a policy of that principal names its issuer, subject and audience.
Folders hand rights down; who makes one manages it; only admins make scopes, catalogs and principals.
"""

import base64
import json
import re
import uuid
from typing import Any

from tests.tools.stand_ins import Refused, Workspace

ACCOUNT = "9c0ffee0-0000-4000-8000-000000000001"
ADMIN = "admin@example.org"
LEVELS = ("CAN_READ", "CAN_RUN", "CAN_EDIT", "CAN_MANAGE")


def missing(what: str) -> Refused:
    return Refused(404, "RESOURCE_DOES_NOT_EXIST", f"{what} does not exist")


def denied(what: str) -> Refused:
    return Refused(403, "PERMISSION_DENIED", what)


class Issuer(Workspace):
    """GitHub: gives a job that shows its own token one that says who the job is."""

    issuer = "https://token.actions.githubusercontent.com"

    def __init__(self, subject: str) -> None:
        super().__init__()
        self.subject = subject
        self.issued: list[str] = []

    def who(self, path: str, authorization: str) -> str | None:
        return "job" if authorization == "Bearer of-the-job" else None

    def answer_to(self, who: str, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if method == "GET" and path == "/token":
            return {"value": self.issue(query.get("audience", "https://github.com/owner"))}
        raise missing(path)

    def issue(self, audience: str) -> str:
        claims = {
            "iss": self.issuer,
            "sub": self.subject,
            "aud": audience,
            "jti": str(uuid.uuid4()),
        }
        parts = [{"alg": "none"}, claims, {}]
        token = ".".join(
            base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
            for part in parts
        )
        self.issued.append(token)
        return token

    def environment(self) -> dict[str, str]:
        """What GitHub gives a job with `id-token: write`."""
        return {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/token?api-version=2.0",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-job",
        }


class Pipelines(Issuer):
    """Azure DevOps: its audience is always the same."""

    issuer = "https://vstoken.dev.azure.com/1c0ffee0-0000-4000-8000-000000000002"

    def answer_to(self, who: str, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if method == "POST" and path.endswith("/oidctoken"):
            return {"oidcToken": self.issue("api://AzureADTokenExchange")}
        raise missing(path)

    def environment(self) -> dict[str, str]:
        return {
            "SYSTEM_ACCESSTOKEN": "of-the-job",
            "SYSTEM_TEAMFOUNDATIONCOLLECTIONURI": f"{self.url}/",
            "SYSTEM_PLANID": "p",
            "SYSTEM_JOBID": "j",
            "SYSTEM_TEAMPROJECTID": "t",
            "SYSTEM_HOSTTYPE": "build",
        }


class Account(Workspace):
    """The account: principals, groups, roles, policies, and who is in which workspace."""

    def __init__(self) -> None:
        super().__init__()
        self.principals: dict[int, dict[str, Any]] = {}
        self.groups: dict[int, dict[str, Any]] = {}
        self.roles: dict[str, dict[str, Any]] = {}
        self.policies: dict[int, list[dict[str, Any]]] = {}
        self.assigned: dict[int, dict[int, list[str]]] = {}
        self.issuers: list[Issuer] = []
        self.count = 100

    def state(self) -> Any:
        """All of it, with names in place of numbers that differ from run to run."""
        names = {each["applicationId"]: each["displayName"] for each in self.principals.values()}
        names |= {key: each["displayName"] for key, each in (*self.principals.items(), *self.groups.items())}  # fmt: skip
        rights = {key: value["grant_rules"] for key, value in self.roles.items()}
        text = json.dumps(
            {
                "groups": sorted((g["displayName"], sorted(names[int(m["value"])] for m in g["members"])) for g in self.groups.values()),
                "principals": sorted(each["displayName"] for each in self.principals.values()),
                "roles": rights,
                "policies": {names[key]: [each["oidc_policy"] for each in value] for key, value in self.policies.items() if value},
                "assigned": {key: sorted((names[who], may) for who, may in value.items()) for key, value in self.assigned.items() if value},
            },
            sort_keys=True,
        )  # fmt: skip
        for application, name in names.items():
            text = text.replace(str(application), name) if isinstance(application, str) else text
        return json.loads(text)

    def who(self, path: str, authorization: str) -> str | None:
        return "nobody" if path.startswith("/.well-known/") else super().who(path, authorization)

    def number(self) -> int:
        self.count += 1
        return self.count

    def answer_to(self, who: str, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if path.startswith("/.well-known/"):
            return {"oidc_endpoint": f"{self.url}/oidc/accounts/{{account_id}}"}
        if path == f"/api/2.0/preview/accounts/{ACCOUNT}/access-control/rule-sets":
            return self._roles(method, query, body)
        head = f"/api/2.0/accounts/{ACCOUNT}/"
        if not path.startswith(head):
            raise missing(path)
        parts = path.removeprefix(head).split("/")
        if parts[:2] == ["scim", "v2"]:
            return self._scim(method, parts[2:], query, body)
        if parts[0] == "servicePrincipals" and parts[2] == "federationPolicies":
            return self._policies(method, int(parts[1]), parts[3:], body)
        if parts[0] == "workspaces" and parts[2] == "permissionassignments":
            return self._assign(method, int(parts[1]), parts[3:], body)
        raise missing(path)

    def _scim(self, method: str, parts: list[str], query: dict[str, str], body: Any) -> Any:
        kept = self.principals if parts[0] == "ServicePrincipals" else self.groups
        if method == "GET" and len(parts) == 1:
            (name,) = re.fullmatch(r'displayName eq "(.+)"', query["filter"]).groups()  # type: ignore[union-attr]
            found = [each for each in kept.values() if each["displayName"] == name]
            return {"Resources": found if query.get("startIndex", "1") == "1" else []}
        if method == "POST":
            made = {"id": str(self.number()), "displayName": body["displayName"]}
            made |= (
                {"applicationId": str(uuid.uuid4())} if kept is self.principals else {"members": []}
            )
            kept[int(made["id"])] = made
            return made
        found_one = kept.get(int(parts[1]))
        if not found_one:
            raise missing(parts[1])
        if method == "PATCH":
            if "urn:ietf:params:scim:api:messages:2.0:PatchOp" not in body["schemas"]:
                raise Refused(400, "INVALID_PARAMETER_VALUE", "schemas")
            for operation in body["Operations"]:
                assert (operation["op"].lower(), operation["path"]) == ("add", "members")
                for member in operation["value"]:
                    if int(member["value"]) not in self.principals:
                        raise missing(member["value"])
                    found_one["members"].append({"value": member["value"]})
        return found_one

    def _roles(self, method: str, query: dict[str, str], body: Any) -> Any:
        name = query["name"] if method == "GET" else body["name"]
        application = name.split("/")[3]
        if application not in {each["applicationId"] for each in self.principals.values()}:
            raise missing(name)
        kept = self.roles.setdefault(name, {"name": name, "etag": "e0", "grant_rules": []})
        if method == "PUT":
            if body["rule_set"]["etag"] != kept["etag"]:
                raise Refused(409, "RESOURCE_CONFLICT", "the etag is outdated")
            kept |= {"etag": kept["etag"] + "1", "grant_rules": body["rule_set"]["grant_rules"]}
        return kept

    def _policies(self, method: str, number: int, rest: list[str], body: Any) -> Any:
        if number not in self.principals:
            raise missing(f"service principal {number}")
        kept = self.policies.setdefault(number, [])
        if method == "GET":
            return {"policies": kept}
        if method == "PATCH":
            (found,) = (each for each in kept if each["policy_id"] == rest[0])
            found |= {"oidc_policy": body["oidc_policy"]}
            return found
        made = {"policy_id": f"p{self.number()}", "oidc_policy": body["oidc_policy"]}
        if any(each["oidc_policy"] == made["oidc_policy"] for each in kept):
            raise Refused(409, "RESOURCE_ALREADY_EXISTS", "such a policy exists")
        kept.append(made)
        return made

    def _assign(self, method: str, workspace: int, rest: list[str], body: Any) -> Any:
        kept = self.assigned.setdefault(workspace, {})
        if method == "PUT":
            number = int(rest[1])
            if number not in {*self.principals, *self.groups}:
                raise missing(rest[1])
            kept[number] = body["permissions"]
            return {"principal": {"principal_id": number}, "permissions": body["permissions"]}
        rows = [{"principal": {"principal_id": key}, "permissions": may} for key, may in kept.items()]  # fmt: skip
        return {"permission_assignments": rows}


class Target(Workspace):
    """A workspace of the account, on the one metastore."""

    def __init__(self, account: Account, number: int, metastore: dict[str, Any]) -> None:
        super().__init__()
        self.account, self.number, self.metastore = account, number, metastore
        self.headers = {"X-Databricks-Org-Id": str(number)}
        self.tokens: dict[str, str] = {}
        self.entitled: dict[str, set[str]] = {}
        self.folders: dict[str, dict[str, Any]] = {
            "/Workspace": {"id": 1, "rights": {}},
            "/Workspace/Users": {"id": 2, "rights": {}},
        }
        self.scopes: dict[str, Any] = {}
        self.warehouses: dict[str, Any] = {}
        self.jobs: dict[int, str] = {}  # id to name

    def state(self) -> Any:
        names = {
            each["applicationId"]: each["displayName"] for each in self.account.principals.values()
        }
        own = {
            "entitled": {key: sorted(value) for key, value in self.entitled.items()},
            "folders": {
                key: value["rights"]
                for key, value in self.folders.items()
                if "/Users/" not in key
            },
            "scopes": self.scopes,
            "warehouses": [
                {key: value for key, value in each.items() if key != "id"}
                for each in self.warehouses.values()
            ],
            "grants": {str(key): {who: sorted(may) for who, may in value.items()} for key, value in self.metastore["grants"].items() if value},
            "catalogs": sorted(self.metastore["catalogs"]),
            "keys": {name: each["key"] for name, each in self.metastore["tables"].items()},
            "models": self.metastore["models"],
            "monitors": sorted(number for _, number in self.metastore["monitors"]),
        }  # fmt: skip
        text = json.dumps(own, sort_keys=True)
        for application, name in names.items():
            text = text.replace(application, name)
        return json.loads(text)

    # --- who asks ------------------------------------------------------------------------------------

    def who(self, path: str, authorization: str) -> str | None:
        if path.startswith(("/.well-known/", "/oidc/")):
            return "nobody"
        token = authorization.removeprefix("Bearer ")
        return self.tokens.get(token) or super().who(path, authorization)

    def _exchange(self, form: dict[str, str]) -> Any:
        claims_part = form["subject_token"].split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(claims_part + "=" * (-len(claims_part) % 4)))
        if not any(form["subject_token"] in each.issued for each in self.account.issuers):
            raise Refused(401, "invalid_grant", "nobody has issued this token")
        for number, principal in self.account.principals.items():
            if principal["applicationId"] != form["client_id"]:
                continue
            if number not in self.account.assigned.get(self.number, {}):
                raise Refused(403, "access_denied", "the principal is not in this workspace")
            for policy in self.account.policies.get(number, []):
                rule = policy["oidc_policy"]
                if (
                    rule["issuer"] == claims["iss"]
                    and rule["subject"] == claims["sub"]
                    and claims["aud"] in rule["audiences"]
                ):
                    token = str(uuid.uuid4())
                    self.tokens[token] = form["client_id"]
                    return {"access_token": token, "token_type": "Bearer", "expires_in": 3600}
        shown = f"iss {claims['iss']}, sub {claims['sub']}, aud {claims['aud']}"
        raise Refused(401, "invalid_client", f"no policy of the principal matches {shown}")

    # --- what it answers -----------------------------------------------------------------------------

    def answer_to(self, who: str, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if path == "/.well-known/databricks-config":
            audiences = [f"{self.url}/oidc/v1/token"]
            known = {"oidc_endpoint": f"{self.url}/oidc", "workspace_id": str(self.number)}
            return {**known, "token_federation_default_oidc_audiences": audiences}
        if path == "/oidc/.well-known/oauth-authorization-server":
            token = f"{self.url}/oidc/v1/token"
            return {"token_endpoint": token, "authorization_endpoint": f"{self.url}/oidc/authorize"}
        if path == "/oidc/v1/token":
            return self._exchange(body)
        if path.endswith("/scim/v2/Me"):
            return {"userName": who, "id": "7"}
        for head, part in (
            ("/api/2.0/workspace/", self._workspace),
            ("/api/2.0/permissions/directories/", self._rights),
        ):
            if path.startswith(head):
                return part(method, path.removeprefix(head), query, body, who)
        if who != ADMIN:
            raise denied(f"{who} is no admin of the workspace")
        for head, admin in (
            ("/api/2.0/preview/scim/v2/ServicePrincipals", self._scim),
            ("/api/2.0/secrets/", self._secrets),
            ("/api/2.1/unity-catalog/tables/", self._tables),
            ("/api/2.1/unity-catalog/schemas/", self._schemas),
            ("/api/2.1/unity-catalog/", self._catalog),
            ("/api/data-quality/v1/monitors", self._monitors),
            ("/api/2.0/sql/statements", self._statements),
            ("/api/2.0/mlflow/unity-catalog/registered-models/", self._models),
            ("/api/2.2/jobs/list", self._jobs),
            ("/api/2.0/sql/warehouses", self._warehouses),
            ("/api/2.0/permissions/warehouses/", self._warehouse_rights),
        ):
            if path.startswith(head):
                return admin(method, path.removeprefix(head), query, body)
        raise missing(f"{method} {path}")

    # --- folders -------------------------------------------------------------------------------------

    def rights(self, path: str) -> dict[str, list[tuple[str, bool, int]]]:
        """Level, whether it is inherited, and from which folder, of everybody with a right."""
        found: dict[str, list[tuple[str, bool, int]]] = {}
        for folder in (path, *self._above(path)):
            kept = self.folders.get(folder, {"rights": {}, "id": 0})
            for name, level in kept["rights"].items():
                found.setdefault(name, []).append((level, folder != path, kept["id"]))
        return found

    def _above(self, path: str) -> list[str]:
        parts = path.split("/")
        return ["/".join(parts[:count]) for count in range(len(parts) - 1, 1, -1)]

    def may(self, who: str, path: str, level: str) -> bool:
        """Whether somebody has that level or more in a folder, himself or through the readers."""
        if who == ADMIN:
            return True
        names = {who, *self._groups(who)}
        held = [each[0] for name in names for each in self.rights(path).get(name, [])]
        return any(LEVELS.index(each) >= LEVELS.index(level) for each in held)

    def _groups(self, who: str) -> set[str]:
        numbers = {
            str(key)
            for key, each in self.account.principals.items()
            if each["applicationId"] == who
        }
        return {
            group["displayName"]
            for group in self.account.groups.values()
            if numbers & {each["value"] for each in group["members"]}
        }

    def _workspace(self, method: str, what: str, query: dict[str, str], body: Any, who: str) -> Any:
        path = (query or body)["path"].rstrip("/")
        self._make(f"/Workspace/Users/{who}", who)  # everybody in the workspace has one
        if what == "get-status":
            if path not in self.folders:
                raise missing(path)
            if path.count("/") > 1 and not self.may(who, path, "CAN_READ"):
                raise denied(f"{who} may not see {path}")
            return {"object_id": self.folders[path]["id"], "object_type": "DIRECTORY", "path": path}
        if what == "mkdirs":
            there = next(each for each in self._above(path + "/x") if each in self.folders)
            if not self.may(who, there, "CAN_EDIT"):
                raise denied(f"{who} may not make folders in {there}")
            for folder in reversed(self._above(path + "/x")):
                self._make(folder, who)
            return {}
        raise missing(what)

    def _make(self, path: str, who: str) -> None:
        rights = {who: "CAN_MANAGE"}
        self.folders.setdefault(path, {"id": self.account.number(), "rights": rights})

    def _rights(self, method: str, number: str, query: dict[str, str], body: Any, who: str) -> Any:
        path = next((key for key, each in self.folders.items() if str(each["id"]) == number), "")
        if not self.may(who, path, "CAN_MANAGE"):
            raise denied(f"{who} may not see who may what in {path}")
        if method == "PUT":
            rights = {}
            for entry in body["access_control_list"]:
                name = (
                    entry.get("service_principal_name")
                    or entry.get("group_name")
                    or entry["user_name"]
                )
                known = {each["applicationId"] for each in self.account.principals.values()}
                known |= {each["displayName"] for each in self.account.groups.values()}
                if name not in known and "user_name" not in entry:
                    raise Refused(400, "INVALID_PARAMETER_VALUE", f"no such principal: {name}")
                rights[name] = entry["permission_level"]
            self.folders[path]["rights"] = rights
        rows = [{"group_name": "admins", "all_permissions": [{"permission_level": "CAN_MANAGE", "inherited": True, "inherited_from_object": ["/directories/"]}]}]  # fmt: skip
        for name, held in self.rights(path).items():
            kind = "user_name" if "@" in name else "group_name" if name in {g["displayName"] for g in self.account.groups.values()} else "service_principal_name"  # fmt: skip
            all_of = [{"permission_level": level, "inherited": inherited, **({"inherited_from_object": [f"/directories/{number}"]} if inherited else {})} for level, inherited, number in held]  # fmt: skip
            rows.append({kind: name, "all_permissions": all_of})  # type: ignore[dict-item]
        return {"access_control_list": rows}

    # --- for admins alone ----------------------------------------------------------------------------

    def _scim(self, method: str, rest: str, query: dict[str, str], body: Any) -> Any:
        inside = [
            self.account.principals[number]
            for number in self.account.assigned.get(self.number, {})
            if number in self.account.principals
        ]
        if method == "GET":
            (name,) = re.fullmatch(r'applicationId eq "(.+)"', query["filter"]).groups()  # type: ignore[union-attr]
            shown = [
                {
                    **each,
                    "entitlements": [{"value": value} for value in self.entitled.get(name, ())],
                }
                for each in inside
                if each["applicationId"] == name
            ]
            return {"Resources": shown if query.get("startIndex", "1") == "1" else []}
        (found,) = (each for each in inside if each["id"] == rest.strip("/"))
        for operation in body["Operations"]:
            new = {each["value"] for each in operation["value"]}
            self.entitled.setdefault(found["applicationId"], set()).update(new)
        return {}

    def _secrets(self, method: str, what: str, query: dict[str, str], body: Any) -> Any:
        if what == "scopes/list":
            return {"scopes": [each["scope"] for each in self.scopes.values()]}
        if what == "scopes/create":
            if body["scope"] in self.scopes:
                raise Refused(400, "RESOURCE_ALREADY_EXISTS", f"Scope {body['scope']} exists")
            scope = {"name": body["scope"], "backend_type": body["scope_backend_type"], "keyvault_metadata": body["backend_azure_keyvault"]}  # fmt: skip
            self.scopes[body["scope"]] = {"scope": scope, "rights": {ADMIN: "MANAGE"}}
            return {}
        kept = self.scopes.get((query or body)["scope"])
        if kept is None:
            raise missing("the scope")
        if what == "acls/put":
            kept["rights"][body["principal"]] = body["permission"]
        rows = [{"principal": key, "permission": value} for key, value in kept["rights"].items()]
        return {"items": rows}

    def _catalog(self, method: str, rest: str, query: dict[str, str], body: Any) -> Any:
        kind, _, name = rest.partition("/")
        if kind == "catalogs":
            if method == "POST":
                if body["name"] in self.metastore["catalogs"]:
                    raise Refused(400, "CATALOG_ALREADY_EXISTS", body["name"])
                self.metastore["catalogs"].add(body["name"])
                return {"name": body["name"]}
            if name not in self.metastore["catalogs"]:
                raise Refused(404, "CATALOG_DOES_NOT_EXIST", f"Catalog '{name}' does not exist")
            return {"name": name}
        kind, _, name = name.partition("/")
        there = {"catalog": self.metastore["catalogs"], "schema": self.metastore["schemas"]}[kind]  # fmt: skip
        if name not in there:
            raise Refused(404, f"{kind.upper()}_DOES_NOT_EXIST", f"{kind} {name} does not exist")
        grants = self.metastore["grants"].setdefault((kind, name), {})
        if method == "PATCH":
            known = {each["applicationId"] for each in self.account.principals.values()}
            known |= {each["displayName"] for each in self.account.groups.values()}
            for change in body["changes"]:
                if change["principal"] not in known:
                    raise Refused(404, "PRINCIPAL_DOES_NOT_EXIST", change["principal"])
                grants.setdefault(change["principal"], set()).update(change["add"])
        return {
            "privilege_assignments": [
                {"principal": who, "privileges": sorted(may)}
                for who, may in grants.items()
                if query.get("principal", who) == who
            ]
        }

    def _schemas(self, method: str, name: str, query: dict[str, str], body: Any) -> Any:
        if name not in self.metastore["schemas"]:
            raise Refused(404, "SCHEMA_DOES_NOT_EXIST", f"Schema '{name}' does not exist")
        return {"full_name": name, "schema_id": f"id-of-{name}"}

    def _tables(self, method: str, name: str, query: dict[str, str], body: Any) -> Any:
        if name not in self.metastore["tables"]:
            raise Refused(404, "TABLE_DOES_NOT_EXIST", f"Table '{name}' does not exist")
        key = self.metastore["tables"][name]["key"]
        constraints = [{"primary_key_constraint": key}] if key else []
        return {"full_name": name, "table_constraints": constraints}

    def _monitors(self, method: str, rest: str, query: dict[str, str], body: Any) -> Any:
        kept = self.metastore["monitors"]
        if method == "GET":
            kind, _, number = rest.strip("/").partition("/")
            if (kind, number) not in kept:
                raise missing(f"monitor of {kind} {number}")
            return kept[kind, number]
        known = {f"id-of-{name}" for name in self.metastore["schemas"]}
        if body["object_type"] != "schema" or body["object_id"] not in known:
            raise missing(f"{body['object_type']} {body['object_id']}")
        if "anomaly_detection_config" not in body:
            raise Refused(400, "INVALID_PARAMETER_VALUE", "a schema takes anomaly_detection_config")
        return kept.setdefault((body["object_type"], body["object_id"]), body)

    def _statements(self, method: str, rest: str, query: dict[str, str], body: Any) -> Any:
        if body["warehouse_id"] not in self.warehouses:
            raise missing(f"warehouse {body['warehouse_id']}")
        problem = self._alter(body["statement"])
        status = {"state": "FAILED", "error": {"message": problem}} if problem else {"state": "SUCCEEDED"}  # fmt: skip
        return {"statement_id": "s", "status": status}

    def _alter(self, statement: str) -> str:
        found = re.fullmatch(r"ALTER TABLE `(.+?)`\.`(.+?)`\.`(.+?)` (.+)", statement)
        table = found and self.metastore["tables"].get(".".join(found.groups()[:3]))
        if not table:
            return "[TABLE_OR_VIEW_NOT_FOUND] The table or view cannot be found."
        if column := re.fullmatch(r"ALTER COLUMN `(\w+)` SET NOT NULL", found[4]):
            if column[1] in table["nulls"]:
                return f"[DELTA_NEW_NOT_NULL_VIOLATION] 3 rows violate the NOT NULL constraint of {column[1]}."
            table["never_null"].add(column[1])
            return ""
        key = re.fullmatch(r"ADD CONSTRAINT `(\w+)` PRIMARY KEY \((.+)\)", found[4])
        parts = [part.split(" ") for part in key[2].split(", ")] if key else []
        columns = [part[0].strip("`") for part in parts]
        if not key or any(part[1:] not in ([], ["TIMESERIES"]) for part in parts) or table["key"]:
            return f"[PARSE_SYNTAX_ERROR] {statement}"
        if not {*columns} <= table["never_null"]:
            return "[UC_PRIMARY_KEY_ON_NULLABLE_COLUMN] a column of the key can be null"
        table["key"] = {"name": key[1], "child_columns": columns}
        return ""

    def _models(self, method: str, what: str, query: dict[str, str], body: Any) -> Any:
        asked = query if method == "GET" else body
        if asked["name"] not in self.metastore["models"]:
            raise missing(f"Registered model {asked['name']}")
        model = self.metastore["models"][asked["name"]]
        if (method, what) == ("PATCH", "update"):
            model["deployment_job_id"] = body["deployment_job_id"]
        elif (method, what) != ("GET", "get"):
            raise missing(f"{method} {what}")
        return {"registered_model": {"name": asked["name"], **model}}

    def _jobs(self, method: str, rest: str, query: dict[str, str], body: Any) -> Any:
        found = [number for number, name in self.jobs.items() if name == query.get("name", name)]
        return {"jobs": [{"job_id": number} for number in found]}

    def _warehouses(self, method: str, rest: str, query: dict[str, str], body: Any) -> Any:
        if method == "POST":
            made = {"id": f"w{self.account.number()}", "name": body["name"], "rights": {}}
            self.warehouses[made["id"]] = made
            return {"id": made["id"]}
        return {"warehouses": [*self.warehouses.values()]}

    def _warehouse_rights(self, method: str, name: str, query: dict[str, str], body: Any) -> Any:
        return self._entries(self.warehouses[name]["rights"], method, body)

    def _entries(self, rights: dict[str, str], method: str, body: Any) -> Any:
        for entry in body["access_control_list"] if method == "PATCH" else ():
            rights[entry["service_principal_name"]] = entry["permission_level"]
        return {
            "access_control_list": [
                {"service_principal_name": who, "all_permissions": [{"permission_level": level}]}
                for who, level in rights.items()
            ]
        }
