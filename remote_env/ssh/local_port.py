"""A local TCP port whose connections go through channels of an SSH login, for programs of others."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
import weakref

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, RemoteEnvError
from remote_env.ssh.channel import ChannelTransport
from remote_env.ssh.connection import SshConnection

LOOPBACK = "127.0.0.1"
OPEN_TIMEOUT_S = 10.0  # how long the far end may take to accept one connection
TICK_S = 0.2  # how often the listening thread looks whether it should end
CHUNK_BYTES = 256 * 1024
JOIN_TIMEOUT_S = 2.0
BACKLOG = 128
FULL_PAUSE_S = 0.1  # when there are no descriptors or threads left for a connection


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether one could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        if os.name == "posix":  # as servers do: what is merely in TIME_WAIT is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


class ChannelPort:
    """Listens on 127.0.0.1; each connection gets a channel of `connection`. See `tunnel.LocalPort`.

    Args:
        connection: logged in.
        target: the host and port to lead to, as seen from the remote machine.
        local_port: to listen on; 0 for any free one.

    Attributes:
        port: the local port.
        is_closing: it was closed.

    Raises:
        ConnectError: the local port is taken.
    """

    def __init__(self, connection: SshConnection, target: tuple[str, int], local_port: int) -> None:
        self._connection = connection
        self._target = target
        self._pid = os.getpid()
        self.is_closing = False
        self._failure = ""
        self._listener = _listen(local_port)
        self.port = int(self._listener.getsockname()[1])
        self._relays: set[_Relay] = set()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._accept, name="remote-env-listen", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    @property
    def is_up(self) -> bool:
        """See `LocalPort.is_up`."""
        return not self.is_closing and self._thread.is_alive() and self._connection.is_open

    def failure(self) -> str:
        """See `LocalPort.failure`."""
        return self._failure or ("" if self.is_up else f"the login to {self._connection.description} has ended")

    def _accept(self) -> None:
        while not self.is_closing:
            try:
                sock, _ = self._listener.accept()
            except (TimeoutError, ConnectionAbortedError):
                continue
            except OSError as error:
                if not self.is_closing:
                    self._wait_for_room(error)
                continue
            self._start_relay(sock)

    def _start_relay(self, sock: socket.socket) -> None:
        relay = _Relay(self, sock)
        with self._guard:
            self._relays.add(relay)
        try:
            relay.start()
        except RuntimeError as error:  # no further thread can be started
            self.forget(relay)
            sock.close()
            self._wait_for_room(error)

    def _wait_for_room(self, error: Exception) -> None:
        """This machine has no room for another connection just now, such as no free descriptor."""
        self._failure = f"a connection could not be taken: {error}"
        time.sleep(FULL_PAUSE_S)

    def open_channel(self) -> ChannelTransport:
        """A channel to the target; what prevents it is kept for `failure`."""
        host, port = self._target
        try:
            channel = self._connection.open_port(port, time.monotonic() + OPEN_TIMEOUT_S, host)
        except RemoteEnvError as error:
            self._failure = str(error)
            raise
        self._failure = ""
        return channel

    def forget(self, relay: _Relay) -> None:
        """`relay` has ended."""
        with self._guard:
            self._relays.discard(relay)

    def close(self) -> None:
        """See `LocalPort.close`. In a forked child only the child's descriptors are freed."""
        if self.is_closing or self._pid != os.getpid():
            return
        self.is_closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join(JOIN_TIMEOUT_S)
        self._listener.close()
        with self._guard:
            relays = list(self._relays)
        for relay in relays:
            relay.hang_up()
        until = time.monotonic() + JOIN_TIMEOUT_S
        for relay in relays:
            relay.join(until)

    def abandon(self) -> None:
        """In a forked child: free its copies of the sockets."""
        self.is_closing = True
        self._listener.close()
        for relay in self._relays:
            relay.abandon()


class _Relay:
    """One connection and its channel, copied in both directions by two threads."""

    def __init__(self, owner: ChannelPort, sock: socket.socket) -> None:
        self._owner = owner
        self._sock = sock
        self._channel: ChannelTransport | None = None
        self._thread = threading.Thread(target=self._run, name="remote-env-relay", daemon=True)

    def start(self) -> None:
        """Begin; RuntimeError when no further thread can be started."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._channel = self._owner.open_channel()
            self._copy(self._channel)
        except (RemoteEnvError, OSError, RuntimeError):  # the last: no further thread can be started
            self.hang_up()  # the client sees its connection end; why is kept by the owner
        finally:
            self._sock.close()
            self._owner.forget(self)

    def _copy(self, channel: ChannelTransport) -> None:
        out = threading.Thread(target=self._copy_out, args=(channel,), name="remote-env-relay-out", daemon=True)
        out.start()
        if self._owner.is_closing:  # meanwhile
            self.hang_up()
        self._copy_in(channel)
        out.join()
        channel.close()

    def _copy_in(self, channel: ChannelTransport) -> None:
        """From the host to the client, until the host has finished."""
        with contextlib.suppress(ConnectionLost, DeadlineExceeded, OSError):
            while data := channel.read_some(math.inf):
                self._sock.sendall(data)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _copy_out(self, channel: ChannelTransport) -> None:
        """From the client to the host, until the client has finished."""
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        try:
            while count := self._sock.recv_into(view):
                channel.send_all([view[:count]], math.inf)
            channel.finish_sending(time.monotonic() + OPEN_TIMEOUT_S)
        except (RemoteEnvError, OSError):
            self.hang_up()

    def hang_up(self) -> None:
        """End both directions."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._channel is not None:
            self._channel.close()

    def join(self, until: float) -> None:
        """Wait for its threads after `hang_up`, not past the time `until`; they end by themselves."""
        self._thread.join(max(until - time.monotonic(), 0.0))

    def abandon(self) -> None:
        """In a forked child: free its copy of the socket."""
        self._sock.close()


def _listen(port: int) -> socket.socket:
    sock = socket.socket()
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
        sock.listen(BACKLOG)
        sock.settimeout(TICK_S)
    except OSError as error:
        sock.close()
        raise ConnectError(f"the local port {port} cannot be had: {error}; choose another") from error
    return sock


_OPEN: weakref.WeakSet[ChannelPort] = weakref.WeakSet()


def _abandon_all() -> None:
    for port in list(_OPEN):
        port.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
