"""What a reply to ROLLOUT holds (docs/protocol.md, "Rollouts")."""

from __future__ import annotations

from typing import Any

from remote_env.protocol.stacking import rows
from remote_env.protocol.vector_step import Transition
from remote_env.state import SceneLayout, SceneState


def read_runs(runs: Any, layouts: dict[int, SceneLayout]) -> list[SceneState]:
    """The states of a slice, in order; layouts that are announced are noted in `layouts`.

    Raises:
        KeyError, TypeError, ValueError: they are none, or of a layout that was never announced.
    """
    states = []
    for number, announced, values in runs:
        if announced is not None:
            layouts[number] = SceneLayout.from_plain(announced)
        states += [SceneState(layouts[number], row) for row in values]
    return states


def last_transition(reply: dict[str, Any]) -> Transition | None:
    """What the last step of a slice brought; None when it was not asked for observations."""
    if "observation" not in reply["rows"]:
        return None
    reward, terminated, truncated, info = reply["last"]
    return rows(reply["rows"]["observation"])[-1], reward, terminated, truncated, info
