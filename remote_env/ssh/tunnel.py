"""Ways from this machine to the ports of a host: a channel of the login, OpenSSH, sshtunnel."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from remote_env.errors import ConfigError, ConnectionLost, DeadlineExceeded
from remote_env.ssh.connection import SshConnection
from remote_env.transport import Buffer, Transport

KINDS = ("channel", "openssh", "sshtunnel")
LOOPBACK = "127.0.0.1"


class LocalPort(Protocol):
    """A TCP port of 127.0.0.1 that leads to a port of the host, for programs of others.

    That it accepts a connection proves nothing about the far end.

    Attributes:
        port: the local port.
    """

    port: int

    @property
    def is_up(self) -> bool:
        """Whether the SSH connection under it lives and it listens."""

    def failure(self) -> str:
        """Why connections through it failed, or it ended, in the words of who noticed; "" when nothing is known."""

    def close(self) -> None:
        """Stop listening and end every connection through it; never raises, and may be called again."""


class Tunnel(Protocol):
    """A way to the ports of one host.

    Attributes:
        kind: one of `KINDS`.
    """

    kind: str

    def dial(self, port: int, deadline: float, host: str = LOOPBACK) -> Transport:
        """A transport to `host:port` as seen from the remote machine.

        Through "openssh" and "sshtunnel" it proves nothing yet: when nothing listens there, the first receive is
        `ConnectionLost`, with the reason. `nothing_listens=True` is among the details of the error, whichever it is,
        when the host's own kernel said so.

        Raises:
            ConnectError: the tunnel cannot be made (HostKeyError, AuthError: see there); with "channel" also when
                nothing listens there or sshd forbids forwarding.
            DeadlineExceeded: no answer in time.
            ConnectionLost: the link broke.
        """

    def needs_login(self, port: int, host: str = LOOPBACK) -> bool:
        """Whether a `dial` to there would log in first."""

    def listen(self, port: int, local_port: int, deadline: float, host: str = LOOPBACK) -> LocalPort:
        """Have `local_port` of 127.0.0.1 (0: any free one) lead to `host:port` as seen from the remote machine.

        Raises:
            ConnectError: the local port is taken, or as `dial`.
            DeadlineExceeded: no answer in time.
            ConnectionLost: the link broke.
        """

    def close(self) -> None:
        """End everything that this tunnel started; never raises, and may be called again."""


def open_tunnel(kind: str, connection: SshConnection) -> Tunnel:
    """The tunnel of this kind to where `connection` leads; nothing is started before the first dial.

    Args:
        kind: "channel" takes a channel of `connection` itself, "openssh" the system's `ssh -L` to a Unix socket,
            "sshtunnel" a local TCP port and a login of its own.
        connection: need not be connected yet.

    Raises:
        ConfigError: there is no such kind, or no ssh program for "openssh".
    """
    if kind == "channel":
        return ChannelTunnel(connection)
    if kind == "openssh":
        from remote_env.ssh.openssh import OpensshTunnel

        return OpensshTunnel(connection)
    if kind == "sshtunnel":
        from remote_env.ssh.forward import SshtunnelTunnel

        return SshtunnelTunnel(connection)
    raise ConfigError(f"tunnel={kind!r} is unknown; allowed are {', '.join(map(repr, KINDS))}")


class ChannelTunnel:
    """Channels of the login itself: no local port, no further process or login. See `Tunnel`."""

    kind = "channel"

    def __init__(self, connection: SshConnection) -> None:
        self._connection = connection

    def dial(self, port: int, deadline: float, host: str = LOOPBACK) -> Transport:
        """See `Tunnel.dial`; ConnectError when nothing listens there."""
        self._connection.connect(deadline)  # nothing when logged in already
        return self._connection.open_port(port, deadline, host)

    def needs_login(self, port: int, host: str = LOOPBACK) -> bool:  # noqa: ARG002  the login serves all ports
        """See `Tunnel.needs_login`."""
        return not self._connection.is_open

    def listen(self, port: int, local_port: int, deadline: float, host: str = LOOPBACK) -> LocalPort:
        """See `Tunnel.listen`."""
        from remote_env.ssh.local_port import ChannelPort

        self._connection.connect(deadline)
        return ChannelPort(self._connection, (host, port), local_port)

    def close(self) -> None:
        """Nothing: the login is the caller's."""


class ExplainedTransport:
    """A `Transport` through a tunnel, whose end is told with what the tunnel knows about it.

    Args:
        transport: to the tunnel's near end; owned from now on.
        explain: takes why the stream ended; what to raise instead.

    Attributes:
        heard_at: when bytes last came (`time.monotonic()`), 0.0 before the first.
    """

    def __init__(self, transport: Transport, explain: Callable[[ConnectionLost], ConnectionLost]) -> None:
        self._explain = explain
        self._transport = transport
        self._send_all, self._recv_some_into = transport.send_all, transport.recv_some_into
        self._is_closed = False
        self.heard_at = 0.0

    def _lost(self, error: ConnectionLost) -> ConnectionLost:
        return ConnectionLost("the connection was closed here") if self._is_closed else self._explain(error)

    def close(self) -> None:
        """See `Transport.close`."""
        self._is_closed = True
        self._transport.close()

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """See `Transport.send_all`."""
        try:
            self._send_all(buffers, deadline)
        except ConnectionLost as error:
            raise self._lost(error) from error

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        """See `Transport.recv_some_into`."""
        try:
            size = self._recv_some_into(view, deadline)
        except ConnectionLost as error:
            raise self._lost(error) from error
        self.heard_at = time.monotonic()
        return size

    def has_bytes(self) -> bool:
        """See `Transport.has_bytes`."""
        return self._transport.has_bytes()

    def recv_exactly_into(self, view: memoryview, deadline: float) -> None:
        """See `Transport.recv_exactly_into`."""
        done, size = 0, len(view)
        while done < size:
            done += self.recv_some_into(view[done:], deadline)
            if done < size and time.monotonic() >= deadline:  # bytes may come one by one for ever
                raise DeadlineExceeded(f"{done} of {size} bytes were received before the deadline")
