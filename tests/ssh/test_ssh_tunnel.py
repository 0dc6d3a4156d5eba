"""Every kind of tunnel, through a real sshd: what it serves, what it refuses, what it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from dialling import Echo
from leak_check import is_alive, isolated_home, no_leaks, wait_until
from server_process import ServerProcess, serving
from ssh_server import SshServer, make_key

from remote_env.errors import AuthError, ConfigError, ConnectError, ConnectionLost, DeadlineExceeded, HostKeyError
from remote_env.session.session import Session
from remote_env.ssh import SshConnection
from remote_env.ssh.openssh import OpensshTunnel
from remote_env.ssh.tunnel import KINDS, Tunnel, open_tunnel
from remote_env.transport import Transport

__all__ = ["isolated_home", "no_leaks"]
ROOT = Path(__file__).resolve().parents[2]
FORWARDERS = ("openssh", "sshtunnel")  # their local accept proves nothing


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture(scope="module")
def task() -> Iterator[ServerProcess]:
    with serving(idle_timeout_s=600.0) as server:
        yield server


@pytest.fixture(scope="module")
def connection(ssh_server: SshServer) -> Iterator[SshConnection]:
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        connection.run(":", deadline=soon())
        yield connection


@pytest.fixture(params=KINDS)
def tunnel(request: pytest.FixtureRequest, connection: SshConnection) -> Iterator[Tunnel]:
    tunnel = open_tunnel(request.param, connection)
    yield tunnel
    tunnel.close()


@pytest.fixture
def openssh(connection: SshConnection) -> Iterator[OpensshTunnel]:
    tunnel = OpensshTunnel(connection)
    yield tunnel
    tunnel.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def round_trip(stream: Transport, data: bytes) -> bytes:
    back = bytearray(len(data))
    receiving = threading.Thread(target=stream.recv_exactly_into, args=(memoryview(back), soon()))
    receiving.start()
    stream.send_all([data[:100], data[100:]], soon())
    receiving.join(30)
    return bytes(back)


def recv_byte(stream: Transport, timeout_s: float = 10.0) -> bytes:
    byte = bytearray(1)
    stream.recv_exactly_into(memoryview(byte), soon(timeout_s))
    return bytes(byte)


def ssh_pids(server: SshServer) -> list[int]:
    """The `ssh -N` processes that lead to this server."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"ssh" and b"-N" in words and str(server.port).encode() in words and is_alive(int(folder.name)):
            found.append(int(folder.name))
    return found


# What it serves


def test_a_session_runs_as_it_would_here(tunnel: Tunnel, task: ServerProcess) -> None:
    local = gymnasium.make("CartPole-v1")
    session = Session(lambda deadline: tunnel.dial(task.port, deadline), task.token, soon())
    try:
        expected, _ = local.reset(seed=3)
        assert session.reset(3, None, 20.0)[0].tobytes() == expected.tobytes()
        for action in np.random.default_rng(0).integers(0, 2, 20):
            assert session.step(int(action), 20.0)[0].tobytes() == local.step(int(action))[0].tobytes()
    finally:
        session.close()


def test_several_streams_at_once_keep_apart(tunnel: Tunnel, echo: Echo) -> None:
    streams = [tunnel.dial(echo.port, soon()) for _ in range(3)]
    try:
        for number, stream in enumerate(streams):
            data = hashlib.sha256(bytes([number])).digest() * 40_000
            assert round_trip(stream, data) == data
    finally:
        for stream in streams:
            stream.close()


def test_other_hosts_are_reached_as_seen_from_there(tunnel: Tunnel, echo: Echo) -> None:
    stream = tunnel.dial(echo.port, soon(), host="localhost")
    assert round_trip(stream, b"x" * 200) == b"x" * 200
    stream.close()


def test_a_local_port_leads_there_until_it_is_closed(tunnel: Tunnel, echo: Echo) -> None:
    place = tunnel.listen(echo.port, 0, soon())
    with socket.create_connection(("127.0.0.1", place.port), 10) as sock:
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        with pytest.raises(ConnectError, match=f"{place.port}"):
            tunnel.listen(echo.port, place.port, soon())
        assert place.is_up
        place.close()
        assert sock.recv(5) == b""
    assert not place.is_up
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", place.port), 10)


@pytest.fixture(scope="module")
def behind() -> Iterator[SshServer]:
    """An sshd whose alias `testbox` is reached through another one."""
    with SshServer() as jump, SshServer(jump=jump) as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
def test_jump_hosts_are_gone_through_and_ended(behind: SshServer, echo: Echo, kind: str) -> None:
    files = {"known_hosts_file": str(behind.known_hosts), "config_file": str(behind.config)}
    login = SshConnection("testbox", **files)
    tunnel = open_tunnel(kind, login)
    logins = behind.log().count("Accepted publickey")
    with contextlib.closing(tunnel.dial(echo.port, soon())) as stream:
        assert round_trip(stream, b"x" * 200) == b"x" * 200
    assert behind.log().count("Accepted publickey") == logins + 1
    tunnel.close()
    login.close()


