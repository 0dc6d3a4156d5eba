from __future__ import annotations

import enum
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hostile_payloads import MetaObs, objects, record
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_env.errors import MessageTooBig, ProtocolError
from remote_env.policy.dialects.ilstudio_messages import PeerRecord
from remote_env.policy.dialects.restricted_pickle import PickleLimits, Record, restricted_loads

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Bytes are read here; looking for processes after each test would take most of the time."""


def load(data: bytes, **options: Any) -> Any:
    return restricted_loads(data, allowed={(None, "MetaObs"): Record(PeerRecord)}, **options)


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 200), 1 << 200)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=300)
    | st.binary(max_size=20).map(bytearray)
)
keys = st.text(max_size=8) | st.integers(-(1 << 59), 1 << 59) | st.binary(max_size=8)
values = st.recursive(
    leaves | st.sets(keys, max_size=4) | st.frozensets(keys, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5) | st.lists(inner, max_size=5).map(tuple)
    ),
    max_leaves=20,
)


@settings(max_examples=30, deadline=None)
@given(values, st.sampled_from(PROTOCOLS))
def test_plain_values_are_read_as_they_were(value, protocol):
    found = load(pickle.dumps(value, protocol))
    assert found == value
    assert type(found) is type(value)


ARRAYS = [
    np.arange(24.0).reshape(2, 3, 4),
    np.asfortranarray(np.ones((2, 3), np.float32)),
    np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    np.zeros((2, 4), np.uint8)[:, ::2],
    np.zeros((3, 0), np.int16),
    np.array(5.0),
    np.array([True, False]),
    np.arange(3, dtype=">i4"),
    np.arange(3, dtype=np.float16),
    np.random.default_rng(0).integers(0, 256, (3, 48, 64), np.uint8),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("old", [True, False], ids=["numpy 1", "numpy 2"])
def test_arrays_are_read_by_the_names_of_either_numpy(protocol, old):
    data = pickle.dumps({"arrays": ARRAYS, "scalar": np.float32(2.5), "flag": np.bool_(True)}, protocol)
    names = (b"numpy._core.", b"numpy.core.") if old else (b"numpy.core.", b"numpy._core.")
    if protocol < 4:  # there a name has no length before it
        data = data.replace(*names)
    found = load(data)
    for ours, theirs in zip(found["arrays"], ARRAYS, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
        assert ours.flags.writeable
    assert type(found["scalar"]) is np.float32
    assert found["scalar"] == 2.5
    assert found["flag"] is np.True_


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_records_are_made_of_their_fields(protocol):
    made = load(pickle.dumps([record(MetaObs, state=np.arange(3.0), raw_lang="x")] * 2, protocol))
    assert made[0].module == "hostile_payloads"
    assert made[0].fields["raw_lang"] == "x"
    np.testing.assert_array_equal(made[0].fields["state"], np.arange(3.0))
    assert made[1] is made[0]  # what occurs twice is made once


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects_hold_dicts_where_they_are_admitted(protocol):
    data = pickle.dumps(objects({"a": np.arange(2)}, {"b": 1}), protocol)
    found = load(data, object_arrays=True)
    assert found.shape == (2,)
    np.testing.assert_array_equal(found[0]["a"], np.arange(2))
    with pytest.raises(ProtocolError, match="an array of objects, which is not admitted here"):
        load(data)


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Timed:
    step: int


def test_the_table_decides_what_names_stand_for():
    allowed = {
        ("collections", "OrderedDict"): dict,
        (__name__, "Colour"): Colour,
        (None, "Timed"): Record(lambda module, fields: (module, fields)),
    }
    value = [OrderedDict(a=1), Colour.RED, Timed(3)]
    assert restricted_loads(pickle.dumps(value), allowed=allowed) == [{"a": 1}, Colour.RED, (__name__, {"step": 3})]


def test_what_an_entry_raises_refuses_the_pickle():
    def build(module: str, fields: Any) -> Any:
        raise KeyError("no such thing")

    with pytest.raises(ProtocolError, match="KeyError: 'no such thing'"):
        restricted_loads(pickle.dumps(Timed(3)), allowed={(None, "Timed"): Record(build)})


def test_an_entry_is_not_called_with_bare_names():
    called = []
    data = pickle.dumps(OrderedDict(a=1)).replace(b"K\x01", b"cnumpy\nndarray\n")
    with pytest.raises(ProtocolError):
        restricted_loads(data, allowed={("collections", "OrderedDict"): called.append})
    assert called == []


@pytest.mark.parametrize(
    ("value", "limits", "error"),
    [
        (b"x" * 1000, PickleLimits(max_bytes=999), MessageTooBig),
        ([1] * 100, PickleLimits(max_opcodes=50), ProtocolError),
        ([1] * 100, PickleLimits(max_nodes=99), ProtocolError),
        ([[[[]]]], PickleLimits(max_depth=2), ProtocolError),
    ],
)
def test_limits_are_the_callers(value, limits, error):
    data = pickle.dumps(value)
    assert load(data) == value
    with pytest.raises(error):
        load(data, limits=limits)
