"""Several steps in one request: what is asked, what comes back (docs/protocol.md, "Several steps"). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import InputError
from remote_env.protocol import stacking
from remote_env.state import SceneState

MAX_STEPS = 4096  # of one request
MAX_BYTES = 256 << 20  # of its observations: both ends hold all of them at once
WANTS = ("all", "last")


class Transitions(NamedTuple):
    """What some steps in a row brought; n is how many of them were wanted: all that ran, or the last alone.

    Attributes:
        observations: (n, …), each array of an observation stacked; of a Dict space a dict of such.
        rewards: (ran,) float64; of a batch (ran, num_envs).
        terminated: likewise bool.
        truncated: likewise bool.
        infos: n infos.
        ran: how many steps ran: fewer than were sent, if the episode ended before.
        states: n `SceneState`s where they were wanted, of a batch n lists with one of each environment; else None.
    """

    observations: Any
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    infos: list[dict[str, Any]]
    ran: int
    states: list[SceneState] | list[list[SceneState]] | None = None


@dataclass(frozen=True)
class ChunkOptions:
    """How a chunk is to run.

    Attributes:
        stop: whether it ends with the episode.
        want: "all" or "last" of the observations, infos and states.
        keys: of the observations, of those that the session brings; None for all.
    """

    stop: bool = True
    want: str = "all"
    keys: tuple[str, ...] | None = None

    def to_plain(self) -> dict[str, Any]:
        """As it crosses."""
        return {"stop": self.stop, "want": self.want, "keys": None if self.keys is None else list(self.keys)}

    @classmethod
    def from_plain(cls, plain: Any) -> ChunkOptions:
        """The exact opposite of `to_plain`; InputError when it is none."""
        keys: Any = plain.get("keys") if isinstance(plain, Mapping) else 0
        is_list = keys is None or (isinstance(keys, list) and all(isinstance(key, str) for key in keys))
        if not is_list or not isinstance(plain.get("stop"), bool) or plain.get("want") not in WANTS:
            raise InputError(f"not the options of several steps: {str(plain)[:100]}")
        return cls(plain["stop"], plain["want"], None if keys is None else tuple(keys))


def split_actions(actions: Any) -> list[Any]:
    """The K actions of a chunk: of a list its items, else the rows of its arrays.

    Raises:
        InputError: they are no such thing, none at all, or too many.
    """
    try:
        rows = stacking.rows(actions, MAX_STEPS)
    except stacking.TooManyRows as error:
        raise _wrong_count(error.count) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"actions are a (K, …) array, or a list of K actions: {error}") from error
    if not rows:
        raise _wrong_count(0)
    return rows


def _wrong_count(count: int) -> InputError:
    return InputError(f"{count} actions in one call; there may be 1 to {MAX_STEPS}")


def pack_outcomes(outcomes: Sequence[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """Rewards, terminated and truncated of some steps, an array each.

    Raises:
        TypeError, ValueError: a reward or a flag is no number.
    """
    rewards, terminated, truncated = zip(*outcomes, strict=True)
    return np.array(rewards, np.float64), np.array(terminated, np.bool_), np.array(truncated, np.bool_)


def check_outcomes(value: Any, num_envs: int | None, most: int = MAX_STEPS) -> tuple[Any, Any, Any]:
    """The three arrays of a reply; ValueError when they are none, or not of 1 to `most` steps, as many in each."""
    outcomes = value["reward"], value["terminated"], value["truncated"]
    ran = value["ran"]
    if type(ran) is not int or not 1 <= ran <= most:
        raise ValueError(f"{ran!r:.40} steps ran of the {most} that were sent")
    shape = (ran,) if num_envs is None else (ran, num_envs)
    for array, kind in zip(outcomes, (np.float64, np.bool_, np.bool_), strict=True):
        if not isinstance(array, np.ndarray) or array.dtype != kind or array.shape != shape:
            raise ValueError(f"rewards or flags that are no {shape} arrays")
    return outcomes
