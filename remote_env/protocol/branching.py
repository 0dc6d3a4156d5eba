"""Snapshots and branches of an episode: limits, and what comes back (docs/protocol.md, "Snapshots"). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import InputError
from remote_env.protocol import stacking
from remote_env.protocol.chunks import MAX_STEPS

MAX_KEPT = 1024  # snapshots and branches of a session
MAX_KEPT_BYTES = 512 << 20  # of all of them together
MAX_CHUNKS = 4096  # of one request
MAX_STEPS_AT_ONCE = 1 << 20  # of all chunks of one request
WANTS = ("rewards", "last", "all")


class Tried(NamedTuple):
    """What M chunks of K actions each would bring, or did bring to M branches.

    Attributes:
        rewards: (M, K) float64; 0 behind the end of an episode.
        ran: (M,) int64, how many steps of each chunk ran.
        terminated: (M,) bool, whether the last step that ran said so.
        truncated: likewise.
        observations: with want="last" (M, …), those after the last step of each chunk, stacked as of a batch; with
            "all" a list of M stacks (ran, …); None with "rewards".
        infos: with "last" M infos, with "all" a list of M lists; None with "rewards".
    """

    rewards: NDArray[np.float64]
    ran: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    observations: Any = None
    infos: Any = None

    @property
    def returns(self) -> NDArray[np.float64]:
        """(M,) the sum of each chunk's rewards."""
        returns: NDArray[np.float64] = self.rewards.sum(axis=1)
        return returns


def split_chunks(actions: Any) -> list[list[Any]]:
    """The M chunks of K actions each: of lists their items, else the rows of arrays (M, K, …).

    Raises:
        InputError: they are no such thing, none at all, too many, or not all as long.
    """
    try:
        rows = _rows(actions, "M", MAX_CHUNKS)
    except stacking.TooManyRows as error:
        raise _too_many(f"{error.count} chunks of 1 or more actions") from error
    if not rows:
        raise InputError(f"0 chunks of actions in one call; there may be 1 to {MAX_CHUNKS}")
    try:
        chunks = [_rows(chunk, "K", min(MAX_STEPS, MAX_STEPS_AT_ONCE // len(rows))) for chunk in rows]
    except stacking.TooManyRows as error:
        raise _too_many(f"{len(rows)} chunks of {error.count} actions") from error
    if len(lengths := {len(chunk) for chunk in chunks}) > 1:
        raise InputError(f"each chunk has as many actions as the others; got {sorted(lengths)}")
    if not chunks[0]:
        raise _too_many(f"{len(rows)} chunks of 0 actions")
    return chunks


def _too_many(what: str) -> InputError:
    return InputError(
        f"{what} in one call; there may be 1 to {MAX_CHUNKS} chunks of 1 to {MAX_STEPS} actions, and "
        f"{MAX_STEPS_AT_ONCE} actions in all"
    )


def _rows(values: Any, what: str, most: int) -> list[Any]:
    try:
        return stacking.rows(values, most)
    except stacking.TooManyRows:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(
            f"actions are a (M, K, …) array, or a list of M lists of K actions; for {what}: {error}"
        ) from error


def check_want(want: Any) -> None:
    """InputError when `want` is none of `WANTS`."""
    if not isinstance(want, str) or want not in WANTS:
        raise InputError(f"want={want!r}: allowed are {', '.join(WANTS)}")


def read_tried(value: Any, chunks: int, steps: int, want: str) -> Tried:
    """What a reply says of so many chunks; KeyError, TypeError or ValueError when it does not fit the request."""
    kinds = {"rewards": np.float64, "ran": np.int64, "terminated": np.bool_, "truncated": np.bool_}
    arrays = [value[name] for name in kinds]
    shapes = [(chunks, steps), *[(chunks,)] * 3]
    for array, kind, shape in zip(arrays, kinds.values(), shapes, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype != kind or array.shape != shape:
            raise ValueError(f"rewards or flags that are not of {chunks} chunks of {steps} steps")
    observations, infos = value.get("observations"), value.get("infos")
    if want != "rewards" and not (_fits(observations, chunks) and _fits(infos, chunks)):
        raise ValueError(f"observations or infos that are not of {chunks} chunks")
    return Tried(arrays[0], arrays[1], arrays[2], arrays[3], observations, infos)


def _fits(stacked: Any, rows: int) -> bool:
    if isinstance(stacked, dict):
        return all(_fits(part, rows) for part in stacked.values())
    if isinstance(stacked, tuple):
        return all(_fits(part, rows) for part in stacked)
    return isinstance(stacked, (list, np.ndarray)) and len(stacked) == rows


def check_ids(ids: Any) -> Sequence[str]:
    """Ids of a request; InputError when they are none, or one comes twice."""
    if (
        not isinstance(ids, (list, tuple))
        or not all(isinstance(name, str) for name in ids)
        or len(set(ids)) != len(ids)
    ):
        raise InputError(f"a list of different ids is due; got {str(ids)[:100]}")
    return ids
