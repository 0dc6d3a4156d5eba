"""What observations bring when less is asked for, beside those of an environment that brings all."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.errors import ConfigError, InputError

COUNTING: dict[str, Any] = {"env": "remote_env.testing.counting:make", "env_kwargs": {"image": True}}
ACTIONS = [np.full(2, number / 8) for number in range(8)]


def run(**arguments: Any) -> tuple[gymnasium.Space[Any], list[Any], list[dict[str, Any]]]:
    """Space, observations and infos of a reset and eight steps."""
    with RemoteEnv(**COUNTING, **arguments) as env:
        observation, info = env.reset(seed=5)
        observations, infos = [observation], [info]
        for action in ACTIONS:
            observation, _, _, _, info = env.step(action)
            observations.append(observation)
            infos.append(info)
        return env.observation_space, observations, infos


@pytest.fixture(scope="module")
def everything() -> list[Any]:
    """What an environment brings that was asked for nothing special."""
    return run()[1]


def test_keys_shrink_the_space_and_what_comes(everything: list[Any]) -> None:
    space, observations, _ = run(observation_keys=["state"])
    assert isinstance(space, gymnasium.spaces.Dict)
    assert list(space.spaces) == ["state"]
    for got, whole in zip(observations, everything, strict=True):
        assert list(got) == ["state"]
        assert np.array_equal(got["state"], whole["state"])


def test_no_keys_bring_nothing() -> None:
    space, observations, _ = run(observation_keys=())
    assert observations == [{}] * 9
    assert space.contains({})


def test_float32_is_the_nearest_of_what_there_is(everything: list[Any]) -> None:
    space, observations, _ = run(observation_float32=True)
    for got, whole in zip(observations, everything, strict=True):
        assert space.contains(got)
        assert np.array_equal(got["state"], whole["state"].astype(np.float32))
        assert np.array_equal(got["image"], whole["image"])


def test_images_of_every_third_step_and_their_age_in_between(everything: list[Any]) -> None:
    _, observations, infos = run(image_every=3)
    assert [info["image_age"] for info in infos] == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    for number, (got, whole) in enumerate(zip(observations, everything, strict=True)):
        assert np.array_equal(got["state"], whole["state"])
        assert np.array_equal(got["image"], everything[number // 3 * 3]["image"])


def test_an_image_handed_out_twice_is_the_callers_own() -> None:
    with RemoteEnv(**COUNTING, image_every=2) as env:
        first, _ = env.reset(seed=5)
        kept = first["image"].copy()
        first["image"][:] = 7
        again = env.step(ACTIONS[0])[0]
        assert np.array_equal(again["image"], kept)


def test_the_end_of_an_episode_brings_its_image() -> None:
    kwargs = {"image": True, "episode_length": 2}
    with RemoteEnv(env=COUNTING["env"], env_kwargs=kwargs, image_every=10) as env:
        env.reset(seed=5)
        ages = [env.step(action)[4]["image_age"] for action in ACTIONS[:2]]
    assert ages == [1, 0]


@pytest.mark.parametrize("codec", ["raw", "zstd", "bitlz4", "bitzstd", "delta"])
def test_lossless_codecs_bring_the_same_pixels(everything: list[Any], codec: str) -> None:
    _, observations, _ = run(codecs={"image": codec})
    for got, whole in zip(observations, everything, strict=True):
        assert np.array_equal(got["image"], whole["image"])


def test_a_chunk_and_single_steps_build_on_each_others_images(everything: list[Any]) -> None:
    with RemoteEnv(**COUNTING, codecs="delta", image_every=2) as env:
        env.reset(seed=5)
        env.step(ACTIONS[0])
        chunk = env.step_many(np.stack(ACTIONS[1:7]))
        last = env.step(ACTIONS[7])[0]
    assert [info["image_age"] for info in chunk.infos] == [0, 1, 0, 1, 0, 1]
    for number in range(6):
        assert np.array_equal(chunk.observations["image"][number], everything[(number + 2) // 2 * 2]["image"])
    assert np.array_equal(last["image"], everything[8]["image"])


def test_one_step_may_bring_less_than_the_others(everything: list[Any]) -> None:
    with RemoteEnv(**COUNTING, codecs="delta") as env:
        env.reset(seed=5)
        observation = env.step(ACTIONS[0], observation_keys=["state"])[0]
        assert list(observation) == ["state"]
        assert np.array_equal(observation["state"], everything[1]["state"])
        assert np.array_equal(env.step(ACTIONS[1])[0]["image"], everything[2]["image"])
        with pytest.raises(InputError, match="no key 'nix'"):
            env.step(ACTIONS[2], observation_keys=["nix"])
        assert np.array_equal(env.step(ACTIONS[2])[0]["image"], everything[3]["image"])


def test_a_step_that_raises_leaves_the_next_ones_images_whole() -> None:
    arguments: dict[str, Any] = {"env": "tasks_for_tests.painting:Painting", "codecs": "delta"}
    with RemoteEnv(**arguments) as env, RemoteEnv(env=arguments["env"]) as plain:
        for each in (env, plain):
            each.reset(seed=0)
            each.step(0)
            with pytest.raises(Exception, match="cannot cross"):
                each.step(1)
        for action in (0, 0):
            assert np.array_equal(env.step(action)[0], plain.step(action)[0])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"observation_keys": ["nix"]}, "no key 'nix'; there are 'image', 'state'"),
        ({"observation_keys": "state"}, "write a list"),
        ({"codecs": {"x": "raw"}}, "which no observation has"),
        ({"codecs": "webp"}, "unknown codec 'webp'"),
        ({"image_every": 0}, "a whole number from 1 on"),
    ],
)
def test_what_there_is_not_is_told_before_anything_runs(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RemoteEnv(**COUNTING, **arguments).start()


def test_keys_of_an_observation_that_is_one_array_are_refused() -> None:
    with pytest.raises(ConfigError, match="Leave it out"):
        RemoteEnv(env="CartPole-v1", observation_keys=["x"]).start()


def test_times_of_a_step_stand_in_its_info() -> None:
    _, _, infos = run(timing=True)
    assert all("timing" in info for info in infos)


def test_a_batch_brings_less_too() -> None:
    with (
        RemoteVectorEnv(**COUNTING, num_envs=2, observation_keys=["state"]) as less,
        RemoteVectorEnv(**COUNTING, num_envs=2, codecs="delta") as coded,
        RemoteVectorEnv(**COUNTING, num_envs=2) as all_of_it,
    ):
        for env in (less, coded, all_of_it):
            env.reset(seed=1)
        for _ in range(3):
            actions = np.full((2, 2), 0.5)
            expected = all_of_it.step(actions)[0]
            assert np.array_equal(less.step(actions)[0]["state"], expected["state"])
            assert np.array_equal(coded.step(actions)[0]["image"], expected["image"])


def test_final_observations_of_a_batch_bring_less_too() -> None:
    kwargs = {"image": True, "episode_length": 2}
    batch: dict[str, Any] = {"env": COUNTING["env"], "env_kwargs": kwargs, "num_envs": 2, "autoreset_mode": "SameStep"}
    with RemoteVectorEnv(**batch, observation_keys=["state"]) as env:
        env.reset(seed=1)
        env.step(np.zeros((2, 2)))
        *_, truncated, infos = env.step(np.zeros((2, 2)))
        assert truncated.all()
        assert [list(one) for one in infos["final_obs"]] == [["state"], ["state"]]


def test_a_new_session_brings_what_the_last_one_did() -> None:
    with RemoteEnv(**COUNTING, observation_keys=["state"]) as env:
        env.reset(seed=0)
        env.restart()
        assert list(env.reset(seed=0)[0]) == ["state"]


def test_changes_of_states_are_the_states() -> None:
    aloha: dict[str, Any] = {"env": "remote_env/AlohaTransferCube-v0", "capture_state": True}
    actions = np.random.default_rng(3).normal(0, 0.3, (12, 14)).astype(np.float32)
    with RemoteEnv(**aloha, state_changes=True) as less, RemoteEnv(**aloha) as whole:
        for env in (less, whole):
            env.reset(seed=2)
        for action in actions[:6]:
            less.step(action)
            whole.step(action)
            assert less.get_state().values.tobytes() == whole.get_state().values.tobytes()
            less.get_state(native=True)
            less.get_state(native=True)
        chunks = [env.step_many(actions[6:]) for env in (less, whole)]
        for one, other in zip(*(chunk.states or [] for chunk in chunks), strict=True):
            assert one.values.tobytes() == other.values.tobytes()
        less.step(actions[0])
        whole.step(actions[0])
        assert np.array_equal(less.get_state().values, whole.get_state().values)
        less.reset(seed=7)
        whole.reset(seed=7)
        assert np.array_equal(less.get_state().values, whole.get_state().values)
