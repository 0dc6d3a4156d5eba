"""What the cameras of an Isaac Lab scene see."""

from __future__ import annotations

from typing import Any

from remote_env.errors import ConfigError, Unsupported
from remote_env.server.isaac.transfer import to_host


def find_camera(scene: Any, name: str | None) -> Any:
    """The scene's camera that `name` means, or its first that gives "rgb"; None when it has none.

    Raises:
        ConfigError: there is no camera of that name; the message lists them.
    """
    cameras = {key: sensor for key, sensor in scene.sensors.items() if "rgb" in getattr(sensor.cfg, "data_types", ())}
    if name is not None and name not in cameras:
        raise ConfigError(f"camera={name!r}: the scene's cameras that give 'rgb' are {sorted(cameras) or 'none'}")
    return cameras.get(name) if name is not None else next(iter(cameras.values()), None)


def camera_frames(camera: Any) -> Any:
    """(N, H, W, 3) uint8: what a camera saw last, a frame for each environment."""
    return to_host(camera.data.output["rgb"])[..., :3]


def drawn_frame(env: Any) -> Any:
    """What the environment itself draws, where its version does; Unsupported where it draws nothing."""
    frame = env.render()
    if frame is None:
        raise Unsupported(
            "this task draws nothing: its scene has no camera that gives 'rgb', and Isaac Lab from 3.0 on renders no "
            "view of its own. Add a CameraCfg to the scene (with NewtonWarpRendererCfg it needs no Isaac Sim)"
        )
    return frame
