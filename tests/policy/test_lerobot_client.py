"""Our client for LeRobot's policy servers, at our own server: what LeRobot's does is tested with LeRobot itself."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from lerobot_parts import MODEL, Place, grpc_is_loaded, opened
from policies_for_tests import CountingPolicy, EchoPolicy, FailingPolicy, describe, observe

from remote_env.errors import (
    ConfigError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    PolicyError,
    ProtocolError,
)
from remote_env.policy.address import open_policy
from remote_env.policy.dialects.lerobot import connect
from remote_env.policy.dialects.lerobot_messages import SERVICE, Actions, Empty, Observation, PolicySetup, join
from remote_env.policy.dialects.lerobot_pickle import dump_actions, load_observation

__all__ = ["grpc_is_loaded", "opened"]


class Stranger:
    """A server that answers with what the test gives it: what LeRobot's own never does, but a hostile one may."""

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.timesteps: list[int] = []
        self._executor = ThreadPoolExecutor(4)
        self._server = grpc.server(self._executor)
        methods = {
            "Ready": self._unary(lambda *_: Empty(), Empty),
            "SendPolicyInstructions": self._unary(lambda *_: Empty(), PolicySetup),
            "GetActions": self._unary(self._actions, Empty),
            "SendObservations": grpc.stream_unary_rpc_method_handler(
                self._observe, Observation.FromString, lambda message: message.SerializeToString()
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _unary(self, method: Any, request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            method, request.FromString, lambda message: message.SerializeToString()
        )

    def _observe(self, messages: Iterator[Any], _: Any) -> Any:
        self.timesteps.append(load_observation(join(messages, 1 << 20)).timestep)
        return Empty()

    def _actions(self, *_: Any) -> Any:
        reply = self.replies.pop(0)
        return Actions(data=reply(self.timesteps[-1]) if callable(reply) else reply)

    def close(self) -> None:
        self._server.stop(0).wait()
        self._executor.shutdown()


def actions(timestep: int, value: float = 1.0) -> bytes:
    return dump_actions(np.full((3, 14), value, np.float32), timestamp=0.0, timestep=timestep, dt_s=0.1)


def to(place: Place, **options: Any) -> Any:
    return connect(*place.listener.address, **options)


def test_a_server_of_ours_says_what_it_serves(opened):
    place = opened(Place, EchoPolicy())
    policy = opened(to, place)
    assert policy.metadata.observation == describe("echo").observation
    assert policy.metadata.action_names == describe("echo").action_names
    assert np.array_equal(
        policy.infer(observe(3.0), episode_ids=[""]), EchoPolicy().infer(observe(3.0), episode_ids=[""])
    )
    rows = observe(rows=3)
    rows["state"][:, 0] = [1, 2, 3]
    assert policy.infer(rows, episode_ids=["a", "b", "c"])[:, 0, 0].tolist() == [1, 2, 3]


def test_it_is_a_policy_of_an_address(opened):
    place = opened(Place, EchoPolicy())
    with open_policy("lerobot://{}:{}".format(*place.listener.address), chunk_size=2) as policy:
        assert policy.infer(observe(3.0), episode_ids=[""]).shape == (1, 2, 14)
    place.wait_for("Client #1 closed: 1 requests in total")


def test_images_and_texts_arrive(opened):
    seen: list[Any] = []

    class Watching(EchoPolicy):
        def infer(self, observation, *, episode_ids):
            seen.append(observation)
            return super().infer(observation, episode_ids=episode_ids)

    place = opened(Place, Watching(images=2, image_shape=(480, 640, 3), text=True))  # more than one message
    policy = opened(to, place)
    batch = observe(1.0, policy.metadata)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 480, 640, 3), np.uint8)
    batch |= {"image0": images[0], "image1": images[1], "instruction": ["pick it up"]}
    policy.infer(batch, episode_ids=[""])
    assert all(np.array_equal(seen[0][f"image{index}"], images[index]) for index in range(2))
    assert seen[0]["instruction"] == ["pick it up"]


