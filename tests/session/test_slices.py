"""Replies to ROLLOUT that are none cost the link, not the caller's wits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from remote_env import RemoteEnv
from remote_env.errors import ProtocolError, SessionLost
from remote_env.session.slices import check_reply, last_transition, read_runs
from remote_env.state import EntityLayout, SceneLayout

LAYOUT = SceneLayout((EntityLayout("cube"),), "toy 1")
REPLY: dict[str, Any] = {
    "steps": 2,
    "rows": {"reward": np.ones(2)},
    "last": (1.0, False, True, {"a": 1}),
    "success": None,
    "inferences": 1,
    "inference_s": 0.1,
    "elapsed_s": 0.2,
}


def test_a_reply_is_taken_as_it_is() -> None:
    assert check_reply(REPLY) is REPLY
    assert last_transition(REPLY) is None
    seen = {**REPLY, "rows": {"reward": np.ones(2), "observation": {"x": np.arange(3)}}}
    assert last_transition(seen) == ({"x": 2}, 1.0, False, True, {"a": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": "2"},
        {"rows": []},
        {"rows": {}},
        {"last": (1.0, False)},
        {"last": None},
        {"elapsed_s": None},
    ],
)
def test_what_is_no_reply(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it "):
        check_reply({**REPLY, **change})


def test_states_come_in_runs_of_a_layout_that_is_announced_once() -> None:
    layouts: dict[int, SceneLayout] = {}
    values = np.random.default_rng(0).random((3, LAYOUT.size))
    states = read_runs([(0, LAYOUT.to_plain(), values[:2]), (0, None, values[2:])], layouts)
    assert [state.values.tolist() for state in states] == values.tolist()
    assert layouts == {0: LAYOUT}
    for runs in ([(1, None, values)], [(0, None, values[:, 1:])], [(0, {}, values)], 3):
        with pytest.raises((KeyError, TypeError, ValueError)):
            read_runs(runs, layouts)


def test_a_bad_reply_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with RemoteEnv(env="tasks_for_tests.misbehaving:OnDemand", policy="tasks_for_tests.policies:Counting") as env:
        env.reset()
        with monkeypatch.context() as patch:
            patch.setattr("remote_env.session.session.check_reply", lambda value: check_reply({**value, "steps": 0}))
            with pytest.raises(ProtocolError, match=r"holds something else than is due.*last, steps or rows"):
                env.step_policy()
        with pytest.raises(SessionLost):
            env.step_policy()
        assert env.rollout(2)[0].steps == 2
