"""How one feature's values come out of a task's observations, once it is known from where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError
from remote_env.policy.images import Resizing, cast_image, size_of, to_layout
from remote_env.policy.matching import Match, joined_names
from remote_env.policy.policy import Array, Feature
from remote_env.policy.sources import Source

# Unit -> (what it measures, how many of the base unit it is).
UNITS = {
    "rad": ("angle", 1.0),
    "deg": ("angle", np.pi / 180),
    "m": ("length", 1.0),
    "cm": ("length", 0.01),
    "mm": ("length", 0.001),
    "s": ("time", 1.0),
    "ms": ("time", 0.001),
    "rad/s": ("turning", 1.0),
    "deg/s": ("turning", np.pi / 180),
    "m/s": ("speed", 1.0),
    "mm/s": ("speed", 0.001),
}

# B observations of a task -> (B, *shape) array, or B texts.
Route = Callable[[Sequence[Any]], Any]


def make_route(feature: Feature, match: Match) -> tuple[Route, str]:
    """How the feature is read, and that in words.

    Raises:
        ConfigError: an option of its mapping is none, or does not fit these sources.
    """
    if feature.kind == "text":
        return _text_route(match)
    if feature.kind == "image":
        return _image_route(feature, match)
    return _state_route(feature, match)


def cast_state(values: Any, dtype: str) -> Array:
    """These numbers in a feature's dtype, C-contiguous: the only cast that states go through before a policy.

    A float64 that float32 cannot hold becomes inf, which `check_batch` refuses.
    """
    array = np.asarray(values)
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype)


def picked_columns(order: Any, names: Sequence[str], offered: int, wanted: int) -> NDArray[np.intp]:
    """Indices of the offered numbers, in the wanted order.

    Args:
        order: of each wanted number its index or name on the offering side.
        names: of the offered numbers, when they are known.
        offered: how many there are.
        wanted: how many are to be picked.

    Raises:
        ConfigError: `order` has another length, or an entry that there is not.
    """
    if len(order) != wanted:
        raise ConfigError(f"'order' has {len(order)} entries; {wanted} numbers are wanted")
    columns = [names.index(entry) if isinstance(entry, str) and entry in names else entry for entry in order]
    for entry in columns:
        if not isinstance(entry, int) or isinstance(entry, bool) or not 0 <= entry < offered:
            known = f" or one of {', '.join(names)}" if names else ""
            raise ConfigError(f"'order' holds {entry!r}; allowed is an index from 0 to {offered - 1}{known}")
    return np.array(columns, np.intp)


def unit_factors(have: Sequence[str], want: Sequence[str]) -> NDArray[np.float64] | None:
    """What numbers in units `have` are multiplied by to be in units `want`; None when by nothing.

    Raises:
        ConfigError: two units measure different things, or one is unknown and differs.
    """
    if not have or not want:
        return None
    factors = np.array([_factor(old, new) for old, new in zip(have, want, strict=True)])
    return None if (factors == 1).all() else factors


def scale_of(scale: Any, wanted: int) -> NDArray[np.float64] | None:
    """A mapping's 'scale': one number or one for each; None when there is none."""
    if scale is None:
        return None
    try:
        values = np.asarray(scale, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"'scale' is a number or {wanted} of them; got {scale!r}") from error
    if values.shape not in ((), (wanted,)) or not np.isfinite(values).all():
        raise ConfigError(f"'scale' is a number or {wanted} of them; got {scale!r}")
    return values


def _factor(old: str, new: str) -> float:
    if old == new or not old or not new:
        return 1.0
    if old in UNITS and new in UNITS and UNITS[old][0] == UNITS[new][0]:
        return UNITS[old][1] / UNITS[new][1]
    raise ConfigError(f"the task's unit {old!r} cannot become the policy's {new!r}; give a 'scale' and \"units\": \"\"")


