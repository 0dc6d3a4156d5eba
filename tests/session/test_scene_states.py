"""States that come with replies: none is lost with a reply that nobody read, none is older than it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from remote_env import RemoteEnv
from remote_env.errors import DeadlineExceeded, TaskError

TASK = "tasks_for_tests.scene:Scene"
ACTION = np.zeros(2, np.float32)


def height(env: RemoteEnv) -> float:
    return float(env.get_state()["cube"].root_pose[2])


def test_an_abandoned_first_reset_does_not_take_the_layout_along(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with RemoteEnv(env=TASK, capture_state=True) as env:
        env._reset_timeout_s = 0.2
        with pytest.raises(DeadlineExceeded, match="busy in reset"):
            env.reset(options={"how": f"until:{gate}"})
        gate.touch()
        env._reset_timeout_s = 20.0
        env.reset()
        env.step(ACTION)
        assert height(env) == 1.0


def test_a_first_reset_that_fails_does_not_take_the_layout_along() -> None:
    with RemoteEnv(env=TASK, capture_state=True) as env:
        with pytest.raises(TaskError, match="lock"):
            env.reset(options={"info": "bad"})
        env.reset()
        assert height(env) == 0.0


def test_an_interrupted_get_state_can_be_resumed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with RemoteEnv(env=TASK) as env:
        env.reset()
        env.call("plan_state", f"until:{gate}")
        env._step_timeout_s = 0.2
        with pytest.raises(DeadlineExceeded, match="busy in get_state"):
            env.get_state()
        gate.touch()
        env._step_timeout_s = 20.0
        assert env.resume() is None
        env.step(ACTION)
        assert height(env) == 1.0


def test_a_state_is_asked_for_again_after_a_call_that_may_change_it() -> None:
    with RemoteEnv(env=TASK, capture_state=True) as env:
        env.reset()
        env.call("move", 50.0)
        assert height(env) == 50.0


def test_a_state_is_the_callers_own_to_change_and_to_set() -> None:
    with RemoteEnv(env=TASK, capture_state=True) as env:
        env.reset()
        env.step(ACTION)
        state = env.get_state()
        state["cube"].root_pose[2] = 7.0
        assert height(env) == 1.0
        env.set_state(state)
        assert height(env) == 7.0
        assert env.get_state(native=True).native == b"native"


@pytest.mark.parametrize("name", ["ConnectionLost", "DeadlineExceeded", "ProtocolError", "SessionLost"])
def test_a_task_that_raises_one_of_our_errors_is_a_task_error(name: str) -> None:
    with RemoteEnv(env=TASK) as env:
        env.reset()
        for capture in (False, True):
            env._capture_state = capture
            env.call("plan", name)
            with pytest.raises(TaskError, match=f"raised {name} in step: of the task's own") as caught:
                env.step(ACTION)
            assert "Traceback" in caught.value.remote_traceback
            env.step(ACTION)
