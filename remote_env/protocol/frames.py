"""Frames: a fixed header, a body, and the bytes of large arrays (docs/protocol.md, "Frames"). Standard library only."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol
from zlib import crc32

from remote_env.errors import (
    ConnectionLost,
    DamagedFrame,
    DeadlineExceeded,
    MessageTooBig,
    ProtocolError,
    VersionMismatch,
)

VERSION = 2
MAGIC = b"RENV"
# magic, version, type, flags, epoch, crc32, sequence, acknowledged, body size, payload size
HEADER = struct.Struct("<4sBBHIIQQII")
HEADER_SIZE = HEADER.size
_OURS = (MAGIC, VERSION)
_CRC = struct.Struct("<I")
_SIZES_AT = 32
_CRC_AT = 12  # it covers header and body, with zeros in its own place
_DAMAGED = "a frame arrived damaged: its CRC32 does not match"
_NO_CRC = bytes(_CRC.size)
_SHAPED = struct.Struct("<12sIQQ8s")  # a header as a `Shape` sees it
_TURN = struct.Struct("<IQQ")  # crc32, sequence, acknowledged: all that differs between two steps' headers

# Link messages: JSON bodies, read and written by the supervisor, which has the standard library alone.
HELLO, CHALLENGE, PROOF, WELCOME, REFUSED = 1, 2, 3, 4, 5
STATUS, LOGS, STOP, PING, DUMP, KILL, KEEP, LEAVE, REPLY, EVENT = 16, 17, 18, 19, 20, 21, 22, 23, 24, 25
# Session messages: msgpack bodies (see codec), or fixed layouts (see layout).
READY, RESET, STEP, STEP_MANY, GET_STATE, SET_STATE, SNAPSHOT, RESTORE = 32, 33, 34, 35, 36, 37, 38, 39
RENDER, CALL, BRANCH, CLOSE, ROLLOUT, RESUMED, DELIVER = 40, 41, 42, 43, 44, 45, 46
INFER, POLICY_RESET, POLICY_INFO = 48, 49, 50  # to a policy server
RESULT, ERROR = 64, 65

NAMES = {
    value: name
    for name, value in list(globals().items())
    if name.isupper() and isinstance(value, int) and not name.startswith("_") and name not in ("VERSION", "HEADER_SIZE")
}

# Flags of session messages.
FIXED = 1  # the body starts with values in the session's fixed layout
STATE = 2  # the body carries a SceneState's vector
TAIL = 4  # the body ends with a msgpack value
WANT_STATE = 8  # the request asks for a SceneState in its reply
CHANGE = 16  # the SceneState's vector comes as what has changed of an earlier one
_ALL_FLAGS = FIXED | STATE | TAIL | WANT_STATE | CHANGE

FIRST_SIZE = 4096  # received at first of a frame: a large array comes whole into memory of its own, copied once
MAX_BODY_SIZE = 64 << 20
MAX_PAYLOAD_SIZE = 1 << 30
MAX_LINK_BODY_SIZE = 1 << 20  # link messages are small; an unauthenticated peer cannot make us hold more

Buffer = bytes | bytearray | memoryview


class Header(NamedTuple):
    """A frame's header, checked.

    Attributes:
        magic: b"RENV".
        version: of the protocol.
        type: one of this module's message types.
        flags: bits of FIXED, STATE, TAIL, WANT_STATE, CHANGE.
        epoch: which session of this simulator the frame belongs to; 0 in link messages.
        crc: CRC32 of header and body, taken with zeros in this field.
        sequence: of the request; a reply repeats its request's.
        acknowledged: the last reply's sequence that the sender has received.
        body_size: in bytes.
        payload_size: in bytes; the arrays that follow the body.
    """

    magic: bytes
    version: int
    type: int
    flags: int
    epoch: int
    crc: int
    sequence: int
    acknowledged: int
    body_size: int
    payload_size: int


def pack_frame(
    kind: int,
    body: Buffer,
    *,
    flags: int = 0,
    epoch: int = 0,
    sequence: int = 0,
    acknowledged: int = 0,
    payload_size: int = 0,
) -> bytearray:
    """Header and body of one frame; the payload's buffers are to be sent right after it. Errors as `finish_frame`."""
    frame = bytearray(HEADER_SIZE)
    frame += body
    finish_frame(frame, kind, flags, epoch, sequence, acknowledged, payload_size)
    return frame


