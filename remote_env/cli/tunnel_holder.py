"""One tunnel for programs of others: opened, proved, and opened again when its SSH connection ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from remote_env.cli.health import CLOSED, Health, check_health
from remote_env.env.places import PlaceOptions, make_connection
from remote_env.errors import ConnectError, RemoteEnvError
from remote_env.ssh.local_port import free_port, is_free
from remote_env.ssh.tunnel import LocalPort, open_tunnel

OPEN_TIMEOUT_S = 15.0  # how long a tunnel may take when the login is made
WORDS_S = 0.5  # how long to wait for why a connection ended
LOOK_S = 0.5  # how often the tunnel is looked at
HEALTH_S = 10.0  # how often the far end is asked
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between attempts to open it again

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What tunnel is wanted.

    Attributes:
        host: as the user wrote it.
        remote_port: of the host's 127.0.0.1.
        local_port: of this machine's, if it is free.
        kind: see `remote_env.ssh.tunnel.KINDS`.
    """

    host: str
    remote_port: int
    local_port: int
    kind: str


class TunnelHolder:
    """A local port that leads to a port of a host; `close` it.

    Args:
        request: what is wanted.
        options: how to log in.
        say: is told what a user should know.

    Attributes:
        port: the local port.
        health: what was last found behind it.

    Raises:
        RemoteEnvError: it cannot be opened, or nothing listens at the far end.
    """

    def __init__(self, request: Request, options: PlaceOptions, say: Say) -> None:
        self._request = request
        self._timeout_s = options.connect_timeout_s + OPEN_TIMEOUT_S
        self._connection: Any = make_connection(request.host, options)
        self._tunnel = open_tunnel(request.kind, self._connection)
        self._place: LocalPort | None = None
        self.port = _choose_port(request.local_port, say)
        try:
            self._open()
            self.health = self._prove()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        self._place = self._tunnel.listen(self._request.remote_port, self.port, deadline)

    def _prove(self) -> Health:
        """What is at the far end; ConnectError when nothing is."""
        health = check_health(self.port)
        why = self._why_closed() if health.state == CLOSED else ""
        if why:
            raise ConnectError(
                f"nothing answers on port {self._request.remote_port} of {self._request.host}: {why}. "
                f"Is the server running? remote-env ps {self._request.host}"
            )
        return health

    def _why_closed(self) -> str:
        until = time.monotonic() + WORDS_S
        while self._place is not None and time.monotonic() < until:
            if why := self._place.failure():
                return why
            time.sleep(0.01)
        return ""

    @property
    def is_up(self) -> bool:
        """Whether the SSH connection lives and the port listens."""
        return self._place is not None and self._place.is_up

    def hold(self, ended: threading.Event, say: Say) -> None:
        """Keep it open until `ended`; `say` is told each change of state."""
        shown, asked = self.health.words, time.monotonic()
        while not ended.wait(LOOK_S):
            if not self.is_up:
                self._reopen(ended, say)
            elif time.monotonic() - asked < HEALTH_S:
                continue
            asked = time.monotonic()
            self.health = self._look()
            if self.health.words != shown:
                say(shown := self.health.words)

    def _look(self) -> Health:
        try:
            return self._prove()
        except ConnectError as error:
            return Health(CLOSED, str(error))

    def _reopen(self, ended: threading.Event, say: Say) -> None:
        why = self._place.failure() if self._place is not None else ""
        say(f"the SSH connection ended{f' ({why})' if why else ''}; opening it again")
        pause_s = FIRST_PAUSE_S
        while not ended.is_set():
            if self._place is not None:
                self._place.close()
            try:
                self._open()
            except RemoteEnvError as error:
                say(f"not yet: {error}")
                ended.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                say("open again")
                return

    def close(self) -> None:
        """Close the port and the login under it."""
        if self._place is not None:
            self._place.close()
        self._tunnel.close()
        self._connection.close()


def _choose_port(wanted: int, say: Say) -> int:
    if is_free(wanted):
        return wanted
    port = free_port()
    say(f"local port {wanted} cannot be had (taken, or not allowed); using {port}")
    return port