def _state_route(feature: Feature, match: Match) -> tuple[Route, str]:
    wanted, names = feature.shape[0], joined_names(match.sources)
    offered = sum(source.size for source in match.sources)
    columns = _columns(feature, match.option("order"), names, offered)
    factors = [scale_of(match.option("scale"), wanted), unit_factors(_units(match, columns, wanted), feature.units)]
    scale: Any = np.prod([factor for factor in factors if factor is not None], axis=0)
    is_scaled = any(factor is not None for factor in factors)
    dtype = feature.dtype

    def read(observations: Sequence[Any]) -> Array:
        rows = _joined(match.sources, observations, offered)
        if columns is not None:
            rows = rows[:, columns]
        return cast_state(rows * scale if is_scaled else rows, dtype)

    words = [" + ".join(map(str, match.sources))]
    words += [f"{wanted} numbers in the policy's order"] if columns is not None else []
    words += ["scaled"] if is_scaled else []
    return read, ", ".join(words)


def _joined(sources: Sequence[Source], observations: Sequence[Any], offered: int) -> Array:
    """(B, offered) numbers of these sources, one after another."""
    parts = [_read(source, observations) for source in sources]
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if rows.shape != (len(observations), offered):
        label = " + ".join(source.label for source in sources)
        raise InputError(f"{label} has {rows[0].size} numbers; the task's space declares {offered}")
    return rows


def _read(source: Source, observations: Sequence[Any]) -> Array:
    try:
        values = np.array([source.read(observation) for observation in observations])
    except ValueError as error:
        raise InputError(f"{source.label} has another shape from one observation to the next: {error}") from error
    return values.reshape(len(values), -1)


def _columns(feature: Feature, order: Any, names: Sequence[str], offered: int) -> NDArray[np.intp] | None:
    """Which numbers in which order; None when they are taken as they are."""
    wanted = feature.shape[0]
    if order is not None and order != "as is":
        return picked_columns(order, names, offered, wanted)
    if order is None and feature.names and names and tuple(names) != feature.names:
        return picked_columns(feature.names, names, offered, wanted)
    return None


def _units(match: Match, columns: NDArray[np.intp] | None, wanted: int) -> list[str]:
    """The units that the picked numbers have at the task; [] when they are unknown."""
    given = match.option("units")
    if given is not None:
        units = [given] * wanted if isinstance(given, str) else list(given)
        if len(units) != wanted:
            raise ConfigError(f"'units' is one unit or {wanted} of them; got {given!r}")
        return units
    offered = [unit for source in match.sources for unit in source.units or [""] * source.size]
    return [offered[column] for column in columns] if columns is not None else offered


def _image_route(feature: Feature, match: Match) -> tuple[Route, str]:
    source, layout = match.sources[0], feature.layout or "HWC"
    height, width, _ = size_of(feature.shape, layout)
    old_height, old_width, _ = source.image_size
    resize = match.option("resize", False)
    if resize not in (True, False, "pad"):
        raise ConfigError(f"'resize' is true, false or \"pad\"; got {resize!r}")
    resizing = None
    if (height, width) != (old_height, old_width):
        resizing = Resizing.between(old_height, old_width, height, width, pad=resize == "pad")

    def read(observations: Sequence[Any]) -> Array:
        images = np.stack([np.asarray(source.read(observation)) for observation in observations])
        if images.shape[1:] != source.shape:
            raise InputError(f"{source.label} has shape {images.shape[1:]}; the task's space declares {source.shape}")
        images = to_layout(images, source.layout, "HWC")
        if resizing is not None:
            images = resizing.apply(images)
        return cast_image(to_layout(images, "HWC", layout), feature.dtype)

    words = [str(source)]
    words += [f"resized to {height}×{width}{' with borders' if resize == 'pad' else ''}"] if resizing else []
    words += [f"as {layout}"] if layout != source.layout else []
    words += [f"as {feature.dtype}"] if feature.dtype != source.dtype else []
    return read, ", ".join(words)


def _text_route(match: Match) -> tuple[Route, str]:
    if not match.sources:
        return lambda observations: [match.text] * len(observations), repr(match.text)
    source = match.sources[0]
    return lambda observations: [str(source.read(observation)) for observation in observations], str(source)
