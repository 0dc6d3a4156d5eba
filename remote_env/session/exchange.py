"""Requests and replies on a session's data connection: each request runs once, whatever happens to the connection."""

from __future__ import annotations

import copy
import logging
import struct
import time
from collections.abc import Sequence
from typing import Any

from remote_env.errors import (
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    NotRun,
    PolicyError,
    ProtocolError,
    RemoteEnvError,
    SessionLost,
    TaskError,
    Unsupported,
)
from remote_env.protocol import codec, frames, machine
from remote_env.protocol.ledger import REPLIES_LIMIT_BYTES, RequestLedger
from remote_env.session.control import ControlLink
from remote_env.session.explain import explain_delay
from remote_env.session.joining import Joining, LinkOptions
from remote_env.session.link_estimate import LinkEstimate
from remote_env.session.step_clock import StepClock
from remote_env.transport import Transport

log = logging.getLogger("remote_env")

WINDOW = 256  # requests under way at once
WINDOW_BYTES = 64 << 10  # of them; more could fill both directions, and neither end would read
CLOSE_TIMEOUT_S = 1.0
MAX_DAMAGED = 5  # frames in a row
# What reading a reply raises that holds something else than is due.
MALFORMED = (ProtocolError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError, struct.error)
_TOLD = ("kind", "type", "message", "traceback", "during")  # of an error

_KINDS: dict[str, type[RemoteEnvError]] = {
    "InputError": InputError,
    "Unsupported": Unsupported,
    "ConfigError": ConfigError,
    "PolicyError": PolicyError,
    "NotRun": NotRun,
}


