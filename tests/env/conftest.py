"""Every test of this folder runs in a home of its own and must leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from leak_check import isolated_home, no_leaks

from remote_env import RemoteEnv

__all__ = ["isolated_home", "no_leaks"]


@pytest.fixture(scope="module")
def cartpole(isolated_home: object) -> Iterator[RemoteEnv]:
    """One environment for all tests of a module that it survives."""
    with RemoteEnv(env="CartPole-v1") as env:
        yield env
