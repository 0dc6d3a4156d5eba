"""The control link: what a client and a supervisor say to each other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from remote_env.errors import (
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
    StartError,
    TaskError,
)
from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, pack_link, parse_link, refusal
from remote_env.transport import Transport

log = logging.getLogger("remote_env")

Dial = Callable[[float], Transport]
CONTROL_TIMEOUT_S = 10.0  # the supervisor never blocks: an answer that takes longer will not come
AFTERMATH_TIMEOUT_S = 2.0  # how long to wait for the supervisor to say why a data connection ended
EVENT_TICK_S = 0.5  # how often a caller who waits for a start hears of it


class ControlLink:
    """The connection that the supervisor holds: start-up events, status, logs, stop.

    Args:
        dial: makes a transport to the server.
        token: the server's.
        session: "new" to take a session, None only to ask.
        client: how the server may name us to others.
    """

    def __init__(self, dial: Dial, token: str, deadline: float, *, session: str | None, client: str) -> None:
        self._transport, self._stream, self.welcome = shake_hands(
            dial, token, "control", deadline, session=session, client=client
        )
        self._sequence = 0
        self.last_status: dict[str, Any] = {}

    def wait_ready(self, deadline: float, on_status: Callable[[dict[str, Any]], None] | None) -> None:
        """Return when the simulator is ready.

        Raises:
            StartError: it failed or died; `log_tail` holds its last lines.
            DeadlineExceeded: it still starts at the deadline; the message says in which phase.
        """
        while True:
            try:
                status = self.next_event(min(deadline, time.monotonic() + EVENT_TICK_S))
            except DeadlineExceeded:
                status = self.status()
            if on_status is not None:
                on_status(status)
            if status["state"] in ("ready", "busy"):
                return
            if status["state"] in ("failed", "dead"):
                raise _start_error(status)
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(_still_starting(status))

    def next_event(self, deadline: float) -> dict[str, Any]:
        """The next status that the supervisor sends unasked."""
        while True:
            header = self._stream.recv(deadline)
            if header.type == frames.EVENT:
                self.last_status = parse_link(self._stream.body_bytes())
                return self.last_status
            if header.type == frames.REFUSED:
                raise refusal(parse_link(self._stream.body_bytes()))

    def ask(self, kind: int, deadline: float, **fields: Any) -> dict[str, Any]:
        """One question, one answer; events that come between are kept as `last_status`."""
        self._sequence += 1
        self._stream.send(pack_link(kind, fields, sequence=self._sequence), deadline)
        while True:
            header = self._stream.recv(deadline)
            message = parse_link(self._stream.body_bytes())
            if header.type == frames.REPLY and header.sequence == self._sequence:
                return message
            if header.type == frames.EVENT:
                self.last_status = message

    def status(self, timeout_s: float = CONTROL_TIMEOUT_S) -> dict[str, Any]:
        """What the simulator does now, answered at once whatever it does."""
        return self.ask(frames.STATUS, time.monotonic() + timeout_s)

    def logs(self, lines: int) -> str:
        """The last `lines` lines of the server's log."""
        return str(self.ask(frames.LOGS, time.monotonic() + CONTROL_TIMEOUT_S, lines=lines)["text"])

    def stop_server(self, deadline: float) -> None:
        """Have the server end; returns when it has closed everything, or raises DeadlineExceeded."""
        self._stream.send(pack_link(frames.STOP, {}), deadline)
        try:
            while True:
                self._stream.recv(deadline)
        except ConnectionLost:
            return

    def why_ended(self) -> dict[str, Any]:
        """After the data connection broke: the status that explains it; {} when no word of a death came."""
        deadline = time.monotonic() + AFTERMATH_TIMEOUT_S
        try:
            while time.monotonic() < deadline:
                status = self.next_event(deadline)
                if status["state"] in ("dead", "failed"):
                    return status
        except (ConnectionLost, DeadlineExceeded, ProtocolError) as error:
            log.debug("no word from the supervisor: %s", error)
        return {}

    def close(self) -> None:
        """End the link, and with it the session."""
        self._transport.close()


def shake_hands(
    dial: Dial, token: str, role: str, deadline: float, **fields: Any
) -> tuple[Transport, frames.FrameStream, dict[str, Any]]:
    """Open a connection and prove the token to each other; the transport, its frames, and the WELCOME's fields.

    Raises:
        ConnectError: nothing answers, or the server refused (AuthError: it does not know our token, or we not its).
    """
    handshake = ClientHandshake(token, role, **fields)
    transport = dial(deadline)
    stream = frames.FrameStream(transport)
    # A supervisor answers at once, whatever its simulator does; a simulator may take all the time there is.
    until = min(deadline, time.monotonic() + CONTROL_TIMEOUT_S)
    try:
        stream.max_frame_size = frames.HEADER_SIZE + frames.MAX_LINK_BODY_SIZE
        stream.send(handshake.hello(), until)
        stream.send(handshake.answer(*_recv_link(stream, until)), until)
        welcome = handshake.finish(*_recv_link(stream, until))
        stream.max_frame_size = frames.HEADER_SIZE + frames.MAX_BODY_SIZE
        return transport, stream, welcome
    except (DeadlineExceeded, ConnectionLost) as error:
        transport.close()
        raise ConnectError(
            f"what listens there does not answer as a task server does ({error}); is it one, and is it alive?"
        ) from error
    except BaseException:
        transport.close()
        raise


def _recv_link(stream: frames.FrameStream, deadline: float) -> tuple[int, dict[str, Any]]:
    header = stream.recv(deadline)
    return header.type, parse_link(stream.body_bytes())


def _still_starting(status: dict[str, Any]) -> str:
    last = next((line for line in reversed(status.get("log_tail", "").splitlines()) if line.strip()), "(none)")
    return (
        f"the simulator is not ready in time: still {status.get('phase', 'starting')} after "
        f"{status.get('since_s', 0.0):.0f} s; its last log line: {last}. Give it longer with start_timeout_s="
    )


def _start_error(status: dict[str, Any]) -> Exception:
    tail = status.get("log_tail", "")
    if status["state"] == "dead":
        return StartError(f"the simulator died while starting: {status['why']}\n{tail}", log_tail=tail)
    message, details = status["message"], {"log_tail": tail, "remote_traceback": status["traceback"]}
    if status["kind"] == "ModuleNotFoundError":
        return StartError(f"{message}; install it there, or pass python= with the interpreter that has it", **details)
    if status["kind"] in ("ConfigError", "Unsupported"):
        return ConfigError(message, **details)
    return TaskError(f"the task could not be made: {status['kind']}: {message}", remote_type=status["kind"], **details)
