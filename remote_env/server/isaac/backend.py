"""IsaacLabBackend: one Isaac Lab environment, or a batch of them, served from the process's main thread."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Dict
from gymnasium.vector.utils import batch_space

from remote_env.errors import InputError, TaskError, Unsupported
from remote_env.server.backend import Backend
from remote_env.server.isaac.building import build, check_quaternions, find_lab
from remote_env.server.isaac.cameras import camera_frames, drawn_frame, find_camera
from remote_env.server.isaac.description import describe
from remote_env.server.isaac.extras import leaves, plain_extras, success_of, without
from remote_env.server.isaac.observations import check_action, choose_groups, nan_parts, observed_space, row
from remote_env.server.isaac.options import Options
from remote_env.server.isaac.scene import IsaacScene
from remote_env.server.isaac.tasks import Task, find_task
from remote_env.server.isaac.transfer import to_host
from remote_env.state import Floats, SceneDescription, SceneLayout, SceneState

FIRST_STEPS_S = 1200.0  # Warp compiles kernels at the first steps: two minutes and more on a slow CPU
FINAL_OBSERVATION = "final_obs"  # as Isaac Lab 3 and Gymnasium's vector environments call it


class IsaacLabBackend(Backend):
    """Serves a `DirectRLEnv` or `ManagerBasedRLEnv` of Isaac Lab 3.x or 2.x.

    Tensors stay on the device until a step's answer crosses in one copy. Isaac Lab resets an environment in the step
    that ends its episode; what an episode ended with is kept from before that. With one environment, a plain `reset`
    after the end returns the observation of the reset that has happened already; one with a seed resets again.

    `metadata["final_observation"]` says whether a step that ends an episode observes its end; where it is False (2.x)
    that step observes the next episode's beginning, because the simulator computes nothing else. `state` is the end's
    either way.

    States hold what `IsaacScene` says; there is no `native` state, because the solver's own memory has no interface.
    """

    def __init__(self) -> None:
        self._pending: tuple[Any, dict[str, Any]] | None = None  # what the next plain reset returns
        self._endings: list[tuple[Any, Any]] = []  # which environments the last step reset, and all scenes before
        self._ended_scene: Floats | None = None  # of one environment, until its next reset
        self._ready_raw: Any = None  # all scenes after the last step, where they came along with it
        self._wants_states = self._is_stepping = False
        self._left_out: set[str] = set()

    step_timeout_s = FIRST_STEPS_S

    def make(self, env: Any, kwargs: Mapping[str, Any]) -> None:
        """Build `env`: a registered id, "module:Id", "module:Class", "file.py:Class", or a callable; see `Options`."""
        self._options = options = Options.parse(kwargs)
        sys.argv[1:] = []  # ours; Isaac's launchers and Hydra read what is there
        self._lab = find_lab()
        try:
            self._lab.begin(options)
            task = find_task(env, options.cfg_class)
            built = build(task, self._lab, options, self.num_envs or 1)
        except BaseException:
            self._lab.close()
            raise
        self._env, self._mjcf, self._model_file = built.env, built.mjcf, built.model_file
        try:
            self._look(task)
        except BaseException:
            self.close()
            raise

    def _look(self, task: Task) -> None:
        """Learn what the environment is like."""
        check_quaternions(self._lab)
        self._task: Any = self._env.unwrapped
        self._has_final_observation = bool(getattr(self._task.cfg, "compute_final_obs", False))
        self._scene = IsaacScene(self._task, self._lab, _source(self._task.cfg))
        self._camera = find_camera(self._task.scene, self._options.camera) if self._options.render_mode else None
        self.callable_names = frozenset(getattr(self._task, "remote_calls", ()))
        self._reset_hook()
        self._take_spaces(task)

    def _take_spaces(self, task: Task) -> None:
        """Look at a first observation: spaces are advertised that it obeys."""
        env, single = self._task, self.num_envs is None
        observation, extras = self._env.reset()
        observation, extras = to_host([choose_groups(observation, self._options.observation), extras])
        # What was drawn from the configuration's seed is the first episode's, unless that is given a seed of its own.
        self._pending = (row(observation, 0) if single else observation), self._plain(extras)
        declared = env.single_observation_space
        if self._options.observation != "all" and isinstance(declared, Dict):
            declared = declared.spaces.get(self._options.observation)
        self.single_observation_space = observed_space(declared, observation)
        self.single_action_space = env.single_action_space
        self.observation_space = self.single_observation_space
        self.action_space = self.single_action_space
        if not single:
            self.observation_space = batch_space(self.single_observation_space, env.num_envs)
            self.action_space = batch_space(self.single_action_space, env.num_envs)
            self.autoreset_mode = "SAME_STEP"
        self.render_mode = self._options.render_mode
        self.spec = {"id": task.name, "max_episode_steps": int(env.max_episode_length)}
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": 1.0 / env.step_dt,
            "final_observation": self._has_final_observation,
            "isaaclab": self._scene.layout.source,
        }

    def _reset_hook(self) -> None:
        """Keep the scenes of environments that are about to be reset: afterwards they are the next episode's."""
        original = self._task._reset_idx

        def keep_and_reset(env_ids: Any, *args: Any, **kwargs: Any) -> Any:
            if self._is_stepping:
                self._endings.append((env_ids, self._scene.raw()))
            return original(env_ids, *args, **kwargs)

        self._task._reset_idx = keep_and_reset

    # Episodes

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """See `Backend.reset`; `seed` is that of all environments together."""
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise InputError(f"seed={seed!r}: Isaac Lab draws for all environments from one generator; give one number")
        pending, self._pending, self._ended_scene = self._pending, None, None
        self._endings, self._ready_raw = [], None
        if pending is not None and seed is None and not options:
            return pending
        self._forget_final_observation()
        before = leaves(self._task.extras)  # of the last step, for ever
        observation, extras = self._env.reset(seed=None if seed is None else int(seed), options=options)
        device = [choose_groups(observation, self._options.observation), without(extras, before)]
        observation, extras = to_host(device)
        return (row(observation, 0) if self.num_envs is None else observation), self._plain(extras)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `Backend.step`."""
        import torch

        given = check_action(action, self.single_action_space, self.num_envs)
        self._pending = self._ended_scene = self._ready_raw = None  # whatever becomes of this step, it moves the scene
        self._endings = []
        self._forget_final_observation()
        self._is_stepping = True
        try:
            observation, reward, terminated, truncated, extras = self._env.step(
                torch.as_tensor(given, device=self._task.device)
            )
        finally:
            self._is_stepping = False
        host = self._bring(observation, reward, terminated, truncated, extras)
        if self.num_envs is None:
            return self._step_of_one(*host)
        return self._step_of_batch(*host)

    def _bring(self, observation: Any, reward: Any, terminated: Any, truncated: Any, extras: Any) -> Any:
        """What a step gave, on the host, by one copy; with the scene, if the last step's was asked for."""
        wanted = self._options.observation
        final = extras.get(FINAL_OBSERVATION)  # of this step: an older one was taken away before it
        is_wanted, self._wants_states = self._wants_states, False
        device = [
            choose_groups(observation, wanted),
            reward,
            terminated,
            truncated,
            _own(extras),
            None if final is None else choose_groups(final, wanted),
            self._scene.raw() if is_wanted else None,
        ]
        *host, self._ready_raw = to_host(device)
        return host

    def _step_of_one(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, extras: Any, final: Any
    ) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        info = self._info(extras)
        self._tell_nan(observation if final is None else final, reward)
        now = row(observation, 0)
        if terminated[0] or truncated[0]:
            self._pending = now, {}  # what extras say is of the step
            now = now if final is None else row(final, 0)
            info = {**info, "final_observation": final is not None}
        return now, float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def _step_of_batch(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, extras: Any, final: Any
    ) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        info = self._info(extras)
        ended = terminated | truncated
        if final is not None and ended.any():
            info[FINAL_OBSERVATION], info[f"_{FINAL_OBSERVATION}"] = final, ended
        if found := nan_parts(observation, reward):
            print(f"NaN from the simulator in {sorted(found)}", file=sys.stderr, flush=True)
            info["is_nan"] = np.logical_or.reduce(list(found.values()))
        return observation, reward, terminated, truncated, info

    def _tell_nan(self, observation: Any, reward: Any) -> None:
        if found := nan_parts(observation, reward):
            raise TaskError(
                f"the simulator gave NaN in {sorted(found)}; its physics has diverged, as with too large a time step "
                "or action: reset() starts anew"
            )

    def _plain(self, extras: Any) -> dict[str, Any]:
        before = len(self._left_out)
        info: dict[str, Any] = plain_extras(
            extras, self._task.num_envs, single=self.num_envs is None, left_out=self._left_out
        )
        if len(self._left_out) > before:
            print(f"extras that cannot cross are left out: {sorted(self._left_out)}", flush=True)
        return info

    def _info(self, extras: Any) -> dict[str, Any]:
        """A step's info, with what the task says about success."""
        info = self._plain(extras)
        success = success_of(info, self.num_envs)
        if success is None:
            success = self._success_term()
        if success is not None:
            info["is_success"] = success
        return info

    def _success_term(self) -> Any:
        """What a termination term called success says; None when there is none."""
        manager = getattr(self._task, "termination_manager", None)
        if manager is None or "success" not in manager.active_terms:
            return None
        value = to_host(manager.get_term("success")).astype(bool)
        return bool(value[0]) if self.num_envs is None else value

    def _forget_final_observation(self) -> None:
        """Isaac Lab leaves the last one in `extras` for ever, so that an old one would look like this step's."""
        self._task.extras.pop(FINAL_OBSERVATION, None)

    # States

    def state(self, *, native: bool) -> SceneState:
        """See `Backend.state`; after an episode's end, the scene in which it ended until the next reset."""
        if native:
            raise Unsupported("Isaac Lab has no native state: what a solver keeps between steps cannot be read or set")
        if self._endings and self._ended_scene is None:
            self._ended_scene = self._ending_values()[1][0]
        if self._ended_scene is not None:
            self._wants_states = True
            return SceneState(self._scene.layout, self._ended_scene.copy())
        return SceneState(self._scene.layout, self._values()[0])

    def restore(self, state: SceneState) -> None:
        """See `Backend.restore`."""
        self.restore_states(state.layout, state.values[None], [0])

    def states(self, env_ids: Sequence[int]) -> tuple[SceneLayout, Floats]:
        """See `Backend.states`."""
        return self._scene.layout, self._values()[np.asarray(env_ids, np.intp)]

    def _values(self) -> Floats:
        raw = self._ready_raw
        if raw is None:
            raw = to_host(self._scene.raw())
        self._wants_states = True  # likely of the next step too: then it comes along
        return self._scene.values(raw)

    def final_states(self) -> tuple[Sequence[int], Floats] | None:
        """See `Backend.final_states`."""
        return self._ending_values() if self._endings else None

    def _ending_values(self) -> tuple[list[int], Floats]:
        rows: dict[int, Floats] = {}
        for env_ids, raw in to_host(self._endings):
            chosen = np.arange(self._task.num_envs)[slice(None) if env_ids is None else env_ids]
            for index, values in zip(chosen.tolist(), self._scene.values(raw[chosen]), strict=True):
                rows.setdefault(index, values)  # the first reset is that of the end
        return list(rows), np.stack(list(rows.values()))

    def restore_states(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """See `Backend.restore_states`."""
        self._scene.write(layout, values, env_ids)
        self._pending = self._ended_scene = self._ready_raw = None
        self._endings = []

    def render(self) -> Any:
        """See `Backend.render`: what a camera of the scene sees, (H, W, 3) uint8; of a batch a tuple of them."""
        if self.render_mode != "rgb_array":
            raise Unsupported(f"render_mode={self.render_mode!r}: pass render_mode='rgb_array' to have frames")
        if self._camera is None:
            return drawn_frame(self._env)
        frames = camera_frames(self._camera)
        return frames[0] if self.num_envs is None else tuple(frames)

    def describe_scene(self) -> SceneDescription:
        """See `Backend.describe_scene`: the primitives of the first environment, and Newton's own MJCF of it."""
        return describe(self._task, self._scene, self._mjcf)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `Backend.call`; of a batch, a row for each environment where the value has them, else the value each."""
        self._ready_raw = None  # a method may move things
        value = getattr(self._task, name)
        value = to_host(value(*args, **kwargs) if callable(value) else value)
        if self.num_envs is None:
            return value
        has_rows = isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == self.num_envs
        return tuple(value) if has_rows else (value,) * self.num_envs

    def close(self) -> None:
        """See `Backend.close`."""
        try:
            self._env.close()
        finally:
            self._model_file.close()
            self._lab.close()


def _source(cfg: Any) -> str:
    """The simulator and its version, for a state's layout."""
    physics = getattr(getattr(cfg, "sim", None), "physics", None)
    engine = f" {type(physics).__name__.removesuffix('Cfg')}" if physics is not None else ""
    try:
        version = importlib.metadata.version("isaaclab")
    except importlib.metadata.PackageNotFoundError:  # on PYTHONPATH, not installed
        version = "of unknown version"
    return f"isaaclab {version}{engine}"


def _own(extras: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in extras.items() if key != FINAL_OBSERVATION}
