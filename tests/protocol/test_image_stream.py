"""Images of observations over the wire: exact, once or twice, and refused where they lie."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_env.errors import ConfigError, MessageTooBig, ProtocolError
from remote_env.protocol import codec
from remote_env.protocol.blosc_frames import HEADER
from remote_env.protocol.coding import LOSSY
from remote_env.protocol.image_stream import (
    CODECS,
    ImageReceiver,
    ImageSender,
    available_codecs,
    box_paths,
    check_codecs,
    image_paths,
)

PLENTY = 1 << 26
SHAPE = (48, 64, 3)
IMAGE = spaces.Box(0, 255, SHAPE, np.uint8)
SPACE = spaces.Dict(
    pixels=spaces.Dict(top=IMAGE, wrist=IMAGE),
    depth=spaces.Tuple([spaces.Box(0, 10, (48, 64), np.float32), spaces.Discrete(3)]),
    agent_pos=spaces.Box(-1, 1, (14,)),
)
LOSSLESS = [codec for codec in CODECS if codec not in LOSSY]


def over_the_wire(value: Any) -> Any:
    """What arrives of a value."""
    body, payload = codec.encode(value, where="test")
    arrived, views = codec.decode(body, sum(map(len, payload)))
    for view, sent in zip(views, payload, strict=True):
        view[:] = sent
    return arrived


def picture(seed: int) -> Any:
    """A smooth image in which something has moved."""
    image = np.kron(np.arange(36, dtype=np.uint8).reshape(3, 4, 3), np.ones((16, 16, 1), np.uint8))
    image[seed % 40 : seed % 40 + 8, 10:30] = seed
    return image


def observation(seed: int) -> Any:
    depth = np.linspace(0, seed + 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    return {
        "pixels": {"top": picture(seed), "wrist": picture(seed + 7)},
        "depth": (depth, seed % 3),
        "agent_pos": np.full(14, seed, np.float32),
    }


def assert_equal(value: Any, expected: Any) -> None:
    assert type(value) is type(expected)
    if isinstance(expected, dict):
        assert list(value) == list(expected)
        for key in expected:
            assert_equal(value[key], expected[key])
    elif isinstance(expected, tuple):
        for one, other in zip(value, expected, strict=True):
            assert_equal(one, other)
    else:
        np.testing.assert_array_equal(value, expected)
        assert getattr(value, "dtype", None) == getattr(expected, "dtype", None)


def ends(codecs: dict[str, str], **options: Any) -> tuple[ImageSender, ImageReceiver]:
    return ImageSender(SPACE, codecs, **options), ImageReceiver(SPACE, max_bytes=PLENTY)


def test_where_the_images_lie() -> None:
    assert sorted(box_paths(SPACE)) == ["agent_pos", "depth/0", "pixels/top", "pixels/wrist"]
    assert sorted(image_paths(SPACE)) == ["pixels/top", "pixels/wrist"]
    assert image_paths(IMAGE) == ("",)
    assert set(available_codecs()) == set(CODECS)


@pytest.mark.parametrize("codec_name", LOSSLESS)
@given(st.lists(st.sampled_from(["step", "reset", "again", "write"]), max_size=12))
@settings(max_examples=15, deadline=None)
def test_what_arrives_is_what_was_sent(codec_name: str, doings: list[str]) -> None:
    sender, receiver = ends(dict.fromkeys(("pixels/top", "pixels/wrist", "depth/0"), codec_name))
    value = got = None
    for sequence, doing in enumerate(["reset", *doings], 1):
        if doing == "again" and value is not None:
            assert_equal(receiver.decode(copy.deepcopy(value[0]), value[1]), value[2])
        elif doing == "write" and got is not None:
            got["pixels"]["top"][:] = 1  # what is handed out is the caller's own
        else:
            sent = observation(sequence)
            value = (
                over_the_wire(sender.encode(sent, sequence, is_key=doing == "reset")),
                sequence,
                observation(sequence),
            )
            sent["pixels"]["top"][:] = 99  # and what is encoded stays the task's
            got = receiver.decode(copy.deepcopy(value[0]), value[1])
            assert_equal(got, value[2])


def test_a_bare_image_and_jpeg() -> None:
    sender, receiver = ImageSender(IMAGE, {"": "jpeg"}), ImageReceiver(IMAGE, max_bytes=PLENTY)
    got = receiver.decode(over_the_wire(sender.encode(picture(3), 1, is_key=True)), 1)
    assert np.abs(got.astype(int) - picture(3)).mean() < 5


def test_a_delta_of_what_stays_is_next_to_nothing() -> None:
    sender, receiver = ends({"pixels/top": "delta"})
    first, second = (over_the_wire(sender.encode(observation(1), n, is_key=n == 1)) for n in (1, 2))
    assert second["pixels"]["top"]["base"] == [1, 0]
    assert sum(map(len, second["pixels"]["top"]["data"])) < 300
    for number, value in ((1, first), (2, second), (2, second)):
        assert_equal(receiver.decode(value, number), observation(1))


@pytest.mark.parametrize("codec_name", ["raw", "zstd", "delta"])
def test_images_come_with_every_third_step_and_with_ends(codec_name: str) -> None:
    sender, receiver = ends({"pixels/top": codec_name}, image_every=3)
    seen = []
    for sequence in range(1, 8):
        encoded = over_the_wire(sender.encode(observation(sequence), sequence, is_key=sequence in (1, 6)))
        for _ in range(2):
            got = receiver.decode(encoded, sequence)
        assert_equal(got["pixels"], observation(sequence - receiver.age)["pixels"])
        assert_equal(got["agent_pos"], observation(sequence)["agent_pos"])
        seen.append(receiver.age)
    assert seen == [0, 1, 2, 0, 1, 0, 1]


@pytest.mark.parametrize("codec_name", LOSSLESS)
def test_rows_build_on_each_other_and_on_what_came_before(codec_name: str) -> None:
    sender, receiver = ends({"pixels/top": codec_name}, image_every=2)
    receiver.decode(over_the_wire(sender.encode(observation(0), 1, is_key=True)), 1)
    encoded = over_the_wire(sender.encode_rows([observation(n) for n in range(1, 6)], 2, ends=True))
    for _ in range(2):
        rows = receiver.decode_rows(encoded, 2)
        assert receiver.ages == (1, 0, 1, 0, 0)
        for number, (row, age) in enumerate(zip(rows, receiver.ages, strict=True), 1):
            assert_equal(row["pixels"], observation(number - age)["pixels"])
    last = receiver.decode(over_the_wire(sender.encode(observation(6), 3)), 3)
    assert_equal(last["pixels"], observation(5)["pixels"])
    assert receiver.decode_rows(sender.encode_rows([], 4), 4) == []


def test_nothing_builds_on_a_reply_that_was_not_sent() -> None:
    sender, receiver = ends({"pixels/top": "delta"}, image_every=4)
    receiver.decode(sender.encode(observation(1), 1, is_key=True), 1)
    sender.encode(observation(2), 2)
    sender.forget()
    assert_equal(receiver.decode(sender.encode(observation(3), 3), 3), observation(3))


def test_what_is_not_of_the_space_is_sent_as_it_is() -> None:
    sender, receiver = ends(dict.fromkeys(("pixels/top", "depth/0"), "delta"))
    for number, value in enumerate(({"pixels": {"top": None}, "depth": []}, 7, {"pixels": [1]}, None), 1):
        assert receiver.decode(over_the_wire(sender.encode(value, number)), number) == value
    for number, image in enumerate((picture(1), picture(1)[:5], picture(1)[::2].astype(np.int32)), 10):
        value = {"pixels": {"top": image}}
        assert_equal(receiver.decode(over_the_wire(sender.encode(value, number)), number), value)


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        (
            {"pixels/left": "zstd"},
            r"'pixels/left', which no observation has; there are \['agent_pos', .*'pixels/wrist'\]",
        ),
        ({"pixels/top": "png"}, "unknown codec 'png' for 'pixels/top'; there are raw, zstd"),
        ({"depth/0": "jpeg"}, r"'depth/0' is float32 \(48, 64\); take a lossless codec"),
    ],
)
def test_what_cannot_be_coded_is_refused_at_once(codecs: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageSender(SPACE, codecs)


def test_a_codec_that_an_end_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"the server cannot code 'pixels/top' as 'delta': it lacks 'numcodecs'"):
        check_codecs(SPACE, {"pixels/top": "delta"}, have=("raw", "zstd"), end="the server")
    encoded = ImageSender(SPACE, {"pixels/top": "bitlz4"}).encode(observation(1), 1)
    monkeypatch.setitem(sys.modules, "numcodecs", None)
    assert available_codecs() == ("raw", "zstd", "jpeg")
    with pytest.raises(ConfigError, match=r"need 'numcodecs'.*remote-env\[images\]"):
        ImageReceiver(SPACE, max_bytes=PLENTY).decode(encoded, 1)


# What a hostile server may send

TOP = ("pixels", "top")


def changed(value: dict[str, Any], **fields: Any) -> Any:
    return {"pixels": {"top": {**value["pixels"]["top"], **fields}}}


def delta_after_key() -> tuple[ImageReceiver, Any]:
    sender, receiver = ends({"pixels/top": "delta"})
    receiver.decode(sender.encode(observation(1), 1, is_key=True), 1)
    return receiver, sender.encode(observation(2), 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"base": [0, 0]},
        {"base": [1]},
        {"base": "x"},
        {"base": [True, 0]},
        {"base": [1, 0], "age": 1},
        {"coder": "last"},
        {"coder": "raw"},
        {"coder": ["zstd"]},
        {"coder": "zstd"},
        {"shape": [48, 64, 4]},
        {"shape": [64, 48, 3]},
        {"dtype": "int8"},
        {"dtype": "object"},
        {"data": []},
        {"data": [np.zeros(5, np.uint8)]},
        {"data": [np.zeros(40, np.uint8)]},
        {"data": b"x"},
    ],
)
def test_a_delta_that_lies_is_refused_and_changes_nothing(fields: dict[str, Any]) -> None:
    receiver, encoded = delta_after_key()
    with pytest.raises(ProtocolError):
        receiver.decode(changed(encoded, **fields), 2)
    assert_equal(receiver.decode(encoded, 2), observation(2))


def test_damaged_frames_are_refused_or_read_as_something_else() -> None:
    receiver, encoded = delta_after_key()
    frame = encoded["pixels"]["top"]["data"][0]
    rng = np.random.default_rng(5)
    for _ in range(300):
        damaged = frame.copy()
        damaged[rng.integers(0, len(frame), 3)] = rng.integers(0, 256, 3)
        try:
            got = receiver.decode(changed(encoded, data=[damaged]), 2)["pixels"]["top"]
        except ProtocolError:
            continue
        assert (got.shape, got.dtype) == (SHAPE, np.uint8)


def test_too_much_is_refused_before_memory_is_taken() -> None:
    sender = ImageSender(SPACE, {"pixels/top": "bitzstd"}, image_every=100)
    receiver = ImageReceiver(SPACE, max_bytes=10 * int(np.prod(SHAPE)))
    rows = sender.encode_rows([observation(1)] * 20, 1)
    with pytest.raises(MessageTooBig):
        receiver.decode_rows(rows, 1)
    with pytest.raises(MessageTooBig):
        receiver.decode(changed(rows[0], shape=[1 << 20, 1 << 20, 3]), 1)
    head = bytearray(rows[0]["pixels"]["top"]["data"][0].tobytes())
    head[4:8] = (1 << 30).to_bytes(4, "little")  # what a Blosc frame says it decodes to
    assert HEADER.unpack_from(head)[4] == 1 << 30
    with pytest.raises(ProtocolError, match="which says it has"):
        receiver.decode(changed(rows[0], data=[np.frombuffer(bytes(head), np.uint8)]), 1)
    with pytest.raises(ProtocolError, match="are a list"):
        receiver.decode_rows({}, 1)