def finish_frame(
    frame: bytearray, kind: int, flags: int, epoch: int, sequence: int, acknowledged: int, payload_size: int
) -> None:
    """Write the header, CRC32 included, into the first bytes of a frame whose body lies behind them already.

    Raises:
        MessageTooBig: body or payload is above the protocol's limit; the frame must not be sent.
    """
    body_size = len(frame) - HEADER_SIZE
    if body_size > MAX_BODY_SIZE or payload_size > MAX_PAYLOAD_SIZE:
        raise MessageTooBig(
            f"a {NAMES.get(kind, kind)} of {body_size} + {payload_size} bytes is above the limit of "
            f"{MAX_BODY_SIZE} + {MAX_PAYLOAD_SIZE}; ask for less per call"
        )
    HEADER.pack_into(frame, 0, MAGIC, VERSION, kind, flags, epoch, 0, sequence, acknowledged, body_size, payload_size)
    _CRC.pack_into(frame, _CRC_AT, crc32(frame))


def renumber_frame(frame: bytearray, sequence: int, acknowledged: int) -> None:
    """Give a finished frame new numbers, and seal its new body, which must be as long as the old one."""
    _TURN.pack_into(frame, _CRC_AT, 0, sequence, acknowledged)
    _CRC.pack_into(frame, _CRC_AT, crc32(frame))


def parse_header(buffer: Buffer, offset: int = 0) -> Header:
    """The header at `offset`, checked but for its CRC.

    Raises:
        DamagedFrame: the bytes are not a frame of ours.
        VersionMismatch: a frame of another version.
        ProtocolError: it has flags that there are not.
        MessageTooBig: it announces more than the protocol allows; nothing was allocated.
    """
    header = tuple.__new__(Header, HEADER.unpack_from(buffer, offset))
    if header[:2] == _OURS and header[3] <= _ALL_FLAGS and header[8] <= MAX_BODY_SIZE and header[9] <= MAX_PAYLOAD_SIZE:
        return header
    magic, version, _, flags, _, _, _, _, body_size, payload_size = header
    if magic != MAGIC:
        raise DamagedFrame(f"not a remote-env frame: it starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise VersionMismatch(
            f"the peer speaks protocol version {version}, this end version {VERSION}; "
            "install the same remote-env release on both"
        )
    if flags > _ALL_FLAGS:
        raise ProtocolError(f"a frame with unknown flags: {flags:#06x}")
    raise MessageTooBig(
        f"the peer announces a frame of {body_size} + {payload_size} bytes; the limit is "
        f"{MAX_BODY_SIZE} + {MAX_PAYLOAD_SIZE}"
    )


def check_crc(header: Header, frame: bytearray, start: int, view: memoryview) -> None:
    """Check the CRC32 of the header and body that start at `frame[start]`, which `view` shows; its field is zeroed.

    Raises:
        DamagedFrame: they arrived damaged.
    """
    at = start + _CRC_AT
    frame[at : at + 4] = _NO_CRC
    if crc32(view[start : start + HEADER_SIZE + header[8]]) != header[5]:
        raise DamagedFrame(_DAMAGED)


class Shape(NamedTuple):
    """All of a frame's header that is known before it comes: everything but its numbers and its CRC.

    Attributes:
        head: the bytes before the CRC.
        sizes: the bytes behind the numbers.
        size: of header and body.
        header: one with other numbers.
    """

    head: bytes
    sizes: bytes
    size: int
    header: Header

    @classmethod
    def of(cls, frame: bytearray) -> Shape:
        """The shape of every frame that differs from `frame` in numbers and body alone."""
        return cls(bytes(frame[:_CRC_AT]), bytes(frame[_SIZES_AT:HEADER_SIZE]), len(frame), parse_header(frame))


class ByteStream(Protocol):
    """What a frame stream needs of a transport; see `remote_env.transport.Transport`."""

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        """Send all of `buffers`."""

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        """Receive at least one byte."""


