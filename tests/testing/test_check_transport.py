from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from leak_check import wait_until
from ssh_server import SshServer

from remote_env.errors import ConnectionLost, DeadlineExceeded
from remote_env.ssh import SshConnection
from remote_env.testing import CheckFailed, FaultProxy, check_transport, transport_check
from remote_env.testing.checks import run_rules
from remote_env.transport import SocketOptions, SocketTransport, Transport, connect_tcp, connect_unix, transport_pair


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


class Meeting:
    """A listener, and pairs of what `connect` makes to its port with what it accepts."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self.address = self._listener.getsockname()

    def pair(self, connect: Callable[[], Transport]) -> tuple[Transport, Transport]:
        end = connect()
        return end, SocketTransport(self._listener.accept()[0])

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def test_socket_pairs_pass():
    check_transport(transport_pair)


def test_a_busy_polling_socket_passes():
    def connect() -> tuple[Transport, Transport]:
        left, right = socket.socketpair()
        return SocketTransport(left, SocketOptions(busy_poll_s=0.01)), SocketTransport(right)

    check_transport(connect)


def test_tcp_passes():
    with Meeting() as meeting:
        check_transport(lambda: meeting.pair(lambda: connect_tcp(*meeting.address, soon())))


@pytest.mark.fault
@pytest.mark.parametrize("reset", [False, True])
def test_tcp_through_a_proxy_that_cuts_passes(reset):
    with Meeting() as meeting, FaultProxy(meeting.address) as proxy:
        host, port = proxy.address  # type: ignore[misc]
        check_transport(
            lambda: meeting.pair(lambda: connect_tcp(str(host), int(port), soon())),
            break_link=lambda: proxy.cut(reset=reset),
        )


@pytest.mark.fault
def test_a_unix_socket_through_a_slow_proxy_passes(tmp_path):
    path = str(tmp_path / "socket")
    with Meeting() as meeting, FaultProxy(meeting.address, listen=path) as proxy:
        proxy.delay(0.002, jitter=0.003)
        check_transport(lambda: meeting.pair(lambda: connect_unix(path, soon())), break_link=proxy.cut)


@pytest.mark.fault
def test_an_ssh_channel_passes(ssh_server: SshServer):
    with Meeting() as meeting, FaultProxy(meeting.address) as proxy, contextlib.ExitStack() as stack:
        connection = stack.enter_context(SshConnection(ssh_server.target, **ssh_server.login))

        def connect() -> Transport:
            nonlocal connection
            try:
                return connection.open_port(int(proxy.address[1]), soon())
            except ConnectionLost:  # a send that stayed stuck beyond its deadline has cost the whole login
                connection = stack.enter_context(SshConnection(ssh_server.target, **ssh_server.login))
                return connection.open_port(int(proxy.address[1]), soon())

        check_transport(lambda: meeting.pair(connect), break_link=lambda: proxy.cut(reset=True))


# Transports that break one promise each: the check says which.


class Wrong(SocketTransport):
    """A transport with one thing wrong."""

    def __init__(self, sock: socket.socket, fault: str) -> None:
        super().__init__(sock)
        self._fault = fault

    def send_all(self, buffers: Any, deadline: float) -> None:
        if self._fault == "order":
            buffers = list(buffers)[::-1]
        try:
            super().send_all(buffers, deadline)
        except DeadlineExceeded:
            if self._fault != "quiet send":
                raise
        except ConnectionLost as error:
            if self._fault == "oserror":
                raise BrokenPipeError from error
            raise

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        if self._fault == "zero at the end":
            try:
                return super().recv_some_into(view, deadline)
            except ConnectionLost:
                return 0
        if self._fault == "timeout":
            try:
                return super().recv_some_into(view, deadline)
            except DeadlineExceeded as error:
                raise TimeoutError from error
        count = super().recv_some_into(view, deadline)
        return count + (self._fault == "miscounts")

    def has_bytes(self) -> bool:
        return self._fault == "always full" or super().has_bytes()

    def close(self) -> None:
        was_closed = self.fileno() < 0
        super().close()
        if self._fault == "close" and was_closed:
            raise ValueError("closed already")


@pytest.mark.parametrize(
    ("fault", "rule", "found"),
    [
        ("order", "send_all sends every byte", "arrived changed"),
        ("miscounts", "send_all sends every byte", "received changed"),
        ("timeout", "A receive of which nothing comes raises DeadlineExceeded", "raised TimeoutError"),
        ("always full", "has_bytes says whether", "before any was sent"),
        ("quiet send", "send_all raises DeadlineExceeded", "raised no DeadlineExceeded"),
        ("zero at the end", "What the peer sent before it closed", "raised no ConnectionLost"),
        ("oserror", "What the peer sent before it closed", "raised BrokenPipeError"),
        ("close", "Close ends both directions", "ValueError: closed already"),
    ],
)
def test_a_broken_promise_is_named(monkeypatch, fault, rule, found):
    ends: list[SocketTransport] = []
    monkeypatch.setattr("remote_env.testing.transport_check.PATIENCE_S", 2.0)
    monkeypatch.setattr("remote_env.testing.transport_check._soon.__defaults__", (1.0,))

    def connect() -> tuple[Transport, Transport]:
        left, right = socket.socketpair()
        ends.extend((SocketTransport(right), Wrong(left, fault)))
        return ends[-1], ends[-2]

    rules = [each for each in transport_check._RULES if (each.__doc__ or "").startswith(rule)]
    with pytest.raises(CheckFailed) as caught:
        run_rules(rules, connect)
    assert caught.value.rule.startswith(rule)
    assert found in str(caught.value)
    for end in ends:
        SocketTransport.close(end)


def test_a_transport_that_hangs_is_given_up(monkeypatch):
    blocked, free = os.pipe()

    class Hanging(SocketTransport):
        def recv_some_into(self, view: memoryview, deadline: float) -> int:
            os.read(blocked, 1)
            raise ConnectionLost("after all")

    def connect() -> tuple[Transport, Transport]:
        left, right = socket.socketpair()
        return Hanging(left), SocketTransport(right)

    monkeypatch.setattr("remote_env.testing.checks.run_rules.__kwdefaults__", {"timeout_s": 0.2})
    with pytest.raises(CheckFailed, match=r"nothing came back within 0\.2 s"):
        check_transport(connect)
    os.close(free)  # which ends the rule's thread
    wait_until(lambda: not [each for each in threading.enumerate() if each.name.startswith("rule")], "the rule's end")
    os.close(blocked)
