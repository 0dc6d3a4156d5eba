"""What is told when a tunnel does not lead anywhere, by each kind of them, through a real sshd."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leak_check import wait_until
from listeners import listener_that_says
from quotes import produces
from ssh_server import SshServer, make_key

from remote_env.ssh import SshConnection
from remote_env.ssh.tunnel import open_tunnel


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


@contextlib.contextmanager
def login(server: SshServer, **arguments: Any) -> Iterator[SshConnection]:
    connection = SshConnection(server.target, **{**server.login, **arguments})
    try:
        yield connection
    finally:
        connection.close()


def receive(kind: str, connection: SshConnection, port: int = 1, seconds: float = 20.0) -> None:
    """The first byte from a port, through a tunnel of that kind; port 1 has no listener."""
    tunnel = open_tunnel(kind, connection)
    try:
        with contextlib.closing(tunnel.dial(port, soon(seconds))) as stream:
            stream.recv_exactly_into(memoryview(bytearray(1)), soon(seconds))
    finally:
        tunnel.close()


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield int(taken.getsockname()[1])


def listen(kind: str, connection: SshConnection, local_port: int) -> None:
    tunnel = open_tunnel(kind, connection)
    try:
        tunnel.listen(22, local_port, soon())
    finally:
        tunnel.close()


@produces("ConfigError: tunnel=… is unknown; allowed are …")
def test_a_kind_that_there_is_not(ssh_server: SshServer) -> None:
    with login(ssh_server) as connection:
        open_tunnel("wormhole", connection)


# Nothing listens, or forwarding is forbidden


@produces("ConnectError: … refused opening a channel to …: …; does anything listen there?")
def test_nothing_listens_for_a_channel(ssh_server: SshServer) -> None:
    with login(ssh_server) as connection:
        receive("channel", connection)


@produces("ConnectionLost: ssh could not connect to …; does anything listen there?")
def test_nothing_listens_for_openssh(ssh_server: SshServer) -> None:
    with login(ssh_server) as connection:
        receive("openssh", connection)


@produces("ConnectionLost: sshtunnel could not connect to …")
def test_nothing_listens_for_sshtunnel(ssh_server: SshServer) -> None:
    with login(ssh_server) as connection:
        receive("sshtunnel", connection)


@pytest.fixture(scope="module")
def forbidding(isolated_home: Path) -> Iterator[SshServer]:
    with SshServer(extra_config="AllowTcpForwarding no") as server:
        yield server


@produces("ConnectError: sshd on … forbids opening a channel to …; its configuration needs AllowTcpForwarding yes …")
def test_forwarding_is_forbidden_for_a_channel(forbidding: SshServer) -> None:
    with login(forbidding) as connection:
        receive("channel", connection)


@produces("ConnectionLost: sshd forbids a connection to …; its configuration needs AllowTcpForwarding yes")
def test_forwarding_is_forbidden_for_openssh(forbidding: SshServer) -> None:
    with login(forbidding) as connection:
        receive("openssh", connection)


# The ssh program


@produces('ConfigError: tunnel="openssh" needs the program ssh; …')
def test_there_is_no_ssh(ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with login(ssh_server) as connection:
        open_tunnel("openssh", connection)


@produces("ConnectError: ssh ended with status … before its tunnel was open; it said: …")
def test_ssh_ends(ssh_server: SshServer, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  ProxyCommand echo there is no way >&2\n")
    with login(ssh_server, config_file=str(config)) as connection:
        receive("openssh", connection)


@produces("AuthError: ssh ended with status … before its tunnel was open; it said: …Permission denied…")
def test_ssh_is_not_let_in(ssh_server: SshServer, tmp_path: Path) -> None:
    make_key(tmp_path / "other", "ed25519")
    with login(ssh_server, identity_file=str(tmp_path / "other")) as connection:
        receive("openssh", connection)


@produces("HostKeyError: ssh ended with status … before its tunnel was open; it said: …Host key verification failed…")
def test_ssh_does_not_know_the_host(ssh_server: SshServer, tmp_path: Path) -> None:
    with login(ssh_server, known_hosts_file=str(tmp_path / "nobody")) as connection:
        receive("openssh", connection)


@produces("DeadlineExceeded: ssh has not opened its tunnel in time; it said: …")
def test_ssh_waits_for_ever() -> None:
    with listener_that_says(b"") as port, contextlib.closing(SshConnection(f"ssh://me@127.0.0.1:{port}")) as connection:
        receive("openssh", connection, seconds=0.5)


@produces("ConnectionLost: the ssh process of the tunnel to … ended; it said: …")
def test_ssh_is_killed(ssh_server: SshServer) -> None:
    with (
        login(ssh_server) as connection,
        contextlib.closing(open_tunnel("openssh", connection)) as tunnel,
        contextlib.closing(tunnel.dial(ssh_server.port, soon())) as stream,
    ):
        stream.recv_exactly_into(memoryview(bytearray(4)), soon())  # of what sshd says first
        for pid in ssh_pids(ssh_server):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not ssh_pids(ssh_server), "it has ended")
        stream.recv_exactly_into(memoryview(bytearray(1000)), soon())


def ssh_pids(server: SshServer) -> list[int]:
    """The `ssh` processes that lead to this server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0] == b"ssh" and str(server.port).encode() in words:
                found.append(int(path.parent.name))
    return found


# Local ports


@produces("ConnectError: the local port … cannot be had: …; choose another")
def test_a_local_port_that_is_taken(ssh_server: SshServer) -> None:
    with login(ssh_server) as connection, taken_port() as port:
        listen("channel", connection, port)


@produces("ConnectError: sshtunnel could not open its local port: …")
def test_a_local_port_that_is_taken_for_sshtunnel(ssh_server: SshServer) -> None:
    with login(ssh_server) as connection, taken_port() as port:
        listen("sshtunnel", connection, port)
