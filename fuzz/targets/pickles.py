"""Foreign dialects: restricted pickles (IL-Studio's, LeRobot's and any), and openpi's msgpack."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from remote_env.errors import InputError, ProtocolError
from remote_env.policy.dialects import ilstudio_messages, lerobot_pickle, openpi_messages
from remote_env.policy.dialects.restricted_pickle import PickleLimits, Record, restricted_loads

LIMITS = PickleLimits(max_bytes=1 << 20, max_opcodes=20_000, max_nodes=40_000)
ADMITTED = (type(None), bool, int, float, str, bytes, bytearray, np.ndarray, np.generic, np.dtype)


def read_any(data: bytes, *, object_arrays: bool) -> None:
    """A pickle for which nothing but plain data is admitted; only plain data comes of it."""
    made: list[Any] = []

    def build(module: str, fields: Any) -> Any:
        made.append(module)
        return dict(fields)

    allowed: Any = {(None, "MetaObs"): Record(build), ("a.b", "call"): lambda *arguments: list(arguments)}
    value = restricted_loads(data, allowed=allowed, limits=LIMITS, object_arrays=object_arrays)
    check(value, LIMITS.max_depth + 2)


def check(value: Any, depth: int) -> None:
    """Fail on anything that is not plain data."""
    assert depth, "it nests deeper than the limit"
    if isinstance(value, dict):
        for item in value.values():
            check(item, depth - 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            check(item, depth - 1)
    else:
        assert isinstance(value, ADMITTED), type(value)


READERS: tuple[Callable[[bytes], Any], ...] = (
    lambda data: read_any(data, object_arrays=False),
    lambda data: read_any(data, object_arrays=True),
    ilstudio_messages.read_request,
    lerobot_pickle.load_setup,
    lerobot_pickle.load_observation,
    lerobot_pickle.load_actions,
    openpi_messages.decode,
)


def run(data: bytes) -> None:
    """The first byte says who reads the rest."""
    if data:
        with contextlib.suppress(ProtocolError, InputError):
            READERS[data[0] % len(READERS)](data[1:])
