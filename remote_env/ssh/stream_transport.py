"""One connection of a `Stream`, as a `Transport`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, ProtocolError
from remote_env.ssh.opening import REFUSED as NOBODY_LISTENS
from remote_env.ssh.stream_frames import CREDIT, DATA, END, MAX_PAYLOAD_BYTES, OPENED, REFUSED, cut_bytes
from remote_env.transport import Buffer

if TYPE_CHECKING:
    from remote_env.ssh.stream import Stream

WINDOW_BYTES = 4 << 20  # of a connection's data that may wait here for its owner
CONTROL_TIMEOUT_S = 1.0  # for the few bytes that say "go on" or "closed"


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
            message = f"{self._name} cannot be reached: {self._refusal}; does anything listen there?"
            details = {"nothing_listens": True} if NOBODY_LISTENS in self._refusal else {}
            raise ConnectError(message, **details)

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
            if done < size and time.monotonic() >= deadline:  # bytes may come one by one for ever
                raise DeadlineExceeded(f"{done} of {size} bytes were received before the deadline")

    def has_bytes(self) -> bool:
        """See `Transport.has_bytes`."""
        return bool(self._chunks) or self._has_ended or self._is_closed or not self._stream.is_open

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
