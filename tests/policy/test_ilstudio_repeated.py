"""Replies that differ in their numbers alone are read as any other, without their pickle's being run again."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from remote_env.errors import ProtocolError
from remote_env.policy.dialects import ilstudio_repeated
from remote_env.policy.dialects.ilstudio_messages import Request, read_reply, write_reply
from remote_env.policy.dialects.ilstudio_repeated import ReplyReader
from remote_env.policy.meta import MetaObs

SINGLE = Request(MetaObs(state=np.zeros(14, np.float32), timestep=0), "benchmark.base")


def batch(rows: int) -> Request:
    state, timestep = np.zeros((rows, 14), np.float32), np.zeros((rows, 1), np.int64)
    return Request(MetaObs(state=state, timestep=timestep), "benchmark.base")


def chunk(seed: int, rows: int = 1, length: int = 8) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, length, 14)).astype(np.float32)


@pytest.fixture
def whole_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the pickles that were run."""
    sizes: list[int] = []

    def read(data: Any, rows: int) -> Any:
        sizes.append(len(data))
        return read_reply(data, rows)

    monkeypatch.setattr(ilstudio_repeated, "read_reply", read)
    return sizes


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_numbers_are_read_out_of_replies_like_the_last(whole_reads: list[int], rows: int) -> None:
    reader, request = ReplyReader(), batch(rows) if rows else SINGLE
    for seed in range(6):
        actions = chunk(seed, rows or 1)
        data = write_reply(actions, request, {"ctrl_space": "ee"})
        reply, expected = reader.read(data, rows or 1), read_reply(data, rows or 1)
        assert (reply.actions.dtype, reply.actions.tobytes()) == (expected.actions.dtype, expected.actions.tobytes())
        assert reply.kind == expected.kind
        assert reply.actions.flags.writeable
        np.testing.assert_array_equal(reply.actions, actions)
    assert len(whole_reads) == 3  # the first, the second, and the proof


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<i2"])
def test_whatever_a_server_writes(protocol: int, dtype: str) -> None:
    reader = ReplyReader()
    for value in (0, 0, 1, 2):
        steps = [{"action": np.full(5, value + step, dtype), "ctrl_type": "delta"} for step in range(4)]
        data = pickle.dumps(steps, protocol)
        np.testing.assert_array_equal(reader.read(data, 1).actions, read_reply(data, 1).actions)


def test_zeros_are_found(whole_reads: list[int]) -> None:
    reader = ReplyReader()
    for _ in range(4):
        reader.read(write_reply(np.zeros((1, 8, 14), np.float32), SINGLE, {}), 1)
    assert len(whole_reads) == 3


def test_one_array_in_many_steps_is_read_whole_each_time(whole_reads: list[int]) -> None:
    reader = ReplyReader()
    for value in range(6):
        shared = {"action": np.full(5, value, np.float32)}
        assert reader.read(pickle.dumps([shared, shared]), 1).actions.tolist() == [[[value] * 5] * 2]
    assert len(whole_reads) <= 7


def test_any_other_byte_has_the_pickle_run() -> None:
    reader = ReplyReader()
    for seed in range(3):
        data = write_reply(chunk(seed), SINGLE, {})
        reader.read(data, 1)
    for other in (write_reply(chunk(9), SINGLE, {"ctrl_type": "delta"}), write_reply(chunk(9, length=7), SINGLE, {})):
        reply, expected = reader.read(other, 1), read_reply(other, 1)
        assert (reply.kind, reply.actions.tolist()) == (expected.kind, expected.actions.tolist())
    hostile = data.replace(
        b"cbenchmark.base\nMetaAction\n", b"c" + b"posix".ljust(14, b" ") + b"\n" + b"system".ljust(10) + b"\n"
    )
    for bad in (hostile, data.replace(b"MetaAction", b"MetaAct1on"), data[:-1] + b"x", data + b"."):
        assert bad != data
        with pytest.raises(ProtocolError):
            reader.read(bad, 1)
    with pytest.raises(ProtocolError):
        reader.read(data, 2)
    assert reader.read(data, 1).actions.tolist() == read_reply(data, 1).actions.tolist()


def test_every_byte_counts() -> None:
    reader = ReplyReader()
    for seed in range(3):
        data = write_reply(chunk(seed, length=2), SINGLE, {})
        reader.read(data, 1)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x55
        assert _outcome(reader.read, changed) == _outcome(read_reply, changed), at


def _outcome(read: Any, data: bytearray) -> Any:
    try:
        reply = read(data, 1)
    except ProtocolError as error:
        return str(error)
    return reply.kind, reply.actions.dtype, reply.actions.tobytes()
