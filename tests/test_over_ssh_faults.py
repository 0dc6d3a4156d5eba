"""What dies, breaks, fills up or is raced for while a session over SSH runs: it is told, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import pytest
from dropped_link import cable_to_a_host
from leak_check import is_alive, wait_until
from ssh_client import FAR_PYTHON, ROOT, nothing_is_left, over_ssh, remains
from ssh_server import SshServer

from remote_env import RemoteEnv
from remote_env.errors import ConnectError, DeadlineExceeded, SessionLost, StartError

__all__ = ["nothing_is_left"]
pytestmark = pytest.mark.fault

SLOW = {"env": "tasks_for_tests.slow:Slow", "server_env": {"PYTHONPATH": str(ROOT / "tests")}}


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def step_often(env: RemoteEnv) -> None:
    for _ in range(100):
        env.step(0)


def supervisor(env: RemoteEnv) -> int:
    """The process id of the supervisor that this environment has started."""
    [record] = env.setup_tunnel().list(soon())
    return record.pid


# Deaths


def test_a_killed_simulator_is_told_and_reset_starts_anew(ssh_server: SshServer) -> None:
    with over_ssh(ssh_server, env="CartPole-v1") as env:
        env.reset(seed=0)
        os.kill(env.status()["pid"], signal.SIGKILL)
        with pytest.raises(SessionLost, match="SIGKILL"):
            step_often(env)
        observation, _ = env.reset(seed=7)
    assert observation.tobytes() == gymnasium.make("CartPole-v1").reset(seed=7)[0].tobytes()


def test_a_killed_supervisor_takes_its_simulator_along_and_reset_starts_anew(ssh_server: SshServer) -> None:
    with over_ssh(ssh_server, env="CartPole-v1") as env:
        env.reset(seed=0)
        simulator = env.status()["pid"]
        os.kill(supervisor(env), signal.SIGKILL)
        wait_until(lambda: not is_alive(simulator), "the simulator dies with its supervisor")
        with pytest.raises(SessionLost):
            step_often(env)
        env.reset(seed=7)
        assert env.status()["pid"] != simulator
        env.setup_tunnel().list(soon())  # which removes what the killed one has left


def test_a_simulator_behind_a_wrapper_that_holds_its_interpreter_dies_with_its_supervisor(
    ssh_server: SshServer, tmp_path: Path
) -> None:
    wrapper = tmp_path / "isaaclab.sh"
    wrapper.write_text(f'#!/bin/sh\n"{FAR_PYTHON}" "$@"\nexit $?\n')
    wrapper.chmod(0o755)
    with over_ssh(ssh_server, python=str(wrapper), step_timeout_s=0.3, **SLOW) as env:
        env.reset(seed=0)
        server, simulator = supervisor(env), env.status()["pid"]
        env.call("plan", "hold:30;hold:30")  # the question for its stacks cuts the first short
        with pytest.raises(DeadlineExceeded, match="hold_interpreter"):
            env.step(0)
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not is_alive(simulator), "the simulator dies with its supervisor")
        wait_until(lambda: not wrapped(ssh_server, wrapper), "and so does what wrapped it")
        with pytest.raises(SessionLost):
            env.resume()
        env.setup_tunnel().list(soon())  # which removes what the killed one has left


def wrapped(server: SshServer, wrapper: Path) -> list[int]:
    return [pid for pid in server.processes() if str(wrapper).encode() in command_line(pid)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("tunnel", ["channel", "openssh", "sshtunnel"])
def test_a_forked_child_that_ends_costs_its_parent_nothing(ssh_server: SshServer, tunnel: str) -> None:
    with over_ssh(ssh_server, env="CartPole-v1", tunnel=tunnel) as env:
        env.reset(seed=0)
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            env.step(0)
            assert env.status()["state"] == "ready"


# Broken links


def test_a_killed_login_is_told_and_reset_logs_in_anew(ssh_server: SshServer) -> None:
    with over_ssh(ssh_server, env="CartPole-v1", idle_timeout_s=0.2, resume="never") as env:
        env.reset(seed=0)
        ssh_server.signal_connections(signal.SIGKILL)
        with pytest.raises(SessionLost, match="link to the simulator broke"):
            step_often(env)
        observation, _ = env.reset(seed=7)
        assert observation.tobytes() == gymnasium.make("CartPole-v1").reset(seed=7)[0].tobytes()
        ssh_server.signal_connections(signal.SIGKILL)


def test_a_stopped_sshd_makes_the_host_unreachable_and_the_server_ends(ssh_server: SshServer) -> None:
    env = over_ssh(ssh_server, env="CartPole-v1", idle_timeout_s=0.2, lease_timeout_s=0.9)
    env.reset(seed=0)
    stopped = ssh_server.connection_pids()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert_unreachable(env)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    env.close()


def assert_unreachable(env: RemoteEnv) -> None:
    began = time.monotonic()
    assert env.status()["state"] == "unreachable"
    assert time.monotonic() - began < 6.0
    env._step_timeout_s, began = 0.5, time.monotonic()
    with pytest.raises((DeadlineExceeded, SessionLost)):
        env.step(0)
    assert time.monotonic() - began < 6.0


def test_a_pulled_cable_ends_every_call_in_time_and_the_server_by_its_lease() -> None:
    with cable_to_a_host() as cable, SshServer(address=cable.address, prefix=cable.enter) as server:
        env = over_ssh(server, env="CartPole-v1", idle_timeout_s=0.2, lease_timeout_s=0.9, resume="never")
        env.reset(seed=0)
        simulator = env.status()["pid"]
        cable.pull()
        assert_unreachable(env)
        wait_until(lambda: not is_alive(simulator), "the lease ends the session, and the idle time-out the server")
        cable.plug_in()
        env._step_timeout_s = 20.0
        with contextlib.suppress(SessionLost):  # of what was cut off, when that is told only now
            env.reset(seed=7)
        env.reset(seed=7)
        env.step(0)
        assert env.status()["pid"] != simulator
        env.close()
        wait_until(lambda: not remains(server), "nothing is left there")


def test_closing_with_the_cable_pulled_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_env.env.life.STOP_TIMEOUT_S", 1.5)
    with cable_to_a_host() as cable, SshServer(address=cable.address, prefix=cable.enter) as server:
        env = over_ssh(server, env="CartPole-v1", idle_timeout_s=0.2, lease_timeout_s=0.9, resume="never")
        env.reset(seed=0)
        cable.pull()
        began = time.monotonic()
        env.close()
        assert time.monotonic() - began < 15.0
        wait_until(lambda: not remains(server), "the server ends by itself")


# What the host lacks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_ends_no_session_and_starts_none(small_disk: Path) -> None:
    with SshServer(cache=small_disk / "cache") as server:
        with over_ssh(server, **SLOW) as env:
            env.reset(seed=0)
            fill(small_disk)
            env.call("perform", "say:a line that nobody can write down")
            assert env.step(0)[0].tolist() == [0.0, 1.0]
            assert env.status()["state"] == "ready"
        assert remains(server) == []
        fill(small_disk)  # what the session had there is gone
        with pytest.raises(StartError, match=r"No space left on device|KiB free"):
            over_ssh(server, env="Acrobot-v1").start()
        wait_until(lambda: not remains(server), "what the start left has ended")


def fill(disk: Path) -> None:
    command = ["dd", "if=/dev/zero", f"of={disk}/ballast", "bs=4096"]
    assert b"No space left" in subprocess.run(command, capture_output=True, check=False).stderr


def test_a_home_that_is_read_only_is_told(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with SshServer(cache=small_disk / "cache") as server:
        with pytest.raises(StartError, match=r"Read-only file system.*set XDG_CACHE_HOME"):
            over_ssh(server, env="CartPole-v1").start()
        wait_until(lambda: not server.processes(), "what the start left has ended")


# Races


def test_two_clients_that_race_for_one_session_get_one_and_a_refusal(ssh_server: SshServer) -> None:
    with over_ssh(ssh_server, env="CartPole-v1", keep=True) as keeper:
        place = keeper.setup_tunnel()
        [record] = place.list(soon())
        keeper._life._leave_session(keep=True)
        barrier, held, refused = threading.Barrier(2), [], []

        def take() -> None:
            env = over_ssh(ssh_server, session=record.id)
            env.setup_tunnel().list(soon())  # logged in
            barrier.wait(20)
            try:
                env.reset(seed=0)
                held.append(env)
            except ConnectError as error:
                refused.append(str(error))
            barrier.wait(20)
            env.close()

        threads = [threading.Thread(target=take) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert len(held) == 1
        assert "all 1 session(s) of this server are taken" in refused[0]
        place.stop(record, soon())


def test_32_clients_that_log_in_at_once_all_get_through() -> None:
    with SshServer(extra_config="MaxStartups 10:30:100") as server, ThreadPoolExecutor(32) as pool:
        clients = [over_ssh(server, env="CartPole-v1", connect_timeout_s=60.0) for _ in range(32)]
        try:
            assert list(pool.map(lambda env: env.setup_tunnel().list(soon(60)), clients)) == [[]] * 32
        finally:
            list(pool.map(RemoteEnv.close, clients))
        wait_until(lambda: not server.processes(), "every login has ended")
