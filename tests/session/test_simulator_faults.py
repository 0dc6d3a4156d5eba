"""Whatever a task does, the caller hears what happened, soon, and can go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import is_alive, wait_until

from remote_env import RemoteEnv
from remote_env.errors import (
    ConfigError,
    DeadlineExceeded,
    InputError,
    RemoteEnvError,
    SessionLost,
    StartError,
    TaskError,
)

TASK = "tasks_for_tests.misbehaving:OnDemand"
ACTION = np.zeros(2, np.float32)


def step_as(env: RemoteEnv, how: str, action: Any = ACTION) -> Any:
    env.call("plan", how)
    return env.step(action)


def step_often(env: RemoteEnv) -> None:
    """Until it fails: a signal takes a moment to arrive."""
    for _ in range(10_000):
        env.step(ACTION)


@pytest.fixture(scope="module")
def shared() -> Iterator[RemoteEnv]:
    """For faults that a simulator survives."""
    with RemoteEnv(env=TASK) as env:
        yield env


@pytest.fixture
def env(shared: RemoteEnv) -> Iterator[RemoteEnv]:
    pid = shared._life.session.control.status()["pid"] if shared._life.session else 0
    shared.reset()
    yield shared
    # Still the same simulator, and still usable.
    shared.reset()
    before = shared.call("total_steps")
    assert shared.step(ACTION)[0][1] == before + 1
    assert shared.status()["pid"] == pid


@pytest.fixture
def own() -> Iterator[RemoteEnv]:
    """For faults that it does not survive."""
    with RemoteEnv(env=TASK) as env:
        env.reset()
        yield env


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


# The task raises


def test_raise_in_step(env: RemoteEnv) -> None:
    with pytest.raises(TaskError, match=r"raised ValueError in step: the cube fell") as caught:
        step_as(env, "raise")
    assert caught.value.remote_type == "ValueError"
    assert "misbehaving.py" in caught.value.remote_traceback
    assert "the cube fell through the table" in env.logs()


def test_raise_in_reset(env: RemoteEnv) -> None:
    with pytest.raises(TaskError, match=r"in reset: the cube fell"):
        env.reset(options={"how": "raise"})


def test_error_texts_that_cannot_cross_as_they_are(env: RemoteEnv) -> None:
    with pytest.raises(TaskError, match=r"no file .udcff here"):
        step_as(env, "raise-surrogate")
    with pytest.raises(TaskError, match="text cannot be had"):
        step_as(env, "raise-unprintable")
    with pytest.raises(TaskError, match="ValueError") as caught:
        step_as(env, "raise-huge")
    assert len(str(caught.value)) < 200_000


def test_results_that_cannot_cross_name_the_key(env: RemoteEnv) -> None:
    with pytest.raises(TaskError, match=r"info.*\['deep'\]\[1\]\['lock'\] is an object"):
        step_as(env, "uncodable")
    with pytest.raises(TaskError, match=r"it ran, but .* too big for one message"):
        step_as(env, "too-huge")
    assert env.call("total_steps") > 0


def test_a_large_info_arrives(env: RemoteEnv) -> None:
    assert step_as(env, "huge-array")[4]["map"].sum() == 3_000_000 * 2_999_999 / 2


def test_a_talkative_task_is_no_matter(env: RemoteEnv) -> None:
    step_as(env, "print")
    assert env.logs(2).splitlines()[-1] == "line 19999 of a task that talks too much"
    assert len(env.logs(10_000).splitlines()) <= 10_000


def test_an_old_step_of_four(shared: RemoteEnv) -> None:
    with RemoteEnv(env="tasks_for_tests.misbehaving:FourTuple") as env:
        env.reset()
        with pytest.raises(TaskError, match="not enough values to unpack"):
            env.step(ACTION)


# The task cannot be made


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"env_kwargs": {"init": "raise"}}, TaskError, r"could not be made: ValueError: the cube fell"),
        ({"env_kwargs": {"init": "raise-surrogate"}}, TaskError, "no file"),
        ({"env_kwargs": {"init": "sys.exit"}}, TaskError, "SystemExit: the task gave up"),
        ({"env_kwargs": {"init": "exit"}}, StartError, "died while starting: it exited with status 3"),
        ({"env_kwargs": {"init": "segv"}}, StartError, "SIGSEGV while building"),
        ({"env_kwargs": {"unknown": 1}}, TaskError, "unexpected keyword argument 'unknown'"),
        ({"env_kwargs": {"init": object()}}, InputError, r"env_kwargs\['init'\] is an object"),
        ({"env": "NoSuchTask-v0"}, ConfigError, "`NoSuchTask` doesn't exist"),
        ({"env": "CartPole-v99"}, ConfigError, "v99"),
        ({"env": "no_such_module:make"}, ConfigError, r"cannot import 'no_such_module'.*upload="),
        ({"env": "no_such_module:Task-v0"}, ConfigError, r"cannot import 'no_such_module'.*upload="),
        ({"env": "tasks_for_tests.broken_import:make"}, StartError, r"not installed in \S+: a_package"),
        ({"env": "tasks_for_tests.misbehaving:nothing"}, ConfigError, "has no 'nothing'"),
        ({"env": "tasks_for_tests.misbehaving:not_callable"}, ConfigError, "must be a function or class"),
        (
            {"env": "tasks_for_tests.misbehaving:make_nothing"},
            ConfigError,
            "made a str; it must return a gymnasium.Env",
        ),
        ({"env": "tasks_for_tests.misbehaving:OddSpace"}, ConfigError, "Own"),
        ({"env": "/no/such/file.py:make_env"}, ConfigError, "no task file /no/such/file.py"),
        ({"simulator": "nothing"}, ConfigError, "unknown simulator 'nothing'"),
        ({"simulator": "tasks_for_tests.counter_backend:NotABackend"}, ConfigError, "must be a subclass"),
        ({"python": "/no/such/python"}, StartError, "/no/such/python"),
        ({"python": "/etc"}, StartError, "/etc"),
        ({"python": "/bin/false"}, StartError, "ended with status 1"),
        ({"upload": ["/no/such/folder"]}, ConfigError, "/no/such/folder"),
    ],
)
def test_a_task_that_cannot_be_made(arguments: dict[str, Any], kind: type[RemoteEnvError], text: str) -> None:
    env = RemoteEnv(**{"env": TASK, **arguments})
    with pytest.raises(kind, match=text) as caught:
        env.start()
    assert type(caught.value) is kind
    if kind is TaskError:
        assert "Traceback" in caught.value.remote_traceback
    assert env._life.server is None  # nothing is left, even before close()


def test_a_start_that_takes_too_long_says_what_it_does(isolated_home: Path) -> None:
    told: list[str] = []
    never = f"until:{isolated_home / 'never'}"
    env = RemoteEnv(env=TASK, env_kwargs={"init": never}, start_timeout_s=2.2, on_progress=told.append)
    with pytest.raises(DeadlineExceeded, match=r"still building after [123] s.*start_timeout_s="):
        # Its simulator is not done by the end: it is asked, then told, to end.
        env.start()
    assert any("building" in line for line in told)
    assert env._life.server is None


# The simulator dies


@pytest.mark.parametrize(
    ("how", "why"), [("exit", "it exited with status 3"), ("segv", "killed by SIGSEGV"), ("kill", "killed by SIGKILL")]
)
def test_death_in_a_step(own: RemoteEnv, how: str, why: str) -> None:
    with within(2.0), pytest.raises(SessionLost, match=rf"{why} in step \(step 1\); reset\(\)"):
        step_as(own, how)
    assert why in own.logs()
    for _ in range(3):
        with pytest.raises(SessionLost, match=why):
            own.step(ACTION)
    assert own.reset()[0].tolist() == [-1.0, 0.0]  # a new simulator
    assert own.step(ACTION)[0][1] == 1


def test_a_death_that_status_saw_first_is_told_all_the_same(own: RemoteEnv) -> None:
    os.kill(own.call("pid"), signal.SIGKILL)
    wait_until(lambda: own.status()["state"] == "dead", "it is known")
    with pytest.raises(SessionLost, match="killed by SIGKILL") as caught:
        step_often(own)
    assert caught.value.signal == "SIGKILL"


def test_a_death_while_other_threads_ask_is_told_to_all(own: RemoteEnv) -> None:
    pid, states = own.call("pid"), set[str]()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            states.add(own.status()["state"])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(SessionLost, match="killed by SIGKILL"):
        step_often(own)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert "unreachable" not in states


def test_death_in_a_reset(own: RemoteEnv) -> None:
    with within(2.0), pytest.raises(SessionLost, match="exited with status 3 in reset"):
        own.reset(options={"how": "exit"})
    own.reset()


def test_death_between_two_calls(own: RemoteEnv) -> None:
    os.kill(own.call("pid"), signal.SIGKILL)
    with within(3.0), pytest.raises(SessionLost, match="killed by SIGKILL"):
        step_often(own)
    own.reset()


def test_death_from_outside_in_mid_step(own: RemoteEnv) -> None:
    pid = own.call("pid")
    killer = threading.Thread(target=lambda: (_wait_busy(own), os.kill(pid, signal.SIGKILL)))
    own.call("plan", "sleep")
    killer.start()
    with within(3.0), pytest.raises(SessionLost, match="SIGKILL in step"):
        own.step(ACTION)
    killer.join(5)


def _wait_busy(env: RemoteEnv) -> None:
    # Read where the supervisor reads: another connection, since the session's own is not for two threads.
    from remote_env.session import ControlLink

    server = env._life.server
    assert server is not None
    link = ControlLink(server.dial, server.token, time.monotonic() + 5, session=None, client="the test")
    wait_until(lambda: link.status()["state"] == "busy", "the simulator is busy")
    link.close()


def test_death_of_the_supervisor(own: RemoteEnv) -> None:
    status = own.status()
    own._life.server.stop.__self__._process.kill()
    with within(4.0), pytest.raises(SessionLost):
        step_often(own)
    wait_until(lambda: not is_alive(status["pid"]), "the simulator dies with its supervisor", 1.0)
    own.reset()


def test_the_link_is_cut(own: RemoteEnv) -> None:
    before = own.step(ACTION)[0]
    own._life.session._transport._sock.shutdown(2)
    assert own.step(ACTION)[0][1] == before[1] + 1  # which counts the steps


def test_the_link_is_cut_and_is_not_to_be_made_anew(isolated_home: Path) -> None:
    with RemoteEnv(env=TASK, resume="never") as env:
        env.reset()
        env._life.session._transport._sock.shutdown(2)
        with pytest.raises(SessionLost, match=r"the link to the simulator broke \(.*\); reset\(\)"):
            env.step(ACTION)
        env.reset()


# Deadlines


@pytest.fixture
def slow(isolated_home: Path) -> Iterator[tuple[RemoteEnv, Path]]:
    """An environment with a short patience, and the file that ends its wait."""
    gate = isolated_home / "gate"
    with RemoteEnv(env=TASK, step_timeout_s=0.3, reset_timeout_s=5.0) as env:
        env.reset()
        yield env, gate
        gate.touch()
    gate.unlink()


def test_a_late_step_is_explained_and_resumed_once(slow: tuple[RemoteEnv, Path]) -> None:
    env, gate = slow
    with pytest.raises(DeadlineExceeded, match=r"busy in step \(step 1\) for 0\.\d s.*resume\(\)"):
        step_as(env, f"until:{gate}", np.full(2, 0.5, np.float32))
    assert (env.status()["state"], env.status()["call"]) == ("busy", "step")
    for refused in (lambda: env.step(ACTION), env.render, env.get_state, lambda: env.call("pid")):
        with pytest.raises(InputError, match=r"\(STEP\) was interrupted.*resume\(\)"):
            refused()
    with pytest.raises(DeadlineExceeded, match="busy in step"):
        env.resume()
    gate.touch()
    env._step_timeout_s = 5.0
    observation, reward, terminated, truncated, info = env.resume()
    assert (observation.tolist(), reward, terminated, truncated, info) == ([1.0, 1.0], 1.0, False, False, {})
    assert env.resume() is None
    assert env.step(ACTION)[0].tolist() == [0.0, 2.0]  # neither skipped nor run twice


def test_reset_abandons_a_late_step(slow: tuple[RemoteEnv, Path]) -> None:
    env, gate = slow
    with pytest.raises(DeadlineExceeded):
        step_as(env, f"until:{gate}")
    with pytest.raises(InputError, match="lock"):
        env.reset(options={"lock": object()})  # nothing was sent, so nothing is abandoned
    with pytest.raises(InputError, match="interrupted"):
        env.step(ACTION)
    gate.touch()
    env._step_timeout_s = 5.0
    assert env.reset()[0].tolist() == [-1.0, 1.0]
    assert env.resume() is None
    assert env.step(ACTION)[0].tolist() == [0.0, 2.0]


def test_a_late_reset_is_resumed_too(slow: tuple[RemoteEnv, Path]) -> None:
    env, gate = slow
    env._reset_timeout_s = 0.3
    with pytest.raises(DeadlineExceeded, match="busy in reset"):
        env.reset(options={"how": f"until:{gate}"})
    gate.touch()
    env._step_timeout_s = 5.0
    assert env.resume()[0].tolist() == [-1.0, 0.0]
    env.step(ACTION)


def test_a_late_error_comes_with_resume(slow: tuple[RemoteEnv, Path]) -> None:
    env, gate = slow
    env.call("plan", f"until:{gate}")
    with pytest.raises(DeadlineExceeded):
        env.step(np.full(2, 0.25, np.float32))
    gate.touch()
    env._step_timeout_s = 5.0
    assert env.resume()[0][1] == 1.0


def test_death_while_unsettled(own: RemoteEnv) -> None:
    own._step_timeout_s = 0.2
    with pytest.raises(DeadlineExceeded, match="busy in step"):
        step_as(own, "sleep")
    own._step_timeout_s = 5.0
    os.kill(own.status()["pid"], signal.SIGKILL)
    with pytest.raises(SessionLost, match="SIGKILL in step"):
        own.resume()
    own.reset()
    assert own.resume() is None


def test_status_and_close_while_the_interpreter_is_held() -> None:
    env = RemoteEnv(env=TASK, step_timeout_s=0.3)
    env.reset()
    with pytest.raises(DeadlineExceeded, match="busy in step"):
        step_as(env, "hold-gil")
    pid = env.status()["pid"]
    assert "busy" in env.status()["state"]
    with within(9.0):  # its task gets 5 s to close by itself
        env.close()
    assert not is_alive(pid)
