"""Ways to a host's SSH port: a socket, or a channel of a jump host's connection (`proxy` has one more).

All give the same few methods to a `Link`. `send` and `recv` raise BlockingIOError when nothing has moved for a tick,
so that whoever waits in them looks at the deadlines.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, Protocol

import paramiko

from remote_env.errors import ConnectError
from remote_env.ssh.addresses import Address, find_addresses
from remote_env.ssh.login import Login

TICK_S = 0.25  # how often a waiting call returns to look at the deadlines
USER_TIMEOUT_S = 30  # unacknowledged bytes for so long mean that the host is gone
CHANNEL_WINDOW_BYTES = 16 * 2**20


class Way(Protocol):
    """What a `Link` needs of the way beneath it."""

    @property
    def send(self) -> Callable[[bytes], int]:
        """Sends some bytes, and says how many."""

    @property
    def recv(self) -> Callable[[int], bytes]:
        """Receives up to so many bytes, b"" at the end."""

    def poll(self) -> None:
        """Called a few times a second, by any thread."""

    def settle(self) -> None:
        """The login is done and a first command has run; `recv` may be another method from now on."""

    def shut_down(self) -> None:
        """Wake whoever waits in `send` or `recv`, and let nothing pass from now on."""

    def close(self) -> None:
        """End the way."""

    def abandon(self) -> None:
        """Free this process's descriptors and leave the way to the process that opened it."""

    def trouble(self) -> str:
        """What went wrong on the way ("" when nothing is known); for messages."""


class SocketWay:
    """A connected stream socket.

    Args:
        sock: owned from now on.
        acknowledges: until it settles, tell the kernel to acknowledge what comes at once: sshd leaves Nagle's algorithm
            on until the first command starts, whose answer took 44 ms instead of 4.
    """

    def __init__(self, sock: socket.socket, *, acknowledges: bool = False) -> None:
        self._sock = sock
        sock.settimeout(None)
        tick = struct.pack("@ll", 0, round(TICK_S * 1e6))
        if os.name == "nt":
            tick = struct.pack("@I", round(TICK_S * 1000))
        # The kernel's time-outs are set once, which saves a poll before every call.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        self.send: Callable[[bytes], int] = sock.send
        self.recv: Callable[[int], bytes] = self._acknowledge_and_receive if acknowledges else sock.recv

    def _acknowledge_and_receive(self, size: int) -> bytes:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # the kernel soon forgets it again
        return self._sock.recv(size)

    def poll(self) -> None:
        """See `Way.poll`."""

    def settle(self) -> None:
        """See `Way.settle`."""
        self.recv = self._sock.recv

    def shut_down(self) -> None:
        """See `Way.shut_down`."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Way.close`."""
        self.shut_down()
        self._sock.close()

    def abandon(self) -> None:
        """See `Way.abandon`."""
        self._sock.close()

    def trouble(self) -> str:
        """See `Way.trouble`."""
        return ""


def open_tcp(login: Login, deadline: float) -> SocketWay:
    """A way to the host's SSH port over TCP, to whichever of its addresses answers.

    Raises:
        ConnectError: the name is unknown, the port refuses, or nothing answers in time.
    """
    addresses = find_addresses(login.address, login.port, deadline)
    failure: OSError = OSError("no address")
    for address in addresses:
        try:
            return SocketWay(_connect(address, deadline), acknowledges=hasattr(socket, "TCP_QUICKACK"))
        except OSError as error:
            failure = error
    raise _cannot_reach(f"{login.address}:{login.port}", failure)


def _connect(address: Address, deadline: float) -> socket.socket:
    family, kind, proto, _, place = address
    sock = socket.socket(family, kind, proto)
    try:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        sock.connect(place)
        _tune(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it 1 MB took 45 ms instead of 3
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # keeps firewalls from forgetting an idle link
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, USER_TIMEOUT_S)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_S * 1000)


def _cannot_reach(place: str, failure: OSError) -> ConnectError:
    if isinstance(failure, ConnectionRefusedError):
        return ConnectError(f"{place} refused the connection: no SSH server listens there; check the port (ssh_port=…)")
    if isinstance(failure, TimeoutError):
        return ConnectError(f"no answer from {place} in time; is the host up, and reachable from here (VPN, firewall)?")
    return ConnectError(f"{place} cannot be reached: {failure}")


class ChannelWay:
    """A direct-tcpip channel of a jump host's connection.

    Args:
        channel: open; owned from now on.
        leave: called with what closes the channel; it sees to the deadline.
        trouble: tells what went wrong with the jump host.
    """

    def __init__(
        self, channel: paramiko.Channel, leave: Callable[[Callable[[], Any]], None], trouble: Callable[[], str]
    ) -> None:
        self._channel = channel
        self._leave = leave
        self._rest = memoryview(b"")
        self.trouble = trouble
        channel.settimeout(TICK_S)

    def send(self, data: bytes) -> int:
        """Send some of `data`."""
        try:
            sent = self._channel.send(data)
        except TimeoutError as error:
            raise BlockingIOError from error
        except (EOFError, paramiko.SSHException) as error:
            raise BrokenPipeError(str(error)) from error
        if not sent:
            raise BrokenPipeError("the jump host closed the channel")
        return int(sent)

    def recv(self, size: int) -> bytes:
        """Receive up to `size` bytes, b"" at the end."""
        if not self._rest:
            try:
                # All of it: paramiko's buffer would move whatever stays behind.
                self._rest = memoryview(self._channel.recv(CHANNEL_WINDOW_BYTES))
            except TimeoutError as error:
                raise BlockingIOError from error
            except (EOFError, paramiko.SSHException) as error:
                raise ConnectionResetError(str(error)) from error
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    def poll(self) -> None:
        """See `Way.poll`."""

    def settle(self) -> None:
        """See `Way.settle`."""

    def shut_down(self) -> None:
        """See `Way.shut_down`; the jump host's link, which is beneath, is shut down too, and wakes everybody."""

    def close(self) -> None:
        """See `Way.close`."""
        self._leave(self._channel.close)

    def abandon(self) -> None:
        """See `Way.abandon`; the jump host's connection does it."""
