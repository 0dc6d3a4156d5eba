"""Tunnels of the sshtunnel package: a local TCP port whose connections its threads carry over our verified login."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from typing import Any

import paramiko
import sshtunnel

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, RemoteEnvError
from remote_env.ssh.channel import WINDOW_BYTES
from remote_env.ssh.connection import SshConnection
from remote_env.ssh.tunnel import LOOPBACK, ExplainedTransport, LocalPort
from remote_env.transport import Transport, connect_tcp

JOIN_TIMEOUT_S = 2.0
_PREFIX = "open new channel ssh error: "  # what sshtunnel puts before the reason
WORDS_S = 0.3  # how long a broken stream waits for sshtunnel to say why


class _Channel:
    """A paramiko channel as sshtunnel's handlers use it.

    They ask for 16 KiB at a time, and paramiko moves what stays behind each time; here they get all that has come.
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self.fileno, self.recv_ready = channel.fileno, channel.recv_ready
        self.sendall, self.close = channel.sendall, channel.close

    @property
    def active(self) -> bool:
        return bool(self._channel.active)

    def recv(self, _size: int) -> bytes:
        return bytes(self._channel.recv(WINDOW_BYTES))


class _Login:
    """What sshtunnel takes for its paramiko transport: our login, which is verified and made already.

    sshtunnel's own login would check no host key by default, and knows no jump hosts, agents' rules or one-time codes.
    """

    is_alive = True

    def __init__(self, connection: SshConnection) -> None:
        self._connection = connection
        self._channels: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()
        self._closed = False
        self.refusals = 0  # channels that the host could not connect, since nothing listens there

    def is_active(self) -> bool:
        return not self._closed and self._connection.is_open

    def open_channel(self, *, dest_addr: tuple[str, int], timeout: float, **_: object) -> _Channel:
        """For sshtunnel's handlers, which expect paramiko's exceptions."""
        try:
            channel = self._connection.open_channel(dest_addr, time.monotonic() + timeout)
        except RemoteEnvError as error:
            self.refusals += getattr(error, "nothing_listens", False)
            raise paramiko.SSHException(str(error)) from error
        self._channels.add(channel)
        if self._closed:
            self.close()
        return _Channel(channel)

    def close(self) -> None:
        """End the channels, which frees the handlers; the login itself is the caller's."""
        self._closed = True
        for channel in list(self._channels):
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                channel.close()

    def stop_thread(self) -> None:
        """There is none."""


class _Forwarder(sshtunnel.SSHTunnelForwarder):  # type: ignore[misc]  # sshtunnel has no types
    """sshtunnel's forwarder over a login that is made already, whose threads can be waited for."""

    def __init__(self, login: _Login, host_key: paramiko.PKey, target: tuple[str, int], local_port: int) -> None:
        self._login = login
        self._server_list: list[Any] = []
        self.handler_threads: set[threading.Thread] = set()
        self.words = _Words()
        logger = logging.Logger("remote_env.ssh.sshtunnel")  # of its own: sshtunnel prints to the terminal without one
        logger.addHandler(self.words)
        super().__init__(
            LOOPBACK,  # whose name is not looked up in ~/.ssh/config: the login is made
            ssh_config_file=None,
            ssh_host_key=host_key,  # should another version log in by itself after all
            allow_agent=False,
            host_pkey_directories=[],
            remote_bind_address=target,
            local_bind_address=(LOOPBACK, local_port),
            logger=logger,
        )

    @staticmethod
    def _consolidate_auth(**_: Any) -> tuple[None, list[paramiko.PKey]]:
        return None, []

    def _connect_to_gateway(self) -> None:
        self._transport = self._login

    def _make_ssh_forward_handler_class(self, remote_address_: tuple[str, int]) -> type:
        threads = self.handler_threads

        class Handler(super()._make_ssh_forward_handler_class(remote_address_)):  # type: ignore[misc]
            def handle(self) -> None:
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.current_thread()
                threads.add(thread)
                try:
                    super().handle()
                finally:
                    threads.discard(thread)

        return Handler

    @property
    def refusals(self) -> int:
        """How often nothing listened there."""
        return self._login.refusals

    def end(self) -> None:
        """Stop listening, end the connections, and wait for the threads."""
        self._login.close()
        if self._server_list and self.is_alive:
            self.stop(force=True)
        for server in self._server_list:  # of a start that failed: nothing serves, which `stop` would wait for
            server.server_close()
        for thread in list(self.handler_threads):
            thread.join(JOIN_TIMEOUT_S)

    def abandon(self) -> None:
        """In a forked child, where none of the threads runs: free its copy of the listening socket."""
        for server in self._server_list:
            server.socket.close()
        self._server_list, self.is_alive = [], False
        self.__dict__.pop("_transport", None)


