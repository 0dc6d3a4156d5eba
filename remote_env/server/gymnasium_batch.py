"""Batches of Gymnasium environments: Gymnasium's own vector environments, and the scenes of what they hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium

from remote_env.errors import ConfigError, Unsupported
from remote_env.server.async_batch import AsyncBatch
from remote_env.server.members import TerminalScene, checked_states, stack_scenes, with_whole_observations
from remote_env.state import Floats, SceneDescription, SceneLayout
from remote_env.tasks.task_scenes import TaskScenes

VECTORIZATION_MODES = ("sync", "async", "native")
VECTOR_ARGUMENTS = ("vectorization_mode", "vector_kwargs")


def make_batch(
    env: Any,
    kwargs: Mapping[str, Any],
    num_envs: int,
    *,
    factory: Callable[..., Any] | None,
    make_one: Callable[[], gymnasium.Env[Any, Any]],
    scenes: TaskScenes,
) -> Any:
    """A `gymnasium.vector.VectorEnv` of `num_envs` environments.

    Args:
        env: what the client named.
        kwargs: of the task; among them may be `vectorization_mode`, "sync" (Gymnasium's SyncVectorEnv, the default),
            "async" (its AsyncVectorEnv: a process for each) or "native" (the vector environment that is registered for
            the id, or that the function makes when it is given num_envs), and `vector_kwargs` of the vector
            environment, as `gymnasium.make_vec` takes them.
        num_envs: how many.
        factory: the function that `env` names, or None when it is an id.
        make_one: makes one of them.
        scenes: for those that are in processes of their own.

    Raises:
        Unsupported: this interpreter's Gymnasium has no batches that tell how they reset.
        ConfigError: it cannot be made so.
    """
    if not hasattr(gymnasium.vector, "AutoresetMode"):
        raise Unsupported(
            f"num_envs={num_envs}: a batch needs gymnasium 1.1 or later in the interpreter that serves, and this one "
            f"has {gymnasium.__version__}; install a newer one there, or take a single environment with RemoteEnv"
        )
    mode, vector_kwargs = kwargs.get("vectorization_mode") or "sync", dict(kwargs.get("vector_kwargs") or {})
    if mode not in VECTORIZATION_MODES:
        raise ConfigError(f"vectorization_mode={mode!r}: allowed are {', '.join(VECTORIZATION_MODES)}")
    own = task_kwargs(kwargs)
    try:
        if mode == "native":
            return _make_native(env, factory, num_envs, {**own, **vector_kwargs})
        if mode == "async":
            return _make_async(make_one, num_envs, vector_kwargs, scenes)
        return _make_sync(make_one, num_envs, vector_kwargs)
    except (gymnasium.error.Error, RuntimeError) as error:  # RuntimeError: their spaces are not alike
        raise ConfigError(f"the far end cannot make a batch of env={env!r}: {error}") from error


def task_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments without those of the vector environment."""
    return {name: value for name, value in kwargs.items() if name not in VECTOR_ARGUMENTS}


def _make_sync(make_one: Callable[[], Any], num_envs: int, vector_kwargs: dict[str, Any]) -> Any:
    _check_vector_kwargs(gymnasium.vector.SyncVectorEnv, vector_kwargs)
    resets_in_step = _autoreset_mode(vector_kwargs.get("autoreset_mode", "NextStep")) == "SAME_STEP"

    def make() -> Any:
        one = with_whole_observations(make_one())
        return TerminalScene(one) if resets_in_step else one

    # Without copies of its own: what it returns is sent before it is stepped again.
    return gymnasium.vector.SyncVectorEnv([make] * num_envs, copy=False, **vector_kwargs)


def _make_async(
    make_one: Callable[[], Any], num_envs: int, vector_kwargs: dict[str, Any], scenes: TaskScenes
) -> AsyncBatch:
    _check_vector_kwargs(gymnasium.vector.AsyncVectorEnv, vector_kwargs)
    _autoreset_mode(vector_kwargs.get("autoreset_mode", "NextStep"))
    return AsyncBatch(make_one, num_envs, vector_kwargs, scenes)


def _check_vector_kwargs(kind: type, vector_kwargs: Mapping[str, Any]) -> None:
    known = sorted(inspect.signature(kind).parameters.keys() - {"env_fns", "copy", "worker"})
    if unknown := sorted(vector_kwargs.keys() - set(known)):
        raise ConfigError(f"vector_kwargs has no {unknown[0]!r} for {kind.__name__}; it takes {', '.join(known)}")


def _autoreset_mode(given: Any) -> str:
    kinds = gymnasium.vector.AutoresetMode
    try:
        return str((given if isinstance(given, kinds) else kinds(given)).name)
    except ValueError as error:
        raise ConfigError(f"autoreset_mode={given!r}: allowed are {', '.join(kind.value for kind in kinds)}") from error


def _make_native(env: Any, factory: Callable[..., Any] | None, num_envs: int, kwargs: dict[str, Any]) -> Any:
    if factory is None:
        made: Any = gymnasium.make_vec(str(env), num_envs, vectorization_mode="vector_entry_point", **kwargs)
    else:
        made = factory(num_envs=num_envs, **kwargs)
    if not isinstance(made, gymnasium.vector.VectorEnv):
        raise ConfigError(
            f"env={env!r} made a {type(made).__name__} for num_envs={num_envs}; with vectorization_mode='native' it "
            "must return a gymnasium.vector.VectorEnv"
        )
    if made.num_envs != num_envs:
        made.close()
        raise ConfigError(f"env={env!r} made a batch of {made.num_envs} where num_envs={num_envs} was asked for")
    return made


def read_autoreset_mode(batch: Any) -> str:
    """How it resets, by its metadata.

    Raises:
        ConfigError: it does not say.
    """
    given = (batch.metadata or {}).get("autoreset_mode")
    if given is None:
        raise ConfigError(f"{batch} does not say in metadata['autoreset_mode'] how it resets; have it do so")
    return _autoreset_mode(given)


def takes_reset_mask(batch: Any) -> bool:
    """Whether it resets some of its environments only, when told by a mask."""
    return isinstance(batch, (gymnasium.vector.SyncVectorEnv, AsyncBatch))


def sample_of(batch: Any) -> Any:
    """One of its environments, to read facts from; itself when it has none."""
    return batch.take_sample() if isinstance(batch, AsyncBatch) else next(iter(getattr(batch, "envs", ())), batch)


def scenes_of(batch: Any, scenes: TaskScenes) -> BatchScenes | AsyncBatch:
    """What reads and writes the scenes of its environments."""
    return batch if isinstance(batch, AsyncBatch) else BatchScenes(batch, scenes)


class BatchScenes:
    """The scenes of a vector environment's members.

    Args:
        batch: a vector environment, whose `envs` are in this process.
        scenes: reads and writes those of unwrapped environments.
    """

    def __init__(self, batch: Any, scenes: TaskScenes) -> None:
        self._envs: Sequence[Any] = getattr(batch, "envs", ())
        self._name, self._scenes = str(batch), scenes
        self._keeps_finals = False

    def states(self, env_ids: Sequence[int]) -> tuple[SceneLayout, Floats]:
        """See `Backend.states`."""
        if not self._envs:
            raise Unsupported(f"{self._name} has no scene states: its environments are not its own `envs`")
        scenes = [self._scenes.read(self._envs[index].unwrapped) for index in env_ids or (0,)]
        layout, values = stack_scenes(scenes)
        if not self._keeps_finals:  # from the first time that somebody sees one, which costs the others nothing
            self._keep_finals()
        return layout, values[: len(env_ids)]

    def _keep_finals(self) -> None:
        self._keeps_finals = True
        for env in self._envs:
            if isinstance(env, TerminalScene):
                env.read_scene = self._scenes.read

    def final_states(self) -> tuple[Sequence[int], Floats] | None:
        """See `Backend.final_states`."""
        finals = {index: getattr(env, "final_scene", None) for index, env in enumerate(self._envs)}
        ended = {index: scene for index, scene in finals.items() if scene is not None}
        return (list(ended), stack_scenes(list(ended.values()))[1]) if ended else None

    def restore(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """See `Backend.restore_states`."""
        if not self._envs:
            raise Unsupported(f"{self._name} cannot restore scene states: its environments are not its own `envs`")
        states = checked_states(layout, values)
        for index, state in zip(env_ids, states, strict=True):
            self._scenes.write(self._envs[index].unwrapped, state)

    def describe(self) -> SceneDescription | None:
        """What the first environment's scene looks like; None when it does not tell."""
        return self._scenes.describe(self._envs[0].unwrapped) if self._envs else None
