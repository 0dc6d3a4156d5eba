"""What observations bring when less is asked for, beside those of the task itself."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from server_process import serving
from tasks_for_tests.painting import Painting

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.errors import ConfigError, InputError, TaskError
from remote_env.protocol.task import TaskSpec
from remote_env.testing import CountingEnv

COUNTING: dict[str, Any] = {"env": "remote_env.testing.counting:make", "env_kwargs": {"image": True}}
ACTIONS = [np.full(2, number / 8) for number in range(8)]


@pytest.fixture(scope="module")
def port(isolated_home: Path) -> Iterator[int]:
    """Of a task whose observations depend on its episode alone, which ends with the ninth step."""
    with serving(COUNTING["env"], {"image": True, "episode_length": 9}) as server:
        yield server.port


@pytest.fixture(scope="module")
def batch_port(isolated_home: Path) -> Iterator[int]:
    """Of a batch of two such, which end with the fourth."""
    kwargs = {"image": True, "episode_length": 4, "vector_kwargs": {"autoreset_mode": "SameStep"}}
    task = TaskSpec(COUNTING["env"], kwargs, num_envs=2)
    with serving(task=task.to_plain(), digest=task.digest) as server:
        yield server.port


def run(port: int, **arguments: Any) -> tuple[gymnasium.Space[Any], list[Any], list[dict[str, Any]]]:
    """Space, observations and infos of a reset and eight steps."""
    with RemoteEnv(port=port, **arguments) as env:
        observation, info = env.reset(seed=5)
        observations, infos = [observation], [info]
        for action in ACTIONS:
            observation, _, _, _, info = env.step(action)
            observations.append(observation)
            infos.append(info)
        return env.observation_space, observations, infos


@pytest.fixture(scope="module")
def everything() -> list[Any]:
    """The observations of the same task here."""
    env = CountingEnv(image=True)
    return [deepcopy(env.reset(seed=5)[0]), *(deepcopy(env.step(action)[0]) for action in ACTIONS)]


def test_keys_shrink_the_space_and_what_comes(port: int, everything: list[Any]) -> None:
    space, observations, _ = run(port, observation_keys=["state"])
    assert isinstance(space, gymnasium.spaces.Dict)
    assert list(space.spaces) == ["state"]
    for got, whole in zip(observations, everything, strict=True):
        assert list(got) == ["state"]
        assert np.array_equal(got["state"], whole["state"])


def test_no_keys_bring_nothing(port: int) -> None:
    space, observations, _ = run(port, observation_keys=())
    assert observations == [{}] * 9
    assert space.contains({})


def test_float32_is_the_nearest_of_what_there_is(port: int, everything: list[Any]) -> None:
    space, observations, _ = run(port, observation_float32=True)
    for got, whole in zip(observations, everything, strict=True):
        assert space.contains(got)
        assert np.array_equal(got["state"], whole["state"].astype(np.float32))
        assert np.array_equal(got["image"], whole["image"])


def test_images_of_every_third_step_and_their_age_in_between(port: int, everything: list[Any]) -> None:
    _, observations, infos = run(port, image_every=3)
    assert [info["image_age"] for info in infos] == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    for number, (got, whole) in enumerate(zip(observations, everything, strict=True)):
        assert np.array_equal(got["state"], whole["state"])
        assert np.array_equal(got["image"], everything[number // 3 * 3]["image"])


@pytest.mark.parametrize("codecs", [None, "delta"])
def test_what_is_gone_back_to_is_shown_at_once(port: int, everything: list[Any], codecs: str | None) -> None:
    with RemoteEnv(port=port, image_every=20, codecs=codecs) as env:
        env.reset(seed=5)
        snapshot, state = env.snapshot(), env.get_state(native=True)
        for go_back in (lambda: env.restore(snapshot), lambda: env.set_state(state)):
            env.step(ACTIONS[7])
            go_back()
            observation, _, _, _, info = env.step(ACTIONS[0])
            assert info["image_age"] == 0
            assert np.array_equal(observation["image"], everything[1]["image"])
            assert env.step(ACTIONS[1])[4]["image_age"] == 1


def test_an_image_handed_out_twice_is_the_callers_own(port: int) -> None:
    with RemoteEnv(port=port, image_every=2) as env:
        first, _ = env.reset(seed=5)
        kept = first["image"].copy()
        first["image"][:] = 7
        again = env.step(ACTIONS[0])[0]
        assert np.array_equal(again["image"], kept)


def test_the_end_of_an_episode_brings_its_image(port: int) -> None:
    with RemoteEnv(port=port, image_every=10) as env:
        env.reset(seed=5)
        ages = [env.step(action)[4]["image_age"] for action in (*ACTIONS, ACTIONS[0])]
    assert ages == [1, 2, 3, 4, 5, 6, 7, 8, 0]


@pytest.mark.parametrize("codec", ["raw", "zstd", "bitlz4", "bitzstd", "delta"])
def test_lossless_codecs_bring_the_same_pixels(port: int, everything: list[Any], codec: str) -> None:
    _, observations, _ = run(port, codecs={"image": codec})
    for got, whole in zip(observations, everything, strict=True):
        assert np.array_equal(got["image"], whole["image"])


def test_a_chunk_and_single_steps_build_on_each_others_images(port: int, everything: list[Any]) -> None:
    with RemoteEnv(port=port, codecs="delta", image_every=2) as env:
        env.reset(seed=5)
        env.step(ACTIONS[0])
        chunk = env.step_many(np.stack(ACTIONS[1:7]))
        last = env.step(ACTIONS[7])[0]
    assert [info["image_age"] for info in chunk.infos] == [0, 1, 0, 1, 0, 1]
    for number in range(6):
        assert np.array_equal(chunk.observations["image"][number], everything[(number + 2) // 2 * 2]["image"])
    assert np.array_equal(last["image"], everything[8]["image"])


def test_one_step_may_bring_less_than_the_others(port: int, everything: list[Any]) -> None:
    with RemoteEnv(port=port, codecs="delta") as env:
        env.reset(seed=5)
        observation = env.step(ACTIONS[0], observation_keys=["state"])[0]
        assert list(observation) == ["state"]
        assert np.array_equal(observation["state"], everything[1]["state"])
        assert np.array_equal(env.step(ACTIONS[1])[0]["image"], everything[2]["image"])
        with pytest.raises(InputError, match="no key 'nix'"):
            env.step(ACTIONS[2], observation_keys=["nix"])
        assert np.array_equal(env.step(ACTIONS[2])[0]["image"], everything[3]["image"])


@pytest.fixture(scope="module")
def painting_port(isolated_home: Path) -> Iterator[int]:
    """Of a task whose observations are images, and no dict."""
    with serving("tasks_for_tests.painting:Painting") as server:
        yield server.port


def test_a_step_that_raises_leaves_the_next_ones_images_whole(painting_port: int) -> None:
    local = Painting()
    with RemoteEnv(port=painting_port, codecs="delta") as env:
        for each in (env, local):
            each.reset(seed=0)
            each.step(0)
        with pytest.raises(TaskError, match="cannot cross"):
            env.step(1)
        local.step(1)
        for action in (0, 0):
            assert np.array_equal(env.step(action)[0], local.step(action)[0])


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
def test_what_there_is_not_is_told_before_anything_runs(port: int, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        RemoteEnv(port=port, **arguments).start()


def test_keys_of_an_observation_that_is_one_array_are_refused(painting_port: int) -> None:
    with pytest.raises(ConfigError, match="Leave it out"):
        RemoteEnv(port=painting_port, observation_keys=["x"]).start()


def test_times_of_a_step_stand_in_its_info(port: int) -> None:
    _, _, infos = run(port, timing=True)
    assert all("timing" in info for info in infos)


def test_a_batch_brings_less_too(batch_port: int) -> None:
    here = gymnasium.vector.SyncVectorEnv([lambda: CountingEnv(image=True)] * 2)
    here.reset(seed=1)
    actions = np.full((2, 2), 0.5)
    expected = [here.step(actions)[0] for _ in range(3)]
    for arguments, key in (({"observation_keys": ["state"]}, "state"), ({"codecs": "delta"}, "image")):
        with RemoteVectorEnv(port=batch_port, **arguments) as env:  # type: ignore[arg-type]
            env.reset(seed=1)
            for each in expected:
                assert np.array_equal(env.step(actions)[0][key], each[key])


def test_final_observations_of_a_batch_bring_less_too(batch_port: int) -> None:
    with RemoteVectorEnv(port=batch_port, observation_keys=["state"]) as env:
        env.reset(seed=1)
        *_, truncated, infos = [env.step(np.zeros((2, 2))) for _ in range(4)][-1]
        assert truncated.all()
        assert [list(one) for one in infos["final_obs"]] == [["state"], ["state"]]


def test_a_new_session_brings_what_the_last_one_did() -> None:
    with RemoteEnv(**COUNTING, observation_keys=["state"]) as env:
        env.reset(seed=0)
        env.restart()
        assert list(env.reset(seed=0)[0]) == ["state"]


def test_changes_of_states_are_the_states() -> None:
    actions = np.random.default_rng(3).normal(0, 0.3, (12, 14)).astype(np.float32)

    def walk(*, changes: bool) -> list[bytes]:
        """The state after each step, of a chunk, and of another episode; native ones come in between."""
        with RemoteEnv(port=server.port, capture_state=True, state_changes=changes) as env:
            env.reset(seed=2)
            found = []
            for action in actions[:6]:
                env.step(action)
                found.append(env.get_state())
                if changes:
                    env.get_state(native=True)
                    env.get_state(native=True)
            found += env.step_many(actions[6:]).states or []
            env.step(actions[0])
            found.append(env.get_state())
            env.reset(seed=7)
            return [state.values.tobytes() for state in (*found, env.get_state())]

    with serving("remote_env/AlohaTransferCube-v0", {"obs_type": "state"}) as server:
        whole = walk(changes=False)
        assert len(set(whole)) == 14
        assert walk(changes=True) == whole
