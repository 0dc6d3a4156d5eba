"""What a reply to ROLLOUT holds (docs/protocol.md, "Rollouts")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from remote_env.protocol.state_stream import read_rows
from remote_env.protocol.vector_step import Transition
from remote_env.state import SceneLayout, SceneState

_KEYS = {"steps": int, "rows": dict, "last": tuple, "inferences": int, "inference_s": float, "elapsed_s": float}
_PER_STEP = ("action", "reward")  # the others may have one more: the reset's


def check_reply(reply: Any) -> dict[str, Any]:
    """The reply; ValueError when it is none."""
    if not isinstance(reply, dict) or "success" not in reply:
        raise ValueError("it is no dict, or tells of no success")
    wrong = [name for name, kind in _KEYS.items() if not isinstance(reply.get(name), kind)]
    if wrong or len(reply["last"]) != 4 or reply["steps"] < 1 or "reward" not in reply["rows"]:
        raise ValueError(f"it has faults in {wrong or 'last, steps or rows'}")
    _check_rows(reply["rows"], reply["steps"])
    return reply


def _check_rows(rows: dict[str, Any], steps: int) -> None:
    for name, stacked in rows.items():
        if name == "state":
            continue  # in runs, which `read_runs` counts by reading
        allowed = (steps,) if name in _PER_STEP else (steps, steps + 1)
        if not all(count in allowed for count in count_rows(stacked)):
            raise ValueError(f"its rows of {str(name)[:60]!r} are not as many as its {steps} steps")


def count_rows(stacked: Any) -> Iterator[int]:
    """How many rows each stack in it has."""
    if isinstance(stacked, (dict, tuple)):
        for part in stacked.values() if isinstance(stacked, dict) else stacked:
            yield from count_rows(part)
    elif isinstance(stacked, list) or (isinstance(stacked, np.ndarray) and stacked.ndim):
        yield len(stacked)
    else:
        raise ValueError(f"a {type(stacked).__name__} in place of rows")


def read_runs(runs: Any, layouts: dict[int, SceneLayout]) -> list[SceneState]:
    """The states of a slice, in order; layouts that are announced are noted in `layouts`.

    Raises:
        KeyError, TypeError, ValueError: they are none, or of a layout that was never announced.
    """
    states = []
    for number, announced, values in runs:
        if announced is not None:
            layouts[number] = SceneLayout.from_plain(announced)
        layout = layouts[number]
        states += [SceneState(layout, row) for row in read_rows(values, layout.size)]
    return states


def last_transition(reply: dict[str, Any]) -> Transition | None:
    """What the last step of a slice brought; None when it was not asked for observations."""
    if "observation" not in reply["rows"]:
        return None
    reward, terminated, truncated, info = reply["last"]
    return last_row(reply["rows"]["observation"]), reward, terminated, truncated, info


def last_row(stacked: Any) -> Any:
    """The last of `stacking.rows`, without making the others."""
    if isinstance(stacked, dict):
        return {key: last_row(part) for key, part in stacked.items()}
    return tuple(map(last_row, stacked)) if isinstance(stacked, tuple) else stacked[-1]
