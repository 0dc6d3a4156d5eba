"""Bodies: decoded or refused, alike by both msgpacks; what was decoded crosses again as it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgpack
import msgpack.fallback

from remote_env.errors import ProtocolError
from remote_env.protocol import codec

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from protocol.strategies import same

LIMITS = codec.Limits(max_payload_bytes=1 << 18, max_array_bytes=1 << 18, max_items=20_000)
COMPILED = codec.Packer, codec.unpackb
PURE = msgpack.fallback.Packer, msgpack.fallback.unpackb


def use(pair: tuple[Any, Any]) -> None:
    """Let the codec work with this msgpack."""
    codec.Packer, codec.unpackb = pair
    codec._encoders.clear()
    codec._decoders.clear()


def read(body: bytes, payload_size: int) -> Any:
    """The value, its large arrays zeroed; the text of the refusal's class when there is none."""
    try:
        value, views = codec.decode(body, payload_size, LIMITS)
    except ProtocolError:
        return ProtocolError
    assert sum(map(len, views)) == payload_size, "views that are not the payload"
    for view in views:
        view[:] = bytes(len(view))
    return value


def run(data: bytes) -> None:
    """Two bytes give the payload's size, the rest is the body."""
    if len(data) < 2:
        return
    payload_size, body = int.from_bytes(data[:2], "little") * 4, data[2:]
    use(COMPILED)
    value = read(body, payload_size)
    use(PURE)
    try:
        assert same(value, read(body, payload_size)) or value is ProtocolError, "the msgpacks differ"
    finally:
        use(COMPILED)
    if value is ProtocolError:
        return
    again, buffers = codec.encode(value, where="value")
    third, views = codec.decode(again, sum(map(len, buffers)), LIMITS)
    for view, buffer in zip(views, buffers, strict=True):
        view[:] = buffer
    assert same(value, third), "it does not cross as it is"
