"""Pickles and messages of LeRobot's: what its own code wrote is read, and what runs something is refused."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remote_env.errors import MessageTooBig, ProtocolError
from remote_env.policy.dialects import lerobot_messages as messages
from remote_env.policy.dialects import torch_pickle
from remote_env.policy.dialects.foreign_pickle import Call, Instance, Name, foreign_dumps
from remote_env.policy.dialects.lerobot_pickle import (
    HELPERS,
    OLD_HELPERS,
    RemotePolicyConfig,
    TimedObservation,
    dump_actions,
    dump_observation,
    dump_setup,
    load_actions,
    load_observation,
    load_setup,
)

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "lerobot_recorded.json").read_text())
FEATURES = {"observation.state": {"dtype": "float32", "shape": (2,), "names": ["waist.pos", "elbow.pos"]}}
STORAGE = torch_pickle._storage_file(np.zeros((2, 3), np.float32))


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Bytes in, values out: nothing here starts anything."""


def recorded(name: str) -> bytes:
    return base64.b64decode(RECORDED["bytes"][name])


def test_instructions_that_lerobot_wrote():
    setup = load_setup(recorded("setup"))
    assert (setup.policy_type, setup.pretrained_name_or_path, setup.device) == ("act", "somebody/act", "cuda")
    assert (setup.actions_per_chunk, setup.rename_map, setup.module) == (50, {"a": "b"}, HELPERS)
    assert setup.lerobot_features["observation.state"]["names"] == ["waist.pos", "elbow.pos"]
    assert tuple(setup.lerobot_features["observation.images.top"]["shape"]) == (4, 6, 3)


def test_instructions_with_features_as_classes():
    setup = load_setup(recorded("setup_with_policy_features"))
    assert setup.lerobot_features == {"observation.state": {"type": "STATE", "shape": (2,)}}


@pytest.mark.parametrize("name", ["observation", "observation_of_protocol_2", "observation_of_protocol_5"])
def test_an_observation_that_lerobot_wrote(name):
    observation = load_observation(recorded(name))
    assert (observation.timestamp, observation.timestep, observation.must_go) == (1700000000.5, 7, True)
    raw = observation.observation
    assert (raw["waist.pos"], float(raw["elbow.pos"]), raw["task"]) == (0.5, -1.25, "pick up the cube")
    assert np.array_equal(raw["top"], np.arange(72, dtype=np.uint8).reshape(4, 6, 3))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64"])
def test_actions_that_torch_wrote(dtype):
    actions = load_actions(recorded(f"actions_{dtype}"))
    assert [action.timestep for action in actions] == [7, 8, 9]
    assert np.array_equal([action.action for action in actions], np.arange(6).reshape(3, 2))
    assert all(action.action.flags.owndata and action.action.flags.writeable for action in actions)


def test_a_tensor_that_is_a_view_of_every_second_number():
    (action,) = load_actions(recorded("actions_transposed"))
    assert np.array_equal(action.action, [1, 3, 5])


def test_messages_are_those_that_protoc_made():
    assert messages.Observation(transfer_state=messages.END, data=b"abc").SerializeToString() == recorded("message_end")
    assert messages.PolicySetup(data=b"abc").SerializeToString() == recorded("policy_setup")
    assert messages.Actions(data=b"abc").SerializeToString() == recorded("actions")
    states = [message.transfer_state for message in messages.cut(bytes(5 << 20))]
    assert states == list(recorded("message_states"))


@pytest.mark.parametrize("module", [HELPERS, OLD_HELPERS])
def test_what_is_written_is_read_again(module):
    chunk = np.random.default_rng(0).normal(size=(50, 14)).astype(np.float32)
    actions = load_actions(dump_actions(chunk, timestamp=2.0, timestep=3, dt_s=0.5, module=module))
    assert np.array_equal([action.action for action in actions], chunk)
    assert [action.timestamp for action in actions[:2]] == [2.0, 2.5]
    assert [action.timestep for action in actions[:2]] == [3, 4]
    setup = RemotePolicyConfig("act", "x", FEATURES, 5, "cpu", {"a": "b"}, module)
    assert load_setup(dump_setup(setup)) == setup
    image = np.zeros((4, 6, 3), np.uint8)
    observation = load_observation(dump_observation(TimedObservation(1.5, 2, {"a": 0.5, "top": image}), module))
    assert (observation.timestamp, observation.timestep, observation.must_go) == (1.5, 2, False)
    assert np.array_equal(observation.observation["top"], image)


def test_parts_of_a_stream_are_put_together():
    payload = os.urandom(1000) * 5000
    assert messages.join(messages.cut(payload), len(payload)) == payload
    with pytest.raises(MessageTooBig, match="more than 1000 bytes"):
        messages.join(messages.cut(payload), 1000)
    with pytest.raises(ProtocolError, match="without its last part"):
        messages.join(list(messages.cut(payload))[:-1], len(payload))
    with pytest.raises(ProtocolError, match="transfer state 2 after 0 parts"):
        messages.join(list(messages.cut(payload))[1:], len(payload))
    with pytest.raises(ProtocolError, match="transfer state 0"):
        messages.join([messages.Observation(data=b"x")], 10)


# What a hostile peer sends.


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("load", [load_setup, load_observation, load_actions])
def test_nothing_that_a_pickle_names_runs(load, tmp_path):
    data = pickle.dumps([Evil(tmp_path / "ran")])
    with pytest.raises(ProtocolError, match="not admitted"):
        load(data)
    assert not (tmp_path / "ran").exists()


