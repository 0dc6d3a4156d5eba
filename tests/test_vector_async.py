"""Batches whose environments have processes of their own: what fails in them, and that they end with the simulator."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import is_alive, isolated_home, no_leaks, wait_until

from remote_env import RemoteVectorEnv
from remote_env.errors import InputError, SessionLost, TaskError

__all__ = ["isolated_home", "no_leaks"]

ON_DEMAND = "tasks_for_tests.misbehaving:OnDemand"
SHORT = "tasks_for_tests.batches:ShortScene"
ACTIONS = np.zeros((3, 2), np.float32)


def make(**arguments: Any) -> RemoteVectorEnv:
    return RemoteVectorEnv(**{"env": ON_DEMAND, "num_envs": 3, "vectorization_mode": "async", **arguments})


@pytest.fixture(scope="module")
def shared(isolated_home: Path) -> Iterator[RemoteVectorEnv]:
    with make() as env:
        yield env


@pytest.fixture
def batch(shared: RemoteVectorEnv) -> RemoteVectorEnv:
    shared.reset()
    return shared


def test_each_has_a_process_of_its_own(batch: RemoteVectorEnv) -> None:
    pids = batch.get_attr("pid")
    assert len({*pids, batch.status()["pid"], os.getpid()}) == 5
    assert batch.step(ACTIONS)[0].shape == (3, 2)


def test_a_call_or_an_attribute_that_fails_ends_nothing(batch: RemoteVectorEnv) -> None:
    pids = batch.get_attr("pid")
    with pytest.raises(TaskError) as caught:
        batch.call("fail_call")
    assert "misbehaving.py" in caught.value.remote_traceback
    with pytest.raises(InputError, match="2 values for 3 environments"):
        batch.set_attr("plan", [1, 2])
    batch.step(ACTIONS)
    assert batch.get_attr("pid") == pids


@pytest.mark.fault
def test_after_a_failure_the_others_wait_and_reset_makes_the_batch_anew(isolated_home: Any) -> None:
    with make() as env:
        env.reset()
        for how, told in (("raise", "ValueError in step: the cube fell"), ("raise-unprintable", "raised Unprintable")):
            pids = env.get_attr("pid")
            env.call("plan", how)
            with pytest.raises(TaskError, match=told) as caught:
                env.step(ACTIONS)
            assert "misbehaving.py" in caught.value.remote_traceback
            for call in (lambda: env.step(ACTIONS), lambda: env.call("pid")):
                with pytest.raises(InputError, match=r"has failed.*call reset\(\)"):
                    call()
            with pytest.raises(InputError, match="without a reset_mask"):
                env.reset(options={"reset_mask": np.array([True, False, True])})
            assert env.reset()[0][:, 1].tolist() == [0.0, 0.0, 0.0]
            wait_until(lambda pids=pids: not any(map(is_alive, pids)), "the old processes have ended")  # type: ignore[misc]
        with pytest.raises(TaskError, match="the cube fell through the table"):
            env.reset(options={"how": "raise"})
        env.reset()
        os.kill(env.get_attr("pid")[1], signal.SIGKILL)
        with pytest.raises(TaskError, match=r"the process of environment 1 \(SIGKILL\) ended in a step or reset"):
            env.step(ACTIONS)
        env.reset()
        assert env.step(ACTIONS)[0][:, 1].tolist() == [1.0, 1.0, 1.0]
        assert env.status()["state"] == "ready"


@pytest.mark.fault
def test_a_killed_simulator_or_supervisor_takes_its_processes_along(isolated_home: Path) -> None:
    gate = isolated_home / "gate"
    with make() as env:
        env.reset()
        pids = env.get_attr("pid")
        os.kill(env.status()["pid"], signal.SIGKILL)
        with pytest.raises(SessionLost, match="SIGKILL"):
            env.step(ACTIONS)
        wait_until(lambda: not any(map(is_alive, pids)), "the environments' processes have ended")
        env.reset()
        pids, simulator = env.get_attr("pid"), env.status()["pid"]
        env.call("plan", f"until:{gate}")
        env.step_async(ACTIONS)
        wait_until(lambda: env.status()["state"] == "busy", "the step runs")
        parent = int(Path(f"/proc/{simulator}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, (*pids, simulator))), "all have ended")
        with pytest.raises(SessionLost):
            env.step_wait()


def test_where_episodes_ended_is_kept_by_each(isolated_home: Any) -> None:
    with make(env=SHORT, autoreset_mode="SameStep", capture_state=True) as env:
        env.reset(seed=0)
        shape = env.action_space.shape
        assert shape is not None
        actions = np.zeros(shape, env.action_space.dtype)
        actions[:, 0] = [0.2, 1.0, 0.9]
        ended: list[int] = []
        for _ in range(2):
            terminated = env.step(actions)[2]
            ended += np.flatnonzero(terminated).tolist()
            assert list(env.final_states) == np.flatnonzero(terminated).tolist()
        assert ended == [0]
        states = env.get_states([2, 0])
        env.set_states(states, [0, 2])
        assert [state.values.tolist() for state in env.get_states([0, 2])] == [each.values.tolist() for each in states]
