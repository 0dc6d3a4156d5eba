"""The TCP socket under an SSH connection, whose calls all keep deadlines.

paramiko's own time-outs slip once sshd stops answering: a blocked write is retried for ever. Here whoever
waits names its deadline (`arm`), and every tick of the socket looks whether one has passed; if so the socket is
shut down, which wakes every waiting thread. There is no watchdog thread: a stuck connection always has a thread
inside `send` or `recv`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import paramiko
from paramiko.packet import Packetizer

from remote_env.errors import ConnectError
from remote_env.ssh.target import Login

TICK_S = 0.25  # how often a waiting socket call looks at the deadlines
GRACE_S = 0.4  # a local time-out comes first; only a call that is stuck beyond it costs the connection
USER_TIMEOUT_S = 30  # unacknowledged bytes for so long mean that the host is gone
GREETING_LIMIT = 256

_FAST_CIPHERS = (  # aes128-gcm moved 3 × the bytes of paramiko's first choice, aes128-ctr with HMAC
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)


class Link:
    """A connected TCP socket as paramiko uses it.

    Attributes:
        expired: a deadline passed and the socket was shut down for it.
        ended_by_peer: the host closed or reset the connection.
        greeting: the first bytes that the host sent.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._armed: dict[int, float] = {}
        self._next_check = 0.0
        self._closed = False  # paramiko reads it
        self.expired = False
        self.ended_by_peer = False
        self.greeting = b""
        _tune(sock)

    def arm(self, deadline: float) -> None:
        """Shut the socket down when this thread has not called `disarm` by shortly after `deadline`."""
        self._armed[threading.get_ident()] = deadline + GRACE_S

    def disarm(self) -> None:
        """The calling thread no longer waits."""
        self._armed.pop(threading.get_ident(), None)

    @contextlib.contextmanager
    def armed(self, deadline: float) -> Iterator[None]:
        """`arm` before and `disarm` after the block."""
        self.arm(deadline)
        try:
            yield
        finally:
            self.disarm()

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + TICK_S / 2
        if any(now >= deadline for deadline in list(self._armed.values())):
            self.expired = True
            self._shut_down()

    def send(self, data: bytes) -> int:
        """Send some of `data`; for paramiko.

        Raises:
            TimeoutError: nothing was sent within one tick.
            OSError: the connection broke.
        """
        try:
            return self._sock.send(data)
        except BlockingIOError as error:
            self._check_deadlines()
            raise TimeoutError from error

    def recv(self, size: int) -> bytes:
        """Receive up to `size` bytes, b"" at the end; for paramiko.

        Raises:
            TimeoutError: nothing came within one tick.
            OSError: the connection broke.
        """
        self._check_deadlines()
        try:
            data = self._sock.recv(size)
        except BlockingIOError as error:
            raise TimeoutError from error
        except OSError as error:
            self.ended_by_peer = error.errno in (errno.ECONNRESET, errno.EPIPE)
            raise
        if not data:
            self.ended_by_peer = not (self.expired or self._closed)
        if len(self.greeting) < GREETING_LIMIT:
            self.greeting += data[:GREETING_LIMIT]
        return data

    def settimeout(self, timeout: float | None) -> None:
        """Nothing: the kernel's time-outs are set once, which saves a poll before every call."""

    def getpeername(self) -> object:
        """The host's address."""
        return self._sock.getpeername()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection; wakes whoever waits in `send` or `recv`."""
        if not self._closed:
            self._closed = True
            self._shut_down()
            self._sock.close()

    def abandon(self) -> None:
        """Free this process's descriptor and leave the connection to the process that opened it."""
        self._closed = True
        self._sock.close()


class _TimerlessPacketizer(Packetizer):  # type: ignore[misc]  # paramiko has no types
    """paramiko's packets without a time-out thread per handshake, and with keys that last as long as is safe.

    RFC 4344, section 3.2: a key of a 128-bit block cipher may protect 2^32 blocks (64 GiB); paramiko's 512 MB
    would renegotiate every two seconds while images stream.
    """

    REKEY_BYTES = 2**34
    REKEY_PACKETS = 2**31

    _handshake_end = float("inf")

    def start_handshake(self, timeout: float) -> None:
        self._handshake_end = time.monotonic() + timeout

    def complete_handshake(self) -> None:
        self._handshake_end = float("inf")

    def handshake_timed_out(self) -> bool:
        return time.monotonic() > self._handshake_end


def open_tcp(login: Login, deadline: float) -> socket.socket:
    """A socket connected to the host's SSH port, whichever of its addresses answers.

    Raises:
        ConnectError: the name is unknown, the port refuses, or nothing answers in time.
    """
    place = f"{login.address}:{login.port}"
    try:
        addresses = socket.getaddrinfo(login.address, login.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConnectError(
            f"host {login.address!r} is unknown ({error}); check its spelling, your DNS and ~/.ssh/config"
        ) from error
    failure: OSError = OSError("no address")
    for family, kind, proto, _, address in addresses:
        sock = socket.socket(family, kind, proto)
        try:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            sock.connect(address)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            failure = error
            continue
        return sock
    raise _cannot_reach(place, failure)


def _cannot_reach(place: str, failure: OSError) -> ConnectError:
    if isinstance(failure, ConnectionRefusedError):
        return ConnectError(f"{place} refused the connection: no SSH server listens there; check the port (ssh_port=…)")
    if isinstance(failure, TimeoutError):
        return ConnectError(f"no answer from {place} in time; is the host up, and reachable from here (VPN, firewall)?")
    return ConnectError(f"{place} cannot be reached: {failure}")


def open_transport(link: Link) -> paramiko.Transport:
    """A paramiko transport over `link`, not yet started, with the fast ciphers first."""
    transport = paramiko.Transport(link, packetizer_class=_TimerlessPacketizer)
    transport.set_log_channel("remote_env.ssh.transport")
    options = transport.get_security_options()
    options.ciphers = tuple(name for name in _FAST_CIPHERS if name in options.ciphers)
    options.digests = tuple(name for name in _MACS if name in options.digests)
    return transport


def _tune(sock: socket.socket) -> None:
    sock.settimeout(None)
    tick = struct.pack("@ll", 0, round(TICK_S * 1e6))
    if os.name == "nt":
        tick = struct.pack("@I", round(TICK_S * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it 1 MB took 45 ms instead of 3
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # keeps firewalls from forgetting an idle link
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, USER_TIMEOUT_S)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_S * 1000)
