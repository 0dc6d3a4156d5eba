"""Connections into a container or batch job, over one stream; the other end is `remote_env/server/relay.py`.

One thread reads the stream and hands out what comes. Each side says how many bytes of a connection it has room for, so
that a connection whose owner does not read holds up no other and takes no more memory than its window.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, RemoteEnvError
from remote_env.ssh.command import RunningCommand
from remote_env.ssh.stream_frames import BYE, CLOSE, OPEN, FrameParser, pack_header
from remote_env.ssh.stream_transport import CONTROL_TIMEOUT_S, WINDOW_BYTES, StreamTransport
from remote_env.transport import Buffer

LAST_CHANNEL = 0xFFFF
PUMP_TICK_S = 1.0
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
        return self._failure is None and self.is_ours and self._carrier.is_open

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
