"""The main job over a real SSH login, served by an interpreter that is not the client's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from ssh_client import FAR_PYTHON, ROOT, free_port, nothing_is_left, over_ssh
from ssh_server import SshServer

from remote_env import LocalFolder
from remote_env.errors import AuthError, ConfigError, HostKeyError, StartError
from remote_env.tasks import register_tasks

__all__ = ["nothing_is_left"]

ALOHA = "remote_env/AlohaTransferCube-v0"


def rollout(env: Any, actions: Any) -> list[Any]:
    observation, info = env.reset(seed=7)
    steps: list[Any] = [(observation, info)]
    for action in actions:
        steps.append(env.step(action))
        if steps[-1][2] or steps[-1][3]:
            break
    return steps


def test_cartpole_is_bit_equal_through_another_interpreter(ssh_server: SshServer) -> None:
    actions = np.random.default_rng(0).integers(0, 2, 60)
    local = rollout(gymnasium.make("CartPole-v1"), actions)
    with over_ssh(ssh_server, env="CartPole-v1") as env:
        assert env.facts["executable"] != sys.executable
        remote = rollout(env, actions)
        env.reset(seed=7)
        tried, snapshot = env.try_chunks(actions[None], want="all"), env.snapshot()
        env.step_many(actions)
        env.restore(snapshot)
        assert env.step_many(actions).observations.tobytes() == tried.observations[0].tobytes()
    assert len(remote) == len(local) > 10
    for ours, theirs in zip(remote, local, strict=True):
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1:] == theirs[1:]


def test_aloha_runs_where_gym_aloha_is_not_installed_and_is_bit_equal(ssh_server: SshServer) -> None:
    lacks = subprocess.run([FAR_PYTHON, "-c", "import gym_aloha"], capture_output=True, check=False)
    assert lacks.returncode != 0, "the far interpreter is to lack gym-aloha"
    register_tasks()
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (40, 14)).astype(np.float32)
    here = gymnasium.make(ALOHA, obs_type="agent_pos")
    local = rollout(here, actions)
    with over_ssh(ssh_server, env=ALOHA, env_kwargs={"obs_type": "agent_pos"}, capture_state=True) as env:
        remote = rollout(env, actions)
        state = env.get_state()
    for ours, theirs in zip(remote, local, strict=True):
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1:] == theirs[1:]
    assert state == here.unwrapped.get_scene_state()
    here.close()


def test_less_is_asked_of_an_interpreter_without_coders(ssh_server: SshServer) -> None:
    counting: dict[str, Any] = {"env": "remote_env.testing.counting:make", "env_kwargs": {"image": True}}
    with over_ssh(ssh_server, **counting, observation_keys=["state"], image_every=2, timing=True) as env:
        assert list(env.reset(seed=0)[0]) == ["state"]
        assert env.step(np.zeros(2))[4]["timing"]["network_s"] >= 0
    with over_ssh(ssh_server, **counting, codecs="auto") as env:
        image = env.reset(seed=0)[0]["image"]
        assert image.shape == (480, 640, 3)
        assert env.transport_info()["codecs"]["codecs"] == {"image": "raw"}
    lacks = subprocess.run([FAR_PYTHON, "-c", "import zstandard"], capture_output=True, check=False).returncode != 0
    if lacks:
        with pytest.raises(ConfigError, match=r"the server cannot code 'image' as 'zstd'.*remote-env\[images\]"):
            over_ssh(ssh_server, **counting, codecs="zstd").start()


def test_the_replay_example_runs_through_sshd(ssh_server: SshServer, tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "known_hosts").write_text(ssh_server.known_hosts_line())
    host = ["--host", "127.0.0.1", "--ssh-port", str(ssh_server.port), "--port", str(free_port())]
    login = ["--identity", str(ssh_server.identity_file), "--python", FAR_PYTHON]
    what = ["--episodes", "1", "--max-steps", "12", "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "remote_replay.py"), *host, *login, *what],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["episodes"], report["steps"]) == (1, 12)
    assert (report["max_position_error_m"], report["max_joint_error_rad"]) == (0.0, 0.0)
    assert "127.0.0.1" in report["host"]
    assert (tmp_path / "out" / "videos" / "episode_000.mp4").stat().st_size > 1000


def test_two_clients_that_race_for_a_port_share_one_server(ssh_server: SshServer) -> None:
    port, started, failures = free_port(), [], []
    barrier = threading.Barrier(2)

    def run() -> None:
        try:
            env = over_ssh(ssh_server, port, env="CartPole-v1", max_sessions=2)
            barrier.wait(30)
            env.start()
            env.reset(seed=0)
            started.append(env)
        except BaseException as error:  # noqa: BLE001  reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    owners = [env for env in started if env._life.server.started]
    assert len(owners) == 1
    for env in sorted(started, key=lambda env: env in owners):
        env.close()


def test_a_client_attaches_to_a_server_started_by_hand(ssh_server: SshServer) -> None:
    port = free_port()
    script = [sys.executable, str(ROOT / "servers" / "task_server.py"), "--env", "CartPole-v1", "--port", str(port)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(ssh_server.cache)}
    serving = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert serving.stdout is not None
        assert any("serving" in line for line in serving.stdout)
        with over_ssh(ssh_server, port) as env:
            assert env.remote_spec["id"] == "CartPole-v1"
            env.reset(seed=0)
        with pytest.raises(ConfigError, match="serves env='CartPole-v1'"):
            over_ssh(ssh_server, port, env="Acrobot-v1").start()
        assert serving.poll() is None
    finally:
        serving.send_signal(signal.SIGINT)
        assert serving.wait(20) == 0
        serving.stdout.close()


def test_nothing_at_the_port_and_no_task_says_what_to_name(ssh_server: SshServer) -> None:
    with pytest.raises(ConfigError, match=r"no task server of yours listens on port .* env="):
        over_ssh(ssh_server, free_port()).start()


def test_a_task_module_that_the_far_end_lacks_can_be_uploaded(ssh_server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "far_tasks.py").write_text(
        "import gymnasium\n"
        "def make(folder=None):\n"
        "    env = gymnasium.make('CartPole-v1')\n"
        "    env.unwrapped.remote_calls = ('note',)\n"
        "    env.unwrapped.note = open(folder + '/note.txt').read() if folder else ''\n"
        "    return env\n"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "note.txt").write_text("it came along")
    with pytest.raises(ConfigError, match=r"cannot import 'far_tasks'.*upload="):
        over_ssh(ssh_server, env="far_tasks:make").start()
    kwargs = {"folder": LocalFolder(tmp_path / "data")}
    with over_ssh(ssh_server, env="far_tasks:make", env_kwargs=kwargs, upload=[tmp_path / "far_tasks.py"]) as env:
        assert env.call("note") == "it came along"
        env.reset(seed=0)


def test_a_script_of_ones_own_serves(ssh_server: SshServer, tmp_path: Path) -> None:
    script = tmp_path / "my_server.py"
    script.write_text("import gymnasium\ndef make_env():\n    return gymnasium.make('CartPole-v1')\n")
    env = over_ssh(ssh_server, env="unused")
    env.start_remote_server(server_script=str(script))
    assert env.setup_tunnel() is env.setup_tunnel()
    assert env.connect() is env.connect()
    assert env.remote_spec["id"] == "CartPole-v1"
    env.close()


def test_a_missing_package_is_named_with_its_interpreter(ssh_server: SshServer, tmp_path: Path) -> None:
    subprocess.run([FAR_PYTHON, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True, timeout=60)
    python = str(tmp_path / "bare" / "bin" / "python")
    with pytest.raises(StartError, match=rf"not installed in {python}: numpy and gymnasium; .* python="):
        over_ssh(ssh_server, env="CartPole-v1", python=python).start()


def test_a_missing_interpreter_is_named(ssh_server: SshServer) -> None:
    with pytest.raises(StartError, match=r"python3\.99 .*python="):
        over_ssh(ssh_server, env="CartPole-v1", python="python3.99").start()


def test_a_callable_needs_the_same_python_minor_version(ssh_server: SshServer) -> None:
    far = subprocess.run([FAR_PYTHON, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, check=True)
    env = over_ssh(ssh_server, env=lambda: gymnasium.make("CartPole-v1"))
    if int(far.stdout) == sys.version_info[1]:
        env.reset(seed=0)
    else:
        with pytest.raises(ConfigError, match=r"pickled by Python .* python="):
            env.start()
    env.close()


def test_a_host_never_seen_and_a_wrong_key_are_refused(ssh_server: SshServer, tmp_path: Path) -> None:
    with pytest.raises(HostKeyError, match=r"SHA256:.*accept_new_host_key=True"):
        over_ssh(ssh_server, env="CartPole-v1", known_hosts_file=str(tmp_path / "nobody")).start()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    with pytest.raises(AuthError, match="other"):
        over_ssh(ssh_server, env="CartPole-v1", identity_file=str(tmp_path / "other")).start()


def test_the_token_of_the_environment_serves_over_ssh_too(
    ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("REMOTE_ENV_TOKEN", "c" * 64)
    script = [sys.executable, str(ROOT / "servers" / "task_server.py"), "--env", "CartPole-v1", "--port", str(port)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}  # whose records the login does not see
    serving = subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert serving.stdout is not None
        assert any("serving" in line for line in serving.stdout)
        with over_ssh(ssh_server, port) as env:
            env.reset(seed=0)
    finally:
        serving.terminate()
        assert serving.wait(20) == 0
        serving.stdout.close()
