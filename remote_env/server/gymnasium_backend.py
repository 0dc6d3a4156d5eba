"""The backend for Gymnasium environments: registered ids, factories, files, and callables that the client sent."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium

from remote_env.errors import ConfigError, Unsupported
from remote_env.server.backend import Backend, load_object
from remote_env.state import SceneState
from remote_env.tasks import register_tasks

# What any Gymnasium environment may be asked for by name; a task adds its own in `remote_calls`.
DEFAULT_CALLS = frozenset({"np_random_seed", "render_mode", "metadata", "has_wrapper_attr"})


class GymnasiumBackend(Backend):
    """Serves one `gymnasium.Env`.

    The environment's unwrapped object may offer `get_scene_state(*, native)` and `set_scene_state(state)`; one that
    has MuJoCo's `model` and `data` gets both from us. It may name in `remote_calls` what clients may call.
    """

    def make(self, env: Any, kwargs: Mapping[str, Any]) -> None:
        """Build `env`: an id, "module:id", "module:function", "file.py:function", or a callable."""
        self._env = make_env(env, kwargs)
        self._scene: Any = None
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space
        self.metadata = dict(self._env.metadata or {})
        self.render_mode = self._env.render_mode
        self.spec = _plain_spec(self._env)
        self.callable_names = DEFAULT_CALLS | frozenset(getattr(self._env.unwrapped, "remote_calls", ()))
        self.state_names = _state_names(self._env)

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """See `Backend.reset`."""
        return self._env.reset(seed=seed, options=options)

    @property
    def step(self) -> Callable[[Any], tuple[Any, Any, Any, Any, dict[str, Any]]]:
        """The environment's own `step`: nothing stands between it and the simulator loop."""
        return self._env.step

    def state(self, *, native: bool) -> SceneState:
        """See `Backend.state`."""
        task: Any = self._env.unwrapped
        if hasattr(task, "get_scene_state"):
            state: SceneState = task.get_scene_state(native=native)
        else:
            state = self._mujoco_scene(task).read(task.data, native=native)
        return state

    def restore(self, state: SceneState) -> None:
        """See `Backend.restore`."""
        task: Any = self._env.unwrapped
        if hasattr(task, "set_scene_state"):
            task.set_scene_state(state)
        else:
            self._mujoco_scene(task).write(state, task.data)

    def _mujoco_scene(self, task: Any) -> Any:
        """The reader of a MuJoCo task's scene, made once per model."""
        if self._scene is not None and self._scene.model is task.model:
            return self._scene
        if type(getattr(task, "model", None)).__name__ != "MjModel":
            raise Unsupported(
                f"{self.spec.get('id')} has no scene state: it is no MuJoCo environment, and it offers no "
                "get_scene_state(native=...); give it one, or do without get_state()"
            )
        from remote_env.tasks.mujoco_scene import MujocoScene

        self._scene = MujocoScene(task.model)
        return self._scene

    def render(self) -> Any:
        """See `Backend.render`."""
        return self._env.render()

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `Backend.call`."""
        value = self._env.get_wrapper_attr(name)
        return value(*args, **kwargs) if callable(value) else value

    def close(self) -> None:
        """See `Backend.close`."""
        self._env.close()


def make_env(env: Any, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """The environment that `env` names.

    Raises:
        ConfigError: no such id, module, file or function here, or what it made is no `gymnasium.Env`.
    """
    register_tasks()
    factory = env if callable(env) else _find_factory(str(env))
    if factory is None:
        return _make_registered(str(env), kwargs)
    made = factory(**kwargs)
    if not isinstance(made, gymnasium.Env):
        raise ConfigError(f"env={env!r} made a {type(made).__name__}; it must return a gymnasium.Env")
    return made


def _find_factory(name: str) -> Callable[..., Any] | None:
    """The function that "module:function" or "file.py:function" names; None for anything else."""
    module, colon, function = name.rpartition(":")
    if not colon:
        return None
    if module.endswith(".py"):
        return _load_from_file(Path(module).expanduser(), function)
    if "/" in function or "-v" in function:
        return None  # "module:id": gymnasium imports the module itself
    found = load_object(name, f"env={name!r}")
    if not callable(found):
        raise ConfigError(f"env={name!r} names {found!r}; it must be a function or class that makes a gymnasium.Env")
    return found  # type: ignore[no-any-return]


def _load_from_file(path: Path, function: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(
            f"no task file {path.absolute()} where the server runs; to send yours along: env=LocalFolder('{path}')"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(module.__name__, module)  # dataclasses and pickle look their module up there
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise ConfigError(f"{path} has no function {function!r} that makes the environment")
    return getattr(module, function)  # type: ignore[no-any-return]


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
