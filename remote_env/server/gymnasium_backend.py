"""The backend for Gymnasium environments: registered ids, factories, files, and callables that the client sent."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium

from remote_env.errors import ConfigError, Unsupported
from remote_env.server.backend import Backend, load_from_file, load_object
from remote_env.server.snapshot import Snapshot
from remote_env.server.snapshots import GraphSnapshot
from remote_env.state import Floats, SceneDescription, SceneLayout, SceneState
from remote_env.tasks import register_tasks
from remote_env.tasks.task_scenes import TaskScenes

# What any Gymnasium environment may be asked for by name; a task adds its own in `remote_calls`.
DEFAULT_CALLS = frozenset({"np_random_seed", "render_mode", "metadata", "has_wrapper_attr"})


class GymnasiumBackend(Backend):
    """Serves one `gymnasium.Env`, or with `num_envs` a `gymnasium.vector.VectorEnv` of so many.

    The environment's unwrapped object may offer `get_scene_state(*, native)` and `set_scene_state(state)`; one that
    has MuJoCo's `model` and `data` gets both from us. It may name in `remote_calls` what clients may call. Snapshots
    keep all that it reaches in Python; where its state lies elsewhere, it may offer `get_snapshot()`, whose value later
    steps must not change, and `set_snapshot(snapshot)`.
    """

    def make(self, env: Any, kwargs: Mapping[str, Any]) -> None:
        """Build `env`: an id, "module:id", "module:function", "file.py:function", or a callable."""
        self._scenes = TaskScenes()
        if self.num_envs is None:
            self._env: Any = make_env(env, kwargs)
            one = self._env
        else:
            one = self._make_batch(env, kwargs, self.num_envs)
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space
        self.metadata = dict(self._env.metadata or {})
        self.render_mode = self._env.render_mode
        self.spec = _plain_spec(one)
        self.callable_names = DEFAULT_CALLS | frozenset(getattr(one.unwrapped, "remote_calls", ()))
        self.state_names = _state_names(one)

    def _make_batch(self, env: Any, kwargs: Mapping[str, Any], num_envs: int) -> Any:
        """Make the batch; one of its environments, or itself if it has none."""
        from remote_env.server import gymnasium_batch

        register_tasks()
        factory, own = _find_factory(env), gymnasium_batch.task_kwargs(kwargs)
        make_one = functools.partial(_make_one, env, factory, own)
        self._env = batch = gymnasium_batch.make_batch(
            env, kwargs, num_envs, factory=factory, make_one=make_one, scenes=self._scenes
        )
        self._batch = gymnasium_batch.scenes_of(batch, self._scenes)
        self.single_observation_space, self.single_action_space = (
            batch.single_observation_space,
            batch.single_action_space,
        )
        self.autoreset_mode = gymnasium_batch.read_autoreset_mode(batch)
        self.takes_reset_mask = gymnasium_batch.takes_reset_mask(batch)
        return gymnasium_batch.sample_of(batch)

    def reset(self, seed: Any, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """See `Backend.reset`."""
        return self._env.reset(seed=seed, options=options)  # type: ignore[no-any-return]

    @property
    def step(self) -> Callable[[Any], tuple[Any, Any, Any, Any, dict[str, Any]]]:
        """The environment's own `step`: nothing stands between it and the simulator loop."""
        return self._env.step  # type: ignore[no-any-return]

    @property
    def render_s(self) -> float:  # type: ignore[override]
        """See `Backend`."""
        return float(getattr(self._env.unwrapped, "render_s", 0.0))

    def want_observations(self, keys: Sequence[str] | None) -> None:
        """See `Backend.want_observations`: told to tasks whose unwrapped object has `set_wanted_observations(keys)`."""
        for one in getattr(self._env, "envs", None) or (self._env,):
            tell = getattr(one.unwrapped, "set_wanted_observations", None)
            if tell is not None:
                tell(None if keys is None else tuple(keys))

    def state(self, *, native: bool) -> SceneState:
        """See `Backend.state`."""
        return self._scenes.read(self._env.unwrapped, native=native)

    def restore(self, state: SceneState) -> None:
        """See `Backend.restore`."""
        self._scenes.write(self._env.unwrapped, state)

    def take_snapshot(self, limit_bytes: int) -> Snapshot:
        """See `Backend.take_snapshot`."""
        return GraphSnapshot(self._env, limit_bytes)

    def states(self, env_ids: Sequence[int]) -> tuple[SceneLayout, Floats]:
        """See `Backend.states`."""
        return self._batch.states(env_ids)

    def final_states(self) -> tuple[Sequence[int], Floats] | None:
        """See `Backend.final_states`."""
        return self._batch.final_states()

    def restore_states(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """See `Backend.restore_states`."""
        self._batch.restore(layout, values, env_ids)

    def describe_scene(self) -> SceneDescription:
        """See `Backend.describe_scene`: the primitives of a MuJoCo task; of a batch, of its first environment."""
        one = self.num_envs is None
        described = self._scenes.describe(self._env.unwrapped) if one else self._batch.describe()
        return super().describe_scene() if described is None else described

    def render(self) -> Any:
        """See `Backend.render`."""
        return self._env.render()

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `Backend.call`."""
        if self.num_envs is not None:
            return self._of_batch("call")(name, *args, **kwargs)
        value = self._env.get_wrapper_attr(name)
        return value(*args, **kwargs) if callable(value) else value

    def set_attribute(self, name: str, values: Any) -> None:
        """See `Backend.set_attribute`."""
        self._of_batch("set_attr")(name, values)

    def _of_batch(self, method: str) -> Any:
        """A method that Gymnasium's own vector environments have, and others may have."""
        try:
            return getattr(self._env, method)
        except AttributeError as error:
            raise Unsupported(f"{self._env} has no {method}()") from error

    def close(self) -> None:
        """See `Backend.close`."""
        self._env.close()


def make_env(env: Any, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """The environment that `env` names.

    Raises:
        ConfigError: no such id, module, file or function here, or what it made is no `gymnasium.Env`.
    """
    register_tasks()
    return _make_one(env, _find_factory(env), kwargs)


def _make_one(env: Any, factory: Callable[..., Any] | None, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    if factory is None:
        return _make_registered(str(env), kwargs)
    made = factory(**kwargs)
    if not isinstance(made, gymnasium.Env):
        raise ConfigError(f"env={env!r} made a {type(made).__name__}; it must return a gymnasium.Env")
    return made


def _find_factory(env: Any) -> Callable[..., Any] | None:
    """The function that the client sent, or that "module:function" or "file.py:function" names; None for an id."""
    if callable(env):
        return env  # type: ignore[no-any-return]
    name = str(env)
    module, colon, function = name.rpartition(":")
    if not colon:
        return None
    if module.endswith(".py"):
        found = load_from_file(Path(module).expanduser(), function, f"env={name!r}")
    elif "/" in function or "-v" in function:
        return None  # "module:id": gymnasium imports the module itself
    else:
        found = load_object(name, f"env={name!r}")
    if not callable(found):
        raise ConfigError(f"env={name!r} names {found!r}; it must be a function or class that makes a gymnasium.Env")
    return found  # type: ignore[no-any-return]


def _make_registered(env: str, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    module = env.partition(":")[0] if ":" in env else None
    if module:
        load_object(f"{module}:__name__", f"env={env!r}")
    try:
        return gymnasium.make(env, disable_env_checker=True, **kwargs)
    except gymnasium.error.Error as error:  # unknown, of another version, or something that it needs is missing
        raise ConfigError(f"the far end cannot make env={env!r}: {error}") from error


def _state_names(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    """What the task calls the numbers of its observation, where that is one vector of as many numbers."""
    names = tuple(map(str, getattr(env.unwrapped, "state_names", ())))
    return names if env.observation_space.shape == (len(names),) else ()


def _plain_spec(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    spec = env.spec
    if spec is None:
        return {"id": type(env.unwrapped).__name__}
    return {
        "id": spec.id,
        "max_episode_steps": spec.max_episode_steps,
        "reward_threshold": spec.reward_threshold,
        "nondeterministic": spec.nondeterministic,
    }
