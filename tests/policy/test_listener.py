"""The listener on real sockets: who speaks what, who is dropped and why."""

from __future__ import annotations

import contextlib
import pickle
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from leak_check import wait_until
from server_process import read_to_end

from remote_env.errors import ConfigError
from remote_env.policy.server import connections as limits
from remote_env.policy.server.connections import Connections
from remote_env.policy.server.listener import Listener
from remote_env.policy.server.service import ServeContext
from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, parse_link
from remote_env.protocol.monitoring import answer_http

LENGTH_AND_PICKLE = struct.pack(">I", 100) + pickle.dumps([1])
UPGRADE = b"GET /infer HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class Recorder:
    """Stands for a dialect's module: notes the first bytes, says hello, and holds the connection until its end."""

    AUTHENTICATES = True

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.raises: Exception | None = None

    def serve(self, sock: socket.socket, service: Any, context: ServeContext) -> None:
        assert sock.gettimeout() is None
        self.heard.append(sock.recv(4))
        if self.raises:
            raise self.raises
        sock.sendall(b"hello")
        while sock.recv(4096):
            pass


class Port:
    """A listener that serves, and its log."""

    def __init__(self, *names: str, max_clients: int = 4, first_bytes_timeout_s: float = 8.0) -> None:
        self.lines: list[str] = []
        self.stopping = threading.Event()
        self.dialects = {name: Recorder() for name in names}
        self.connections = Connections(max_clients)
        context = ServeContext(log=self.lines.append, stopping=self.stopping)
        self.listener = Listener(
            "127.0.0.1",
            0,
            self.dialects,
            connections=self.connections,
            context=context,
            answer=lambda head: answer_http(head, (True, "ready"), lambda: "numbers 1\n"),
            first_bytes_timeout_s=first_bytes_timeout_s,
        )
        self.listener.start(None)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.address, timeout=8)

    def ask(self, data: bytes) -> bytes:
        """All that comes back."""
        with self.connect() as sock:
            with contextlib.suppress(OSError):  # it may have dropped us by now
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
            return read_to_end(sock)

    def wait_logged(self, text: str) -> None:
        wait_until(lambda: any(text in line for line in self.lines), f"the log says {text!r}")

    def close(self) -> None:
        self.stopping.set()
        self.listener.close()
        self.connections.shut_down()
        assert self.connections.join(5)


@contextlib.contextmanager
def port(*names: str, **options: Any) -> Iterator[Port]:
    opened = Port(*names, **options)
    try:
        yield opened
    finally:
        opened.close()


ALL = ("renv", "ilstudio", "openpi")


def test_first_bytes_tell_dialects_apart() -> None:
    with port(*ALL) as served:
        for data in (b"RENV and more", LENGTH_AND_PICKLE, UPGRADE):
            assert served.ask(data) == b"hello"
        assert {name: module.heard for name, module in served.dialects.items()} == {
            "renv": [b"RENV"],
            "ilstudio": [LENGTH_AND_PICKLE[:4]],
            "openpi": [b"GET "],
        }
        assert served.lines == []


def test_bytes_may_come_one_by_one() -> None:
    with port(*ALL) as served, served.connect() as sock:
        for byte in UPGRADE[:-1]:
            sock.send(bytes([byte]))
        assert served.dialects["openpi"].heard == []
        sock.send(UPGRADE[-1:])
        assert sock.recv(5) == b"hello"


