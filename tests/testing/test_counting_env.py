from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from server_process import serving

from remote_env import RemoteEnv
from remote_env.errors import InputError
from remote_env.ssh.pack import pack_far_end
from remote_env.state import EntityLayout, SceneLayout, SceneState
from remote_env.testing import CountingEnv, FaultProxy
from remote_env.testing.counting import make


def play(env: Any, count: int = 5) -> tuple[list[Any], Any]:
    """What a short run shows, and its chain."""
    seen = [env.reset(seed=3, options={"place": [1, 2.5], "mask": np.arange(3)})]
    rng = np.random.default_rng(0)
    seen += [env.step(rng.uniform(-1, 1, 2)) for _ in range(count)]
    return seen, seen[-1][-1]["digest"]


@pytest.mark.parametrize("image", [False, True])
def test_the_same_seed_and_actions_give_the_same_numbers_in_every_episode(image):
    env = CountingEnv(image=image, episode_length=4)
    first, again = (copy.deepcopy(play(env)[0]) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert env.observation_space.contains(one[0])
        assert data_equivalence(one[:-1], other[:-1], exact=True)
        assert one[-1]["digest"] != other[-1]["digest"]


def test_equal_calls_give_equal_chains_and_any_other_call_another():
    chain = play(CountingEnv())[1]
    assert play(CountingEnv())[1] == chain
    assert play(CountingEnv(), 6)[1] != chain
    for extra in ("render", "close", "reset"):
        env = CountingEnv()
        getattr(env, extra)()
        assert play(env)[1] != chain, extra
    env = CountingEnv()
    env.set_scene_state(env.get_scene_state())
    assert play(env)[1] != chain


def test_reading_is_no_call():
    env = CountingEnv()
    play(env)
    before = env.digest(), env.calls()
    env.get_scene_state(native=True)
    assert (env.digest(), env.calls()) == before == (play(CountingEnv())[1], 6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"seed": 1}, {"seed": 2}),
        ({"seed": None}, {"seed": 0}),
        ({"options": {}}, {"options": None}),
        ({"options": {"a": 1}}, {"options": {"a": 1.0}}),
        ({"options": {"a": np.zeros(2)}}, {"options": {"a": np.zeros(2, np.float32)}}),
    ],
)
def test_what_a_reset_was_told_counts(one, other):
    assert CountingEnv().reset(**one)[1]["digest"] != CountingEnv().reset(**other)[1]["digest"]


def test_an_episode_ends_at_its_length_and_a_step_after_it_counts():
    env = CountingEnv(episode_length=2)
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[3] for _ in range(3)] == [False, True, True]
    assert env.calls() == 4


def test_native_state_brings_the_numbers_back_and_the_chain_forgets_nothing():
    env = CountingEnv()
    play(env)
    state, digest = env.get_scene_state(native=True), env.digest()
    first = env.step(np.ones(2))
    env.set_scene_state(state)
    again = env.step(np.ones(2))
    assert np.array_equal(first[0], again[0])
    assert again[-1]["digest"] not in (digest, first[-1]["digest"])
    assert state["counter"].joint_positions[0] == 5
    stranger = SceneLayout((EntityLayout("ball"),), "elsewhere")
    with pytest.raises(InputError, match="not of a CountingEnv"):
        env.set_scene_state(SceneState(stranger, np.zeros(stranger.size)))


def test_the_image_is_one_buffer():
    env = make(image=True, render_mode="rgb_array")
    first = env.reset()[0]["image"]
    before = first.copy()
    assert env.step(np.zeros(2))[0]["image"] is first
    assert not np.array_equal(first, before)
    assert env.render().shape == (4, 8, 3)


def test_a_remote_run_has_the_chain_of_a_local_one():
    local = play(CountingEnv(image=True))
    with (
        serving("remote_env.testing.counting:make", {"image": True}) as server,
        RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=server.token) as env,
    ):
        seen, digest = play(env)
        assert env.unwrapped.call("digest") == digest == local[1]
        assert env.unwrapped.call("calls") == 6
    for here, there in zip(local[0], seen, strict=True):
        assert np.array_equal(here[0]["state"], there[0]["state"])


@pytest.mark.fault
def test_a_run_on_a_link_that_is_cut_has_the_chain_of_a_local_one():
    local = play(CountingEnv(), 150)
    with (
        serving("remote_env.testing.counting:make") as server,
        FaultProxy(("127.0.0.1", server.port), seed=4) as proxy,
        RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token) as env,
    ):
        proxy.cut_every(6000)
        seen = play(env, 150)
        proxy.cut_every(None)
        proxy.corrupt(direction="down", offset=60)
        assert env.unwrapped.call("digest") == seen[1] == local[1]
    assert proxy.cuts > 5
    for here, there in zip(local[0], seen[0], strict=True):
        assert data_equivalence(here, there, exact=True)


def test_it_travels_to_the_far_end_and_nothing_else_of_its_room_does():
    names = {name for name, _ in pack_far_end().files if "/testing/" in name}
    assert names == {"remote_env/testing/__init__.py", "remote_env/testing/counting.py"}
