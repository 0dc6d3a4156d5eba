"""Replayer: one local MuJoCo model that takes captured states and shows them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import TracebackType

import mujoco

from remote_env.errors import InputError, ReplayError
from remote_env.render import Frame, FrameRenderer, Quality, check_image_settings
from remote_env.replay.cameras import Aim, aim
from remote_env.replay.conventions import ALL_REORDERED, check_roots, is_all_reordered, reordered
from remote_env.replay.fidelity import Errors, Fidelity, FidelityMeter
from remote_env.replay.fitting import fitting
from remote_env.replay.mapped_states import MappedStates
from remote_env.replay.mapping import MappingLike, as_mapping
from remote_env.replay.models import Model, load_model
from remote_env.state import Floats, SceneDescription, SceneLayout, SceneState
from remote_env.tasks.mujoco_scene import MujocoScene

__all__ = ["Frame", "Model", "Replayer", "Shown", "load_model"]


@dataclass(frozen=True)
class Shown:
    """What a model made of T captured states.

    Attributes:
        expected: (T, …) values in the model's names and frames, as the capture and the mapping have them, of
            `Replayer.expected_layout`.
        local: (T, …) values as the model has them, of `Replayer.scene.layout`.
        errors: how far these are apart.
    """

    expected: Floats
    local: Floats
    errors: Errors


class Replayer:
    """Shows captured states in a local model, matched by name; use it from one thread.

    Args:
        model: as `load_model` takes it.
        mapping: which captured name is which of the model: a `Mapping`, the path of a mapping.yaml, or plain values as
            in one; None takes every name as it is.
        description: what the captured scene looks like, for the model "capture" and for what a mapping adds from it.
        width: of the images [pixels].
        height: of the images [pixels].
        camera: as `cameras.aim` takes it: a camera of the model by name, "free", "track:BODY", or None for the
            model's first.
        quality: "fast" (no multisampling, no shadows; some ten times faster in software) or "full".

    Attributes:
        model: the compiled model; a copy where the mapping moves a base, which changes it.
        data: its `mujoco.MjData`, in the last state; body poses belong to it, contacts do not (see `mj_forward`).
        scene: its entities.

    Raises:
        ReplayError: the model cannot be loaded.
        ConfigError: the mapping is none, the camera, the size or the quality is unknown, or (at the first `render`)
            there is no OpenGL.
    """

    def __init__(
        self,
        model: Model,
        *,
        mapping: MappingLike = None,
        description: SceneDescription | None = None,
        width: int = 640,
        height: int = 480,
        camera: str | None = None,
        quality: Quality = "fast",
    ) -> None:
        self.mapping = as_mapping(mapping)
        self.model = load_model(model, description=description, mapping=self.mapping)
        if any(entity.move_base for entity in self.mapping.entities.values()):
            self.model = copy.copy(self.model)  # whose bodies we move; the caller's stays as it is
        check_image_settings(width, height, quality)
        self._aim = aim(self.model, camera)
        self._size, self._quality = (width, height), quality
        self.scene = MujocoScene(self.model)
        self.data = mujoco.MjData(self.model)
        self._renderer: FrameRenderer | None = None
        self._mapped: MappedStates | None = None
        self._index = -1
        self._is_drawable = False

    def check_names(self, layout: SceneLayout) -> tuple[str, ...]:
        """Make sure that states of `layout` fit; returns the captured links that this model lacks.

        Raises:
            ReplayError: entities or joints do not match; every one is listed, on both sides.
        """
        return self.mapped_states(layout).missing_links

    def mapped_states(self, layout: SceneLayout) -> MappedStates:
        """What turns states of `layout` into this model's, by the mapping and by how the model was made.

        Raises:
            ReplayError: as `check_names`.
        """
        mapped = fitting(self.mapping, layout, self.scene).compile(layout, self.scene.layout, scene=self.scene)
        self.scene.check_movable(mapped.moved)
        return mapped

    def _prepare(self, layout: SceneLayout) -> MappedStates:
        """Have everything for states of `layout`; one that differs from the last begins a new fidelity."""
        if self._mapped is None or (self._mapped.captured is not layout and self._mapped.captured != layout):
            self._mapped = self.mapped_states(layout)
            self._writer = self.scene.writer(self._mapped.layout, moved=self._mapped.moved)
            self._meter = FidelityMeter(self._mapped.layout, self.scene.layout)
            self._index = -1
        return self._mapped

    @property
    def expected_layout(self) -> SceneLayout:
        """Of `Shown.expected`: the capture's, in the model's names; InputError before any state."""
        if self._mapped is None:
            raise InputError("which layout is expected is known after the first state")
        return self._mapped.layout

    def set_state(self, state: SceneState, *, index: int | None = None) -> None:
        """Put the model into `state`, by name, and compare what it makes of it with what was captured.

        The state's `native` bytes are not used: they would hide what a replay is to show.

        Args:
            state: as captured.
            index: what `fidelity` calls it; None counts on from the last.

        Raises:
            ReplayError: names do not match; see `check_names`.
            InputError: a value is not finite or a quaternion has no unit norm.
        """
        self.set_states(state.layout, state.values[None], first=index)

    def set_states(self, layout: SceneLayout, values: Floats, *, first: int | None = None, stride: int = 1) -> Shown:
        """Put the model into each of many states in turn, and compare; as `set_state` on each, in far less time.

        Args:
            layout: of the states.
            values: (T, layout.size) float64, as captured.
            first: what `fidelity` calls the first of them; None counts on from the last.
            stride: how much further each next one is.

        Raises:
            ReplayError: names do not match; see `check_names`.
            InputError: a value is not finite or a quaternion has no unit norm; the model stays as it was.
        """
        mapped = self._prepare(layout)
        expected = mapped.apply(values)
        self._writer.check(expected)
        if self._index < 0 and len(values):
            self._check_conventions(mapped, values[:1])
        local = self.scene.show(self._writer, expected, self.data)
        first = self._index + 1 if first is None else first
        self._index = first + (len(values) - 1) * stride
        self._is_drawable = False
        return Shown(expected, local, self._meter.add_all(expected, local, first=first, stride=stride))

    def _check_conventions(self, mapped: MappedStates, values: Floats) -> None:
        """Refuse a capture whose first state says that its quaternions are in another order."""
        check_roots(mapped.captured, values)
        given, turned = (
            self._meter.errors(rows, self.scene.show(self._writer, rows, self.data)).rotation_rad
            for rows in (mapped.apply(values), mapped.apply(reordered(mapped.captured, values)))
        )
        if is_all_reordered(given, turned):
            raise ReplayError(ALL_REORDERED)

    @property
    def fidelity(self) -> Fidelity:
        """The largest differences over the states set so far, numbered from 0."""
        return self._meter.fidelity if self._mapped is not None else Fidelity()

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
        self.make_drawable()
        return self._renderer.render(self.data, (aim or self._aim)(self.data))

    def make_drawable(self) -> None:
        """Compute what a picture shows beyond body poses: lights, cameras, tendons; `render` does it itself."""
        if self._is_drawable:
            return
        for compute in (mujoco.mj_kinematics, mujoco.mj_comPos, mujoco.mj_camlight, mujoco.mj_flex, mujoco.mj_tendon):
            compute(self.model, self.data)
        self._is_drawable = True

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
