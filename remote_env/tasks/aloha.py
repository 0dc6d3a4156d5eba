"""The bimanual ALOHA tasks on plain MuJoCo: actions, observations, rewards and termination as gym-aloha's.

Physics is gym-aloha's to the bit (the substep order of dm_control's `legacy_step`); what differs:

- nothing is rendered that was not asked for;
- start poses come from the environment's own `np_random`: the same seed gives the same poses on every machine
  (other ones than gym-aloha's, which draws from numpy's older generator), and two environments in one process
  do not interfere;
- rewards are floats, and `info` also says which grippers touch an object.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError, TaskError
from remote_env.render import FrameRenderer, Quality, camera_index, check_image_settings
from remote_env.state import SceneState
from remote_env.tasks.aloha_model import (
    ACTION_NAMES,
    AGENT_QPOS_INDEX,
    CONTROL_STEP_S,
    CTRL_ACTION_INDEX,
    OBJECTS,
    START_QPOS,
    START_RANGES,
    agent_scale,
    aloha_model_path,
    canonical_task,
    control_scale,
    load_model,
    state_names,
)
from remote_env.tasks.aloha_rewards import MAX_REWARD, TOUCHING, ContactRewards
from remote_env.tasks.mujoco_scene import MujocoScene

Floats = NDArray[np.float64]
ObsType = Literal["state", "agent_pos", "pixels", "pixels_agent_pos"]
Observation = Any  # an array or a dict of arrays, by obs_type

OBS_TYPES: tuple[ObsType, ...] = ("state", "agent_pos", "pixels", "pixels_agent_pos")

_ARM_QPOS = len(START_QPOS)


class AlohaEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Two ViperX arms that hand over a cube ("transfer_cube") or put a peg into a socket ("insertion").

    An action is (14,): `ACTION_NAMES`, absolute joint targets [rad] and grippers from 0 (closed) to 1 (open).
    The action space is declared as gym-aloha's, Box(-1, 1); the start pose itself lies outside it, so actions
    are passed on as they are, neither clipped nor checked against it.

    Observations by `obs_type`; every array is new at each step:

    - `agent_pos`: (14,) float64, measured positions in the meaning of an action;
    - `state`: float64, (41,) or (54,), named by `state_names`: agent_pos, its velocities [1/s], each object's
      pose (m, wxyz), each object's velocity (linear [m/s] in the world frame, angular [rad/s] in its own);
    - `pixels`: `{camera: (height, width, 3) uint8}`;
    - `pixels_agent_pos`: `{"agent_pos": (14,), "pixels": {camera: …}}`.

    Rewards 0–4 tell how far the task has come and 4 ends the episode; `info` holds `is_success` (bool) and
    `touching` ("none", "right", "left" or "both": the grippers that touch an object, by the fingers that the
    reward looks at).

    `reset(options={"poses": {"box": (x, y, z, qw, qx, qy, qz)}})` places objects by hand (m, wxyz, world
    frame); objects not named are drawn from `START_RANGES` as always.

    Args:
        task: "transfer_cube" or "insertion"; dashes do too.
        obs_type: what an observation holds, see above.
        cameras: the cameras of pixel observations; `render()` shows the first.
        width: of images [pixels].
        height: of images [pixels].
        render_mode: None or "rgb_array".
        quality: "full" renders the model as shipped, "fast" without multisampling and shadows.
        model_dir: folder with gym-aloha's XML and STL files; None takes the installed gym-aloha's.
        end_on_success: whether reward 4 ends the episode, as in gym-aloha. A transfer then ends at the left
            gripper's first touch, while the right one still holds; with False the hand-over can be completed.

    Attributes:
        model_path: the MuJoCo XML file that is loaded.
        model: the mujoco.MjModel, this environment's own.
        data: its mujoco.MjData.
        render_s: how long the images of the last observation took to draw [s].

    Raises:
        ConfigError: an argument is not one of those allowed, or the model files are missing.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  # typed as in Gymnasium's base class
        "render_modes": ["rgb_array"],
        "render_fps": 50,
    }
    remote_calls = ("quality",)  # for who draws the same images elsewhere

    def __init__(
        self,
        task: str = "transfer_cube",
        *,
        obs_type: str = "agent_pos",
        cameras: Sequence[str] = ("top",),
        width: int = 640,
        height: int = 480,
        render_mode: str | None = None,
        quality: Quality = "full",
        model_dir: str | Path | None = None,
        end_on_success: bool = True,
    ) -> None:
        self.end_on_success = bool(end_on_success)
        self.task = canonical_task(task)
        self.obs_type, self.render_mode = _checked_modes(obs_type, render_mode)
        check_image_settings(width, height, quality)
        self.width, self.height, self.quality = int(width), int(height), quality
        self.model_path = aloha_model_path(self.task, model_dir)
        self.model = load_model(self.model_path)
        self.data = mujoco.MjData(self.model)
        self.cameras = _checked_cameras(self.model, cameras)
        self.action_space = spaces.Box(-1, 1, (len(ACTION_NAMES),), np.float32)
        self.observation_space = self._make_observation_space()
        self.set_wanted_observations(None)
        self._substeps = round(CONTROL_STEP_S / self.model.opt.timestep)
        self._contacts = ContactRewards(self.task, self.model)
        self._control_scale = {kind: _control_scale_of(kind) for kind in (np.float32, np.float64)}
        self._agent_offset, self._agent_scale = agent_scale()
        # Views of MuJoCo's own memory: reading the attribute at every step costs more than the copy.
        self._qpos, self._qvel, self._ctrl = self.data.qpos, self.data.qvel, self.data.ctrl
        worst = mujoco.mjtWarning
        self._bad_numbers = self.data.warning.number[worst.mjWARN_BADQPOS : worst.mjWARN_BADQACC + 1]
        self._started = False
        self.render_s = 0.0
        self._renderer: FrameRenderer | None = None
        self._frames: dict[str, NDArray[np.uint8]] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode with both arms at rest and the objects at random or given poses.

        Args:
            seed: restarts `np_random`; the same seed gives the same poses on every machine.
            options: None or `{"poses": {object: 7 numbers}}`, see the class.

        Raises:
            InputError: an option is unknown, or a pose is not one; the episode before goes on.
        """
        given = _checked_poses(self.task, options)
        super().reset(seed=seed)
        # Always drawn, so that a pose given for one object does not move the next episode's.
        drawn = {name: self._draw_pose(name) for name in OBJECTS[self.task]}
        self._place(np.concatenate([given.get(name, pose) for name, pose in drawn.items()]))
        self._started = True
        return self._observe(), self._info(self._contacts.flags(self.data), success=False)

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move the targets to `action` and simulate 20 ms.

        Args:
            action: (14,) joint targets [rad] and grippers 0–1; passed on unclipped, float32 or float64.

        Returns:
            obs, reward, terminated, truncated (always False here), info.

        Raises:
            InputError: the action is not 14 finite numbers; nothing was simulated.
            TaskError: the simulation became unstable; reset to start a new episode.
        """
        if not self._started:
            raise gymnasium.error.ResetNeeded("call reset() before step(): no episode has been started")
        self._set_targets(action)
        self._simulate()
        flags = self._contacts.flags(self.data)
        reward = self._contacts.rewards[flags]
        success = reward == MAX_REWARD
        terminated = success and self.end_on_success
        return self._observe(), reward, terminated, False, self._info(flags, success=success)

    def render(self) -> NDArray[np.uint8] | None:
        """The first camera's image of this state, (height, width, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() shows nothing without render_mode='rgb_array'")
            return None
        return np.array(self._frame(self.cameras[0]))

    def close(self) -> None:
        """Free the renderer, if one was needed; the environment makes a new one should it be used again."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def get_scene_state(self, *, native: bool = False) -> SceneState:
        """The present state by names; with `native` also the bytes that restore it exactly."""
        return self._scene.read(self.data, native=native, kinematics_current=True)

    def set_scene_state(self, state: SceneState) -> None:
        """Go on from `state`: exactly where its `native` bytes fit, else from poses, joints and velocities.

        Raises:
            ReplayError: the state's names do not fit this task.
            InputError: the state holds values that are none.
        """
        self._scene.write(state, self.data)
        self._frames.clear()
        self._started = True

    def set_wanted_observations(self, keys: Collection[str] | None) -> None:
        """Have dict observations hold these keys alone from now on; what nobody wants is neither computed nor rendered.

        Args:
            keys: keys of the observation, or paths such as "pixels/top"; None for all, as the space says.
        """
        self._wanted_cameras = tuple(camera for camera in sorted(self.cameras) if self._is_wanted(camera, keys))
        self._wants_agent_pos = keys is None or "agent_pos" in keys

    def _is_wanted(self, camera: str, keys: Collection[str] | None) -> bool:
        paths = {camera} if self.obs_type == "pixels" else {"pixels", f"pixels/{camera}"}
        return keys is None or not paths.isdisjoint(keys)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The meaning of each number of the `state` observation."""
        return state_names(self.task)

    def _make_observation_space(self) -> spaces.Space[Any]:
        agent_pos = spaces.Box(-1000.0, 1000.0, (len(ACTION_NAMES),), np.float64)  # bounds as gym-aloha's
        if self.obs_type == "agent_pos":
            return agent_pos
        if self.obs_type == "state":
            return spaces.Box(-np.inf, np.inf, (len(self.state_names),), np.float64)
        image = (self.height, self.width, 3)
        pixels = spaces.Dict({camera: spaces.Box(0, 255, image, np.uint8) for camera in self.cameras})
        if self.obs_type == "pixels":
            return pixels
        return spaces.Dict({"pixels": pixels, "agent_pos": agent_pos})

    @functools.cached_property
    def _scene(self) -> MujocoScene:
        return MujocoScene(self.model)

    def _draw_pose(self, name: str) -> Floats:
        low, high = np.array(START_RANGES[name]).T
        # In two operations: numpy's uniform() may fuse them, and then the last bit depends on the CPU.
        return np.concatenate([low + (high - low) * self.np_random.random(3), (1.0, 0.0, 0.0, 0.0)])

    def _place(self, poses: Floats) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self._qpos[:_ARM_QPOS] = START_QPOS
        self._qpos[_ARM_QPOS:] = poses
        self._ctrl[:] = START_QPOS
        # dm_control computes the start without actuation, and gym-aloha nests two such resets: the second one
        # matters, because it starts its solver from the first one's result.
        flags = self.model.opt.disableflags
        self.model.opt.disableflags = flags | mujoco.mjtDisableBit.mjDSBL_ACTUATION.value
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        self.model.opt.disableflags = flags
        self._frames.clear()

    def _set_targets(self, action: NDArray[np.float32]) -> None:
        values: NDArray[Any] = np.asarray(action)
        if values.dtype.type not in self._control_scale:
            values = _floats(values)
        if values.shape != (len(ACTION_NAMES),):
            raise InputError(
                f"an action has shape {(len(ACTION_NAMES),)}: {', '.join(ACTION_NAMES)}; got {values.shape}"
            )
        scale, offset = self._control_scale[values.dtype.type]
        targets = values[CTRL_ACTION_INDEX] * scale + offset
        if not np.isfinite(targets).all():
            raise InputError(f"an action must be finite; got {values.tolist()}")
        self._ctrl[:] = targets

    def _simulate(self) -> None:
        """One control step; positions, velocities and contacts in `data` then belong to each other."""
        model, data = self.model, self.data
        mujoco.mj_step2(model, data)
        mujoco.mj_step(model, data, self._substeps - 1)
        mujoco.mj_step1(model, data)
        self._frames.clear()
        if self._bad_numbers.any():  # MuJoCo has started the simulation over, from its model's own pose
            self._started = False
            raise TaskError("the simulation became unstable: numbers ran away; call reset() for a new episode")

    def _info(self, flags: int, *, success: bool) -> dict[str, Any]:
        return {"is_success": success, "touching": TOUCHING[flags & 3]}

    def _observe(self) -> Observation:
        if self.obs_type == "agent_pos":
            return self._agent_pos()
        if self.obs_type == "state":
            return self._state()
        began = time.perf_counter()
        pixels = {camera: self._frame(camera) for camera in self._wanted_cameras}
        self.render_s = time.perf_counter() - began
        if self.obs_type == "pixels":
            return pixels
        # In the space's order, which is that of the fixed layout on the wire.
        observation: dict[str, Any] = {"agent_pos": self._agent_pos()} if self._wants_agent_pos else {}
        return {**observation, "pixels": pixels} if pixels else observation

    def _agent_pos(self) -> Floats:
        positions: Floats = (self._qpos[AGENT_QPOS_INDEX] - self._agent_offset) / self._agent_scale
        return positions

    def _state(self) -> Floats:
        velocities = self._qvel[AGENT_QPOS_INDEX] / self._agent_scale
        objects = (self._qpos[_ARM_QPOS:], self._qvel[_ARM_QPOS:])
        return np.concatenate((self._agent_pos(), velocities, *objects))

    def _frame(self, camera: str) -> NDArray[np.uint8]:
        """The image of the present state; rendered once, however often it is asked for."""
        if camera not in self._frames:
            if self._renderer is None:
                size = {"width": self.width, "height": self.height}
                self._renderer = FrameRenderer(self.model, **size, quality=self.quality)
            self._frames[camera] = self._renderer.render(self.data, camera)
        return self._frames[camera]


