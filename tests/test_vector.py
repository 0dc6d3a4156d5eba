"""A batch on a server beside Gymnasium's own vector environment: the same numbers, types and infos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from exact_values import assert_same
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from leak_check import isolated_home, no_leaks
from tasks_for_tests import batches

from remote_env import RemoteVectorEnv
from remote_env.errors import InputError
from remote_env.tasks import register_tasks

__all__ = ["isolated_home", "no_leaks"]

ALOHA = "remote_env/AlohaTransferCube-v0"
MODES = list(AutoresetMode)
VARIED = "tasks_for_tests.batches:Varied"


def local(make: Callable[[], Any], num_envs: int, mode: AutoresetMode, how: str = "sync") -> Any:
    kind = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}[how]
    return kind([make] * num_envs, autoreset_mode=mode)


def compare(ours: Any, theirs: Any, mode: AutoresetMode, steps: int, seed: Any) -> int:
    """Run both; how many episodes ended."""
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.metadata == {**theirs.metadata, "autoreset_mode": mode}
    assert (ours.num_envs, ours.render_mode) == (theirs.num_envs, theirs.render_mode)
    assert_same(ours.reset(seed=seed), theirs.reset(seed=seed))
    theirs.action_space.seed(5)
    ended = 0
    for _ in range(steps):
        actions = theirs.action_space.sample()
        result = ours.step(actions)
        assert_same(result, theirs.step(actions))
        over = np.logical_or(result[2], result[3])
        ended += int(over.sum())
        if mode is AutoresetMode.DISABLED and over.any():
            mask = {"options": {"reset_mask": over}}
            theirs_mask = {"options": {"reset_mask": over.copy()}}
            assert_same(ours.reset(**mask), theirs.reset(**theirs_mask))
    return ended


@pytest.mark.parametrize(
    ("mode", "how"),
    [*((mode, "sync") for mode in MODES), (AutoresetMode.SAME_STEP, "async"), (AutoresetMode.DISABLED, "async")],
)
def test_dicts_and_infos_of_every_kind(mode: AutoresetMode, how: str) -> None:
    theirs = local(lambda: batches.Varied(render_mode="rgb_array"), 3, mode, how)
    arguments = {"vectorization_mode": how, "autoreset_mode": mode, "render_mode": "rgb_array"}
    with RemoteVectorEnv(env=VARIED, num_envs=3, **arguments) as ours:
        assert compare(ours, theirs, mode, 40, [7, 8, 9]) > 10
        assert_same(ours.render(), theirs.render())
        assert_same(ours.call("describe", "x"), theirs.call("describe", "x"))
        ours.set_attr("weight", [1.0, 2.0, 3.0])
        assert ours.get_attr("weight") == (1.0, 2.0, 3.0)
        ours.set_attr("weight", 4.0)
        assert ours.get_attr("weight") == (4.0, 4.0, 4.0)
        for call in (lambda: ours.set_attr("_left", 3), lambda: ours.get_attr("_left")):
            with pytest.raises(InputError, match=r"'_left' is not open.*weight"):
                call()
    theirs.close()


def test_observations_that_do_not_stack() -> None:
    mode = AutoresetMode.SAME_STEP
    theirs = local(lambda: batches.Varied(text=True), 2, mode)
    with RemoteVectorEnv(env=VARIED, env_kwargs={"text": True}, num_envs=2, autoreset_mode="SameStep") as ours:
        assert compare(ours, theirs, mode, 20, 0) > 3
    theirs.close()


def test_a_single_pendulum_in_a_batch() -> None:
    mode = AutoresetMode.SAME_STEP
    theirs = local(lambda: gymnasium.make("Pendulum-v1", g=9.0), 1, mode)
    with RemoteVectorEnv(env="Pendulum-v1", env_kwargs={"g": 9.0}, num_envs=1, autoreset_mode=mode) as ours:
        assert compare(ours, theirs, mode, 201, [3]) == 1
    theirs.close()


@pytest.mark.parametrize("how", ["sync", "async"])
def test_aloha_with_its_states(how: str) -> None:
    register_tasks()

    def make() -> Any:
        return gymnasium.make(ALOHA, obs_type="agent_pos", disable_env_checker=True)

    theirs = local(make, 2, AutoresetMode.NEXT_STEP)
    arguments: dict[str, Any] = {"env": ALOHA, "env_kwargs": {"obs_type": "agent_pos"}, "num_envs": 2}
    with RemoteVectorEnv(**arguments, capture_state=True, vectorization_mode=how) as ours:
        compare(ours, theirs, AutoresetMode.NEXT_STEP, 6, 3)
        states = ours.get_states()
        assert states == [env.unwrapped.get_scene_state() for env in theirs.envs]
        ours.step(np.zeros(ours.action_space.shape, np.float32))
        ours.set_states([states[1]], [0])
        still, moved = ours.get_states([1, 0])
        np.testing.assert_allclose(moved.values, states[1].values, atol=1e-12)
        assert still.time_s > moved.time_s
    theirs.close()


# What is not told by the numbers


@pytest.fixture(scope="module")
def cartpoles(isolated_home: Any) -> Iterator[RemoteVectorEnv]:
    with RemoteVectorEnv(env="CartPole-v1", num_envs=4) as env:
        yield env


def test_cartpole(cartpoles: RemoteVectorEnv) -> None:
    theirs = local(lambda: gymnasium.make("CartPole-v1"), 4, AutoresetMode.NEXT_STEP)
    assert isinstance(cartpoles, gymnasium.vector.VectorEnv)
    assert compare(cartpoles, theirs, AutoresetMode.NEXT_STEP, 100, 42) > 5
    theirs.close()


def test_gymnasiums_wrappers_of_vectors_wrap_it(cartpoles: RemoteVectorEnv) -> None:
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(cartpoles)
    wrapped.reset(seed=1)
    for _ in range(60):
        infos = wrapped.step(np.ones(4, np.int64))[4]
        if "episode" in infos:
            break
    assert infos["episode"]["l"].max() > 5
    assert (wrapped.num_envs, wrapped.unwrapped) == (4, cartpoles)


def test_actions_in_other_clothes_are_passed_on(cartpoles: RemoteVectorEnv) -> None:
    cartpoles.reset(seed=2)
    results = []
    for actions in ([0, 1, 0, 1], np.array([0, 1, 0, 1], np.int32), np.array([0, 1, 0, 1])):
        cartpoles.reset(seed=2)
        results.append(cartpoles.step(actions))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_seeds_of_every_form(cartpoles: RemoteVectorEnv) -> None:
    first = cartpoles.reset(seed=5)
    assert cartpoles.np_random_seed == 5
    for seed in ([5, 6, 7, 8], (5, 6, 7, 8), np.array([5, 6, 7, 8]), np.int64(5), [np.int32(5), 6, 7, 8]):
        assert_same(cartpoles.reset(seed=seed), first)
    again = cartpoles.reset(seed=[5, None, 7, None])[0]
    assert_same(again[[0, 2]], first[0][[0, 2]])


@pytest.mark.parametrize(
    ("seed", "text"),
    [
        ([1, 2, 3], "3 seeds for 4 environments"),
        ("abcd", "a whole number"),
        (1.5, "a whole number"),
        ([1, 2, 3, 4.0], "a whole number"),
    ],
)
def test_seeds_that_are_none(cartpoles: RemoteVectorEnv, seed: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        cartpoles.reset(seed=seed)
    cartpoles.reset(seed=1)


@pytest.mark.parametrize(
    ("actions", "text"),
    [
        (np.zeros(3, np.int64), r"actions is int64 \(3,\); the task takes int64 \(4,\)"),
        (0, r"actions is int64 \(\); the task takes"),
        (np.zeros((4, 1), np.int64), r"\(4, 1\)"),
        (np.zeros(4), "float64"),
        (None, "actions is object"),
    ],
)
def test_actions_that_are_none(cartpoles: RemoteVectorEnv, actions: Any, text: str) -> None:
    cartpoles.reset(seed=1)
    with pytest.raises(InputError, match=text):
        cartpoles.step(actions)
    cartpoles.step(np.zeros(4, np.int64))


@pytest.mark.parametrize("mask", [np.ones(3, bool), np.zeros(4, bool), np.ones(4), [True] * 4, True])
def test_masks_that_are_none(cartpoles: RemoteVectorEnv, mask: Any) -> None:
    with pytest.raises(InputError, match=r"reset_mask.* \(4,\), true at least once"):
        cartpoles.reset(options={"reset_mask": mask})
    cartpoles.reset(seed=0)


def test_a_mask_resets_where_it_is_true(cartpoles: RemoteVectorEnv) -> None:
    cartpoles.reset(seed=3)
    before = cartpoles.step(np.ones(4, np.int64))[0]
    after, _ = cartpoles.reset(seed=9, options={"reset_mask": np.array([False, True, False, False])})
    assert [bool((before[index] == after[index]).all()) for index in range(4)] == [True, False, True, True]
