"""The HDF5 file of one episode: write it whole or not at all.

The file is what ACT and ALOHA tools read, T steps long: attribute `sim`, `/action` (T, …),
`/observations/qpos`, `/observations/qvel` and `/observations/images/<camera>` as seen *before* each action.
Beside it: `/rewards`, `/terminated`, `/truncated` (T,), `/infos` (T + 1 lines of JSON, the first is
reset's), `/final_observation/…` (what was seen after the last action) and `/scene/values` (T + 1, size) with
the attribute `layout`: row 0 is the state after reset and row t + 1 the state after action t. What the scene
looks like, where its simulator told, is in `/scene`'s `shapes`, `mjcf` and `notes`. Every number carries a
checksum (Fletcher-32) that reading verifies, and so does the file's own structure. `remote_env.record.reading` is
the other half.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from remote_env.errors import CaptureError, InputError
from remote_env.record.episode import Array, Episode
from remote_env.state import Floats, SceneDescription

SCHEMA = "remote-env/episode"
SCHEMA_VERSION = 1
# HDF5 1.10's file format, whose structure carries checksums, too: HDF5 crashes on damage that it does not see.
FORMAT = ("v110", "v110")
MAX_ATTRIBUTE_BYTES = 60_000  # HDF5 itself takes less than 64 KiB; longer texts become datasets of the same name


def write_episode(episode: Episode, path: Path) -> None:
    """Write `episode` to `path` whole or not at all.

    Raises:
        CaptureError: the disk does not take it; the message says which file and how many bytes it needs.
        InputError: the episode has no step.
    """
    if not len(episode):
        raise InputError(f"an episode without a step makes no capture; {path} was not written")
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w+b", buffering=0) as raw:
            # In a thread of its own, because Ctrl-C reaches only the main one: an exception inside HDF5's calls
            # to our file object would crash the process. Leaving the pool waits for the thread.
            with ThreadPoolExecutor(1, "hdf5") as pool:
                pool.submit(_write_file, episode, _Disk(raw), path).result()
            os.fsync(raw.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CaptureError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _write_file(episode: Episode, disk: _Disk, path: Path) -> None:
    try:
        with h5py.File(disk, "w", libver=FORMAT) as file:
            _fill_file(file, episode)
    except (OSError, RuntimeError):
        if disk.error is None:
            raise
    if disk.error is not None:
        raise CaptureError(
            f"{path} needs {disk.needed_bytes} bytes and the disk did not take them ({disk.error.strerror}); "
            "nothing was left under that name. Make room and try again: the episode's .part is kept"
        ) from disk.error


class _Disk:
    """The file that h5py writes to; it keeps the first disk error to itself.

    HDF5 that meets a full disk cannot close its file and takes the process's state with it, and it reads back
    some of what it wrote. So from the first failure on the file goes on in memory, and the caller looks at
    `error` when HDF5 has closed.
    """

    def __init__(self, raw: Any) -> None:
        self._file = raw
        self.error: OSError | None = None
        self.needed_bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        start, done = int(self._file.tell()), 0
        self.needed_bytes = max(self.needed_bytes, start + len(view))
        try:
            while done < len(view):
                done += self._file.write(view[done:])
        except OSError as error:
            self._go_on_in_memory(error)
            self._file.seek(start)
            self._file.write(view)
        return len(view)

    def truncate(self, size: int) -> int:
        self.needed_bytes = max(self.needed_bytes, size)
        try:
            self._file.truncate(size)
        except OSError as error:
            self._go_on_in_memory(error)
        return size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def read(self, size: int = -1) -> bytes:
        return bytes(self._file.read(size))

    def readinto(self, buffer: Any) -> int:
        return int(self._file.readinto(buffer))

    def flush(self) -> None:
        """Nothing is buffered here; the caller syncs once at the end."""

    def _go_on_in_memory(self, error: OSError) -> None:
        self.error = error
        self._file.seek(0)
        self._file = io.BytesIO(self._file.read())


def _fill_file(file: h5py.File, episode: Episode) -> None:
    _write_attributes(file, episode)
    _write_array(file, "action", episode.actions)
    _write_array(file, "rewards", episode.rewards)
    _write_array(file, "terminated", episode.terminated)
    _write_array(file, "truncated", episode.truncated)
    file.create_group("observations")
    for key, values in episode.observations.items():
        if key.startswith("images/"):
            _write_images(file, f"observations/{key}", values)
        else:
            _write_array(file, f"observations/{key}", np.stack(values))
    for key, value in episode.final_observation.items():
        file[f"final_observation/{key}"] = value
    lines = [json.dumps(info) for info in episode.infos]
    file.create_dataset("infos", data=lines, dtype=h5py.string_dtype())
    if episode.layout is not None:
        _write_array(file, "scene/values", cast(Floats, episode.scene_values))
        write_text(file["scene"], "layout", json.dumps(episode.layout.to_plain()))
    if episode.description is not None:
        _write_description(file.require_group("scene"), episode.description)
    if episode.natives:
        rows = [np.frombuffer(native, np.uint8) for native in episode.natives]
        natives = file.create_dataset("scene/native", (len(rows),), h5py.vlen_dtype(np.uint8))
        for index, row in enumerate(rows):
            natives[index] = row


def _write_attributes(file: h5py.File, episode: Episode) -> None:
    info = episode.info
    file.attrs["sim"] = True
    file.attrs["schema"] = SCHEMA
    file.attrs["schema_version"] = SCHEMA_VERSION
    file.attrs["rate_hz"] = info.rate_hz
    file.attrs["step_dt_s"] = 1.0 / info.rate_hz
    file.attrs["task"] = info.task
    file.attrs["host"] = info.host
    file.attrs["created_s"] = info.created_s
    file.attrs["complete"] = episode.complete
    for name in ("env_kwargs", "versions", "extra"):
        write_text(file, name, json.dumps(getattr(info, name)))
    if info.seed is not None:
        file.attrs["seed"] = json.dumps(info.seed)  # as text: a seed may be wider than 64 bits


def _write_description(scene: h5py.Group, description: SceneDescription) -> None:
    plain = description.to_plain()
    write_text(scene, "shapes", json.dumps(plain["shapes"]))
    write_text(scene, "notes", json.dumps(plain["notes"]))
    if description.mjcf:
        _write_string(scene, "mjcf", description.mjcf)


def write_text(group: h5py.Group, name: str, text: str) -> None:
    """Put `text` into the attribute `name` of `group`; one that is too long for that into a dataset."""
    if len(text.encode()) <= MAX_ATTRIBUTE_BYTES:
        group.attrs[name] = text
    else:
        _write_string(group, name, text)


def _write_string(group: h5py.Group, name: str, text: str) -> None:
    data = text.encode()
    kind = h5py.string_dtype("utf-8", len(data))
    group.create_dataset(name, data=np.array([data], kind), chunks=True, compression="gzip", fletcher32=True)


def _write_array(file: h5py.File, name: str, array: Array) -> None:
    file.create_dataset(
        name, data=array, chunks=True, compression="gzip", compression_opts=1, shuffle=True, fletcher32=True
    )


def _write_images(file: h5py.File, name: str, frames: Sequence[Array]) -> None:
    """One frame a chunk, so that reading a step reads that step only."""
    shape = frames[0].shape
    images = file.create_dataset(
        name,
        (len(frames), *shape),
        frames[0].dtype,
        chunks=(1, *shape),
        compression="gzip",
        compression_opts=1,
        fletcher32=True,
    )
    for index, frame in enumerate(frames):
        images[index] = frame


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the platform can."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
