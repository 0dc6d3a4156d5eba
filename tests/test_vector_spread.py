"""A batch over several servers: beside Gymnasium's own of all its environments; deaths, late steps, windows."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from exact_values import assert_same
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from leak_check import isolated_home, no_leaks
from ssh_client import free_port
from tasks_for_tests import batches
from test_vector import compare

from remote_env import RemoteVectorEnv
from remote_env.errors import ConfigError, ConnectError, DeadlineExceeded, InputError, NotRun, SessionLost, TaskError
from remote_env.vector import SpreadVectorEnv

__all__ = ["isolated_home", "no_leaks"]

ON_DEMAND = "tasks_for_tests.misbehaving:OnDemand"
ACTIONS = np.zeros((3, 2), np.float32)


def spread(**arguments: Any) -> SpreadVectorEnv:
    made = RemoteVectorEnv([None, None], **{"env": "CartPole-v1", "num_envs": 3, **arguments})  # type: ignore[arg-type]
    assert isinstance(made, SpreadVectorEnv)
    return made


def kill_simulator(env: SpreadVectorEnv, which: int) -> None:
    os.kill(env.servers[which].status()["pid"], signal.SIGKILL)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_it_is_as_one_batch_of_all(mode: AutoresetMode) -> None:
    theirs = SyncVectorEnv([lambda: batches.Varied(render_mode="rgb_array")] * 3, autoreset_mode=mode)
    arguments = {"env": "tasks_for_tests.batches:Varied", "autoreset_mode": mode, "render_mode": "rgb_array"}
    with spread(**arguments) as ours:
        assert [server.num_envs for server in ours.servers] == [2, 1]
        assert compare(ours, theirs, mode, 25, 7) > 8
        assert_same(ours.reset(seed=[4, None, 6])[0]["place"].shape, (3, 3))
        assert_same(ours.reset(seed=[4, 5, 6]), theirs.reset(seed=[4, 5, 6]))
        actions = [theirs.action_space.sample() for _ in range(12)]
        many = ours.step_many(actions)
        alone = [copy.deepcopy(theirs.step(each)) for each in actions[: many.ran]]
        assert (many.ran < 12) == (mode is AutoresetMode.DISABLED)
        assert_same(many.rewards, np.stack([each[1] for each in alone]))
        assert_same(many.observations["place"], np.stack([each[0]["place"] for each in alone]))
        assert_same(many.infos, [each[4] for each in alone])
        assert_same(ours.render(), theirs.render())
        ours.set_attr("weight", [1.0, 2.0, 3.0])
        assert ours.get_attr("weight") == (1.0, 2.0, 3.0)
        ours.set_attr("weight", 4.0)
        assert ours.get_attr("weight") == (4.0, 4.0, 4.0)
    theirs.close()


# Bad input


def test_what_is_refused_at_once() -> None:
    for arguments, text in (
        ({"num_envs": 1}, "num_envs=1 for 2 hosts: each is to have one"),
        ({"port": [1, 2, 3]}, "3 for 2 hosts; give one each"),
        ({"on_failure": "ignore"}, "on_failure='ignore': allowed are raise, restart"),
    ):
        with pytest.raises(ConfigError, match=text):
            spread(**arguments)
    with pytest.raises(ConfigError, match="no hosts"):
        RemoteVectorEnv([], env="CartPole-v1", num_envs=2)  # type: ignore[arg-type]


def test_hosts_whose_spaces_differ(isolated_home: Any) -> None:
    env: Any = RemoteVectorEnv([None, {"env": "Pendulum-v1"}], env="CartPole-v1", num_envs=2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"host 2 of 2 \(local\) has another single_observation_space than host 1"):
        env.start()
    assert [server.status()["state"] for server in env.servers] == ["not started", "not started"]
    env.close()


@pytest.fixture(scope="module")
def shared(isolated_home: Path) -> Iterator[SpreadVectorEnv]:
    with spread(env=ON_DEMAND) as env:
        yield env


@pytest.fixture
def batch(shared: SpreadVectorEnv) -> SpreadVectorEnv:
    shared.reset()
    return shared


def test_bad_input_leaves_it_usable(batch: SpreadVectorEnv) -> None:
    for call, text in (
        (lambda: batch.step(np.zeros((2, 2), np.float32)), r"\(2, 2\); the task takes float32 \(3, 2\)"),
        (lambda: batch.reset(seed=[1, 2]), "2 seeds for 3 environments"),
        (lambda: batch.reset(options={"reset_mask": np.ones(2, bool)}), r"bool array of the shape \(3,\)"),
        (lambda: batch.set_attr("how", [1, 2]), "2 values for 3 environments"),
        (lambda: batch.get_attr("nothing"), "'nothing' is not open"),
        (lambda: batch.get_states([3]), "3"),
        (lambda: batch.reset(options={"how": object()}), "options"),
        (batch.step_wait, "no step is under way"),
        (lambda: batch.step_many([]), "0 actions in one call"),
        (lambda: batch.step_many([ACTIONS], want="first"), "want='first': allowed are all, last"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=text):
            call()
    assert batch.step(ACTIONS)[0].shape == (3, 2)
    batch.step_async(ACTIONS)
    with pytest.raises(InputError, match="1 steps are under way"):
        batch.step(ACTIONS)
    with pytest.raises(ConfigError, match="cannot be pickled"):
        pickle.dumps(batch)
    batch.step_wait()
    for _ in range(batch.step_window):
        batch.step_async(ACTIONS)
    with pytest.raises(InputError, match="no more may be"):
        batch.step_async(ACTIONS)
    batch.reset()


def test_an_error_of_a_task_says_whose_it_is_and_reset_goes_on(batch: SpreadVectorEnv) -> None:
    batch.servers[1].call("plan", "raise")
    with pytest.raises(TaskError, match=r"environment 2, host 2 of 2 \(local\): the task raised") as caught:
        batch.step(ACTIONS)
    assert caught.value.env_ids == [2]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"failed on one of the servers.*call reset\(\)"):
        batch.step(ACTIONS)
    with pytest.raises(InputError, match="without a reset_mask"):
        batch.reset(options={"reset_mask": np.array([True, False, False])})
    batch.reset()
    batch.servers[1].call("plan", "raise")
    with pytest.raises(TaskError) as caught:
        batch.step_many([ACTIONS] * 3)
    assert caught.value.completed is None
    batch.reset()
    assert batch.step_many([ACTIONS] * 100, want="last").observations.shape == (1, 3, 2)


def test_a_late_step_is_waited_for_again(batch: SpreadVectorEnv, isolated_home: Path) -> None:
    gate, slow = isolated_home / "gate", batch.servers[0]
    steps = batch.get_attr("total_steps")
    slow.call("plan", f"until:{gate}")
    slow._step_timeout_s = 0.3
    with pytest.raises(DeadlineExceeded, match="host 1 of 2"):
        batch.step(ACTIONS)
    slow._step_timeout_s = 60.0
    gate.touch()
    late = batch.resume()
    assert late is not None
    assert late[0][:, 1].tolist() == [count + 1 for count in steps]
    assert batch.resume() is None
    gate.unlink()


def test_a_start_that_fails_ends_the_others_and_can_be_tried_again(isolated_home: Any) -> None:
    port = free_port()
    env: Any = RemoteVectorEnv([None, {"host": f"tcp://127.0.0.1:{port}", "token": "x"}], env="CartPole-v1", num_envs=2)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(ConnectError, match=rf"host 2 of 2 \(tcp://127.0.0.1:{port}\): nothing answers"):
            env.reset()
        assert [server.status()["state"] for server in env.servers] == ["not started", "not started"]
    env.close()


# Deaths


@pytest.mark.fault
def test_a_death_is_told_with_its_environments_and_reset_begins_anew(isolated_home: Any) -> None:
    with spread() as env:
        env.reset(seed=0)
        kill_simulator(env, 0)
        for _ in range(2):
            with pytest.raises(SessionLost, match=r"environments 0 to 1, host 1 of 2 \(local\)") as caught:
                env.step(np.zeros(3, np.int64))
        assert caught.value.env_ids == [0, 1]  # type: ignore[attr-defined]
        theirs = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 3)
        assert compare(env, theirs, AutoresetMode.NEXT_STEP, 10, 42) == 0
        theirs.close()


@pytest.mark.fault
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_dead_simulator_is_replaced_and_its_environments_are_truncated(
    mode: AutoresetMode, isolated_home: Any
) -> None:
    actions = np.array([0, 1, 0])
    with spread(on_failure="restart", autoreset_mode=mode) as env:
        env.reset(seed=5)
        before = env.step(actions)[0]
        kill_simulator(env, 1)
        ahead = 1 if mode is AutoresetMode.DISABLED else 4
        for _ in range(ahead):
            env.step_async(actions)
        if mode is AutoresetMode.DISABLED:  # an end on one server is not known on the others
            with pytest.raises(InputError, match="1 steps are under way, and no more may be"):
                env.step_async(actions)
        results = [env.step_wait() for _ in range(ahead)]
        observation, rewards, terminated, truncated, infos = results[0]
        assert (truncated.tolist(), terminated.any(), rewards.tolist()) == (
            [False, False, True],
            False,
            [1.0, 1.0, 0.0],
        )
        final = infos["final_info"]
        assert "SIGKILL" in final["host_lost"][2]
        assert (final["host_lost"][0], infos["_final_info"].tolist()) == (None, [False, False, True])
        alone = gymnasium.make("CartPole-v1")
        fresh = alone.reset(seed=int(final["restart_seed"][2]))[0]
        if mode is AutoresetMode.SAME_STEP:
            assert_same(infos["final_obs"][2], before[2])
            assert_same(observation[2], fresh)
        else:
            assert_same(observation[2], before[2])
        if mode is AutoresetMode.NEXT_STEP:
            assert_same(results[1][0][2], fresh)
            assert results[1][1].tolist() == [1.0, 1.0, 0.0]
            results = results[1:]
        for result in results[1:]:  # sent ahead, and sent again to the new one
            assert_same(result[0][2], alone.step(0)[0])
        if mode is AutoresetMode.DISABLED:
            again = env.reset(options={"reset_mask": truncated}, seed=9)[0]
            assert_same(again[:2], observation[:2])
            assert_same(again[2], alone.reset(seed=11)[0])
        alone.close()


# Windows


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_steps_ahead_go_on_where_environments_reset_themselves(mode: AutoresetMode, isolated_home: Any) -> None:
    theirs = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=mode)
    actions = np.ones(2, np.int64)
    with RemoteVectorEnv(env="CartPole-v1", num_envs=2, autoreset_mode=mode) as ours:
        ours.reset(seed=0)
        theirs.reset(seed=0)
        for _ in range(30):
            ours.step_async(actions)
        ended = False
        for _ in range(30):
            if ended and mode is AutoresetMode.DISABLED:
                with pytest.raises(NotRun):
                    ours.step_wait()
                continue
            result = ours.step_wait()
            assert_same(result, theirs.step(actions))
            ended |= bool(result[2].any())
        assert ended
        ours.reset_async(seed=0)
        with pytest.raises(InputError, match="was interrupted"):
            ours.step(actions)
        assert_same(ours.reset_wait(), theirs.reset(seed=0))
        with pytest.raises(InputError, match="no reset is under way"):
            ours.reset_wait()
    theirs.close()


# What it is


def test_observations_bring_what_is_asked_for(isolated_home: Any) -> None:
    arguments: dict[str, Any] = {"observation_keys": ["place"], "observation_float32": True}
    with spread(env="tasks_for_tests.batches:Varied", **arguments) as env:
        observation = env.reset(seed=0)[0]
        assert (list(observation), observation["place"].dtype) == (["place"], np.float32)
        assert env.observation_space.contains(observation)
        assert [list(server.single_observation_space) for server in env.servers] == [["place"]] * 2  # type: ignore[call-overload]


def test_it_is_made_again_from_its_spec_and_from_a_pickle(isolated_home: Any) -> None:
    given = spread(on_failure="restart")
    assert str(given) == "<SpreadVectorEnv CartPole-v1 on local, local>"
    for again in (pickle.loads(pickle.dumps(given)), copy.deepcopy(given)):
        assert isinstance(again, SpreadVectorEnv)
        assert again._given == given._given
        again.close()
        with pytest.raises(ConfigError, match="closed"):
            again.reset()
    with gymnasium.make_vec(given.spec) as made:  # type: ignore[attr-defined]
        assert isinstance(made, SpreadVectorEnv)
        assert made.num_envs == 3
        statistics = gymnasium.wrappers.vector.RecordEpisodeStatistics(made)
        statistics.reset(seed=1)
        infos: dict[str, Any] = {}
        while "episode" not in infos:
            infos = statistics.step(np.ones(3, np.int64))[4]
        assert infos["episode"]["l"].max() > 5
    given.close()
