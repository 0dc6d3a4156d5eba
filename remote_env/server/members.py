"""The environments of a batch: what stands around one of them, and the scenes of several as rows."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from remote_env.errors import TaskError, Unsupported
from remote_env.server.error_text import error_text, sendable
from remote_env.state import Floats, SceneDescription, SceneLayout, SceneState
from remote_env.tasks.task_scenes import TaskScenes

MAX_ERROR_TEXT = 64 << 10


class TerminalScene(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the scene in which the episode ended, of an environment that is reset before anybody could ask."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.read_scene: Callable[[Any], SceneState] | None = None
        self.final_scene: SceneState | None = None

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        transition = self.env.step(action)
        ended = transition[2] or transition[3]
        self.final_scene = self.read_scene(self.unwrapped) if ended and self.read_scene is not None else None
        return transition


class WholeObservations(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Fills in what a task leaves out because nobody wants it: Gymnasium's batches stack all of the space."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._stand_in = _any_of(env.observation_space)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        observation, info = self.env.reset(**kwargs)
        return _filled(observation, self._stand_in), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        observation, *rest = self.env.step(action)
        return _filled(observation, self._stand_in), *rest


def with_whole_observations(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment, as a batch can hold it: around those alone that may leave something out, for it costs time."""
    return WholeObservations(env) if hasattr(env.unwrapped, "set_wanted_observations") else env


def _filled(given: Any, stand_in: Any) -> Any:
    if not isinstance(given, Mapping) or not isinstance(stand_in, Mapping):
        return given
    return {key: _filled(given[key], value) if key in given else value for key, value in stand_in.items()}


def _any_of(space: gymnasium.Space[Any]) -> Any:
    """Some element of the space, the same each time; zeros of what is an array."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: _any_of(part) for key, part in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Box):
        return np.zeros(space.shape, space.dtype)
    space = copy.deepcopy(space)
    space.seed(0)
    return space.sample()


class Member(TerminalScene):
    """An environment in a process of its own: it survives questions that fail, and its errors survive the way back.

    Args:
        env: the environment.
        index: which of the batch it is.
        scenes: reads and writes its scene.
        keeps_finals: whether ended episodes' scenes will be asked for, where it is reset in the same step.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], index: int, scenes: TaskScenes, *, keeps_finals: bool) -> None:
        super().__init__(with_whole_observations(env))
        self._index, self._scenes, self._resets_in_step = index, scenes, keeps_finals

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        try:
            return super().step(action)
        except Exception as error:  # noqa: BLE001  a task may raise anything
            raise _portable(error) from None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        try:
            return self.env.reset(**kwargs)
        except Exception as error:  # noqa: BLE001  a task may raise anything
            raise _portable(error) from None

    def answer(self, env_ids: Sequence[int] | None, question: str, *arguments: Any) -> tuple[Any, Exception | None]:
        """What a question by name gives, or what it raised: that is no reason for this process to end.

        Args:
            env_ids: who is asked; None: all. The others answer None.
            question: "call", "set", "read_scene", "write_scene", "final_scene", "describe" or
                "want".
            arguments: of it.
        """
        if env_ids is not None and self._index not in env_ids:
            return None, None
        try:
            return getattr(self, f"_{question}")(*arguments), None
        except Exception as error:  # noqa: BLE001  a task may raise anything
            return None, _portable(error)

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = self.env.get_wrapper_attr(name)
        return value(*args, **kwargs) if callable(value) else value

    def _set(self, name: str, values: Sequence[Any]) -> None:
        self.env.set_wrapper_attr(name, values[self._index])

    def _read_scene(self) -> SceneState:
        scene = self._scenes.read(self.unwrapped)
        if self._resets_in_step:  # from the first time that somebody sees one, which costs the others nothing
            self.read_scene = self._scenes.read
        return scene

    def _final_scene(self) -> SceneState | None:
        return self.final_scene

    def _write_scene(self, states: Mapping[int, SceneState]) -> None:
        self._scenes.write(self.unwrapped, states[self._index])

    def _describe(self) -> SceneDescription | None:
        return self._scenes.describe(self.unwrapped)

    def _want(self, keys: tuple[str, ...] | None) -> None:
        tell = getattr(self.unwrapped, "set_wanted_observations", None)
        if tell is not None:
            tell(keys)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a text, or one that tells of it where it cannot cross to another process."""
    told = sendable(traceback.format_exc(), MAX_ERROR_TEXT)
    try:
        error.remote_traceback = told  # type: ignore[attr-defined]
        again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
        if str(type(error)(again)) == str(error) and again.remote_traceback == told:
            return error
    except Exception as unable:  # noqa: BLE001  a foreign class may do anything
        told += f"\n(it could not be sent as it is: {type(unable).__name__})"
    text = sendable(error_text(error), MAX_ERROR_TEXT)
    return TaskError(f"the task raised {type(error).__name__}: {text}", remote_traceback=told)


def stack_scenes(scenes: Sequence[SceneState]) -> tuple[SceneLayout, Floats]:
    """The layout that scenes share, and their values as rows.

    Raises:
        Unsupported: they share none.
    """
    layout = scenes[0].layout
    for index, scene in enumerate(scenes):
        if scene.layout != layout:
            raise Unsupported(
                f"the environments of this batch hold different things (number {index} of those asked for has another "
                "layout than the first), so their states are not rows of one array; take them one by one"
            )
    return layout, np.stack([scene.values for scene in scenes])


def checked_states(layout: SceneLayout, values: Floats) -> list[SceneState]:
    """Rows as states, all of them checked before one is written: half a batch must not move."""
    states = [SceneState(layout, row) for row in values]
    for state in states:
        state.check()
    return states