def _checked_modes(obs_type: str, render_mode: str | None) -> tuple[str, str | None]:
    if obs_type not in OBS_TYPES:
        raise ConfigError(f"no obs_type {obs_type!r}; choose one of {', '.join(OBS_TYPES)}")
    if render_mode not in (None, "rgb_array"):
        raise ConfigError(f"no render_mode {render_mode!r}; choose 'rgb_array' or None")
    return obs_type, render_mode


def _checked_cameras(model: Any, cameras: Sequence[str]) -> tuple[str, ...]:
    names = (cameras,) if isinstance(cameras, str) else tuple(cameras)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"cameras={names!r} must name at least one camera, and none twice")
    for name in names:
        camera_index(model, name)
    return names


def _control_scale_of(kind: type[np.floating[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    scale, offset = control_scale()
    return scale.astype(kind), offset.astype(kind)


def _floats(values: NDArray[Any]) -> Floats:
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"an action is numbers; got an array of {values.dtype}") from error


def _checked_poses(task: str, options: Mapping[str, Any] | None) -> dict[str, Floats]:
    unknown = set(options or ()) - {"poses"}
    if unknown:
        raise InputError(f"unknown reset options {sorted(unknown)}; the one there is: poses")
    poses = dict((options or {}).get("poses") or {})
    return {name: _checked_pose(task, name, pose) for name, pose in poses.items()}


def _checked_pose(task: Any, name: str, pose: Any) -> Floats:
    if name not in OBJECTS[task]:
        raise InputError(f"no object {name!r} in {task}; its objects are {', '.join(OBJECTS[task])}")
    try:
        values = np.asarray(pose, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"the pose of {name!r} is not numbers: {pose!r}") from error
    if values.shape != (7,) or not np.isfinite(values).all() or abs(np.linalg.norm(values[3:]) - 1) > 1e-3:
        raise InputError(f"the pose of {name!r} must be x y z [m] and a unit quaternion wxyz; got {pose!r}")
    return values
