"""What goes wrong with batches: the wrong class, the wrong number, bad tasks, late steps, deaths; and what is left."""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from leak_check import isolated_home, no_leaks, wait_until
from rollout_loops import Meanwhile
from ssh_client import free_port

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.errors import ConfigError, DeadlineExceeded, InputError, SessionLost, TaskError, Unsupported

__all__ = ["isolated_home", "no_leaks"]

ROOT = Path(__file__).resolve().parents[1]
ON_DEMAND = "tasks_for_tests.misbehaving:OnDemand"
SWARM = "tasks_for_tests.batches:make_swarm"
ACTIONS = np.zeros((2, 2), np.float32)


# The wrong class, the wrong number


def test_a_server_of_a_batch_and_who_may_take_it(isolated_home: Any) -> None:
    port = free_port()
    with RemoteVectorEnv(port=port, env="CartPole-v1", num_envs=3, max_sessions=2) as env:
        env.reset(seed=0)
        single = RemoteEnv(port=port)
        with pytest.raises(ConfigError, match=r"holds a batch of 3 environments.*RemoteVectorEnv"):
            single.start()
        single = RemoteEnv(port=port, env="CartPole-v1")
        with pytest.raises(ConfigError, match="RemoteVectorEnv"):
            single.start()
        for wrong in (
            RemoteVectorEnv(port=port, num_envs=2),
            RemoteVectorEnv(port=port, num_envs=2, env="CartPole-v1"),
        ):
            with pytest.raises(ConfigError, match=r"a batch of 3 environments, and asked for was num_envs=2"):
                wrong.start()
        other = RemoteVectorEnv(port=port, num_envs=3, env="Pendulum-v1")
        with pytest.raises(ConfigError, match=r"serves env='CartPole-v1', and asked for was env='Pendulum-v1'"):
            other.start()
        env.step(np.zeros(3, np.int64))  # none of them has troubled it


def test_a_server_of_one_environment_refuses_a_batch() -> None:
    port = free_port()
    with RemoteEnv(port=port, env="CartPole-v1", max_sessions=2) as env:
        env.reset(seed=0)
        batch = RemoteVectorEnv(port=port)
        with pytest.raises(ConfigError, match=r"that server holds one environment.*RemoteEnv"):
            batch.start()
        env.step(0)


def test_task_server_serves_a_batch_to_whoever_asks(isolated_home: Any) -> None:
    port = free_port()
    program = [sys.executable, str(ROOT / "servers" / "task_server.py")]
    command = [*program, "--env", "CartPole-v1", "--num-envs", "2", "--port", str(port)]
    serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert serving.stdout is not None
        wait_until(lambda: "serving" in serving.stdout.readline(), "the server listens", 30.0)  # type: ignore[union-attr]
        with RemoteVectorEnv(port=port) as env:
            assert (env.num_envs, env.reset(seed=0)[0].shape) == (2, (2, 4))
    finally:
        serving.send_signal(signal.SIGINT)
        serving.communicate(timeout=30)
    refused = subprocess.run(
        [*command, "--policy", "scripted:x"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (refused.returncode, "--num-envs makes a batch" in refused.stderr) == (1, True)


def test_what_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="num_envs= says how many"):
        RemoteVectorEnv(env="CartPole-v1")
    for num_envs in (0, -1, 1.5, True):
        env = RemoteVectorEnv(env="CartPole-v1", num_envs=num_envs)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="a number of environments from 1 on"):
            env.start()
        env.close()
    with pytest.raises(Unsupported, match="policy= is for RemoteEnv"):
        RemoteVectorEnv(env="CartPole-v1", num_envs=2, policy="scripted:x")
    with pytest.raises(Unsupported, match="local_pixels= is for RemoteEnv"):
        RemoteVectorEnv(env="CartPole-v1", num_envs=2, local_pixels=True)
    RemoteVectorEnv(env="CartPole-v1", num_envs=2, local_pixels=False).close()
    with pytest.raises(TypeError, match=r"RemoteVectorEnv has no argument ssh_key=.*identity_file="):
        RemoteVectorEnv(env="CartPole-v1", num_envs=2, ssh_key="x")
    with pytest.raises(TypeError, match=r"num_envs= \(did you mean RemoteVectorEnv\(num_envs=…\)"):
        RemoteEnv(env="CartPole-v1", num_envs=2)
    with pytest.raises(Unsupported, match=r"num_envs=3.*RemoteVectorEnv\(…, num_envs=3\)"):
        RemoteEnv(env="CartPole-v1").start_remote_server(num_envs=3)
    env = RemoteVectorEnv(env="CartPole-v1", num_envs=2)
    with pytest.raises(ConfigError, match="made with num_envs=2"):
        env.start_remote_server(num_envs=3)
    env.close()
    with pytest.raises(ConfigError, match="num_envs= says how many"):
        RemoteVectorEnv().start_remote_server(task_name="CartPole-v1")


def test_a_batch_that_cannot_be_made_is_told_as_one_environment_is() -> None:
    env = RemoteVectorEnv(env="CartPole-v1", num_envs=2, autoreset_mode="Sometimes")
    with pytest.raises(ConfigError, match="autoreset_mode='Sometimes': allowed are NextStep"):
        env.start()
    env.close()