@pytest.mark.parametrize("names", [ALL, ("renv",), ("ilstudio",), ("openpi",), ()])
@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET / HTTP/1.1", b"200", b"ready\n"),
        (b"GET /healthz?x=1 HTTP/1.0", b"200", b"ready\n"),
        (b"HEAD /healthz HTTP/1.1", b"200", b""),
        (b"GET /metrics HTTP/1.1", b"200", b"numbers 1\n"),
        (b"GET /secrets HTTP/1.1", b"404", b"there are /healthz and /metrics\n"),
        (b"POST / HTTP/1.1", b"405", b"only GET and HEAD\n"),
    ],
)
def test_http_is_answered_on_every_port(
    names: tuple[str, ...], request_line: bytes, status: bytes, body: bytes
) -> None:
    with port(*names) as served:
        head, _, got = served.ask(request_line + b"\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
        assert head.split()[1] == status
        assert got == body


def test_a_request_with_a_body_gets_its_answer() -> None:
    with port(*ALL) as served:
        assert b"405" in served.ask(b"POST / HTTP/1.1\r\nContent-Length: 70000\r\n\r\n" + bytes(70_000))


@pytest.mark.parametrize(
    ("names", "data", "line"),
    [
        (ALL, b"SSH-2.0-OpenSSH_9.6\r\n", "its first bytes are of no dialect; this port takes renv, ilstudio, openpi"),
        (ALL, b"\x16\x03\x01\x02\x00\x01", "its first bytes are of no dialect"),  # TLS
        (ALL, b"\xff" * 4000, "its first bytes are of no dialect"),
        (("openpi",), b"RENV and more", "it speaks renv; this port takes openpi"),
        (("renv",), LENGTH_AND_PICKLE, "it speaks ilstudio; this port takes renv"),
        ((), LENGTH_AND_PICKLE, "it speaks ilstudio; this port takes only HTTP"),
        (ALL, b"", "it closed before it said anything"),
        (ALL, b"REN", "it closed after 3 bytes"),
        (ALL, b"GET /" + b"x" * 9000, "an HTTP request of more than 8192 bytes"),
    ],
)
def test_garbage_is_dropped_with_a_line(names: tuple[str, ...], data: bytes, line: str) -> None:
    with port(*names) as served:
        assert served.ask(data) == b""
        served.wait_logged(line)
        assert served.lines[0].startswith("dropped 127.0.0.1:")
        assert not any(module.heard for module in served.dialects.values())


def test_a_port_of_one_dialect_lets_that_judge() -> None:
    with port("renv") as served:
        assert served.ask(b"garbage") == b"hello"
        assert served.dialects["renv"].heard == [b"garb"]


@pytest.mark.parametrize(("data", "line"), [(b"", "it sent nothing"), (b"RE", "it sent 2 bytes and then nothing")])
def test_a_silent_peer_is_dropped_at_the_deadline(data: bytes, line: str) -> None:
    with port(*ALL, first_bytes_timeout_s=0.1) as served, served.connect() as sock:
        sock.sendall(data)
        assert read_to_end(sock) == b""
        served.wait_logged(line)


def test_silent_peers_do_not_keep_others_out() -> None:
    with port(*ALL, max_clients=1) as served, contextlib.ExitStack() as held:
        for _ in range(10):
            held.enter_context(served.connect())
        assert served.ask(b"RENV") == b""  # too short: dropped
        assert served.ask(b"RENV and more") == b"hello"
        assert b"200 OK" in served.ask(b"GET / HTTP/1.1\r\n\r\n")


def test_one_client_too_many_is_told_why() -> None:
    with port(*ALL, max_clients=1) as served, served.connect() as first:
        first.sendall(b"RENV and more")
        assert first.recv(5) == b"hello"
        with served.connect() as second:
            second.sendall(ClientHandshake("x" * 32, "data").hello())
            reply = read_to_end(second)
        header = frames.parse_header(reply)
        assert header.type == frames.REFUSED
        assert "no place for one more client (--max_clients)" in parse_link(reply[frames.HEADER_SIZE :])["message"]
        assert served.ask(UPGRADE).startswith(b"HTTP/1.1 503 ")
        assert served.ask(LENGTH_AND_PICKLE) == b""
        assert sum("1 clients are connected (--max_clients)" in line for line in served.lines) == 3
        assert b"200 OK" in served.ask(b"GET /healthz HTTP/1.1\r\n\r\n")
        first.close()
        wait_until(lambda: served.ask(b"RENV and more") == b"hello", "the place is free again")


@pytest.mark.parametrize("data", [b"RENV", b"GET / HTTP/1.1\r\nHost: x\r\nX: y", UPGRADE[:-4]])
def test_who_sends_byte_by_byte_is_dropped_at_the_deadline(data: bytes) -> None:
    with port(*ALL, first_bytes_timeout_s=0.2) as served, served.connect() as sock:
        sock.settimeout(0.02)
        with contextlib.suppress(ConnectionError):
            for byte in data[:4] if data == b"RENV" else data + b"z" * 2000:
                sock.sendall(bytes([byte]))
                try:
                    if not sock.recv(1):
                        break
                except TimeoutError:
                    continue
        if data != b"RENV":
            served.wait_logged("bytes and then nothing")
            assert not served.dialects["openpi"].heard


def test_strangers_who_hold_every_place_make_room_for_who_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STRANGERS", 3)
    with port(*ALL, max_clients=2) as served, contextlib.ExitStack() as held:
        client = held.enter_context(served.connect())
        client.sendall(b"RENV and more")
        assert client.recv(5) == b"hello"
        silent = [held.enter_context(served.connect()) for _ in range(4)]
        wait_until(lambda: len(served.connections) == 5, "they are accepted")
        for number in range(20):
            assert served.ask(b"RENV and more") == b"hello", number
        assert read_to_end(silent[0]) == b""  # the oldest of them went
        client.sendall(b"still there")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):  # and not the client
            client.recv(1)
    assert len(served.connections) == 0


