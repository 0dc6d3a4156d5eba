"""Fixtures shared by all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ssh_server import SshServer


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[SshServer]:
    """One real sshd for the whole run; its far-end cache is shared, as a user's is."""
    with SshServer() as server:
        yield server
