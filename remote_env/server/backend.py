"""Backend: what a simulator must offer to be served. Implement it to serve a task that is no Gymnasium environment."""

from __future__ import annotations

import abc
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError, Unsupported
from remote_env.server.snapshot import Snapshot
from remote_env.state import Floats, SceneDescription, SceneLayout, SceneState

BUNDLED = {
    "gymnasium": "remote_env.server.gymnasium_backend:GymnasiumBackend",
    "isaaclab": "remote_env.server.isaac.backend:IsaacLabBackend",
    "metasim": "remote_env.server.metasim_backend:MetaSimBackend",
}


class Backend(abc.ABC):
    """One task in one simulator process; every method is called from that process's main thread.

    `make` is called once, first, and must set the attributes. An exception from any method reaches the client as
    `TaskError` with its traceback; `Unsupported` and `InputError` reach it as themselves.

    Attributes:
        observation_space: a Gymnasium space that every observation obeys.
        action_space: a Gymnasium space that describes actions.
        metadata: as `gymnasium.Env.metadata`; entries that cannot cross the wire are dropped.
        render_mode: as `gymnasium.Env.render_mode`.
        spec: plain facts of the task, with "id" at least; what the client shows as `remote_spec`.
        callable_names: the attributes and methods that clients may read and call by name.
        state_names: the meaning of each number of an observation that is one vector, for a policy beside the task; ()
            when unknown.
        step_timeout_s: how long a client that does not say it waits for a step [s], where that is longer than usual, as
            when first steps compile; None for the usual.
        num_envs: set before `make`. None: one environment, with everything as `gymnasium.Env` has it. A number: a batch
            of so many, with everything as `gymnasium.vector.VectorEnv` has it: the spaces are the batched ones, rewards
            and flags are arrays of shape (num_envs,).
        single_observation_space: of a batch: of one of its environments.
        single_action_space: likewise.
        autoreset_mode: of a batch: "NEXT_STEP", "SAME_STEP" or "DISABLED", as `gymnasium.vector.AutoresetMode`.
        takes_reset_mask: of a batch: whether `reset` obeys options["reset_mask"], a (num_envs,) bool array of the
            environments to reset, as Gymnasium's vector environments do.
        render_s: of a task that draws images for its observations: how long that took in the last reset or step [s].
    """

    observation_space: Any
    action_space: Any
    metadata: Mapping[str, Any]
    render_mode: str | None = None
    spec: Mapping[str, Any]
    callable_names: frozenset[str] = frozenset()
    state_names: Sequence[str] = ()
    step_timeout_s: float | None = None
    num_envs: int | None = None
    single_observation_space: Any = None
    single_action_space: Any = None
    autoreset_mode: str | None = None
    takes_reset_mask: bool = False
    render_s: float = 0.0

    @abc.abstractmethod
    def make(self, env: Any, kwargs: Mapping[str, Any]) -> None:
        """Build the task.

        Args:
            env: what the client named: a string, or a callable that it sent.
            kwargs: keyword arguments for the task.
        """

    @abc.abstractmethod
    def reset(self, seed: Any, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; observation and info, as `gymnasium.Env.reset`.

        Args:
            seed: an int or None; of a batch also a list of num_envs of them. One int seeds environment i with
                seed + i, as Gymnasium's vector environments do.
            options: for the task.
        """

    @abc.abstractmethod
    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Apply one action; observation, reward, terminated, truncated and info, as `gymnasium.Env.step`."""

    def want_observations(self, keys: Sequence[str] | None) -> None:  # noqa: B027  most need not do anything
        """Hear which parts of observations are sent from now on; others need not be computed, and may be missing.

        Args:
            keys: paths of a Dict space, "agent_pos" or "pixels/top", with all that lies below each; None: everything.
        """

    def state(self, *, native: bool) -> SceneState:
        """The scene now; with `native`, also the bytes that restore this simulator exactly."""
        raise Unsupported(f"{type(self).__name__} has no scene state")

    def restore(self, state: SceneState) -> None:
        """Put the scene into `state`."""
        raise Unsupported(f"{type(self).__name__} cannot restore a scene state")

    def states(self, env_ids: Sequence[int]) -> tuple[SceneLayout, Floats]:
        """Of a batch: the scenes of these environments now.

        Returns:
            The layout they share, and (len(env_ids), layout.size) float64.
        """
        raise Unsupported(f"{type(self).__name__} has no scene states of a batch")

    def final_states(self) -> tuple[Sequence[int], Floats] | None:
        """Of a batch that resets in the same step: the scenes in which environments ended in the last step.

        Returns:
            Their K indices and (K, size) values; None when none ended, or the simulator cannot tell.
        """
        return None

    def restore_states(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """Of a batch: put these environments into these scenes, row by row; the others stay as they are."""
        raise Unsupported(f"{type(self).__name__} cannot restore scene states of a batch")

    def take_snapshot(self, limit_bytes: int) -> Snapshot:
        """What goes back exactly to where the task is now: its physics, counters and random numbers.

        Args:
            limit_bytes: of the memory that it may take.
        """
        raise Unsupported(
            f"{type(self).__name__} has no snapshots, so there is no snapshot(), fork() or try_chunks() here; tasks of "
            "Gymnasium have them"
        )

    def describe_scene(self) -> SceneDescription:
        """What the scene looks like: shapes, and a MuJoCo model if the simulator has one."""
        raise Unsupported(f"{type(self).__name__} does not tell what its scene looks like")

    def render(self) -> Any:
        """What `gymnasium.Env.render` returns in the task's render mode."""
        raise Unsupported(f"{type(self).__name__} cannot render")

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Read the attribute `name`, or call it when it is a method; only asked for names in `callable_names`."""
        raise Unsupported(f"{type(self).__name__} has no attribute {name!r} for clients")

    def set_attribute(self, name: str, values: Any) -> None:
        """Of a batch: as `gymnasium.vector.VectorEnv.set_attr`; only asked for names in `callable_names`."""
        raise Unsupported(f"{type(self).__name__} lets clients set no attributes")

    @abc.abstractmethod
    def close(self) -> None:
        """Free what `make` took."""


def load_backend(simulator: str) -> Backend:
    """The backend that `simulator` names: a bundled one ("gymnasium") or "module:Class".

    Raises:
        ConfigError: there is no such backend, or it is not a Backend.
    """
    target = BUNDLED.get(simulator, simulator)
    if ":" not in target:
        raise ConfigError(
            f"unknown simulator {simulator!r}; allowed: {', '.join(BUNDLED)}, or 'module:Class' with a Backend of yours"
        )
    kind = load_object(target, f"simulator={simulator!r}")
    if not (isinstance(kind, type) and issubclass(kind, Backend)):
        raise ConfigError(
            f"simulator={simulator!r} names {kind!r}; it must be a subclass of remote_env.server.backend.Backend"
        )
    return kind()


def load_object(target: str, asked: str) -> Any:
    """What "module:name" names.

    Raises:
        ConfigError: the module cannot be imported here, or lacks the name; the message says where it was looked for.
    """
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not (module_name + ".").startswith(error.name + "."):
            raise  # the module was found; something that it imports was not
        raise ConfigError(_not_importable(module_name, asked)) from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise ConfigError(f"{asked}: the module {module_name!r} ({module.__file__}) has no {name!r}") from error


def load_from_file(path: Path, name: str, asked: str) -> Any:
    """What the Python file at `path` calls `name`.

    Raises:
        ConfigError: there is no such file here, or it has no such name.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(
            f"{asked}: no task file {path.absolute()} where the server runs; to send yours along: "
            f"env=LocalFolder('{path}')"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(module.__name__, module)  # dataclasses and pickle look their module up there
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ConfigError(f"{asked}: {path} has no {name!r}")
    return getattr(module, name)


def _not_importable(module_name: str, asked: str) -> str:
    import platform

    return (
        f"{asked}: the interpreter {sys.executable} of {platform.node()} cannot import {module_name!r}; "
        f"install it there, or pass upload=['path/to/{module_name.split('.')[0]}'] to send it, "
        "or python= to name the interpreter that has it"
    )
