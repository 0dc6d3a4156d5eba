"""Logins through jump hosts, each a real sshd."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from dropped_link import Cable, cable_to_a_host
from ssh_server import SshServer, make_key

from remote_env.errors import AuthError, ConnectError, ConnectionLost, DeadlineExceeded, HostKeyError
from remote_env.ssh import SshConnection


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def options(server: SshServer) -> dict[str, Any]:
    """Arguments that leave everything but the known keys to the server's client configuration."""
    return {"known_hosts_file": str(server.known_hosts), "config_file": str(server.config)}


def open_fds() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


@pytest.fixture(scope="module")
def jump() -> Iterator[SshServer]:
    with SshServer() as server:
        yield server


@pytest.fixture(scope="module")
def behind(jump: SshServer) -> Iterator[SshServer]:
    """An sshd whose alias `testbox` is reached through `jump`."""
    with SshServer(jump=jump) as server:
        yield server


@pytest.fixture
def pair() -> Iterator[tuple[SshServer, SshServer]]:
    """A jump host and a host behind it, which a test may stop or kill."""
    with SshServer() as jump, SshServer(jump=jump) as behind:
        yield jump, behind


def test_a_login_through_a_jump_host_works_and_leaves_nothing(jump: SshServer, behind: SshServer) -> None:
    threads, fds, logins = set(threading.enumerate()), open_fds(), jump.log().count("Accepted publickey")
    data = os.urandom(2**20) * 12
    with SshConnection("testbox", **options(behind)) as connection:
        assert jump.log().count("Accepted publickey") == logins + 1
        assert connection.run("cat", stdin=data, deadline=soon(30)).stdout == data
        stream = connection.open_port(behind.port, soon())
        view = memoryview(bytearray(4))
        stream.recv_exactly_into(view, soon())
        assert bytes(view) == b"SSH-"
        stream.close()
        assert connection.is_answering(soon())
    assert not connection.is_open
    assert set(threading.enumerate()) == threads
    assert open_fds() == fds


