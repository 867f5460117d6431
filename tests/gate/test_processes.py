"""Copies of a template judge models: nothing is shared between them, and none outlives the process that judges."""

import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pandas as pd
import pytest

from churn_lib.features import FEATURES
from churn_lib.gate import processes, worker
from churn_lib.gate.isolation import IsolatedModel, ModelError
from churn_lib.testing import customer_rows
from tests.gate.test_isolation import saved

cloudpickle.register_pickle_by_value(sys.modules[__name__])
ROWS = customer_rows(20)[FEATURES]
COPIED = worker.landlock_there()


def leaves_a_mark(rows: pd.DataFrame) -> np.ndarray:
    seen = [hasattr(np, "churn_mark"), "CHURN_MARK" in os.environ, Path("mark").exists()]
    np.churn_mark, os.environ["CHURN_MARK"] = 1, "1"
    Path("mark").write_text("1")
    return np.array([*map(float, seen), float(np.random.default_rng().integers(2**40))])


def draws(rows: pd.DataFrame) -> np.ndarray:
    return np.random.uniform(size=3)


def kills_its_parent(rows: pd.DataFrame) -> np.ndarray:
    refused = ctypes.CDLL(None).kill(os.getppid(), signal.SIGKILL)
    return np.array([float(refused)])


def number(rows: pd.DataFrame) -> np.ndarray:
    return np.array([os.getpid(), os.getppid()])


def test_a_model_sees_nothing_of_the_one_before(tmp_path: Path) -> None:
    files = saved(tmp_path, leaves_a_mark)
    for _ in range(2):
        with IsolatedModel(files) as model:
            assert model.predict(ROWS)[:3].tolist() == [0.0] * 3
            assert model.predict(ROWS)[:3].tolist() == [1.0] * 3


def test_two_models_do_not_draw_the_same_numbers(tmp_path: Path) -> None:
    files, found = saved(tmp_path, draws), []
    for _ in range(2):
        with IsolatedModel(files) as model:
            found.append(model.predict(ROWS).tolist())
    assert found[0] != found[1]


def test_models_are_copies_of_one_process_and_run_side_by_side(tmp_path: Path) -> None:
    files = saved(tmp_path, number)
    with IsolatedModel(files) as one, IsolatedModel(files) as two:
        first, second = one.predict(ROWS), two.predict(ROWS)
    assert isinstance(processes._TEMPLATES[0], processes.Template) is COPIED
    assert first[0] != second[0] and first[1] == second[1]
    assert bool(first[1] != os.getpid()) is COPIED


def test_a_model_that_kills_its_parent_past_python_hurts_the_next_one_in_nothing(
    tmp_path: Path,
) -> None:
    files = saved(tmp_path, kills_its_parent)
    for _ in range(2 * COPIED):  # without a template the parent is this test
        with IsolatedModel(files) as model:
            try:  # refused from Linux 6.12 on; before it the template ends, and the model with it
                assert model.predict(ROWS).tolist() == [-1.0]
            except ModelError as error:
                assert error.kind == "ProcessEnded"


def test_a_template_that_has_ended_is_made_again(tmp_path: Path) -> None:
    files = saved(tmp_path, number)
    with IsolatedModel(files) as model:
        before = model.predict(ROWS)[1]
    if COPIED:  # else there is none, and the parent is this test
        os.kill(int(before), signal.SIGKILL)
    with IsolatedModel(files) as model:
        assert bool(model.predict(ROWS)[1] == before) is not COPIED


def test_where_the_kernel_confines_nothing_each_model_starts_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "landlock_there", lambda: False)
    monkeypatch.setattr(processes, "_TEMPLATES", [])
    with IsolatedModel(saved(tmp_path, number)) as model:
        assert model.predict(ROWS)[1] == os.getpid()


KILLED = """
import sys
from churn_lib.gate.isolation import IsolatedModel
from tests.gate.test_processes import ROWS
from pathlib import Path
with IsolatedModel(Path(sys.argv[1])) as model:
    print(*map(int, model.predict(ROWS)), flush=True)
    sys.stdin.read()
"""


def test_a_killed_judge_leaves_neither_template_nor_model(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(saved(tmp_path, number))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as judge:
        assert judge.stdout is not None
        places = [os.pidfd_open(int(each)) for each in judge.stdout.readline().split()]
        judge.kill()
    for place in places[: 1 + COPIED]:  # without a template the second is the judge, who is gone
        assert select.select([place], [], [], 20)[0], "still there"
        os.close(place)
