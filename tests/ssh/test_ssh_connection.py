from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ssh_server import SshServer, make_key

from remote_env.errors import AuthError, ConnectError, ConnectionLost, DeadlineExceeded, HostKeyError
from remote_env.ssh import SshConnection


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def open_fds() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


def test_a_login_runs_commands_and_leaves_no_thread_or_descriptor(ssh_server: SshServer) -> None:
    threads, fds = set(threading.enumerate()), open_fds()
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        assert connection.description == f"{ssh_server.user}@127.0.0.1:{ssh_server.port}"
        done = connection.run("echo out; echo err >&2; exit 3", deadline=soon())
        assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert not connection.is_open
    assert set(threading.enumerate()) == threads
    assert open_fds() == fds


def test_an_alias_of_the_configuration_is_enough(ssh_server: SshServer) -> None:
    login = {**ssh_server.login, "identity_file": None}
    with SshConnection("testbox", **login) as connection:
        assert connection.run("echo $XDG_CACHE_HOME", deadline=soon()).stdout.strip() == os.fsencode(ssh_server.cache)


def test_standard_input_larger_than_any_window_comes_back_whole(ssh_server: SshServer) -> None:
    data = os.urandom(2**20) * 12
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        assert connection.run("cat", stdin=data, deadline=soon(30)).stdout == data


def test_a_command_may_end_without_reading_its_input(ssh_server: SshServer) -> None:
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        assert connection.run("exit 4", stdin=bytes(8 * 2**20), deadline=soon()).returncode == 4


def test_a_command_past_its_deadline_leaves_the_connection_usable(ssh_server: SshServer) -> None:
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            connection.run("sleep 2", deadline=soon(0.3))
        assert time.monotonic() - begun < 1.3
        assert connection.run("echo on", deadline=soon()).stdout == b"on\n"


def test_an_unknown_host_key_is_shown_with_the_command_to_accept_it(ssh_server: SshServer, tmp_path: Path) -> None:
    login = {**ssh_server.login, "known_hosts_file": str(tmp_path / "known_hosts")}
    with pytest.raises(HostKeyError) as caught:
        SshConnection(ssh_server.target, **login).connect(soon())
    assert "SHA256:" in caught.value.message
    place = f"-o UserKnownHostsFile={tmp_path}/known_hosts {ssh_server.user}@127.0.0.1"
    assert f"ssh -p {ssh_server.port} {place} true" in caught.value.message
    assert not (tmp_path / "known_hosts").exists()


def test_a_new_host_key_is_accepted_once_asked_for_and_known_from_then_on(
    ssh_server: SshServer, tmp_path: Path
) -> None:
    login = {**ssh_server.login, "known_hosts_file": str(tmp_path / "known_hosts")}
    with SshConnection(ssh_server.target, accept_new_host_key=True, **login):
        pass
    with SshConnection(ssh_server.target, **login) as connection:
        assert connection.is_open


def test_a_changed_host_key_is_refused_even_when_new_ones_are_accepted(ssh_server: SshServer, tmp_path: Path) -> None:
    make_key(tmp_path / "other", "ed25519")
    kind, key, _ = (tmp_path / "other.pub").read_text().split()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{ssh_server.port} {kind} {key}\n")
    login = {**ssh_server.login, "known_hosts_file": str(tmp_path / "known_hosts")}
    with pytest.raises(HostKeyError, match="HAS CHANGED") as caught:
        SshConnection(ssh_server.target, accept_new_host_key=True, **login).connect(soon())
    assert caught.value.message.count("SHA256:") == 2


@pytest.mark.parametrize("known", ["host_ed25519", "host_ecdsa"])
def test_the_host_shows_the_key_that_is_known(known: str) -> None:
    with SshServer(ecdsa_host_key=True) as server:
        server.known_hosts.write_text(server.known_hosts_line(known))
        with SshConnection(server.target, **server.login) as connection:
            assert connection.is_open


