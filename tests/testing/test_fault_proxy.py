from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from leak_check import wait_until

from remote_env.errors import ConfigError
from remote_env.testing import FaultProxy

pytestmark = pytest.mark.fault


class Echo:
    """A TCP server, or one at a Unix socket, that sends everything back and keeps what it got."""

    def __init__(self, path: str | None = None) -> None:
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address: Any = self._listener.getsockname()
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(path)
            self._listener.listen()
            self.address = path
        self.received: list[bytearray] = []
        self.endings: list[str] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self.received.append(bytearray())
            self._threads.append(threading.Thread(target=self._serve, args=(connection, self.received[-1])))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket, kept: bytearray) -> None:
        ending = "closed"
        with connection:
            try:
                while data := connection.recv(1 << 18):
                    kept += data
                    connection.sendall(data)
            except OSError:
                ending = "broken"
        self.endings.append(ending)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.address, seed=1) as proxy:
        yield proxy


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(proxy.address, timeout=10)  # type: ignore[arg-type]


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        assert chunk, f"ended after {len(data)} of {count} bytes"
        data += chunk
    return data


def to_end(sock: socket.socket) -> tuple[bytes, str]:
    """All that comes until the end, and which end that is."""
    data = b""
    try:
        while chunk := sock.recv(1 << 16):
            data += chunk
    except ConnectionResetError:
        return data, "broken"
    return data, "closed"


def round_trip(sock: socket.socket, data: bytes) -> bytes:
    sender = threading.Thread(target=sock.sendall, args=(data,))
    sender.start()
    back = exactly(sock, len(data))
    sender.join(10)
    return back


def test_without_a_fault_it_is_a_wire(echo, proxy):
    data = os.urandom(3_000_000)
    with connect(proxy) as first, connect(proxy) as second:
        assert round_trip(first, data) == data
        assert round_trip(second, b"other") == b"other"
        assert proxy.carried("up") == proxy.carried("down") == len(data) + 5
        first.shutdown(socket.SHUT_WR)  # half an end passes, too
        assert to_end(first) == (b"", "closed")
        assert round_trip(second, b"still") == b"still"
    assert (proxy.connections, proxy.cuts) == (2, 0)


def test_unix_sockets(tmp_path):
    echo = Echo(str(tmp_path / "echo"))
    with FaultProxy(echo.address, listen=str(tmp_path / "proxy")) as proxy:
        assert proxy.address == str(tmp_path / "proxy")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(proxy.address)
            assert round_trip(sock, b"there and back") == b"there and back"
            assert proxy.cut() == 1
            assert to_end(sock) == (b"", "closed")
    assert not (tmp_path / "proxy").exists()
    echo.close()


@pytest.mark.parametrize(("reset", "ending"), [(False, "closed"), (True, "broken")])
def test_a_cut_ends_what_lives_at_both_ends(echo, proxy, reset, ending):
    with connect(proxy) as first, connect(proxy) as second, connect(proxy) as later:
        assert [round_trip(sock, b"x") for sock in (first, second)] == [b"x"] * 2
        assert proxy.cut(reset=reset) == 3  # one has only knocked yet
        assert [to_end(sock) for sock in (first, second, later)] == [(b"", ending)] * 3
        wait_until(lambda: len(echo.endings) >= 2, "the server's ends")
        assert echo.endings[:2] == [ending] * 2
    with connect(proxy) as fourth:
        assert round_trip(fourth, b"y") == b"y"
    assert (proxy.connections, proxy.cuts) == (4, 3)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_cut_after_a_count_of_bytes_is_exact(echo, proxy, direction, count):
    with connect(proxy) as sock:
        round_trip(sock, b"before")
        proxy.cut_after(count, direction)
        sock.sendall(b"0123456789")
        data = to_end(sock)[0]
        wait_until(lambda: echo.endings, "the server's end")
    if direction == "up":
        assert bytes(echo.received[0]) == b"before" + b"0123456789"[:count]
    else:
        assert data == b"0123456789"[:count]
    with connect(proxy) as sock:
        assert round_trip(sock, b"once only") == b"once only"
    assert proxy.cuts == 1


def test_a_cut_can_be_set_before_the_connection_comes(proxy):
    proxy.cut_after(4, "down", reset=True)
    with connect(proxy) as sock:
        sock.sendall(b"0123456789")
        assert to_end(sock) == (b"0123", "broken")


