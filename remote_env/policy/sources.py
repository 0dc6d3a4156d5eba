"""What a task's observation space offers a policy, as a flat list with names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from gymnasium import spaces

from remote_env.errors import InputError
from remote_env.policy.images import layout_of, size_of

ROOT = "observation"  # the name of an observation that has no keys


@dataclass(frozen=True)
class Source:
    """One array or text of a task's observations.

    Attributes:
        path: the keys that lead to it; () when the observation is it.
        kind: "state", "image" or "text"; "other" is nothing that a policy takes.
        shape: of the array.
        dtype: a numpy name.
        names: of a state's numbers, when they are known.
        units: of them, likewise.
    """

    path: tuple[Any, ...]
    kind: Literal["state", "image", "text", "other"]
    shape: tuple[int, ...] = ()
    dtype: str = ""
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How it is written: "pixels/top", or "observation"."""
        return "/".join(map(str, self.path)) or ROOT

    @property
    def size(self) -> int:
        """How many numbers a state has."""
        return self.shape[0] if self.shape else 1

    @property
    def layout(self) -> str:
        """Of an image: "HWC" or "CHW"."""
        return layout_of(self.shape) if self.kind == "image" else ""

    @property
    def image_size(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return size_of(self.shape, self.layout)

    def read(self, observation: Any) -> Any:
        """This part of one observation; InputError when it is not there."""
        for key in self.path:
            try:
                observation = observation[key]
            except (KeyError, IndexError, TypeError) as error:
                raise InputError(f"the task's observation has no {self.label!r}, which its space declares") from error
        return observation

    def __str__(self) -> str:
        if self.kind == "text":
            return f"{self.label} text"
        return " ".join(filter(None, [self.label, str(self.shape), self.dtype, self.layout]))


def list_sources(
    space: spaces.Space[Any], state_names: Sequence[str] = (), state_units: Sequence[str] = ()
) -> list[Source]:
    """Every leaf of `space`, in its order.

    Args:
        space: of one environment's observations.
        state_names: of the numbers of the one state that has as many; otherwise they are not used.
        state_units: of the same state.
    """
    sources = list(_leaves(space, ()))
    fitting = [source for source in sources if source.kind == "state" and source.size == len(state_names)]
    called_state = [source for source in fitting if source.label.rpartition("/")[2] in ("state", ROOT)]
    for source in (called_state or fitting)[:1]:
        if len(called_state or fitting) == 1:
            units = tuple(state_units) if len(state_units) == source.size else ()
            sources[sources.index(source)] = replace(source, names=tuple(state_names), units=units)
    return sources


def _leaves(space: spaces.Space[Any], path: tuple[Any, ...]) -> Iterator[Source]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, index))
    elif isinstance(space, spaces.Text):
        yield Source(path, "text")
    else:
        yield _array_source(space, path)


def _array_source(space: spaces.Space[Any], path: tuple[Any, ...]) -> Source:
    shape, dtype = tuple(space.shape or ()), str(space.dtype)
    if space.shape is None or space.dtype is None or space.dtype.kind not in "fiub":
        return Source(path, "other", shape, type(space).__name__)
    if len(shape) <= 1:
        return Source(path, "state", shape, dtype)
    return Source(path, "image" if layout_of(shape) else "other", shape, dtype)
