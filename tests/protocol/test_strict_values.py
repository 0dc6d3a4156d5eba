"""What a peer may claim in values: refused with a typed error, and before it costs memory or hours."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from remote_env.errors import InputError, MessageTooBig, ProtocolError
from remote_env.protocol import codec, frames, layout
from remote_env.protocol.batch import join_objects
from remote_env.protocol.coding import MAX_SCANS, decode_array, encode_array
from remote_env.protocol.inference import MAX_ROWS, InferCodec
from remote_env.session.slices import check_reply, last_transition
from remote_env.spaces import space_from_plain
from remote_env.state import EntityLayout, SceneDescription, SceneLayout, SceneState

LARGEST = (1 << 8 * codec.MAX_INTEGER_BYTES - 1) - 1
HASH_MODULUS = 2**61 - 1  # Python's: integers that differ by it share a hash


def ext(code: int, data: bytes) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, data))


# Integers


@pytest.mark.parametrize("size", [0, codec.MAX_INTEGER_BYTES + 1, 1 << 20])
def test_integers_of_no_or_too_many_bytes_are_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"an integer of {size} bytes"):
        codec.decode(ext(codec.EXT_BIG_INT, b"\x01" * size), 0)


@pytest.mark.parametrize("number", [LARGEST + 1, -LARGEST - 1], ids=["positive", "negative"])
def test_the_largest_integers_cross_and_can_be_shown(number: int) -> None:
    with pytest.raises(InputError, match=r"info\['n'\] is an int.*1025 bytes.*as bytes or text"):
        codec.encode({"n": number}, where="info")
    number += -1 if number > 0 else 1
    assert codec.decode(codec.encode(number, where="info")[0], 0)[0] == number
    assert str(number)


# Dicts


def colliding_body(count: int) -> bytes:
    keys = [
        number.to_bytes(17, "big", signed=True)
        for number in range(HASH_MODULUS * 64, HASH_MODULUS * (64 + count), HASH_MODULUS)
    ]
    return b"\xdf" + count.to_bytes(4, "big") + b"".join(ext(codec.EXT_BIG_INT, key) + b"\xc0" for key in keys)


def test_keys_that_were_chosen_to_collide_are_refused_at_once() -> None:
    body = colliding_body(50_000)  # as a dict: minutes
    started = time.perf_counter()
    with pytest.raises(ProtocolError, match="share their hashes"):
        codec.decode(body, 0)
    assert time.perf_counter() - started < 30  # not minutes; a deadline, not a measurement


def test_a_few_keys_may_collide() -> None:
    assert len(codec.decode(colliding_body(codec.MAX_SAME_HASHES), 0)[0]) == codec.MAX_SAME_HASHES
    many = dict.fromkeys(range(2000)) | {float(f"{number}.5"): None for number in range(2000)}
    assert codec.decode(codec.encode(many, where="info")[0], 0)[0] == many


# Coded arrays


def coded(**changed: Any) -> dict[str, Any]:
    whole = encode_array(np.zeros(1024, np.uint8), "zstd")
    return {**whole, **changed}


@pytest.mark.parametrize(
    "fault",
    [
        {"coder": np.array(["zstd", "zstd"])},
        {"coder": ["zstd"]},
        {"coder": None},
        {"dtype": np.zeros(3)},
        {"shape": np.zeros(3)},
        {"shape": [0]},
        {"shape": [0, 2**32 - 1, 2**32 - 1]},
        {"shape": [[10] * 1000] * 1000},
    ],
)
def test_coded_arrays_that_are_none(fault: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_array(coded(**fault), max_bytes=1 << 20)
    assert len(str(caught.value)) < 400


def test_a_jpeg_of_very_many_scans_or_with_bytes_behind_it_is_refused() -> None:
    image = encode_array(np.zeros((16, 16, 3), np.uint8), "jpeg")
    data = image["data"][0].tobytes()
    comment = b"\xff\xfe" + (2 + 2 * MAX_SCANS).to_bytes(2, "big") + b"\xff\xda" * MAX_SCANS
    for spoiled, why in (
        (data[:2] + comment + data[2:], "scans"),
        (data + b"x", "behind"),
        (data[:-2], "without its end"),
    ):
        with pytest.raises(ProtocolError, match=why):
            decode_array({**image, "data": [np.frombuffer(spoiled, np.uint8)]}, max_bytes=1 << 20)


# Arrays of objects


@pytest.mark.parametrize(
    "objects",
    [
        [(("a",), [1], [1])],  # that place is taken
        [(("b",), [2**70], [1])],
        [(("b",), [-1], [1])],
        [(("b",), [2], [1])],
        [(("b",), [True], [1])],
        [(("b",), np.ones(1, np.int64), [1])],
        [(("b",), [1], np.zeros(1))],
        [(("b",), [1], [1]), (("b",), [1], [1])],  # twice
        [(("new",), [1], [1])],  # there is no such place
        [(("c", -1), [1], [1])],
        [(("c", 2**70), [1], [1])],
        [(("c", np.array([0, 1])), [1], [1])],
        [(("c", slice), [1], [1])],
        [(("numbers", 0), [1], [1])],
        [(("text", 0), [1], [1])],
        [((), [1], [1])],
        5,
    ],
)
def test_arrays_of_objects_go_where_the_info_has_none(objects: Any) -> None:
    info = {"a": 1, "b": None, "c": [None, None], "numbers": np.zeros(3), "text": "abc"}
    with pytest.raises(ProtocolError, match="do not fit the info"):
        join_objects(info, objects)


# Inference


def result_frame(rows: int, length: int, body: bytes, payload_size: int = 0) -> tuple[frames.Header, bytearray]:
    packed = rows.to_bytes(4, "little") + length.to_bytes(4, "little") + bytes(8) + body
    frame = frames.pack_frame(frames.RESULT, packed, flags=frames.FIXED, payload_size=payload_size)
    return frames.parse_header(frame), frame


@pytest.mark.parametrize(
    ("size", "rows", "length", "body", "payload_size"),
    [
        (0, 2**32 - 1, 2**32 - 1, b"", 0),
        (0, MAX_ROWS + 1, 1, b"", 0),
        (2, 1, 1, bytes(8), 64),  # a payload that nobody reads
        (2, 1, 1024, b"x", 8192),  # a body behind it that nobody reads
    ],
)
def test_results_of_an_inference_that_are_none(
    size: int, rows: int, length: int, body: bytes, payload_size: int
) -> None:
    header, frame = result_frame(rows, length, body, payload_size)
    with pytest.raises(ProtocolError, match="actions"):
        InferCodec({}, size).read_result(header, frame, frames.HEADER_SIZE, len(frame))


def request(codec_: InferCodec, body: bytes, flags: int) -> Any:
    frame = frames.pack_frame(frames.INFER, body, flags=flags)
    return codec_.read_request(frames.parse_header(frame), frame, frames.HEADER_SIZE, len(frame))


def test_a_feature_comes_once() -> None:
    reader = InferCodec({"state": ("float32", (1,))}, 1)
    tail, _ = codec.encode({"observation": {"state": [1]}}, where="x")
    with pytest.raises(ProtocolError, match="'state' twice"):
        request(reader, b"\x01\0\0\0" + bytes(4) + tail, frames.FIXED | frames.TAIL)


def test_episodes_are_told_anew_for_other_rows() -> None:
    reader = InferCodec({"state": ("float32", (1,))}, 1)
    tail, _ = codec.encode({}, where="x")
    for rows in (1, 3):
        body = rows.to_bytes(4, "little") + bytes(4 * rows) + tail
        assert request(reader, body, frames.FIXED | frames.TAIL)[1] == ("",) * rows


def test_too_many_episodes() -> None:
    body, _ = codec.encode({"episodes": [""] * (MAX_ROWS + 1)}, where="x")
    with pytest.raises(ProtocolError, match="65537 episodes"):
        request(InferCodec({}, 1, has_others=True), body, 0)


@pytest.mark.parametrize(
    "feature",
    [("object", (1,)), ("O", (1,)), ("no such", (1,)), ("<U4", (1,)), ("float32", (-1, -1)), ("uint8", (2**31, 2))],
)
def test_features_that_no_message_holds(feature: tuple[str, tuple[int, ...]]) -> None:
    with pytest.raises(ProtocolError, match="the feature 'x'"):
        InferCodec({"x": feature}, 1)


# Layouts


@pytest.mark.parametrize(("reward", "kind"), [(0.5, 3), (0.5, 4), (1e300, 2), (0.1, 2)])
def test_rewards_that_their_kind_cannot_hold(reward: float, kind: int) -> None:
    body = bytearray(layout.TRANSITION_SIZE)
    layout._TRANSITION.pack_into(body, 0, reward, kind, 0)
    with pytest.raises(ProtocolError, match="reward"):
        layout.read_transition(body, 0)


def test_flags_and_kinds_that_there_are_not() -> None:
    body = bytearray(layout.TRANSITION_SIZE)
    body[9] = 16
    with pytest.raises(ProtocolError, match="flags 0x10"):
        layout.read_transition(body, 0)
    from gymnasium import spaces

    fixed = layout.compile_layout(spaces.Discrete(3))
    assert fixed is not None
    with pytest.raises(ProtocolError, match="kind 2"):
        fixed.read(bytearray(b"\x02" + bytes(8)), 0, 9)


# Scenes

ENTITY = {"name": "cube", "joints": [], "links": []}


@pytest.mark.parametrize(
    "plain",
    [
        np.zeros(3),
        [ENTITY],
        {"source": 5, "entities": []},
        {"source": "x", "entities": np.zeros(3)},
        {"source": "x", "entities": [np.zeros(3)]},
        {"source": "x", "entities": [{**ENTITY, "name": 5}]},
        {"source": "x", "entities": [{**ENTITY, "joints": "abc"}]},
        {"source": "x", "entities": [{**ENTITY, "joints": [5]}]},
        {"source": "x", "entities": [{**ENTITY, "links": np.zeros(1 << 24, np.uint8)}]},
        {"source": "x", "entities": [ENTITY, ENTITY]},
    ],
)
def test_layouts_of_scenes_that_are_none(plain: Any) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            SceneLayout.from_plain(plain)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("values", "native"),
    [([0.0] * 14, None), (None, None), (np.zeros(13), None), (np.zeros(14), "text"), (np.zeros(14), [])],
)
def test_states_that_are_none(values: Any, native: Any) -> None:
    with pytest.raises(InputError, match="a state's"):
        SceneState(SceneLayout((EntityLayout("cube"),)), values, native)


SHAPE = {"entity": "cube", "link": "cube", "kind": "sphere", "size": [1.0]}


@pytest.mark.parametrize(
    "change",
    [
        {"size": np.ones(1 << 20)},
        {"size": [10**400]},
        {"size": 5},
        {"kind": ["sphere"]},
        {"entity": 5},
        {"unknown": 5},
        {"pose": ["a"] * 7},
    ],
)
def test_shapes_that_are_none(change: dict[str, Any]) -> None:
    SceneDescription.from_plain({"shapes": [SHAPE], "mjcf": "", "notes": []})
    with pytest.raises(InputError):
        SceneDescription.from_plain({"shapes": [{**SHAPE, **change}], "mjcf": "", "notes": []})


@pytest.mark.parametrize(
    "plain", [np.zeros(3), {"shapes": 5, "mjcf": "", "notes": []}, {"shapes": [], "mjcf": 5, "notes": []}]
)
def test_descriptions_that_are_none(plain: Any) -> None:
    with pytest.raises(InputError, match="not a scene description"):
        SceneDescription.from_plain(plain)


# Slices


def reply(**rows: Any) -> dict[str, Any]:
    ends = (0.5, False, False, {})
    counts = {"steps": 2, "success": None, "inferences": 1, "inference_s": 0.5, "elapsed_s": 1.0}
    return {**counts, "last": ends, "rows": {"reward": np.zeros(2), **rows}}


@pytest.mark.parametrize(
    "rows",
    [
        {"reward": np.zeros(3)},
        {"action": np.zeros((3, 1))},
        {"observation": np.zeros((2**31, 0))},
        {"observation": np.zeros(())},
        {"observation": {"a": np.zeros(3), "b": [1]}},
        {"observation": ([1, 2], "ab")},
        {"frame": None},
        {"info": []},
    ],
)
def test_rows_are_as_many_as_steps(rows: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rows"):
        check_reply(reply(**rows))


def test_the_last_row_is_read_alone() -> None:
    observation = {"a": np.arange(6).reshape(3, 2), "b": ([1, 2, 3], np.arange(2))}
    transition = last_transition(check_reply(reply(observation=observation)))
    assert transition is not None
    last = transition[0]
    assert (last["a"].tolist(), last["b"]) == ([4, 5], (3, 1))


# Spaces


def test_bounds_take_no_more_memory_than_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4 << 20
    monkeypatch.setattr("remote_env.spaces.MAX_BOX_BYTES", limit)
    box = {"type": "Box", "dtype": "float32", "low": np.float32(0), "high": np.float32(1)}
    fits = limit // (2 * 5)
    tracemalloc.start()
    try:
        for shape, whole in (([fits], True), ([fits + 1], False), ([2**32 - 1] * 32, False), ([0, 2**32 - 1], True)):
            tracemalloc.reset_peak()
            if whole:
                assert space_from_plain({**box, "shape": shape}).shape == tuple(shape)
            else:
                with pytest.raises(ProtocolError, match="bounds take more"):
                    space_from_plain({**box, "shape": shape})
            # Gymnasium copies what it is given, once at a time.
            assert tracemalloc.get_traced_memory()[1] < (4 * limit if whole else 1 << 20)
    finally:
        tracemalloc.stop()


# What a decoder raises is bounded, too.

HUGE: list[Callable[[Any], Any]] = [space_from_plain, SceneLayout.from_plain, SceneDescription.from_plain]


@pytest.mark.parametrize("read", HUGE)
def test_errors_show_little_of_what_is_huge(read: Callable[[Any], Any]) -> None:
    for value in ("x" * (8 << 20), ["y" * 1000] * 10_000, {"type": "z" * (8 << 20)}):
        tracemalloc.start()
        try:
            with pytest.raises((ProtocolError, InputError)) as caught:
                read(value)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert len(str(caught.value)) < 2000


def test_a_payload_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(MessageTooBig):
        codec.decode(b"\xc0", codec.DEFAULT_LIMITS.max_payload_bytes + 1)
