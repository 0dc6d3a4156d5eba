"""Frames: what goes in comes out, however the bytes arrive; anything else is a ProtocolError."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import (
    ConnectionLost,
    DamagedFrame,
    DeadlineExceeded,
    MessageTooBig,
    ProtocolError,
    VersionMismatch,
)
from remote_env.protocol import frames

kinds = st.sampled_from(sorted(frames.NAMES))


class Chunks:
    """A byte stream that arrives in pieces of given sizes; an empty piece is a deadline that passes."""

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self._data = data
        self._sizes = list(sizes)

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        if not self._data:
            raise ConnectionLost("the end")
        size = min(self._sizes.pop(0) if self._sizes else len(self._data), len(view), len(self._data))
        if size == 0:
            raise DeadlineExceeded("nothing came")
        view[:size], self._data = self._data[:size], self._data[size:]
        return size

    def recv_exactly_into(self, view: memoryview, deadline: float) -> None:
        done = 0
        while done < len(view):
            done += self.recv_some_into(view[done:], deadline)

    def send_all(self, buffers: Sequence[frames.Buffer], deadline: float) -> None:
        self._data += b"".join(buffers)


def recv(stream: frames.FrameStream) -> frames.Header:
    while True:
        try:
            return stream.recv(0.0)
        except DeadlineExceeded:
            continue


def drain(stream: frames.FrameStream) -> None:
    while True:
        stream.recv(0.0)


messages = st.lists(
    st.tuples(kinds, st.binary(max_size=300), st.binary(max_size=200), st.integers(0, 2**64 - 1)),
    min_size=1,
    max_size=6,
)


@given(messages, st.lists(st.integers(0, 90), max_size=60), st.integers(44, 400))
def test_frames_arrive_whole_however_they_are_cut(
    sent: list[tuple[int, bytes, bytes, int]], sizes: list[int], buffer_size: int
) -> None:
    data = b"".join(
        bytes(frames.pack_frame(kind, body, sequence=number, epoch=7, payload_size=len(payload))) + payload
        for kind, body, payload, number in sent
    )
    sizes = [size for index, size in enumerate(sizes) if size or index % 3]  # deadlines pass between pieces
    chunks = Chunks(data, sizes)
    stream = frames.FrameStream(chunks, buffer_size=buffer_size)
    for kind, body, payload, number in sent:
        header = recv(stream)
        assert (header.type, header.sequence, header.epoch) == (kind, number, 7)
        assert stream.body_bytes() == body
        assert header.payload_size == len(payload)
        chunks._sizes = [size or 1 for size in chunks._sizes]  # no deadline may pass inside a payload
        received = bytearray(len(payload))
        stream.fill([memoryview(received)[:5], memoryview(received)[5:]], 0.0)
        assert received == payload
    with pytest.raises(ConnectionLost):
        stream.recv(0.0)


@given(st.binary(min_size=frames.HEADER_SIZE, max_size=200))
def test_random_bytes_are_no_header(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.parse_header(data)


@given(st.binary(min_size=frames.HEADER_SIZE, max_size=200), st.booleans())
def test_random_bytes_behind_the_magic(data: bytes, right_version: bool) -> None:
    start = frames.MAGIC + (bytes([frames.VERSION]) if right_version else b"")
    with contextlib.suppress(ProtocolError):
        frames.parse_header(start + data[len(start) :])


@given(st.binary(max_size=400))
def test_a_stream_of_random_bytes_ends_in_a_typed_error(data: bytes) -> None:
    stream = frames.FrameStream(Chunks(frames.MAGIC + bytes([frames.VERSION]) + data, []))
    with pytest.raises((ProtocolError, ConnectionLost)):
        drain(stream)


@given(st.binary(max_size=64), st.data())
def test_every_damaged_bit_is_noticed(body: bytes, data: st.DataObject) -> None:
    frame = frames.pack_frame(frames.STEP, body, sequence=5, epoch=1)
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    stream = frames.FrameStream(Chunks(bytes(frame), []))
    with pytest.raises((ProtocolError, ConnectionLost)):  # lost: it now announces more bytes than come
        stream.recv(0.0)


def test_versions_are_both_named() -> None:
    frame = frames.pack_frame(frames.PING, b"")
    frame[4] = 200
    with pytest.raises(VersionMismatch, match=rf"version 200, this end version {frames.VERSION}"):
        frames.parse_header(frame)


@pytest.mark.parametrize("field", ["body_size", "payload_size"])
def test_sizes_are_checked_before_memory_is_taken(field: str) -> None:
    frame = frames.pack_frame(frames.PING, b"")
    values = frames.parse_header(frame)._replace(**{field: 0xFFFFFFFF})
    stream = frames.FrameStream(Chunks(frames.HEADER.pack(*values), []))
    with pytest.raises(MessageTooBig):
        stream.recv(0.0)
    assert len(stream.body) == 1 << 16


def test_what_is_too_big_is_not_sent() -> None:
    with pytest.raises(MessageTooBig, match="STEP"):
        frames.pack_frame(frames.STEP, b"", payload_size=frames.MAX_PAYLOAD_SIZE + 1)
    with pytest.raises(MessageTooBig):
        frames.pack_frame(frames.STEP, bytes(frames.MAX_BODY_SIZE + 1))


def test_renumbered_frames_are_sealed() -> None:
    frame = frames.pack_frame(frames.STEP, b"abcd", sequence=1)
    frame[frames.HEADER_SIZE :] = b"wxyz"
    frames.renumber_frame(frame, 9, 8)
    stream = frames.FrameStream(Chunks(bytes(frame), []))
    header = stream.recv(0.0)
    assert (header.sequence, header.acknowledged, stream.body_bytes()) == (9, 8, b"wxyz")


def test_a_payload_that_never_comes_ends_in_an_error() -> None:
    frame = bytes(frames.pack_frame(frames.STEP, b"", payload_size=10)) + b"abc"
    stream = frames.FrameStream(Chunks(frame, []))
    stream.recv(0.0)
    with pytest.raises(ConnectionLost):
        stream.fill([memoryview(bytearray(10))], 0.0)


class Silence(Chunks):
    """A clock, and a stream on which the pieces come `pause_s` apart; once there are none, nothing comes any more."""

    def __init__(self, data: bytes, sizes: Sequence[int], pause_s: float) -> None:
        super().__init__(data, sizes)
        self._pause_s, self.now = pause_s, 100.0

    def clock(self) -> float:
        return self.now

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        if not self._sizes or self.now + self._pause_s > deadline:
            self.now = deadline
            raise DeadlineExceeded("nothing came")
        self.now += self._pause_s
        return super().recv_some_into(view, deadline)


def stalling(frame: bytes, sizes: Sequence[int], pause_s: float = 3.0) -> tuple[frames.FrameStream, Silence]:
    silence = Silence(frame, sizes, pause_s)
    return frames.FrameStream(silence, clock=silence.clock, stall_s=5.0), silence


@pytest.mark.parametrize("sizes", [[1], [20], [39, 1], [40, 30]])
def test_a_frame_that_has_begun_must_go_on(sizes: list[int]) -> None:
    stream, silence = stalling(bytes(frames.pack_frame(frames.STEP, bytes(50))), sizes)
    with pytest.raises(ConnectionLost, match="a frame began, and no more of it came for 5 s"):
        stream.recv(1e9)
    assert silence.now == 100.0 + 3.0 * len(sizes) + 5.0


def test_a_payload_that_has_begun_must_go_on() -> None:
    stream, _ = stalling(bytes(frames.pack_frame(frames.STEP, b"", payload_size=50)) + bytes(50), [40, 20])
    stream.recv(1e9)
    with pytest.raises(ConnectionLost, match="no more of it came"):
        stream.fill([memoryview(bytearray(50))], 1e9)


def test_a_frame_may_take_long_as_long_as_it_goes_on_and_may_be_long_in_coming() -> None:
    stream, silence = stalling(bytes(frames.pack_frame(frames.STEP, bytes(60))), [1] * 100)
    assert stream.recv(1e9).type == frames.STEP
    assert silence.now == 100.0 + 100 * 3.0
    stream, silence = stalling(bytes(frames.pack_frame(frames.STEP, b"")), [40], pause_s=1000.0)
    assert stream.recv(1e9).type == frames.STEP  # before its first byte there is no frame that could stall


def test_the_deadline_counts_when_it_comes_before_the_stall() -> None:
    stream, silence = stalling(bytes(frames.pack_frame(frames.STEP, b"abc")), [20])
    with pytest.raises(DeadlineExceeded):
        stream.recv(105.0)
    silence._sizes = [23]  # the rest
    assert (stream.recv(1e9).type, stream.body_bytes()) == (frames.STEP, b"abc")


@pytest.mark.parametrize("at", [0, 3, 6, 15, 20, 41])
def test_a_damaged_frame_is_known_as_one(at: int) -> None:
    frame = frames.pack_frame(frames.STEP, b"abcd", sequence=5)
    frame[at] ^= 1
    with pytest.raises(DamagedFrame):
        frames.FrameStream(Chunks(bytes(frame), [])).recv(0.0)
    shape = frames.Shape.of(frame) if at > 5 else None
    if shape is not None:
        with pytest.raises(DamagedFrame):
            frames.FrameStream(Chunks(bytes(frame), [])).recv_shaped(shape, 0.0)
