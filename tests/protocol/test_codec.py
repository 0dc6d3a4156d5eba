"""Values through the codec: round trips, refusals, hostile and golden bodies, both msgpack implementations.

`python tests/protocol/test_codec.py` rewrites the golden bodies; a change of them changes the protocol.
"""

from __future__ import annotations

import collections
import datetime
import enum
import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import msgpack.fallback
import numpy as np
import pytest
from gymnasium.spaces import GraphInstance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from protocol.strategies import NUMBER_DTYPES, all_spaces, arrays, cross, fill, same, values

from remote_env.errors import InputError, MessageTooBig, ProtocolError
from remote_env.protocol import body_scan, codec
from remote_env.protocol.codec import Limits, decode, encode

GOLDEN_FILE = Path(__file__).parents[1] / "data" / "codec_golden.json"
GENEROUS = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Colour(enum.IntEnum):
    RED = 1


Pair = collections.namedtuple("Pair", "left right")


class PureMsgpack:
    """Inside `with`, the codec works with msgpack's pure-Python classes."""

    def __enter__(self) -> None:
        self._kept = codec.Packer, codec.unpackb
        self._swap(msgpack.fallback.Packer, msgpack.fallback.unpackb)

    def __exit__(self, *_: object) -> None:
        self._swap(*self._kept)

    def _swap(self, packer: Any, unpackb: Any) -> None:
        codec.Packer, codec.unpackb = packer, unpackb
        codec._encoders.clear()
        codec._decoders.clear()


@pytest.fixture(params=["compiled", "pure"])
def both_msgpacks(request):
    if request.param == "compiled":
        yield
        return
    with PureMsgpack():
        yield


def nested(levels: int, shell=lambda inner: [inner]) -> Any:
    value = shell(None)
    for _ in range(levels - 1):
        value = shell(value)
    return value


def test_the_compiled_msgpack_is_under_test():
    assert msgpack.Packer is not msgpack.fallback.Packer


@GENEROUS
@given(values)
def test_values_arrive_as_they_were(value):
    arrived = cross(value)
    assert same(value, arrived), (value, arrived)


@GENEROUS
@given(values)
def test_both_msgpacks_give_the_same_bytes_and_values(value):
    body, buffers = encode(value, where="value")
    payload = b"".join(buffers)
    with PureMsgpack():
        pure_body, pure_buffers = encode(value, where="value")
        assert (pure_body, b"".join(pure_buffers)) == (body, payload)
        arrived, views = decode(body, len(payload))
        fill(views, payload)
    assert same(value, arrived)


@pytest.mark.filterwarnings("ignore:.*Casting input x:UserWarning")  # Gymnasium's, of its own scalar samples
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(all_spaces, st.integers(0, 9))
def test_samples_of_spaces_arrive_as_they_were(space, seed):
    space.seed(seed)
    sample = space.sample()
    plain = dict(sample) if isinstance(sample, dict) else sample
    arrived = cross(plain)
    assert same(_without_ordered_dicts(plain), arrived)
    assert space.contains(arrived) == space.contains(sample)


def _without_ordered_dicts(value: Any) -> Any:
    """Gymnasium 0.29 samples OrderedDicts, which arrive as dicts."""
    if isinstance(value, dict):
        return {key: _without_ordered_dicts(item) for key, item in value.items()}
    return tuple(map(_without_ordered_dicts, value)) if type(value) is tuple else value


@pytest.mark.usefixtures("both_msgpacks")
@pytest.mark.parametrize(
    ("value", "arrives_as"),
    [
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (Pair(1, [2]), (1, [2])),
        (Colour.RED, 1),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        (np.longlong(3), np.int64(3)),
        (np.float64(0.5), np.float64(0.5)),
        (np.arange(3, dtype=np.longlong), np.arange(3, dtype=np.int64)),
        ({np.int64(3): {True: None}}, {np.int64(3): {True: None}}),
    ],
)
def test_what_is_normalised(value, arrives_as):
    assert same(arrives_as, cross(value))


def test_bit_patterns_of_floats_survive():
    for number in (-0.0, math.inf, -math.inf, 5e-324, math.nan, -math.nan):
        assert np.float64(cross(number)).tobytes() == np.float64(number).tobytes()


def test_a_memmap_arrives_as_an_array(tmp_path):
    mapped = np.memmap(tmp_path / "file", np.float32, "w+", shape=(3,))
    assert same(np.zeros(3, np.float32), cross(mapped))


