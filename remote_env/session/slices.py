"""What a reply to ROLLOUT holds (docs/protocol.md, "Rollouts")."""

from __future__ import annotations

from typing import Any

from remote_env.protocol.stacking import rows
from remote_env.protocol.vector_step import Transition
from remote_env.state import SceneLayout, SceneState

_KEYS = {"steps": int, "rows": dict, "last": tuple, "inferences": int, "inference_s": float, "elapsed_s": float}


def check_reply(reply: Any) -> dict[str, Any]:
    """The reply; ValueError when it is none."""
    if not isinstance(reply, dict) or "success" not in reply:
        raise ValueError("it is no dict, or tells of no success")
    wrong = [name for name, kind in _KEYS.items() if not isinstance(reply.get(name), kind)]
    if wrong or len(reply["last"]) != 4 or reply["steps"] < 1 or "reward" not in reply["rows"]:
        raise ValueError(f"it has faults in {wrong or 'last, steps or rows'}")
    return reply


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
