"""How the remote follows: step by step, or a chunk of steps in one request. Both give its transitions back in order."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Iterator
from typing import Any

from remote_env.env import RemoteEnv
from remote_env.errors import NotRun, RemoteEnvError, TaskError
from remote_env.protocol import stacking
from remote_env.protocol.chunks import MAX_STEPS, Transitions
from remote_env.protocol.vector_step import Transition
from remote_env.session.actions import compile_action_check
from remote_env.state import SceneState

DEFAULT_CHUNK = 64


class Following(abc.ABC):
    """What has been sent to a remote, and what it made of that.

    Args:
        remote: that runs the actions.
        window: the most steps that may be under way; None: as many as can be.

    Attributes:
        can_wait_again: whether `take` can be called again after a deadline.
        state: the scene that came with what was taken last, where the remote captures it; else None.
    """

    can_wait_again = True
    state: SceneState | None = None

    def __init__(self, remote: RemoteEnv, window: int | None) -> None:
        self._remote, self._window = remote, window

    @abc.abstractmethod
    def send(self, action: Any) -> None:
        """Have it run an action; InputError when it is none of its task: nothing was sent."""

    @abc.abstractmethod
    def take(self) -> Transition:
        """The first transition that was not taken yet; raises what the remote raised in its place.

        Raises:
            NotRun: that step stood behind one that ended the episode, or failed.
            DeadlineExceeded: it has not come in time.
        """

    @abc.abstractmethod
    def is_due(self, ahead: int) -> bool:
        """Whether one should be taken before the next `send`, `ahead` of them being under way."""

    @abc.abstractmethod
    def must_wait(self, ahead: int) -> bool:
        """Whether one must be."""

    def drain(self, count: int) -> tuple[list[Transition], RemoteEnvError | None]:
        """Take all `count` that are under way: those that ran, and what was raised behind them, if anything was."""
        ran: list[Transition] = []
        failure: RemoteEnvError | None = None
        for _ in range(count):
            try:
                ran.append(self.take())
            except NotRun:
                continue
            except TaskError as error:
                failure = error
        return ran, failure

    def forget(self) -> None:  # noqa: B027  nothing to do where the session itself forgets, at a reset
        """Drop what has not been sent or taken."""


class StepByStep(Following):
    """Each step is sent at once."""

    def send(self, action: Any) -> None:
        """See `Following`."""
        self._remote.step_async(action)

    def take(self) -> Transition:
        """See `Following`."""
        transition = self._remote.step_wait()
        self.state = self._remote.get_state() if self._remote.captures_state else None
        return transition

    def is_due(self, ahead: int) -> bool:
        """See `Following`."""
        return ahead > 0 and (self._remote.step_ready() or self.must_wait(ahead))

    def must_wait(self, ahead: int) -> bool:
        """See `Following`."""
        allowed = self._remote.step_window
        return ahead >= (allowed if self._window is None else min(self._window, allowed))


class ChunkByChunk(Following):
    """Steps are collected, and run in one request."""

    can_wait_again = False

    def __init__(self, remote: RemoteEnv, window: int | None) -> None:
        super().__init__(remote, window)
        self._check = compile_action_check(remote.action_space)
        self._actions: list[Any] = []
        self._results: deque[tuple[Transition, SceneState | None] | RemoteEnvError] = deque()

    def send(self, action: Any) -> None:
        """See `Following`."""
        self._check(action)
        self._actions.append(stacking.copied(action))

    def take(self) -> Transition:
        """See `Following`."""
        if not self._results:
            self._run()
        result = self._results.popleft()
        if isinstance(result, RemoteEnvError):
            raise result
        transition, self.state = result
        return transition

    def _run(self) -> None:
        sent = len(self._actions)
        actions, self._actions = self._actions, []
        try:
            self._results += _split(self._remote.step_many(actions))
        except TaskError as error:
            self._results += _split(error.completed) if error.completed is not None else ()
            self._results.append(error)
        behind = "this step stood behind one that ended the episode, or failed; it was not run"
        self._results += [NotRun(behind) for _ in range(sent - len(self._results))]

    def is_due(self, ahead: int) -> bool:
        """See `Following`."""
        return self.must_wait(ahead)

    def must_wait(self, ahead: int) -> bool:
        """See `Following`."""
        return bool(self._results) or ahead >= min(self._window or DEFAULT_CHUNK, MAX_STEPS)

    def forget(self) -> None:
        """See `Following`."""
        self._actions.clear()
        self._results.clear()


def _split(chunk: Transitions) -> Iterator[tuple[Transition, SceneState | None]]:
    outcomes = zip(chunk.rewards.tolist(), chunk.terminated.tolist(), chunk.truncated.tolist(), strict=True)
    observations = (
        stacking.rows(chunk.observations)
        if not isinstance(chunk.observations, dict) or chunk.observations
        else [{}] * chunk.ran
    )
    states: Any = chunk.states or [None] * chunk.ran
    for observation, outcome, info, state in zip(observations, outcomes, chunk.infos, states, strict=True):
        yield (observation, *outcome, info), state
