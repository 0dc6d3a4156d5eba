"""The replies of a simulator's loop: transitions, values and errors, each kept until the client has it."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Any

from remote_env.errors import (
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    MessageTooBig,
    NotRun,
    PolicyError,
    RemoteEnvError,
    TaskError,
    Unsupported,
)
from remote_env.protocol import frames, layout
from remote_env.protocol.ledger import Buffer, ReplyLedger
from remote_env.protocol.state_stream import StateSender
from remote_env.server.backend import Backend
from remote_env.server.board import Board
from remote_env.server.delivering import Delivering
from remote_env.server.error_text import error_text, sendable
from remote_env.server.layout_numbers import LayoutNumbers
from remote_env.server.replies import encode_reply
from remote_env.state import SceneState
from remote_env.transport import SocketTransport

SEND_TIMEOUT_S = 60.0  # a client that takes no byte of a reply, or sends none of a request, for so long is gone
MAX_ERROR_TEXT = 64 << 10
_NAMED = (InputError, Unsupported, ConfigError, PolicyError, NotRun)


class Replies:
    """What a simulator's loop answers with, in the session that it serves."""

    backend: Backend
    _board: Board
    _transport: SocketTransport
    _ledger: ReplyLedger
    _layouts: LayoutNumbers
    _epoch: int
    _sequence: int
    _ended_at: int
    _delivering: Delivering | None
    _is_timed: bool
    _states: StateSender | None
    timing: tuple[float, float, float, float]

    def _send_result(
        self,
        frame: bytearray | None,
        payload: Sequence[memoryview] | None,
        rest: dict[str, Any],
        info: dict[str, Any],
        asked: int,
        *,
        is_step: bool,
    ) -> None:
        """Send a transition: its fixed part if it has one, the state's vector if asked for, the rest as a value."""
        if frame is None or payload is None:
            frame, payload, flags = bytearray(frames.HEADER_SIZE), (), 0
        else:
            flags = frames.FIXED
        if asked & frames.WANT_STATE:
            flags |= self._add_state(frame, rest, is_step=is_step)
        if info:
            self._add_info(rest, info)
        if self._is_timed:
            rest["timing"] = self.timing
        if rest:
            flags |= frames.TAIL
            tail, arrays = encode_reply(rest, where="result")
            frame += tail
            payload = [*payload, *arrays]
        self._send(frame, frames.RESULT, self._sequence, flags, payload)

    def _add_state(self, frame: bytearray, rest: dict[str, Any], *, is_step: bool) -> int:
        """Add what the scene is now to a frame, or to its tail; the flags that it needs."""
        state, states = self._read_state(), self._states
        if states is None:
            frame += self._pack_state(state, rest)
            return frames.STATE
        number = self._number_layout(state, rest)
        packed, is_change = states.pack(number, state.values, self._sequence, is_key=not is_step)
        frame += packed
        return frames.STATE | (frames.CHANGE if is_change else 0)

    def _read_state(self) -> SceneState:
        """What comes with a step: the scene now, as the client wants it."""
        state, delivering = self.backend.state(native=False), self._delivering
        return state if delivering is None or delivering.has_links else state.without_links()

    def _add_info(self, rest: dict[str, Any], info: dict[str, Any]) -> None:
        rest["info"] = info

    def _pack_state(self, state: SceneState, rest: dict[str, Any]) -> bytes:
        """The state's vector under its layout's number; the layout itself goes into `rest` until the client has it."""
        return layout.pack_state(self._number_layout(state, rest), state.values)

    def _number_layout(self, state: SceneState, rest: dict[str, Any]) -> int:
        number = self._layouts.number(state.layout)
        if self._layouts.must_announce(number, self._sequence):
            rest["layout"] = state.layout.to_plain()
        return number

    def _send_value(
        self,
        kind: int,
        sequence: int,
        value: Any,
        where: str = "reply",
        *,
        flags: int = 0,
        start: bytes = b"",
    ) -> None:
        body, arrays = encode_reply(value, where=where)
        frame = bytearray(frames.HEADER_SIZE) + start + body
        self._send(frame, kind, sequence, flags | frames.TAIL, arrays)

    def _send(self, frame: bytearray, kind: int, sequence: int, flags: int, payload: Sequence[memoryview]) -> None:
        size = sum(map(len, payload)) if payload else 0
        try:
            frames.finish_frame(frame, kind, flags, self._epoch, sequence, sequence, size)
        except MessageTooBig as error:
            raise TaskError(f"it ran, but its result is too large to send: {error}") from error
        if kind != frames.READY:
            self._ledger.keep(kind, (frame, *payload))
        self._board.sent += len(frame) + size
        self._board.end()  # before the client can know, so that it never sees a finished call as running
        self._send_bytes((frame, *payload))

    def _send_bytes(self, buffers: Sequence[Buffer]) -> None:
        try:
            self._transport.send_all(buffers, time.monotonic() + SEND_TIMEOUT_S)
        except (ConnectionLost, DeadlineExceeded) as error:
            raise LinkEnded(str(error)) from error

    def _send_error(self, error: Exception) -> None:
        value = self._describe_error(error)
        self._layouts.withdraw(self._sequence)
        self._send_value(frames.ERROR, self._sequence, value)

    def _describe_error(self, error: Exception) -> dict[str, str]:
        """What the client is told of an error, while that is handled; what was sent behind the request is not run."""
        # A caller's fault and a missing ability keep their own class; everything else is the task's.
        named = next((kind for kind in _NAMED if type(error) is kind), None)
        if named is not NotRun:
            self._ended_at = self._sequence
        if named is PolicyError or (named is None and not isinstance(error, RemoteEnvError)):
            traceback.print_exc()
        return {
            "kind": named.__name__ if named else "TaskError",
            "type": type(error).__name__,
            "message": sendable(error_text(error), MAX_ERROR_TEXT),
            "traceback": sendable(getattr(error, "remote_traceback", "") or traceback.format_exc(), MAX_ERROR_TEXT),
            "during": self._board.read().call,
        }


class LinkEnded(Exception):
    """The data connection is gone; not to be mistaken for what a task raises."""