def timed_action(action: Any) -> bytes:
    fields = {"timestamp": 1.0, "timestep": 0, "action": action}
    return foreign_dumps([Instance(Name(HELPERS, "TimedAction"), fields)])


def tensor(storage: Any, offset: Any = 0, size: Any = (3,), stride: Any = (1,), hooks: Any = None) -> Call:
    return Call(torch_pickle.REBUILD, (storage, offset, size, stride, False, hooks))


def test_a_storage_is_never_unpickled(tmp_path):
    """torch's own `_load_from_bytes` unpickles whatever it is given."""
    file = io.BytesIO()
    pickle.dump(Evil(tmp_path / "ran"), file, protocol=2)
    for hostile in (file.getvalue(), STORAGE[:36] + file.getvalue(), STORAGE[:200] + file.getvalue()):
        with pytest.raises(ProtocolError, match="torch storage"):
            load_actions(timed_action(tensor(Call(torch_pickle.LOAD, (hostile,)))))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": (1 << 38,), "stride": (0,)}, "beyond its storage"),
        ({"size": (1 << 20, 1 << 20), "stride": (0, 0)}, "beyond its storage"),
        ({"size": (2,), "stride": (1 << 39,)}, "beyond its storage"),
        ({"offset": 5}, "beyond its storage"),
        ({"offset": -1}, "no whole number"),
        ({"size": (-3,), "stride": (1,)}, "no whole number"),
        ({"size": (3.0,)}, "no whole number"),
        ({"stride": ()}, "do not fit"),
        ({"size": [3]}, "do not fit"),
        ({"size": (1,) * 9, "stride": (1,) * 9}, "do not fit"),
    ],
)
def test_a_tensor_stays_within_its_storage(arguments, words):
    storage = Call(torch_pickle.LOAD, (STORAGE,))
    assert len(load_actions(timed_action(tensor(storage)))) == 1
    with pytest.raises(ProtocolError, match=words):
        load_actions(timed_action(tensor(storage, **arguments)))


def test_a_small_pickle_does_not_become_large_tensors():
    """One storage, recalled for as many tensors as the instructions allow."""
    storage = Call(torch_pickle.LOAD, (torch_pickle._storage_file(np.zeros((100, 100), np.float32)),))
    rows = [tensor(storage, size=(10_000,)) for _ in range(1000)]
    data = foreign_dumps(
        [Instance(Name(HELPERS, "TimedAction"), {"timestamp": 1.0, "timestep": 0, "action": row}) for row in rows]
    )
    with pytest.raises(ProtocolError, match="larger than itself"):
        load_actions(data)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (STORAGE[:-4], "6 numbers in 20 bytes"),
        (STORAGE.replace(struct.pack("<q", 6), struct.pack("<q", 1 << 60)), "numbers in 24 bytes"),
        (STORAGE.replace(b"FloatStorage", b"WeirdStorage"), "type WeirdStorage"),
        (STORAGE.replace(b"ctorch\n", b"cposix\n"), "form"),
        (b"", "form"),
    ],
)
def test_a_storage_that_torch_would_not_write_is_refused(file, words):
    with pytest.raises(ProtocolError, match=words):
        load_actions(timed_action(tensor(Call(torch_pickle.LOAD, (file,)))))


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {"timestep": 1},
        [Instance(Name(HELPERS, "TimedAction"), {"timestamp": 1.0})],
        [Instance(Name(HELPERS, "TimedAction"), {"timestamp": float("nan"), "timestep": 0, "action": np.zeros(2)})],
        [Instance(Name(HELPERS, "TimedAction"), {"timestamp": 1.0, "timestep": -1, "action": np.zeros(2)})],
        [Instance(Name(HELPERS, "TimedAction"), {"timestamp": 1.0, "timestep": 0, "action": np.zeros((2, 2))})],
        [Instance(Name("somewhere.else", "TimedAction"), {"timestamp": 1.0, "timestep": 0, "action": np.zeros(2)})],
        [Instance(Name("collections", "OrderedDict"), {})],
        [Call(Name("collections", "OrderedDict"), ([("a", 1)],))],
        Instance(
            Name(HELPERS, "TimedObservation"), {"timestamp": 1.0, "timestep": 0, "observation": {}, "must_go": True}
        ),
    ],
    ids=range(10),
)
def test_a_chunk_is_a_list_of_timed_actions_and_nothing_else(value):
    with pytest.raises(ProtocolError):
        load_actions(foreign_dumps(value))


@pytest.mark.parametrize(
    "change",
    [
        {"actions_per_chunk": 0},
        {"actions_per_chunk": 10**9},
        {"actions_per_chunk": True},
        {"lerobot_features": [1]},
        {"lerobot_features": {1: 2}},
        {"rename_map": {"a": 1}},
        {"policy_type": None},
        {"pretrained_name_or_path": b"x"},
    ],
    ids=str,
)
def test_instructions_of_wrong_types_are_refused(change):
    fields = {
        "policy_type": "act",
        "pretrained_name_or_path": "x",
        "lerobot_features": FEATURES,
        "actions_per_chunk": 5,
        "device": "cpu",
    }
    assert load_setup(foreign_dumps(Instance(Name(HELPERS, "RemotePolicyConfig"), fields))).rename_map == {}
    with pytest.raises(ProtocolError):
        load_setup(foreign_dumps(Instance(Name(HELPERS, "RemotePolicyConfig"), {**fields, **change})))


def test_what_occurs_twice_is_written_once():
    shared = Call(Name("m", "f"), (1,))
    data = foreign_dumps([shared, shared, Instance(Name("m", "C"), {"a": shared})])
    assert data.count(b"R") == 1  # REDUCE
