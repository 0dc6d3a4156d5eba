"""MetaObs and MetaAction: one observation and one action in the shape that users of IL-Studio know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from remote_env.errors import InputError
from remote_env.policy.policy import Array

CTRL_SPACES = ("joint", "ee")
CTRL_TYPES = ("abs", "delta", "relative")
CHANNELS = (1, 3, 4)

# Field -> how many dimensions one observation has, and how they are written.
_ARRAYS: dict[str, tuple[int, str]] = {
    "state": (1, "(D,)"),
    "state_ee": (1, "(D,)"),
    "state_joint": (1, "(D,)"),
    "state_obj": (1, "(D,)"),
    "image": (4, "(K, C, H, W)"),
    "depth": (3, "(K, H, W)"),
    "pc": (2, "(n, 3)"),
}
MAX_TIMESTEP = (1 << 63) - 1
STATES = ("state", "state_ee", "state_joint", "state_obj")


@dataclass(eq=False)
class MetaObs:
    """One observation, or a batch of B, each array then with B in front.

    Attributes:
        state: (D,) numbers, or None; so are `state_ee`, `state_joint` and `state_obj`, each with a D of its own.
        state_ee: of the end effectors.
        state_joint: of the joints.
        state_obj: of the objects.
        image: (K, C, H, W) uint8 of K cameras.
        depth: (K, H, W) numbers.
        pc: (n, 3) points.
        raw_lang: the instruction; of a batch, a list of B.
        timestep: of the episode, from 0; of a batch, (B, 1) int64.

    Raises:
        InputError: a field is of another shape or dtype, or two disagree about B; the message names it.
    """

    state: Array | None = None
    state_ee: Array | None = None
    state_joint: Array | None = None
    state_obj: Array | None = None
    image: Array | None = None
    depth: Array | None = None
    pc: Array | None = None
    raw_lang: str | list[str] = ""
    timestep: int | Array = 0

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            if (value := getattr(self, name)) is not None:
                setattr(self, name, _checked_array(name, value))
        size = self.batch_size
        self.raw_lang = _checked_texts(self.raw_lang, size)
        self.timestep = _checked_timestep(self.timestep, size)

    @property
    def is_batched(self) -> bool:
        """Whether this holds B observations."""
        return self.batch_size is not None

    @property
    def batch_size(self) -> int | None:
        """B, or None of a single observation."""
        sizes = {
            name: len(value) if value.ndim > _ARRAYS[name][0] else None
            for name in _ARRAYS
            if (value := getattr(self, name)) is not None
        }
        if not sizes:
            return _batch_size_of_rest(self.raw_lang, self.timestep)
        if len(sizes) > 1 and len(set(sizes.values())) > 1:
            said = ", ".join(f"{name}: {'one' if size is None else size}" for name, size in sizes.items())
            raise InputError(f"the fields of a MetaObs hold different numbers of observations ({said})")
        return next(iter(sizes.values()))

    def to_plain(self) -> dict[str, Any]:
        """The fields that are there, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> MetaObs:
        """The exact opposite of `to_plain`; InputError when a field is wrong or there is no such field."""
        return cls(**_known_fields(cls, plain))


