"""Fixed layouts: observations, actions, transitions, states and batches, read from any body."""

from __future__ import annotations

import contextlib

import numpy as np
from gymnasium import spaces

from remote_env.errors import ProtocolError
from remote_env.protocol import frames, layout
from remote_env.protocol.batch import BatchTransition
from remote_env.protocol.vector_step import VectorStep

SPACES = (
    spaces.Box(-1, 1, (3,), np.float32),
    spaces.Box(0, 255, (40, 40, 3), np.uint8),
    spaces.Box(0, 1, (0, 2), np.float64),
    spaces.Discrete(5),
    spaces.MultiBinary((2, 2)),
    spaces.MultiDiscrete([3, 4]),
    spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Tuple([spaces.Box(0, 1, (2,), bool), spaces.Discrete(2)])}),
    spaces.Dict({}),
)
LAYOUTS = [layout.compile_layout(space) for space in SPACES]
BATCHES = [BatchTransition(count) for count in (1, 3, 5000)]
VECTOR = layout.Vector(np.dtype("<f4"), 2)


def read_value(body: bytearray, fixed: layout.ValueLayout) -> None:
    """Read, and what was read written again is the same."""
    value, views = fixed.read(body, 0, len(body))
    again = bytearray(fixed.size)
    for view in views:
        view[:] = bytes(len(view))
    assert fixed.write(value, again, 0) is not None, "what was read does not fit"
    assert again == body[: fixed.size], "what was read is written otherwise"


def read_transition(body: bytearray) -> None:
    """Likewise of a transition, as far as it is one."""
    if len(body) < layout.TRANSITION_SIZE:
        return
    value = layout.read_transition(body, 0)
    again = bytearray(layout.TRANSITION_SIZE)
    assert layout.write_transition(again, 0, *value), "what was read does not fit"
    again_value = layout.read_transition(again, 0)
    assert list(map(type, value)) == list(map(type, again_value)), "it comes back as another type"


def read_state(body: bytearray) -> None:
    """A state's vector."""
    number, values, end = layout.read_state(body, 0, len(body))
    assert layout.pack_state(number, values) == body[:end], "what was read is written otherwise"


def read_result(body: bytearray) -> None:
    """A RESULT of the commonest task, which is read in another way."""
    step = VectorStep(VECTOR, VECTOR, 1)
    frame = frames.pack_frame(frames.RESULT, body, flags=frames.FIXED | frames.TAIL, epoch=1)
    step.expect_like(frames.parse_header(frame))
    if step.result_shape.size == len(frame):
        step.read_result(frame)


def run(data: bytes) -> None:
    """The first byte says as what the rest is read."""
    if not data:
        return
    kind, body = data[0] % 16, bytearray(data[1:])
    with contextlib.suppress(ProtocolError):
        if kind < len(LAYOUTS):
            fixed = LAYOUTS[kind]
            assert fixed is not None
            read_value(body, fixed)
        elif kind < len(LAYOUTS) + len(BATCHES):
            BATCHES[kind - len(LAYOUTS)].read(body, 0, len(body))
        elif kind == 11:
            read_transition(body)
        elif kind == 12:
            read_state(body)
        else:
            read_result(body)