class _Words(logging.Handler):
    """The last thing that sshtunnel had to say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last, self._count = "", 0
        self._spoke = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        with self._spoke:
            self._last, self._count = record.getMessage().rpartition(_PREFIX)[2], self._count + 1
            self._spoke.notify_all()

    @property
    def count(self) -> int:
        """How often it has said something."""
        return self._count

    def wait(self, since: int, timeout_s: float) -> str:
        """The last thing, as soon as there are more than `since`; "" when nothing is said in time."""
        with self._spoke:
            return self._last if self._spoke.wait_for(lambda: self._count > since, timeout_s) else ""


class SshtunnelTunnel:
    """One local TCP port per port of the host, opened at the first dial. See `Tunnel`.

    Args:
        connection: carries it; logged in when it is not yet.
    """

    kind = "sshtunnel"

    def __init__(self, connection: SshConnection) -> None:
        self._connection = connection
        self._ports: dict[tuple[str, int], SshtunnelPort] = {}
        self._others: weakref.WeakSet[SshtunnelPort] = weakref.WeakSet()
        self._opening = threading.Lock()
        _OPEN.add(self)

    def dial(self, port: int, deadline: float, host: str = LOOPBACK) -> Transport:
        """See `Tunnel.dial`."""
        place = self._living_port((host, port), deadline)
        end = _End(self._connection, place, f"{host}:{port} on {self._connection.login.host}")
        stream = ExplainedTransport(
            connect_tcp(LOOPBACK, place.port, deadline), lambda error: end.explain(error, has_begun=stream.heard_at > 0)
        )
        return stream

    def needs_login(self, port: int, host: str = LOOPBACK) -> bool:  # noqa: ARG002  the login serves all ports
        """See `Tunnel.needs_login`."""
        return not self._connection.is_open

    def _living_port(self, target: tuple[str, int], deadline: float) -> SshtunnelPort:
        if not self._opening.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise DeadlineExceeded(f"another thread was still opening a tunnel to {target} at the deadline")
        try:
            place = self._ports.get(target)
            if place is None or not place.is_up:
                if place is not None:
                    place.close()
                self._ports[target] = place = self._open(target, 0, deadline)
            return place
        finally:
            self._opening.release()

    def listen(self, port: int, local_port: int, deadline: float, host: str = LOOPBACK) -> LocalPort:
        """See `Tunnel.listen`."""
        place = self._open((host, port), local_port, deadline)
        self._others.add(place)
        return place

    def _open(self, target: tuple[str, int], local_port: int, deadline: float) -> SshtunnelPort:
        self._connection.connect(deadline)
        return SshtunnelPort(_Forwarder(_Login(self._connection), self._connection.host_key, target, local_port))

    def close(self) -> None:
        """See `Tunnel.close`."""
        for place in [*self._ports.values(), *self._others]:
            place.close()
        self._ports.clear()

    def _abandon(self) -> None:
        self._opening = threading.Lock()  # another thread may have held it at the fork
        for place in [*self._ports.values(), *self._others]:
            place.abandon()
        self._ports = {}


class SshtunnelPort:
    """A local TCP port held by sshtunnel's threads. See `LocalPort`."""

    def __init__(self, forwarder: _Forwarder) -> None:
        self._forwarder = forwarder
        self._pid = os.getpid()
        self.words = forwarder.words
        try:
            forwarder.start()
        except sshtunnel.BaseSSHTunnelForwarderError as error:
            forwarder.end()
            why = self.words.wait(0, 0.0) or error
            raise ConnectError(f"sshtunnel could not open its local port: {why}") from error
        except BaseException:
            forwarder.end()
            raise
        self.port = int(forwarder.local_bind_port)

    @property
    def is_up(self) -> bool:
        """See `LocalPort.is_up`."""
        return bool(self._forwarder.is_active)

    @property
    def refusals(self) -> int:
        """How often nothing listened there."""
        return self._forwarder.refusals

    def failure(self) -> str:
        """See `LocalPort.failure`."""
        return self.words.wait(0, 0.0) or ("" if self.is_up else "the login under it has ended")

    def close(self) -> None:
        """See `LocalPort.close`."""
        if self._pid == os.getpid():
            self._forwarder.end()

    def abandon(self) -> None:
        """In a forked child: leave it to the parent."""
        self._forwarder.abandon()


class _End:
    """Tells why a stream that began now has ended.

    Args:
        connection: that carries it.
        place: through which it goes.
        target: where it leads, for messages.
    """

    def __init__(self, connection: SshConnection, place: SshtunnelPort, target: str) -> None:
        self._connection, self._place, self._target = connection, place, target
        self._link = connection.link
        self._words, self._refusals = place.words.count, place.refusals

    def explain(self, error: ConnectionLost, *, has_begun: bool) -> ConnectionLost:
        """The error with what is known; sshtunnel itself only speaks of streams that never began."""
        if not self._connection.is_open or self._connection.link is not self._link:
            return ConnectionLost(f"the SSH connection under sshtunnel to {self._target} broke{self._why()}")
        said = "" if has_begun else self._place.words.wait(self._words, WORDS_S)
        if not said:
            return error
        message = f"sshtunnel could not connect to {self._target}: {said}"
        if self._place.refusals > self._refusals:
            return ConnectionLost(message, nothing_listens=True)
        return ConnectionLost(message)

    def _why(self) -> str:
        why = self._link.trouble or ("the host ended it" if self._link.ended_by_peer else "")
        return f": {why}" if why else ""


_OPEN: weakref.WeakSet[SshtunnelTunnel] = weakref.WeakSet()


def _abandon_all() -> None:
    for tunnel in list(_OPEN):
        tunnel._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