def test_a_flood_of_connections_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STRANGERS", 3)
    monkeypatch.setattr(limits, "MAX_LEAVING", 0)  # as if nobody left in time
    with port(*ALL, max_clients=2) as served, contextlib.ExitStack() as held:
        for _ in range(5):
            held.enter_context(served.connect())
        wait_until(lambda: len(served.connections) == 5, "they are accepted")
        for _ in range(20):
            with served.connect() as sock:
                assert read_to_end(sock) == b""
        assert sum("5 connections are open" in line for line in served.lines) == 1  # one line a second
    assert len(served.connections) == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [(RuntimeError("of a dialect"), "RuntimeError: of a dialect"), (ConfigError("no token"), "ConfigError: no token")],
)
def test_a_fault_of_a_dialect_ends_that_connection_alone(error: Exception, line: str) -> None:
    with port(*ALL) as served:
        served.dialects["renv"].raises = error
        assert served.ask(b"RENV and more") == b""
        served.wait_logged(line)
        served.dialects["renv"].raises = None
        assert served.ask(b"RENV and more") == b"hello"


def test_close_ends_the_connections() -> None:
    with contextlib.ExitStack() as stack:
        served = Port(*ALL)
        sock = stack.enter_context(served.connect())
        silent = stack.enter_context(served.connect())
        sock.sendall(b"RENV and more")
        assert sock.recv(5) == b"hello"
        served.close()
        assert sock.recv(1) == b""
        assert read_to_end(silent) == b""
        with pytest.raises(ConnectionRefusedError):
            served.connect()


def bind(host: str, number: int) -> Listener:
    context = ServeContext(log=print)
    return Listener(host, number, {}, connections=Connections(), context=context, answer=lambda head: b"")


def test_a_busy_port_names_who_holds_it() -> None:
    with port("renv") as served:
        host, number = served.listener.address
        with pytest.raises(ConfigError) as caught:
            bind(host, number)
    assert f"the port {host}:{number} is busy: process " in str(caught.value)
    assert "listens there; end that, or choose another port with -p" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "why"), [("192.0.2.7", "Cannot assign requested address"), ("no such host", "Name or service not known")]
)
def test_an_address_that_is_not_ours(host: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        bind(host, 0)
