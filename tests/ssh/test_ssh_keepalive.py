"""A host that has fallen silent is noticed while nobody waits for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from dialling import Echo, Waiting, talk
from ssh_server import SshServer

from remote_env.errors import ConfigError, ConnectionLost
from remote_env.ssh import SshConnection
from remote_env.ssh.link import Link
from remote_env.ssh.tunnel import KINDS, open_tunnel
from remote_env.ssh.ways import SocketWay
from remote_env.testing import FaultProxy


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


# How often is asked


def test_arguments_hold_for_every_login_on_the_way(pair: SshServer) -> None:
    files = {"config_file": str(pair.config), "known_hosts_file": str(pair.known_hosts)}
    pair.config.write_text("Host testbox\n  ServerAliveInterval 7\n  ServerAliveCountMax 2\n" + pair.config.read_text())
    configured = SshConnection("testbox", **files).login  # type: ignore[arg-type]
    asked = SshConnection("testbox", ssh_keepalive_s=2.5, ssh_keepalive_count=0, **files).login  # type: ignore[arg-type]
    assert (configured.alive_interval_s, configured.alive_count) == (7, 2)
    assert configured.via is not None
    assert (configured.via.alive_interval_s, configured.via.alive_count) == (15, 3)
    assert asked.via is not None
    for login in (asked, asked.via):
        assert (login.alive_interval_s, login.alive_count) == (2.5, 0)
        words = login.ssh_arguments()
        assert {"ServerAliveInterval=3", "ServerAliveCountMax=0"} <= set(words)  # OpenSSH takes whole seconds


@pytest.fixture
def pair() -> Iterator[SshServer]:
    with SshServer() as jump, SshServer(jump=jump) as server:
        yield server


@pytest.mark.parametrize(
    "arguments",
    [
        {"ssh_keepalive_s": 0.5},
        {"ssh_keepalive_s": -1},
        {"ssh_keepalive_s": 3601},
        {"ssh_keepalive_s": float("nan")},
        {"ssh_keepalive_s": "15"},
        {"ssh_keepalive_s": True},
        {"ssh_keepalive_count": 1001},
        {"ssh_keepalive_count": -1},
        {"ssh_keepalive_count": 1.5},
        {"ssh_keepalive_count": float("inf")},
        {"ssh_keepalive_count": "many"},
    ],
)
def test_what_is_not_allowed_is_refused_with_what_is(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(arguments))}=.*allowed are .*0 and 1 to \d+"):
        SshConnection("box", config_file=os.devnull, **arguments)


def test_a_silent_link_ends_every_receive_that_waits_on_it_and_says_why(ssh_server: SshServer) -> None:
    with FaultProxy((ssh_server.address, ssh_server.port)) as proxy, contextlib.ExitStack() as stack:
        echo = stack.enter_context(contextlib.closing(Echo()))
        name, known = f"127.0.0.1:{proxy.address[1]}", ssh_server.root / "known_by_the_proxys_port"
        known.write_text(ssh_server.known_hosts_line().replace(f":{ssh_server.port} ", f":{proxy.address[1]} "))
        login = {**ssh_server.login, "known_hosts_file": str(known), "ssh_keepalive_s": 1, "ssh_keepalive_count": 2}
        waiting = []
        for kind in KINDS:
            connection = stack.enter_context(SshConnection(f"ssh://{ssh_server.user}@{name}", **login))
            tunnel = stack.enter_context(contextlib.closing(open_tunnel(kind, connection)))
            stream = stack.enter_context(contextlib.closing(tunnel.dial(echo.port, soon())))
            talk(stream)
            waiting.append(Waiting(stream))
        proxy.pause()
        ends = [each.end() for each in waiting]
        by_channel, by_openssh, by_sshtunnel = ends
        for end in (by_channel, by_sshtunnel):
            assert re.search(r"ConnectionLost: .* broke: nothing came from it for 2 s \(ServerAliveInterval", end)
        assert re.search("ConnectionLost: .* ended; it said: .*not responding", by_openssh)


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