class FrameStream:
    """Frames over a byte stream, in both directions; one reader and one writer at a time.

    A body is received into one buffer that is used again: `body` is valid until the next `recv`.

    Args:
        stream: the bytes.
        buffer_size: of `body` at first.
        clock: the time on the deadlines' scale [s]; needed for `stall_s`.
        stall_s: how long the rest of a frame may stay out once it has begun, deadline or not [s].

    Attributes:
        body: the buffer that holds the last frame's body, from `body_start` to `body_end`.
        acknowledged: of the last frame that `recv_shaped` received.
        max_frame_size: the largest header and body that is received; smaller until the peer has proved itself.
    """

    max_frame_size = HEADER_SIZE + MAX_BODY_SIZE

    def __init__(
        self,
        stream: ByteStream,
        *,
        buffer_size: int = 1 << 16,
        clock: Callable[[], float] | None = None,
        stall_s: float = 0.0,
    ) -> None:
        self._stream = stream
        self.body = bytearray(buffer_size)
        self._view = memoryview(self.body)
        self._first = self._view[:FIRST_SIZE]
        self._start = self._end = 0  # received and not yet consumed
        self.body_start = self.body_end = self.acknowledged = 0
        self._clock, self._stall_s = clock, stall_s

    def send(self, frame: Buffer, deadline: float, payload: Sequence[Buffer] = ()) -> None:
        """Send one packed frame and its payload's buffers; errors as `Transport.send_all`."""
        self._stream.send_all([frame, *payload] if payload else (frame,), deadline)

    def recv(self, deadline: float) -> Header:
        """The next frame's header; its body is at `body[body_start:body_end]`, its payload still to be `fill`ed.

        Raises:
            DeadlineExceeded: no whole header and body in time; what came is kept, so that `recv` may be tried again.
            ConnectionLost: the stream ended, or stalled in mid-frame.
            ProtocolError: what arrived is not a frame of ours (also VersionMismatch, MessageTooBig).
        """
        start, end = self._start, self._end
        if start == end:
            self._start = start = self._end = 0
            self._end = end = self._stream.recv_some_into(self._first, deadline)
        if end - start < HEADER_SIZE:
            start = self._receive(HEADER_SIZE, deadline)
        header = parse_header(self.body, start)
        size = HEADER_SIZE + header[8]
        if self._end - start < size:
            start = self._receive(size, deadline)
        body = self.body
        # As check_crc does; a call less on the path of every step.
        at = start + _CRC_AT
        body[at : at + 4] = _NO_CRC
        end = start + size
        if crc32(self._view[start:end]) != header[5]:
            raise DamagedFrame(_DAMAGED)
        self.body_start = start + HEADER_SIZE
        self.body_end = self._start = end
        return header

    def recv_shaped(self, shape: Shape, deadline: float) -> int:
        """The sequence number of the next frame if it is just of this shape, and its body at `body` from 40 on.

        0 when anything else came, which is left for `recv`. Errors as `recv`. For the path of every step: comparing
        bytes is cheaper than taking a header apart.
        """
        if self._start != self._end:
            return 0
        body = self.body
        self._start = self._end = 0
        self._end = end = self._stream.recv_some_into(self._view, deadline)
        head, crc, sequence, self.acknowledged, sizes = _SHAPED.unpack_from(body)
        if end != shape.size or head != shape.head or sizes != shape.sizes:
            return 0
        body[_CRC_AT : _CRC_AT + 4] = _NO_CRC
        if crc32(self._view[:end]) != crc:
            raise DamagedFrame(_DAMAGED)
        self._start = end
        return sequence  # type: ignore[no-any-return]

    @property
    def unread(self) -> bytes:
        """What has come and was not consumed: after a ProtocolError, what the peer sent instead of a frame."""
        return bytes(self._view[self._start : self._end])

    def _receive(self, count: int, deadline: float) -> int:
        """Have at least `count` unconsumed bytes in the buffer; where they start."""
        self._make_room(count)
        while self._end - self._start < count:
            space = self._view[self._end :] if self._end else self._view
            self._end += self._recv_more(space, deadline)
        return self._start

    def _recv_more(self, view: memoryview, deadline: float) -> int:
        """Receive more of a frame that has begun."""
        if self._clock is None:
            return self._stream.recv_some_into(view, deadline)
        now = self._clock()
        # A stream looks at the time only while nothing comes, and bytes may come one by one for ever.
        if now >= deadline:
            raise DeadlineExceeded("a frame began, and was not whole before the deadline")
        until = now + self._stall_s
        try:
            return self._stream.recv_some_into(view, min(deadline, until))
        except DeadlineExceeded as error:
            if until < deadline:
                raise ConnectionLost(f"a frame began, and no more of it came for {self._stall_s:g} s") from error
            raise

    def _make_room(self, count: int) -> None:
        if count > self.max_frame_size:
            raise MessageTooBig(
                f"a frame of {count} bytes; {self.max_frame_size} are allowed here, and less where the peer has "
                "proved nothing"
            )
        if self._start + count <= len(self.body):
            return
        kept = self.body[self._start : self._end]
        if count > len(self.body):
            self.body = bytearray(count)
            self._view = memoryview(self.body)
            self._first = self._view[:FIRST_SIZE]
        self._start, self._end = 0, len(kept)
        self.body[: len(kept)] = kept

    def fill(self, views: Sequence[memoryview], deadline: float) -> None:
        """Fill `views`, 1-D and byte-sized, with the payload of the frame just received.

        Raises:
            DeadlineExceeded: the rest did not come in time; the stream cannot go on.
            ConnectionLost: the stream ended, or stalled.
        """
        for view in views:
            size = len(view)
            done = min(size, self._end - self._start)
            view[:done] = self._view[self._start : self._start + done]
            self._start += done
            while done < size:
                done += self._recv_more(view[done:], deadline)

    def body_bytes(self) -> bytes:
        """A copy of the last frame's body."""
        return bytes(self._view[self.body_start : self.body_end])
