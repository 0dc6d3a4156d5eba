"""Requests and replies on a session's data connection: one at a time, each run once, and what a broken link means."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from typing import Any

from remote_env.errors import (
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    PolicyError,
    ProtocolError,
    RemoteEnvError,
    SessionLost,
    TaskError,
    Unsupported,
)
from remote_env.protocol import codec, frames
from remote_env.session.control import ControlLink, describe_ending
from remote_env.session.explain import explain_delay
from remote_env.transport import Transport

log = logging.getLogger("remote_env")

_KINDS: dict[str, type[RemoteEnvError]] = {
    "InputError": InputError,
    "Unsupported": Unsupported,
    "ConfigError": ConfigError,
    "PolicyError": PolicyError,
}


class Exchange:
    """The data connection of a session, once it is open. One request at a time.

    Attributes:
        control: the link to the supervisor.
        is_lost: why the session cannot go on, or None.
    """

    control: ControlLink
    is_lost: RemoteEnvError | None
    _epoch: int

    def _begin_exchange(self, transport: Transport, stream: frames.FrameStream) -> None:
        self._transport, self._stream = transport, stream
        self.is_lost = None
        self._sequence = self._acknowledged = self._looks = 0
        self._unsettled: int | None = None  # the request whose reply was not read yet
        self._unsettled_kind = 0

    @property
    def acts(self) -> int:
        """How many requests were sent that may change the episode: all but looks at it and calls of methods."""
        return self._sequence - self._looks

    def close(self) -> None:
        """Give the simulator back and close both links; never raises."""
        if self.is_lost is None:
            try:
                frame = bytearray(frames.HEADER_SIZE)
                self._sequence += 1
                frames.finish_frame(frame, frames.CLOSE, 0, self._epoch, self._sequence, self._acknowledged, 0)
                self._stream.send(frame, time.monotonic() + 1.0)
            except RemoteEnvError as error:
                log.debug("the data connection was gone at close: %s", error)
        self._transport.close()
        self.control.close()

    def let_go(self) -> None:
        """In a forked child: free its copies of both links' descriptors; the links live on in the parent."""
        self._transport.close()
        self.control.close()

    # The exchange

    def _value(self, kind: int, request: Any, timeout_s: float, where: str = "request") -> Any:
        deadline = time.monotonic() + timeout_s
        return self._read_value(self._ask(kind, request, deadline, 0, where), deadline)

    def _ask(self, kind: int, request: Any, deadline: float, flags: int = 0, where: str = "request") -> frames.Header:
        body, arrays = codec.encode(request, where=where)
        return self._exchange(kind, flags, bytearray(frames.HEADER_SIZE) + body, arrays, deadline)

    def _exchange(
        self,
        kind: int,
        flags: int,
        frame: bytearray,
        payload: Sequence[memoryview],
        deadline: float,
        *,
        abandons: bool = False,
    ) -> frames.Header:
        """Send one request; the header of its reply, whose body and payload are still to be read."""
        if self.is_lost is not None:
            raise copy.copy(self.is_lost)  # each with a traceback of its own
        if self._unsettled is not None and not abandons:
            raise InputError(
                f"the call before this one ({frames.NAMES[self._unsettled_kind]}) was interrupted before its result "
                "came; call resume() to wait for it, or reset() to abandon it"
            )
        self._sequence += 1
        size = sum(map(len, payload)) if payload else 0
        frames.finish_frame(frame, kind, flags, self._epoch, self._sequence, self._acknowledged, size)
        self._send((frame, *payload), kind, deadline)
        return self._await(self._sequence, kind, deadline)

    def _send(self, buffers: Sequence[bytearray | memoryview], kind: int, deadline: float) -> None:
        try:
            self._transport.send_all(buffers, deadline)
            # Until its reply is read whole: a Ctrl-C may come between any two lines.
            self._unsettled, self._unsettled_kind = self._sequence, kind
        except ConnectionLost as error:
            raise self._lose(error) from error
        except BaseException as error:
            # Part of a frame may be out: the link cannot be used again.
            self._break(ConnectionLost(f"a request was cut short ({error!r})"))
            raise

    def _await(self, sequence: int, kind: int, deadline: float, shape: frames.Shape | None = None) -> frames.Header:
        """The header of the reply to a request; the one of `shape` when the reply is just of that, and all there."""
        stream = self._stream
        try:
            if shape is not None:
                got = stream.recv_shaped(shape, deadline)
                if got == sequence:
                    return shape.header
                if got > sequence:
                    raise ProtocolError(f"a reply to request {got} where {sequence} is due")
            header = stream.recv(deadline)
            while header.sequence != sequence:
                self._skip(header, sequence, deadline)
                header = stream.recv(deadline)
        except DeadlineExceeded as error:
            raise explain_delay(self.control, kind) from error
        except ConnectionLost as error:
            raise self._lose(error) from error
        except ProtocolError as error:
            self._break(error)
            raise
        except BaseException:
            if not self._stream.recover(sequence):
                self._break(ConnectionLost("a reply was cut short by an interrupt"))
            raise
        if header.type == frames.RESULT and header.epoch == self._epoch:
            return header
        if header.epoch == self._epoch and header.type == frames.ERROR:
            raise self._error(self._read_value(header, deadline))
        what = frames.NAMES.get(header.type, header.type)
        raise self._break(ProtocolError(f"expected RESULT of session {self._epoch}, got {what} of {header.epoch}"))

    def _skip(self, header: frames.Header, sequence: int, deadline: float) -> None:
        """Pass over the reply to a call that was abandoned."""
        if header.sequence > sequence:
            raise ProtocolError(f"a reply to request {header.sequence} where {sequence} is due")
        if header.payload_size:
            self._fill([memoryview(bytearray(header.payload_size))], header.payload_size, deadline)

    def _read_value(self, header: frames.Header, deadline: float) -> Any:
        value, views = codec.decode(self._stream.body_bytes(), header.payload_size)
        self._fill(views, header.payload_size, deadline)
        self._settle()
        return value

    def _settle(self) -> None:
        """Note that the reply to the last request has been read whole."""
        self._unsettled, self._acknowledged = None, self._sequence

    def _fill(self, views: Sequence[memoryview], size: int, deadline: float) -> None:
        if sum(map(len, views)) != size:
            raise self._break(ProtocolError(f"a payload of {size} bytes where {sum(map(len, views))} are due"))
        if not views:
            return
        try:
            self._stream.fill(views, deadline)
        except ConnectionLost as error:
            raise self._lose(error) from error
        except BaseException as error:
            self._break(ConnectionLost(f"a reply was cut short ({error!r})"))
            raise

    # What went wrong

    def _break(self, error: RemoteEnvError) -> RemoteEnvError:
        """Give the link up: what comes next on it could not be trusted."""
        self.is_lost = SessionLost(f"the session ended: {error}. reset() starts a new one")
        self._transport.close()
        return error

    def _lose(self, error: ConnectionLost) -> RemoteEnvError:
        """The error that says why the data connection ended."""
        status = self.control.why_ended()
        if status:
            tail = status.get("log_tail", "")
            why = status.get("why") or status.get("message")
            last = "\n".join(tail.splitlines()[-10:])
            self.is_lost = SessionLost(
                f"the simulator is gone: {why}; reset() starts a new one. Its last log lines:\n{last}",
                log_tail=tail,
                **describe_ending(status),
            )
        else:
            self.is_lost = SessionLost(f"the link to the simulator broke ({error}); reset() starts a new session")
        self._transport.close()
        return self.is_lost

    def _error(self, value: Any) -> RemoteEnvError:
        kind = _KINDS.get(value["kind"])
        if kind is not None:
            return kind(value["message"], remote_traceback=value["traceback"])
        raised = "" if value["type"] == "TaskError" else f"the task raised {value['type']} in "
        return TaskError(
            f"{raised}{value['during']}: {value['message']}",
            remote_type=value["type"],
            remote_traceback=value["traceback"],
        )
