"""Frames: whatever arrives is frames and then a typed error, and the same ones in whatever pieces it comes."""

from __future__ import annotations

from collections.abc import Sequence

from remote_env.errors import ConnectionLost, DeadlineExceeded, ProtocolError
from remote_env.protocol import frames

BUFFER_SIZE = 256
LONG_SIZE = 300  # byte by byte more takes too long
MAX_FRAME_SIZE = frames.HEADER_SIZE + (1 << 16)


class Pieces:
    """A byte stream that arrives in pieces; a piece of no bytes is a deadline that passes."""

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self._data, self._at, self._sizes, self._turn = data, 0, sizes, 0

    def recv_some_into(self, view: memoryview, deadline: float) -> int:  # noqa: ARG002  nothing here waits
        """As a transport's."""
        if self._at == len(self._data):
            raise ConnectionLost("the end")
        size = self._sizes[self._turn % len(self._sizes)] if self._sizes else len(self._data)
        self._turn += 1
        if not size:
            raise DeadlineExceeded("nothing came")
        piece = self._data[self._at : self._at + min(size, len(view))]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def send_all(self, buffers: Sequence[frames.Buffer], deadline: float) -> None:
        """Nothing is sent here."""


def read_all(data: bytes, sizes: Sequence[int]) -> tuple[list[tuple[int, int, bytes]], str]:
    """Every frame that comes whole, and the class of the error that ends them."""
    stream = frames.FrameStream(Pieces(data, sizes), buffer_size=BUFFER_SIZE)
    stream.max_frame_size = MAX_FRAME_SIZE
    found: list[tuple[int, int, bytes]] = []
    while True:
        try:
            header = stream.recv(0.0)
            body = stream.body_bytes()
            payload = bytearray(min(header.payload_size, len(data) + 1))
            stream.fill([memoryview(payload)], 0.0)
            found.append((header.type, header.sequence, body + payload))
        except DeadlineExceeded:
            continue
        except (ProtocolError, ConnectionLost) as error:
            assert len(stream.body) <= MAX_FRAME_SIZE, "a buffer beyond the limit"
            return found, type(error).__name__


def make_frames(data: bytes) -> bytes:
    """Frames with right sums, cut out of `data`: three bytes of type, flags and length, then the body."""
    made, at = bytearray(), 0
    while at + 3 <= len(data):
        kind, flags, size = data[at : at + 3]
        body = data[at + 3 : at + 3 + size]
        made += frames.pack_frame(kind, body, flags=flags, sequence=at)
        at += 3 + size
    return bytes(made)


def run(data: bytes) -> None:
    """The first byte says how the rest is meant, the next four in which pieces it comes."""
    if len(data) < 5:
        return
    mode, sizes, rest = data[0], data[1:5], data[5:]
    stream = make_frames(rest) if mode & 1 else rest
    if mode & 2 and stream:
        damaged = bytearray(stream)
        damaged[sizes[0] * 7 % len(damaged)] ^= 1 << (mode >> 5)
        stream = bytes(damaged)
    whole = read_all(stream, ())
    assert read_all(stream[:LONG_SIZE], (1,)) == read_all(stream[:LONG_SIZE], ()), "byte by byte it is read otherwise"
    # A deadline that passes within a payload breaks the stream, so that no piece of nothing comes here.
    assert read_all(stream, [size or 1 for size in sizes]) == whole, "in pieces it is read otherwise"