@pytest.mark.parametrize("size", [4095, 4096, 100_000])
def test_large_contiguous_arrays_are_not_copied_and_arrive_in_their_own_memory(size):
    array = np.arange(size, dtype=np.uint8)
    body, buffers = encode([array], where="value")
    assert (len(body) < 100, len(buffers)) == ((size >= 4096), int(size >= 4096))
    for buffer in buffers:
        assert (buffer.format, buffer.ndim, buffer.nbytes) == ("B", 1, size)
        assert np.shares_memory(np.frombuffer(buffer, np.uint8), array)
    (arrived,) = cross([array])
    assert arrived.flags.writeable
    assert arrived.flags.c_contiguous
    assert arrived.flags.aligned


@given(arrays())
@settings(max_examples=50, deadline=None)
def test_arrived_arrays_are_like_fresh_ones(array):
    arrived = cross(array)
    assert arrived.flags.writeable
    assert arrived.flags.c_contiguous
    assert arrived.flags.aligned
    assert arrived.dtype.isnative


@pytest.mark.usefixtures("both_msgpacks")
@pytest.mark.parametrize(
    ("value", "path", "advice"),
    [
        ({"extras": {"mask": object()}}, "info['extras']['mask'] is an object", "numpy array"),
        ({"seen": {1, 2}}, "info['seen'] is a set", "sorted list"),
        ({"seen": {frozenset(): 1}}, "the key frozenset() of info['seen'] is a frozenset", "sorted list"),
        ([1, (2, np.array(["a"]))], "info[1][1] is a numpy.ndarray of dtype <U1", "tolist()"),
        ([np.array([None])], "info[0] is a numpy.ndarray of dtype object", "tolist()"),
        ([np.zeros(2, [("a", "i4")])], "info[0] is a numpy.ndarray", "field"),
        ([np.longdouble(1)], "info[0] is a numpy.longdouble", "float64"),
        ([np.zeros(2, np.longdouble)], "info[0] is a numpy.ndarray", "float64"),
        ([np.datetime64(1, "s")], "info[0] is a numpy.datetime64", "number"),
        ([np.zeros(2, "m8[s]")], "info[0] is a numpy.ndarray", "int64"),
        ([np.ma.array([1])], "info[0] is a numpy.ma", "filled"),
        ({"at": datetime.datetime(2026, 1, 1)}, "info['at'] is a datetime.datetime", "isoformat"),
        ({"at": Path("x")}, "info['at'] is a pathlib", "str(...)"),
        ([memoryview(b"abcd")[::2]], "info[0] is a memoryview", "bytes"),
        (["\ud800"], "info[0] is a str", "surrogates"),
        (GraphInstance(np.zeros(2), {1}, None), "info[1] is a set", "list"),
        (np.zeros((0, 2**33)), "info is a numpy.ndarray", "below 2**32"),
        (nested(65), "info is nested deeper than 64", "flatter"),
        (nested(65, lambda inner: {"k": (inner,)}), "info is nested deeper than 64", "flatter"),
        ([msgpack.Timestamp(1)], "info", "-1"),
    ],
)
def test_what_cannot_cross_says_where_what_and_what_to_do(value, path, advice):
    with pytest.raises(InputError) as caught:
        encode(value, where="info")
    assert path in str(caught.value)
    assert advice in str(caught.value)
    assert cross({"still": "works"}) == {"still": "works"}


class Tensor:
    """As torch's, by name."""


Tensor.__module__ = "torch"


def test_a_torch_tensor_is_told_how_to_cross():
    with pytest.raises(InputError, match=r"info\['t'\] is a torch.Tensor.*\.detach\(\)\.cpu\(\)\.numpy\(\)"):
        encode({"t": Tensor()}, where="info")


@pytest.mark.usefixtures("both_msgpacks")
def test_a_value_that_contains_itself_is_refused():
    knot: list[Any] = []
    knot.append(knot)
    with pytest.raises(InputError, match="contain itself"):
        encode(knot, where="info")


@pytest.mark.usefixtures("both_msgpacks")
@pytest.mark.parametrize("shell", [lambda inner: [inner], lambda inner: (inner,), lambda inner: {"k": inner}])
def test_64_levels_cross(shell):
    assert cross(nested(64, shell)) == nested(64, shell)


def test_more_than_a_message_carries_is_refused_before_it_is_sent(monkeypatch):
    monkeypatch.setattr(codec, "DEFAULT_LIMITS", Limits(max_payload_bytes=10_000, max_body_bytes=10_000))
    for value in (np.zeros(2000), b"x" * 20_000):
        with pytest.raises(InputError, match=r"observation is too big for one message.*send less"):
            encode(value, where="observation")


def ext(code: int, data: bytes) -> bytes:
    return msgpack.packb(msgpack.ExtType(code, data))


