"""Replayer: one local MuJoCo model that takes captured states and shows them."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

import mujoco
import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ReplayError
from remote_env.render import FrameRenderer, Quality, check_image_settings
from remote_env.replay.cameras import Aim, aim
from remote_env.replay.fidelity import Fidelity, FidelityMeter
from remote_env.state import SceneLayout, SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

Model: TypeAlias = "mujoco.MjModel | str | os.PathLike[str]"
Frame = NDArray[np.uint8]


def load_model(model: Model) -> mujoco.MjModel:
    """The compiled model that `model` names.

    Args:
        model: a compiled model, the path of an MJCF (`.xml`), URDF or compiled (`.mjb`) file, or
            `module:function` for a function without arguments that returns any of these.

    Raises:
        ReplayError: there is no such file or function, or MuJoCo does not accept it.
    """
    if isinstance(model, mujoco.MjModel):
        return model
    text = os.fspath(model)
    module, _, function = text.partition(":")
    if function and not Path(text).exists() and module.replace(".", "").isidentifier():
        return load_model(_call(module, function))
    load = mujoco.MjModel.from_binary_path if text.endswith(".mjb") else mujoco.MjModel.from_xml_path
    if not Path(text).is_file():
        raise ReplayError(f"there is no model file {text!r}; give an MJCF file or module:function")
    try:
        return load(text)
    except ValueError as error:
        raise ReplayError(f"MuJoCo does not load {text!r}: {error}") from error


def _call(module: str, function: str) -> Model:
    try:
        made: Model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ReplayError(f"no model from {module}:{function}: {error}") from error
    return made


class Replayer:
    """Shows captured states in a local model, matched by name; use it from one thread.

    Args:
        model: as `load_model` takes it.
        width: of the images [pixels].
        height: of the images [pixels].
        camera: as `cameras.aim` takes it: a camera of the model by name, "free", "track:BODY", or None for the
            model's first.
        quality: "fast" (no multisampling, no shadows; some ten times faster in software) or "full".

    Raises:
        ReplayError: the model cannot be loaded.
        ConfigError: the camera, the size or the quality is unknown, or (at the first `render`) there is no
            OpenGL.
    """

    def __init__(
        self,
        model: Model,
        *,
        width: int = 640,
        height: int = 480,
        camera: str | None = None,
        quality: Quality = "fast",
    ) -> None:
        self.model = load_model(model)
        check_image_settings(width, height, quality)
        self._aim = aim(self.model, camera)
        self._size, self._quality = (width, height), quality
        self.scene = MujocoScene(self.model)
        self.data = mujoco.MjData(self.model)
        self._renderer: FrameRenderer | None = None
        self._meter: FidelityMeter | None = None
        self._meter_layout: SceneLayout | None = None
        self._index = -1

    def check_names(self, layout: SceneLayout) -> tuple[str, ...]:
        """Make sure that states of `layout` fit; returns the captured links that this model lacks.

        Raises:
            ReplayError: entities or joints do not match; every one is listed, on both sides.
        """
        missing = FidelityMeter(layout, self.scene.layout).missing_links
        captured, local = self.scene.unmatched(layout)
        if captured or local:
            raise ReplayError(
                f"the capture (of {layout.source or 'an unnamed source'}) does not fit the local model: only in the "
                f"capture: {', '.join(captured) or 'nothing'}; only in the model: {', '.join(local) or 'nothing'}; "
                f"links only in the capture: {', '.join(missing) or 'none'}. Replay with the model that was simulated, "
                "or one with the same names"
            )
        return missing

    def set_state(self, state: SceneState, *, index: int | None = None) -> None:
        """Put the model into `state`, by name, and compare what it makes of it with what was captured.

        The state's `native` bytes are not used: they would hide what a replay is to show.

        Args:
            state: as captured.
            index: what `fidelity` calls it; None counts the calls from 0.

        Raises:
            ReplayError: names do not match; see `check_names`.
            InputError: a value is not finite or a quaternion has no unit norm.
        """
        if self._meter is None or self._meter_layout is not state.layout:
            self.check_names(state.layout)
            self._meter = FidelityMeter(state.layout, self.scene.layout)
            self._meter_layout = state.layout
        self.scene.write(dataclasses.replace(state, native=None), self.data)
        self._index = self._index + 1 if index is None else index
        self._meter.add(self._index, state, self.scene.read(self.data, kinematics_current=True))

    @property
    def fidelity(self) -> Fidelity:
        """The largest differences over the states set so far, numbered from 0."""
        return self._meter.fidelity if self._meter is not None else Fidelity()

    def render(self, aim: Aim | None = None) -> Frame:
        """The model as it stands: (height, width, 3) uint8 RGB, a new array.

        Args:
            aim: another way to look at it than this replayer's own camera.

        Raises:
            ConfigError: no OpenGL can be used here; the message names the Debian package to install.
        """
        if self._renderer is None:
            width, height = self._size
            self._renderer = FrameRenderer(self.model, width=width, height=height, quality=self._quality)
            mujoco.mj_forward(self.model, self.data)
        return self._renderer.render(self.data, (aim or self._aim)(self.data))

    def close(self) -> None:
        """Free what rendering holds; calling it again does nothing."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __enter__(self) -> Replayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
