"""Fixtures for tests that serve Isaac Lab from an interpreter of its own; `make test-isaac` names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from leak_check import isolated_home, no_leaks

__all__ = ["isolated_home", "no_leaks"]

START_TIMEOUT_S = 300.0  # the first start on a machine compiles kernels for a minute


@pytest.fixture(scope="session")
def isaac_python() -> str:
    """The interpreter that has Isaac Lab; tests that ask for it are skipped where none is named."""
    python = os.environ.get("REMOTE_ENV_ISAAC_PYTHON")
    if python is None:
        pytest.skip("REMOTE_ENV_ISAAC_PYTHON names no interpreter with Isaac Lab; `make test-isaac` does")
    return python


@pytest.fixture(scope="session", autouse=True)
def warp_cache() -> None:
    """Warp's compiled kernels are kept where they always are: the tests' own cache begins empty."""
    os.environ.setdefault("WARP_CACHE_PATH", str(Path.home() / ".cache" / "warp"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that starts Isaac Lab where its kernels are to be compiled takes minutes."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session", autouse=True)
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Matplotlib keeps a list of fonts in the cache of whoever draws first; here outside the tests' own."""
    os.environ["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("fonts"))
