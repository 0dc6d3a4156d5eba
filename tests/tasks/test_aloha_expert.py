"""The scripted experts, from random starts and from starts placed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from remote_env.errors import ConfigError, InputError
from remote_env.tasks.aloha import AlohaEnv
from remote_env.tasks.aloha_expert import ScriptedExpert, make_expert
from remote_env.tasks.aloha_rewards import contact_sequence


def play(env: AlohaEnv, expert: ScriptedExpert) -> tuple[list[str], list[float]]:
    """What touched the object and the reward at each step, to the episode's end or 300 steps."""
    expert.reset(env.get_scene_state())
    touching, rewards = [], []
    for step in range(300):
        _, reward, terminated, _, info = env.step(expert.action(step))
        touching.append(info["touching"])
        rewards.append(reward)
        if terminated:
            break
    return touching, rewards


@pytest.mark.parametrize("task", ["transfer_cube", "insertion"])
def test_the_expert_solves_random_starts(task: str) -> None:
    env, expert = AlohaEnv(task), make_expert(task)
    for seed in (1000, 1001, 1002):
        env.reset(seed=seed)
        _, rewards = play(env, expert)
        assert rewards[-1] == 4.0
        assert len(rewards) < 300


@pytest.mark.parametrize("seed", [0, 1])
def test_the_transfer_goes_from_right_to_both_to_left(seed: int) -> None:
    env = AlohaEnv("transfer_cube", end_on_success=False)
    env.reset(seed=seed)
    touching, rewards = play(env, make_expert("transfer_cube"))
    assert contact_sequence(touching) == ("right", "both", "left")
    assert len(rewards) == 300
    assert rewards[-1] == 4.0


@pytest.mark.parametrize("corner", [(0.0, 0.4), (0.0, 0.6), (0.2, 0.4), (0.2, 0.6)])
def test_the_cube_is_reached_in_every_corner(corner: tuple[float, float]) -> None:
    env = AlohaEnv("transfer_cube")
    env.reset(options={"poses": {"box": (*corner, 0.05, 1, 0, 0, 0)}})
    assert play(env, make_expert("transfer_cube"))[1][-1] == 4.0


@pytest.mark.parametrize("degrees", [-40, 30, 100])
def test_a_turned_cube_is_picked_by_its_faces(degrees: float) -> None:
    env = AlohaEnv("transfer_cube")
    half = np.deg2rad(degrees) / 2
    env.reset(options={"poses": {"box": (0.1, 0.5, 0.05, np.cos(half), 0, 0, np.sin(half))}})
    assert play(env, make_expert("transfer_cube"))[1][-1] == 4.0


def test_the_same_scene_gives_the_same_plan() -> None:
    env = AlohaEnv("insertion")
    env.reset(seed=3)
    scene = env.get_scene_state()
    first, second = make_expert("insertion"), make_expert("insertion")
    first.reset(scene)
    env.reset(seed=4)
    second.reset(env.get_scene_state())  # an episode in between leaves nothing behind
    second.reset(scene)
    for step in range(300):
        action = first.action(step)
        assert action.dtype == np.float32
        assert action.shape == (14,)
        np.testing.assert_array_equal(action, second.action(step))
    np.testing.assert_array_equal(first.action(299), first.action(1000))


def test_wrong_use_is_a_typed_error() -> None:
    expert = make_expert("transfer-cube")
    with pytest.raises(InputError, match="reset"):
        expert.action(0)
    env = AlohaEnv("insertion")
    env.reset(seed=0)
    with pytest.raises(InputError, match="box"):
        expert.reset(env.get_scene_state())
    with pytest.raises(ConfigError, match="transfer_cube, insertion"):
        make_expert("juggling")


def test_an_object_out_of_reach_is_said_to_be() -> None:
    env = AlohaEnv("transfer_cube")
    env.reset(options={"poses": {"box": (-0.6, 0.9, 0.05, 1, 0, 0, 0)}})
    with pytest.raises(InputError, match="right arm cannot reach"):
        make_expert("transfer_cube").reset(env.get_scene_state())


def test_contact_sequence_drops_flicker() -> None:
    steps = ["none"] * 9 + ["right"] * 5 + ["none"] + ["right"] * 5 + ["both"] * 6 + ["left", "both"] + ["left"] * 5
    assert contact_sequence(steps) == ("right", "both", "left")
    assert contact_sequence(["none", "left"]) == ()
