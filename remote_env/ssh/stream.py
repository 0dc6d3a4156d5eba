"""Connections into a container or batch job, over one stream; the other end is `remote_env/server/relay.py`.

One thread reads the stream and hands out what comes. Each side says how many bytes of a connection it has room for, so
that a connection whose owner does not read holds up no other and takes no more memory than its window.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, ProtocolError, RemoteEnvError
from remote_env.ssh.connection import RunningCommand
from remote_env.ssh.stream_frames import (
    BYE,
    CLOSE,
    CREDIT,
    DATA,
    END,
    MAX_PAYLOAD_BYTES,
    OPEN,
    OPENED,
    REFUSED,
    FrameParser,
    cut_bytes,
    pack_header,
)
from remote_env.transport import Buffer

WINDOW_BYTES = 4 << 20  # of a connection's data that may wait here for its owner
LAST_CHANNEL = 0xFFFF
PUMP_TICK_S = 1.0
CONTROL_TIMEOUT_S = 1.0  # for the few bytes that say "go on" or "closed"
SAID_BYTES = 2000
JOIN_TIMEOUT_S = 5.0


class Stream:
    """The client's end of a relay.

    Args:
        carrier: the running command whose input and output the frames are; owned from now on.
        first: what has been read of it already.
        name: where it leads, for messages.
    """

    def __init__(self, carrier: RunningCommand, first: bytes, name: str) -> None:
        self.name = name
        self._carrier = carrier
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._connections: dict[int, StreamTransport] = {}
        self._next = 0
        self._failure: RemoteEnvError | None = None
        self._said = b""
        self._parser = FrameParser(self._take_frame, self._take_data)
        self._pump = threading.Thread(target=self._run, args=(first,), name="remote-env-stream", daemon=True)
        self._pump.start()

    @property
    def is_open(self) -> bool:
        """Whether connections can be tried."""
        return self._failure is None and self.is_ours

    def open_port(self, port: int, deadline: float) -> StreamTransport:
        """A connection to 127.0.0.1:`port` in there.

        Raises:
            ConnectError: nothing listens there.
            DeadlineExceeded: no answer in time.
            ConnectionLost: the stream broke.
        """
        return self._open("tcp", str(port), f"port {port} in {self.name}", deadline)

    def run(self, command: str, deadline: float) -> StreamTransport:
        """The standard input and output of a shell that runs `command` in there; raises as `open_port`."""
        return self._open("run", command, f"a shell in {self.name}", deadline)

    def _open(self, kind: str, detail: str, name: str, deadline: float) -> StreamTransport:
        self.check()
        with self._changed:
            transport = StreamTransport(self, self._free_number(), name, self._changed)
            self._connections[transport.number] = transport
        try:
            self.write(OPEN, transport.number, [f"{kind} {WINDOW_BYTES} {detail}".encode()], deadline)
            transport.wait_until_open(deadline)
        except BaseException:
            transport.close()
            raise
        return transport

    def _free_number(self) -> int:
        for _ in range(LAST_CHANNEL):
            self._next = self._next % LAST_CHANNEL + 1
            if self._next not in self._connections:
                return self._next
        raise ConnectError(f"{LAST_CHANNEL} connections through {self.name} are open; close some")

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that opened it; a forked child must touch neither its locks nor its bytes."""
        return self._pid == os.getpid()

    def check_process(self) -> None:
        """Refuse a forked child."""
        if not self.is_ours:
            raise ConnectionLost("this connection belongs to the parent process; open a new one after a fork")

    def check(self) -> None:
        """Raise why nothing can be sent any more, if so."""
        self.check_process()
        if self._failure is not None:
            raise ConnectionLost(str(self._failure))

    def write(self, kind: int, number: int, payload: Sequence[Buffer], deadline: float) -> None:
        """Send one frame whole.

        Raises:
            DeadlineExceeded: it did not go out in time; when a part of it did, the stream is closed.
            ConnectionLost: the stream broke.
        """
        if not self._writing.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise DeadlineExceeded(f"{self.name} takes no more bytes before the deadline")
        try:
            self.check()
            size = sum(map(len, payload))
            self._carrier.send_all([pack_header(kind, number, size), *payload], deadline)
        except (DeadlineExceeded, ConnectionLost) as error:
            self._fail(error)
            raise
        finally:
            self._writing.release()

    def forget(self, number: int) -> None:
        """The connection is closed here; tell the relay."""
        with self._changed:
            if self._connections.pop(number, None) is None or self._failure is not None:
                return
        with contextlib.suppress(RemoteEnvError):
            self.write(CLOSE, number, [], time.monotonic() + CONTROL_TIMEOUT_S)

    # The pump

    def _run(self, first: bytes) -> None:
        try:
            self._parser.feed(first)
            while self._failure is None:
                self._parser.feed(self._read())
        except RemoteEnvError as error:
            self._fail(error)

    def _read(self) -> bytes:
        """What has come; b"" when nothing has for a while."""
        self._said = (self._said + self._carrier.take_stderr())[-SAID_BYTES:]
        try:
            data = self._carrier.read_some(time.monotonic() + PUMP_TICK_S)
        except DeadlineExceeded:
            return b""
        if not data:
            said = self._said.decode(errors="replace").strip()
            raise ConnectionLost(f"the stream to {self.name} ended" + (f": {said}" if said else ""))
        return data

    def _take_frame(self, kind: int, number: int, payload: bytes) -> None:
        with self._changed:
            transport = self._connections.get(number)
            if transport is not None:  # else it was closed here meanwhile, or it is a beat
                transport.note(kind, payload)
                self._changed.notify_all()

    def _take_data(self, number: int, part: memoryview) -> None:
        with self._changed:
            transport = self._connections.get(number)
            if transport is not None:
                transport.put(part)
                self._changed.notify_all()

    def _fail(self, error: RemoteEnvError) -> None:
        with self._changed:
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()
        self._carrier.close()

    def close(self) -> None:
        """End the stream and all its connections, and join the thread; never raises, and may be called again."""
        if not self.is_ours:
            return  # a forked child: the stream is the parent's
        with contextlib.suppress(RemoteEnvError):
            self.write(BYE, 0, [], time.monotonic() + CONTROL_TIMEOUT_S)
        self._fail(ConnectionLost(f"the stream to {self.name} was closed"))
        if self._pump is not threading.current_thread():
            self._pump.join(JOIN_TIMEOUT_S)