def test_a_vector_environment_of_the_functions_own() -> None:
    with RemoteVectorEnv(env=SWARM, num_envs=2, vectorization_mode="native") as env:
        env.reset(seed=4)
        observations, rewards, *_ = env.step(np.ones((2, 1), np.float32))
        assert observations.tolist() == [[1.0, 1.0]] * 2
        assert (rewards.dtype, rewards.tolist()) == (np.int32, [0, 1])
        with pytest.raises(Unsupported, match="resets all of its environments at once"):
            env.reset(options={"reset_mask": np.array([True, False])})
        with pytest.raises(Unsupported, match=r"has no call\(\)"):
            env.call("render_mode")
        with pytest.raises(Unsupported, match="no scene states"):
            env.get_states()
        env.step(np.ones((2, 1), np.float32))


# Late, dead, raised


@pytest.fixture(scope="module")
def shared(isolated_home: Path) -> Iterator[RemoteVectorEnv]:
    with RemoteVectorEnv(env=ON_DEMAND, num_envs=2) as env:
        yield env


@pytest.fixture
def batch(shared: RemoteVectorEnv) -> RemoteVectorEnv:
    shared.reset()
    return shared


def test_a_task_that_raises_and_one_that_cannot_cross(batch: RemoteVectorEnv) -> None:
    batch.call("plan", "raise")
    with pytest.raises(TaskError, match="the cube fell") as caught:
        batch.step(ACTIONS)
    assert "misbehaving.py" in caught.value.remote_traceback
    batch.call("plan", "uncodable")
    with pytest.raises(TaskError, match=r"it ran, but result\['objects'\].*lock"):
        batch.step(ACTIONS)
    assert batch.reset()[0].shape == (2, 2)


def test_a_late_step_is_resumed_once_or_abandoned(batch: RemoteVectorEnv, isolated_home: Path) -> None:
    gate = isolated_home / "gate"
    steps = batch.get_attr("total_steps")[1]
    for resumes in (True, False):
        batch.call("plan", f"until:{gate}")
        batch._step_timeout_s = 0.5
        with pytest.raises(DeadlineExceeded, match=r"busy in step.*resume\(\)"):
            batch.step(ACTIONS)
        with pytest.raises(InputError, match="was interrupted"):
            batch.step(ACTIONS)
        gate.touch()
        batch._step_timeout_s = 60.0
        if resumes:
            late = batch.resume()
            assert late is not None
            assert late[0][1, 1] == steps + 1
            assert batch.resume() is None
        else:
            batch.reset()
        gate.unlink()
    assert batch.step(ACTIONS)[0][1, 1] == steps + 3


def test_ctrl_c_in_a_step_leaves_it_to_resume_and_a_cut_is_not_noticed(isolated_home: Path) -> None:
    gate = isolated_home / "other_gate"
    mark = isolated_home / "mark"
    mark.touch()
    with RemoteVectorEnv(env=ON_DEMAND, num_envs=2) as env:
        env.reset()
        env.call("plan", f"until:{gate}")
        with Meanwhile(mark, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
            env.step(ACTIONS)
        gate.touch()
        late = env.resume()
        assert late is not None
        assert late[1].tolist() == [1.0, 1.0]
        env._life.session._transport._sock.shutdown(2)
        assert env.step(ACTIONS)[0][:, 1].tolist() == [2.0, 2.0]  # which counts the steps
    gate.unlink()
    mark.unlink()


def test_death_in_a_step_is_told_and_reset_starts_anew(isolated_home: Any) -> None:
    with RemoteVectorEnv(env=ON_DEMAND, num_envs=2) as env:
        with pytest.raises(InputError, match="no episode yet"):
            env.step(ACTIONS)
        with pytest.raises(InputError, match=r"reset\(\) all environments before some"):
            env.reset(options={"reset_mask": np.array([True, False])})
        env.reset()
        env.call("plan", "segv")
        with pytest.raises(SessionLost, match="SIGSEGV"):
            env.step(ACTIONS)
        for call in (env.get_states, env.resume):
            with pytest.raises(SessionLost):
                call()
        assert env.reset()[0][:, 1].tolist() == [0.0, 0.0]
        assert env.status()["state"] == "ready"


# What it is


def test_it_is_made_again_from_its_spec_and_from_a_pickle() -> None:
    env = RemoteVectorEnv(env="CartPole-v1", num_envs=2, autoreset_mode="SameStep", step_timeout_s=9.0)
    assert (env.num_envs, str(env)) == (2, "<RemoteVectorEnv CartPole-v1 on local>")
    for again in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert again._given_arguments() == env._given_arguments()
    assert env.status() == {"state": "not started"}
    made = gymnasium.make_vec(env.spec)
    env.close()
    assert (type(made), made.num_envs, made.metadata["autoreset_mode"].name) == (RemoteVectorEnv, 2, "SAME_STEP")
    assert made.spec is not None
    again = gymnasium.make_vec(made.spec)
    assert again.metadata["autoreset_mode"].name == "SAME_STEP"
    for each in (made, again):
        each.reset(seed=0)
        each.close()
        assert each.closed
    with pytest.raises(ConfigError, match="closed"):
        made.step(np.zeros(2, np.int64))


def test_make_vec_makes_a_batch_on_one_server() -> None:
    with gymnasium.make_vec("Remote-v0", num_envs=3, env="CartPole-v1") as env:  # type: ignore[attr-defined]
        assert type(env) is RemoteVectorEnv
        assert env.reset(seed=0)[0].shape == (3, 4)
        assert env.status()["sessions"] == 1
