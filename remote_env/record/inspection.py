"""What there is to know of a capture without replaying it."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from remote_env.errors import CaptureError
from remote_env.record.checks import check_episode
from remote_env.record.episode import Episode
from remote_env.record.hdf5 import SCHEMA, SCHEMA_VERSION
from remote_env.record.recovery import read_episode
from remote_env.state import SceneDescription, SceneLayout


def inspect_capture(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Facts about a `.hdf5` or `.part`, as plain values that JSON can hold.

    "problem" says what `read_episode` would refuse, "" when it takes the file.

    Raises:
        CaptureError: the file is missing, is no capture, or so damaged that nothing can be told.
    """
    path = Path(path)
    episode = read_episode(path, images=False, check=False)
    size = path.stat().st_size
    steps = len(episode)
    return {
        "path": str(path),
        "schema": SCHEMA if path.suffix != ".part" else "recording in progress, or one that broke off",
        "schema_version": SCHEMA_VERSION,
        "size_bytes": size,
        "bytes_per_step": round(size / steps) if steps else None,
        **_about(episode),
        "steps": steps,
        "duration_s": round(steps / episode.info.rate_hz, 6) if episode.info.rate_hz > 0 else None,
        **_outcome(episode),
        "action": _shape(episode.actions),
        "observations": {key: _shape(np.asarray(value)) for key, value in _observations(episode).items()},
        "images": _images(path, episode),
        "scene": _scene(episode.layout),
        "native_bytes": max(map(len, episode.natives), default=0),
        "description": _description(episode.description),
        "dropped_bytes": episode.dropped_bytes,
        "problem": _problem(path, episode),
    }


def _about(episode: Episode) -> dict[str, Any]:
    info = episode.info
    return {
        "task": info.task,
        "env_kwargs": info.env_kwargs,
        "rate_hz": info.rate_hz,
        "seed": info.seed,
        "host": info.host,
        "created": _time(info.created_s),
        "versions": info.versions,
        "extra": info.extra,
    }


def _time(unix_s: float) -> str:
    if not 0 < unix_s < 1e11:
        return ""
    return datetime.datetime.fromtimestamp(unix_s, datetime.timezone.utc).isoformat(timespec="seconds")


def _outcome(episode: Episode) -> dict[str, Any]:
    told = [bool(info["is_success"]) for info in episode.infos if "is_success" in info]
    flag = bool(len(episode))
    return {
        "complete": episode.complete,
        "terminated": flag and bool(episode.terminated[-1]),
        "truncated": flag and bool(episode.truncated[-1]),
        "reward_sum": float(np.sum(episode.rewards)),
        "success": any(told) if told else None,
    }


def _observations(episode: Episode) -> dict[str, Any]:
    return {key: value for key, value in episode.observations.items() if not key.startswith("images/")}


def _shape(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def _images(path: Path, episode: Episode) -> dict[str, Any]:
    """Camera -> shape and dtype, without reading a frame."""
    if path.suffix == ".part":
        found = {key: value for key, value in episode.observations.items() if key.startswith("images/")}
        return {key.removeprefix("images/"): _shape(np.asarray(value)) for key, value in found.items()}
    with h5py.File(path, "r") as file:
        images = file["observations"].get("images")
        if not isinstance(images, h5py.Group):
            return {}
        return {
            camera: {"shape": list(images[camera].shape), "dtype": str(images[camera].dtype)}
            for camera in images
            if isinstance(images[camera], h5py.Dataset)
        }


def _scene(layout: SceneLayout | None) -> dict[str, Any] | None:
    if layout is None:
        return None
    entities = {
        entity.name: {"joints": list(entity.joint_names), "links": list(entity.link_names)}
        for entity in layout.entities
    }
    return {"source": layout.source, "values_per_state": layout.size, "entities": entities}


def _description(description: SceneDescription | None) -> dict[str, Any] | None:
    if description is None:
        return None
    shapes: dict[str, int] = {}
    for shape in description.shapes:
        shapes[shape.entity] = shapes.get(shape.entity, 0) + 1
    return {"shapes": shapes, "mjcf_bytes": len(description.mjcf.encode()), "notes": list(description.notes)}


def _problem(path: Path, episode: Episode) -> str:
    try:
        check_episode(episode, path)
        if path.suffix != ".part":
            read_episode(path, images=False)
    except CaptureError as error:
        return str(error)
    return ""
