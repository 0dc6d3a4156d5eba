"""The one place where what a task or a client offers becomes what a policy takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError
from remote_env.policy.assumed import assumed_metadata, is_unknown
from remote_env.policy.images import cast_image, to_layout
from remote_env.policy.matching import Matching, two_columns
from remote_env.policy.meta import STATES, MetaObs
from remote_env.policy.policy import Array, Feature, ObservationBatch, PolicyMetadata
from remote_env.policy.routes import Route, cast_state, make_route, picked_columns, scale_of, unit_factors
from remote_env.policy.sources import list_sources

ACTION_KEYS = ("order", "scale", "units", "names")


class ObservationMapping:
    """Turns a task's observations into a policy's batches; made and checked once, by `between`."""

    def __init__(self, routes: Mapping[str, tuple[Route, str]], metadata: PolicyMetadata) -> None:
        self._routes, self._metadata = routes, metadata

    @classmethod
    def between(
        cls,
        space: spaces.Space[Any],
        metadata: PolicyMetadata,
        *,
        given: Mapping[str, Any] | None = None,
        state_names: Sequence[str] = (),
        state_units: Sequence[str] = (),
        instruction: str = "",
    ) -> ObservationMapping:
        """How a policy's features come out of a task's observations.

        A feature takes what was given for it; else what has its name ("pixels/top" or "observation.images.top",
        failing that the last part, "top"); else the only one of its kind that fits. States whose numbers are named on
        both sides are put in order, or picked, by name.

        Args:
            space: of one environment's observations.
            metadata: of the policy.
            given: feature -> the name of a source, or a dict of: "from" (a name, or several whose numbers are joined),
                "order" (indices or names of the task's numbers, or "as is"), "scale" (a number or one for each),
                "units" (what the task's numbers are in), "resize" (true, or "pad" to keep proportions), "text". Of a
                policy whose server does not say what it takes, these are the features that are sent, and "shape" is
                what an image is resized to; without any, all that the task offers is sent under its own names.
            state_names: of the numbers of the task's state, when they are known.
            state_units: of the same.
            instruction: for the policy's text features.

        Raises:
            ConfigError: a feature has no source or could have two, or the mapping has a fault; the message says what
                the policy takes, what the task offers and how to write the mapping.
        """
        sources, given = list_sources(space, state_names, state_units), dict(given or {})
        if is_unknown(metadata):
            metadata, given = assumed_metadata(metadata, sources, given, instruction)
        matching = Matching(metadata, sources, given, instruction)
        matches = matching.find()
        routes, faults = {}, {}
        for name, feature in metadata.observation.items():
            try:
                routes[name] = make_route(feature, matches[name])
            except ConfigError as error:
                faults[name] = str(error)
        if faults:
            raise ConfigError(matching.explain(faults))
        return cls(routes, metadata)

    def batch(self, observations: Sequence[Any]) -> ObservationBatch:
        """B observations of the task as one batch of the policy.

        Raises:
            InputError: an observation is not of the task's space.
        """
        return {name: read(observations) for name, (read, _) in self._routes.items()}

    def describe(self) -> str:
        """One line per feature: what it takes, and from where."""
        features = self._metadata.observation
        return "\n".join(f"{name} {features[name]}  <-  {words}" for name, (_, words) in self._routes.items())


class ActionMapping:
    """Turns a policy's actions into a task's; made and checked once, by `between`."""

    def __init__(self, convert: Callable[[Array], Array], size: int, words: str) -> None:
        self._convert, self._size, self._words = convert, size, words

    @classmethod
    def between(
        cls,
        space: spaces.Space[Any],
        metadata: PolicyMetadata,
        given: Mapping[str, Any] | None = None,
        *,
        action_names: Sequence[str] = (),
    ) -> ActionMapping:
        """How a task's action comes out of a row of the policy's.

        Args:
            space: of one environment's actions; they are never clipped to it.
            metadata: of the policy.
            given: "order" (indices or names of the policy's numbers, in the task's order, or "as is"), "scale",
                "units" and "names" (of the task's numbers).
            action_names: the same as "names".

        Raises:
            ConfigError: the two do not fit, or the mapping has a fault; the message lists both sides.
        """
        options = dict(given or {})
        if unknown := sorted(set(options) - set(ACTION_KEYS)):
            raise ConfigError(f"the mapping of actions has unknown keys {unknown}; there are {', '.join(ACTION_KEYS)}")
        names = tuple(options.get("names", action_names))
        if is_unknown(metadata) and not metadata.action_names:
            size = int(np.prod(space.shape or ()))
            metadata, names = replace(metadata, action_names=tuple(f"action_{n}" for n in range(size))), ()
        try:
            return cls._made(space, metadata, options, names)
        except ConfigError as error:
            takes = [str(space), *names]
            lines = two_columns("the policy gives", metadata.action_names, "the task takes", takes)
            head = f"the policy {metadata.name!r} does not fit the task's actions: {error}"
            tail = 'say which is which, as in {"order": [0, 1, 2]}: indices or names of the policy\'s numbers'
            raise ConfigError("\n".join([head, *lines, tail])) from None

    @classmethod
    def _made(
        cls, space: spaces.Space[Any], metadata: PolicyMetadata, options: Mapping[str, Any], names: tuple[str, ...]
    ) -> ActionMapping:
        if not isinstance(space, spaces.Box) or space.dtype.kind != "f":
            raise ConfigError(f"an action of the task is {space}; only a Box of floats can be filled")
        shape, dtype, wanted = space.shape, space.dtype, int(np.prod(space.shape))
        columns = _action_columns(metadata, options.get("order"), names, wanted)
        factors = [scale_of(options.get("scale"), wanted), _action_factors(metadata, options, columns, wanted)]
        scale: Any = np.prod([factor for factor in factors if factor is not None], axis=0)
        is_scaled = any(factor is not None for factor in factors)

        def convert(row: Array) -> Array:
            picked = row if columns is None else row[columns]
            scaled: Array = picked * scale if is_scaled else picked
            return np.array(scaled, dtype).reshape(shape)

        order = "" if columns is None else ", in the task's order"
        words = f"{wanted} numbers {dtype}{order}{', scaled' if is_scaled else ''}"
        return cls(convert, metadata.action_size, words)

    def action(self, row: Array) -> Array:
        """The task's action of one (D,) row of a chunk; the caller's own, in the task's dtype and shape.

        Raises:
            InputError: the row does not have the policy's D numbers.
        """
        if row.shape != (self._size,):
            raise InputError(f"an action of this policy is ({self._size},); got {row.shape}")
        return self._convert(row)

    def describe(self) -> str:
        """In one line what an action is made of."""
        return self._words


def check_batch(observation: ObservationBatch, metadata: PolicyMetadata) -> int:
    """B, after checking that the batch is exactly of the policy's features.

    Raises:
        InputError: a feature is missing, unknown, not finite, or of another shape, dtype or B; the message names it.
    """
    wanted = metadata.observation
    if observation.keys() != wanted.keys():
        raise InputError(_other_features(observation, metadata))
    size: int | None = None
    for name, feature in wanted.items():
        value = observation[name]
        rows = _check_texts(name, value) if feature.kind == "text" else _check_array(name, value, feature)
        if size is not None and rows != size:
            raise InputError(f"{name!r} has {rows} rows, the features before it {size}; each needs one per observation")
        size = rows
    if not size:
        raise InputError(f"the batch holds no observation; {metadata.name!r} takes {describe_features(metadata)}")
    return size


def from_meta(observation: MetaObs, metadata: PolicyMetadata) -> ObservationBatch:
    """The policy's features out of a MetaObs; a single one becomes a batch of one.

    A state feature takes the MetaObs' field of its name (`state_joint`, …), else `state`; "timestep" of shape (1,)
    takes that. Image features take the cameras in their order. A text takes `raw_lang`.

    Raises:
        InputError: a field that a feature needs is missing or of another size; both sides are listed.
    """
    size = observation.batch_size
    images = [name for name, feature in metadata.observation.items() if feature.kind == "image"]
    if images:
        _check_cameras(observation, images, metadata)
    batch: dict[str, Any] = {}
    for name, feature in metadata.observation.items():
        if feature.kind == "image":
            batch[name] = _meta_image(observation, images.index(name), name, feature)
        elif feature.kind == "text":
            texts = observation.raw_lang
            batch[name] = [texts] * (size or 1) if isinstance(texts, str) else list(texts)
        else:
            batch[name] = _meta_state(observation, name, feature, metadata)
    return batch


def describe_features(metadata: PolicyMetadata) -> str:
    """The features in one line: "state (41,) float32, pixels/top (480, 640, 3) uint8"."""
    return ", ".join(f"{name} {feature}" for name, feature in metadata.observation.items())


def _action_columns(
    metadata: PolicyMetadata, order: Any, names: tuple[str, ...], wanted: int
) -> NDArray[np.intp] | None:
    own = metadata.action_names
    if names and len(names) != wanted:
        raise ConfigError(f"{len(names)} names were given for the task's {wanted} numbers")
    if order is not None and order != "as is":
        if not isinstance(order, (list, tuple)):
            raise ConfigError(f"'order' is a list of indices or names, or 'as is'; got {order!r}")
        return picked_columns(order, own, len(own), wanted)
    if order is None and names and set(names) <= set(own):
        return None if names == own else picked_columns(names, own, len(own), wanted)
    if order is None and names:
        raise ConfigError(f"the policy does not give {', '.join(name for name in names if name not in own)}")
    if len(own) != wanted:
        raise ConfigError(f"it gives {len(own)} numbers, the task takes {wanted}")
    return None


def _action_factors(
    metadata: PolicyMetadata, options: Mapping[str, Any], columns: NDArray[np.intp] | None, wanted: int
) -> NDArray[np.float64] | None:
    given = options.get("units")
    if given is None or not metadata.action_units:
        return None
    units = [given] * wanted if isinstance(given, str) else list(given)
    own = metadata.action_units
    if len(units) != wanted:
        raise ConfigError(f"'units' is one unit or {wanted} of them; got {given!r}")
    return unit_factors([own[column] for column in (range(wanted) if columns is None else columns)], units)


def _other_features(observation: ObservationBatch, metadata: PolicyMetadata) -> str:
    missing = sorted(set(metadata.observation) - set(observation))
    unknown = sorted(set(observation) - set(metadata.observation))
    parts = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
    parts += [f"has {', '.join(map(repr, unknown))}, which it does not take"] if unknown else []
    return f"the observation {' and '.join(parts)}; {metadata.name!r} takes {describe_features(metadata)}"


def _check_texts(name: str, value: Any) -> int:
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise InputError(f"{name!r} is a list of one text per observation; got {type(value).__name__}")
    return len(value)


def _check_array(name: str, value: Any, feature: Feature) -> int:
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name!r} is an array (B, …) of {feature}; got {type(value).__name__}")
    if value.shape[1:] != feature.shape or value.ndim != len(feature.shape) + 1:
        wanted = f"(B, {str(feature.shape)[1:]}"
        hint = "; add the batch: x[None]" if value.shape == feature.shape else ""
        raise InputError(f"{name!r} has shape {wanted} {feature.layout or feature.dtype}; got {value.shape}{hint}")
    if value.dtype != feature.dtype:
        raise InputError(f"{name!r} is {feature.dtype}; got {value.dtype}: use x.astype({feature.dtype!r})")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise InputError(f"{name!r} must be finite; {_where_not_finite(value, feature)}")
    return len(value)


def _where_not_finite(value: Array, feature: Feature) -> str:
    row, *rest = (int(index) for index in np.argwhere(~np.isfinite(value))[0])
    named = f" ({feature.names[rest[0]]})" if len(rest) == 1 and len(feature.names) == feature.shape[0] else ""
    return f"got {value[(row, *rest)]} at {tuple(rest)}{named} of row {row}"


def _meta_state(observation: MetaObs, name: str, feature: Feature, metadata: PolicyMetadata) -> Array:
    field = _meta_field(name, feature)
    value = getattr(observation, field)
    if value is None:
        raise InputError(f"{name!r} needs MetaObs.{field}, which is missing; {_both_sides(observation, metadata)}")
    rows = np.asarray(value)
    rows = rows if observation.is_batched else rows.reshape(1, -1)
    if rows.shape[1:] != feature.shape:
        raise InputError(
            f"{name!r} takes {feature.shape[0]} numbers{_named(feature)}; MetaObs.{field} holds {rows.shape[-1]}; "
            + _both_sides(observation, metadata)
        )
    return cast_state(rows, feature.dtype)


def _meta_field(name: str, feature: Feature) -> str:
    last = name.replace("/", ".").rpartition(".")[2]
    if last in STATES:
        return last
    return "timestep" if last == "timestep" and feature.shape == (1,) else "state"


def _named(feature: Feature) -> str:
    if not feature.names:
        return ""
    shown = ", ".join(feature.names[:4]) + (", …" if len(feature.names) > 4 else "")
    return f" ({shown})"


def _check_cameras(observation: MetaObs, images: list[str], metadata: PolicyMetadata) -> None:
    count = 0 if observation.image is None else observation.image.shape[-4]
    if count != len(images):
        raise InputError(
            f"the policy takes {len(images)} images, in this order: {', '.join(images)}; MetaObs.image holds {count}; "
            + _both_sides(observation, metadata)
        )


def _meta_image(observation: MetaObs, index: int, name: str, feature: Feature) -> Array:
    cameras: Any = observation.image
    image = cameras[:, index] if observation.is_batched else cameras[None, index]
    image = to_layout(image, "CHW", feature.layout or "HWC")
    if image.shape[1:] != feature.shape:
        raise InputError(
            f"{name!r} takes images {feature.shape} {feature.layout}; camera {index} of MetaObs.image gives "
            f"{image.shape[1:]}: resize it before it is sent"
        )
    return cast_image(image, feature.dtype)


def _both_sides(observation: MetaObs, metadata: PolicyMetadata) -> str:
    offered = ", ".join(f"{name} {np.shape(value)}" for name, value in observation.to_plain().items())
    return f"the policy takes {describe_features(metadata)}; the MetaObs holds {offered or 'nothing'}"
