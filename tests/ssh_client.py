"""For tests of RemoteEnv over the test's sshd: how it logs in, who serves there, and proof that nothing is left."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_server import SshServer

from remote_env import RemoteEnv

ROOT = Path(__file__).resolve().parents[1]
FAR_PYTHON = os.environ.get("REMOTE_ENV_TEST_PYTHON", str(ROOT / ".venv-far" / "bin" / "python"))
PATIENCE_S = 15.0


@pytest.fixture(autouse=True)
def nothing_is_left(ssh_server: SshServer) -> Iterator[None]:
    """After each test no process runs inside a login, and no session or registry entry remains."""
    if not Path(FAR_PYTHON).exists():
        pytest.fail(f"no far interpreter {FAR_PYTHON}: run scripts/prepare.sh test, or set REMOTE_ENV_TEST_PYTHON")
    yield
    deadline = time.monotonic() + PATIENCE_S
    while left := remains(ssh_server):
        assert time.monotonic() < deadline, f"left behind on the far end: {left} {[*map(command_line, left)]}"
        time.sleep(0.02)


def remains(server: SshServer) -> list[Any]:
    """What runs inside the logins, and what sessions and servers have on disk there."""
    cache = server.cache / "remote-env"
    return [*server.processes(), *cache.glob("sessions/*"), *cache.glob("servers/**/*.json")]


def command_line(pid: Any) -> str:
    """What a process runs; "" when it is gone, or no process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def ssh_arguments(server: SshServer) -> dict[str, Any]:
    """Arguments of a RemoteEnv that logs in to the test's sshd and is served by the other interpreter."""
    login = dict(server.login)
    login["ssh_config_file"] = login.pop("config_file", None)
    return {**login, "python": FAR_PYTHON, "start_timeout_s": 60.0}


def over_ssh(server: SshServer, port: int | None = None, **arguments: Any) -> RemoteEnv:
    """A RemoteEnv that logs in to the test's sshd and is served by the other interpreter."""
    return RemoteEnv(server.target, port, **{**ssh_arguments(server), **arguments})


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
