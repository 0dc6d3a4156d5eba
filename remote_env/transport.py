"""Byte streams with deadlines: Unix and TCP sockets, and the interface that an SSH channel also fills.

A deadline is an absolute `time.monotonic()` value in seconds. A transport knows bytes, never messages. Socket
deadlines are kept to within `TICK_S`: the kernel's own receive and send time-outs are set once, which saves the
poll that Python's `settimeout` puts before every call.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded

TICK_S = 0.1
MAX_BUFFERS_PER_CALL = 512  # below every kernel's IOV_MAX (1024 on Linux and macOS)

Buffer = bytes | bytearray | memoryview


class Transport(Protocol):
    """A connected byte stream."""

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """Send every byte of `buffers`, in order.

        Raises:
            DeadlineExceeded: not all bytes went out in time; how many did is unknown: close the transport.
            ConnectionLost: the stream broke; how many bytes arrived is unknown.
        """

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        """Receive at least one byte into `view` (1-D, bytes, writable, not empty); returns how many.

        Raises:
            DeadlineExceeded: nothing came in time; nothing was consumed.
            ConnectionLost: the stream ended or broke.
        """

    def recv_exactly_into(self, view: memoryview, deadline: float) -> None:
        """Fill `view`.

        Raises:
            DeadlineExceeded: bytes are missing at the deadline; some may have been consumed: close the transport.
            ConnectionLost: the stream ended or broke.
        """

    def has_bytes(self) -> bool:
        """Whether a receive would return, or fail, at once; never raises."""

    def close(self) -> None:
        """Shut the stream down in both directions and free it; never raises, and may be called again."""


class SocketOptions(NamedTuple):
    """How a socket is used.

    Attributes:
        busy_poll_s: how long a receive spins before it sleeps [s]; trades a CPU for a wake-up's latency.
        user_timeout_s: with TCP, bytes or questions that are not acknowledged for so long mean that the peer is gone
            [s].
    """

    busy_poll_s: float = 0.0
    user_timeout_s: float = 30.0


DEFAULT_SOCKET_OPTIONS = SocketOptions()


class SocketTransport:
    """A `Transport` over a connected stream socket, which it owns from now on.

    Args:
        sock: connected, of family AF_UNIX, AF_INET or AF_INET6.
        options: how it is used.
    """

    def __init__(self, sock: socket.socket, options: SocketOptions = DEFAULT_SOCKET_OPTIONS) -> None:
        self._sock = sock
        self._busy_poll_s = options.busy_poll_s
        self._pid = os.getpid()
        sock.settimeout(None)
        _set_kernel_timeouts(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _notice_silence(sock, options.user_timeout_s)

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._sock.fileno()

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """See `Transport.send_all`."""
        try:
            if len(buffers) == 1:
                sent = self._sock.send(buffers[0])
                if sent == len(buffers[0]):
                    return
            else:
                sent = self._send_many(buffers)
        except (BlockingIOError, TimeoutError):
            sent = 0
        except OSError as error:
            raise _lost(error) from error
        rest = _drop_bytes(buffers, sent)
        while rest:
            _check(deadline, "the peer takes no more bytes")
            try:
                rest = _drop_bytes(rest, self._send_many(rest))
            except (BlockingIOError, TimeoutError):
                continue
            except OSError as error:
                raise _lost(error) from error

    def _send_many(self, buffers: Sequence[Buffer]) -> int:
        if hasattr(self._sock, "sendmsg"):
            return self._sock.sendmsg(buffers[:MAX_BUFFERS_PER_CALL])
        return self._sock.send(buffers[0])

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        """See `Transport.recv_some_into`."""
        if self._busy_poll_s:
            received = self._spin(view)
            if received:
                return received
        while True:
            try:
                received = self._sock.recv_into(view)
            except (BlockingIOError, TimeoutError):
                _check(deadline, "nothing was received")
                continue
            except OSError as error:
                raise _lost(error) from error
            if received:
                return received
            raise ConnectionLost("the peer closed the connection")

    def _spin(self, view: memoryview) -> int:
        until = time.perf_counter() + self._busy_poll_s
        while time.perf_counter() < until:
            try:
                received = self._sock.recv_into(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _lost(error) from error
            if not received:
                raise ConnectionLost("the peer closed the connection")
            return received
        return 0

    def recv_exactly_into(self, view: memoryview, deadline: float) -> None:
        """See `Transport.recv_exactly_into`."""
        done, size = 0, len(view)
        while done < size:
            done += self.recv_some_into(view[done:], deadline)
            if done < size:  # bytes may come one by one for ever
                _check(deadline, f"{done} of {size} bytes were received")

    def has_bytes(self) -> bool:
        """See `Transport.has_bytes`."""
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """See `Transport.close`. In a forked child only the child's descriptor is freed; the stream lives on."""
        if self._pid == os.getpid():
            # A link ends by shutdown: another process may hold a duplicate, which would hide a mere close.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def connect_unix(path: str, deadline: float, options: SocketOptions = DEFAULT_SOCKET_OPTIONS) -> SocketTransport:
    """A transport to the Unix socket at `path`; ConnectError when nothing listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    return _connect(sock, path, path, deadline, options)


def connect_tcp(
    host: str, port: int, deadline: float, options: SocketOptions = DEFAULT_SOCKET_OPTIONS
) -> SocketTransport:
    """A transport to `host:port`; ConnectError when it cannot be reached or nothing listens there."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: a label is empty or over 63 characters
        raise ConnectError(
            f"host {host!r} is unknown ({error}); check its spelling and your DNS. A Host of ~/.ssh/config is no name "
            f"here: a tunnel leads there, remote-env tunnel {host} {port} --background"
        ) from error
    return _connect(socket.socket(family, kind, proto), address, f"{host}:{port}", deadline, options)


