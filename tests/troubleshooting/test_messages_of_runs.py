"""What is told when a simulator goes wrong after its start, and when it is used wrongly."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from memory_limit import small_group
from quotes import produces
from server_process import ServerProcess, serving

from remote_env import RemoteEnv, RemoteVectorEnv
from remote_env.errors import DeadlineExceeded, TaskError

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


# Steps that are sent ahead


@pytest.fixture
def ahead(running: RemoteEnv) -> Iterator[RemoteEnv]:
    """The same environment; what is under way when the test ends is abandoned."""
    yield running
    running.reset()


@produces("NotRun: this step was sent before the end of the one with the number … could be known, …")
def test_a_step_behind_one_that_fails(ahead: RemoteEnv) -> None:
    ahead.call("plan", "raise")
    ahead.step_async(ACTION)
    ahead.step_async(ACTION)
    with pytest.raises(TaskError):
        ahead.step_wait()
    ahead.step_wait()


@produces("InputError: no step is under way; call step_async() first")
def test_a_wait_for_nothing(ahead: RemoteEnv) -> None:
    ahead.step_wait()


@produces("InputError: … steps are under way: take their results with step_wait() first")
def test_a_step_between_steps_that_are_under_way(ahead: RemoteEnv) -> None:
    ahead.step_async(ACTION)
    ahead.step_async(ACTION)
    ahead.step(ACTION)


@produces("InputError: 1 step is under way: take its result with step_wait() first")
def test_a_step_behind_one_that_is_under_way(ahead: RemoteEnv) -> None:
    ahead.step_async(ACTION)
    ahead.step(ACTION)


@produces("InputError: … steps are under way, and no more may be; take one with step_wait()")
def test_too_many_steps_under_way(ahead: RemoteEnv) -> None:
    while True:
        ahead.step_async(ACTION)


# What was asked for


@produces("ConfigError: resume=…: 'auto' goes on where the link was cut, 'never' raises SessionLost")
def test_another_word_for_resume() -> None:
    RemoteEnv(env=TASK, resume="always")


@produces("ConfigError: …_s=…: seconds above 0, at most …")
def test_no_time_to_reconnect() -> None:
    RemoteEnv(env=TASK, reconnect_timeout_s=0.0)


@produces("ConfigError: heartbeat_timeout_s=… is less than heartbeat_s=…: …")
def test_a_heartbeat_that_is_late_when_it_is_asked_for() -> None:
    RemoteEnv(env=TASK, heartbeat_s=5.0, heartbeat_timeout_s=1.0)


@produces("ConfigError: ssh_keepalive_…=… is not allowed; allowed are …")
def test_a_keepalive_that_is_too_short() -> None:
    RemoteEnv("user@box", env=TASK, ssh_keepalive_s=0.1).start()


# The task


@produces("TaskError: the task raised … in step: …")
def test_a_task_that_raises(running: RemoteEnv) -> None:
    running.call("plan", "raise")
    running.step(ACTION)


@produces("TaskError: step: it ran, but …")
def test_a_task_whose_info_cannot_travel(running: RemoteEnv) -> None:
    running.call("plan", "uncodable")
    running.step(ACTION)


@produces("TaskError: step: it ran, but info[…] is an int, which cannot cross to the other end: …")
def test_a_task_whose_info_has_a_number_that_is_too_large(running: RemoteEnv) -> None:
    running.call("plan", "huge-integer")
    running.step(ACTION)


@produces("InputError: (seed, options)[1][…] is …, which cannot cross to the other end: …")
def test_an_option_that_cannot_travel(running: RemoteEnv) -> None:
    running.reset(options={"colours": {"red", "blue"}})


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


# A simulator that is gone


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
