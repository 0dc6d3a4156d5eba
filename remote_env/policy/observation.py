"""The one place where what a task or a client offers becomes what a policy takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from remote_env.errors import InputError
from remote_env.policy.meta import STATES, MetaObs
from remote_env.policy.policy import Array, Feature, ObservationBatch, PolicyMetadata


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


def cast_state(values: Any, dtype: str) -> Array:
    """These numbers in a feature's dtype, C-contiguous: the only cast that states go through before a policy.

    A float64 that float32 cannot hold becomes inf, which `check_batch` refuses.
    """
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.dtype(dtype))


def describe_features(metadata: PolicyMetadata) -> str:
    """The features in one line: "state (41,) float32, pixels/top (480, 640, 3) uint8"."""
    return ", ".join(f"{name} {describe_feature(feature)}" for name, feature in metadata.observation.items())


def describe_feature(feature: Feature) -> str:
    """Shape, dtype and layout: "(480, 640, 3) uint8 HWC", or "text"."""
    if feature.kind == "text":
        return "text"
    return " ".join(filter(None, [str(feature.shape), feature.dtype, feature.layout]))


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
        raise InputError(f"{name!r} is an array (B, …) of {describe_feature(feature)}; got {type(value).__name__}")
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
    if feature.layout != "CHW":
        image = image.transpose(0, 2, 3, 1)
    if image.shape[1:] != feature.shape:
        raise InputError(
            f"{name!r} takes images {feature.shape} {feature.layout}; camera {index} of MetaObs.image gives "
            f"{image.shape[1:]}: resize it before it is sent"
        )
    return cast_image(image, feature.dtype)


def cast_image(image: Array, dtype: str) -> Array:
    """This image in a feature's dtype, C-contiguous: uint8 is 0–255, floats are 0–1."""
    wanted = np.dtype(dtype)
    if image.dtype == wanted:
        return np.ascontiguousarray(image)
    if wanted.kind == "f" and image.dtype == np.uint8:
        scaled: Array = np.ascontiguousarray(image, wanted) / wanted.type(255)
        return scaled
    if wanted == np.uint8 and image.dtype.kind == "f":
        return np.ascontiguousarray(np.rint(np.clip(image, 0, 1) * 255), wanted)
    return np.ascontiguousarray(image, wanted)


def _both_sides(observation: MetaObs, metadata: PolicyMetadata) -> str:
    offered = ", ".join(f"{name} {np.shape(value)}" for name, value in observation.to_plain().items())
    return f"the policy takes {describe_features(metadata)}; the MetaObs holds {offered or 'nothing'}"
