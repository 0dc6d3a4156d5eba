"""An sshd of a test's own, whose cache starts empty, a login there, and the stand-in far end to start on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leak_check import wait_until
from ssh_server import SshServer
from stand_in import write_package

from remote_env.ssh import ServerHandle, SshConnection, start_server

LIMIT_S = 20.0


def soon(seconds: float = LIMIT_S) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def wait_until_empty(server: SshServer) -> None:
    """Wait for the last process of every login to end."""
    wait_until(lambda: not server.processes(), "nothing of a session runs any more", LIMIT_S)


@pytest.fixture
def server() -> Iterator[SshServer]:
    """An sshd of its own; nothing may be left of any session."""
    with SshServer() as server:
        yield server
        wait_until_empty(server)
        assert list(server.cache.glob("remote-env/sessions/*")) == []


@pytest.fixture
def connection(server: SshServer) -> Iterator[SshConnection]:
    """A login on `server`."""
    with SshConnection(server.target, **server.login) as connection:
        yield connection


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in far end's package folder."""
    return write_package(tmp_path_factory.mktemp("far_end"))


def start(connection: Any, package: Path, mode: str = "serve", **options: Any) -> ServerHandle:
    """The stand-in, started in this mode; `kind` of its refusal, `settings` and what `start_server` takes."""
    settings = {"task": {"mode": mode, "kind": options.pop("kind", "")}, **options.pop("settings", {})}
    arguments = {"python": sys.executable, "deadline": soon(), "source": package, **options}
    return start_server(connection, settings, **arguments)