# What it refuses


def test_unknown_kinds_are_refused(connection: SshConnection) -> None:
    with pytest.raises(
        ConfigError, match="tunnel='wormhole' is unknown; allowed are 'channel', 'openssh', 'sshtunnel'"
    ):
        open_tunnel("wormhole", connection)


def test_without_ssh_there_is_no_openssh_tunnel(connection: SshConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="needs the program ssh"):
        open_tunnel("openssh", connection)


def test_a_channel_says_at_once_that_nothing_listens(connection: SshConnection) -> None:
    with pytest.raises(ConnectError, match="does anything listen there"):
        open_tunnel("channel", connection).dial(1, soon())


@pytest.mark.parametrize("kind", FORWARDERS)
def test_a_forwarder_says_at_the_first_receive_that_nothing_listens(connection: SshConnection, kind: str) -> None:
    tunnel = open_tunnel(kind, connection)
    stream = tunnel.dial(1, soon())
    with pytest.raises(ConnectionLost, match=r"could not connect to 127.0.0.1:1 on .*does anything listen there"):
        recv_byte(stream)
    stream.close()
    tunnel.close()


@pytest.mark.parametrize("kind", KINDS)
def test_forbidden_forwarding_is_named(kind: str) -> None:
    with (
        SshServer(extra_config="AllowTcpForwarding no") as server,
        SshConnection(server.target, **server.login) as login,
    ):
        tunnel = open_tunnel(kind, login)
        refused = pytest.raises((ConnectError, ConnectionLost), match=r"forbids.*AllowTcpForwarding yes")
        with refused, contextlib.closing(tunnel.dial(22, soon())) as stream:
            recv_byte(stream)
        tunnel.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_host_key_ends_every_kind(ssh_server: SshServer, tmp_path: Path, kind: str) -> None:
    make_key(tmp_path / "other", "ed25519")
    _, blob, *_ = (tmp_path / "other.pub").read_text().split()
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{ssh_server.port} ssh-ed25519 {blob}\n")
    login = SshConnection(ssh_server.target, **{**ssh_server.login, "known_hosts_file": str(known_hosts)})
    tunnel = open_tunnel(kind, login)
    with pytest.raises(HostKeyError, match="HAS CHANGED"):
        tunnel.dial(22, soon())
    tunnel.close()
    login.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_login_is_an_auth_error(ssh_server: SshServer, tmp_path: Path, kind: str) -> None:
    make_key(tmp_path / "stranger", "ed25519")
    login = SshConnection(ssh_server.target, **{**ssh_server.login, "identity_file": str(tmp_path / "stranger")})
    tunnel = open_tunnel(kind, login)
    with pytest.raises(AuthError):
        tunnel.dial(22, soon())
    tunnel.close()
    login.close()
    assert ssh_pids(ssh_server) == []


# Deadlines and deaths


@pytest.mark.parametrize("kind", KINDS)
def test_deadlines_hold_when_sshd_is_frozen(echo: Echo, kind: str) -> None:
    with SshServer() as server, SshConnection(server.target, **server.login) as login:
        tunnel = open_tunnel(kind, login)
        stream = tunnel.dial(echo.port, soon())
        assert round_trip(stream, b"x" * 200) == b"x" * 200
        for pid in server.connection_pids():
            os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            recv_byte(stream, timeout_s=0.5)
        stream.close()
        tunnel.close()
        assert time.monotonic() - started < 6


def test_a_start_that_sshd_does_not_answer_ends_at_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tunnel = OpensshTunnel(SshConnection(f"ssh://nobody@127.0.0.1:{silent.getsockname()[1]}"))
        with pytest.raises(DeadlineExceeded, match="has not opened its tunnel in time"):
            tunnel.dial(22, soon(0.5))
        tunnel.close()


def test_when_ssh_is_killed_the_stream_says_so_and_the_next_dial_starts_another(
    openssh: OpensshTunnel, ssh_server: SshServer, echo: Echo
) -> None:
    stream = openssh.dial(echo.port, soon())
    assert round_trip(stream, b"x" * 200) == b"x" * 200
    (pid,) = ssh_pids(ssh_server)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ConnectionLost, match=r"the ssh process of the tunnel to .* ended"):
        recv_byte(stream)
    stream.close()
    stream = openssh.dial(echo.port, soon())
    assert round_trip(stream, b"y" * 200) == b"y" * 200
    stream.close()
    assert len(ssh_pids(ssh_server)) == 1


def test_one_ssh_process_serves_every_dial_to_a_port(openssh: OpensshTunnel, ssh_server: SshServer, echo: Echo) -> None:
    streams = [openssh.dial(echo.port, soon()) for _ in range(3)]
    assert len(ssh_pids(ssh_server)) == 1
    for stream in streams:
        stream.close()