def test_a_policy_with_memory_has_one_episode_at_a_time(opened):
    place = opened(Place, CountingPolicy())
    policy = opened(to, place)
    for expected in (1, 2):
        assert policy.infer(observe(), episode_ids=["a"])[0, 0, 0] == expected
    with pytest.raises(InputError, match="knows no episodes"):
        policy.infer(observe(), episode_ids=["b"])
    policy.reset()
    assert policy.infer(observe(), episode_ids=["b"])[0, 0, 0] == 1


def test_a_failure_at_the_server_is_a_policy_error(opened):
    place = opened(Place, FailingPolicy())
    policy = opened(to, place)
    with pytest.raises(PolicyError, match="answered without actions"):
        policy.infer(observe(-1.0), episode_ids=[""])
    assert policy.infer(observe(1.0), episode_ids=[""])[0, 0, 0] == 1


def test_another_model_is_refused_with_the_servers_words(opened):
    place = opened(Place, EchoPolicy())
    with pytest.raises(ConfigError, match=f"this server serves {MODEL!r}"):
        to(place, pretrained_name_or_path="other", metadata=describe("other"))


def test_a_server_that_comes_back_is_used_again(opened):
    place = opened(Place, EchoPolicy())
    policy = opened(to, place, reconnect_timeout_s=20.0)
    assert policy.infer(observe(1.0), episode_ids=[""])[0, 0, 0] == 1
    place.restart()
    assert policy.infer(observe(2.0), episode_ids=[""])[0, 0, 0] == 2


def test_a_server_that_stays_away_is_an_error(opened):
    place = opened(Place, EchoPolicy())
    policy = opened(to, place, reconnect_timeout_s=0.1)
    place.close()
    with pytest.raises(ConnectionLost, match="is lost"):
        policy.infer(observe(1.0), episode_ids=[""])
    policy.reset()
    with pytest.raises(ConnectError, match="no LeRobot policy server answers"):
        to(place, timeout_s=5.0)


def test_without_a_name_lerobots_own_server_cannot_be_used(opened):
    server = opened(Stranger)
    with pytest.raises(ConfigError, match="give policy_type and pretrained_name_or_path"):
        connect("127.0.0.1", server.port)


def strange(opened: Any, *replies: Any, **options: Any) -> Any:
    server = opened(Stranger, *replies)
    return opened(connect, "127.0.0.1", server.port, pretrained_name_or_path="x", **options)


def test_a_chunk_for_somebody_elses_observation_is_passed_over(opened):
    policy = strange(opened, actions(5, value=9.0), lambda timestep: actions(timestep))
    chunk = policy.infer(observe(), episode_ids=[""])
    assert chunk.shape == (1, 3, 14)
    assert chunk[0, 0, 0] == 1.0
    assert len(policy.metadata.action_names) == 14


class Evil:
    def __init__(self, path: Any) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_a_hostile_server_runs_nothing(opened, tmp_path):
    policy = strange(opened, pickle.dumps([Evil(tmp_path / "ran")]), lambda timestep: actions(timestep))
    with pytest.raises(ProtocolError, match="not admitted"):
        policy.infer(observe(), episode_ids=[""])
    assert not (tmp_path / "ran").exists()
    assert policy.infer(observe(), episode_ids=[""])[0, 0, 0] == 1.0


def test_actions_that_are_none_are_refused(opened):
    nan = np.full((3, 14), np.nan, np.float32)
    policy = strange(
        opened, lambda timestep: dump_actions(nan, timestamp=0.0, timestep=timestep, dt_s=0.1), bytes(5 << 20)
    )
    with pytest.raises(PolicyError, match="not finite"):
        policy.infer(observe(), episode_ids=[""])
    with pytest.raises((ProtocolError, PolicyError)):
        policy.infer(observe(), episode_ids=[""])


def test_a_server_that_never_answers_meets_the_deadline(opened):
    gate = threading.Event()

    def late(timestep: int) -> bytes:
        gate.wait(20)
        return actions(timestep)

    policy = strange(opened, late, timeout_s=0.3)
    with pytest.raises(DeadlineExceeded):
        policy.infer(observe(), episode_ids=[""])
    gate.set()
