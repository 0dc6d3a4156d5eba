"""Which geoms touch, and the reward that follows: gym-aloha's rules as one table look-up per step.

Every pair of geoms has at most one flag; a step's contacts are the union of the flags of the pairs in
contact, and that number (0–63) indexes tables of rewards and of gripper names. Pairs are ordered as gym-aloha
names them, which is how MuJoCo orders them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError
from remote_env.tasks.aloha_model import Task

RIGHT, LEFT, OBJECT_ON_TABLE, SOCKET_ON_TABLE, PEG_IN_SOCKET, PIN = (1 << bit for bit in range(6))

_LEFT_FINGER = "vx300s_left/10_left_gripper_finger"
_RIGHT_FINGER = "vx300s_right/10_right_gripper_finger"
_SOCKET = tuple(f"socket-{side}" for side in (1, 2, 3, 4))

_PAIRS: dict[Task, dict[tuple[str, str], int]] = {
    "transfer_cube": {
        ("red_box", _RIGHT_FINGER): RIGHT,
        ("red_box", _LEFT_FINGER): LEFT,
        ("red_box", "table"): OBJECT_ON_TABLE,
    },
    "insertion": {
        ("red_peg", _RIGHT_FINGER): RIGHT,
        **{(side, _LEFT_FINGER): LEFT for side in _SOCKET},
        ("red_peg", "table"): OBJECT_ON_TABLE,
        **{(side, "table"): SOCKET_ON_TABLE for side in _SOCKET},
        **{("red_peg", side): PEG_IN_SOCKET for side in _SOCKET},
        ("red_peg", "pin"): PIN,
    },
}

TOUCHING = ("none", "right", "left", "both")
"""Index: RIGHT | LEFT flags. Which grippers touch an object, by the same fingers that the reward looks at."""

MAX_REWARD = 4.0


def contact_sequence(touching: Iterable[str], *, min_steps: int = 5) -> tuple[str, ...]:
    """The order in which grippers held an object, such as ("right", "both", "left") for a hand-over.

    Args:
        touching: `info["touching"]` of each step of an episode, in order.
        min_steps: shorter phases are left out; contacts flicker for a step or two while an arm moves.
    """
    runs = [(name, len(list(run))) for name, run in itertools.groupby(t for t in touching if t != "none")]
    held = (name for name, steps in runs if steps >= min_steps)
    return tuple(name for name, _ in itertools.groupby(held))


class ContactRewards:
    """Reads rewards of one task from the contacts of one model.

    Args:
        task: which rules apply.
        model: the task's mujoco.MjModel.

    Raises:
        ConfigError: the model lacks a geom that the rules name.
    """

    def __init__(self, task: Task, model: Any) -> None:
        self._pair_flags = _pair_flags(task, model)
        rule = _transfer_reward if task == "transfer_cube" else _insertion_reward
        self.rewards = tuple(rule(flags) for flags in range(64))

    def flags(self, data: Any) -> int:
        """The union of the flags of all pairs in contact in `data` (mujoco.MjData after a step)."""
        if not data.ncon:
            return 0
        pairs: NDArray[np.int32] = data.contact.geom
        return int(np.bitwise_or.reduce(self._pair_flags[pairs[:, 0], pairs[:, 1]]))


def _pair_flags(task: Task, model: Any) -> NDArray[np.uint8]:
    ids = {model.geom(index).name: index for index in range(model.ngeom)}
    table = np.zeros((model.ngeom, model.ngeom), np.uint8)
    for (first, second), flag in _PAIRS[task].items():
        if first not in ids or second not in ids:
            raise ConfigError(f"this model has no geom {first!r} or no {second!r}; is it gym-aloha's {task} model?")
        table[ids[first], ids[second]] = flag
    return table


def _transfer_reward(flags: int) -> float:
    on_table = flags & OBJECT_ON_TABLE
    if flags & LEFT:
        return 3.0 if on_table else 4.0
    if flags & RIGHT:
        return 1.0 if on_table else 2.0
    return 0.0


def _insertion_reward(flags: int) -> float:
    both, on_table = flags & RIGHT and flags & LEFT, flags & (OBJECT_ON_TABLE | SOCKET_ON_TABLE)
    if flags & PIN:
        return 4.0
    if flags & PEG_IN_SOCKET and not on_table:
        return 3.0
    if both:
        return 1.0 if on_table else 2.0
    return 0.0
