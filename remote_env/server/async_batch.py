"""A batch whose environments are in processes of their own: Gymnasium's AsyncVectorEnv, made anew after a failure.

Its processes are of the simulator's process group: whatever kills the simulator, or the supervisor, ends them too.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium

from remote_env.errors import InputError, TaskError
from remote_env.server.members import Member, checked_states, stack_scenes
from remote_env.state import Floats, SceneDescription, SceneLayout
from remote_env.tasks.task_scenes import TaskScenes

END_TIMEOUT_S = 5.0


class AsyncBatch:
    """What `gymnasium.vector.AsyncVectorEnv` is, over failures of its environments; attributes are its own.

    An environment that raises in `step` or `reset`, or whose process ends, costs the batch: the next `reset` of all
    makes it anew, without what was set by `set_attr`. What fails in `call` or `set_attr` costs nothing.

    Args:
        make_one: makes one environment.
        num_envs: how many.
        vector_kwargs: of AsyncVectorEnv.
        scenes: reads and writes the scenes of environments.
    """

    def __init__(
        self, make_one: Callable[[], Any], num_envs: int, vector_kwargs: Mapping[str, Any], scenes: TaskScenes
    ) -> None:
        self._kwargs = {"context": _context(), **vector_kwargs, "copy": False}
        self._scenes, self._make_one, self.num_envs = scenes, make_one, num_envs
        self._broken = ""
        self._wanted: tuple[str, ...] | None = None
        self._sample: Any = make_one()
        self._vector = vector = self._make(self._sample)
        self.metadata, self.render_mode = vector.metadata, vector.render_mode
        self.observation_space, self.action_space = vector.observation_space, vector.action_space
        self.single_observation_space = vector.single_observation_space
        self.single_action_space = vector.single_action_space

    def _make(self, sample: Any = None) -> Any:
        mode = gymnasium.vector.AutoresetMode
        given = self._kwargs.get("autoreset_mode", mode.NEXT_STEP)
        resets_in_step = (given if isinstance(given, mode) else mode(given)) is mode.SAME_STEP
        makers = [_MemberMaker(self._make_one, index, self._scenes, resets_in_step) for index in range(self.num_envs)]
        makers[0].sample = sample
        try:
            return gymnasium.vector.AsyncVectorEnv(makers, **self._kwargs)
        except (EOFError, ConnectionError) as error:
            raise TaskError(
                "the process of an environment ended while that was made; the log says why. If it cannot be made in a "
                'forked process, give vector_kwargs={"context": "forkserver"} or vectorization_mode="sync"'
            ) from error

    def take_sample(self) -> Any:
        """An environment such as all, closed already, to read facts from; once."""
        sample, self._sample = self._sample, None
        return sample

    @property
    def unwrapped(self) -> AsyncBatch:
        """Itself."""
        return self

    # Episodes

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As `gymnasium.vector.AsyncVectorEnv.reset`; makes the batch anew after a failure.

        Raises:
            InputError: after a failure only all environments together can be reset.
        """
        if self._broken:
            mask = (options or {}).get("reset_mask")
            if mask is not None and not mask.all():
                raise InputError(f"{self._broken}: reset() all environments, without a reset_mask")
            self._end()
            self._vector, self._broken = self._make(), ""
            if self._wanted is not None:
                self._ask(None, "want", self._wanted)
        try:
            return self._vector.reset(seed=seed, options=options)  # type: ignore[no-any-return]
        except Exception as error:
            raise self._failure(error) from error

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As `gymnasium.vector.AsyncVectorEnv.step`."""
        if self._broken:
            raise InputError(f"{self._broken}: call reset(), which makes the batch anew")
        try:
            return self._vector.step(actions)  # type: ignore[no-any-return]
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> Exception:
        """What failed, as the environment's process told it; the batch cannot go on."""
        told = error.args[0] if error.args else None
        if isinstance(told, Exception):
            self._broken = f"an environment of this batch has failed ({type(told).__name__})"
            return told
        self._broken = "an environment of this batch has failed"
        if not isinstance(error, (EOFError, ConnectionError)):
            return error
        ended = self._ended_processes()
        self._broken = f"the process of {ended or 'an environment'} ended"
        return TaskError(f"{self._broken} in a step or reset; reset() makes the batch anew")

    def _ended_processes(self) -> str:
        """Which environments' processes have ended, and how."""
        ended: list[str] = []
        for index, process in enumerate(self._vector.processes):
            process.join(0.2 if not ended else 0.0)  # its pipe closes a little earlier
            if process.exitcode is not None:
                ended.append(f"environment {index} ({_exit_text(process.exitcode)})")
        return ", ".join(ended)

    # Questions

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As `gymnasium.vector.AsyncVectorEnv.call`."""
        return tuple(self._ask(None, "call", name, args, kwargs))

    def render(self) -> tuple[Any, ...]:
        """As `gymnasium.vector.AsyncVectorEnv.render`."""
        return self.call("render")

    def set_attr(self, name: str, values: Any) -> None:
        """As `gymnasium.vector.AsyncVectorEnv.set_attr`."""
        values = values if isinstance(values, (list, tuple)) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise InputError(f"{len(values)} values for {self.num_envs} environments; give one each, or one for all")
        self._ask(None, "set", name, values)

    def states(self, env_ids: Sequence[int]) -> tuple[SceneLayout, Floats]:
        """See `Backend.states`."""
        layout, values = stack_scenes(self._ask(list(env_ids) or [0], "read_scene"))
        return layout, values[: len(env_ids)]

    def final_states(self) -> tuple[Sequence[int], Floats] | None:
        """See `Backend.final_states`."""
        ended = {index: scene for index, scene in enumerate(self._ask(None, "final_scene")) if scene is not None}
        return (list(ended), stack_scenes(list(ended.values()))[1]) if ended else None

    def restore(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """See `Backend.restore_states`."""
        states = dict(zip(env_ids, checked_states(layout, values), strict=True))
        self._ask(list(env_ids), "write_scene", states)

    def describe(self) -> SceneDescription | None:
        """What the first environment's scene looks like; None when it does not tell."""
        description: SceneDescription | None = self._ask([0], "describe")[0]
        return description

    def set_wanted_observations(self, keys: tuple[str, ...] | None) -> None:
        """See `Backend.want_observations`."""
        is_new, self._wanted = keys != self._wanted, keys
        if is_new and not self._broken:
            self._ask(None, "want", keys)

    def _ask(self, env_ids: list[int] | None, question: str, *arguments: Any) -> list[Any]:
        """The answers of these environments, or of all, in this order."""
        if self._broken:
            raise InputError(f"{self._broken}: call reset(), which makes the batch anew")
        whom = None if env_ids is None or len(env_ids) == self.num_envs else frozenset(env_ids)
        try:
            answers = self._vector.call("answer", whom, question, *arguments)
        except Exception as error:
            raise self._failure(error) from error
        failed = next((error for _, error in answers if error is not None), None)
        if failed is not None:
            raise failed
        return [answers[index][0] for index in (range(self.num_envs) if env_ids is None else env_ids)]

    # Ending

    def close(self) -> None:
        """End all processes; those of a batch that failed by force."""
        if self._broken:
            self._end()
        else:
            self._vector.close()

    def _end(self) -> None:
        vector = self._vector
        for process in vector.processes:
            process.kill()
        for process in vector.processes:
            process.join(END_TIMEOUT_S)
        for pipe in vector.parent_pipes:
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        vector.error_queue.close()
        vector.closed = True


class _MemberMaker:
    """Makes an environment of a batch in its process; the first one also `sample`, for Gymnasium to look at."""

    def __init__(self, make_one: Callable[[], Any], index: int, scenes: TaskScenes, keeps_finals: bool) -> None:
        self._make_one, self._index, self._scenes, self._keeps_finals = make_one, index, scenes, keeps_finals
        self.sample: Any = None

    def __call__(self) -> Member:
        sample, self.sample = self.sample, None
        env = self._make_one() if sample is None else sample
        return Member(env, self._index, self._scenes, keeps_finals=self._keeps_finals)


def _context() -> str | None:
    """How processes begin: where they can be forked they need not be able to import the task again."""
    return "fork" if sys.platform.startswith("linux") else None


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
