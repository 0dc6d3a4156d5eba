"""What differs between a transition that was predicted and the one that came, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from remote_env.protocol.vector_step import Transition
from remote_env.state import SceneState

PARTS = ("observation", "reward", "terminated", "truncated", "info")
OF_THE_CLIENT = frozenset({"timing", "image_age"})  # entries of an info that tell of the link, not of the task
_SMALL_BYTES = 4096  # below which a copy costs less than a second look
_NUMBERS = (np.ndarray, np.generic, float, int)


class Difference(NamedTuple):
    """One value that came otherwise than predicted.

    Attributes:
        where: "observation", "reward", "info['is_success']" and so on.
        size: the largest absolute difference of two numbers in it, in the task's own unit; infinite where the values
            are of different kinds, or no numbers.
        predicted: the twin's value.
        actual: the remote's.
    """

    where: str
    size: float
    predicted: Any
    actual: Any

    def __str__(self) -> str:
        if isinstance(self.actual, np.ndarray) and self.actual.size > 1:
            return f"{self.where} differs by up to {self.size:g}"
        return f"{self.where} is {self.actual!r:.80} where {self.predicted!r:.80} was predicted"


def compare(predicted: Transition, actual: Transition) -> list[Difference]:
    """What differs at all between two transitions; of observations what `actual` brings, of infos everything.

    Args:
        predicted: observation, reward, terminated, truncated, info.
        actual: likewise; its observation may lack keys of a Dict that nobody asked for.
    """
    found: list[Difference] = []
    for name, ours, theirs in zip(PARTS, predicted, actual, strict=True):
        found += _differences(name, ours, theirs, is_whole=name == "info")
    return found


def compare_resets(predicted: tuple[Any, Any], actual: tuple[Any, Any]) -> list[Difference]:
    """As `compare`, of an observation and an info alone."""
    observations = _differences("observation", predicted[0], actual[0], is_whole=False)
    return [*observations, *_differences("info", predicted[1], actual[1], is_whole=True)]


def compare_states(predicted: SceneState | None, actual: SceneState | None) -> list[Difference]:
    """What differs between two scenes; nothing where one of them is not known."""
    if predicted is None or actual is None:
        return []
    if predicted.layout != actual.layout:
        return [Difference("state", np.inf, predicted.layout, actual.layout)]
    return list(_differences("state", predicted.values, actual.values, is_whole=True))


def _differences(where: str, predicted: Any, actual: Any, *, is_whole: bool) -> Iterator[Difference]:
    if isinstance(actual, Mapping) and isinstance(predicted, Mapping):
        for key in actual.keys() | predicted.keys() if is_whole else actual:
            if key in OF_THE_CLIENT and where == "info":
                continue
            inside = f"{where}[{key!r}]"
            if key not in actual or key not in predicted:
                yield Difference(inside, np.inf, predicted.get(key, "nothing"), actual.get(key, "nothing"))
            else:
                yield from _differences(inside, predicted[key], actual[key], is_whole=is_whole)
    elif isinstance(actual, (tuple, list)) and isinstance(predicted, (tuple, list)) and len(actual) == len(predicted):
        for index, (ours, theirs) in enumerate(zip(predicted, actual, strict=True)):
            yield from _differences(f"{where}[{index}]", ours, theirs, is_whole=is_whole)
    elif (size := _distance(predicted, actual)) is not None:
        yield Difference(where, size, predicted, actual)


def _distance(predicted: Any, actual: Any) -> float | None:
    """How far two values are apart, None when they are the same bits; infinite for what cannot be compared."""
    if predicted is actual:
        return None
    if isinstance(predicted, _NUMBERS) and isinstance(actual, _NUMBERS):
        return _array_distance(np.asarray(predicted), np.asarray(actual))
    return None if type(predicted) is type(actual) and predicted == actual else float(np.inf)


def _array_distance(predicted: Any, actual: Any) -> float | None:
    kinds = predicted.dtype.kind + actual.dtype.kind
    if predicted.shape != actual.shape or not (kinds[0] == kinds[1] or set(kinds) <= set("fiub")):
        return float(np.inf)
    predicted = predicted.astype(actual.dtype, copy=False)  # who asked for float32 has predicted float64
    if _are_same(predicted, actual):
        return None
    if not set(kinds) <= set("fiu"):
        return None if kinds == "OO" and np.array_equal(predicted, actual) else float(np.inf)
    apart = np.abs(predicted.astype(np.float64) - actual.astype(np.float64))
    apart = np.where(np.isnan(predicted) & np.isnan(actual), 0.0, apart)
    return float(np.inf) if np.isnan(apart).any() else float(apart.max())


def _are_same(predicted: Any, actual: Any) -> bool:
    if actual.nbytes <= _SMALL_BYTES or actual.dtype.kind not in "iub":
        return bool(predicted.tobytes() == actual.tobytes())
    return bool(np.array_equal(predicted, actual))