def test_a_wrong_key_is_an_auth_error_that_lists_what_was_tried(
    ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    make_key(tmp_path / "stranger", "ed25519")
    login = {**ssh_server.login, "identity_file": str(tmp_path / "stranger")}
    threads = set(threading.enumerate())
    with pytest.raises(AuthError, match=r"stranger: refused.*SSH agent: not running"):
        SshConnection(ssh_server.target, **login).connect(soon())
    assert set(threading.enumerate()) == threads


def test_a_missing_key_file_is_named(ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    login = {**ssh_server.login, "identity_file": "/no/such/key"}
    with pytest.raises(AuthError, match="/no/such/key: does not exist"):
        SshConnection(ssh_server.target, **login).connect(soon())


def test_an_unknown_host_and_a_refused_port_are_told_apart(ssh_server: SshServer) -> None:
    with pytest.raises(ConnectError, match="is unknown"):
        SshConnection("no-such-host.invalid", **ssh_server.login).connect(soon())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(ConnectError, match=rf"{port} refused"):
            SshConnection("127.0.0.1", ssh_port=port, **ssh_server.login).connect(soon())


def test_a_port_that_never_speaks_ends_at_the_deadline(ssh_server: SshServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        threads, fds, begun = set(threading.enumerate()), open_fds(), time.monotonic()
        connection = SshConnection("127.0.0.1", ssh_port=silent.getsockname()[1], **ssh_server.login)
        with pytest.raises(ConnectError, match="said nothing"):
            connection.connect(soon(0.5))
        assert time.monotonic() - begun < 1.5
        assert set(threading.enumerate()) == threads
        assert open_fds() == fds


def _answer(listener: socket.socket, text: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(100)
        connection.sendall(text)


def test_a_port_that_speaks_something_else_is_shown(ssh_server: SshServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web, ThreadPoolExecutor(1) as pool:
        answering = pool.submit(_answer, web, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection = SshConnection("127.0.0.1", ssh_port=web.getsockname()[1], **ssh_server.login)
        with pytest.raises(ConnectError, match=r"no SSH server.*HTTP/1\.1 400"):
            connection.connect(soon(5))
        answering.result(5)


def test_many_simultaneous_logins_all_succeed() -> None:
    with SshServer(extra_config="MaxStartups 2:60:4") as server, ThreadPoolExecutor(8) as pool:
        connections = [SshConnection(server.target, **server.login) for _ in range(8)]
        try:
            list(pool.map(lambda connection: connection.connect(soon(30)), connections))
            assert all(connection.is_open for connection in connections)
        finally:
            for connection in connections:
                connection.close()
        assert "MaxStartups" in server.log()


def _use_and_close(connection: SshConnection, answer: multiprocessing.connection.Connection) -> None:
    try:
        connection.run(":", deadline=soon())
    except ConnectionLost as error:
        answer.send(error.message)
    connection.close()
    connection.connect(soon())  # a login of the child's own
    answer.send(connection.run("echo child", deadline=soon()).stdout)
    connection.close()


def test_a_forked_child_cannot_touch_the_parents_login(ssh_server: SshServer) -> None:
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        stream = connection.open_port(ssh_server.port, soon())
        mine, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_use_and_close, args=(connection, theirs))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert "parent process" in mine.recv()
        assert mine.recv() == b"child\n"
        view = memoryview(bytearray(4))
        stream.recv_exactly_into(view, soon())
        assert bytes(view) == b"SSH-"  # the port that the channel leads to is sshd's own
        assert connection.run("echo on", deadline=soon()).stdout == b"on\n"
        stream.close()


def test_a_stopped_sshd_costs_no_more_than_the_deadline() -> None:
    with SshServer() as server:
        connection = SshConnection(server.target, **server.login)
        connection.connect(soon())
        stream = connection.open_port(server.port, soon())
        server.signal_connections(signal.SIGSTOP)
        for call in (
            lambda end: stream.recv_exactly_into(memoryview(bytearray(1000)), end),
            lambda end: connection.run("true", deadline=end),
            lambda end: stream.send_all([bytes(64 * 2**20)], end),
        ):
            begun = time.monotonic()
            with pytest.raises((DeadlineExceeded, ConnectionLost)):
                call(soon(0.25))
            assert time.monotonic() - begun < 1.5
        begun = time.monotonic()
        stream.close()
        connection.close()
        assert time.monotonic() - begun < 1.5


def test_a_lost_connection_is_told(ssh_server: SshServer) -> None:
    with SshServer() as server, SshConnection(server.target, **server.login) as connection:
        stream = connection.open_port(server.port, soon())
        server.signal_connections(signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            stream.recv_exactly_into(memoryview(bytearray(1000)), soon())
        with pytest.raises(ConnectionLost):
            connection.run("true", deadline=soon())


def test_a_port_where_nothing_listens_is_a_connect_error(ssh_server: SshServer) -> None:
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectError, match="does anything listen there"):
                connection.open_port(closed.getsockname()[1], soon())
        assert connection.is_open


def test_forbidden_forwarding_is_named() -> None:
    with (
        SshServer(extra_config="AllowTcpForwarding no") as server,
        SshConnection(server.target, **server.login) as connection,
        pytest.raises(ConnectError, match="AllowTcpForwarding"),
    ):
        connection.open_port(server.port, soon())


def test_a_lost_login_can_be_made_again_by_several_threads_at_once() -> None:
    with (
        SshServer() as server,
        ThreadPoolExecutor(4) as pool,
        SshConnection(server.target, **server.login) as connection,
    ):
        server.signal_connections(signal.SIGKILL)
        with pytest.raises(ConnectionLost):
            connection.run("true", deadline=soon())
        list(pool.map(lambda _: connection.connect(soon()), range(4)))
        assert connection.run("echo on", deadline=soon()).stdout == b"on\n"
        assert server.log().count("Accepted publickey") == 2
