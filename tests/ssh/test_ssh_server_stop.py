"""Ending a server on the far end: exactly that one, whole, and in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from leak_check import wait_until
from ssh_server import SshServer

from remote_env.errors import ConnectError, HostKeyError, StartError
from remote_env.ssh import (
    ServerHandle,
    SshConnection,
    find_server,
)

sys.path.insert(0, str(Path(__file__).parent))

from own_server import connection, package, server, soon, start, wait_until_empty

__all__ = ["connection", "package", "server"]


def sshd_pids(server: SshServer) -> list[int]:
    """The sshd processes of all logins, without what runs in them: a start's shell may still be about to end."""
    found = []
    for pid in server.connection_pids():
        with contextlib.suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                found.append(pid)
    return found


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_stop_logs_in_anew_when_the_login_is_dead_or_frozen(server: SshServer, package: Path, sent: int) -> None:
    with SshConnection(server.target, **server.login) as connection:
        handle = start(connection, package)
        for pid in sshd_pids(server):
            os.kill(pid, sent)
        begun = time.monotonic()
        handle.stop(soon(4.0))
        assert time.monotonic() - begun < 4.0
        assert connection.is_open
    wait_until_empty(server)


def test_stop_tells_when_no_new_login_can_be_made(package: Path) -> None:
    with SshServer() as server, SshConnection(server.target, **server.login) as connection:
        handle = start(connection, package)
        connection.close()
        server.known_hosts.unlink()
        with pytest.raises(HostKeyError):
            handle.stop(soon(3.0))
        server.known_hosts.write_text(server.known_hosts_line())
        handle.stop(soon())


def test_stop_keeps_its_deadline_when_the_host_is_frozen(package: Path) -> None:
    with SshServer() as server, SshConnection(server.target, **server.login) as connection:
        handle = start(connection, package)
        assert server._process is not None
        frozen = [*sshd_pids(server), server._process.pid]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        try:
            with pytest.raises(ConnectError):
                handle.stop(soon(0.8))
            assert time.monotonic() - begun < 2.5
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)


def test_the_record_of_a_dead_server_is_not_believed(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    handle = start(connection, package)
    os.kill(handle.pid, signal.SIGKILL)
    wait_until(lambda: find_server(connection, handle.port, soon()) is None, "its record is gone")
    assert list(server.cache.glob("remote-env/servers/*/*")) != []
    handle.stop(soon())
    assert list(server.cache.glob("remote-env/servers/*/*")) == []


def test_a_server_that_ignores_the_request_to_end_is_killed_with_its_simulators(
    server: SshServer, connection: SshConnection, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_env.ssh.server.STOP_GRACE_S", 0.3)
    handle = start(connection, package, "stubborn")
    assert len(server.processes()) >= 2
    handle.stop(soon())
    wait_until_empty(server)


def test_a_pid_that_another_process_has_by_now_is_not_signalled(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    handle = start(connection, package)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        folder = Path(handle.session_folder)
        (folder / "simulators").write_text(f"{stranger.pid} 12345\n")
        (folder / "leader").write_text(f"{stranger.pid} 12345\n")
        aged = ServerHandle(connection, str(folder), stranger.pid, "12345", handle.port, handle.token)
        aged.stop(soon())
        assert stranger.poll() is None
        assert not folder.exists()
    finally:
        stranger.kill()
        stranger.wait()
        for pid in server.processes():
            os.kill(pid, signal.SIGKILL)


def test_stop_refuses_to_remove_anything_but_a_session_folder(
    connection: SshConnection, package: Path, tmp_path: Path
) -> None:
    handle = start(connection, package)
    for folder in (str(tmp_path), handle.session_folder + "/../..", str(Path(handle.session_folder).parent)):
        with pytest.raises(StartError, match="not a session folder"):
            ServerHandle(connection, folder, 1, "1", 1, "").stop(soon())
    assert tmp_path.is_dir()
    handle.stop(soon())
