"""Making batches where the server runs, in this process: what cannot be made, and the loop that serves one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from tasks_for_tests.batches import Flock
from tasks_for_tests.counter_backend import CounterBackend

from remote_env.errors import ConfigError, InputError, Unsupported
from remote_env.protocol.task import PolicySpec, TaskSpec
from remote_env.server import simulator
from remote_env.server.backend import Backend
from remote_env.server.batch_loop import BatchLoop
from remote_env.server.board import Board
from remote_env.server.gymnasium_backend import GymnasiumBackend

SWARM = "tasks_for_tests.batches:make_swarm"
ON_DEMAND = "tasks_for_tests.misbehaving:OnDemand"
NATIVE = {"vectorization_mode": "native"}
ASYNC = {"vectorization_mode": "async"}


def make(env: str, **kwargs: Any) -> GymnasiumBackend:
    backend = GymnasiumBackend()
    backend.num_envs = 2
    backend.make(env, kwargs)
    return backend


@pytest.mark.parametrize(
    ("env", "kwargs", "text"),
    [
        (
            "CartPole-v1",
            {"vector_kwargs": {"autoreset_mode": "Late"}},
            "autoreset_mode='Late': allowed are NextStep, Same",
        ),
        ("CartPole-v1", {"vectorization_mode": "ray"}, "vectorization_mode='ray': allowed are sync, async, native"),
        ("CartPole-v1", {**ASYNC, "vector_kwargs": {"autoreset_mode": "Late"}}, "autoreset_mode='Late': allowed are"),
        ("CartPole-v1", {**ASYNC, "vector_kwargs": {"worker": None}}, "no 'worker' for AsyncVectorEnv; it takes auto"),
        ("NoSuchTask-v0", ASYNC, "cannot make env='NoSuchTask-v0'"),
        (
            "CartPole-v1",
            {"vector_kwargs": {"shared_memory": True}},
            "vector_kwargs has no 'shared_memory'.*it takes auto",
        ),
        ("NoSuchTask-v0", {}, "cannot make env='NoSuchTask-v0'"),
        ("Acrobot-v1", NATIVE, "cannot make a batch of env='Acrobot-v1'.*vector entry point"),
        (SWARM, {}, "it must return a gymnasium.Env"),
        (SWARM, {**NATIVE, "made": 5}, "made a batch of 5 where num_envs=2"),
        (SWARM, {**NATIVE, "says_how": False}, r"does not say in metadata\['autoreset_mode'\]"),
        ("builtins:dict", NATIVE, "made a dict for num_envs=2.*must return a gymnasium.vector.VectorEnv"),
    ],
)
def test_batches_that_cannot_be_made(env: str, kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(env, **kwargs)


def test_the_vector_environment_that_is_registered_for_the_id() -> None:
    backend = make("CartPole-v1", **NATIVE)
    local = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
    assert (backend.observation_space, backend.autoreset_mode) == (local.observation_space, "NEXT_STEP")
    assert backend.reset(3, None)[0].tobytes() == local.reset(seed=3)[0].tobytes()
    actions = np.array([0, 1])
    assert backend.step(actions)[0].tobytes() == local.step(actions)[0].tobytes()
    with pytest.raises(Unsupported, match="has no scene states"):
        backend.states([0])
    backend.close()
    local.close()


def test_an_old_gymnasium_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(gymnasium.vector, "AutoresetMode")
    with pytest.raises(Unsupported, match=r"a batch needs gymnasium 1\.1 or later"):
        make("CartPole-v1")


class Late(Flock):
    """Resets as nobody knows."""

    def make(self, env: Any, kwargs: Any) -> None:
        super().make(env, {"autoreset_mode": "LATER"})


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Late, "Late.autoreset_mode is 'LATER'; a batch has one of NEXT_STEP"),
        (CounterBackend, "serves no batches.*RemoteEnv"),
    ],
)
def test_backends_that_serve_no_batch(kind: type[Backend], text: str) -> None:
    backend, board = kind(), Board.create()
    backend.num_envs = 2
    backend.make("x", {})
    with pytest.raises(ConfigError, match=text):
        BatchLoop(backend, board, {}, frozenset())
    board.close()


def test_a_policy_beside_a_batch_is_refused() -> None:
    task = TaskSpec("CartPole-v1", policy=PolicySpec("scripted:x"), num_envs=2)
    with pytest.raises(Unsupported, match="a policy beside a batch"):
        simulator._choose_loop(task)


def test_asking_in_vain_for_states_leaves_later_ends_alone() -> None:
    backend = make("CartPole-v1", vector_kwargs={"autoreset_mode": "SameStep"})
    backend.reset(0, None)
    with pytest.raises(Unsupported, match="no scene state"):
        backend.states([0, 1])
    ended = [backend.step(np.ones(2, np.int64))[2].any() for _ in range(15)]
    assert any(ended)
    backend.close()


@pytest.mark.parametrize("quaternion", [[np.nan, 0, 0, 0], [0, 0, 0, 0]])
def test_states_of_which_one_is_none_move_no_environment(quaternion: list[float]) -> None:
    backend = make("tasks_for_tests.batches:ShortScene")
    backend.reset(0, None)
    layout, before = backend.states([0, 1])
    wanted = before.copy()
    wanted[:, 3] = 5.0
    wanted[1, 4:8] = quaternion
    with pytest.raises(InputError, match="'cube'"):
        backend.restore_states(layout, wanted, [0, 1])
    np.testing.assert_array_equal(backend.states([0, 1])[1], before)
    backend.close()