@dataclass(eq=False)
class MetaAction:
    """One action.

    Attributes:
        action: (D,) numbers; the last one is a gripper (1 open) where there is one.
        ctrl_space: what it moves: "joint" or "ee".
        ctrl_type: "abs" (where to go), "delta" (from the last target) or "relative" (to the present state).
        gripper_continuous: whether the gripper takes values between open and closed.

    Raises:
        InputError: a field is of another shape or kind; the message names it.
    """

    ctrl_space: str = "joint"
    ctrl_type: str = "abs"
    action: Array | None = None
    gripper_continuous: bool = True

    def __post_init__(self) -> None:
        _check_choice("ctrl_space", self.ctrl_space, CTRL_SPACES)
        _check_choice("ctrl_type", self.ctrl_type, CTRL_TYPES)
        self.action = _numbers("action", self.action)
        if self.action.ndim != 1:
            raise InputError(f"MetaAction.action is (D,); got an array of shape {self.action.shape}")
        if not isinstance(self.gripper_continuous, (bool, np.bool_)):
            raise InputError(f"MetaAction.gripper_continuous is True or False; got {self.gripper_continuous!r}")
        self.gripper_continuous = bool(self.gripper_continuous)

    def to_plain(self) -> dict[str, Any]:
        """The four fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> MetaAction:
        """The exact opposite of `to_plain`; InputError when a field is wrong or there is no such field."""
        return cls(**_known_fields(cls, plain))


def stack_observations(observations: Sequence[MetaObs]) -> MetaObs:
    """The batch of these single observations, in their order.

    Raises:
        InputError: there are none, one is a batch already, or they do not have the same fields of the same shapes.
    """
    if not observations:
        raise InputError("a batch needs at least one observation")
    if any(observation.is_batched for observation in observations):
        raise InputError("stack_observations takes single observations; one of these is a batch already")
    return MetaObs(
        **{name: _stacked(name, observations) for name in _ARRAYS},
        raw_lang=[str(observation.raw_lang) for observation in observations],
        timestep=np.array([[observation.timestep] for observation in observations], np.int64),
    )


def split_observation(observation: MetaObs) -> list[MetaObs]:
    """The single observations of a batch, whose arrays they share; of a single one a list with it."""
    size = observation.batch_size
    if size is None:
        return [observation]
    timesteps: Any = observation.timestep
    return [
        MetaObs(
            **{name: None if (value := getattr(observation, name)) is None else value[row] for name in _ARRAYS},
            raw_lang=observation.raw_lang[row],
            timestep=int(timesteps[row, 0]),
        )
        for row in range(size)
    ]


def _stacked(name: str, observations: Sequence[MetaObs]) -> Array | None:
    values = [getattr(observation, name) for observation in observations]
    if all(value is None for value in values):
        return None
    shapes = {None if value is None else value.shape for value in values}
    if len(shapes) > 1:
        said = ", ".join(sorted("missing" if shape is None else str(shape) for shape in shapes))
        raise InputError(f"{name} is not the same in all observations of this batch: {said}")
    return np.stack(values)


def _numbers(name: str, value: Any) -> Array:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} is an array of numbers; got dtype {array.dtype} ({type(value).__name__})")
    return array


def _checked_array(name: str, value: Any) -> Array:
    array = _numbers(name, value)
    dimensions, shape = _ARRAYS[name]
    if array.ndim not in (dimensions, dimensions + 1):
        raise InputError(f"MetaObs.{name} is {shape}, or (B, {shape[1:]} of a batch; got shape {array.shape}")
    if name == "image":
        _check_image(array)
    if name == "pc" and array.shape[-1] != 3:
        raise InputError(f"MetaObs.pc is (n, 3), or (B, n, 3) of a batch; got shape {array.shape}")
    return array


def _check_image(array: Array) -> None:
    if array.dtype != np.uint8:
        raise InputError(f"MetaObs.image is uint8, 0 to 255; got {array.dtype}")
    if array.shape[-3] not in CHANNELS:
        hint = "; this looks like (H, W, C): use image.transpose(0, 3, 1, 2)" if array.shape[-1] in CHANNELS else ""
        raise InputError(f"MetaObs.image is (K, C, H, W) with 1, 3 or 4 channels; got shape {array.shape}{hint}")


def _batch_size_of_rest(texts: Any, timestep: Any) -> int | None:
    if not isinstance(texts, str) and isinstance(texts, (Sequence, np.ndarray)):
        return len(texts)
    if isinstance(timestep, np.ndarray) and timestep.ndim:
        return len(timestep)
    return None


def _checked_texts(value: Any, batch_size: int | None) -> str | list[str]:
    if type(value) is str and batch_size is None:
        return value
    texts = [value] if isinstance(value, str) else list(value) if _has_items(value) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise InputError(f"MetaObs.raw_lang is a text, or a list of them; got {type(value).__name__}")
    texts = [str(text) for text in texts]  # numpy's strings are str, but not to every coder
    if len(texts) == 1 and (batch_size is None or isinstance(value, str)):
        return texts[0] if batch_size is None else texts * batch_size
    if len(texts) != batch_size:
        raise InputError(f"MetaObs.raw_lang holds {len(texts)} texts for {batch_size or 'one'} observation(s)")
    return texts


def _has_items(value: Any) -> bool:
    return isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _checked_timestep(value: Any, batch_size: int | None) -> int | Array:
    if type(value) is int and value >= 0 and batch_size is None:
        return value
    array = _numbers("timestep", value)
    if array.dtype.kind not in "iu" or (array < 0).any() or (array > MAX_TIMESTEP).any():
        raise InputError(f"MetaObs.timestep counts from 0 in whole numbers; got {value!r:.100}")
    if array.size == 1 and batch_size is None:
        return int(array.reshape(()))
    if array.ndim == 0:
        return np.full((batch_size or 1, 1), int(array), np.int64)
    if array.shape not in ((batch_size,), (batch_size, 1)):
        raise InputError(f"MetaObs.timestep is (B, 1) of a batch, here of {batch_size}; got shape {array.shape}")
    return array.reshape(-1, 1).astype(np.int64)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"MetaAction.{name} is one of {', '.join(choices)}; got {value!r}")


def _known_fields(cls: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(cls)]
    if unknown := sorted(set(plain) - set(known)):
        raise InputError(f"{cls.__name__} has no field {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    return dict(plain)
