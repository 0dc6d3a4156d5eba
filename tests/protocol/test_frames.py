"""Frames: what goes in comes out, however the bytes arrive; anything else is a ProtocolError."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import ConnectionLost, DeadlineExceeded, MessageTooBig, ProtocolError, VersionMismatch
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
        assert not stream.broken
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


def test_a_payload_that_never_comes_breaks_the_stream() -> None:
    frame = bytes(frames.pack_frame(frames.STEP, b"", payload_size=10)) + b"abc"
    stream = frames.FrameStream(Chunks(frame, []))
    stream.recv(0.0)
    with pytest.raises(ConnectionLost):
        stream.fill([memoryview(bytearray(10))], 0.0)
    assert stream.broken


class CtrlC(Chunks):
    """Interrupts right after the kernel has given `at` bytes, before anybody has noted them."""

    def __init__(self, data: bytes, at: int) -> None:
        super().__init__(data, [at])
        self._is_due = True

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        size = super().recv_some_into(view, deadline)
        if self._is_due:
            self._is_due = False
            raise KeyboardInterrupt
        return size


def test_a_frame_that_was_not_noted_is_received_again() -> None:
    before = bytes(frames.pack_frame(frames.RESULT, b"12345678", sequence=3))
    frame = bytes(frames.pack_frame(frames.RESULT, b"abcdefgh", sequence=4))
    shape = frames.Shape.of(bytearray(frame))
    for receive in (lambda stream: stream.recv(0.0), lambda stream: stream.recv_shaped(shape, 0.0)):
        chunks = CtrlC(before + frame, len(before))
        chunks._is_due = False
        stream = frames.FrameStream(chunks)
        stream.recv(0.0)
        assert stream.recover(4)  # nothing of it came yet
        chunks._is_due = True
        with pytest.raises(KeyboardInterrupt):
            receive(stream)
        assert stream.recover(4)
        assert (stream.recv(0.0).sequence, stream.body_bytes()) == (4, b"abcdefgh")


@pytest.mark.parametrize("count", [1, 20, 40, 47])
def test_a_part_that_was_not_noted_ends_the_stream(count: int) -> None:
    frame = bytes(frames.pack_frame(frames.RESULT, b"abcdefgh", sequence=4))
    stream = frames.FrameStream(CtrlC(frame, count))
    with pytest.raises(KeyboardInterrupt):
        stream.recv(0.0)
    assert not stream.recover(4)


def test_an_interrupt_before_anything_came_is_harmless() -> None:
    class Early(Chunks):
        def recv_some_into(self, view: memoryview, deadline: float) -> int:
            raise KeyboardInterrupt

    stream = frames.FrameStream(Early(b"", []))
    with pytest.raises(KeyboardInterrupt):
        stream.recv(0.0)
    assert stream.recover(1)
