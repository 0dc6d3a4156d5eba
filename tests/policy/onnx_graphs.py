"""Writes small ONNX graphs with no package for that: just the few fields of onnx.proto that they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ELEMENTS = {"float32": 1, "uint8": 2, "int64": 7, "string": 8, "float64": 11}
Dims = Sequence[int | str]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _value(name: str, dtype: str, dims: Dims) -> bytes:
    shape = b"".join(_field(1, _field(1 if isinstance(size, int) else 2, size)) for size in dims)
    tensor = _field(1, ELEMENTS[dtype]) + _field(2, shape)
    return _field(1, name) + _field(2, _field(1, tensor))


def _constant(name: str, array: Any) -> bytes:
    sizes = b"".join(_field(1, size) for size in array.shape)
    return sizes + _field(2, ELEMENTS[str(array.dtype)]) + _field(8, name) + _field(9, array.tobytes())


def _node(kind: str, inputs: Sequence[str], output: str) -> bytes:
    return b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind)


def write_graph(
    path: Path,
    inputs: Sequence[tuple[str, str, Dims]],
    output: tuple[str, str, Dims],
    nodes: Sequence[tuple[str, Sequence[str], str]],
    **constants: Any,
) -> Path:
    """A graph of these nodes (operator, inputs, output)."""
    graph = b"".join(_field(1, _node(*node)) for node in nodes) + _field(2, "tiny")
    graph += b"".join(_field(5, _constant(name, np.asarray(array))) for name, array in constants.items())
    graph += b"".join(_field(11, _value(*one)) for one in inputs) + _field(12, _value(*output))
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 17)))
    return path


def write_linear(
    path: Path, *, state: int = 3, steps: int = 4, actions: int = 2, batch: int | str = "B", name: str = "state"
) -> Path:
    """actions[b, k, d] = k + the state's number d."""
    weights = np.tile(np.eye(state, actions, dtype=np.float32), (1, steps))
    offsets = np.repeat(np.arange(steps, dtype=np.float32), actions)
    return write_graph(
        path,
        [(name, "float32", (batch, state))],
        ("actions", "float32", (batch, steps, actions)),
        [
            ("MatMul", (name, "weights"), "flat"),
            ("Add", ("flat", "offsets"), "moved"),
            ("Reshape", ("moved", "shape"), "actions"),
        ],
        weights=weights,
        offsets=offsets,
        shape=np.array([-1, steps, actions], np.int64),
    )
