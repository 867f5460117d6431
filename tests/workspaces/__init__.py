"""Two workspaces on one metastore, as Databricks has them, on this machine.

A metastore (`Metastore`) keeps registered models, versions and their files, and speaks the REST API
of Unity Catalog's registry and the Files API. Each workspace (`Workspace`) has an address and a token
of its own, and a tracking server of its own (a real `mlflow server`): runs, experiments and logged
models of one are unknown in the other. MLflow's own client asks it all, unpatched: the registry says
that files go through the Files API, as `MLFLOW_USE_DATABRICKS_SDK_MODEL_ARTIFACTS_REPO_FOR_UC` would.
Start it with

    from tests.workspaces import two_workspaces

    with two_workspaces(tmp_path) as (staging, production):
        with staging.signed_in():          # this process, until the end of the block
            models = registry.connect(settings.load("staging"))
        subprocess.run(command, env={**os.environ, **production.environment()})  # or another one

Tables are where `settings.store` says (`store/tables/<catalog>`): give both targets one store, as one
metastore has all catalogs.

- `staging.metastore.models[name]`: what the registry holds, without asking over HTTP;
  `.files(name, version)` the folder of a version's files.
- `staging.before`, `staging.after`: functions of (method, path, given) called around each request;
  they raise `Refused(429, "REQUEST_LIMIT_EXCEEDED", "...")`, or kill a client at a certain write;
  `Limits(40)` is one that refuses each fortieth request.
- `staging.apis`: functions of (method, path, given) that answer other APIs (endpoints, jobs): a dict,
  None when the request is not theirs; they raise `Refused`.
- `staging.requests`: method and path of all that came; `staging.stop()`, `.start()`, `.ready()`.

Strict: unknown fields are 400 (MLflow's own definition of the API says which there are), a version is
PENDING_REGISTRATION until all its files are there, takes an alias only when it is READY, and its files
are fixed from then on; a second model of a name is 409; numbers do not come back; a search answers in
pages, without tags, and without a version that was made just before; tags have Unity Catalog's limits; a
logged model of the other workspace does not exist.
"""

from tests.workspaces.metastore import Metastore, Refused
from tests.workspaces.service import Limits, Workspace, two_workspaces

__all__ = ["Limits", "Metastore", "Refused", "Workspace", "two_workspaces"]
