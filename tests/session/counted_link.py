"""A client's real session and a simulator's real loop in one process, joined by links that break at a chosen byte.

What is not real is named so: `StandInSupervisor` speaks for the supervisor, with its handshake and rules but without
processes; and the links are pairs of sockets whose client's end does what a `Plan` says.
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from remote_env.errors import ConnectionLost, DeadlineExceeded, ProtocolError, RemoteEnvError, SessionLost
from remote_env.protocol import frames
from remote_env.protocol.handshake import ServerHandshake, pack_link, parse_link
from remote_env.server.loop import SimulatorLoop
from remote_env.transport import Buffer, SocketTransport, Transport, transport_pair

UP, DOWN = "up", "down"
TOKEN = "0" * 64
PATIENCE_S = 20.0


class Fault(NamedTuple):
    """What happens to the stream of one role's connections.

    Attributes:
        direction: "up" or "down".
        at: how many bytes go right before it, counted from the fault before.
        flip: a mask for the byte that comes then; 0: the link is cut instead.
        role: of the connections whose bytes count.
    """

    direction: str
    at: int
    flip: int = 0
    role: str = "data"


class Plan:
    """The faults that are still to come, and what went over the links meanwhile.

    Attributes:
        streams: what was sent in each direction since `begin`, by role and direction.
        done: how many faults have happened.
        is_trickling: bytes go one at a time.
    """

    def __init__(self) -> None:
        self.is_trickling = False
        self.begin()

    def begin(self, *faults: Fault) -> None:
        """Forget what was; count from here."""
        self.streams = {(role, way): bytearray() for role in ("control", "data") for way in (UP, DOWN)}
        self.done = 0
        self._faults = list(faults)
        self._gone = 0  # of the stream of the first fault, since the one before

    def pass_on(self, role: str, direction: str, data: bytes) -> tuple[bytes, bool]:
        """What arrives of `data`, and whether the link is cut behind that."""
        passed, is_cut = bytearray(), False
        while data and not is_cut:
            part, data, is_cut = self._pass_part(role, direction, data)
            passed += part
        is_cut = is_cut or self._is_due(role, direction)
        self.streams[role, direction] += passed
        return bytes(passed), is_cut

    def _pass_part(self, role: str, direction: str, data: bytes) -> tuple[bytes, bytes, bool]:
        fault = self._faults[0] if self._faults else None
        if fault is None or (fault.role, fault.direction) != (role, direction):
            return data, b"", False
        right = fault.at - self._gone
        if len(data) <= right:
            self._gone += len(data)
            return data, b"", False
        self._next()
        if fault.flip:
            return data[:right] + bytes([data[right] ^ fault.flip]), data[right + 1 :], False
        return data[:right], data[right:], True

    def _is_due(self, role: str, direction: str) -> bool:
        """Whether a cut comes right here, before another byte does."""
        fault = self._faults[0] if self._faults else None
        if fault is None or fault.flip or (fault.role, fault.direction) != (role, direction) or self._gone < fault.at:
            return False
        self._next()
        return True

    def _next(self) -> None:
        del self._faults[0]
        self._gone = 0
        self.done += 1


class CountedLink:
    """A `Transport` that does to its bytes what a plan says."""

    def __init__(self, inner: SocketTransport, plan: Plan) -> None:
        self._inner, self._plan = inner, plan
        self._role = ""

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """See `Transport.send_all`. Of a cut a sender hears at once, or, every other time, not at all."""
        data = b"".join(buffers)
        self._role = self._role or ("control" if b'"role": "control"' in data else "data")
        passed, is_cut = self._plan.pass_on(self._role, UP, data)
        size = 1 if self._plan.is_trickling else max(len(passed), 1)
        for start in range(0, len(passed), size):
            self._inner.send_all((passed[start : start + size],), deadline)
        if is_cut:
            self._inner.close()
            if len(passed) % 2:
                raise ConnectionLost(f"cut after {len(passed)} of {len(data)} bytes")

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        """See `Transport.recv_some_into`."""
        count = self._inner.recv_some_into(view[:1] if self._plan.is_trickling else view, deadline)
        passed, is_cut = self._plan.pass_on(self._role, DOWN, bytes(view[:count]))
        view[: len(passed)] = passed
        if is_cut:
            self._inner.close()
            if not passed:
                raise ConnectionLost("cut")
        return len(passed)

    def has_bytes(self) -> bool:
        """See `Transport.has_bytes`."""
        return self._inner.has_bytes()

    def close(self) -> None:
        """See `Transport.close`."""
        self._inner.close()


class StandInSupervisor:
    """Speaks for the supervisor of one simulator, which is a thread here: the real handshakes, one session at a time.

    Args:
        loop: the simulator's.
        plan: for the clients' ends of all links.
    """

    def __init__(self, loop: SimulatorLoop, plan: Plan) -> None:
        self.loop, self._plan = loop, plan
        self._sessions: dict[str, tuple[str, int]] = {}  # their keys and epochs
        self._epoch = 0
        self._link: socket.socket | None = None
        self._handed: queue.SimpleQueue[tuple[socket.socket, int, int | None] | None] = queue.SimpleQueue()
        self._threads = {self._start(self._simulate)}
        self.problems: list[BaseException] = []

    def dial(self, _deadline: float) -> Transport:
        """What a client's place does: a link to here."""
        ours, theirs = transport_pair()
        self._threads = {thread for thread in self._threads if thread.is_alive()} | {self._start(self._greet, theirs)}
        return CountedLink(ours, self._plan)

    def close(self) -> None:
        """End the simulator and wait for all threads; all clients must have closed their links."""
        self._hang_up()
        self._handed.put(None)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), thread.name
        if self.problems:
            raise self.problems[0]

    def _start(self, work: Any, *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(work, *arguments), name=work.__name__)
        thread.start()
        return thread

    def _run(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            self.problems.append(error)
            raise

    def _simulate(self) -> None:
        while (given := self._handed.get()) is not None:
            self.loop.serve(*given)

    def _greet(self, transport: SocketTransport) -> None:
        stream = frames.FrameStream(transport)
        handshake = ServerHandshake(TOKEN)
        deadline = time.monotonic() + PATIENCE_S
        try:
            while not handshake.done:
                answer = handshake.feed(*receive(stream, deadline))
                if answer is not None:
                    stream.send(answer, deadline)
            if handshake.hello["role"] == "data":
                self._hand_over(handshake, transport, stream, deadline)
                return
            self._hold_control(handshake, stream, deadline)
        except ConnectionLost:
            pass
        except DeadlineExceeded as error:
            self.problems.append(error)
        except RemoteEnvError as error:
            kind = "ended" if isinstance(error, SessionLost) else "protocol"
            with contextlib.suppress(RemoteEnvError):
                stream.send(pack_link(frames.REFUSED, {"kind": kind, "message": str(error)}), deadline)
        transport.close()

    def _hold_control(self, handshake: ServerHandshake, stream: frames.FrameStream, deadline: float) -> None:
        name = handshake.hello["session"]
        if name == "new":
            name = secrets.token_hex(8)
            self._epoch += 1
            self._sessions[name] = handshake.derive_key(name), self._epoch
        else:
            self._check_owner(handshake)
        stream.send(pack_link(frames.WELCOME, {"task": "test", "digest": "", "session": name}), deadline)
        status = {"state": "ready", "call": "nothing", "since_s": 0.0}
        stream.send(pack_link(frames.EVENT, status), deadline)
        while True:
            header = stream.recv(float("inf"))
            if header.type == frames.LEAVE:
                self._sessions.pop(name, None)
            stream.send(pack_link(frames.REPLY, status, sequence=header.sequence), time.monotonic() + PATIENCE_S)

    def _hand_over(
        self, handshake: ServerHandshake, transport: SocketTransport, stream: frames.FrameStream, deadline: float
    ) -> None:
        epoch = self._check_owner(handshake)
        if stream.unread:
            raise ProtocolError("a client that speaks before it is welcome")
        stream.send(pack_link(frames.WELCOME, {"session": handshake.hello["session"]}), deadline)
        self._hang_up()
        self._link = transport._sock
        self._handed.put((self._link, epoch, handshake.hello["resume"]))

    def _check_owner(self, handshake: ServerHandshake) -> int:
        """The epoch of the session that a client has shown to be its own."""
        name = handshake.hello["session"]
        key, epoch = self._sessions.get(name, ("", 0))
        if not handshake.owns(name, key):
            raise SessionLost("no such session")
        return epoch

    def _hang_up(self) -> None:
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)


def receive(stream: frames.FrameStream, deadline: float) -> tuple[int, dict[str, Any]]:
    header = stream.recv(deadline)
    return header.type, parse_link(stream.body_bytes())
