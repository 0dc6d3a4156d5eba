"""The backend for MetaSim (RoboVerse): its tasks, and its simulator handlers without a task.

**Never run on a MetaSim of today**: it and most of its simulators can not be installed on the machines that this was
made on. It follows MetaSim's source as published in September 2026 (RoboVerse `packages/metasim`, version 1.0.0b0; what
is used has been there since 0.2.0) and is tested against a stand-in written after it. Once, by hand, it read and wrote
scenes of a real one: the MuJoCo handler of RoboVerse 0.1.17 (June 2025), through an adapter for the calls that have
changed since; poses, joints and velocities agreed with MuJoCo's own to 1e-7, and it told that this version forgets
velocities.

A task is MetaSim's `BaseTaskEnv` or `RLTaskEnv`: batches of torch tensors, `reset(env_ids=…)`, `step(actions)`. An
`RLTaskEnv` resets what has ended in the same step; a `BaseTaskEnv` leaves that to its caller. A bare handler gets
joint targets, in alphabetical order, and shows its robots' joint positions and velocities; it gives no reward and never
ends.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError, Unsupported
from remote_env.server.backend import Backend
from remote_env.server.metasim_making import make_subject
from remote_env.server.metasim_scenes import MetaSimScenes, like
from remote_env.server.metasim_shapes import describe_objects
from remote_env.server.metasim_values import only_where, plain_info, row_of, space_of, to_numpy
from remote_env.state import Floats, SceneDescription, SceneLayout, SceneState
from remote_env.tasks.metasim_states import as_array

Array = NDArray[Any]


class MetaSimBackend(Backend):
    """Serves one MetaSim task, or one bare handler; a batch of environments where `num_envs` is set.

    `env_kwargs`: "device"; "step_dt_s", the simulated seconds of a step where the handler does not tell; and fields of
    the scenario, such as "simulator", "headless" and "robots". `metadata["final_observation"]` says whether the
    observation of an episode's last step is real: before 1.0.0b0 an `RLTaskEnv` gives the next episode's first one.
    """

    def make(self, env: Any, kwargs: Mapping[str, Any]) -> None:
        """Build `env`: a registered task's name, "module:Class", "module:function", "file.py:name" or "scenario"."""
        options = dict(kwargs)
        step_dt_s = options.pop("step_dt_s", None)
        self._count = self.num_envs or 1
        made = make_subject(env, options, self._count)
        is_handler = hasattr(made, "get_states") and hasattr(made, "simulate")
        self._handler: Any = made if is_handler else getattr(made, "handler", None) or getattr(made, "env", None)
        if not hasattr(self._handler, "get_states") or not hasattr(self._handler, "set_states"):
            raise ConfigError(f"env={env!r} made a {type(made).__name__}; it must make a MetaSim task or handler")
        self._step_dt_s = step_dt_s or _step_seconds(self._handler)
        self._scenes = MetaSimScenes(self._handler, _source(self._handler))
        self._steps = np.zeros(self._count)
        self._tensor = _some_tensor(self._handler)
        self._task: Any = _HandlerTask(self._handler) if is_handler else made
        self._resets_itself = "RLTaskEnv" in {kind.__name__ for kind in type(self._task).__mro__}
        self._is_stepping, self._ends = False, _Ends()
        self._watch_resets()
        self._describe(env)

    def _describe(self, env: Any) -> None:
        """Set what `Backend` asks for; a first reset tells what observations really are."""
        observation = self._observe(self._task.reset()[0])
        declared = getattr(self._task, "observation_space", None)
        self.single_observation_space = space_of(observation, declared)
        self.single_action_space = self._action_space()
        self._shape = self.single_action_space.shape
        self.observation_space, self.action_space = self.single_observation_space, self.single_action_space
        if self.num_envs is not None:
            from gymnasium.vector.utils import batch_space

            self.observation_space = batch_space(self.single_observation_space, self._count)
            self.action_space = batch_space(self.single_action_space, self._count)
            self.autoreset_mode = "SAME_STEP" if self._resets_itself else "DISABLED"
        self._has_final = not self._resets_itself or hasattr(self._task, "_note_auto_reset")
        self.metadata = {"final_observation": self._has_final, "render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array" if getattr(self._handler.scenario, "cameras", None) else None
        self.spec = {"id": str(env), "max_episode_steps": getattr(self._task, "max_episode_steps", None)}
        self.callable_names = frozenset(getattr(self._task, "remote_calls", ()))

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """See `Backend.reset`; of a batch, `options={"reset_mask": (N,) bool}` resets those alone.

        With one environment a plain reset after the end gives the observation of the episode that has begun by itself.
        """
        pending, self._ends = self._ends.pending, _Ends()
        if pending is not None and seed is None and not options:
            return pending, {}
        env_ids = self._masked(options)
        given: dict[str, Any] = {} if env_ids is None else {"env_ids": env_ids}
        if seed is not None and _accepts(self._task.reset, "seed"):
            given["seed"] = seed
        elif seed is not None:
            self._seed(seed)
        observation, info = self._task.reset(**given)
        self._steps[slice(None) if env_ids is None else env_ids] = 0
        if env_ids is not None:  # a BaseTaskEnv gives the rows of those alone
            observation = self._observation_now(observation)
        return self._shown(self._observe(observation)), plain_info(info, self._single)

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `Backend.step`; the action goes to the task as it is, as float32."""
        self._ends = _Ends()
        self._steps += 1
        batch = np.asarray(action, np.float32).reshape(self._count, *self._shape)
        self._is_stepping = True
        try:
            given = self._task.step(like(self._tensor, batch))
        finally:
            self._is_stepping = False
        observation, info = self._observe(given[0]), given[4] or {}
        reward, terminated, truncated = (
            as_array(part, "the task's result").reshape(self._count) for part in given[1:4]
        )
        self._steps[list(self._ends.env_ids)] = 0
        final = self._final_observation(info)
        infos = plain_info(info, self._single)
        if self.num_envs is not None:
            infos |= self._final_infos(final)
            return observation, reward, terminated.astype(bool), truncated.astype(bool), infos
        ended = bool(terminated[0] or truncated[0])
        shown = self._shown(observation)
        if ended and self._ends.env_ids:
            self._ends.pending = shown
            shown = shown if final is None else row_of(final, 0)
        return shown, float(reward[0]), bool(terminated[0]), bool(truncated[0]), infos

    def state(self, *, native: bool) -> SceneState:
        """See `Backend.state`; after an episode's end, the scene in which it ended. There is no native state."""
        if native:
            raise Unsupported("MetaSim has no native state; get_state() without native gives what it has")
        if self._ends.values is not None:
            return SceneState(self._scenes.layout, self._ends.values[0])
        return SceneState(self._scenes.layout, self._read()[0])

    def restore(self, state: SceneState) -> None:
        """See `Backend.restore`."""
        self.restore_states(state.layout, state.values[None], [0])

    def states(self, env_ids: Sequence[int]) -> tuple[SceneLayout, Floats]:
        """See `Backend.states`."""
        return self._scenes.layout, self._read()[list(env_ids)]

    def final_states(self) -> tuple[Sequence[int], Floats] | None:
        """See `Backend.final_states`."""
        return None if self._ends.values is None else (self._ends.env_ids, self._ends.values)

    def restore_states(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """See `Backend.restore_states`; the task's own counters (its time limit) stay as they are."""
        self._scenes.write(layout, values, env_ids)
        self._steps[list(env_ids)] = np.rint(values[:, 0] / self._step_seconds())
        self._ends = _Ends()

    def describe_scene(self) -> SceneDescription:
        """The primitives among the scenario's objects; what comes from a file is named in the notes."""
        return describe_objects(self._handler.scenario)

    def render(self) -> Any:
        """The first camera of the first environment, (H, W, 3) uint8."""
        states = self._handler.get_states(mode="tensor")
        cameras = states[0].get("cameras") if isinstance(states, list) else states.cameras
        if not cameras:
            raise Unsupported("this scenario has no camera; give one in env_kwargs={'cameras': […]}")
        first = next(iter(cameras.values()))
        pixels = first["rgb"] if isinstance(first, Mapping) else first.rgb[0]
        return as_array(pixels, "the camera's image").astype(np.uint8)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `Backend.call`."""
        value = getattr(self._task, name)
        return value(*args, **kwargs) if callable(value) else value

    def close(self) -> None:
        """See `Backend.close`."""
        self._task.close()

    @property
    def _single(self) -> bool:
        return self.num_envs is None

    def _shown(self, observation: Any) -> Any:
        return row_of(observation, 0) if self._single else observation

    def _step_seconds(self) -> float:
        if self._step_dt_s is None:
            raise ConfigError(
                f"{type(self._handler).__name__} does not tell how long a step is, so that its states have no time; "
                "give it: env_kwargs={'step_dt_s': 0.02}"
            )
        return float(self._step_dt_s)

    def _read(self) -> Floats:
        return self._scenes.read(self._steps * self._step_seconds())

    def _watch_resets(self) -> None:
        """Have the task's own `reset` tell us of the scenes that it is about to replace in the middle of a step."""
        original = self._task.reset

        def reset(*args: Any, **kwargs: Any) -> Any:
            if self._is_stepping and kwargs.get("env_ids") is not None and self._step_dt_s is not None:
                env_ids = [int(env_id) for env_id in kwargs["env_ids"]]
                self._ends.env_ids, self._ends.values = env_ids, self._read()[env_ids]
            return original(*args, **kwargs)

        reset.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]  # `_accepts` looks at it
        self._task.reset = reset  # on the object, so that the task's own step finds it

    def _observe(self, observation: Any) -> Any:
        """A task's observation as arrays; of one that shows MetaSim's own state, the joints."""
        if isinstance(observation, Mapping):
            return {str(key): self._observe(value) for key, value in observation.items()}
        if hasattr(observation, "shape"):
            return to_numpy(observation)
        return self._joints()

    def _observation_now(self, given: Any) -> Any:
        count = len(given) if hasattr(given, "shape") else None
        if count is None or count == self._count:
            return given
        return self._task._observation(self._handler.get_states(mode="tensor"))  # the hook that every task writes

    def _joints(self) -> Array:
        """(N, 2 J) float32 joint positions, then velocities, of all robots."""
        layout, values = self._scenes.layout, self._scenes.read(np.zeros(self._count))
        positions, velocities = [], []
        for entity in layout.entities:
            if entity.name in self._scenes.robots:
                start, count = layout.offsets[entity.name] + 13, len(entity.joint_names)
                positions.append(values[:, start : start + count])
                velocities.append(values[:, start + count : start + 2 * count])
        return np.concatenate(positions + velocities, axis=1).astype(np.float32)

    def _action_space(self) -> gymnasium.Space[Any]:
        """The task's own, or joint targets within the robots' limits where it declares none."""
        declared = getattr(self._task, "action_space", None)
        if isinstance(declared, gymnasium.spaces.Box) and declared.shape and 0 not in declared.shape:
            return declared
        limits: list[tuple[float, float]] = []
        for robot in self._handler.robots:
            known = getattr(robot, "joint_limits", None) or {}
            names = self._handler.get_joint_names(robot.name, sort=True)
            limits += [known.get(name, (-np.inf, np.inf)) for name in names]
        low, high = np.array(limits, np.float32).reshape(-1, 2).T
        return gymnasium.spaces.Box(low, high, dtype=np.float32)

    def _masked(self, options: Mapping[str, Any] | None) -> list[int] | None:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return None
        if np.shape(mask) != (self._count,):
            raise InputError(f"reset_mask has shape {np.shape(mask)}; this batch needs ({self._count},)")
        return [int(env_id) for env_id in np.flatnonzero(mask)]

    def _seed(self, seed: int) -> None:
        """As MetaSim's own `set_seed` does, for tasks whose reset takes no seed."""
        if hasattr(self._handler, "set_seed"):
            self._handler.set_seed(seed)
            return
        random.seed(seed)
        np.random.seed(seed % (1 << 32))

    def _final_observation(self, info: Mapping[str, Any]) -> Any:
        """(N, …) the observations in which episodes ended, where this version tells."""
        if not self._ends.env_ids or not self._has_final:
            return None
        raw = info.get("observations", {}).get("raw", {}).get("obs")
        return None if raw is None else self._observe(raw)

    def _final_infos(self, final: Any) -> dict[str, Any]:
        """As Gymnasium's vector environments tell of them."""
        if final is None:
            return {}
        mask = np.zeros(self._count, bool)
        mask[list(self._ends.env_ids)] = True
        return {"final_obs": only_where(mask, final), "_final_obs": mask}


class _Ends:
    """What the last step ended: environments, the scenes they ended in, and the observation that began after it."""

    def __init__(self) -> None:
        self.env_ids: list[int] = []
        self.values: Floats | None = None
        self.pending: Any = None


class _HandlerTask:
    """A handler with the calls of a task: it resets to the scene it was launched with and gives no reward."""

    def __init__(self, handler: Any) -> None:
        self._handler, self._start = handler, copy.deepcopy(handler.get_states(mode="tensor"))

    def reset(self, env_ids: Sequence[int] | None = None) -> tuple[Any, dict[str, Any]]:
        everything = list(range(self._handler.num_envs))
        self._handler.set_states(self._start, everything if env_ids is None else list(env_ids))
        return None, {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        self._handler.set_dof_targets(actions)
        self._handler.simulate()
        count = self._handler.num_envs
        return None, np.zeros(count), np.zeros(count, bool), np.zeros(count, bool), {}

    def close(self) -> None:
        self._handler.close()


def _source(handler: Any) -> str:
    from importlib import metadata

    try:
        version = metadata.version("roboverse-metasim")
    except metadata.PackageNotFoundError:
        version = "of unknown version"
    return f"metasim {version} on {getattr(handler.scenario, 'simulator', None) or type(handler).__name__}"


def _step_seconds(handler: Any) -> float | None:
    """Simulated seconds of a step, as 1.0.0b0 tells them, or by the scenario's own numbers."""
    known = getattr(handler, "env_step_s", None)
    if known is None:
        physics = getattr(getattr(handler.scenario, "sim_params", None), "dt", None)
        known = None if physics is None else physics * getattr(handler.scenario, "decimation", 1)
    return None if known is None else float(known)


def _some_tensor(handler: Any) -> Any:
    """One of the simulator's own, for its kind and device."""
    states = handler.get_states(mode="tensor")
    if isinstance(states, list):
        return next(iter({**states[0].get("robots", {}), **states[0].get("objects", {})}.values()))["pos"]
    return next(iter({**states.robots, **states.objects}.values())).root_state


def _accepts(function: Any, name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(one.name == name or one.kind is one.VAR_KEYWORD for one in parameters)
