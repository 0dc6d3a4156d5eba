"""A server that says nonsense where observations come coded, with times, or as changes: typed errors, little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hostile_server import READY, SCENE, Body, open_session, packed, scripted

from remote_env.errors import ProtocolError, RemoteEnvError
from remote_env.protocol import codec, frames, layout, state_delta
from remote_env.protocol.chunks import ChunkOptions
from remote_env.protocol.delivery import DeliveryPlan
from remote_env.protocol.image_stream import ImageSender
from remote_env.session import Session
from remote_env.spaces import space_to_plain

SPACE = spaces.Dict({"i": spaces.Box(0, 255, (40, 40, 3), np.uint8)})
PLAN = DeliveryPlan(image_every=2, codecs={"i": "delta"}, timing=True, state_changes=True)
IMAGE = np.arange(4800, dtype=np.uint8).reshape(40, 40, 3)
SENDER = ImageSender(SPACE, PLAN.codecs)
TIMES = (0.1, 0.2, 0.3, 0.0)
FIRST = SENDER.encode({"i": IMAGE}, 2, is_key=True)  # the reply to the reset
SECOND = SENDER.encode({"i": IMAGE + 1}, 3)
RESET = {"observation": FIRST, "timing": TIMES, "layout": SCENE.to_plain()}
STEP = {"observation": SECOND, "reward": 1.0, "terminated": False, "truncated": False, "timing": TIMES}
ZEROS = np.zeros(SCENE.size)
LITTLE = np.zeros(30, np.uint8)
ALLOWED_BYTES = 8 << 20


def told(tail: Any, state: bytes = layout.pack_state(0, ZEROS), flags: int = 0) -> Body:
    return frames.RESULT, frames.TAIL | frames.STATE | flags, state + codec.encode(tail, where="tail")[0]


GOOD: list[Body] = [(frames.RESULT, frames.TAIL, packed({"codecs": ["raw", "delta"]})), told(RESET)]


def image(**changed: Any) -> Body:
    coded = {name: value for name, value in {**SECOND["i"], **changed}.items() if value is not ...}
    return told({**STEP, "observation": {"i": coded}})


def change(data: bytes, count: int = SCENE.size, base: int = 2) -> Body:
    return told(STEP, layout.pack_change(0, count, base, data), frames.CHANGE)


UNCHANGED = state_delta.encode(ZEROS, ZEROS)
assert UNCHANGED is not None
WRONG: dict[str, Body] = {
    "a coded image of a huge shape": image(shape=[60_000, 60_000, 3]),
    "a coded image of a shape that is none": image(shape=[-1, 40, 3]),
    "a coded image of another shape than its base": image(shape=[40, 20, 3]),
    "a coder that is none": image(coder="brotli"),
    "a coder that is no text": image(coder=LITTLE),
    "a base that was never sent": image(base=[1, 0]),
    "a base of a row that was never sent": image(base=[2, 5]),
    "a base that is none": image(base=LITTLE),
    "a base of huge numbers": image(base=[1 << 300, 0]),
    "no base": image(base=...),
    "data that is none": image(data=[LITTLE]),
    "data in several parts": image(data=[LITTLE, LITTLE]),
    "data that says it is large": image(data=[np.frombuffer(b"\x02\x01\x00\x01" + b"\xff\xff\xff\x7f" * 3, np.uint8)]),
    "a raw image of too few bytes": image(coder="raw", base=..., data=[LITTLE]),
    "a zstd frame that is none": image(coder="zstd", base=..., keep=..., data=[LITTLE]),
    "an image that stays and never came": told(
        {**STEP, "observation": {"i": {"coder": "last", "base": [9, 9], "age": 1}}}
    ),
    "an image that stays for a negative time": told(
        {**STEP, "observation": {"i": {"coder": "last", "base": [2, 0], "age": -1}}}
    ),
    "an image that stays for no number": told(
        {**STEP, "observation": {"i": {"coder": "last", "base": [2, 0], "age": LITTLE}}}
    ),
    "times that are few": told({**STEP, "timing": (1.0,)}),
    "times that are no numbers": told({**STEP, "timing": ("a", "b", "c", "d")}),
    "times that are no times": told({**STEP, "timing": (float("nan"), -1.0, float("inf"), 0.0)}),
    "times that are huge": told({**STEP, "timing": (1 << 3000, 0.0, 0.0, 0.0)}),
    "times that are an array": told({**STEP, "timing": LITTLE}),
    "an info that is none": told({**STEP, "info": 5}),
    "a change to a state that was never sent": change(UNCHANGED, base=1),
    "a change of more numbers than the state has": change(UNCHANGED, count=1 << 31),
    "a change that ends early": change(UNCHANGED[:3]),
    "a change with widths that no number has": change(b"\xff" * len(UNCHANGED)),
    "a change of another layout": told(STEP, layout.pack_change(5, SCENE.size, 2, UNCHANGED), frames.CHANGE),
}


def deliver(session: Session) -> None:
    session.deliver(PLAN, 3)
    session.reset(1, None, 3, want_state=True)


def test_the_script_is_right_when_nothing_is_wrong() -> None:
    with scripted(ready=READY_IMAGES, replies=[*GOOD, change(UNCHANGED)]) as server:
        session = open_session(server)
        deliver(session)
        observation, _, _, _, info = session.step(1, 3, want_state=True)
        assert np.array_equal(observation["i"], IMAGE + 1)
        assert info["image_age"] == 0
        session.close()


READY_IMAGES = {**READY, "observation_space": space_to_plain(SPACE)}


@pytest.mark.parametrize("name", WRONG)
def test_a_delivery_that_is_none_ends_the_session(name: str) -> None:
    with scripted(ready=READY_IMAGES, replies=[*GOOD, WRONG[name]]) as server:
        session = open_session(server)
        deliver(session)
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError):
                session.step(1, 3, want_state=True)
            assert tracemalloc.get_traced_memory()[1] < ALLOWED_BYTES
        finally:
            tracemalloc.stop()
            session.close()
        assert session.is_lost is not None


ROWS = ImageSender(SPACE, PLAN.codecs, image_every=2).encode_rows([{"i": IMAGE}, {"i": IMAGE}, {"i": IMAGE}], 3)
CHUNK = {
    "ran": 3,
    "reward": np.zeros(3),
    "terminated": np.zeros(3, np.bool_),
    "truncated": np.zeros(3, np.bool_),
    "rows": 3,
    "observation": ROWS,
    "info": None,
    "timing": TIMES,
}
CALLS: dict[str, tuple[Callable[[Session], Any], bytes]] = {
    "step": (lambda session: session.step(1, 3, want_state=True), change(UNCHANGED)[2]),
    "chunk": (lambda session: session.step_many([0, 1, 0], 3, ChunkOptions()), packed(CHUNK)),
}


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(CALLS)), st.integers(0, 31), st.binary(max_size=3), st.floats(0, 1))
def test_any_delivery_is_read_or_a_typed_error(name: str, flags: int, put: bytes, where: float) -> None:
    call, body = CALLS[name]
    at = int(where * len(body))
    spoiled = body[:at] + put + body[at + len(put) :]
    flags = flags if at % 4 == 0 else (frames.TAIL if name == "chunk" else frames.TAIL | frames.STATE | frames.CHANGE)
    with scripted(ready=READY_IMAGES, replies=[*GOOD, (frames.RESULT, flags, spoiled)]) as server:
        session = open_session(server)
        deliver(session)
        try:
            call(session)
        except ProtocolError:
            assert session.is_lost is not None
        except RemoteEnvError:
            pass
        finally:
            session.close()
