"""Reading the HDF5 file of one episode, checked; `remote_env.record.hdf5` states its layout."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from remote_env.errors import CaptureError
from remote_env.record.checks import check_episode
from remote_env.record.episode import Array, Episode, EpisodeInfo
from remote_env.record.hdf5 import SCHEMA, SCHEMA_VERSION
from remote_env.state import SceneDescription, SceneLayout

MAX_COMPRESSION = 1100  # deflate shrinks by 1032 at the most
FREE_BYTES = 1 << 20  # a claim up to this is believed
MAX_TEXT_BYTES = 64 << 20  # of one text, unpacked: what describes a scene has a few KiB
_NUMBERS = "biufc"  # kinds of dtypes


def read_hdf5(path: Path, *, images: bool, check: bool = True) -> Episode:
    """The episode in `path`.

    Args:
        path: the file.
        images: also load the camera images; their number is checked all the same.
        check: refuse what contradicts itself. Without, only what cannot be read is refused.

    Raises:
        CaptureError: the file is missing, damaged or no capture; the message says which part of it.
    """
    try:
        with h5py.File(path, "r") as file:
            check_links(file)
            episode = _read_file(file, images=images)
            if check:
                _check_images(file, len(episode), path)
    except FileNotFoundError as error:
        raise CaptureError(f"there is no capture {path}") from error
    except CaptureError:
        raise
    # h5py reports damage as any of these; which one depends on where the damage lies.
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as error:
        raise CaptureError(f"{path} is damaged or is not a capture: {_in_words(error)}") from error
    if check:
        check_episode(episode, path)
    return episode


def _in_words(error: BaseException) -> str:
    if isinstance(error, KeyError):  # h5py's own is a sentence, as one argument
        return str(error.args[0]) if error.args else "a part is missing"
    return str(error) or type(error).__name__


def _read_file(file: h5py.File, *, images: bool) -> Episode:
    schema, version = file.attrs.get("schema"), file.attrs.get("schema_version")
    if schema != SCHEMA or version != SCHEMA_VERSION:
        raise ValueError(f"its schema is {schema!r} version {version}; this reads {SCHEMA!r} version {SCHEMA_VERSION}")
    layout = None
    if "scene/values" in file:
        layout = SceneLayout.from_plain(_read_json(file["scene"], "layout"))
        _ = layout.offsets  # InputError where two entities share a name
    natives: Any = claimed_dataset(file["scene/native"])[()] if "scene/native" in file else ()
    return Episode(
        _read_info(file),
        actions=_read_rows(file, "action"),
        rewards=_read_column(file, "rewards"),
        terminated=_read_column(file, "terminated"),
        truncated=_read_column(file, "truncated"),
        infos=_read_infos(file),
        observations=_read_observations(file["observations"], _read_rows, images=images),
        final_observation=_read_observations(file["final_observation"], _read_array, images=images)
        if "final_observation" in file
        else {},
        layout=layout,
        scene_values=_read_rows(file, "scene/values") if layout is not None else None,
        natives=[row.tobytes() for row in natives],
        description=_read_description(file["scene"]) if "scene" in file else None,
    )


def _read_info(file: h5py.File) -> EpisodeInfo:
    attrs = file.attrs
    plain = {name: _read_json(file, name) for name in ("env_kwargs", "versions", "extra")}
    for name, value in plain.items():
        if not isinstance(value, dict):
            raise ValueError(f"its {name} is {str(value)[:80]}; it must be a JSON object")
    return EpisodeInfo(
        rate_hz=float(attrs["rate_hz"]),
        task=str(attrs["task"]),
        seed=json.loads(attrs["seed"]) if "seed" in attrs else None,
        host=str(attrs["host"]),
        created_s=float(attrs["created_s"]),
        **plain,
    )


def _read_infos(file: h5py.File) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in claimed_dataset(file["infos"]).asstr()[:]]
    for row, line in enumerate(lines):
        if not isinstance(line, dict):
            raise ValueError(f"/infos row {row} is {str(line)[:80]}; each must be a JSON object")
    return lines


def _read_description(scene: h5py.Group) -> SceneDescription | None:
    if "shapes" not in scene.attrs and "shapes" not in scene:
        return None
    mjcf = _read_string(scene["mjcf"]) if "mjcf" in scene else ""
    return SceneDescription.from_plain(
        {"shapes": _read_json(scene, "shapes"), "mjcf": mjcf, "notes": _read_json(scene, "notes")}
    )


def _read_json(group: h5py.Group, name: str) -> Any:
    """The JSON text in an attribute, or in a dataset where it is too long for one."""
    return json.loads(_read_string(group[name]) if name in group else group.attrs[name])


def _read_string(dataset: h5py.Dataset) -> str:
    if claimed_dataset(dataset).size * dataset.dtype.itemsize > MAX_TEXT_BYTES:
        raise ValueError(f"{dataset.name} is a text of more than {MAX_TEXT_BYTES} bytes")
    return str(claimed_dataset(dataset).asstr()[0])


def _read_observations(
    group: h5py.Group, read: Callable[[h5py.Group, str], Array], *, images: bool
) -> dict[str, Array]:
    found = {key: read(group, key) for key in group if key != "images"}
    if images and "images" in group:
        found |= {f"images/{camera}": read(group["images"], camera) for camera in group["images"]}
    return found


def _read_array(group: h5py.Group, name: str) -> Array:
    dataset = claimed_dataset(group[name])
    if dataset.dtype.kind not in _NUMBERS:
        raise ValueError(f"{dataset.name} has dtype {dataset.dtype}; numbers were expected")
    return np.asarray(dataset[()])


def _read_rows(group: h5py.Group, name: str) -> Array:
    """An array with a first axis, the steps."""
    array = _read_array(group, name)
    if not array.ndim:
        raise ValueError(f"{group[name].name} is one number; a row for each step was expected")
    return array


def _read_column(group: h5py.Group, name: str) -> Array:
    """(T,) real numbers or booleans."""
    array = _read_array(group, name)
    if array.ndim != 1 or array.dtype.kind == "c":
        raise ValueError(f"{group[name].name} is {array.dtype} {array.shape}; a real number for each step was expected")
    return array


def check_links(file: h5py.File) -> None:
    """Make sure that the file stands alone: links could lead into any other file of this machine."""

    def leads_out(name: bytes, info: Any) -> str | None:  # raising in here would confuse h5py
        return None if info.type in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT) else name.decode(errors="replace")

    found = file.id.links.visit(leads_out, info=True)
    if found is not None:
        raise ValueError(f"/{found} is a link into another file; a capture stands alone")


def claimed_dataset(dataset: h5py.Dataset) -> h5py.Dataset:
    """`dataset`, once it is known that the file can hold what it claims: no memory is taken on a word.

    Raises:
        ValueError: it claims more bytes than its part of the file can unpack to, or its bytes lie in other files.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{dataset.name} is a group; numbers were expected")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name} has its numbers in other files; a capture stands alone")
    count = max(dataset.size or 0, math.prod(dataset.chunks or ()))  # a chunk is unpacked as a whole
    claimed = count * dataset.dtype.itemsize
    stored = min(dataset.id.get_storage_size(), dataset.file.id.get_filesize())
    if claimed > FREE_BYTES + MAX_COMPRESSION * stored:
        raise ValueError(f"{dataset.name} claims {dataset.shape} {dataset.dtype}, {claimed} bytes, and holds {stored}")
    return dataset


def _check_images(file: h5py.File, steps: int, path: Path) -> None:
    """Every camera has a frame for each step, and one after the last; also where they are not loaded."""
    cameras = dict(file["observations"].get("images", {}))
    for camera, frames in cameras.items():
        if len(frames) != steps:
            raise CaptureError(
                f"{path} is damaged: /rewards has {steps} steps, but camera {camera!r} {len(frames)} images"
            )
    last = set(file["final_observation"].get("images", {})) if "final_observation" in file else set(cameras)
    if last != set(cameras):
        differing = sorted(last ^ set(cameras))
        raise CaptureError(
            f"{path} is damaged: the images of {differing} are missing in one of /observations and /final_observation"
        )
