"""Recorder: episodes to disk while they run."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import CaptureError, InputError
from remote_env.record.background import BackgroundPart
from remote_env.record.episode import EpisodeInfo
from remote_env.record.hdf5 import write_episode
from remote_env.record.part import PartWriter, freeze
from remote_env.record.recovery import assemble
from remote_env.state import SceneDescription, SceneLayout, SceneState

Array = NDArray[Any]
_PACKAGES = ("remote-env", "numpy", "gymnasium", "mujoco", "h5py")
_NAME = re.compile(r"episode_(\d{3,})\.(?:hdf5|part)")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What of one observation goes into a capture.

    Attributes:
        qpos: (n,) float64 joint positions, or None.
        qvel: (m,) float64 joint velocities, or None.
        images: camera -> (H, W, 3) uint8.
    """

    qpos: Array | None
    qvel: Array | None
    images: Mapping[str, Array]


Observe = Callable[[Any, SceneState | None], Seen]


def observe(observation: Any, state: SceneState | None) -> Seen:
    """What a capture takes from an observation unless told otherwise.

    qpos is `observation["agent_pos"]` or `["qpos"]`, else the scene's joint positions, entity by entity,
    else a one-dimensional observation as it is. qvel is `observation["agent_vel"]` or `["qvel"]`, else the
    scene's joint velocities. Images are the (H, W, 3) uint8 arrays in `observation["pixels"]`, in
    `["images"]` or beside them; an observation that is one image is the camera "image".
    """
    parts = observation if isinstance(observation, Mapping) else {}
    qpos = parts.get("agent_pos", parts.get("qpos"))
    qvel = parts.get("agent_vel", parts.get("qvel"))
    if state is not None:
        positions, velocities = _joint_index(state.layout)
        qpos = state.values[positions] if qpos is None else qpos
        qvel = state.values[velocities] if qvel is None else qvel
    if qpos is None and not parts and np.ndim(observation) == 1:
        qpos = observation
    return Seen(_floats(qpos), _floats(qvel), _images(observation))


@functools.lru_cache(maxsize=8)
def _joint_index(layout: SceneLayout) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the joint positions and velocities of all entities, in order, lie in a state's values."""
    places = SceneState(layout, np.arange(layout.size, dtype=np.float64))
    empty = [np.zeros(0)]
    positions = np.concatenate(empty + [entity.joint_positions for entity in places])
    velocities = np.concatenate(empty + [entity.joint_velocities for entity in places])
    return positions.astype(np.intp), velocities.astype(np.intp)


def _floats(values: Any) -> Array | None:
    return None if values is None else np.asarray(values, np.float64)


def _images(observation: Any) -> dict[str, Array]:
    if _is_image(observation):
        return {"image": observation}
    if not isinstance(observation, Mapping):
        return {}
    found = {}
    for key, value in observation.items():
        if _is_image(value):
            found[key] = value
        elif key in ("pixels", "images") and isinstance(value, Mapping):
            found |= {camera: image for camera, image in value.items() if _is_image(image)}
    return found


