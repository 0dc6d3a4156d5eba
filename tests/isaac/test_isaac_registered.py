"""Isaac Lab's own registered task, served by hand; and what is said of tasks that there are not."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import START_TIMEOUT_S
from leak_check import wait_until

from remote_env import RemoteEnv
from remote_env.errors import ConfigError

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "examples" / "isaac" / "assets"
SERVER = ROOT / "servers" / "isaac_task_server.py"
OVERRIDES = {
    "scene.ground.spawn.usd_path": str(ASSETS / "ground.usda"),
    "scene.ground.spawn.color": "null",
    "scene.cartpole.spawn.usd_path": str(ASSETS / "cartpole.usda"),
}


@pytest.fixture
def served_port(isaac_python: str, isolated_home: Path) -> Iterator[int]:
    command = [
        isaac_python,
        str(SERVER),
        "--task",
        "Isaac-Cartpole-Direct",
        "--physics",
        "newton_mjwarp",
        "--port",
        "0",
    ]
    for path, value in OVERRIDES.items():
        command += ["--set", f"{path}={value}"]
    log = isolated_home / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ))
    try:
        port = wait_until(lambda: _port(log) or server.poll() is not None, "the server listens", START_TIMEOUT_S)
        assert type(port) is int, log.read_text()
        yield port
    finally:
        server.send_signal(signal.SIGINT)
        status = server.wait(60)
    assert status == 0, log.read_text()


def _port(log: Path) -> int | None:
    for line in log.read_text().splitlines():
        if "127.0.0.1:" in line:
            return int(line.rpartition("127.0.0.1:")[2].split()[0].rstrip(".,;"))
    return None


def test_a_registered_task_is_served_by_hand(served_port: int) -> None:
    with RemoteEnv(port=served_port, start_timeout_s=START_TIMEOUT_S, reset_timeout_s=START_TIMEOUT_S) as env:
        observation, _ = env.reset(seed=0)
        assert env.observation_space.shape == (4,)
        observation, _, _, _, _ = env.step(np.ones(1, np.float32))
        assert env.observation_space.contains(observation)
        state = env.get_state()
        assert set(state["cartpole"].layout.joint_names) == {"slider_to_cart", "cart_to_pole"}
        assert env.unwrapped.remote_spec["id"] == "Isaac-Cartpole-Direct"


def test_an_unknown_task_lists_those_near_it(isaac_python: str) -> None:
    env = RemoteEnv(env="Isaac-Cartpol-Dirct", simulator="isaaclab", python=isaac_python, start_timeout_s=120)
    with pytest.raises(ConfigError, match=r"among the \d{3} of Isaac Lab here; near it: Isaac-Cartpole-Direct"):
        env.reset()


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("isaac_tasks.py:Swing", {}, "has no 'Swing'"),
        ("isaac_tasks.py:SwingEnv", {"cfg": {"scene.arn": 1}}, r"scene \(SwingSceneCfg\) has no 'arn'; it has arm"),
        ("isaac_tasks.py:SwingEnv", {"cfg_class": "NoCfg"}, "cfg_class='NoCfg'"),
        ("isaac_tasks.py:SwingEnv", {"arguments": ["--no-such-flag"]}, "unrecognized arguments: --no-such-flag"),
    ],
)
def test_what_cannot_be_made_is_said_before_a_simulation_starts(
    isaac_python: str, name: str, kwargs: dict[str, object], said: str
) -> None:
    task = str(Path(__file__).parent / name)
    env = RemoteEnv(env=task, env_kwargs=kwargs, simulator="isaaclab", python=isaac_python, start_timeout_s=120)
    with pytest.raises(ConfigError, match=said):
        env.reset()


def test_a_task_for_isaac_sim_says_what_is_missing(isaac_python: str) -> None:
    env = RemoteEnv(
        env="Isaac-Cartpole-Direct",
        env_kwargs={"physics": "isaacsim_physx"},
        simulator="isaaclab",
        python=isaac_python,
        start_timeout_s=120,
    )
    with pytest.raises(ConfigError, match=r"Isaac Sim.*newton_mjwarp"):
        env.reset()
