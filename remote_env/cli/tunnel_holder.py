"""One tunnel for programs of others: opened, proved, and opened again when its SSH connection ends."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
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
_NUMBER = re.compile(r"\d+")
_QUESTION = "; does anything listen there?"

Say = Callable[[str], None]


class Ending:
    """Whether a signal has asked for the end; no Event, since one set in a signal's handler may wait for itself.

    Attributes:
        is_asked: since when only `close` matters.
    """

    is_asked = False

    def ask(self, *_: object) -> None:
        """A signal's handler: ends what is in progress, the first time."""
        if not self.is_asked:
            self.is_asked = True
            raise KeyboardInterrupt


@contextlib.contextmanager
def ended_by_signals() -> Iterator[Ending]:
    """Ctrl-C, SIGTERM and SIGHUP ask for the end, and the block ends with no more than that."""
    ending = Ending()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, ending.ask) for number in numbers}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        self.port = _choose_port(request, self._connection.login, say)
        try:
            self._open_first(say)
            self.health = self._prove()
        except BaseException:
            self.close()
            raise

    def _open_first(self, say: Say) -> None:
        try:
            self._open()
        except ConnectError:
            if is_free(self.port):
                raise
            taken, self.port = self.port, free_port()  # while the login was made
            say(f"local port {taken} was taken meanwhile; using {self.port}")
            self._open()

    def _open(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        self._place = self._tunnel.listen(self._request.remote_port, self.port, deadline)

    def _prove(self) -> Health:
        """What is at the far end; ConnectError when nothing is."""
        health = check_health(self.port)
        why = self._why_closed() if health.state == CLOSED else ""
        if why:
            raise ConnectError(
                f"nothing answers on port {self._request.remote_port} of {self._request.host}: "
                f"{why.removesuffix(_QUESTION)}. Is the server running? remote-env ps {self._request.host}"
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

    def hold(self, ending: Ending, say: Say, show: Say = lambda _: None) -> None:
        """Keep it open until the end is asked for; `say` is told each change of state, `show` each answer."""
        said, asked = self.health.words, time.monotonic()
        while not ending.is_asked:
            time.sleep(LOOK_S)
            if not self.is_up:
                self._reopen(ending, say)
            elif time.monotonic() - asked < HEALTH_S:
                continue
            asked = time.monotonic()
            self.health = self._look()
            show(self.health.words)
            if _NUMBER.sub("", self.health.words) != _NUMBER.sub("", said):  # not at each "building for 12 s"
                say(said := self.health.words)

    def _look(self) -> Health:
        try:
            return self._prove()
        except ConnectError as error:
            return Health(CLOSED, str(error))

    def _reopen(self, ending: Ending, say: Say) -> None:
        why = self._place.failure() if self._place is not None else ""
        say(f"the SSH connection ended{f' ({why})' if why else ''}; opening it again")
        pause_s = FIRST_PAUSE_S
        while not ending.is_asked:
            if self._place is not None:
                self._place.close()
            try:
                self._open()
            except RemoteEnvError as error:
                say(f"not yet: {error}")
                time.sleep(pause_s)
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


def _choose_port(request: Request, login: Any, say: Say) -> int:
    wanted = request.local_port
    if _may_lead_to_itself(request, login):
        why = f"{request.host} may be this machine, where port {wanted} would lead to itself"
    elif not is_free(wanted):
        why = f"local port {wanted} cannot be had (taken, or not allowed)"
    else:
        return wanted
    port = free_port()
    say(f"{why}; using {port}")
    return port


def _may_lead_to_itself(request: Request, login: Any) -> bool:
    """Whether each connection would open another, without end."""
    is_here = login.via is None and (login.address in ("localhost", "::1") or login.address.startswith("127."))
    return is_here and request.local_port == request.remote_port and is_free(request.local_port)
