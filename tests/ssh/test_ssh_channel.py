from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from ssh_server import SshServer

from remote_env.errors import ConnectionLost, DeadlineExceeded
from remote_env.ssh import SshConnection
from remote_env.ssh import link as link_module
from remote_env.transport import Transport


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


class Echo:
    """A TCP server that sends everything back, one connection at a time."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(2**18):
                    connection.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture(scope="module")
def connection(ssh_server: SshServer) -> Iterator[SshConnection]:
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        yield connection


@pytest.fixture
def stream(connection: SshConnection, echo: Echo) -> Iterator[Transport]:
    stream = connection.open_port(echo.port, soon())
    yield stream
    stream.close()


def _round_trip(stream: Transport, buffers: list[bytes], deadline: float) -> bytes:
    back = bytearray(sum(map(len, buffers)))
    receiving = threading.Thread(target=stream.recv_exactly_into, args=(memoryview(back), deadline))
    receiving.start()
    stream.send_all(buffers, deadline)
    receiving.join(30)
    return bytes(back)


@pytest.mark.parametrize(
    "sizes", [[1], [0], [200], [0, 3, 0], [40, 100, 900_000], [8191, 8192, 8193, 1, 32704, 32705], [1] * 1000]
)
def test_buffers_arrive_whole_and_in_order(stream: Transport, sizes: list[int]) -> None:
    buffers = [os.urandom(size) for size in sizes]
    assert _round_trip(stream, buffers, soon(20)) == b"".join(buffers)


def test_partial_receives_keep_the_rest(stream: Transport) -> None:
    stream.send_all([b"0123456789"], soon())
    first, second = bytearray(3), bytearray(7)
    stream.recv_exactly_into(memoryview(first), soon())
    stream.recv_exactly_into(memoryview(second), soon())
    assert bytes(first + second) == b"0123456789"


def test_a_receive_past_its_deadline_consumes_nothing_and_can_be_repeated(stream: Transport) -> None:
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        stream.recv_some_into(memoryview(bytearray(10)), soon(0.2))
    assert time.monotonic() - begun < 0.7
    assert _round_trip(stream, [b"late"], soon()) == b"late"


def test_a_peer_that_closes_is_connection_lost(connection: SshConnection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = connection.open_port(listener.getsockname()[1], soon())
        listener.accept()[0].close()
        with pytest.raises(ConnectionLost, match="closed the connection"):
            stream.recv_some_into(memoryview(bytearray(10)), soon())
        stream.close()
        stream.close()
        with pytest.raises(ConnectionLost):
            stream.send_all([b"x"], soon())
    assert connection.is_open


def test_a_send_that_nobody_reads_ends_at_its_deadline(connection: SshConnection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = connection.open_port(listener.getsockname()[1], soon())
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            stream.send_all([bytes(64 * 2**20)], soon(1.0))
        assert time.monotonic() - begun < 2.0
        stream.close()
    assert connection.run("echo on", deadline=soon()).stdout == b"on\n"


def test_new_keys_in_mid_stream_lose_nothing(
    ssh_server: SshServer, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module._TimerlessPacketizer, "REKEY_BYTES", 2**21)
    data = os.urandom(2**20) * 8
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        stream = connection.open_port(echo.port, soon())
        back = _round_trip(stream, [data], soon(30))
        stream.close()
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
