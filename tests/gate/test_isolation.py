"""A model that is judged runs in a process of its own: what it may not do, and what becomes of it."""

import os
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow
import numpy as np
import pandas as pd
import pytest

from churn_lib.features import FEATURES
from churn_lib.gate import worker
from churn_lib.gate.isolation import IsolatedModel, ModelError, decode, surroundings
from churn_lib.testing import customer_rows

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROWS = customer_rows(200)[FEATURES]


class Model:
    """A model of one function, which gets the rows and what it was made with."""

    def __init__(self, function: Callable[..., Any], *known: Any):
        self.function, self.known = function, known

    def predict(self, rows: pd.DataFrame) -> Any:
        return self.function(rows, *self.known)


def saved(folder: Path, function: Callable[..., Any], *known: Any) -> Path:
    model = Model(function, *known)
    place = folder / "model"
    mlflow.sklearn.save_model(
        model, place, serialization_format="cloudpickle", pip_requirements=["scikit-learn"]
    )
    return place


def attempts(rows: pd.DataFrame, secret: str, port: int) -> np.ndarray:
    """Whether each forbidden thing could be done, one number for each."""

    def tried(action: Callable[[], Any]) -> float:
        try:
            action()
        except BaseException:
            return 0.0
        return 1.0

    done = [
        tried(lambda: Path(secret).read_text()),
        tried(lambda: Path(secret).write_text("mine")),
        tried(lambda: os.remove(secret)),
        tried(lambda: os.listdir(os.path.dirname(secret))),
        tried(lambda: socket.create_connection(("127.0.0.1", port), 1)),
        tried(lambda: os.kill(os.getppid(), 9)),
        tried(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
        float("CHURN_TEST_TOKEN" in os.environ or any("MLFLOW_TRACKING" in n for n in os.environ)),
        float(any(name.startswith("churn_lib.gate") for name in sys.modules)),
        tried(lambda: os.kill(0, 0) if os.getpgrp() == os.getppid() else 1 / 0),
    ]
    return np.array(done)


def test_a_model_reaches_no_secret_no_network_and_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHURN_TEST_TOKEN", "secret")
    secret = tmp_path / "store" / "mlflow.db"
    secret.parent.mkdir()
    secret.write_text("aliases")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with IsolatedModel(saved(tmp_path, attempts, str(secret), port)) as model:
            assert model.predict(ROWS).tolist() == [0.0] * 10
    assert secret.read_text() == "aliases"


def test_a_model_answers_as_it_does_anywhere_and_may_write_into_its_scratch_folder(
    tmp_path: Path,
) -> None:
    def cached(rows: pd.DataFrame) -> np.ndarray:
        Path("cache.txt").write_text("known")
        return rows["days_since_last_event"].to_numpy() / 1_000

    with IsolatedModel(saved(tmp_path, cached)) as model:
        first, second = model.predict(ROWS), model.predict(ROWS.iloc[::-1])
        assert first.tolist() == (ROWS["days_since_last_event"] / 1_000).tolist()
        assert second.tolist() == first[::-1].tolist()


def endless(rows: pd.DataFrame) -> None:
    select.select([], [], [])


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda rows: os._exit(0), {"ProcessEnded"}),
        (lambda rows: sys.exit(3), {"SystemExit"}),
        (lambda rows: np.ones(2**40), {"MemoryError"}),
        (lambda rows: b"x" * 2**33, {"MemoryError"}),
        (lambda rows: os.closerange(3, 64), {"ProcessEnded"}),
        (lambda rows: [print("x" * 2**20, flush=True) for _ in range(300)], {"OSError"}),
        # which of its files are the pipes is not told: the write fails, or is no answer
        (lambda rows: [os.write(n, b"\0" * 64) for n in (3, 4)], {"OSError", "ValueError"}),
        (endless, {"TimeoutError"}),
    ],
    ids=["exit", "sys.exit", "array", "bytes", "closed", "printed", "pipe", "endless"],
)
def test_whatever_a_model_does_to_its_process_is_an_error_of_the_model(
    tmp_path: Path, function: Callable[..., Any], kinds: set[str]
) -> None:
    with IsolatedModel(saved(tmp_path, function), megabytes=2_048) as model:
        model.seconds = 10.0 if kinds != {"TimeoutError"} else 2.0
        with pytest.raises(ModelError) as failed:
            model.predict(ROWS)
    assert failed.value.kind in kinds, failed.value


def test_the_process_of_a_model_is_gone_when_the_question_is_over(tmp_path: Path) -> None:
    def number(rows: pd.DataFrame) -> np.ndarray:
        return np.array([os.getpid()])

    with IsolatedModel(saved(tmp_path, number)) as model:
        process = int(model.predict(ROWS)[0])
        os.kill(process, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"shape": [3], "dtype": "<f8"},
        {"shape": [-1], "dtype": "<f8"},
        {"shape": "many", "dtype": "<f8"},
        {"shape": [2**40], "dtype": "|O"},
        {"shape": [2], "dtype": "V8"},
        {"shape": [2], "dtype": "no type"},
    ],
)
def test_a_forged_answer_is_an_error_and_no_array(header: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        decode(header, b"\0" * 7)


def test_the_environment_of_a_model_has_no_name_that_leads_to_a_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("DATABRICKS_TOKEN", "MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY", "CHURN_SETTINGS")
    for name in names:
        monkeypatch.setenv(name, "secret")
    assert "secret" not in surroundings("/scratch").values()


@pytest.mark.parametrize("enforced", [True, False], ids=["kernel", "hook only"])
def test_the_audit_hook_refuses_what_the_kernel_would(tmp_path: Path, enforced: bool) -> None:
    inside, outside = tmp_path / "in", Path("/var/lib/elsewhere")
    inside.mkdir()

    def refused(event: str, *args: Any) -> bool:
        return bool(worker.forbidden(event, args, [inside], [inside], enforced))

    assert not refused("open", str(inside / "a"), "w", os.O_WRONLY)
    assert refused("open", str(outside), "r", os.O_RDONLY)
    assert refused("open", str(inside / ".." / "b"), "w", os.O_WRONLY)
    assert refused("os.rename", str(outside), str(inside))
    assert refused("os.rename", str(inside / "a"), str(outside), -1, -1)
    assert refused("sqlite3.connect", str(outside))
    assert not refused("sqlite3.connect", ":memory:")
    assert refused("socket.connect", None, ("127.0.0.1", 1))
    assert refused("subprocess.Popen", "sh", [], None, None) is not enforced
