"""Byte streams with deadlines, over real sockets; what every transport promises is in remote_env.testing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env import transport
from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded
from remote_env.transport import SocketOptions, SocketTransport, connect_tcp, connect_unix, transport_pair


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def pair() -> Iterator[tuple[SocketTransport, SocketTransport]]:
    left, right = transport_pair()
    yield left, right
    left.close()
    right.close()


def receive(end: SocketTransport, count: int) -> bytes:
    data = bytearray(count)
    end.recv_exactly_into(memoryview(data), soon())
    return bytes(data)


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=1200))
def test_every_byte_in_order(buffers: list[bytes]) -> None:
    left, right = transport_pair()
    try:
        left.send_all(buffers, soon())
        expected = b"".join(buffers)
        assert receive(right, len(expected)) == expected
    finally:
        left.close()
        right.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_peer_that_takes_nothing(pair: tuple[SocketTransport, SocketTransport], count: int) -> None:
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="takes no more bytes"):
        pair[0].send_all([bytes(4_000_000)] * count, soon(0.2))
    assert 0.15 < time.monotonic() - start < 0.2 + 4 * transport.TICK_S


def test_a_peer_that_says_nothing(pair: tuple[SocketTransport, SocketTransport]) -> None:
    start = time.monotonic()
    view = memoryview(bytearray(1))
    with pytest.raises(DeadlineExceeded, match="nothing was received"):
        pair[0].recv_some_into(view, soon(0.2))
    assert 0.15 < time.monotonic() - start < 0.2 + 4 * transport.TICK_S
    pair[1].send_all([b"late"], soon())
    assert receive(pair[0], 4) == b"late"  # nothing was lost by waiting


def test_close_may_be_called_again_and_use_fails_cleanly(pair: tuple[SocketTransport, SocketTransport]) -> None:
    left, _ = pair
    left.close()
    left.close()
    assert left.fileno() == -1
    for use in (lambda: receive(left, 1), lambda: left.send_all([b"x"], soon())):
        with pytest.raises(ConnectionLost):
            use()


def test_close_ends_a_link_that_somebody_duplicated(pair: tuple[SocketTransport, SocketTransport]) -> None:
    left, right = pair
    copy = os.dup(left.fileno())
    left.close()
    with pytest.raises(ConnectionLost):
        receive(right, 1)
    os.close(copy)


def test_a_forked_child_s_close_leaves_the_link_up(pair: tuple[SocketTransport, SocketTransport]) -> None:
    left, right = pair
    pid = os.fork()
    if pid == 0:
        left.close()
        os._exit(0)
    os.waitpid(pid, 0)
    left.send_all([b"alive"], soon())
    assert receive(right, 5) == b"alive"


def test_busy_polling_receives_and_ends() -> None:
    left, right = socket.socketpair()
    ends = SocketTransport(left, SocketOptions(busy_poll_s=0.01)), SocketTransport(right)
    ends[1].send_all([b"now"], soon())
    assert receive(ends[0], 3) == b"now"
    with pytest.raises(DeadlineExceeded):
        ends[0].recv_some_into(memoryview(bytearray(1)), soon(0.05))
    ends[1].close()
    with pytest.raises(ConnectionLost):
        receive(ends[0], 1)
    ends[0].close()


def test_tcp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        end = connect_tcp("127.0.0.1", port, soon())
        other = SocketTransport(listener.accept()[0])
        assert end._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        end.send_all([b"hello"], soon())
        assert receive(other, 5) == b"hello"
        end.close()
        other.close()
    with pytest.raises(ConnectError, match=rf"nothing answers at 127\.0\.0\.1:{port}"):
        connect_tcp("127.0.0.1", port, soon())
    with pytest.raises(ConnectError, match=r"is unknown.*remote-env tunnel no-such-host\.invalid 1 "):
        connect_tcp("no-such-host.invalid", 1, soon())


@pytest.mark.parametrize("host", ["a" * 64 + ".lab", "box..lab"])
def test_a_name_that_no_dns_can_hold_is_unknown(host: str) -> None:
    with pytest.raises(ConnectError, match="is unknown"):
        connect_tcp(host, 1, soon())


def test_unix(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="nothing answers"):
        connect_unix(str(tmp_path / "nothing"), soon())
    with pytest.raises(ConnectError):
        connect_unix("/tmp/" + "x" * 200, soon())
