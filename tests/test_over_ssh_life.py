"""Over a real SSH login: servers kept and taken again, scripts of one's own, tunnels, logs, and hung simulators."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from leak_check import is_alive, wait_until
from ssh_client import FAR_PYTHON, ROOT, nothing_is_left, over_ssh, ssh_arguments
from ssh_server import SshServer

from remote_env import RemoteEnv
from remote_env.env.progress import PHASES
from remote_env.errors import ConfigError, DeadlineExceeded, StartError

__all__ = ["nothing_is_left"]

SLOW = {"env": "tasks_for_tests.slow:Slow", "server_env": {"PYTHONPATH": str(ROOT / "tests")}}


@pytest.fixture
def warm(ssh_server: SshServer) -> Iterator[int]:
    """The pid of a warm simulator of CartPole that nobody holds; its server is ended after the test."""
    with over_ssh(ssh_server, env="CartPole-v1", keep=True) as env:
        env.reset(seed=0)
        pid = int(env.status()["pid"])
    yield pid
    place = over_ssh(ssh_server, env="CartPole-v1").setup_tunnel()
    for record in place.list(soon()):
        place.stop(record, soon())
    place.close()


def soon() -> float:
    return time.monotonic() + 20


def test_a_warm_server_is_taken_again_in_under_two_seconds(ssh_server: SshServer, warm: int) -> None:
    began = time.monotonic()
    with over_ssh(ssh_server, env="CartPole-v1", reuse=True) as env:
        env.reset(seed=0)
        assert time.monotonic() - began < 2.0 * 2  # on a machine that does other things too
        assert env.status()["pid"] == warm
        [record] = env.setup_tunnel().list(soon())
    assert is_alive(warm)
    with over_ssh(ssh_server, session=record.id[:8]) as env:
        assert env.status()["pid"] == warm
    with pytest.raises(
        ConfigError, match=rf"names no server of yours on .*; there run: {record.id} \(CartPole-v1, port"
    ):
        over_ssh(ssh_server, session="nothing").start()


def test_cleanup_old_ends_what_a_killed_client_left(ssh_server: SshServer, warm: int) -> None:
    with over_ssh(ssh_server, env="Acrobot-v1", resume="never") as env:
        env.reset(seed=0)
        abandoned = env.status()["pid"]
        for pid in ssh_server.connection_pids():  # as a cut link does
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: env.status()["state"] == "unreachable", "it is noticed")
        with over_ssh(ssh_server, env="CartPole-v1", cleanup_old=True) as other:
            other.reset(seed=0)
        assert not is_alive(abandoned)
        assert is_alive(warm)


def test_a_script_of_ones_own_reads_and_imports_what_lies_beside_it(ssh_server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text(
        "from pathlib import Path\nimport gymnasium\nfrom beside import LENGTH\nimport pack.inner\n"
        "def make_env(extra=0):\n"
        "    env = gymnasium.make('CartPole-v1')\n"
        "    env.unwrapped.remote_calls = ('note',)\n"
        "    note = (Path(__file__).parent / 'note.txt').read_text()\n"
        "    env.unwrapped.note = note + str(LENGTH + pack.inner.MORE + extra)\n"
        "    return env\n"
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "beside.py").write_text("LENGTH = 3\n")
    (tmp_path / "elsewhere" / "note.txt").write_text("it came along: ")
    (tmp_path / "elsewhere" / "pack").mkdir()
    (tmp_path / "elsewhere" / "pack" / "__init__.py").touch()
    (tmp_path / "elsewhere" / "pack" / "inner.py").write_text("MORE = 4\n")
    upload = [tmp_path / "elsewhere" / name for name in ("beside.py", "note.txt", "pack")]
    arguments: dict[str, Any] = {
        "server_script": tmp_path / "serve.py",
        "upload": upload,
        "env_kwargs": {"extra": 1},
    }
    with over_ssh(ssh_server, **arguments) as env:
        assert env.call("note") == "it came along: 8"


def test_missing_requirements_over_ssh(ssh_server: SshServer) -> None:
    env = over_ssh(ssh_server, env="CartPole-v1", requirements=["numpy", "no-such-package-of-ours>=2"])
    with pytest.raises(StartError, match=rf"no-such-package-of-ours.*{FAR_PYTHON}\S* -m pip install") as caught:
        env.start()
    assert caught.value.phase == "checking"


@pytest.mark.parametrize("tunnel", ["openssh", "sshtunnel"])
def test_other_tunnels_carry_the_data(ssh_server: SshServer, tunnel: str) -> None:
    with over_ssh(ssh_server, env="CartPole-v1", tunnel=tunnel) as env:
        observation, _ = env.reset(seed=7)
        assert observation.tobytes() == gymnasium.make("CartPole-v1").reset(seed=7)[0].tobytes()


def test_a_tunnel_that_there_is_not(ssh_server: SshServer) -> None:
    with pytest.raises(ConfigError, match=r"carrier-pigeon.*channel"):
        over_ssh(ssh_server, env="CartPole-v1", tunnel="carrier-pigeon").start()


def test_problems_and_lines_of_the_far_log_become_records(
    ssh_server: SshServer, caplog: pytest.LogCaptureFixture
) -> None:
    name = "remote_env.remote.127.0.0.1"
    with caplog.at_level(logging.INFO, name), over_ssh(ssh_server, lease_timeout_s=1.5, **SLOW) as env:
        env.reset(seed=0)
        env.call("perform", "say:the stage is open;cuda")
        for level, text in ((logging.INFO, "the stage is open"), (logging.ERROR, "CUDA error")):
            wait_until(lambda: any(is_record(entry, name, level, text) for entry in caplog.records), text)  # noqa: B023


def is_record(record: logging.LogRecord, name: str, level: int, text: str) -> bool:
    return (record.name, record.levelno) == (name, level) and text in record.getMessage()


def test_logs_files_and_processes_of_the_far_end(ssh_server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "kit.log").write_text("fine\nVkResult: ERROR_DEVICE_LOST\n")
    with over_ssh(ssh_server, **SLOW) as env:
        env.reset(seed=0)
        lines = env.logs(follow=True)
        env.call("perform", "say:one more line")
        assert any("one more line" in line for line in lines)
        lines.close()  # type: ignore[attr-defined]
        there = env.check_remote_log(str(tmp_path / "kit.log"))
        assert [problem.kind for problem in there.problems] == ["vulkan"]
        with pytest.raises(StartError, match="no-such-file is no file that you can read there"):
            env.check_remote_log("~/no-such-file")
        assert env.status()["pid"] in [entry["pid"] for entry in env.check_remote_process("--simulator")]


def test_a_hung_simulator_is_told_and_restarted_over_ssh(ssh_server: SshServer) -> None:
    with over_ssh(ssh_server, step_timeout_s=1.0, **SLOW) as env:
        env.reset(seed=0)
        env.call("plan", "hold:30")
        with pytest.raises(DeadlineExceeded, match=r"busy in step \(step 1\).* at hold_interpreter \(slow\.py:\d+\)"):
            env.step(0)
        env.restart()
        env._step_timeout_s = 20.0
        env.reset(seed=0)
        env.step(0)


def test_the_phases_of_a_start_over_ssh(ssh_server: SshServer) -> None:
    told: list[str] = []
    slow = {**SLOW, "env_kwargs": {"build": "say:loading the stage;wait:0.7"}}
    with over_ssh(ssh_server, on_progress=told.append, **slow):
        pass
    phases = list(dict.fromkeys(text.partition(":")[0] for text in told))
    assert phases == [name for name in PHASES if name in phases]
    assert {"connecting", "uploading", "starting", "building", "ready"} <= set(phases)
    assert "building: loading the stage" in told


def test_gym_make_takes_it_all(ssh_server: SshServer) -> None:
    arguments = {**ssh_arguments(ssh_server), "reuse": True, "tunnel": "channel"}
    with gymnasium.make("Remote-v0", host=ssh_server.target, env="CartPole-v1", **arguments) as env:
        env.reset(seed=0)
        assert isinstance(env.unwrapped, RemoteEnv)


def test_a_node_behind_a_login_node(ssh_server: SshServer, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    with SshServer() as node:
        known.write_text(ssh_server.known_hosts_line() + node.known_hosts_line())
        way = {"via": "testbox", "ssh_config_file": str(ssh_server.config), "known_hosts_file": str(known)}
        with over_ssh(node, env="CartPole-v1", **way) as env:
            env.reset(seed=0)
            assert env.status()["pid"] in node.processes()
            assert env.status()["pid"] not in ssh_server.processes()
