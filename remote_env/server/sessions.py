"""Who holds which simulator, since when, and for how long nothing has been heard of them. Standard library only."""

from __future__ import annotations

import secrets
import time
from collections import deque
from typing import Any, NamedTuple

from remote_env.errors import AuthError, ProtocolError, RemoteEnvError, SessionLost
from remote_env.protocol import machine
from remote_env.server.peer import Peer
from remote_env.server.process import SimulatorProcess
from remote_env.server.simulators import Simulators

FIRST_CLIENT_TIMEOUT_S = 120.0  # a started server to which nobody ever comes ends itself
MAX_LEASE_S = 7 * 86400.0
MAX_RESUME_S = 3600.0
MAX_REMEMBERED = 64


class Session:
    """One client's hold on one simulator.

    Attributes:
        id: which others may know.
        key: its secret, which the client has derived too.
        state: of `machine.SESSION`.
        control: its control connection; None while it is cut off.
        simulator: which it holds.
        epoch: its number at the simulator; 0 before its first data connection.
        holder: how its client calls itself.
        holder_at: which process of which machine that is, as it says.
        since: when it began [s, Unix time].
        lease_s: how long its connections last without a sign of life [s]; infinite without a lease.
        resume_s: how long it is kept while it is cut off [s]; 0: not at all.
        is_waiting: its simulator still works for another session, or ends; it gets a new one if that ends.
    """

    def __init__(
        self, control: Peer, simulator: SimulatorProcess, holder: str, lease_s: float, resume_s: float
    ) -> None:
        self.id = secrets.token_hex(8)
        self.key = control.handshake.derive_key(self.id)
        self.state = machine.HELD
        self.control: Peer | None = control
        self.simulator = simulator
        self.epoch = 0
        self.holder, self.holder_at = holder, ""
        self.since = time.time()
        self.lease_s, self.resume_s = lease_s, resume_s
        self.is_waiting = bool(simulator.condemned or simulator.abandoned_for_s)
        self._renewed = time.monotonic()

    def renew(self) -> None:
        """Note a sign of life."""
        self._renewed = time.monotonic()

    def advance(self, event: str) -> None:
        """Note what happened to it; see `machine.SESSION`."""
        self.state = machine.advance(machine.SESSION, self.state, event)
        self.renew()

    @property
    def heard_s(self) -> float:
        """When there was the last sign of life [s, monotonic]."""
        # Every call that begins or ends is one.
        return max(self._renewed, self.simulator.read_board().since)

    @property
    def expires(self) -> float:
        """When its lease runs out, or the time for which it is kept, unless there is another sign of life [s]."""
        return self.heard_s + (self.resume_s if self.state == machine.CUT_OFF else self.lease_s)