def transport_pair() -> tuple[SocketTransport, SocketTransport]:
    """Two connected transports inside this machine, for tests and for wiring two ends without a network."""
    left, right = socket.socketpair()
    return SocketTransport(left), SocketTransport(right)


def _connect(
    sock: socket.socket, address: object, shown: str, deadline: float, options: SocketOptions
) -> SocketTransport:
    try:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        sock.connect(address)  # type: ignore[arg-type]  # typeshed has no union of address kinds
        return SocketTransport(sock, options)
    except TimeoutError as error:
        sock.close()
        raise ConnectError(f"no answer from {shown} in time; is it reachable from here?") from error
    except OSError as error:
        sock.close()
        refused = isinstance(error, (ConnectionRefusedError, FileNotFoundError))  # the machine itself says so
        what = f"nothing answers at {shown} ({error}); is the server running?"
        raise ConnectError(what, nothing_listens=refused) from error
    except BaseException:
        sock.close()
        raise


def _set_kernel_timeouts(sock: socket.socket) -> None:
    if sys.platform == "win32":
        tick = struct.pack("@I", round(TICK_S * 1000))
    else:
        tick = struct.pack("@ll", 0, round(TICK_S * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)


def _notice_silence(sock: socket.socket, timeout_s: float) -> None:
    """Have the kernel end a TCP connection whose peer has vanished, whether or not anything is being sent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(timeout_s * 1000))
        third = max(1, round(timeout_s / 3))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, third)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, third)


def _drop_bytes(buffers: Sequence[Buffer], count: int) -> list[memoryview]:
    """What is left of `buffers` after their first `count` bytes."""
    rest = []
    for buffer in buffers:
        size = len(buffer)
        if count >= size:
            count -= size
            continue
        rest.append(memoryview(buffer)[count:])
        count = 0
    return rest


def _check(deadline: float, what: str) -> None:
    if time.monotonic() >= deadline:
        raise DeadlineExceeded(f"{what} before the deadline")


def _lost(error: OSError) -> ConnectionLost:
    return ConnectionLost(f"the connection broke: {error}")