def array_head(code: int, *shape: int, dimensions: int | None = None) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return bytes([code, count]) + b"".join(size.to_bytes(4, "little") for size in shape)


MARK = ext(1, b"\x00")
HOSTILE = {
    "empty": b"",
    "truncated": b"\x92\x01",
    "trailing": b"\x01\x01",
    "nothing": b"\xc1",
    "huge list": b"\xdd\xff\xff\xff\xff",
    "huge dict": b"\xdf\xff\xff\xff\xff",
    "huge str": b"\xdb\xff\xff\xff\xff",
    "huge bin": b"\xc6\xff\xff\xff\xff",
    "huge ext": b"\xc9\xff\xff\xff\xff\x05",
    "nested huge lists": b"\xdd\x00\x00\xff\xff" * 10_000,
    "deep": b"\x91" * 65 + b"\xc0",
    "very deep": b"\x91" * 100_000 + b"\xc0",
    "deep dicts": b"\x81\x01" * 65 + b"\xc0",
    "deep keys": b"\x81" * 1000 + b"\xc0" * 1001,
    "bad utf-8": b"\xa1\xff",
    "key twice": b"\x82\x01\x01\x01\x02",
    "key twice, other type": b"\x82\x01\x01\xc3\x02",
    "list as key": b"\x81\x90\x01",
    "dict as key": b"\x81\x80\x01",
    "array as key": b"\x81" + ext(5, array_head(0, 0)) + b"\x01",
    "timestamp 4": b"\xd6\xff\x00\x00\x00\x00",
    "timestamp 8": b"\xd7\xff" + bytes(8),
    "timestamp 12": b"\xc7\x0c\xff" + bytes(12),
    "timestamp ext16": b"\xc8\x00\x0c\xff" + bytes(12),
    "timestamp ext32": b"\xc9\x00\x00\x00\x0c\xff" + bytes(12),
    "unknown ext": ext(99, b"abc"),
    "empty ext": ext(5, b""),
    "lone mark": MARK,
    "mark second": b"\x92\x01" + MARK,
    "two marks": b"\x92" + MARK + MARK,
    "mark as key": b"\x81" + MARK + b"\x01",
    "unknown mark": b"\x91" + ext(1, b"\x07"),
    "graph of two": b"\x93" + ext(1, b"\x01") + b"\xc0\xc0",
    "short complex": ext(3, bytes(15)),
    "scalar without dtype": ext(4, b""),
    "scalar of unknown dtype": ext(4, b"\x63" + bytes(8)),
    "short scalar": ext(4, b"\x04" + bytes(7)),
    "unknown dtype": ext(5, array_head(len(NUMBER_DTYPES), 1) + b"\x00"),
    "33 dimensions": ext(5, array_head(0, *[1] * 33) + b"\x00"),
    "dimensions missing": ext(5, array_head(0, 1, dimensions=3)),
    "bytes missing": ext(5, array_head(4, 2) + bytes(15)),
    "bytes left over": ext(5, array_head(4, 2) + bytes(17)),
    "product overflows": ext(5, array_head(4, *[2**32 - 1] * 32)),
    "product overflows to zero": ext(5, array_head(4, *[2**31] * 4)),
    "zero times huge": ext(5, array_head(4, 0, *[2**32 - 1] * 31)),
    "large with nothing to fill it": ext(6, array_head(1, 5000)),
    "large with data inside": ext(6, array_head(1, 5000) + bytes(5000)),
    "large but small": ext(6, array_head(1, 4)),
    "large but empty": ext(6, array_head(1, 0)),
}


@pytest.mark.usefixtures("both_msgpacks")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_protocol_errors(name):
    with pytest.raises(ProtocolError):
        decode(HOSTILE[name], 0)


@pytest.mark.parametrize("payload_size", [0, 4999, 5001, 10_000])
def test_arrays_and_payload_must_agree(payload_size):
    with pytest.raises(ProtocolError, match="bytes of payload are left"):
        decode(ext(6, array_head(1, 5000)), payload_size)


def test_too_big_is_said_before_memory_is_taken():
    huge = ext(6, array_head(4, 2**31))
    with pytest.raises(MessageTooBig, match="payload of"):
        decode(huge, 2**34)
    with pytest.raises(MessageTooBig, match="an array int64"):
        decode(huge, 2**34, Limits(max_payload_bytes=2**35))
    with pytest.raises(MessageTooBig, match="body of"):
        decode(b"\x01" * 100, 0, Limits(max_body_bytes=99))
    with pytest.raises(MessageTooBig, match="payload of -1"):
        decode(b"\x01", -1)
    with pytest.raises(ProtocolError, match="values"):
        decode(b"\x9a" + b"\x01" * 10, 0, Limits(max_items=10))
    assert decode(b"\x9a" + b"\x01" * 10, 0, Limits(max_items=11))[0] == [1] * 10


