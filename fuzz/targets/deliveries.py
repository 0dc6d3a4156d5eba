"""What observations bring: coded images and what builds on them, states as changes, several steps; and requests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from remote_env.errors import ConfigError, InputError, ProtocolError
from remote_env.protocol import codec
from remote_env.protocol.branching import check_ids, read_tried, split_chunks
from remote_env.protocol.chunks import MAX_STEPS, ChunkOptions, check_outcomes, split_actions
from remote_env.protocol.delivery import DeliveryPlan, Selection
from remote_env.protocol.image_stream import ImageReceiver, ImageSender, check_codecs
from remote_env.protocol.state_stream import StateReceiver, StateSender, read_rows

MAX_BYTES = 1 << 20
LIMITS = codec.Limits(max_payload_bytes=MAX_BYTES, max_array_bytes=MAX_BYTES, max_items=20_000)
SPACE = spaces.Dict({"i": spaces.Box(0, 255, (20, 20, 3), np.uint8), "n": spaces.Box(-1, 1, (3,), np.float64)})
IMAGE = np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)
CODECS = ("raw", "zstd", "bitlz4", "bitzstd", "delta")
KEY = ImageSender(SPACE, {"i": "delta"}).encode({"i": IMAGE, "n": np.zeros(3)}, 1, is_key=True)
VECTOR = np.linspace(0, 1, 40)
VECTOR_KEY = StateSender().pack(0, VECTOR, 1, is_key=True)[0]


def _decoded(data: bytes) -> Any:
    return codec.decode(data, 0, LIMITS)[0]


def read_images(data: bytes) -> None:
    """Observations of several steps, behind one that they may build on; again they are the same."""
    values = _decoded(data)
    receiver = ImageReceiver(SPACE, max_bytes=MAX_BYTES)
    receiver.decode(KEY, 1)
    rows = receiver.decode_rows(values, 2)
    again = receiver.decode_rows(values, 2)
    assert codec.encode(rows, where="rows") is not None
    for row, other in zip(rows, again, strict=True):
        if isinstance(row, dict) and isinstance(row.get("i"), np.ndarray):
            assert row["i"].flags.writeable
            assert np.array_equal(row["i"], other["i"], equal_nan=row["i"].dtype.kind in "fc"), "it came as another"


def read_state(data: bytes) -> None:
    """A state's vector, or what has changed of the one before."""
    receiver = StateReceiver()
    receiver.read(bytearray(VECTOR_KEY), 0, len(VECTOR_KEY), 1, is_change=False)
    is_change = bool(data[:1] and data[0] & 1)
    receiver.read(bytearray(data[1:]), 0, len(data) - 1, 2, is_change=is_change)


def read_state_rows(data: bytes) -> None:
    """States of several steps."""
    value = _decoded(data)
    if isinstance(value, dict):
        assert read_rows(value, VECTOR.size).shape[1:] == VECTOR.shape


def read_request(data: bytes) -> None:
    """What a simulator reads of requests, and how much of it is taken apart."""
    value = _decoded(data)
    readers: tuple[Callable[[Any], Any], ...] = (ChunkOptions.from_plain, check_ids, _choose)
    for read in readers:
        with contextlib.suppress(ConfigError, InputError):
            read(value)
    with contextlib.suppress(InputError):
        assert 1 <= len(split_actions(value)) <= MAX_STEPS
    with contextlib.suppress(InputError):
        chunks = split_chunks(value)
        assert {len(chunk) for chunk in chunks} == {len(chunks[0])}


def _choose(value: Any) -> None:
    plan = DeliveryPlan.from_plain(value)
    assert DeliveryPlan.from_plain(plan.to_plain()) == plan
    space = Selection(SPACE, plan.keys, float32=plan.float32).space
    check_codecs(space, plan.codecs, have=CODECS, end="here")


def read_outcomes(data: bytes) -> None:
    """What a reply says of several steps, and of chunks that were tried; as the session reads it."""
    value = _decoded(data)
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        rewards, _, _ = check_outcomes(value, None)
        assert 1 <= len(rewards) <= MAX_STEPS
    with contextlib.suppress(AttributeError, LookupError, TypeError, ValueError):
        assert read_tried(value, 2, 3, "last").rewards.shape == (2, 3)


READERS = (read_images, read_state, read_state_rows, read_request, read_outcomes)


def run(data: bytes) -> None:
    """The first byte says who reads the rest."""
    if data:
        with contextlib.suppress(ProtocolError):
            READERS[data[0] % len(READERS)](data[1:])
