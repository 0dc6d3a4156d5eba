"""A host that has fallen silent is noticed while nobody waits for it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from ssh_server import SshServer

from remote_env.errors import ConnectionLost
from remote_env.ssh import SshConnection
from remote_env.ssh.link import Link
from remote_env.ssh.ways import SocketWay


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = soon()
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connect(server: SshServer, interval_s: float, count: int) -> SshConnection:
    """A login to `testbox` that watches the host as closely as said."""
    config = {"config_file": str(server.config), "known_hosts_file": str(server.known_hosts)}
    login = SshConnection("testbox", **config).login  # type: ignore[arg-type]
    return SshConnection(replace(login, alive_interval_s=interval_s, alive_count=count))


@pytest.mark.parametrize("stopped", ["direct", "jump", "behind the jump"])
def test_a_host_that_stops_answering_is_given_up(stopped: str) -> None:
    threads = set(threading.enumerate())
    with SshServer() as jump, SshServer(jump=None if stopped == "direct" else jump) as server:
        with connect(server, 0.3, 2) as connection:
            stream = connection.open_port(server.port, soon())
            stream.recv_exactly_into(memoryview(bytearray(4)), soon())
            begun = time.monotonic()
            (jump if stopped == "jump" else server).signal_connections(signal.SIGSTOP)
            wait_until(lambda: not connection.is_open)
            assert time.monotonic() - begun > 0.5
            with pytest.raises(ConnectionLost, match=r"nothing came from it for \d+ s \(ServerAliveInterval"):
                stream.recv_exactly_into(memoryview(bytearray(1000)), soon())
            stream.close()
        assert set(threading.enumerate()) == threads


@pytest.mark.parametrize("through_a_jump", [False, True])
def test_an_idle_host_that_answers_is_kept(through_a_jump: bool) -> None:
    with (
        SshServer() as jump,
        SshServer(extra_config="LogLevel DEBUG1", jump=jump if through_a_jump else None) as server,
        connect(server, 0.3, 1) as connection,
    ):
        wait_until(lambda: server.log().count("rtype keepalive@openssh.com want_reply 1") >= 3)
        assert connection.run("echo on", deadline=soon()).stdout == b"on\n"


def test_questions_do_not_disturb_a_busy_connection(ssh_server: SshServer) -> None:
    with connect(ssh_server, 0.3, 2) as connection:
        done = connection.run("cat; sleep 1; echo end", stdin=bytes(2**20), deadline=soon(20))
        assert done.stdout == bytes(2**20) + b"end\n"
        assert connection.is_answering(soon())


@pytest.fixture
def link() -> Iterator[Link]:
    ours, theirs = socket.socketpair()
    link = Link(SocketWay(ours))
    yield link
    link.close()
    theirs.close()


def test_a_client_that_was_itself_stopped_asks_before_it_gives_up(link: Link) -> None:
    link.watch_silence(0.1, 2)
    link._checked, link._heard_at = link._received, time.monotonic() - 100.0
    link._check()
    assert link.trouble == ""
    assert link.is_question_due()
    assert not link.is_question_due()

    def gives_up() -> bool:
        link._check()
        return bool(link.trouble)

    wait_until(gives_up)


def test_0_asks_nothing(link: Link) -> None:
    link.watch_silence(0, 3)
    link._heard_at = time.monotonic() - 100.0
    assert not link.is_question_due()


def test_a_count_of_0_asks_and_never_gives_up(link: Link) -> None:
    link.watch_silence(0.1, 0)
    link._checked, link._heard_at = link._received, time.monotonic() - 100.0
    assert link.is_question_due()
    wait_until(link.is_question_due)
    link._check()
    assert link.trouble == ""