class StreamTransport:
    """One connection of a `Stream`, as a `Transport`; one thread may send while another receives."""

    def __init__(self, stream: Stream, number: int, name: str, changed: threading.Condition) -> None:
        self.number = number
        self._stream = stream
        self._name = name
        self._changed = changed
        self._chunks: deque[memoryview] = deque()
        self._room = WINDOW_BYTES  # what the relay may still send
        self._taken = 0  # bytes that our owner has taken and the relay does not know of
        self._credit = 0  # what the relay has room for
        self._is_open = self._has_ended = self._is_closed = False
        self._refusal = ""

    # The pump's side; it holds the condition

    def note(self, kind: int, payload: bytes) -> None:
        """A frame that is no data."""
        if kind in (OPENED, CREDIT):
            self._credit += int.from_bytes(payload, "big")
            self._is_open = True
        elif kind == REFUSED:
            self._refusal = payload.decode(errors="replace") or "refused"
        elif kind == END:
            self._has_ended = True

    def put(self, part: memoryview) -> None:
        """Some of its data."""
        self._room -= len(part)
        if self._room < 0:
            raise ProtocolError(f"{self._name} sent more than it was told that there is room for")
        self._chunks.append(part)

    # The owner's side

    def wait_until_open(self, deadline: float) -> None:
        """Return once the relay has the connection; raises as `Stream.open_port`."""
        with self._changed:
            while not (self._is_open or self._refusal):
                self._wait(deadline, "did not answer")
        if self._refusal:
            raise ConnectError(f"{self._name} cannot be reached: {self._refusal}; does anything listen there?")

    def _wait(self, deadline: float, what: str) -> None:
        self._check()
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExceeded(f"{self._name} {what} before the deadline")
        self._changed.wait(remaining_s)

    def _check(self) -> None:
        self._stream.check()
        if self._is_closed:
            raise ConnectionLost(f"the connection to {self._name} is closed")

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """See `Transport.send_all`."""
        left = deque(memoryview(buffer).cast("B") for buffer in buffers if len(buffer))
        while left:
            size = self._take_credit(sum(map(len, left)), deadline)
            self._stream.write(DATA, self.number, list(cut_bytes(left, size)), deadline)

    def _take_credit(self, wanted: int, deadline: float) -> int:
        self._check()
        with self._changed:
            while not self._credit:
                if self._has_ended:
                    raise ConnectionLost(f"{self._name} closed the connection")
                self._wait(deadline, "takes no more bytes")
            size = min(wanted, self._credit, MAX_PAYLOAD_BYTES)
            self._credit -= size
            return size

    def finish_sending(self, deadline: float) -> None:
        """Tell the other end that no more bytes will come."""
        self._stream.write(END, self.number, [], deadline)

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        """See `Transport.recv_some_into`."""
        size = self._take(view, deadline)
        if not size:
            raise ConnectionLost(f"{self._name} closed the connection")
        return size

    def _take(self, view: memoryview, deadline: float) -> int:
        """Move what has come into `view`; 0 when the other end has finished."""
        self._stream.check_process()
        done = 0
        with self._changed:
            while not self._chunks:
                if self._has_ended:
                    return 0
                self._wait(deadline, "sent nothing")
            while self._chunks and done < len(view):
                chunk = self._chunks.popleft()
                size = min(len(chunk), len(view) - done)
                view[done : done + size] = chunk[:size]
                done += size
                if size < len(chunk):
                    self._chunks.appendleft(chunk[size:])
            self._taken += done
        self._give_credit()
        return done

    def _give_credit(self) -> None:
        if self._taken < WINDOW_BYTES // 4 or self._has_ended:
            return
        with self._changed:
            taken, self._taken = self._taken, 0
            self._room += taken
        with contextlib.suppress(ConnectionLost, DeadlineExceeded):  # then the next receive or send will tell
            self._stream.write(CREDIT, self.number, [taken.to_bytes(4, "big")], time.monotonic() + CONTROL_TIMEOUT_S)

    def recv_exactly_into(self, view: memoryview, deadline: float) -> None:
        """See `Transport.recv_exactly_into`."""
        done, size = 0, len(view)
        while done < size:
            done += self.recv_some_into(view[done:], deadline)

    def read_some(self, deadline: float) -> bytes:
        """Whatever has come, at least one byte; b"" when the other end has finished sending."""
        data = bytearray(1 << 16)
        size = self._take(memoryview(data), deadline)
        return bytes(data[:size])

    def close(self) -> None:
        """See `Transport.close`. In a forked child it does nothing: the stream is the parent's."""
        if not self._stream.is_ours:
            return
        with self._changed:
            self._is_closed = True
            self._chunks.clear()
            self._changed.notify_all()
        self._stream.forget(self.number)
