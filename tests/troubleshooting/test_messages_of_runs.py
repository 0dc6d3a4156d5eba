"""What is told when a simulator or the link to it goes wrong after its start, and when it is used wrongly."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import wait_until
from memory_limit import small_group
from quotes import produces
from server_process import ServerProcess, serving
from ssh_client import nothing_is_left, over_ssh
from ssh_server import SshServer

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.errors import DeadlineExceeded
from remote_env.session import Session
from remote_env.transport import connect_tcp

__all__ = ["nothing_is_left"]
TASK = "tasks_for_tests.misbehaving:OnDemand"
ACTION = np.zeros(2, np.float32)


@pytest.fixture(scope="module")
def running(isolated_home: Path) -> Iterator[RemoteEnv]:
    """An environment for all tests that it survives."""
    with RemoteEnv(env=TASK) as env:
        env.reset()
        yield env


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    """A server for all tests that its simulator survives."""
    with serving(TASK) as server:
        yield server


@pytest.fixture
def attached(server: ServerProcess) -> Iterator[RemoteEnv]:
    """An environment on it."""
    with RemoteEnv(port=server.port) as env:
        env.reset()
        yield env


@pytest.fixture
def hanging(attached: RemoteEnv, tmp_path: Path) -> Iterator[RemoteEnv]:
    """The same, whose next step ends with the test."""
    attached.call("plan", f"until:{tmp_path / 'gate'}")
    attached._step_timeout_s = 0.3
    yield attached
    (tmp_path / "gate").touch()


@pytest.fixture
def doomed() -> Iterator[RemoteEnv]:
    """An environment whose simulator the test may end."""
    with RemoteEnv(env=TASK) as env:
        env.reset()
        yield env


# Wrong use


@produces("InputError: action is …; the task takes …: convert it before step()")
def test_an_action_of_another_shape(running: RemoteEnv) -> None:
    running.step(np.zeros(3, np.float32))


@produces("InputError: action is not finite: … at index …; …")
def test_an_action_that_is_no_number(running: RemoteEnv) -> None:
    running.step(np.array([0.0, np.nan], np.float32))


@produces("InputError: '…' is not open to clients; open: …")
def test_a_name_that_is_not_open(running: RemoteEnv) -> None:
    running.call("delete_everything")


@produces("ConfigError: a RemoteEnv that runs cannot be pickled; …")
def test_a_pickle(running: RemoteEnv) -> None:
    pickle.dumps(running)


@produces("ConfigError: this server ends with this process, so it cannot be kept; …")
def test_a_server_that_cannot_be_kept(running: RemoteEnv) -> None:
    running.close(keep=True)


@produces("ConfigError: that server holds one environment, and a RemoteVectorEnv is for a batch: …")
def test_a_batch_at_a_server_of_one_environment(server: ServerProcess) -> None:
    RemoteVectorEnv(port=server.port).start()


@produces("ConfigError: this environment is closed; make a new one")
def test_a_closed_one() -> None:
    env = RemoteEnv(env=TASK)
    env.close()
    env.reset()


# The task


@produces("TaskError: the task raised … in step: …")
def test_a_task_that_raises(running: RemoteEnv) -> None:
    running.call("plan", "raise")
    running.step(ACTION)


@produces("TaskError: step: it ran, but …")
def test_a_task_whose_info_cannot_travel(running: RemoteEnv) -> None:
    running.call("plan", "uncodable")
    running.step(ACTION)


@produces("Unsupported: … has no scene state: …")
def test_a_task_without_state(running: RemoteEnv) -> None:
    running.get_state()


# A simulator that does not answer


@produces(
    "DeadlineExceeded: no answer to STEP in time; the simulator is busy in step (step …) for … s, at …. resume() …"
)
def test_a_hung_step(hanging: RemoteEnv) -> None:
    hanging.step(ACTION)


@produces("InputError: the call before this one (STEP) was interrupted before its result came; …")
def test_a_call_after_an_interrupted_one(hanging: RemoteEnv) -> None:
    with pytest.raises(DeadlineExceeded):
        hanging.step(ACTION)
    hanging.step(ACTION)


@produces("DeadlineExceeded: no answer to STEP in time, and the server does not say why (…)")
def test_a_server_that_stands_still(server: ServerProcess, attached: RemoteEnv) -> None:
    attached._step_timeout_s = 0.3
    stopped = [server.process.pid, int(attached.status()["pid"])]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        attached.step(ACTION)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


@produces("InputError: this session has no episode yet; call reset() before step()")
def test_a_step_after_a_restart(doomed: RemoteEnv) -> None:
    doomed.restart()
    doomed.step(ACTION)


# A simulator or a link that is gone


@produces("SessionLost: the simulator is gone: it was killed by SIG… in step (step …); reset() starts a new one. …")
def test_a_crash(doomed: RemoteEnv) -> None:
    doomed.call("plan", "segv")
    doomed.step(ACTION)


@produces("SessionLost: the simulator is gone: it exited with status … in step (step …); reset() starts a new one. …")
def test_an_exit(doomed: RemoteEnv) -> None:
    doomed.call("plan", "exit")
    doomed.step(ACTION)


@produces("SessionLost: the simulator is gone: … by the out-of-memory killer: …; reset() starts a new one. …")
def test_too_little_memory() -> None:
    slow = "tasks_for_tests.slow:Slow"
    with (
        small_group(300 << 20) as wrapper,
        serving(slow, wrapper=wrapper) as server,
        RemoteEnv(port=server.port) as env,
    ):
        env.reset()
        env.call("plan", "eat:2000")
        env.step(0)


@produces("SessionLost: the link to the simulator broke (…); reset() starts a new session")
def test_a_cut_link(ssh_server: SshServer) -> None:
    with over_ssh(ssh_server, env="CartPole-v1", idle_timeout_s=0.2) as env:
        env.reset(seed=0)
        ssh_server.signal_connections(signal.SIGKILL)
        step_on(env)


def step_on(env: RemoteEnv) -> None:
    for _ in range(100):
        env.step(0)


@produces("SessionLost: the link to the simulator broke (…nothing came from it for … s …")
def test_a_host_that_falls_silent(ssh_server: SshServer, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  ServerAliveInterval 1\n  ServerAliveCountMax 1\n")
    frozen: list[int] = []
    try:
        with over_ssh(ssh_server, env="CartPole-v1", idle_timeout_s=0.2, ssh_config_file=str(config)) as env:
            env.reset(seed=0)
            frozen = ssh_server.connection_pids()
            ssh_server.signal_connections(signal.SIGSTOP)
            env.step(0)
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGKILL)


@produces("SessionLost: the simulator is gone: its lease ran out: nothing was heard of its client for … s; …")
def test_a_client_of_which_nothing_was_heard(server: ServerProcess) -> None:
    def dial(until: float) -> Any:
        return connect_tcp("127.0.0.1", server.port, until)

    # A session alone, without the thread that pings: what a stopped program (Ctrl-Z, a sleeping laptop) is.
    session = Session(dial, server.token, time.monotonic() + 15.0, client="me", lease_s=0.3)
    try:
        session.reset(None, None, 10.0)
        wait_until(lambda: "its lease ran out" in server.read_log(), "the lease runs out")
        session.step(ACTION, 10.0)
    finally:
        session.close()
