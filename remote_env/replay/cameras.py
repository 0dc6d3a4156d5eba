"""Where a replay is looked at from: a camera of the model, a free one, one that follows a body, or several tiled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from remote_env.errors import ConfigError
from remote_env.render import Frame, camera_names

Cameras = str | Sequence[str] | None
_NUMBERS = ("azimuth", "elevation", "distance")
_TRACK_EXTENTS = 0.75  # how far a tracking camera stands; MuJoCo's free one stands at 1.5
_FORMS = 'NAME, "free", "free:azimuth=90,elevation=-30,distance=2,lookat=0/0/0.5", "track:BODY" or "track:BODY:…" alike'


@dataclass(frozen=True)
class Aim:
    """One way to look at a model; called with its data, it gives the camera for that moment.

    What it gives depends on the data alone, so that frames may be rendered in any order and by any process;
    MuJoCo's own tracking camera follows with a delay.

    Attributes:
        camera: as MuJoCo renders it.
        body: the id of the body whose origin it looks at, or -1.
    """

    camera: mujoco.MjvCamera
    body: int = -1

    def __call__(self, data: mujoco.MjData) -> mujoco.MjvCamera:
        """The camera for this moment; `data` must have its kinematics up to date."""
        if self.body >= 0:
            self.camera.lookat[:] = data.xpos[self.body]
        return self.camera


def aim(model: mujoco.MjModel, camera: str | None = None) -> Aim:
    """The way to look at `model` that `camera` says.

    Args:
        model: whose cameras and bodies are meant.
        camera: a camera of the model by name; "free" for MuJoCo's view of the whole, "track:BODY" for one whose
            centre is that body's origin, both with settings after a colon if wanted:
            "free:azimuth=90,elevation=-30,distance=2,lookat=0/0/0.5" in degrees and metres; without a distance,
            "track" stands half as far away as "free". None takes the
            model's first camera, or the free one where it has none. A name of the model's own comes first.

    Raises:
        ConfigError: there is no such camera, body or setting; the message lists those that there are.
    """
    names = camera_names(model)
    if camera is None and names:
        return Aim(_fixed(0))
    if camera is None:
        return Aim(_free(model, ""))
    if camera in names:
        return Aim(_fixed(names.index(camera)))
    kind, _, rest = camera.partition(":")
    if kind == "free":
        return Aim(_free(model, rest))
    if kind == "track" and rest:
        body, settings = _body(model, rest)
        if "lookat" in settings:
            raise ConfigError(f"camera {camera!r}: a camera that tracks a body looks at it; leave lookat out")
        near = f"distance={_TRACK_EXTENTS * model.stat.extent}," if "distance" not in settings else ""
        return Aim(_free(model, near + settings), body)
    raise ConfigError(
        f"the model has no camera {camera!r}; its cameras are {', '.join(names) or 'none'}. A camera is {_FORMS}"
    )


def aims(model: mujoco.MjModel, cameras: Cameras) -> tuple[Aim, ...]:
    """One aim, or one for each of several cameras; see `aim`.

    Raises:
        ConfigError: as `aim`, or the sequence is empty.
    """
    wanted = as_tuple(cameras)
    if not wanted:
        raise ConfigError(f"camera={cameras!r} names none; a camera is {_FORMS}, or a sequence of them")
    return tuple(aim(model, camera) for camera in wanted)


def as_tuple(cameras: Cameras) -> tuple[str | None, ...]:
    """The cameras one by one; None stands for the model's first."""
    return (cameras,) if cameras is None or isinstance(cameras, str) else tuple(cameras)


def grid(count: int) -> tuple[int, int]:
    """Rows and columns of `count` tiles: about as wide as high, never more rows than columns."""
    columns = math.ceil(math.sqrt(count))
    return math.ceil(count / columns), columns


def tile(frames: Sequence[Frame]) -> Frame:
    """Frames of one size, (H, W, 3), in rows from the top left; places that are left over are black."""
    if len(frames) == 1:
        return frames[0]
    rows, columns = grid(len(frames))
    height, width = frames[0].shape[:2]
    whole = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * height, index % columns * width
        whole[top : top + height, left : left + width] = frame
    return whole


def _fixed(index: int) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
    camera.fixedcamid = index
    return camera


def _free(model: mujoco.MjModel, settings: str) -> mujoco.MjvCamera:
    camera = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, camera)
    for setting in filter(None, settings.split(",")):
        name, _, text = setting.strip().partition("=")
        value = _numbers(text)
        if name in _NUMBERS and len(value) == 1 and (name != "distance" or value[0] > 0):
            setattr(camera, name, value[0])
        elif name == "lookat" and len(value) == 3:
            camera.lookat[:] = value
        else:
            raise ConfigError(
                f"camera setting {setting!r}: settings are azimuth=DEG, elevation=DEG, distance=METRES (above 0) and "
                "lookat=X/Y/Z, with commas between"
            )
    return camera


def _numbers(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split("/")]
    except ValueError:
        return []
    return values if all(map(math.isfinite, values)) else []


def _body(model: mujoco.MjModel, rest: str) -> tuple[int, str]:
    """The body's id and the settings in BODY or BODY:settings; a body's own name may hold colons."""
    name, _, settings = rest.rpartition(":") if "=" in rest else (rest, "", "")
    found: int = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
    if found < 0:
        raise ConfigError(f"there is no body {name!r} to track; the model's bodies are {_listed(_bodies(model))}")
    return found, settings


def _bodies(model: mujoco.MjModel) -> Iterable[str]:
    return (str(model.body(index).name) for index in range(model.nbody))


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(filter(None, names)) or "without names"