class Sessions:
    """All that are open.

    Args:
        simulators: where new sessions get theirs.
        max_sessions: how many there may be at once.
        idle_timeout_s: how long the server outlives the last one [s].

    Attributes:
        max_sessions: how many there may be at once.
        had_client: whether there ever was one.
        opened: how many there were in all.
        kept: the server is to stay warm, by a client's wish.
        resumed: how many times one was taken back after a cut.
    """

    def __init__(self, simulators: Simulators, max_sessions: int, idle_timeout_s: float) -> None:
        self._simulators = simulators
        self.max_sessions = max_sessions
        self.idle_timeout_s = idle_timeout_s
        self._open: dict[str, Session] = {}
        self._ended: deque[_Ended] = deque(maxlen=MAX_REMEMBERED)
        self._idle_since = time.monotonic()
        self.opened = self.resumed = 0
        self.kept = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def had_client(self) -> bool:
        """Whether any was ever opened."""
        return self.opened > 0

    def holders(self) -> list[dict[str, Any]]:
        """Who holds a session, since when [s, Unix time], and whether the link is cut; then which session it is."""
        return [
            {
                "client": session.holder,
                "since": session.since,
                "cut_off": session.state == machine.CUT_OFF,
                **(_whereabouts(session) if session.state == machine.CUT_OFF else {}),
            }
            for session in self._open.values()
        ]

    @property
    def cut_off(self) -> int:
        """How many are cut off."""
        return sum(session.state == machine.CUT_OFF for session in self._open.values())

    def held_by(self, peer: Peer) -> Session | None:
        """The session whose control connection this is."""
        return next((session for session in self._open.values() if session.control is peer), None)

    def holding(self, simulator: SimulatorProcess) -> list[Session]:
        """Those that hold or wait for this simulator."""
        return [session for session in self._open.values() if session.simulator is simulator]

    def offer(self, simulator: SimulatorProcess) -> None:
        """Give a simulator that nobody holds, and that is free now, to the first who waits for another's end."""
        waiting = next((session for session in self._open.values() if session.is_waiting), None)
        if waiting is not None and simulator.usable and not simulator.abandoned_for_s and not self.holding(simulator):
            waiting.simulator, waiting.is_waiting = simulator, False

    def find(self, name: str) -> Session | None:
        """The open session of this id."""
        return self._open.get(name)

    def why_ended(self, name: str) -> str:
        """Why there is no session of this id."""
        ended = self._find_ended(name)
        return "there is no such session" if ended is None else ended.why

    def _find_ended(self, name: str) -> _Ended | None:
        return next((ended for ended in self._ended if ended.id == name), None)

    def open(self, peer: Peer) -> Session:
        """A session for a client that has proved itself.

        Raises:
            RemoteEnvError: all are taken; the message says by whom.
            ProtocolError: its lease is no positive number.
        """
        if len(self) >= self.max_sessions:
            holders = ", ".join(
                f"{holder['client']} since {time.strftime('%H:%M:%S', time.localtime(holder['since']))}"
                for holder in self.holders()
            )
            busy = f"all {self.max_sessions} session(s) of this server are taken (by {holders})"
            cut_off = [session for session in self._open.values() if session.state == machine.CUT_OFF]
            told = "".join(
                f"; the link of {session.holder} is cut, and it is expected back for another "
                f"{session.expires - time.monotonic():.0f} s"
                for session in cut_off
            )
            raise RemoteEnvError(
                f"{busy}{told}; close one, or start the server with more",
                cut_off=[{"client": session.holder, **_whereabouts(session)} for session in cut_off],
            )
        hello = peer.handshake.hello
        lease_s = _read_seconds("lease_s", hello.get("lease_s"), float("inf"), MAX_LEASE_S)
        resume_s = _read_seconds("resume_s", hello.get("resume_s"), 0.0, MAX_RESUME_S)
        holder = _printable(hello.get("client", "a client"))
        simulator = self._simulators.take([session.simulator for session in self._open.values()])
        session = Session(peer, simulator, holder, lease_s, resume_s)
        session.holder_at = _printable(hello.get("client_at", ""))
        self._open[session.id] = session
        self.opened += 1
        return session

    def prove(self, peer: Peer) -> Session:
        """The session that a connection names as its own.

        Raises:
            SessionLost: it has ended; the message says why.
            AuthError: there was none, or the client has not shown its secret.
        """
        name = str(peer.handshake.hello.get("session"))
        session = self.find(name)
        if session is not None and peer.handshake.owns(name, session.key):
            return session
        ended = self._find_ended(name)
        if ended is not None and peer.handshake.owns(name, ended.key):
            raise SessionLost(f"this session has ended: {ended.why}")
        raise AuthError("no such session here, or not this client's; open a control connection first")

    def close(self, session: Session, why: str, event: str = "left") -> None:
        """End one; its simulator is free when it has done what it does."""
        if self._open.pop(session.id, None) is None:
            return
        session.advance(event)
        self._ended.append(_Ended(session.id, session.key, why))
        session.simulator.abandon()
        self._idle_since = time.monotonic()

    def overdue(self, now: float) -> list[Session]:
        """Those of whom nothing was heard for the time of their lease, or for which they are kept."""
        return [session for session in self._open.values() if session.expires <= now]

    @property
    def idle_limit_s(self) -> float:
        """How long the server waits for a client now [s]."""
        return self.idle_timeout_s if self.had_client else max(self.idle_timeout_s, FIRST_CLIENT_TIMEOUT_S)

    @property
    def idle_s(self) -> float:
        """How long nobody has held a session [s]; 0 while somebody does."""
        return 0.0 if self._open else time.monotonic() - self._idle_since

    def next_deadline(self) -> float:
        """When the next lease runs out, or the server has waited long enough [s, monotonic]."""
        if not self._open:
            return self._idle_since + self.idle_limit_s
        return min(session.expires for session in self._open.values())


class _Ended(NamedTuple):
    """What is remembered of a session."""

    id: str
    key: str
    why: str


def _printable(given: object) -> str:
    return "".join(filter(str.isprintable, str(given)))[:200]


def _whereabouts(session: Session) -> dict[str, str]:
    """By which others of its client's machine can tell that nobody comes back for it, and end it."""
    return {"session": session.id, "client_at": session.holder_at}


def _read_seconds(name: str, given: Any, otherwise: float, limit: float) -> float:
    if given is None:
        return otherwise
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if not is_number or not given > 0:
        raise ProtocolError(f"{name} is {given!r}; it must be a positive number of seconds")
    return float(min(given, limit))