def test_a_chain_of_jump_hosts_may_be_an_argument(
    jump: SshServer, behind: SshServer, ssh_server: SshServer, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(behind.known_hosts.read_text() + ssh_server.known_hosts.read_text())
    login = {**ssh_server.login, "known_hosts_file": str(known), "config_file": str(behind.config)}
    for via in ("jumpbox,testbox", ["testbox"]):  # the first hop's own ProxyJump counts
        seen = [server.log().count("Accepted publickey") for server in (jump, behind)]
        with SshConnection(ssh_server.target, via=via, **login) as connection:
            assert connection.run("echo far", deadline=soon()).stdout == b"far\n"
        assert [server.log().count("Accepted publickey") for server in (jump, behind)] == [n + 1 for n in seen]


def test_via_none_goes_directly(jump: SshServer, behind: SshServer) -> None:
    logins = jump.log().count("Accepted publickey")
    with SshConnection("testbox", via="none", **options(behind)) as connection:
        assert connection.is_open
    assert jump.log().count("Accepted publickey") == logins


def test_names_are_looked_up_by_the_jump_host(behind: SshServer, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(behind.config.read_text().replace("HostName 127.0.0.1", "HostName no-such-host.invalid", 1))
    with pytest.raises(ConnectError, match=r"^via jumpbox: jumpbox refused .*no-such-host\.invalid"):
        SshConnection("testbox", config_file=str(config), known_hosts_file=str(behind.known_hosts)).connect(soon())


def _without(line: str, server: SshServer, tmp_path: Path) -> str:
    path = tmp_path / "known_hosts"
    path.write_text(server.known_hosts.read_text().replace(line, ""))
    return str(path)


def test_the_host_key_of_every_hop_is_checked(jump: SshServer, behind: SshServer, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    known = _without(jump.known_hosts_line(), behind, tmp_path)
    with pytest.raises(HostKeyError, match=rf"^via jumpbox: the host key of jumpbox .*{jump.port}"):
        SshConnection("testbox", config_file=str(behind.config), known_hosts_file=known).connect(soon())
    known = _without(behind.known_hosts_line(), behind, tmp_path)
    with pytest.raises(HostKeyError, match=r"^the host key of testbox .*accept it by running: ssh -J root@127"):
        SshConnection("testbox", config_file=str(behind.config), known_hosts_file=known).connect(soon())
    Path(known).write_text("")
    login = {"config_file": str(behind.config), "known_hosts_file": known}
    with SshConnection("testbox", accept_new_host_key=True, **login) as connection:  # type: ignore[arg-type]
        assert connection.is_open
    assert Path(known).read_text() == jump.known_hosts_line() + behind.known_hosts_line()
    assert set(threading.enumerate()) == threads


def test_a_jump_host_that_refuses_us_is_named(
    behind: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    make_key(tmp_path / "stranger", "ed25519")
    config = tmp_path / "config"
    block, jump_block = behind.config.read_text().split("Host jumpbox")
    jump_block = "\n".join(line for line in jump_block.splitlines() if "IdentityFile" not in line)
    config.write_text(f"{block}Host jumpbox{jump_block}\n  IdentityFile {tmp_path}/stranger\n")
    connection = SshConnection("testbox", config_file=str(config), known_hosts_file=str(behind.known_hosts))
    with pytest.raises(AuthError, match=r"^via jumpbox: .*@jumpbox:\d+ refused the login.*stranger: refused"):
        connection.connect(soon())


def test_a_jump_host_that_is_not_there_is_named(behind: SshServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        via = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ConnectError, match=rf"^via 127\.0\.0\.1: {via} refused the connection"):
            SshConnection(behind.target, via=via, **behind.login).connect(soon())


@pytest.mark.parametrize("line", ["AllowTcpForwarding no", "PermitOpen 127.0.0.1:1"])
def test_a_jump_host_that_forwards_nowhere_is_named(behind: SshServer, line: str, tmp_path: Path) -> None:
    with SshServer(extra_config=line) as closed:
        known = tmp_path / "known_hosts"
        known.write_text(behind.known_hosts_line() + closed.known_hosts_line())
        login = {**behind.login, "known_hosts_file": str(known), "config_file": str(closed.config)}
        forbids = (
            rf"^via testbox: sshd on testbox forbids opening a channel to 127\.0\.0\.1:{behind.port}; .*PermitOpen"
        )
        with pytest.raises(ConnectError, match=forbids):
            SshConnection(behind.target, via="testbox", **login).connect(soon())


def test_a_jump_host_that_runs_no_commands_will_do() -> None:
    with (
        SshServer(extra_config="MaxSessions 0\nPermitTTY no") as jump,
        SshServer(jump=jump) as behind,
        SshConnection("testbox", **options(behind)) as connection,
    ):
        assert connection.run("echo far", deadline=soon()).stdout == b"far\n"


@pytest.mark.parametrize("stopped", ["jump", "host"])
def test_a_stopped_hop_costs_no_more_than_the_deadline(pair: tuple[SshServer, SshServer], stopped: str) -> None:
    jump, behind = pair
    threads = set(threading.enumerate())
    connection = SshConnection("testbox", **options(behind))
    connection.connect(soon())
    stream = connection.open_port(behind.port, soon())
    (jump if stopped == "jump" else behind).signal_connections(signal.SIGSTOP)
    for call in (
        lambda end: stream.recv_exactly_into(memoryview(bytearray(1000)), end),
        lambda end: connection.run("true", deadline=end),
        lambda end: connection.open_port(behind.port, end),
        lambda end: stream.send_all([bytes(64 * 2**20)], end),
    ):
        begun = time.monotonic()
        with pytest.raises((DeadlineExceeded, ConnectionLost)):
            call(soon(0.25))
        assert time.monotonic() - begun < 2.0
    begun = time.monotonic()
    stream.close()
    connection.close()
    assert time.monotonic() - begun < 2.0
    assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("stopped", ["jump", "host"])
def test_sending_to_a_stopped_hop_ends_at_the_deadline(pair: tuple[SshServer, SshServer], stopped: str) -> None:
    jump, behind = pair
    with SshConnection("testbox", **options(behind)) as connection:
        stream = connection.open_port(behind.port, soon())
        (jump if stopped == "jump" else behind).signal_connections(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises((DeadlineExceeded, ConnectionLost)):
            stream.send_all([bytes(64 * 2**20)], soon(0.25))
        stream.close()
        connection.close()
        assert time.monotonic() - begun < 3.0


@pytest.mark.parametrize("stopped", ["jump", "host"])
def test_a_login_through_a_silent_hop_ends_at_the_deadline(pair: tuple[SshServer, SshServer], stopped: str) -> None:
    jump, behind = pair
    silent = jump if stopped == "jump" else behind
    threads, fds = set(threading.enumerate()), open_fds()
    os.kill(silent.pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(ConnectError, match=r"^via jumpbox: " if stopped == "jump" else "said nothing in time"):
        SshConnection("testbox", **options(behind)).connect(soon(1.0))
    assert time.monotonic() - begun < 2.5
    os.kill(silent.pid, signal.SIGCONT)
    assert set(threading.enumerate()) == threads
    assert open_fds() == fds


@pytest.mark.parametrize("dead", ["jump", "host"])
def test_a_lost_hop_is_told_and_the_way_is_made_anew(pair: tuple[SshServer, SshServer], dead: str) -> None:
    jump, behind = pair
    with SshConnection("testbox", **options(behind)) as connection:
        stream = connection.open_port(behind.port, soon())
        (jump if dead == "jump" else behind).signal_connections(signal.SIGKILL)
        told = "the connection to the jump host jumpbox has ended" if dead == "jump" else "broke"
        with pytest.raises(ConnectionLost, match=told):
            stream.recv_exactly_into(memoryview(bytearray(1000)), soon())
        with pytest.raises(ConnectionLost):
            connection.run("true", deadline=soon())
        connection.connect(soon())
        assert connection.run("echo on", deadline=soon()).stdout == b"on\n"


def _end_in_mid_login(victim: SshServer, said: str, until: float) -> None:
    while said not in victim.log() and time.monotonic() < until:
        time.sleep(0.001)
    victim.signal_connections(signal.SIGKILL)


@pytest.mark.fault
@pytest.mark.parametrize("moment", ["Connection from", "SSH2_MSG_NEWKEYS received", "Accepted publickey"])
@pytest.mark.parametrize("dead", ["jump", "host"])
def test_a_hop_that_dies_in_mid_login_is_told(dead: str, moment: str) -> None:
    talkative = "LogLevel DEBUG3"
    with SshServer(extra_config=talkative) as jump, SshServer(extra_config=talkative, jump=jump) as behind:
        threads, fds = set(threading.enumerate()), open_fds()
        victim = jump if dead == "jump" else behind
        killer = threading.Thread(target=_end_in_mid_login, args=(victim, moment, soon()))
        killer.start()
        connection = SshConnection("testbox", **options(behind))
        with contextlib.suppress(ConnectError, ConnectionLost):  # or the login was quicker, or made a second time
            connection.connect(soon(5.0))
        killer.join(10)
        connection.close()
        with SshConnection("testbox", **options(behind)) as again:
            assert again.run("echo on", deadline=soon()).stdout == b"on\n"
        assert set(threading.enumerate()) == threads
        assert open_fds() == fds


def _use_and_close(connection: SshConnection, answer: multiprocessing.connection.Connection) -> None:
    connection.close()
    connection.connect(soon())  # logins of the child's own
    answer.send(connection.run("echo child", deadline=soon()).stdout)
    connection.close()


def test_a_forked_child_leaves_every_hop_alone(behind: SshServer) -> None:
    with SshConnection("testbox", **options(behind)) as connection:
        mine, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_use_and_close, args=(connection, theirs))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert mine.recv() == b"child\n"
        assert connection.run("echo on", deadline=soon()).stdout == b"on\n"


def test_32_simultaneous_logins_get_through_a_jump_host_that_drops_some() -> None:
    few = "MaxStartups 3:50:10"
    with (
        SshServer(extra_config=few) as jump,
        SshServer(extra_config=few, jump=jump) as behind,
        ThreadPoolExecutor(32) as pool,
    ):
        connections = [SshConnection("testbox", **options(behind)) for _ in range(32)]
        try:
            list(pool.map(lambda connection: connection.connect(soon(60)), connections))
            assert all(connection.is_open for connection in connections)
        finally:
            list(pool.map(SshConnection.close, connections))
        assert "MaxStartups" in jump.log()


def test_the_ssh_program_makes_the_same_login(jump: SshServer, behind: SshServer) -> None:
    login = SshConnection("testbox", **options(behind)).login
    logins = jump.log().count("Accepted publickey")
    command = ["ssh", *login.ssh_arguments(), "echo far"]
    done = subprocess.run(command, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"far\n", b"")
    assert jump.log().count("Accepted publickey") == logins + 1
    assert login.ssh_arguments()[-1] == f"{behind.user}@127.0.0.1"


def test_the_ssh_program_checks_the_key_of_the_jump_host_too(
    jump: SshServer, behind: SshServer, tmp_path: Path
) -> None:
    known = _without(jump.known_hosts_line(), behind, tmp_path)
    login = SshConnection("testbox", config_file=str(behind.config), known_hosts_file=known).login
    command = ["ssh", *login.ssh_arguments(), "echo far"]
    done = subprocess.run(command, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode == 255
    assert b"Host key verification failed" in done.stderr


@pytest.fixture
def island() -> Iterator[Cable]:
    with cable_to_a_host() as cable:
        yield cable


def test_a_host_that_only_the_jump_host_can_reach(island: Cable) -> None:
    with (
        SshServer(address=island.address, prefix=island.enter) as jump,
        SshServer(prefix=island.enter, jump=jump) as behind,  # on the island's own 127.0.0.1
    ):
        with pytest.raises(ConnectError, match="refused the connection"):
            SshConnection("testbox", via="none", **options(behind)).connect(soon())
        with SshConnection("testbox", **options(behind)) as connection:
            assert connection.run("echo $SSH_CONNECTION", deadline=soon()).stdout.startswith(b"127.0.0.1 ")
