"""Reading captures: whole ones, and what a crash left of the others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from remote_env.errors import CaptureError
from remote_env.record.checks import check_episode
from remote_env.record.episode import Episode, EpisodeInfo
from remote_env.record.hdf5 import write_episode
from remote_env.record.part import Record, is_being_recorded, read_part
from remote_env.record.reading import read_hdf5
from remote_env.state import SceneDescription, SceneLayout


def read_episode(path: str | os.PathLike[str], *, images: bool = True, check: bool = True) -> Episode:
    """The episode in a `.hdf5` capture, checked; a `.part` is recovered as `recover_part` does.

    Args:
        path: the file.
        images: also load the camera images.
        check: refuse what contradicts itself: wrong lengths, states that are none, time that runs backwards. Without,
            only what cannot be read is refused: for looking at what is wrong.

    Raises:
        CaptureError: the file is missing, damaged or no capture; the message says which part of it.
    """
    path = Path(path)
    if path.suffix == ".part":
        return recover_part(path, check=check)
    return read_hdf5(path, images=images, check=check)


def recover_part(path: str | os.PathLike[str], *, check: bool = True) -> Episode:
    """The whole steps of a recording that did not end, up to the first damaged record.

    Raises:
        CaptureError: the file is missing, is no `.part`, or holds not even the start of an episode.
    """
    path = Path(path)
    episode = assemble(path)
    stacked = {key: np.stack(values) for key, values in episode.observations.items() if len(values)}
    episode = dataclasses.replace(episode, observations=stacked)
    if check:
        check_episode(episode, path)
    return episode


def repair_part(path: str | os.PathLike[str]) -> Path:
    """Turn the `.part` of a crashed recording into a `.hdf5` beside it and remove it; returns the new file.

    A `.part` whose `.hdf5` is there and whole (the crash came after the conversion) is only removed.

    Raises:
        CaptureError: nothing could be recovered, it is still being recorded, or the disk is full; the `.part` is left
            as it is.
    """
    path = Path(path)
    final = path.with_suffix(".hdf5")
    if path.is_file() and is_being_recorded(path):
        raise CaptureError(f"{path} is being recorded by a process that runs; it becomes a capture when that is done")
    if final.exists():
        read_episode(final, images=False)
    else:
        write_episode(assemble(path), final)
    path.unlink()
    return final


def assemble(path: Path) -> Episode:
    """As `recover_part`, with each observation a list of views of the mapped file: no memory of its own."""
    records, dropped = read_part(path)
    if not records:
        raise CaptureError(f"{path} holds no whole record, not even the episode's start; nothing can be recovered")
    try:
        return _episode(records, dropped)
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # whole, but not written by a Recorder
        raise CaptureError(f"{path} is no recording of an episode: {error!r}") from error


def _episode(records: Sequence[Record], dropped: int) -> Episode:
    first, steps = records[0], records[1:]
    fields = first.fields
    keys = [name for name in first.arrays if name.startswith("observation/")]
    seen = {key.removeprefix("observation/"): [record.arrays[key] for record in records] for key in keys}
    layout = SceneLayout.from_plain(fields["layout"]) if fields["layout"] else None
    return Episode(
        EpisodeInfo(**fields["info"]),
        actions=np.stack([step.arrays["action"] for step in steps]) if steps else np.zeros((0, 0)),
        rewards=np.array([step.fields["reward"] for step in steps], np.float64),
        terminated=np.array([step.fields["terminated"] for step in steps], np.bool_),
        truncated=np.array([step.fields["truncated"] for step in steps], np.bool_),
        infos=[record.fields["step_info"] for record in records],
        observations={key: values[:-1] for key, values in seen.items()},
        final_observation={key: values[-1] for key, values in seen.items()},
        layout=layout,
        scene_values=np.stack([record.arrays["scene"] for record in records]) if layout else None,
        natives=_natives(records),
        dropped_bytes=dropped,
        description=SceneDescription.from_plain(fields["description"]) if fields.get("description") else None,
    )


def _natives(records: Sequence[Record]) -> list[bytes]:
    if not any("native" in record.arrays for record in records):
        return []
    empty = np.zeros(0, np.uint8)
    return [record.arrays.get("native", empty).tobytes() for record in records]