def _is_image(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3


class Recorder:
    """Writes each episode to `directory/episode_<NNN>.hdf5`; `remote_env.record.hdf5` states its layout.

    While an episode runs its steps are appended to `episode_<NNN>.part`; `finish` converts it and renames. A
    crash leaves whole `.hdf5` files and a `.part` whose whole steps `recover_part` or `repair_part` gives
    back. Existing episodes are never overwritten: numbering continues.

    A thread writes, so that a slow disk never holds up the stepping: `record` returns once it has copied the
    step, `flush` once the kernel has all of them. Up to 64 MiB may wait; beyond, `record` waits, too. A process
    that is killed loses what waits (the last 50 ms where the disk keeps up), one that ends by an exception nothing.
    With `background=False` the kernel has each step before `record` returns.

    Used as a context manager it ends an episode that is still open: finished when it has a step (also after
    an exception or Ctrl-C: what was recorded is whole), else abandoned.

    Args:
        directory: made when missing.
        rate_hz: steps per simulated second; replays run at it.
        task: the environment's id.
        env_kwargs: what it was made with; JSON can hold it.
        host: where the simulator runs.
        extra: anything else worth keeping; JSON can hold it.
        observe: what to take from an observation and a state; called before `record` returns.
        background: write in a thread.

    Raises:
        InputError: `rate_hz` is not a positive number.
        CaptureError: `directory` cannot be made.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        rate_hz: float,
        task: str = "",
        env_kwargs: Mapping[str, Any] | None = None,
        host: str = "",
        extra: Mapping[str, Any] | None = None,
        observe: Observe = observe,
        background: bool = True,
    ) -> None:
        if not (np.isfinite(rate_hz) and rate_hz > 0):
            raise InputError(f"rate_hz={rate_hz!r}; give the task's steps per simulated second, such as 50.0")
        self.directory = Path(directory)
        _make_folder(self.directory)
        self._observe = observe
        self._info = EpisodeInfo(
            rate_hz=float(rate_hz),
            task=task,
            env_kwargs=to_plain(env_kwargs or {}),
            host=host,
            versions=_versions(),
            extra=to_plain(extra or {}),
        )
        self._background = background
        self._part: PartWriter | BackgroundPart | None = None
        self._layout: SceneLayout | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}  # of what is seen
        self._action_shape: tuple[int, ...] | None = None
        self.steps = 0

    @property
    def recording(self) -> bool:
        """Whether an episode is open."""
        return self._part is not None

    def start(
        self,
        observation: Any,
        info: Mapping[str, Any] | None = None,
        *,
        state: SceneState | None = None,
        seed: int | None = None,
        description: SceneDescription | None = None,
    ) -> Path:
        """Begin an episode with what `reset` returned; gives the path that `finish` will write.

        Args:
            observation: what was seen first.
            info: of the reset.
            state: the scene after it; each step then brings one too.
            seed: what the reset was given.
            description: what the scene looks like (`RemoteEnv.get_scene_description()`), so that the capture can be
                replayed without a model of its own.

        Raises:
            InputError: an episode is open already.
            CaptureError: the disk does not take it; nothing was left behind.
        """
        if self._part is not None:
            raise InputError(f"{self._part.path.name} is still open; finish() or abandon() it before start()")
        about = dataclasses.replace(self._info, seed=seed, created_s=time.time())
        self._layout = state.layout if state is not None else None
        self._shapes, self._action_shape, self.steps = {}, None, 0
        arrays = self._arrays(observation, state)
        fields = {
            "info": dataclasses.asdict(about),
            "layout": self._layout.to_plain() if self._layout is not None else None,
            "description": description.to_plain() if description is not None else None,
            "step_info": to_plain(info or {}),
        }
        part = self._open_part()
        try:
            part.append(fields, freeze(arrays))
        except BaseException:
            part.close()
            part.path.unlink()
            raise
        self._part = BackgroundPart(part) if self._background else part
        return part.path.with_suffix(".hdf5")

    def record(
        self,
        action: Any,
        observation: Any,
        reward: float,
        terminated: bool,
        truncated: bool,
        info: Mapping[str, Any] | None = None,
        *,
        state: SceneState | None = None,
    ) -> None:
        """Append one step: the action and what `step` returned for it.

        Raises:
            InputError: no episode is open, or a shape, a key or the state's layout changed within the
                episode; this step was not recorded.
            CaptureError: the disk is full; this step was not recorded, all before are whole or, with `background`,
                wait in memory: make room and go on; `finish` tries again, too.
        """
        part = self._opened()
        arrays = self._arrays(observation, state)
        arrays["action"] = self._action(action)
        fields = {
            "reward": float(reward),
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "step_info": to_plain(info or {}),
        }
        part.append(fields, freeze(arrays))
        self.steps += 1

    def flush(self) -> None:
        """Return once the kernel has every step that was recorded: a killed process then loses none of them.

        Raises:
            InputError: no episode is open.
            CaptureError: the disk is full, or has taken nothing for a minute; the steps wait in memory.
        """
        self._opened().flush()

    def finish(self) -> Path:
        """End the episode and return its `.hdf5`: whole, synced to disk, its `.part` gone.

        Raises:
            InputError: no episode is open, or it has no step yet; it stays open.
            CaptureError: the disk is full; the `.part` is kept: make room and call this again, or `repair_part`
                (which has no steps that still wait in memory).
        """
        part = self._opened()
        if not self.steps:
            raise InputError(f"{part.path.name} has no step yet; record() one or abandon() it")
        final = part.path.with_suffix(".hdf5")
        try:
            part.flush()
            write_episode(assemble(part.path), final)
        except CaptureError:
            part.release()
            raise
        part.close()
        part.path.unlink()
        self._part = None
        return final

    def abandon(self) -> None:
        """Drop the open episode and its `.part`; does nothing when none is open."""
        if self._part is not None:
            self._part.close()
            self._part.path.unlink(missing_ok=True)
            self._part = None

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._part is None:
            return
        if self.steps:
            self.finish()
        else:
            self.abandon()

    def _opened(self) -> PartWriter | BackgroundPart:
        if self._part is None:
            raise InputError("no episode is open; call start() with what reset() returned")
        return self._part

    def _open_part(self) -> PartWriter:
        number = self._next_number()
        while True:
            try:
                return PartWriter(self.directory / f"episode_{number:03d}.part")
            except FileExistsError:  # another recorder was faster
                number += 1
            except OSError as error:
                raise CaptureError(f"{self.directory} takes no new file: {error.strerror}") from error

    def _next_number(self) -> int:
        try:
            names = [path.name for path in self.directory.iterdir()]
        except OSError as error:
            raise CaptureError(f"{self.directory} cannot be listed: {error.strerror}") from error
        return max((int(found[1]) for name in names if (found := _NAME.fullmatch(name))), default=-1) + 1

    def _arrays(self, observation: Any, state: SceneState | None) -> dict[str, Array]:
        """What of a step goes into a record, by name; as at the episode's start, or InputError says what is not."""
        scene = self._scene(state)
        seen = self._observe(observation, state)
        found: dict[str, Array] = {}
        if seen.qpos is not None:
            found["observation/qpos"] = seen.qpos
        if seen.qvel is not None:
            found["observation/qvel"] = seen.qvel
        for camera, image in seen.images.items():
            found[f"observation/images/{camera}"] = image
        shapes = {name: array.shape for name, array in found.items()}
        if self._part is None:  # start() comes before its part
            self._shapes = shapes
        elif shapes != self._shapes:
            self._refuse_shapes(shapes)
        return found | scene

    def _refuse_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> NoReturn:
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                raise InputError(f"{name} has shape {shape}; this episode began with {self._shapes.get(name)}")
        raise InputError(f"this step lacks {sorted(self._shapes.keys() - shapes)}, which the episode's start had")

    def _scene(self, state: SceneState | None) -> dict[str, Array]:
        layout = state.layout if state is not None else None
        if layout is not self._layout and layout != self._layout:
            raise InputError("the scene state's layout changed within the episode; give one with every step or none")
        if state is None:
            return {}
        native = {} if state.native is None else {"native": np.frombuffer(state.native, np.uint8)}
        return {"scene": state.values} | native

    def _action(self, action: Any) -> Array:
        array = np.asarray(action)
        if self._action_shape is None:
            self._action_shape = array.shape
        elif self._action_shape != array.shape:
            raise InputError(f"action has shape {array.shape}; this episode began with {self._action_shape}")
        return array


def _make_folder(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaptureError(
            f"the folder {directory} for captures cannot be made: {error.strerror} ({error.filename}); give another"
        ) from error


def to_plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays and tuples as lists, numpy scalars as numbers, the rest as repr.

    A repr is marked: `{"__repr__": "…"}`.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufUS":
        return to_plain(value.tolist()) if value.dtype.kind == "S" else value.tolist()
    return {"__repr__": repr(value)}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
