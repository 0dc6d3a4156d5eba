"""How a session's two connections are made, and made again after a cut."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from remote_env.errors import (
    AuthError,
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    HostKeyError,
    ProtocolError,
    RemoteEnvError,
    SessionLost,
    VersionMismatch,
)
from remote_env.protocol import frames
from remote_env.session.control import ControlLink, Dial, describe_ending, shake_hands
from remote_env.transport import Transport

log = logging.getLogger("remote_env")

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
FIRST_ATTEMPT_S = 10.0  # doubled after each attempt that needed more: some hosts take long over a login
ASK_TIMEOUT_S = 2.0  # a supervisor answers at once; a link on which it does not is as good as cut
LOOK_AGAIN_S = 0.1
HELD_S = 5.0  # a link that lasted so long is another one
# Another attempt would end as this one did.
_FINAL = (AuthError, HostKeyError, VersionMismatch, ConfigError)


class LinkEvent(NamedTuple):
    """What happened to a session's link.

    Attributes:
        kind: "cut", "resumed" or "lost".
        why: in words.
        after_s: since the cut [s].
        attempts: how many there were to reconnect.
    """

    kind: str
    why: str
    after_s: float = 0.0
    attempts: int = 0


class LinkOptions(NamedTuple):
    """What a session does about a link that breaks.

    Attributes:
        resume: reconnect and go on; else the session is lost with its link.
        reconnect_timeout_s: how long to try [s].
        keep_s: how long the server is asked to keep the session meanwhile [s].
        on_link: told of each `LinkEvent`.
        where: the server's address, to show.
    """

    resume: bool = True
    reconnect_timeout_s: float = 60.0
    keep_s: float = 90.0
    on_link: Callable[[LinkEvent], None] | None = None
    where: str = "the server"


DEFAULT_LINK_OPTIONS = LinkOptions()


class Joining:
    """Makes the connections of one session.

    Args:
        dial: makes transports to the server, if need be over a new login.
        token: the server's.
        control: the session's, which opened it.
        options: what to do when a connection breaks.

    Attributes:
        is_telling: `on_link` runs, in the middle of a call.
    """

    def __init__(self, dial: Dial, token: str, control: ControlLink, options: LinkOptions) -> None:
        self._dial, self._token, self._control, self._options = dial, token, control, options
        self._session = str(control.welcome["session"])
        self._cut_at: float | None = None
        self._why: RemoteEnvError = ConnectionLost("it was not connected yet")
        self._cut_received, self._attempts = -1, 0
        self._made_at, self._is_told = 0.0, False
        self.is_telling = False

    def open_data(self, resume: int | None, deadline: float) -> tuple[Transport, frames.FrameStream]:
        """A data connection that the simulator is about to answer, with READY or RESUMED."""
        transport, stream, _, _ = shake_hands(
            self._dial, self._token, "data", deadline, key=self._control.key, session=self._session, resume=resume
        )
        return transport, stream

    # After a cut

    def begin(self, why: RemoteEnvError, received: int, *, quietly: bool = False) -> float:
        """Note that the link is cut; until when it is to be made anew [s, monotonic].

        Args:
            why: what broke it.
            received: the last reply that came; a link that breaks again before another does, and at once, gets no more
                time than what is left of it.
            quietly: nobody is to be told unless that takes more than one attempt.
        """
        now = time.monotonic()
        if self._cut_at is None or received != self._cut_received or now - self._made_at > HELD_S:
            self._cut_at, self._cut_received, self._attempts, self._is_told = now, received, 0, False
        self._why = why
        if not quietly:
            self._tell_cut()
        return self._cut_at + self._options.reconnect_timeout_s

    def _tell_cut(self) -> None:
        if not self._is_told:
            self._is_told = True
            where, limit_s = self._options.where, self._options.reconnect_timeout_s
            log.warning("the link to %s is cut (%s); reconnecting for up to %g s", where, self._why, limit_s)
            self._tell(LinkEvent("cut", str(self._why)))

    def reconnect(self, make: Callable[[float], T], until: float) -> T:
        """Try until there is a control connection and what `make` makes by the deadline it is given.

        Raises:
            SessionLost: the simulator, the session or the server is gone, or the time is over.
        """
        patience_s = FIRST_ATTEMPT_S
        while True:
            self._pause(until)
            self._attempts += 1
            deadline = min(until, time.monotonic() + patience_s)
            try:
                self._hold_control(deadline)
                made = make(deadline)
                self._made_at = time.monotonic()
                return made
            except _FINAL as error:
                # One damaged byte names another version, too, but hardly twice.
                if not isinstance(error, VersionMismatch) or isinstance(self._why, VersionMismatch):
                    raise self._give_up(f"the server cannot be had back: {error}") from error
                self._why = error
            except ConnectError as error:
                if error.nothing_listens:
                    raise self._give_up(f"the server is gone: {error}") from error
                self._why = error
            except (ConnectionLost, DeadlineExceeded, ProtocolError) as error:
                self._why = error
            except SessionLost as error:
                self._tell_loss(str(error))
                raise
            log.debug("attempt %d to reconnect to %s: %s", self._attempts, self._options.where, self._why)
            self._tell_cut()
            if time.monotonic() >= deadline:
                patience_s *= 2

    def resumed(self, taken: int) -> None:
        """Note that the session goes on."""
        if self._is_told:
            self._is_told = False
            what = "resumed the session with %s after %.1f s at request %d: nothing was lost"
            log.warning(what, self._options.where, self._after_s, taken)
            self._tell(LinkEvent("resumed", f"at request {taken}", self._after_s, self._attempts))

    def explain_loss(self, why: RemoteEnvError) -> SessionLost:
        """The error for a link that is not to be made anew: the simulator's end, if that is what broke it."""
        status = self._wait_for_end()
        if status is None:
            return self._give_up(f"the link to the simulator broke ({why})")
        gone = simulator_gone(status)
        self._tell_loss(str(gone))
        return gone

    def _wait_for_end(self) -> dict[str, Any] | None:
        """The status of a simulator that has ended, which is noticed a little after its link's end; None of another."""
        until = time.monotonic() + ASK_TIMEOUT_S
        try:
            while time.monotonic() < until:
                status = self._control.status(ASK_TIMEOUT_S)
                if _has_ended(status):
                    return status
                time.sleep(LOOK_AGAIN_S)
        except RemoteEnvError as error:
            log.debug("no word from the supervisor: %s", error)
            last = self._control.last_status  # such as that the lease ran out
            return last if last.get("state") == "dead" else None
        return None

    def _pause(self, until: float) -> None:
        if time.monotonic() >= until:
            limit_s = self._options.reconnect_timeout_s
            what = f"the link was cut and could not be made anew within {limit_s:g} s"
            raise self._give_up(f"{what} ({self._why})") from self._why
        if self._attempts:
            pause_s = min(FIRST_PAUSE_S * 2 ** (self._attempts - 1), LONGEST_PAUSE_S)
            # Jitter: many clients of one machine lose their links at once.
            time.sleep(min(pause_s * random.uniform(0.5, 1.0), max(until - time.monotonic(), 0.0)))

    @property
    def _after_s(self) -> float:
        return 0.0 if self._cut_at is None else time.monotonic() - self._cut_at

    def _hold_control(self, deadline: float) -> None:
        """Have a control connection, and a simulator that lives."""
        control = self._control
        try:
            status = control.status(min(ASK_TIMEOUT_S, max(deadline - time.monotonic(), 0.0)))
        except (ConnectionLost, DeadlineExceeded, ProtocolError):
            control.take_back(deadline)
            status = control.status(max(deadline - time.monotonic(), 0.0))
        if _has_ended(status):
            raise simulator_gone(status)

    def _give_up(self, why: str) -> SessionLost:
        self._tell_loss(why)
        return SessionLost(f"{why}; reset() starts a new session")

    def _tell_loss(self, why: str) -> None:
        log.warning("the session with %s is lost: %s", self._options.where, why.partition("\n")[0])
        self._tell(LinkEvent("lost", why, self._after_s, self._attempts))

    def _tell(self, event: LinkEvent) -> None:
        if self._options.on_link is None:
            return
        self.is_telling = True
        try:
            self._options.on_link(event)
        except Exception:  # the call that it was told in goes on all the same
            log.exception("on_link= raised as it was told of a link that is %s", event.kind)
        finally:
            self.is_telling = False


def _has_ended(status: dict[str, Any]) -> bool:
    return status["state"] in ("dead", "failed")


def simulator_gone(status: dict[str, Any]) -> SessionLost:
    """The error for a simulator that a status says has ended."""
    tail = status.get("log_tail", "")
    why = status.get("why") or status.get("message")
    last = "\n".join(tail.splitlines()[-10:])
    return SessionLost(
        f"the simulator is gone: {why}; reset() starts a new one. Its last log lines:\n{last}",
        log_tail=tail,
        **describe_ending(status),
    )
