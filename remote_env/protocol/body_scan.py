"""Check the structure of a msgpack body without building anything (docs/protocol.md, "Values: limits"). Pure.

msgpack takes memory for a list as soon as it reads how long it claims to be, and knows no limit of depth but
its own; so a body that could abuse that is walked first. Most bodies are too short and too plain to need the
walk, which `is_suspicious` finds out at a nanosecond a byte.
"""

from __future__ import annotations

import re

from remote_env.errors import ProtocolError

WALK_ABOVE_BYTES = 16 << 10  # a shorter body can claim only a few megabytes, which it never touches

# Bytes that start a list or dict, wherever they stand: an upper bound for the depth.
_CONTAINER_HEADS = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
# msgpack decodes extension type -1 (its timestamp) itself, unasked.
_NEGATIVE_EXT = re.compile(rb"[\xd4-\xd8][\x80-\xff]|\xc7.[\x80-\xff]|\xc8..[\x80-\xff]|\xc9....[\x80-\xff]", re.DOTALL)


def is_suspicious(body: bytes, max_items: int, max_depth: int) -> bool:
    """Whether `body` might break a limit, or hold an extension type that msgpack treats by itself."""
    size = len(body)
    return (
        size > WALK_ABOVE_BYTES
        or size > max_items
        or (size > max_depth and size - len(body.translate(None, _CONTAINER_HEADS)) > max_depth)
        or (b"\xff" in body and _NEGATIVE_EXT.search(body) is not None)
    )


def scan(body: bytes, max_items: int, max_depth: int) -> None:
    """Walk over `body`; raise ProtocolError unless it is one whole msgpack value within the limits."""
    position, items, size = 0, 1, len(body)
    left = [1]  # how many values are still to come, per open container
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        if position >= size:
            raise ProtocolError(f"a body that ends after {size} bytes, in the middle of a value")
        position, children = _step(body, position)
        if children is None:
            continue
        items += children
        left.append(children)
        if len(left) - 1 > max_depth:
            raise ProtocolError(f"a body nested deeper than {max_depth} levels")
        if items > size:
            raise ProtocolError(f"a body of {size} bytes that claims to hold {items} values or more")
        if items > max_items:
            raise ProtocolError(f"a body of {items} values or more; at most {max_items} are allowed")
    if position != size:
        raise ProtocolError(f"a body of {size} bytes whose value needs {position}")


def _step(body: bytes, position: int) -> tuple[int, int | None]:
    """Where the next value starts after the one at `position`, or inside it, and then how many it holds."""
    kind, length_bytes, fixed = _HEADS[body[position]]
    position += 1
    length = fixed + int.from_bytes(body[position : position + length_bytes], "big")
    position += length_bytes
    if kind == "list":
        return position, length
    if kind == "dict":
        return position, 2 * length
    if kind == "invalid":
        raise ProtocolError("a body with the byte 0xc1, which starts nothing")
    if kind == "ext":
        code = body[position : position + 1]
        if code > b"\x7f":
            raise ProtocolError(f"a body with the extension type {code[0] - 256}")
        position += 1
    return position + length, None


def _heads() -> list[tuple[str, int, int]]:
    """For each first byte: the kind, the size of the length field, and what is to be added to that length."""
    heads = [("plain", 0, 0)] * 256  # small integers, None, booleans
    heads[0x80:0xC0] = (
        [("dict", 0, n) for n in range(16)] + [("list", 0, n) for n in range(16)] + [("plain", 0, n) for n in range(32)]
    )
    heads[0xC1] = ("invalid", 0, 0)
    heads[0xC4:0xCA] = [
        ("plain", 1, 0),
        ("plain", 2, 0),
        ("plain", 4, 0),
        ("ext", 1, 0),
        ("ext", 2, 0),
        ("ext", 4, 0),
    ]
    heads[0xCA:0xD4] = [("plain", 0, n) for n in (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)]
    heads[0xD4:0xD9] = [("ext", 0, n) for n in (1, 2, 4, 8, 16)]
    heads[0xD9:0xDC] = [("plain", n, 0) for n in (1, 2, 4)]
    heads[0xDC:0xE0] = [("list", 2, 0), ("list", 4, 0), ("dict", 2, 0), ("dict", 4, 0)]
    return heads


_HEADS = _heads()
