"""Rollouts: the policy acts beside the simulator, and what comes back is what a loop here would have given."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from leak_check import wait_until
from rollout_loops import Meanwhile, assert_same, local_rollout
from tasks_for_tests.policies import Swing

from remote_env import RemoteEnv
from remote_env.env import Rollout, RolloutStatus
from remote_env.env.rollouts import Pace
from remote_env.errors import (
    ConfigError,
    DeadlineExceeded,
    InputError,
    PolicyError,
    SessionLost,
    TaskError,
    Unsupported,
)
from remote_env.policy import load_policy
from remote_env.tasks import TRANSFER_CUBE_ID, register_tasks

POLICIES = "tasks_for_tests.policies"
ON_DEMAND = "tasks_for_tests.misbehaving:OnDemand"
SCENE = "tasks_for_tests.scene:Scene"
EXPERT = "scripted:aloha-transfer-cube"
ZEROS = np.zeros(2, np.float32)


def counting(**arguments: Any) -> RemoteEnv:
    return RemoteEnv(**{"env": ON_DEMAND, "policy": f"{POLICIES}:Counting", **arguments})


@pytest.fixture(scope="module")
def shared(isolated_home: Path) -> Iterator[RemoteEnv]:
    """A task that never ends an episode, and a policy that says how often it was asked in one."""
    with counting(env=SCENE) as env:
        yield env


@pytest.fixture(scope="module")
def pendulum(isolated_home: Path) -> Iterator[RemoteEnv]:
    """A task that is cut after seven steps."""
    with RemoteEnv(env="Pendulum-v1", env_kwargs={"max_episode_steps": 7}, policy=f"{POLICIES}:Swing") as env:
        yield env


def swing_here(seed: int, *, chunk_size: int | None = None, max_steps: int = 10_000) -> Rollout:
    with gymnasium.make("Pendulum-v1", max_episode_steps=7) as env:
        return local_rollout(env, Swing(), seed, chunk_size=chunk_size, max_steps=max_steps)


# What comes back


def test_an_expert_s_episodes_are_bit_for_bit_those_of_a_loop_here() -> None:
    register_tasks()
    kwargs = {"obs_type": "state"}
    want = ("observation", "action", "reward", "state", "info")
    with RemoteEnv(env=TRANSFER_CUBE_ID, env_kwargs=kwargs, policy=EXPERT) as env:
        assert env.policy_metadata["name"] == EXPERT
        assert "state" in env.policy_metadata["mapping"]
        there = env.rollout(n_episodes=2, seed=11, want=want)
        last_state = env.get_state()
    with gymnasium.make(TRANSFER_CUBE_ID, **kwargs) as env, load_policy(EXPERT) as policy:
        for rollout, seed in zip(there, (11, 12), strict=True):
            assert_same(rollout, local_rollout(env, policy, seed))
        assert env.unwrapped.get_scene_state() == there[1].states[-1] == last_state
    assert there[0].success
    assert there[0].terminated
    assert len(there[0].states) == len(there[0].infos) == len(there[0].observations) == there[0].steps + 1


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_chunks_are_applied_as_far_as_asked(pendulum: RemoteEnv, chunk_size: int | None) -> None:
    [rollout] = pendulum.rollout(seed=5, chunk_size=chunk_size)
    assert_same(rollout, swing_here(5, chunk_size=chunk_size))
    assert rollout.inferences == {None: 2, 1: 7, 3: 3}[chunk_size]
    assert rollout.truncated
    assert not rollout.terminated
    assert rollout.success is None


def test_steps_go_on_in_the_next_episode_and_the_last_is_cut(pendulum: RemoteEnv) -> None:
    rollouts = pendulum.rollout(17, seed=20)
    assert [rollout.steps for rollout in rollouts] == [7, 7, 3]
    assert [rollout.complete for rollout in rollouts] == [True, True, False]
    for rollout, (seed, steps) in zip(rollouts, [(20, 7), (21, 7), (22, 3)], strict=True):
        assert_same(rollout, swing_here(seed, max_steps=steps))
    assert [rollout.steps for rollout in pendulum.rollout(9, 4, seed=0)] == [7, 2]
    assert [rollout.steps for rollout in pendulum.rollout(90, 2, seed=0)] == [7, 7]
    assert [rollout.steps for rollout in pendulum.rollout(n_episodes=2, max_episode_steps=4)] == [4, 4]


def test_each_seed_of_a_sequence_is_an_episode(pendulum: RemoteEnv) -> None:
    rollouts = pendulum.rollout(seed=[3, 1, 3])
    assert [rollout.seed for rollout in rollouts] == [3, 1, 3]
    assert_same(rollouts[0], rollouts[2])
    assert_same(rollouts[1], swing_here(1))
    assert pendulum.rollout()[0].seed is None


def test_only_what_is_wanted_comes(pendulum: RemoteEnv) -> None:
    [bare] = pendulum.rollout(want=())
    assert (len(bare.observations), len(bare.actions), len(bare.infos), len(bare.frames)) == (0, 0, 0, 0)
    assert bare.rewards.shape == (7,)
    with pytest.raises(Unsupported, match="no scene state"):
        pendulum.rollout(want=("state",))


def test_frames_come_where_the_task_renders() -> None:
    with counting(env=f"{POLICIES}:Filmed", render_mode="rgb_array") as env:
        [filmed] = env.rollout(2, want="frame")
        assert (filmed.frames.shape, filmed.frames.dtype) == ((3, 16, 24, 3), np.uint8)
        assert np.diff(filmed.frames[:, 0, 0, 0].astype(int)).tolist() == [1, 1]
        env.render()
    with counting(env=f"{POLICIES}:Filmed") as env, pytest.raises(InputError, match="render_mode='rgb_array'"):
        env.rollout(1, want=("frame",))


def test_states_and_infos_come_with_each_step(shared: RemoteEnv) -> None:
    [rollout] = shared.rollout(5, want=("state", "info"))
    assert [state["cube"].root_pose[2] for state in rollout.states] == [0, 1, 2, 3, 4, 5]
    assert rollout.infos == [{}] * 6


def test_slices_change_nothing(pendulum: RemoteEnv, shared: RemoteEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "note", lambda *_: None)
    for env in (pendulum, shared):
        monkeypatch.setattr(env, "_pace", Pace())
        env._pace.time_s = 0.0
    told: list[RolloutStatus] = []
    assert_same(pendulum.rollout(seed=8, on_progress=told.append)[0], swing_here(8))
    assert [status.episode_steps for status in told] == [1, 2, 3, 4, 5, 6, 0]  # one step each, and the end
    assert (told[-1].episodes, told[-1].steps) == (1, 7)
    [parted] = shared.rollout(20, want=("observation", "action", "info", "state"))
    assert parted.actions[:, 0].tolist() == [1 + step // 3 for step in range(20)]
    assert np.diff(parted.observations[:, 1]).tolist() == [1.0] * 20
    assert [state["cube"].root_pose[2] for state in parted.states] == [*range(21)]
    assert len(parted.infos) == 21


def test_episodes_come_one_by_one_and_may_be_left(pendulum: RemoteEnv) -> None:
    episodes = pendulum.iter_rollout(n_episodes=5, seed=1)
    assert_same(next(episodes), swing_here(1))
    pendulum.reset(seed=9)  # between two of them anything may be done
    assert_same(next(episodes), swing_here(2))
    episodes.close()
    assert pendulum.reset(seed=1)[0].shape == (3,)


# Step by step


def test_the_policy_acts_once_and_mixes_with_others(shared: RemoteEnv) -> None:
    shared.reset()
    action, observation, reward, terminated, truncated, info = shared.step_policy()
    assert (action.dtype, action[0], reward, terminated, truncated, info) == (np.float32, 1, 1.0, False, False, {})
    assert observation[0] == np.float32(action.sum())
    assert [shared.step_policy()[0][0] for _ in range(3)] == [1, 1, 2]  # chunks of three
    shared.step(ZEROS)
    assert shared.step_policy()[0][0] == 3  # what was left of that chunk is dropped
    shared.reset()
    assert shared.step_policy()[0][0] == 1  # a new episode for the policy too


def test_types_arrive_as_the_task_gives_them(pendulum: RemoteEnv) -> None:
    pendulum.reset(seed=0)
    with gymnasium.make("Pendulum-v1") as here:
        here.reset(seed=0)
        action, *theirs = pendulum.step_policy()
        ours = here.step(action)
    assert [type(value) for value in theirs] == [type(value) for value in ours]
    assert theirs[0].tobytes() == ours[0].tobytes()
    assert theirs[1:] == list(ours[1:])


def test_without_an_observation_the_policy_cannot_act(pendulum: RemoteEnv, shared: RemoteEnv) -> None:
    with counting() as env, pytest.raises(InputError, match=r"no episode yet; call reset\(\) before step_policy"):
        env.step_policy()
    pendulum.rollout()
    with pytest.raises(InputError, match=r"the episode has ended: call reset\(\)"):
        pendulum.step_policy()
    shared.reset()
    shared.set_state(shared.get_state())
    with pytest.raises(InputError, match=r"nothing has been observed since: step\(\) by hand"):
        shared.step_policy()
    shared.step(ZEROS)
    shared.step_policy()


def test_a_state_comes_with_the_step_that_was_asked_to_bring_it() -> None:
    with counting(env=SCENE, capture_state=True) as env:
        env.reset()
        env.step_policy()
        session = env._life.session
        sent = session._requests.last
        assert env.get_state()["cube"].root_pose[2] == 1
        assert session._requests.last == sent


def test_a_policy_that_counts_what_it_has_handed_out_is_not_led_astray() -> None:
    arguments = {"env": TRANSFER_CUBE_ID, "env_kwargs": {"obs_type": "state"}, "policy": EXPERT}
    with RemoteEnv(**arguments) as env:
        with pytest.raises(InputError, match=r"its last chunk of 64 ended.*policy_kwargs=\{'chunk_size'"):
            env.rollout(100, chunk_size=10)
        env.reset(seed=0)
        action = env.step_policy()[0]
        env.step(action)
        with pytest.raises(InputError, match="some was not applied"):
            env.step_policy()
    with RemoteEnv(**arguments, policy_kwargs={"chunk_size": 1}) as env:
        env.reset(seed=0)
        assert env.step_policy()[0].tobytes() == action.tobytes()
        env.step(env.step_policy()[0])
        env.step_policy()


# What goes wrong


def test_a_policy_that_raises_is_told_with_its_traceback() -> None:
    with counting(policy=f"{POLICIES}:make_failing") as env:
        with pytest.raises(PolicyError, match=r"'counting' failed: ZeroDivisionError: the weights are gone") as caught:
            env.rollout(10)
        assert "policies.py" in caught.value.remote_traceback
        assert "ZeroDivisionError" in env.logs()
        assert env.step(ZEROS)[0][1] == 4  # three ran, and the episode stands where it did
        assert env.step_policy()[0][0] == 3  # asked a third time in this episode
        assert env.rollout(3)[0].steps == 3


def test_no_chunk_is_no_action() -> None:
    with (
        counting(policy=f"{POLICIES}:make_flat") as env,
        pytest.raises(PolicyError, match=r"shape \(3, 2\).*\(1, K, D\)"),
    ):
        env.rollout(1)


def test_a_task_that_raises_is_told_as_ever(shared: RemoteEnv) -> None:
    shared.reset()
    shared.call("plan", "raise")
    with pytest.raises(TaskError, match="raised ValueError in rollout: the cube fell"):
        shared.step_policy()
    with pytest.raises(InputError, match="the last step failed"):
        shared.step_policy()
    with pytest.raises(TaskError, match="the cube fell"):
        shared.rollout(1, options={"how": "raise"})
    assert shared.rollout(2)[0].steps == 2


@pytest.mark.fault
def test_a_task_that_dies_is_told_and_the_next_rollout_begins_anew() -> None:
    with counting() as env:
        env.reset()
        env.call("plan", "kill")
        with pytest.raises(SessionLost, match="SIGKILL in rollout"):
            env.step_policy()
        assert env.rollout(4)[0].actions[:, 0].tolist() == [1, 1, 1, 2]


def test_arguments_that_are_none(pendulum: RemoteEnv) -> None:
    sent = pendulum._running()._requests.last
    wrong: list[dict[str, Any]] = [
        {"n_steps": 0},
        {"n_episodes": True},
        {"n_episodes": 2, "seed": [1, 2, 3]},
        {"want": ("observations",)},
        {"chunk_size": 0},
        {"max_episode_steps": 1.5},
        {"options": {"lock": object()}},
        {"options": 3},
        {"seed": "abc"},
        {"seed": [1, "x"]},
        {"seed": -1},
        {"seed": 1.0},
        {"seed": True},
        {"want": None},
        {"on_progress": 3},
    ]
    for arguments in wrong:
        with pytest.raises(InputError):
            pendulum.rollout(**arguments)
    assert pendulum._running()._requests.last == sent


def test_whole_numbers_of_numpy_are_whole_numbers(pendulum: RemoteEnv) -> None:
    (rollout,) = pendulum.rollout(np.int64(3), seed=np.array([4]), chunk_size=np.int32(2))
    assert_same(rollout, swing_here(4, chunk_size=2, max_steps=3))
    assert isinstance(rollout.seed, int)


def test_an_episode_is_the_policy_s_alone(pendulum: RemoteEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_env.env.rollouts.Pace.note", lambda *_: None)
    monkeypatch.setattr(pendulum._pace, "time_s", 0.0)  # each slice is one step
    seen: list[int] = []

    def look(status: RolloutStatus) -> None:
        seen.append(status.episode_steps)
        _ = pendulum.get_wrapper_attr("render_mode")
        pendulum.render()

    assert pendulum.rollout(seed=1, on_progress=look)[0].steps == 7
    assert seen == [1, 2, 3, 4, 5, 6, 0]
    for act in (pendulum.reset, pendulum.step_policy, lambda: pendulum.rollout(1)):
        with pytest.raises(InputError, match="something else acted on this environment"):
            pendulum.rollout(seed=1, on_progress=lambda _, act=act: act())  # type: ignore[misc]
    assert_same(pendulum.rollout(seed=4)[0], swing_here(4))


def test_a_server_without_a_policy_says_how_to_get_one(cartpole: RemoteEnv) -> None:
    assert cartpole.policy_metadata is None
    cartpole.reset(seed=0)
    for ask in (cartpole.rollout, cartpole.step_policy):
        with pytest.raises(Unsupported, match=r"RemoteEnv\(policy=…\).*task_server.py --policy"):
            ask()
    cartpole.step(0)


# Interruptions


@pytest.fixture
def waiting(isolated_home: Path) -> Iterator[tuple[RemoteEnv, Path, Path]]:
    """A policy that waits at its second inference, the file that lets it go on, and the one that says that it waits."""
    gate, mark = isolated_home / "gate", isolated_home / "mark"
    server_env = {"POLICY_GATE": str(gate), "POLICY_MARK": str(mark)}
    with counting(policy=f"{POLICIES}:make_waiting", server_env=server_env) as env:
        env.start()
        yield env, gate, mark
        gate.touch()
    gate.unlink()
    mark.unlink(missing_ok=True)


def test_a_late_slice_is_explained_and_settled(waiting: tuple[RemoteEnv, Path, Path]) -> None:
    env, gate, _ = waiting
    env._step_timeout_s = env._reset_timeout_s = 0.2
    with pytest.raises(DeadlineExceeded, match=r"ROLLOUT.*busy in rollout \(step 3\).* at wait_for_file"):
        env.rollout(4)
    with pytest.raises(InputError, match=r"\(ROLLOUT\) was interrupted.*resume\(\)"):
        env.step_policy()
    gate.touch()
    env._step_timeout_s = 10.0
    observation, reward, *_ = env.resume()
    assert (observation[1], reward) == (4.0, 1.0)
    assert env.step_policy()[1][1] == 5.0


@pytest.mark.fault
def test_ctrl_c_stops_it_and_reset_goes_on(waiting: tuple[RemoteEnv, Path, Path]) -> None:
    env, gate, mark = waiting
    with Meanwhile(mark, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        env.rollout(4)
    gate.touch()
    wait_until(lambda: env.status()["state"] == "ready", "the slice ends by itself")
    assert env.rollout(2)[0].actions[:, 0].tolist() == [1, 1]


@pytest.mark.fault
def test_a_simulator_killed_in_mid_slice(waiting: tuple[RemoteEnv, Path, Path]) -> None:
    env, gate, mark = waiting
    pid = env.status()["pid"]
    with Meanwhile(mark, lambda: os.kill(pid, signal.SIGKILL)), pytest.raises(SessionLost, match="SIGKILL in rollout"):
        env.rollout(4)
    gate.touch()
    assert env.rollout(2)[0].steps == 2


# Several clients, and what is shown


def test_each_simulator_has_a_policy_of_its_own(isolated_home: Path) -> None:
    with counting(max_sessions=2, reuse=True, idle_timeout_s=5.0) as one:
        one.reset()
        assert one.step_policy()[0][0] == 1
        with counting(max_sessions=2, reuse=True, idle_timeout_s=5.0) as other:
            other.reset()
            assert other.status()["sessions"] == 2
            assert [other.step_policy()[0][0] for _ in range(4)] == [1, 1, 1, 2]
        assert [one.step_policy()[0][0] for _ in range(3)] == [1, 1, 2]
        one.close(keep=False)


def test_a_bar_shows_how_far_it_is(pendulum: RemoteEnv, capfd: pytest.CaptureFixture[str]) -> None:
    pendulum.rollout(n_episodes=2, progress=True)
    shown = capfd.readouterr().err
    assert "Pendulum-v1: episodes" in shown
    assert "2/2" in shown
    pendulum.rollout(n_episodes=1)
    assert capfd.readouterr().err == ""


def test_the_policy_is_part_of_what_makes_an_environment() -> None:
    kwargs = {"chunk_size": 2, "token": "secret" * 8}
    env = RemoteEnv(env="CartPole-v1", policy="box:5000", policy_kwargs=kwargs)
    assert "secret" not in repr(env.spec)
    again = pickle.loads(pickle.dumps(env))
    assert again.spec.kwargs["policy_kwargs"]["chunk_size"] == 2
    assert "secret" not in repr(gymnasium.make(env.spec).spec)
    for arguments, text in (
        ({"policy_kwargs": {"chunk_size": 2}}, "name one with policy="),
        ({"policy": "x", "policy_kwargs": {"chunks": 2}}, "no 'chunks'; it takes chunk_size, dataset_id, device"),
        ({"policy": "x", "policy_kwargs": {"chunk_size": 0}}, "chunk_size"),
        ({"policy": "x", "policy_kwargs": {"mapping": {"state": {}}}}, '"observation"'),
        ({"policy": 3}, "LocalFolder"),
    ):
        with pytest.raises(ConfigError, match=text):
            RemoteEnv(env="CartPole-v1", **arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="policy= goes with the task"):
        RemoteEnv(port=1, policy="x").start()


def test_a_rollout_in_words(pendulum: RemoteEnv) -> None:
    [rollout] = pendulum.rollout(3, seed=4)
    assert repr(rollout).startswith("<Rollout seed=4, 3 steps, cut, reward -")


def test_slices_are_as_long_as_the_way_is_to_cost_little_and_never_so_long_that_nothing_shows() -> None:
    pace = Pace()
    pace.note(0.3002, 0.3)  # the same machine
    assert pace.time_s == 0.1
    pace.note(0.34, 0.3)  # a round trip of 40 ms
    assert pace.time_s == pytest.approx(0.8)
    pace.note(0.5, 0.3)
    assert pace.time_s == pytest.approx(0.8)  # with its way a second
    pace.note(9.0, 0.3)
    assert pace.time_s == 0.1
    size = pace.size_bytes
    for _ in range(20):
        pace.note(2.3, 0.3)  # replies are too large for this link
    assert pace.size_bytes < size
    assert pace.size_bytes == 256 << 10
    for _ in range(20):
        pace.note(0.31, 0.3)
    assert pace.size_bytes == 32 << 20
