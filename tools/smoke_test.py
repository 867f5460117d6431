"""Ask the endpoint once, as a client would, and refuse anything but one probability.

`python -m tools.smoke_test ENDPOINT`; host and credentials come from the environment, as for every
client of databricks-sdk. Exits 1 with one line when the answer is not what the contract says. The customer
has every declared feature, the retired ones too: whichever version answers finds its own columns.
"""

import math
import os
import sys
from typing import Any

from databricks.sdk import WorkspaceClient
from databricks.sdk.errors import DatabricksError, PermissionDenied

from churn_lib.features import EXAMPLE


def problem(answer: Any) -> str | None:
    """What is wrong with an answer; None for one probability."""
    predictions = answer.get("predictions") if isinstance(answer, dict) else None
    if not isinstance(predictions, list) or len(predictions) != 1:
        return f"one prediction was expected, got {answer!r:.200}"
    value = predictions[0]
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"a probability was expected, got {value!r:.200}"
    return None if math.isfinite(value) and 0 <= value <= 1 else f"{value} is no probability"


def ask(client: WorkspaceClient, endpoint: str) -> Any:
    """The endpoint's answer for one customer."""
    body = {"dataframe_records": [EXAMPLE]}
    return client.api_client.do("POST", f"/serving-endpoints/{endpoint}/invocations", body=body)


def main(endpoint: str) -> None:
    """Ask and judge."""
    try:
        found = problem(ask(WorkspaceClient(), endpoint))
    except PermissionDenied:
        found = f"{os.environ.get('DATABRICKS_CLIENT_ID') or 'you'} may not query it: deployment_job grants that to the bundle's variable may_query; run it again"
    except (DatabricksError, ValueError) as error:
        found = " ".join(str(error).split())[:300]
    print(f"{endpoint}: {found or 'answers with one probability'}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main(sys.argv[1])
