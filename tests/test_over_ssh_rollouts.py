"""Rollouts over a real SSH login: the policy acts in an interpreter that is not the client's, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest
from leak_check import is_alive
from rollout_loops import Meanwhile, assert_same, local_rollout
from server_process import HandServer
from ssh_client import FAR_PYTHON, ROOT, nothing_is_left, over_ssh
from ssh_server import SshServer

from remote_env import LocalFolder, RemoteEnv
from remote_env.errors import SessionLost, StartError
from remote_env.policy import load_policy
from remote_env.tasks import TRANSFER_CUBE_ID, register_tasks

__all__ = ["nothing_is_left"]

EXPERT = "scripted:aloha-transfer-cube"
CHECKPOINT = ROOT / "ckpt" / "act_sim_transfer_cube_scripted_zscore_example"
ALOHA = {"env": TRANSFER_CUBE_ID, "env_kwargs": {"obs_type": "state"}}
POLICIES = "tasks_for_tests.policies"
ON_DEMAND = {"env": "tasks_for_tests.misbehaving:OnDemand", "server_env": {"PYTHONPATH": str(ROOT / "tests")}}


def test_an_expert_s_rollout_is_bit_for_bit_a_loop_here(ssh_server: SshServer) -> None:
    register_tasks()
    with over_ssh(ssh_server, **ALOHA, policy=EXPERT) as env:
        [there] = env.rollout(seed=77, want=("observation", "action", "state", "info"))
    with gymnasium.make(TRANSFER_CUBE_ID, obs_type="state") as env, load_policy(EXPERT) as policy:
        assert_same(there, local_rollout(env, policy, 77))
    assert there.success
    assert len(there.states) == there.steps + 1


def test_a_checkpoint_is_sent_along_and_what_it_needs_there_is_named(ssh_server: SshServer) -> None:
    lacks = subprocess.run([FAR_PYTHON, "-c", "import onnxruntime"], capture_output=True, check=False)
    assert lacks.returncode != 0, "the far interpreter is to lack onnxruntime"
    with pytest.raises(
        StartError, match=rf"{CHECKPOINT.name}' could not be opened: .*needs 'onnxruntime'.*pip install"
    ):
        over_ssh(ssh_server, **ALOHA, policy=LocalFolder(CHECKPOINT)).start()


def test_a_policy_of_one_s_own_is_sent_along(ssh_server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"factory": "mine.py:make"}')
    (tmp_path / "mine.py").write_text(
        "from tasks_for_tests.policies import Counting\ndef make(**options):\n    return Counting()\n"
    )
    with over_ssh(ssh_server, **ON_DEMAND, policy=LocalFolder(tmp_path)) as env:
        assert env.rollout(4)[0].actions[:, 0].tolist() == [1, 1, 1, 2]


def test_a_policy_server_is_reached_from_the_far_end_without_a_tunnel_of_its_own(ssh_server: SshServer) -> None:
    token = "e" * 64
    model = ("-m", f"{POLICIES}:Counting")
    with HandServer(*model, program="start_policy_server.py", REMOTE_ENV_TOKEN=token) as server:
        address = f"127.0.0.1:{server.wait_listening().port}"
        with over_ssh(ssh_server, **ON_DEMAND, policy=address, policy_kwargs={"token": token}) as env:
            assert env.rollout(4)[0].actions[:, 0].tolist() == [1, 1, 1, 2]
            assert token not in env.logs()


# In the middle of a slice


@pytest.fixture
def waiting(ssh_server: SshServer, tmp_path: Path) -> Iterator[tuple[RemoteEnv, Path, Path]]:
    """A policy that waits at its second inference, the file that lets it go on, and the one that says that it waits."""
    gate, mark = tmp_path / "gate", tmp_path / "mark"
    server_env = {**ON_DEMAND["server_env"], "POLICY_GATE": str(gate), "POLICY_MARK": str(mark)}
    arguments = {**ON_DEMAND, "server_env": server_env, "policy": f"{POLICIES}:make_waiting", "idle_timeout_s": 0.2}
    with over_ssh(ssh_server, **arguments) as env:
        env.start()
        yield env, gate, mark
        gate.touch()


@pytest.mark.fault
def test_ctrl_c_stops_it_and_the_next_one_begins_anew(waiting: tuple[RemoteEnv, Path, Path]) -> None:
    env, gate, mark = waiting
    with Meanwhile(mark, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        env.rollout(4)
    gate.touch()
    assert env.resume()[0][1] == 4.0
    assert env.rollout(2)[0].observations[-1, 1] == 6.0  # the same simulator, every step run once


@pytest.mark.fault
def test_a_killed_simulator_is_told_and_the_next_one_begins_anew(waiting: tuple[RemoteEnv, Path, Path]) -> None:
    env, gate, mark = waiting
    pid = env.status()["pid"]
    with Meanwhile(mark, lambda: os.kill(pid, signal.SIGKILL)), pytest.raises(SessionLost, match="SIGKILL in rollout"):
        env.rollout(4)
    assert not is_alive(pid)
    gate.touch()
    assert env.rollout(2)[0].steps == 2


@pytest.mark.fault
def test_a_killed_login_is_followed_by_another_and_the_slice_goes_on(
    waiting: tuple[RemoteEnv, Path, Path], ssh_server: SshServer
) -> None:
    env, gate, mark = waiting

    def cut() -> None:
        ssh_server.signal_connections(signal.SIGKILL)
        gate.touch()

    with Meanwhile(mark, cut):
        assert env.rollout(4)[0].steps == 4
    assert env.rollout(2)[0].observations[-1, 1] == 6.0  # the same simulator, every step run once
