"""The control link: what a client and a supervisor say to each other."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from remote_env.errors import (
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
    RemoteEnvError,
    StartError,
    TaskError,
)
from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, pack_link, parse_link, refusal
from remote_env.protocol.log_text import clean, last_line
from remote_env.transport import Transport

log = logging.getLogger("remote_env")

Dial = Callable[[float], Transport]
CONTROL_TIMEOUT_S = 10.0  # the supervisor never blocks: an answer that takes longer will not come
LEAVE_TIMEOUT_S = 1.0
STALL_S = 20.0  # a frame that has begun and of which no more comes for so long is a cut link
EVENT_TICK_S = 0.5  # how often a caller who waits for a start hears of it
MAX_LOG_PART = 256 << 10  # bytes of the log in one answer, well below the limit of a link message


class LogPart(NamedTuple):
    """A part of the server's log.

    Attributes:
        text: what it says.
        next: where the part after it begins; such offsets keep growing when the server cuts its log.
        size: where the log ends now.
    """

    text: str
    next: int
    size: int


class ControlLink:
    """The connection that the supervisor holds: start-up events, status, logs, pings, stop.

    Args:
        dial: makes a transport to the server.
        token: the server's.
        session: "new" to take a session, None only to ask.
        client: how the server may name us to others.
        client_at: which process that is; see `TaskSession`.
        lease_s: with a new session: we promise to ping it; what we have not pinged for so long counts as cut off [s].
        resume_s: with a new session: how long it is to be kept while it is cut off [s]; 0: not at all.

    Attributes:
        welcome: what the supervisor said of itself and the session.
        key: the session's secret; "" without one.
        last_status: the newest that came unasked.
    """

    def __init__(
        self,
        dial: Dial,
        token: str,
        deadline: float,
        *,
        session: str | None,
        client: str,
        client_at: str = "",
        lease_s: float | None = None,
        resume_s: float = 0.0,
    ) -> None:
        asked: dict[str, Any] = {"session": session, "client": client, "lease_s": lease_s}
        asked |= {"client_at": client_at or None, "resume_s": resume_s or None}
        given = {name: value for name, value in asked.items() if value is not None or name == "session"}
        self._dial, self._token = dial, token
        self._transport, self._stream, self.welcome, handshake = shake_hands(dial, token, "control", deadline, **given)
        opened = self.welcome.get("session")
        if not isinstance(opened, str if session == "new" else (str, type(None))):
            self._transport.close()
            raise ProtocolError("a WELCOME that names no session")
        self.key = "" if opened is None else handshake.derive_key(opened)
        self._sequence = 0
        self._asking, self._asker = threading.Lock(), 0
        self.last_status: dict[str, Any] = {}

    def take_back(self, deadline: float) -> None:
        """Make this session's link anew, after it broke.

        Raises:
            SessionLost: the session has ended; the message says why.
            ConnectError: nothing answers. And as `ask`.
        """
        self._transport.close()
        made = shake_hands(self._dial, self._token, "control", deadline, key=self.key, session=self.welcome["session"])
        try:
            with self._alone(deadline):
                self._transport, self._stream = made[:2]
                self.last_status = {}
        except BaseException:
            made[0].close()
            raise

    def wait_ready(self, deadline: float, on_status: Callable[[dict[str, Any]], None] | None) -> None:
        """Return when the simulator is ready.

        Raises:
            StartError: it failed or died; `log_tail` holds its last lines.
            DeadlineExceeded: it still starts at the deadline; the message says in which phase.
        """
        status = self.last_status  # which may have come before the answer to a question
        while True:
            try:
                status = status or self.next_event(min(deadline, time.monotonic() + EVENT_TICK_S))
            except DeadlineExceeded:
                status = self.status()
            _check_status(status)
            if on_status is not None:
                on_status(status)
            if status["state"] in ("ready", "busy"):
                return
            if status["state"] in ("failed", "dead"):
                raise _start_error(status)
            if time.monotonic() >= deadline:
                raise _still_starting(status)
            status = {}

    def next_event(self, deadline: float) -> dict[str, Any]:
        """The next status that the supervisor sends unasked; one may also come before another thread's answer."""
        with self._alone(deadline):
            while True:
                header = self._stream.recv(deadline)
                if header.type == frames.EVENT:
                    self.last_status = parse_link(self._stream.body_bytes())
                    return self.last_status
                if header.type == frames.REFUSED:
                    raise refusal(parse_link(self._stream.body_bytes()))

    def ask(self, kind: int, deadline: float, **fields: Any) -> dict[str, Any]:
        """One question, one answer; events that come between are kept as `last_status`. Any thread may ask."""
        with self._alone(deadline):
            self._sequence += 1
            self._stream.send(pack_link(kind, fields, sequence=self._sequence), deadline)
            while True:
                header = self._stream.recv(deadline)
                message = parse_link(self._stream.body_bytes())
                if header.type == frames.REPLY and header.sequence == self._sequence:
                    return message
                if header.type == frames.EVENT:
                    self.last_status = message
                elif header.type == frames.REFUSED:
                    raise refusal(message)

    @contextlib.contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        """One thread at a time reads what comes."""
        me, asking = threading.get_ident(), self._asking
        if self._asker == me or not asking.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            if self._asker not in (0, me):
                raise DeadlineExceeded("another thread still waits for an answer on this link")
            # A Ctrl-C came between two lines of ours, or this is its handler: some of a frame may be out, or in.
            self._asking, self._asker = threading.Lock(), 0
            self._transport.close()
            raise ConnectionLost("a question on this link was interrupted")
        try:
            self._asker = me
            yield
        finally:
            self._asker = 0
            asking.release()

    def status(self, timeout_s: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """What the simulator does now, answered at once whatever it does."""
        return self.ask(frames.STATUS, time.monotonic() + timeout_s)

    def logs(self, lines: int) -> str:
        """The last `lines` lines of the server's log."""
        return self.log_tail(lines).text

    def log_tail(self, lines: int) -> LogPart:
        """The last `lines` lines of the server's log, and where what comes after them begins."""
        return _log_part(self.ask(frames.LOGS, time.monotonic() + CONTROL_TIMEOUT_S, lines=lines))

    def log_since(self, offset: int, deadline: float) -> LogPart:
        """What the log says from `offset` on, at most `MAX_LOG_PART` bytes of it."""
        return _log_part(self.ask(frames.LOGS, deadline, since=offset, max_bytes=MAX_LOG_PART))

    def ping(self, session: str, problems_after: int, deadline: float) -> dict[str, Any]:
        """Renew that session's lease; the problems in the log whose number is above `problems_after`, and the state."""
        return self.ask(frames.PING, deadline, session=session, problems_after=problems_after)

    def dump(self, deadline: float) -> dict[str, Any]:
        """Have the simulator write its Python stacks into the log, from `log_from` on; `error` when none runs."""
        return self.ask(frames.DUMP, deadline)

    def kill(self, deadline: float, session: str | None = None) -> bool:
        """Kill that session's simulator, or this link's; the next session gets a fresh one. False when none runs."""
        about = {} if session is None else {"session": session}
        return "pid" in self.ask(frames.KILL, deadline, **about)

    def keep(self, deadline: float) -> None:
        """Mark the server as left warm on purpose."""
        self.ask(frames.KEEP, deadline, kept=True)

    def stop_server(self, deadline: float) -> None:
        """Have the server end; returns when it has closed everything, or raises DeadlineExceeded."""
        with self._alone(deadline), contextlib.suppress(ConnectionLost):
            self._stream.send(pack_link(frames.STOP, {}), deadline)
            while True:
                self._stream.recv(deadline)

    def leave(self, deadline: float, session: str | None = None) -> None:
        """End that session, or this link's, at once, without waiting for the answer."""
        about = {} if session is None else {"session": session}
        with self._alone(deadline):
            self._stream.send(pack_link(frames.LEAVE, about), deadline)

    def close(self) -> None:
        """End the link, and its session if it has one; never raises."""
        try:
            if self.key:  # answered, hence not lost in a link that breaks just now
                self.ask(frames.LEAVE, time.monotonic() + LEAVE_TIMEOUT_S)
        except (ConnectionLost, DeadlineExceeded):  # a link that has fallen silent is no way to the server, either
            self._leave_by_another(time.monotonic() + LEAVE_TIMEOUT_S)
        except RemoteEnvError as error:
            log.debug("the session could not be left in order: %s", error)
        self._transport.close()

    def _leave_by_another(self, deadline: float) -> None:
        """End the session, whose link is cut, so that nobody has to wait for it."""
        try:
            self.take_back(deadline)
            self.ask(frames.LEAVE, deadline)
        except RemoteEnvError as error:
            log.debug("the session could not be left: %s", error)

    def let_go(self) -> None:
        """In a forked child: free its copy of the descriptor; the link lives on in the parent."""
        self._transport.close()


def shake_hands(
    dial: Dial, token: str, role: str, deadline: float, *, key: str | None = None, **fields: Any
) -> tuple[Transport, frames.FrameStream, dict[str, Any], ClientHandshake]:
    """Open a connection and prove the token to each other, and with `key` that a session is ours.

    Returns:
        The transport, its frames, the WELCOME's fields, and the handshake.

    Raises:
        ConnectError: nothing answers, or the server refused (AuthError: it does not know our token, or we not its).
        SessionLost: the session of `key` has ended.
    """
    handshake = ClientHandshake(token, role, key=key, **fields)
    transport = dial(deadline)
    stream = frames.FrameStream(transport, clock=time.monotonic, stall_s=STALL_S)
    # A supervisor answers at once, whatever its simulator does; a simulator may take all the time there is.
    until = min(deadline, time.monotonic() + CONTROL_TIMEOUT_S)
    try:
        stream.max_frame_size = frames.HEADER_SIZE + frames.MAX_LINK_BODY_SIZE
        stream.send(handshake.hello(), until)
        stream.send(handshake.answer(*_recv_link(stream, until)), until)
        welcome = handshake.finish(*_recv_link(stream, until))
        stream.max_frame_size = frames.HEADER_SIZE + frames.MAX_BODY_SIZE
        return transport, stream, welcome, handshake
    except (DeadlineExceeded, ConnectionLost) as error:
        transport.close()
        raise ConnectError(
            f"what listens there does not answer as a task server does ({error}); is it one, and is it alive?",
            nothing_listens=getattr(error, "nothing_listens", False),
        ) from error
    except BaseException:
        transport.close()
        raise


def _recv_link(stream: frames.FrameStream, deadline: float) -> tuple[int, dict[str, Any]]:
    header = stream.recv(deadline)
    return header.type, parse_link(stream.body_bytes())


def _log_part(reply: dict[str, Any]) -> LogPart:
    text = str(reply["text"])
    size = int(reply.get("size", 0))
    return LogPart(text, int(reply.get("next", size)), size)


def _check_status(status: dict[str, Any]) -> None:
    """ProtocolError when it says something in another type than is due."""
    texts = ("state", "phase", "log_tail", "last_line", "why", "kind", "message", "traceback")
    wrong = [name for name in texts if not isinstance(status.get(name, ""), (str, type(None)))]
    wrong += [name for name in ("since_s", "age_s") if not isinstance(status.get(name, 0), (int, float))]
    due = {"dead": ("why",), "failed": ("message", "kind", "traceback")}.get(str(status.get("state")), ("state",))
    wrong += [name for name in due if status.get(name) is None]
    if wrong:
        raise ProtocolError(f"a status in which {', '.join(wrong)} is missing or no text or number")


def _still_starting(status: dict[str, Any]) -> DeadlineExceeded:
    phase = str(status.get("phase", "starting"))
    last = status.get("last_line") or last_line(status.get("log_tail", "")) or "(none)"
    return DeadlineExceeded(
        f"the simulator is not ready in time: still {phase} after {status.get('since_s', 0.0):.0f} s; its last log "
        f"line: {last}. Give it longer with start_timeout_s=",
        phase=phase,
        last_line=last,
    )


def _start_error(status: dict[str, Any]) -> Exception:
    tail = clean(status.get("log_tail", ""))
    details = {"log_tail": tail, "phase": str(status.get("phase", ""))}
    if status["state"] == "dead":
        details |= describe_ending(status)
        return StartError(f"the simulator died while starting: {status['why']}\n{tail}", **details)
    message, kind = status["message"], status["kind"]
    details["remote_traceback"] = status["traceback"]
    if kind == "ModuleNotFoundError":
        return StartError(f"{message}; install it there, or pass python= with the interpreter that has it", **details)
    if kind == "MissingRequirements":
        return StartError(message, **details)
    if kind == "PolicyError":
        return StartError(message, **details)
    if kind in ("ConfigError", "Unsupported"):
        return ConfigError(message, **details)
    return TaskError(f"the task could not be made: {kind}: {message}", remote_type=kind, **details)


def describe_ending(status: dict[str, Any]) -> dict[str, Any]:
    """How a dead simulator ended: its `exit_status`, or the name of the `signal` that killed it."""
    return {"exit_status": status.get("exit_status"), "signal": status.get("signal")}
