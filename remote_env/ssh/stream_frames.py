"""The frames between `stream.py` and the relay (`remote_env/server/relay.py`), as the client packs and parses them."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator

from remote_env.errors import ProtocolError

HEADER = struct.Struct(">BBHI")  # magic, kind, channel, payload size; as in relay.py, and so are the next lines
MAGIC = 0xE7
OPEN, OPENED, REFUSED, DATA, CREDIT, END, CLOSE, BEAT, BYE = range(1, 10)
MAX_PAYLOAD_BYTES = 1 << 18


def pack_header(kind: int, number: int, size: int) -> bytes:
    """The header of a frame with a payload of `size` bytes."""
    return HEADER.pack(MAGIC, kind, number, size)


class FrameParser:
    """Cuts the stream into frames; the parts of data are handed on as they come, never collected."""

    def __init__(
        self, take_frame: Callable[[int, int, bytes], None], take_data: Callable[[int, memoryview], None]
    ) -> None:
        self._take_frame, self._take_data = take_frame, take_data
        self._head = b""
        self._kind = self._number = self._missing = 0
        self._payload = b""

    def feed(self, data: bytes) -> None:
        """Take what has come.

        Raises:
            ProtocolError: it is no frame.
        """
        view = memoryview(data)
        while view:
            if not self._missing:
                view = self._read_head(view)
                continue
            part, view = view[: self._missing], view[self._missing :]
            self._missing -= len(part)
            if self._kind == DATA:
                self._take_data(self._number, part)
                continue
            self._payload += part
            if not self._missing:
                self._finish()

    def _read_head(self, view: memoryview) -> memoryview:
        wanted = HEADER.size - len(self._head)
        self._head += view[:wanted]
        if len(self._head) == HEADER.size:
            magic, self._kind, self._number, self._missing = HEADER.unpack(self._head)
            if magic != MAGIC or not OPEN <= self._kind <= BYE or self._missing > MAX_PAYLOAD_BYTES:
                seen = bytes(self._head + view[wanted : wanted + 80])
                raise ProtocolError(f"the relay has ended, or something else writes to its stream: {seen!r}")
            self._head = b""
            if not self._missing:
                self._finish()
        return view[wanted:]

    def _finish(self) -> None:
        payload, self._payload = self._payload, b""
        if self._kind != DATA:
            self._take_frame(self._kind, self._number, payload)


def cut_bytes(left: deque[memoryview], size: int) -> Iterator[memoryview]:
    """Take the first `size` bytes off `left`."""
    while size:
        view = left.popleft()
        if len(view) > size:
            left.appendleft(view[size:])
            view = view[:size]
        size -= len(view)
        yield view
