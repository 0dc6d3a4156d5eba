"""Carries connections to this machine's ports, and shell programs, over one stream: standard input and output.

It runs inside a container, network namespace or batch job whose ports the client cannot reach. The client sends this
file's text along and speaks the frames below; `remote_env/ssh/stream.py` is its other end. Standard library only.

A frame is `HEADER` and a payload. The side that receives a channel's data says by CREDIT how many bytes more it has
room for, so that one slow channel holds up no other and takes no more memory than its window. Anything that is no
frame ends the relay, and so does the end of either stream.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from typing import Any

HEADER = struct.Struct(">BBHI")  # magic, kind, channel, payload size
MAGIC = 0xE7
OPEN, OPENED, REFUSED, DATA, CREDIT, END, CLOSE, BEAT, BYE = range(1, 10)
MAX_PAYLOAD_BYTES = 1 << 18
WINDOW_BYTES = 1 << 20  # of data that the client may send before its receiver has taken it
BACKLOG_BYTES = 1 << 20  # of frames not written yet, above which no socket is read
BEAT_S = 10.0  # a prefix whose own output is cut learns so by writing this
ORDERLY_EXIT = 99  # the client said that it is done


class Channel:
    """One connection, or one shell program, and what is on its way to it.

    Attributes:
        sock: to the port, or to the program's standard input and output.
        credit: bytes that the client has room for.
        is_connecting: the connection is being made.
        ends: the client will send no more.
        closes: the client is done with it; what is on its way still goes out.
    """

    def __init__(self, sock: socket.socket, *, is_connecting: bool) -> None:
        self.sock = sock
        self.credit = 0
        self.is_connecting = is_connecting
        self.waiting: deque[memoryview] = deque()
        self.waiting_bytes = 0
        self.written = 0
        self.ends = self.closes = self.has_ended = False


class Relay:
    """Between one stream and many sockets; one thread, which waits in `poll` only."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self._received = bytearray()
        self._channels: dict[int, Channel] = {}
        self._programs: list[Any] = []
        self._out: deque[memoryview] = deque()
        self._out_bytes = 0
        self._next_beat = time.monotonic() + BEAT_S

    def run(self) -> int:
        """Serve until the client is done (ORDERLY_EXIT), the stream ends (0) or carries something else (1)."""
        os.set_blocking(self._sink, False)
        try:
            while True:
                self._turn()
        except _Ended as ended:
            return ended.status
        except OSError:
            return 0  # the stream broke
        finally:
            for channel in self._channels.values():
                _end(channel.sock)
            os.set_blocking(self._sink, True)

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(self._sink, select.POLLOUT if self._out else 0)  # 0: only whether its reader is gone
        by_descriptor = {}
        for number, channel in list(self._channels.items()):
            events = self._wanted(channel)
            if events:
                by_descriptor[channel.sock.fileno()] = number
                poll.register(channel.sock, events)
        wait_s = max(self._next_beat - time.monotonic(), 0.0)
        for descriptor, events in poll.poll(wait_s * 1000):
            if descriptor in by_descriptor:
                self._serve(by_descriptor[descriptor], events)
            elif descriptor == self._source:
                self._read_source()
            elif events & ~select.POLLOUT:
                raise _Ended(0)
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + BEAT_S
            self._programs = [program for program in self._programs if program.poll() is None]
            self._put(BEAT, 0)
        self._flush()

    def _wanted(self, channel: Channel) -> int:
        events = select.POLLOUT if channel.is_connecting or channel.waiting else 0
        may_read = channel.credit > 0 and self._out_bytes < BACKLOG_BYTES
        if may_read and not (channel.is_connecting or channel.closes or channel.has_ended):
            events |= select.POLLIN
        return events

    # The client's side

    def _read_source(self) -> None:
        try:
            data = os.read(self._source, MAX_PAYLOAD_BYTES)
        except BlockingIOError:  # a terminal's two directions share this setting
            return
        if not data:
            raise _Ended(0)
        self._received += data
        start = 0
        while len(self._received) - start >= HEADER.size:
            magic, kind, number, size = HEADER.unpack_from(self._received, start)
            if magic != MAGIC or not OPEN <= kind <= BYE or size > MAX_PAYLOAD_BYTES:
                raise _Ended(1)
            if len(self._received) - start < HEADER.size + size:
                break
            start += HEADER.size
            self._handle(kind, number, bytes(memoryview(self._received)[start : start + size]))
            start += size
        del self._received[:start]

    def _handle(self, kind: int, number: int, payload: bytes) -> None:
        if kind == BYE:
            raise _Ended(ORDERLY_EXIT)
        if kind == OPEN:
            self._open(number, payload)
            return
        channel = self._channels.get(number)
        if channel is None:
            return  # it has ended here, and the client did not know yet
        if kind == DATA and payload:
            channel.waiting.append(memoryview(payload))
            channel.waiting_bytes += len(payload)
            if channel.waiting_bytes > WINDOW_BYTES:
                raise _Ended(1)
            self._write(number, channel)
        elif kind == CREDIT:
            channel.credit += int.from_bytes(payload, "big")
        elif kind == END:
            channel.ends = True
            self._write(number, channel)
        elif kind == CLOSE:
            channel.closes = True
            self._write(number, channel)

    def _open(self, number: int, payload: bytes) -> None:
        what, credit, detail = payload.split(b" ", 2)
        try:
            channel = self._connect(detail) if what == b"tcp" else self._start(detail)
        except OSError as error:
            self._put(REFUSED, number, str(error).encode())
            return
        channel.credit = int(credit)
        self._channels[number] = channel
        if not channel.is_connecting:
            self._put(OPENED, number, WINDOW_BYTES.to_bytes(4, "big"))

    def _connect(self, port: bytes) -> Channel:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(("127.0.0.1", int(port)))
        return Channel(sock, is_connecting=True)

    def _start(self, command: bytes) -> Channel:
        import subprocess  # imported when needed: most relays run no program

        ours, theirs = socket.socketpair()
        try:
            ends, words = theirs.fileno(), ["sh", "-c", command.decode()]
            program = subprocess.Popen(words, stdin=ends, stdout=ends, stderr=ends, start_new_session=True)  # noqa: S603
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._programs.append(program)
        ours.setblocking(False)
        return Channel(ours, is_connecting=False)

    # The sockets' side

    def _serve(self, number: int, events: int) -> None:
        channel = self._channels.get(number)
        if channel is None:
            return
        if channel.is_connecting:
            self._finish_connecting(number, channel)
            return
        if events & select.POLLOUT:
            self._write(number, channel)
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and number in self._channels:
            self._read(number, channel)

    def _finish_connecting(self, number: int, channel: Channel) -> None:
        error = channel.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._put(REFUSED, number, os.strerror(error).encode())
            self._drop(number)
            return
        channel.is_connecting = False
        self._put(OPENED, number, WINDOW_BYTES.to_bytes(4, "big"))

    def _read(self, number: int, channel: Channel) -> None:
        if channel.closes or channel.has_ended or channel.credit <= 0:
            return
        try:
            data = channel.sock.recv(min(MAX_PAYLOAD_BYTES, channel.credit))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            channel.has_ended = True
            self._put(END, number)
            return
        channel.credit -= len(data)
        self._put(DATA, number, data)

    def _write(self, number: int, channel: Channel) -> None:
        if channel.is_connecting:
            return
        try:
            while channel.waiting:
                sent = channel.sock.send(channel.waiting[0])
                self._note_written(number, channel, sent)
        except BlockingIOError:
            return
        except OSError:  # its receiver is gone: what else it is sent is thrown away, and reading will tell
            self._note_written(number, channel, channel.waiting_bytes)
        if channel.closes:
            self._drop(number)
        elif channel.ends:
            channel.ends = False
            _shut(channel.sock, socket.SHUT_WR)

    def _note_written(self, number: int, channel: Channel, size: int) -> None:
        channel.waiting_bytes -= size
        channel.written += size
        while size and size >= len(channel.waiting[0]):
            size -= len(channel.waiting.popleft())
        if size:
            channel.waiting[0] = channel.waiting[0][size:]
        if channel.written >= WINDOW_BYTES // 4 and not channel.closes:
            self._put(CREDIT, number, channel.written.to_bytes(4, "big"))
            channel.written = 0

    def _drop(self, number: int) -> None:
        _end(self._channels.pop(number).sock)

    # The output

    def _put(self, kind: int, number: int, payload: bytes = b"") -> None:
        self._out.append(memoryview(HEADER.pack(MAGIC, kind, number, len(payload))))
        if payload:
            self._out.append(memoryview(payload))
        self._out_bytes += HEADER.size + len(payload)

    def _flush(self) -> None:
        while self._out:
            try:
                sent = os.writev(self._sink, [self._out[index] for index in range(min(len(self._out), 64))])
            except BlockingIOError:
                return
            self._out_bytes -= sent
            while sent and sent >= len(self._out[0]):
                sent -= len(self._out.popleft())
            if sent:
                self._out[0] = self._out[0][sent:]


class _Ended(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the other side was first
        sock.shutdown(how)


def _end(sock: socket.socket) -> None:
    _shut(sock, socket.SHUT_RDWR)
    sock.close()


if __name__ == "__main__":
    os.write(1, b"\n@remote-env relay\n")
    sys.exit(Relay(0, 1).run())
