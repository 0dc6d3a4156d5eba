"""A simulator that hangs: told with its Python stack, killed when asked, and restarted only on request."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
from leak_check import is_alive

from remote_env import RemoteEnv
from remote_env.errors import DeadlineExceeded, InputError, SessionLost
from remote_env.session.explain import top_frames

TASK = "tasks_for_tests.misbehaving:OnDemand"
ACTION = np.zeros(2, np.float32)


def test_a_hung_step_is_told_with_its_stack(tmp_path: Path) -> None:
    with RemoteEnv(env=TASK, step_timeout_s=0.5) as env:
        env.reset()
        env.call("plan", f"until:{tmp_path / 'gate'}")
        began = time.monotonic()
        doing = (
            r"busy in step \(step 1\) for 0\.\d s, at wait_for_file \(misbehaving\.py:\d+\) < die \(misbehaving\.py:"
        )
        with pytest.raises(DeadlineExceeded, match=doing + r".* resume\(\).*reset\(\).*restart\(\)") as caught:
            env.step(ACTION)
        assert time.monotonic() - began < 2.5
        assert "misbehaving.py" in caught.value.remote_stack
        assert "loop.py" in caught.value.remote_stack
        assert "in wait_for_file" in env.logs(60)
        (tmp_path / "gate").touch()


def test_one_that_holds_its_interpreter_in_native_code_too() -> None:
    text = r"no answer to RESET in time.*busy in reset .* at hold_interpreter \(slow\.py:"
    slow = RemoteEnv(env="tasks_for_tests.slow:Slow", reset_timeout_s=0.5)
    with slow as env, pytest.raises(DeadlineExceeded, match=text):
        env.reset(options={"plan": "hold:20"})  # which the question for its stacks cuts short


def test_restart_kills_it_and_says_that_the_episode_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    with RemoteEnv(env=TASK, step_timeout_s=0.3) as env:
        env.reset()
        hung, server = env.status()["pid"], env._life.server
        env.call("plan", "hold-gil")
        with pytest.raises(DeadlineExceeded):
            env.step(ACTION)
        with caplog.at_level(logging.WARNING):
            assert env.restart() is env
        assert any("its episode is gone; call reset()" in record.message for record in caplog.records)
        assert not is_alive(hung)
        assert env._life.server is server  # the same one, with a fresh simulator
        with pytest.raises(InputError, match=r"call reset\(\) before"):
            env.step(ACTION)
        env._step_timeout_s = 5.0
        env.reset()
        assert env.step(ACTION)[0][1] == 1


def test_restart_of_a_simulator_that_is_well_and_of_one_that_is_gone() -> None:
    with RemoteEnv(env=TASK) as env:
        env.reset()
        first = env.status()["pid"]
        env.restart().reset()
        second = env.status()["pid"]
        assert first != second
        env._life.server.stop.__self__._process.kill()
        env.restart().reset()
        assert env.status()["pid"] != second


def test_restart_kills_it_also_when_the_session_s_link_is_lost() -> None:
    with RemoteEnv(env=TASK, step_timeout_s=0.3) as env:
        env.reset()
        hung, server = env.status()["pid"], env._life.server
        env.call("plan", "hold-gil")
        with pytest.raises(DeadlineExceeded):
            env.step(ACTION)
        env._life.session.control._transport._sock.shutdown(2)
        began = time.monotonic()
        env.restart()
        assert time.monotonic() - began < 15.0  # an abandoned simulator may go on for 30 s
        assert not is_alive(hung)
        assert env._life.server is server


def test_restart_before_the_start_starts() -> None:
    env = RemoteEnv(env=TASK)
    env.restart().reset()
    env.close()


def test_reset_after_a_death_takes_a_new_simulator_of_the_same_server(tmp_path: Path) -> None:
    with RemoteEnv(env=TASK) as env:
        env.reset()
        server = env._life.server
        env.call("plan", "kill")
        with pytest.raises(SessionLost, match="SIGKILL") as caught:
            env.step(ACTION)
        assert (caught.value.signal, caught.value.exit_status) == ("SIGKILL", None)
        env.reset()
        assert env._life.server is server


def test_the_innermost_calls_of_the_main_thread_are_shown() -> None:
    stacks = (
        'Thread 0x00007f (most recent call first):\n  File "/a/threading.py", line 5 in wait\n\n'
        'Current thread 0x00007e (most recent call first):\n  File "/b/sim.py", line 7 in physics\n'
        '  File "/b/sim.py", line 9 in step\n  File "/c/loop.py", line 1 in serve\n  File "/c/x.py", line 2 in main\n'
    )
    assert top_frames(stacks) == ["physics (sim.py:7)", "step (sim.py:9)", "serve (loop.py:1)"]
    assert top_frames("") == []