def test_random_cuts_come_with_their_mean_and_repeat_with_the_seed(echo):
    def lengths(seed: int) -> list[int]:
        with FaultProxy(echo.address, seed=seed) as proxy:
            proxy.cut_every(2000, direction="down")
            found = []
            for _ in range(40):
                with connect(proxy) as sock:
                    sender = threading.Thread(target=_send_quietly, args=(sock, bytes(100_000)))
                    sender.start()
                    found.append(len(to_end(sock)[0]))
                    sender.join(10)
            assert proxy.cuts == 40
            proxy.cut_every(None)
            with connect(proxy) as sock:
                round_trip(sock, bytes(20_000))
            return found

    first = lengths(5)
    assert 1000 < sum(first) / len(first) < 4000
    assert len(set(first)) > 30
    assert lengths(5) == first


def _send_quietly(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def test_a_pause_is_silence_and_nothing_is_lost_by_it(echo, proxy):
    with connect(proxy) as sock:
        round_trip(sock, b"x")
        proxy.pause()
        sock.sendall(b"unheard")
        with connect(proxy) as newcomer:
            newcomer.sendall(b"hello?")
            for each in (sock, newcomer):
                each.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    each.recv(1)
                each.settimeout(10)
            proxy.resume()
            assert exactly(sock, 7) == b"unheard"
            assert exactly(newcomer, 6) == b"hello?"


def test_who_goes_during_a_pause_is_not_told_of(echo, proxy):
    with connect(proxy) as sock:
        round_trip(sock, b"x")
        proxy.pause()
    proxy.cut_after(0)  # a command that comes back has found the thread awake
    assert not echo.endings
    proxy.resume()
    wait_until(lambda: echo.endings, "the server hears of the end")


def test_refused_connections_end_at_once_and_the_others_go_on(proxy):
    with connect(proxy) as sock:
        round_trip(sock, b"x")
        proxy.refuse(True)
        with pytest.raises(ConnectionResetError), connect(proxy) as refused:
            refused.recv(1)
        assert round_trip(sock, b"y") == b"y"
    proxy.refuse(False)
    with connect(proxy) as sock:
        assert round_trip(sock, b"z") == b"z"
    assert (proxy.connections, proxy.cuts) == (2, 0)


def test_a_target_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    # The reset may come before connect() has looked at its result.
    with FaultProxy(address) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as sock:
        sock.recv(1)


def test_delay_keeps_order_and_takes_its_time(proxy):
    with connect(proxy) as sock:
        round_trip(sock, b"x")
        proxy.delay(0.05, jitter=0.02)
        start = time.monotonic()
        data = bytes(range(256)) * 4
        for at in range(0, len(data), 64):
            sock.sendall(data[at : at + 64])
        assert exactly(sock, len(data)) == data
        assert time.monotonic() - start > 0.1  # there and back


def test_throttle_carries_no_more_than_that(proxy):
    with connect(proxy) as sock:
        proxy.throttle(200_000)
        start = time.monotonic()
        data = os.urandom(40_000)
        assert round_trip(sock, data) == data
        assert time.monotonic() - start > 0.15  # 0.2 s, less a burst
        proxy.throttle(None)
        assert round_trip(sock, data) == data


def test_a_trickle_is_one_byte_at_a_time():
    with socket.create_server(("127.0.0.1", 0)) as listener, FaultProxy(listener.getsockname()) as proxy:
        proxy.trickle(True)
        with connect(proxy) as sock:
            sock.sendall(b"abc")
            server = listener.accept()[0]
            server.settimeout(10)
            with server:
                assert exactly(server, 3) == b"abc"
            wait_until(lambda: proxy.carried("up") == 3, "three bytes")


@pytest.mark.parametrize("offset", [0, 5, 300_000])
def test_a_corrupt_byte_differs_in_one_bit(echo, proxy, offset):
    data = os.urandom(400_000)
    with connect(proxy) as sock:
        round_trip(sock, b"before")
        proxy.corrupt(direction="down", offset=offset)
        back = round_trip(sock, data)
        turned = [index for index in range(len(data)) if data[index] != back[index]]
        assert turned == [offset]
        assert (data[offset] ^ back[offset]).bit_count() == 1
        assert bytes(echo.received[0]) == b"before" + data
        assert round_trip(sock, data) == data


def test_what_makes_no_sense_is_refused(proxy):
    for call, match in (
        (lambda: proxy.cut_every(0), "mean_bytes is 0"),
        (lambda: proxy.cut_after(-1), "count is -1"),
        (lambda: proxy.corrupt(direction="up", offset=-1), "offset is -1"),
        (lambda: proxy.throttle(0), "bytes_per_s is 0"),
        (lambda: proxy.delay(-1), "a delay of -1"),
    ):
        with pytest.raises(ConfigError, match=match):
            call()


def test_closing_ends_everything_and_may_be_done_again(echo):
    proxy = FaultProxy(echo.address)
    sock = connect(proxy)
    round_trip(sock, b"x")
    proxy.close()
    proxy.close()
    assert to_end(sock)[0] == b""
    sock.close()
    with pytest.raises(ConfigError, match="closed; make another"):
        proxy.cut()
