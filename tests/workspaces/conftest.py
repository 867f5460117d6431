"""Two workspaces for all tests of a file: they take seconds to start."""

from collections.abc import Iterator

import pytest

from tests.workspaces import Workspace, two_workspaces


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Workspace]]:
    with two_workspaces(tmp_path_factory.mktemp("workspaces")) as both:
        yield both
