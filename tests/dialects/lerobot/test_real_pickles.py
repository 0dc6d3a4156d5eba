"""What we write is what LeRobot's own code reads, with nothing but pickle.loads and its own classes."""

from __future__ import annotations

import pickle

import torchvision_ops  # noqa: F401  isort: skip
import numpy as np
import torch
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from lerobot.transport import services_pb2
from lerobot.transport.utils import receive_bytes_in_chunks, send_bytes_in_chunks

from remote_env.policy.dialects import lerobot_messages, lerobot_pickle
from remote_env.policy.dialects.lerobot_pickle import HELPERS


def test_a_chunk_is_timed_actions_with_tensors():
    chunk = np.random.default_rng(0).normal(size=(50, 14)).astype(np.float32)
    actions = pickle.loads(lerobot_pickle.dump_actions(chunk, timestamp=5.0, timestep=2, dt_s=0.5))
    assert all(type(action) is TimedAction and type(action.action) is torch.Tensor for action in actions)
    assert np.array_equal(torch.stack([action.get_action() for action in actions]).numpy(), chunk)
    assert [(action.get_timestamp(), action.get_timestep()) for action in actions[:2]] == [(5.0, 2), (5.5, 3)]
    averaged = 0.3 * actions[0].get_action() + 0.7 * actions[1].get_action()
    np.testing.assert_allclose(averaged.numpy(), 0.3 * chunk[0] + 0.7 * chunk[1], atol=1e-6)
    actions[0].action += 1  # nobody else's numbers
    assert np.array_equal(actions[1].action.numpy(), chunk[1])
    again = lerobot_pickle.load_actions(pickle.dumps(actions[1:]))
    assert np.array_equal([action.action for action in again], chunk[1:])


def test_instructions_and_observations_are_lerobots_own():
    features = {"observation.state": {"dtype": "float32", "shape": (1,), "names": ["a.pos"]}}
    setup = lerobot_pickle.RemotePolicyConfig("act", "x", features, 5, "cpu", {"a": "b"}, HELPERS)
    assert pickle.loads(lerobot_pickle.dump_setup(setup)) == RemotePolicyConfig(
        "act", "x", features, 5, "cpu", {"a": "b"}
    )
    raw = {"a.pos": 0.5, "top": np.arange(72, dtype=np.uint8).reshape(4, 6, 3), "task": "x"}
    data = lerobot_pickle.dump_observation(lerobot_pickle.TimedObservation(1.5, 7, raw, must_go=True))
    observation = pickle.loads(data)
    assert type(observation) is TimedObservation
    assert (observation.get_timestamp(), observation.get_timestep(), observation.must_go) == (1.5, 7, True)
    assert np.array_equal(observation.get_observation()["top"], raw["top"])


def test_streams_are_cut_and_joined_alike():
    from threading import Event

    payload = np.random.default_rng(0).bytes(5 << 20)
    ours = [services_pb2.Observation.FromString(part.SerializeToString()) for part in lerobot_messages.cut(payload)]
    assert receive_bytes_in_chunks(iter(ours), None, Event()) == payload
    theirs = send_bytes_in_chunks(payload, services_pb2.Observation)
    parts = [lerobot_messages.Observation.FromString(part.SerializeToString()) for part in theirs]
    assert lerobot_messages.join(parts, len(payload)) == payload
