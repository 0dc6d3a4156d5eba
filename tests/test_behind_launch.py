"""RemoteEnv behind `launch=`: the whole way, into another network namespace, over the one stream."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from ssh_client import nothing_is_left, over_ssh
from ssh_server import SshServer

from remote_env.ssh import LaunchedShell, ServerHandle, SshConnection, list_servers

sys.path.insert(0, str(Path(__file__).parent / "ssh"))

from launching import network_namespace, write_pty_prefix

__all__ = ["nothing_is_left"]

LIMIT_S = 20.0

# A megabyte of pixels that depend on the step, so that a swapped or torn frame shows.
_TASK = """
import gymnasium, numpy as np

class Pixels(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (1024, 1024), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observe(), {}

    def step(self, action):
        self.count += 1
        return self.observe(), float(action), False, False, {}

    def observe(self):
        return np.full((1024, 1024), self.count, np.uint8) + np.arange(1024, dtype=np.uint8)
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    with network_namespace() as prefix:
        yield prefix


def test_cartpole_is_bit_equal_behind_a_terminal_in_another_namespace(
    ssh_server: SshServer, namespace: str, tmp_path: Path
) -> None:
    here = gymnasium.make("CartPole-v1")
    with over_ssh(ssh_server, env="CartPole-v1", launch=f"{namespace} {write_pty_prefix(tmp_path)}") as env:
        assert env.reset(seed=7)[0].tobytes() == here.reset(seed=7)[0].tobytes()
        for action in np.random.default_rng(0).integers(0, 2, 30):
            ours, theirs = env.step(action), here.step(action)
            assert ours[0].tobytes() == theirs[0].tobytes()
            assert ours[1:] == theirs[1:]
            if theirs[2]:
                break
        assert env.status()["state"] == "ready"
        assert "serving CartPole-v1" in env.logs(50)
    here.close()


def test_megabyte_observations_and_files_of_ones_own_cross_the_stream(
    ssh_server: SshServer, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "pixels.py").write_text(_TASK)
    with over_ssh(ssh_server, env="pixels:Pixels", upload=[tmp_path / "pixels.py"], launch=namespace) as env:
        row = np.arange(1024, dtype=np.uint8)
        assert (env.reset(seed=1)[0] == row).all()
        for count in range(1, 30):
            assert (env.step(1)[0] == (row + np.uint8(count))).all()


def test_a_warm_simulator_behind_the_prefix_is_taken_again(ssh_server: SshServer, namespace: str) -> None:
    arguments: dict[str, Any] = {"env": "CartPole-v1", "launch": namespace, "idle_timeout_s": 20.0}
    with over_ssh(ssh_server, keep=True, **arguments) as env:
        pid = env.status()["pid"]
        env.reset(seed=1)
    with over_ssh(ssh_server, reuse=True, **arguments) as env:
        assert env.status()["pid"] == pid
        env.reset(seed=1)
    with SshConnection(ssh_server.target, **ssh_server.login) as connection:
        shell = LaunchedShell(connection, namespace)
        (record,) = list_servers(shell, time.monotonic() + LIMIT_S)
        ServerHandle.from_record(shell, record["port"], record).stop(time.monotonic() + LIMIT_S)


def test_after_a_killed_relay_the_episode_goes_on_through_another(ssh_server: SshServer, namespace: str) -> None:
    local = gymnasium.make("CartPole-v1")
    local.reset(seed=1)
    with over_ssh(ssh_server, env="CartPole-v1", launch=namespace) as env:
        env.reset(seed=1)
        assert env.step(0)[0].tobytes() == local.step(0)[0].tobytes()
        for pid in ssh_server.processes():
            if b"exec(compile(source" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        assert env.step(1)[0].tobytes() == local.step(1)[0].tobytes()