def test_ctrl_c_at_the_terminal_does_not_reach_ssh(openssh: OpensshTunnel, ssh_server: SshServer, echo: Echo) -> None:
    openssh.dial(echo.port, soon()).close()
    (pid,) = ssh_pids(ssh_server)
    assert os.getsid(pid) != os.getsid(0)


def test_the_socket_is_for_its_owner_alone(openssh: OpensshTunnel, echo: Echo, isolated_home: Path) -> None:
    openssh.dial(echo.port, soon()).close()
    (folder,) = (isolated_home / "tmp").glob("remote-env-*/socket")
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "lines",
    [
        "LocalForward {port} 127.0.0.1:1",  # a port that is taken
        "ForkAfterAuthentication yes",
        "ControlMaster auto\nControlPath {folder}/master-%C\nControlPersist yes",
        "RemoteCommand sleep 60\nRequestTTY force",
        "LogLevel QUIET",
    ],
)
def test_what_the_users_configuration_says_besides_does_not_matter(
    ssh_server: SshServer, echo: Echo, tmp_path: Path, lines: str
) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n" + lines.format(port=echo.port, folder=tmp_path) + "\n")
    login = SshConnection(ssh_server.target, **{**ssh_server.login, "config_file": str(config)})
    tunnel = OpensshTunnel(login)
    stream = tunnel.dial(echo.port, soon())
    assert round_trip(stream, b"x" * 200) == b"x" * 200
    stream.close()
    tunnel.close()
    assert ssh_pids(ssh_server) == []


def test_what_only_openssh_understands_in_the_configuration_counts(echo: Echo) -> None:
    with SshServer() as server:
        server.config.write_text(server.config.read_text() + "  BindAddress 127.0.0.3\n")
        tunnel = OpensshTunnel(SshConnection("testbox", **{**server.login, "identity_file": None}))
        tunnel.dial(echo.port, soon()).close()
        tunnel.close()
        assert "from 127.0.0.3 port" in server.log()


def test_a_talkative_proxy_command_fills_no_pipe(ssh_server: SshServer, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  ProxyCommand seq 100000 >&2\n")
    tunnel = OpensshTunnel(SshConnection(ssh_server.target, **{**ssh_server.login, "config_file": str(config)}))
    with pytest.raises(ConnectError, match="ssh ended with status 255") as caught:
        tunnel.dial(22, soon())
    assert len(str(caught.value)) < 500  # the last lines
    tunnel.close()


# Processes that end badly

_CLIENT = """
    import os, sys, time
    from remote_env.ssh import SshConnection
    from remote_env.ssh.tunnel import KINDS, open_tunnel

    target, key, known_hosts, port, then = sys.argv[1:]
    logins = [SshConnection(target, identity_file=key, known_hosts_file=known_hosts) for _ in KINDS]
    tunnels = [open_tunnel(kind, login) for kind, login in zip(KINDS, logins)]

    def echo(stream, data):
        stream.send_all([data], time.monotonic() + 20)
        back = bytearray(len(data))
        stream.recv_exactly_into(memoryview(back), time.monotonic() + 20)
        assert back == data

    def talk(tunnel):
        stream = tunnel.dial(int(port), time.monotonic() + 20)
        echo(stream, b"hello")
        return stream

    def close(each):
        for one in each:
            one.close()

    streams = [talk(tunnel) for tunnel in tunnels]
    if then == "exit":
        close(streams)
    if then == "wait":
        print("up", flush=True)
        time.sleep(60)
    elif then == "fork":
        child = os.fork()
        if child == 0:
            close(streams)
            close(tunnels)
            close([talk(tunnel) for tunnel in tunnels])  # with a login or an ssh of its own
            close(tunnels)
            close(logins)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for stream in streams:
            echo(stream, b"again")
        close(streams)
        close(tunnels)
        close(logins)
    print("done", flush=True)
"""


def client(server: SshServer, port: int, then: str) -> subprocess.Popen[str]:
    """A process with a stream through a tunnel of each kind."""
    words = [server.target, str(server.identity_file), str(server.known_hosts), str(port), then]
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(_CLIENT), *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_client_that_is_killed_leaves_no_ssh_and_no_socket(ssh_server: SshServer, echo: Echo) -> None:
    with client(ssh_server, echo.port, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert len(ssh_pids(ssh_server)) == 1
        process.kill()
    wait_until(lambda: not ssh_pids(ssh_server), "ssh has ended")  # files and other processes: no_leaks


@pytest.mark.parametrize("then", ["exit", "fork"])
def test_an_exit_without_close_leaves_nothing_and_a_forked_child_leaves_its_parents_tunnels_alone(
    ssh_server: SshServer, echo: Echo, then: str
) -> None:
    with client(ssh_server, echo.port, then) as process:
        output, errors = process.communicate(timeout=60)
    assert (output, errors, process.returncode) == ("done\n", "", 0)
    assert ssh_pids(ssh_server) == []