@pytest.mark.parametrize("name", ["nested huge lists", "huge list", "very deep", "product overflows"])
def test_hostile_claims_take_no_memory(name):
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(HOSTILE[name], 0)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_many_short_huge_claims_stay_small():
    # 64 heads, just too few and too short for the walk: the most that a body can claim without one
    body = b"\xdd\x00\x00\x3f\xff" * 64 + b"\x01" * (body_scan.WALK_ABOVE_BYTES - 5 * 64)
    assert not body_scan.is_suspicious(body, 1_000_000, 64)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(body, 0)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


REFUSED = object()


def outcome(body: bytes, payload_size: int) -> Any:
    """The value with all its large arrays zeroed, or REFUSED; any other error fails the test."""
    try:
        value, views = decode(body, payload_size, Limits(max_payload_bytes=1 << 20, max_array_bytes=1 << 20))
    except ProtocolError:
        return REFUSED
    assert sum(map(len, views)) == payload_size
    fill(views, bytes(payload_size))
    return value


def check_both_agree(body: bytes, payload_size: int) -> None:
    compiled = outcome(body, payload_size)
    with PureMsgpack():
        assert same(compiled, outcome(body, payload_size))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values, st.data())
def test_mutated_bodies_are_decoded_or_refused_alike(value, data):
    body, buffers = encode(value, where="value")
    spoiled = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(spoiled)))
        spoiled[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    check_both_agree(bytes(spoiled), sum(map(len, buffers)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([0, 4096]))
def test_random_bodies_are_decoded_or_refused_alike(body, payload_size):
    check_both_agree(body, payload_size)


@settings(max_examples=200, deadline=None)
@given(values)
def test_the_walk_accepts_whatever_is_encoded(value):
    body, _ = encode(value, where="value")
    body_scan.scan(body, 1_000_000, 64)
    for size in {0, len(body) // 2, len(body) - 1}:
        with pytest.raises(ProtocolError):
            body_scan.scan(body[:size], 1_000_000, 64)


def test_decode_takes_any_buffer():
    body, _ = encode({"a": 1}, where="value")
    assert decode(bytearray(body), 0)[0] == decode(memoryview(body), 0)[0] == {"a": 1}


def test_the_codec_itself_does_not_import_gymnasium():
    # The package does, to register its environments; so the codec is imported as part of an empty one.
    script = (
        "import sys, types; package = types.ModuleType('remote_env'); package.__path__ = ['remote_env'];"
        "sys.modules['remote_env'] = package; import remote_env.protocol.codec; sys.exit('gymnasium' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], timeout=60)
    assert done.returncode == 0


GOLDEN: dict[str, Any] = {
    "none": None,
    "numbers": [0, -1, 127, 128, -33, 65536, 2**64 - 1, -(2**63), 0.5, -0.0, math.inf],
    "big integers": [2**64, -(2**63) - 1, 2**100],
    "complex": 1.5 - 2j,
    "strings": ["", "héllo", b"\x00\xff"],
    "tuple": (1, (), [2, (3,)]),
    "dict": {"b": 1, "a": {2: True, None: False, (1, "x"): 0.25}},
    "scalars": [np.dtype(name).type(1) for name in NUMBER_DTYPES],
    "small arrays": [np.ones((2, 1), name) for name in NUMBER_DTYPES],
    "empty arrays": [np.zeros((0, 3), np.float32), np.array(7, np.int16)],
    "large arrays": {
        "image": np.full((64, 64), 7, np.uint8),
        "pos": np.arange(3.0),
        "big": np.arange(1024.0),
    },
    "graph": GraphInstance(np.zeros((2, 1), np.float32), None, np.array([[0, 1]])),
}


def golden_of(value: Any) -> dict[str, str]:
    body, buffers = encode(value, where="golden")
    return {
        "body": body.hex(),
        "payload_start": b"".join(buffers)[:32].hex(),
        "payload_sizes": str([*map(len, buffers)]),
    }


@pytest.mark.usefixtures("both_msgpacks")
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bodies(name):
    golden = json.loads(GOLDEN_FILE.read_text())
    assert golden.keys() == GOLDEN.keys()
    assert golden_of(GOLDEN[name]) == golden[name]
    assert same(GOLDEN[name], cross(GOLDEN[name]))


if __name__ == "__main__":
    GOLDEN_FILE.write_text(json.dumps({name: golden_of(value) for name, value in GOLDEN.items()}, indent=1) + "\n")
