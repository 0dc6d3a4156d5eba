"""Spaces to plain values and back, through the codec."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from protocol.strategies import all_spaces, cross, same, values

from remote_env.errors import ProtocolError, Unsupported
from remote_env.protocol import codec
from remote_env.spaces import space_from_plain, space_to_plain

NEWER = pytest.mark.skipif(not hasattr(spaces, "OneOf"), reason="this Gymnasium has no OneOf")

# Gymnasium itself warns of its own scalar samples, and of float16 and integer limits.
pytestmark = pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")


def arrive(space: Space[Any]) -> Space[Any]:
    return space_from_plain(cross(space_to_plain(space)))


def parts(space: Space[Any]) -> list[Any]:
    """The spaces inside, itself included, in order."""
    inner = getattr(space, "spaces", None) or []
    several = list(inner.values()) if isinstance(inner, dict) else list(inner)
    several += [getattr(space, name, None) for name in ("feature_space", "node_space", "edge_space")]
    return [space, *(part for inside in several if inside is not None for part in parts(inside))]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(all_spaces, st.integers(0, 99))
def test_spaces_arrive_equal_and_sample_alike(space, seed):
    arrived = arrive(space)
    assert arrived == space
    assert space == arrived
    assert [type(part) for part in parts(arrived)] == [type(part) for part in parts(space)]
    assert [part.dtype for part in parts(arrived)] == [part.dtype for part in parts(space)]
    space.seed(seed)
    arrived.seed(seed)
    for _ in range(2):
        ours, theirs = space.sample(), arrived.sample()
        assert same(ours, theirs)
        # Gymnasium's own Graph and MultiDiscrete samples are not always inside: no worse than at home is what counts
        assert arrived.contains(ours) == space.contains(ours)
        assert space.contains(theirs) == space.contains(ours)


EXAMPLES = [
    spaces.Box(0, 255, (480, 640, 3), np.uint8),
    spaces.Box(-np.inf, np.inf, (3,), np.int32),
    spaces.Box(np.array([-1, -np.inf]), np.array([1, np.inf]), dtype=np.float64),
    spaces.Box(0, 1, (), np.float16),
    spaces.Box(0, 1, (0, 3)),
    spaces.Box(-0.0, 0.0, (2,)),
    spaces.Discrete(3, start=-7),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, 1]]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([3]),
    spaces.Text(5, min_length=0, charset="zyx"),
    spaces.Tuple([spaces.Discrete(2), spaces.Tuple([])]),
    spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Dict({3: spaces.Discrete(1)}))]),
    spaces.Sequence(spaces.Box(0, 1), stack=True),
    spaces.Graph(spaces.Box(0, 1, (2,)), None),
]


@pytest.mark.parametrize("space", EXAMPLES, ids=str)
def test_examples_arrive_equal(space):
    arrived = arrive(space)
    assert arrived == space
    assert arrived.dtype == space.dtype
    assert repr(arrived) == repr(space)


def test_the_order_of_keys_is_kept():
    space = spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Discrete(3))])
    assert list(arrive(space).spaces) == ["b", "a"]


def test_infinite_bounds_of_integers_are_kept():
    arrived = arrive(spaces.Box(-np.inf, 5, (2,), np.int64))
    assert not arrived.bounded_below.any()
    assert arrived.bounded_above.all()


@NEWER
def test_one_of_and_discrete_dtypes_arrive():
    space = spaces.OneOf([spaces.Discrete(2, dtype=np.int8), spaces.Text(3)])
    arrived = arrive(space)
    assert arrived == space
    assert arrived.spaces[0].dtype == np.int8


@pytest.mark.skipif(hasattr(spaces, "OneOf"), reason="this Gymnasium has OneOf")
def test_what_an_old_gymnasium_lacks_is_unsupported():
    discrete = space_to_plain(spaces.Discrete(2))
    for plain in ({"type": "OneOf", "spaces": [discrete]}, {**discrete, "dtype": "int8"}):
        with pytest.raises(Unsupported, match="install a newer one"):
            space_from_plain(plain)


def test_uniform_bounds_are_sent_once():
    body, buffers = codec.encode(space_to_plain(EXAMPLES[0]), where="space")
    assert len(body) < 100
    assert not buffers


class Renamed(spaces.Box):
    """A Box that only chooses its bounds."""

    def __init__(self) -> None:
        super().__init__(-1, 1, (3,))

    def __repr__(self) -> str:
        return "Renamed()"


class Even(spaces.Discrete):
    def contains(self, x: Any) -> bool:
        return super().contains(x) and x % 2 == 0


class Quaternion(Space[Any]):
    pass


def test_a_subclass_that_means_its_base_goes_as_its_base():
    arrived = arrive(Renamed())
    assert type(arrived) is spaces.Box
    assert arrived == Renamed()


@pytest.mark.parametrize(("space", "named"), [(Even(4), "Even.*'contains'"), (Quaternion(), "Quaternion")])
def test_other_subclasses_are_unsupported_by_name_and_path(space, named):
    outer = spaces.Dict({"a": spaces.Tuple([spaces.Discrete(1), space])})
    with pytest.raises(Unsupported, match=rf"space\['a'\]\[1\] is a .*{named}"):
        space_to_plain(outer)


def test_what_is_no_space_is_unsupported():
    with pytest.raises(Unsupported, match="NoneType"):
        space_to_plain(None)  # type: ignore[arg-type]


def test_too_deep_is_unsupported_there_and_refused_here():
    deep = spaces.Discrete(2)
    plain = space_to_plain(deep)
    for _ in range(30):
        deep = spaces.Tuple([deep])
        plain = {"type": "Tuple", "spaces": [plain]}
    with pytest.raises(Unsupported, match="nested deeper"):
        space_to_plain(deep)
    with pytest.raises(ProtocolError, match="nested deeper"):
        space_from_plain(plain)


def test_the_deepest_allowed_space_crosses():
    deep: Space[Any] = spaces.Discrete(2)
    for _ in range(23):
        deep = spaces.Dict({"inner": deep})
    assert arrive(deep) == deep


BOX = space_to_plain(spaces.Box(0, 1, (2,)))
DISCRETE = space_to_plain(spaces.Discrete(2))
HOSTILE: dict[str, Any] = {
    "none": None,
    "list": [],
    "no type": {},
    "unknown type": {"type": "Space"},
    "type no string": {"type": ["Box"]},
    "no bounds": {"type": "Box", "dtype": "float32", "shape": [2]},
    "object dtype": {**BOX, "dtype": "object"},
    "dtype no string": {**BOX, "dtype": ["float32"]},
    "huge": {**BOX, "shape": [2**31, 2**31]},
    "rather huge": {**BOX, "shape": [2**27]},
    "many dimensions": {**BOX, "shape": [1] * 33},
    "negative dimension": {**BOX, "shape": [-1]},
    "float dimension": {**BOX, "shape": [2.0]},
    "low above high": {**BOX, "low": np.float32(2)},
    "bounds of another dtype": {**BOX, "low": np.float64(0)},
    "bounds of another shape": {**BOX, "low": np.zeros(3, np.float32)},
    "bounds that are numbers": {**BOX, "low": 0},
    "odd flags": {**BOX, "bounded_below": np.zeros(3, bool)},
    "no values": {**DISCRETE, "n": 0},
    "too many values": {**DISCRETE, "n": 2**64},
    "values beyond the dtype": {**DISCRETE, "n": 2**63 - 1, "start": 2},
    "true values": {**DISCRETE, "n": True},
    "empty counts": {"type": "MultiDiscrete", "dtype": "int64", "nvec": np.zeros(2, np.int64), "start": np.int64(0)},
    "counts of another dtype": {"type": "MultiDiscrete", "dtype": "int8", "nvec": np.ones(2), "start": np.int8(0)},
    "huge binary": {"type": "MultiBinary", "n": [2**20, 2**20]},
    "negative binary": {"type": "MultiBinary", "n": -3},
    "text upside down": {"type": "Text", "max_length": 1, "min_length": 2, "charset": "a"},
    "text of numbers": {"type": "Text", "max_length": 1, "min_length": 1, "charset": 5},
    "dict of nothing": {"type": "Dict", "spaces": {"a": None}},
    "dict as list": {"type": "Dict", "spaces": []},
    "tuple of nothing": {"type": "Tuple", "spaces": None},
    "graph of text": {"type": "Graph", "nodes": None, "edges": None},
    "stacked graph": {"type": "Sequence", "stack": True, "space": {"type": "Sequence", "space": None}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_plain_values_are_protocol_errors(name):
    with pytest.raises(ProtocolError):
        space_from_plain(HOSTILE[name])


def test_bounds_are_counted_over_the_whole_space(monkeypatch):
    monkeypatch.setattr("remote_env.spaces.MAX_BOX_BYTES", 4999)
    box = {**BOX, "shape": [100]}
    assert space_from_plain({"type": "Tuple", "spaces": [box] * 4})
    with pytest.raises(ProtocolError, match="bounds take more than"):
        space_from_plain({"type": "Tuple", "spaces": [box] * 5})


@st.composite
def spoiled_plains(draw: st.DrawFn) -> Any:
    plain = space_to_plain(draw(all_spaces))
    target = plain
    while isinstance(target.get("spaces"), list) and target["spaces"] and draw(st.booleans()):
        target = draw(st.sampled_from(target["spaces"]))
    key = draw(st.sampled_from(sorted(target)))
    target[key] = draw(values | st.sampled_from(["Box", "OneOf", "int8", [], {}, 2**40, -1]))
    return plain


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spoiled_plains())
def test_spoiled_plain_values_are_spaces_or_refused(plain):
    try:
        space = space_from_plain(plain)
    except (ProtocolError, Unsupported):
        return
    assert isinstance(space, Space)
