"""What of its observations a session brings (docs/protocol.md, "Asking for less"). Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import spaces

from remote_env.errors import ConfigError

Pick = Callable[[Any], Any]
SEPARATOR = "/"
MAX_KEYS = 1024


@dataclass(frozen=True)
class DeliveryPlan:
    """How observations are to come.

    Attributes:
        keys: paths of a Dict space, such as "agent_pos" or "pixels/top"; None for all.
        float32: whether float64 arrays come as float32.
        image_every: with every how many-th step images come; in between, and never at ends, they stay away.
        codecs: how images are coded, by path ("" for an observation that is one image); those that are missing are raw.
        timing: whether each reply says how long it took in the simulator.
        state_changes: whether a step's state comes as what has changed since the last, where that is smaller.
        state_links: whether states that come with steps hold the poses of links, of single environments.
    """

    keys: tuple[str, ...] | None = None
    float32: bool = False
    image_every: int = 1
    codecs: Mapping[str, str] = field(default_factory=dict)
    timing: bool = False
    state_changes: bool = False
    state_links: bool = True

    @property
    def codes_images(self) -> bool:
        """Whether images travel otherwise than as plain arrays."""
        return self.image_every > 1 or bool(self.codecs)

    def to_plain(self) -> dict[str, Any]:
        """As it crosses."""
        keys = None if self.keys is None else list(self.keys)
        return {**vars(self), "keys": keys, "codecs": dict(self.codecs)}

    @classmethod
    def from_plain(cls, plain: Any) -> DeliveryPlan:
        """The exact opposite of `to_plain`.

        Raises:
            ConfigError: it is none.
        """
        try:
            keys, codecs = plain["keys"], plain["codecs"]
            if not isinstance(codecs, dict) or not isinstance(keys, (list, type(None))):
                raise TypeError("its keys are a list or None, its codecs a dict")
            plan = cls(
                None if keys is None else tuple(keys),
                plain["float32"],
                plain["image_every"],
                dict(codecs),
                plain["timing"],
                plain["state_changes"],
                plain["state_links"],
            )
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"no choice of what observations bring ({error!r:.100}): {str(plain)[:100]}") from error
        plan.check()
        return plan

    def check(self) -> None:
        """ConfigError when an entry is of a wrong kind or out of its bounds."""
        texts = [*(self.keys or ()), *self.codecs, *self.codecs.values()]
        if len(texts) > MAX_KEYS or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"observation keys and codecs are texts, at most {MAX_KEYS}; got {str(texts)[:200]}")
        if isinstance(self.image_every, bool) or not isinstance(self.image_every, int) or self.image_every < 1:
            raise ConfigError(f"image_every={self.image_every!r}: a whole number from 1 on")
        for name in ("float32", "timing", "state_changes", "state_links"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r}: True or False")


EVERYTHING = DeliveryPlan()


class Selection:
    """Picks from each observation what is wanted of it.

    Args:
        space: of the task's observations.
        keys: paths of what is wanted; None for all.
        float32: whether float64 arrays become float32.

    Attributes:
        space: of what is picked.
        is_all: whether that is everything, as it is.

    Raises:
        ConfigError: the observations have no such key; the message lists those there are.
    """

    def __init__(self, space: Any, keys: Collection[str] | None = None, *, float32: bool = False) -> None:
        self._check_keys(space, keys)
        wanted = None if keys is None else frozenset(keys)
        self.space, pick = _compile(space, wanted, "", float32=float32)
        self.is_all = pick is None
        self._pick: Pick = pick or (lambda observation: observation)

    @staticmethod
    def _check_keys(space: Any, keys: Collection[str] | None) -> None:
        if keys is None:
            return
        if isinstance(keys, str) or type(space).__name__ != "Dict":
            what = "one text" if isinstance(keys, str) else f"for a Dict of observations, and this task's are {space}"
            raise ConfigError(f"observation_keys is a list of keys; {keys!r} is {what}. Leave it out to get everything")
        known = list(_paths(space))
        if unknown := sorted(set(keys) - set(known)):
            raise ConfigError(f"the observations have no key {unknown[0]!r}; there are {', '.join(map(repr, known))}")

    def __call__(self, observation: Any) -> Any:
        """What is wanted of it; its arrays are the observation's own where nothing changes them."""
        return self._pick(observation)


def _paths(space: Any, path: str = "") -> Iterator[str]:
    if type(space).__name__ != "Dict":
        return
    for key, child in space.spaces.items():
        inner = join_path(path, key)
        yield inner
        yield from _paths(child, inner)


def join_path(path: str, key: Any) -> str:
    """The path of what `key` names in the Dict space at `path`."""
    return f"{path}{SEPARATOR}{key}" if path else str(key)


def _compile(space: Any, wanted: frozenset[str] | None, path: str, *, float32: bool) -> tuple[Any, Pick | None]:
    """What is left of `space`, and what picks it; None where that is the value itself."""
    kind = type(space).__name__
    if kind == "Dict":
        return _compile_dict(space, wanted, path, float32=float32)
    if kind == "Tuple" and float32:
        parts = [_compile(child, None, join_path(path, at), float32=True) for at, child in enumerate(space.spaces)]
        return spaces.Tuple([part for part, _ in parts]), _tuple_pick([pick for _, pick in parts])
    if kind == "Box" and float32 and space.dtype == np.float64:
        low, high = (bound.astype(np.float32) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.float32), lambda value: np.asarray(value, np.float32)
    return space, None


def _compile_dict(space: Any, wanted: frozenset[str] | None, path: str, *, float32: bool) -> tuple[Any, Pick | None]:
    kept: OrderedDict[str, Any] = OrderedDict()
    picks: dict[str, Pick | None] = {}
    for key, child in space.spaces.items():
        inner = join_path(path, key)
        is_whole = wanted is None or inner in wanted
        if not is_whole and not any(name.startswith(inner + SEPARATOR) for name in wanted or ()):
            continue
        kept[key], picks[key] = _compile(child, None if is_whole else wanted, inner, float32=float32)
    if len(kept) == len(space.spaces) and not any(picks.values()):
        return space, None
    return spaces.Dict(kept), _dict_pick(picks)


def _dict_pick(picks: Mapping[str, Pick | None]) -> Pick:
    def pick(value: Any) -> Any:
        return {key: value[key] if inner is None else inner(value[key]) for key, inner in picks.items()}

    return pick


def _tuple_pick(picks: list[Pick | None]) -> Pick | None:
    if not any(picks):
        return None

    def pick(value: Any) -> Any:
        return tuple(item if inner is None else inner(item) for inner, item in zip(picks, value, strict=True))

    return pick