class Exchange:
    """The data connection of a session, once it is open.

    Attributes:
        control: the link to the supervisor.
        link_estimate: what replies have shown of the data connection.
        is_lost: why the session cannot go on, or None.
    """

    control: ControlLink
    link_estimate: LinkEstimate
    is_lost: RemoteEnvError | None
    _epoch: int

    def _begin_exchange(self, joining: Joining, options: LinkOptions) -> None:
        self._joining, self._options = joining, options
        self.is_lost = None
        self._requests = RequestLedger()
        self.link_estimate = LinkEstimate()
        self._clock: StepClock | None = None  # where the times of steps are wanted
        self._looks = 0
        self._deadline = 0.0
        self._ledger_bytes, self._largest_reply = REPLIES_LIMIT_BYTES, 0
        self._link = machine.APART
        self._cut: RemoteEnvError = ConnectionLost("not connected yet")
        self._is_own_cut = True  # made by us, when a call was cut short: the way to the server is as good as ever
        self._given_up = ""  # why another thread has cut the link
        self._sent_ahead = 0  # the number of the last step that was sent without waiting
        self._in_call = False  # from before a call's first byte until its reply is read: a Ctrl-C may come anywhere
        self._damaged, self._damaged_at = 0, -1

    def _use(self, transport: Transport, stream: frames.FrameStream) -> None:
        """Go on with this connection; the simulator has answered on it."""
        self._transport, self._stream, self._given_up = transport, stream, ""
        self._link = machine.advance(machine.CLIENT, self._link, "welcomed")

    @property
    def acts(self) -> int:
        """How many requests were sent that may change the episode: all but looks at it and calls of methods."""
        return self._requests.last - self._looks

    def close(self) -> None:
        """Give the simulator back and close both links; never raises."""
        try:
            if self._link == machine.JOINED and not self._in_call:
                farewell = frames.pack_frame(frames.CLOSE, b"", epoch=self._epoch)
                self._stream.send(farewell, time.monotonic() + CLOSE_TIMEOUT_S)
        except RemoteEnvError as error:
            log.debug("the data connection was gone at close: %s", error)
        self._link = machine.advance(machine.CLIENT, self._link, "closed")
        self._transport.close()
        self.control.close()

    def let_go(self) -> None:
        """In a forked child: free its copies of both links' descriptors; the links live on in the parent."""
        self._transport.close()
        self.control.let_go()

    def cut(self, why: str) -> None:
        """Have the link made anew, from any thread: it is known to be dead. Whoever waits on it goes on after that."""
        self._given_up = why
        self._transport.close()

    # The exchange

    def _value(self, kind: int, request: Any, timeout_s: float, where: str = "request") -> Any:
        self._deadline = time.monotonic() + timeout_s
        return self._read_value(self._ask(kind, request, 0, where))

    def _ask(self, kind: int, request: Any, flags: int = 0, where: str = "request") -> frames.Header:
        body, arrays = codec.encode(request, where=where)
        return self._exchange(kind, flags, bytearray(frames.HEADER_SIZE) + body, arrays)

    def _exchange(
        self, kind: int, flags: int, frame: bytearray, payload: Sequence[memoryview], *, abandons: bool = False
    ) -> frames.Header:
        """Send one request; the header of its reply, whose body and payload are still to be read."""
        self._check_usable()
        if self._requests.pending and not abandons:
            raise self._unsettled()
        return self._await(self._send(kind, flags, frame, payload), kind)

    def _send(self, kind: int, flags: int, frame: bytearray, payload: Sequence[memoryview]) -> int:
        """Send one request; its number."""
        requests = self._requests
        self._leave_interrupted_link()
        sequence = requests.last + 1
        size = sum(map(len, payload)) if payload else 0
        frames.finish_frame(frame, kind, flags, self._epoch, sequence, requests.received, size)
        if self._clock is not None:
            self._clock.note_sent(sequence)
        buffers: list[bytearray | memoryview] = [frame, *payload]
        self._in_call = True
        requests.keep(kind, buffers)
        self._transmit(buffers, kind)
        return sequence

    def _check_usable(self) -> None:
        self._check_open()
        if self.is_lost is not None:
            raise copy.copy(self.is_lost)  # each with a traceback of its own
        if self._joining.is_telling:
            raise InputError("on_link= is told in the middle of a call: it can call status(), logs() and close() alone")

    def _unsettled(self) -> InputError:
        pending = self._requests.pending
        if len(pending) > 1:
            return InputError(f"{len(pending)} steps are under way: take their results with step_wait() first")
        if pending[0].sequence == self._sent_ahead:
            return InputError("1 step is under way: take its result with step_wait() first")
        return InputError(
            f"the call before this one ({frames.NAMES[pending[0].kind]}) was interrupted before its result "
            "came; call resume() to wait for it, or reset() to abandon it"
        )

    def _swap(self, sequence: int, step: bytearray, shape: frames.Shape) -> bool:
        """Send a STEP; whether its reply came at once, undisturbed and just of `shape`. Else `_await` has it.

        What `_transmit` and `_await` do, in as few calls as can be.
        """
        self._in_call = True
        self._requests.lone = (sequence, step)
        is_sent = False
        try:
            self._transport.send_all((step,), self._deadline)
            is_sent = True
            got = self._stream.recv_shaped(shape, self._deadline)
            if got and got != sequence:
                raise ProtocolError(f"a reply to request {got} where {sequence} is due")
        except BaseException as error:  # noqa: BLE001  raised again there
            self._note_disturbance(error, frames.STEP, is_sent=is_sent)
            return False
        return got == sequence

    def _transmit(self, buffers: Sequence[bytearray | memoryview], kind: int) -> None:
        """Send what has been noted as under way; where there is no link, it is sent with the next."""
        if self._link != machine.JOINED:
            return
        try:
            self._transport.send_all(buffers, self._deadline)
        except BaseException as error:  # noqa: BLE001  raised again there
            self._note_disturbance(error, kind, is_sent=False)

    def _await(self, sequence: int, kind: int) -> frames.Header:
        """The header of the reply to a request."""
        header = self._next_reply(sequence, kind)
        if self._clock is not None:
            self._clock.note_reply(header)
        size = frames.HEADER_SIZE + header.body_size + header.payload_size
        self._largest_reply = max(self._largest_reply, size)
        if header.epoch == self._epoch and header.type == frames.RESULT:
            return header
        if header.epoch == self._epoch and header.type == frames.ERROR:
            raise self._error(self._read_value(header))
        what = frames.NAMES.get(header.type, header.type)
        raise self._break(ProtocolError(f"expected RESULT of session {self._epoch}, got {what} of {header.epoch}"))

    def _next_reply(self, sequence: int, kind: int) -> frames.Header:
        """Receive until the reply to `sequence` comes, on another connection if need be."""
        while True:
            try:
                if self._link != machine.JOINED:
                    self._rejoin()
                return self._receive(sequence)
            except BaseException as error:  # noqa: BLE001  raised again there
                self._note_disturbance(error, kind, is_sent=True)

    def _note_disturbance(self, error: BaseException, kind: int, *, is_sent: bool) -> None:
        """Give the link up for what broke an exchange; returns where the exchange goes on over another one."""
        if isinstance(error, SessionLost):
            raise error
        if isinstance(error, DeadlineExceeded):
            if is_sent:
                self._requests.own()
                self._in_call = False  # what has come of the reply is kept
            else:
                self._leave_link(error)
            raise explain_delay(self.control, kind) from error
        if isinstance(error, ProtocolError):
            self._count_damage(error)
        elif not isinstance(error, ConnectionLost):
            what = "reply" if is_sent else "request"
            self._leave_link(ConnectionLost(f"a {what} was cut short ({error!r})"), is_own=True)
            raise error
        self._leave_link(error)

    def _count_damage(self, error: ProtocolError) -> None:
        """Bytes change on their way now and then; a peer that breaks the protocol does it again and again."""
        received = self._requests.received
        self._damaged = self._damaged + 1 if received == self._damaged_at else 1
        self._damaged_at = received
        if self._damaged > MAX_DAMAGED:
            raise self._break(error)

    def _receive(self, sequence: int) -> frames.Header:
        stream, deadline = self._stream, self._deadline
        while True:
            header = stream.recv(deadline)
            if header.sequence != self._requests.received + 1 or header.sequence > sequence:
                raise ProtocolError(f"a reply to request {header.sequence} where {self._requests.received + 1} is due")
            if header.sequence == sequence:
                return header
            # The reply to a call that was abandoned.
            if header.payload_size:
                stream.fill([memoryview(bytearray(header.payload_size))], deadline)
            self._requests.settle(header.sequence)

    def _read_value(self, header: frames.Header) -> Any:
        value = self._receive_value(header)
        self._settle(header)
        return value

    def _receive_value(self, header: frames.Header) -> Any:
        """The value that a reply is; until `_settle` it may have to be received again."""
        try:
            value, views = codec.decode(self._stream.body_bytes(), header.payload_size)
        except ProtocolError as error:
            raise self._break(error) from error.__cause__
        self._fill(views, header)
        return value

    def _settle(self, header: frames.Header) -> None:
        """Note that the reply has been read whole."""
        self._requests.settle(header.sequence)
        self._in_call = False

    def _fill(self, views: Sequence[memoryview], header: frames.Header) -> None:
        """Receive the payload of the reply whose header and body have come."""
        if sum(map(len, views)) != header.payload_size:
            wrong = f"a payload of {header.payload_size} bytes where {sum(map(len, views))} are due"
            raise self._break(ProtocolError(wrong))
        if not views:
            return
        kind, is_first = self._requests.pending[0].kind, True
        while True:
            # What is sent again is so byte for byte: the views fit it, too.
            if not is_first and self._next_reply(header.sequence, kind) != header:
                raise self._break(ProtocolError(f"the reply to request {header.sequence} came again as another"))
            is_first = False
            began = time.perf_counter()
            try:
                self._stream.fill(views, self._deadline)
            except ConnectionLost as error:
                self._leave_link(error)
            except DeadlineExceeded as error:
                self._leave_link(error, is_own=True)
                raise explain_delay(self.control, kind) from error
            except BaseException as error:
                self._leave_link(ConnectionLost(f"a reply was cut short ({error!r})"), is_own=True)
                raise
            else:
                self._note_payload(header.payload_size, time.perf_counter() - began)
                return

    def _note_payload(self, size_bytes: int, seconds: float) -> None:
        if self._clock is not None:
            self._clock.note_payload(seconds)  # and the whole reply tells more than its payload
        elif len(self._requests.pending) == 1:  # else it lay here before we looked
            self.link_estimate.note_payload(size_bytes, seconds)

    # The link

    def _leave_interrupted_link(self) -> None:
        """Make the link anew if a call was cut short between two lines: some of a frame may be out, or in."""
        if self._in_call and self._link == machine.JOINED:
            self._leave_link(ConnectionLost("a call was interrupted"), is_own=True)

    def _leave_link(self, why: RemoteEnvError, *, is_own: bool = False) -> None:
        """Give the connection up: what comes next on it could not be trusted. What is under way is kept."""
        given_up, self._given_up = self._given_up, ""
        self._cut, self._is_own_cut = ConnectionLost(given_up) if given_up else why, is_own
        self._link = machine.advance(machine.CLIENT, self._link, "cut")
        self._transport.close()
        self._requests.own()

    def _rejoin(self) -> None:
        """Make the connection anew, and send again what the simulator has not taken.

        Raises:
            SessionLost: the simulator, the session or the server is gone, the time is over, or it is not wanted.
            DeadlineExceeded: the simulator is busy beyond the call's deadline, which does not run while there is no
                connection.
        """
        joining, requests = self._joining, self._requests
        self._check_open()
        if not self._options.resume and not self._is_own_cut:
            raise self._lose(joining.explain_loss(self._cut))
        until = joining.begin(self._cut, requests.received, quietly=self._is_own_cut)
        while self._link != machine.JOINED:
            self._check_open()
            began = time.monotonic()
            try:
                # Ours from here on: others may have to free us while we wait for the simulator on it.
                self._transport, stream = joining.reconnect(lambda by: joining.open_data(requests.received, by), until)
            except SessionLost as error:
                self._check_open()
                raise self._lose(error) from error.__cause__
            finally:
                self._deadline += time.monotonic() - began
            try:
                self._check_open()
                self._take_up(self._transport, stream)
            except (ConnectionLost, ProtocolError) as error:
                self._leave_link(error)
                until = joining.begin(self._cut, requests.received)
            except BaseException:
                self._transport.close()
                raise

    def _check_open(self) -> None:
        if self._link == machine.CLOSED:
            raise SessionLost("the session was closed; if a call still waited for its result, another thread did so")

    def _take_up(self, transport: Transport, stream: frames.FrameStream) -> None:
        """Hear from the simulator what it has, and send it what it has not."""
        header = stream.recv(self._deadline)
        if header.type != frames.RESUMED or header.epoch != self._epoch:
            raise ProtocolError(f"expected RESUMED, got {frames.NAMES.get(header.type, header.type)}")
        try:
            missed = self._requests.missed(header.sequence)
        except ProtocolError as error:
            raise self._lose(SessionLost(f"the session cannot go on: {error}. reset() starts a new one")) from error
        for message in missed:
            transport.send_all(message.buffers, self._deadline)
        self._use(transport, stream)
        self._joining.resumed(header.sequence)

    # What went wrong

    def _break(self, error: RemoteEnvError) -> RemoteEnvError:
        """Give the session up: the peer does not keep to the protocol."""
        self._lose(SessionLost(f"the session ended: {error}. reset() starts a new one"))
        return error

    def _malformed(self, error: Exception) -> RemoteEnvError:
        """The error for a reply that is none: what reading it raised, of `MALFORMED`."""
        if self.is_lost is not None and isinstance(error, RemoteEnvError):
            return error  # it was told already
        if isinstance(error, ProtocolError):
            return self._break(error)
        return self._break(ProtocolError(f"a reply that holds something else than is due: {error!r:.300}"))

    def _lose(self, error: SessionLost) -> SessionLost:
        self.is_lost = error
        self._link = machine.advance(machine.CLIENT, self._link, "ended")
        self._transport.close()
        return error

    def _error(self, value: Any) -> RemoteEnvError:
        if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in _TOLD):
            return self._break(ProtocolError("an ERROR that does not say what happened"))
        kind = _KINDS.get(value["kind"])
        if kind is not None:
            return kind(value["message"], remote_traceback=value["traceback"])
        raised = "" if value["type"] == "TaskError" else f"the task raised {value['type']} in "
        return TaskError(
            f"{raised}{value['during']}: {value['message']}",
            remote_type=value["type"],
            remote_traceback=value["traceback"],
        )
