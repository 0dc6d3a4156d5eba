"""What one server has of a batch that is spread over several: its steps under way, and its restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from remote_env.errors import ConnectError, RemoteEnvError, SessionLost
from remote_env.protocol.vector_step import Transition
from remote_env.vector.remote_vector_env import RemoteVectorEnv
from remote_env.vector.rows import objects_of

log = logging.getLogger("remote_env")

DEATHS = (SessionLost, ConnectError)  # by which a server or its simulator is gone


class Step:
    """A step of one part under way.

    Attributes:
        actions: of its environments.
        result: its transition, once it has come or was made up for it.
        lost: why it could not be sent.
    """

    __slots__ = ("actions", "lost", "result")

    def __init__(self, actions: Any, result: Transition | None) -> None:
        self.actions, self.result = actions, result
        self.lost: SessionLost | None = None


class Part:
    """The environments [first, first + count) of a spread batch.

    Args:
        env: the batch on this server.
        label: which server it is, for messages.
        restarts: whether a lost simulator is replaced instead of told.

    Attributes:
        first: the number of its first environment in the whole batch.
        count: how many it has.
        observation: its last one, as handed out.
    """

    def __init__(self, env: RemoteVectorEnv, label: str, *, restarts: bool) -> None:
        self.env, self.label, self._restarts = env, label, restarts
        self.first = self.count = 0
        self.observation: Any = None
        self._after_restart: Transition | None = None  # what the next step returns, where that is the reset's
        self._asked: tuple[Any, dict[str, Any] | None] = (None, None)
        self._lost: RemoteEnvError | None = None  # over the reset that is under way

    @property
    def rows(self) -> range:
        """The numbers of its environments in the whole batch."""
        return range(self.first, self.first + self.count)

    @property
    def slice(self) -> slice:
        """The same, to cut rows by."""
        return slice(self.first, self.first + self.count)

    # Resets

    def begin_reset(self, seed: Any, options: dict[str, Any] | None) -> None:
        """Ask for a reset; what is under way is abandoned."""
        self.abandon()
        self._asked = (seed, options)
        try:
            self.env.reset_async(seed=seed, options=options)
        except DEATHS as error:
            self._lost = error  # told, or made good, where it is awaited
        except RemoteEnvError as error:
            raise self.told(error) from error

    def finish_reset(self) -> dict[str, Any]:
        """Wait for it; its infos. `observation` is what it brought."""
        lost, self._lost = self._lost, None
        try:
            if lost is not None:
                raise lost
            self.observation, infos = self.env.reset_wait()
        except DEATHS as error:
            self.observation, infos = self._reset_again(error)
        except RemoteEnvError as error:
            raise self.told(error) from error
        return infos

    def _reset_again(self, lost: RemoteEnvError) -> tuple[Any, dict[str, Any]]:
        """With a simulator that replaces one that died over a reset; those that were to go on would not."""
        seed, options = self._asked
        mask = (options or {}).get("reset_mask")
        if not self._restarts or not (mask is None or mask.all()):
            raise self.told(lost) from lost
        try:
            return self.env.reset(seed=seed, options=options)
        except RemoteEnvError as error:
            raise self.told(error) from lost

    # Steps

    def abandon(self) -> None:
        """Forget what a restart has left for the next step."""
        self._after_restart = self._lost = None

    def begin_step(self, actions: Any) -> Step:
        """A step with these actions, not sent yet; or the one that takes what a restart brought."""
        result, self._after_restart = self._after_restart, None
        return Step(actions, result)

    def send(self, step: Step) -> None:
        """Send it, unless its result is there already."""
        if step.result is not None:
            return
        try:
            self.env.step_async(step.actions)
        except SessionLost as error:
            step.lost = error  # told where its result is awaited
        except RemoteEnvError as error:
            raise self.told(error) from error

    def take(self, steps: Sequence[Step], seeds: Callable[[int], list[int]]) -> None:
        """Wait for the result of the first of the steps under way; after a Ctrl-C or a deadline it can be called again.

        Args:
            steps: all that are under way here, in order.
            seeds: makes so many fresh seeds, for a simulator that has to be restarted.
        """
        step = steps[0]
        if step.result is None:
            step.result = self._result(step, steps[1:], seeds)
        self.observation = step.result[0]

    def _result(self, step: Step, rest: Sequence[Step], seeds: Callable[[int], list[int]]) -> Transition:
        try:
            if step.lost is not None:
                raise step.lost
            return self.env.step_wait()
        except SessionLost as error:
            if not self._restarts:
                raise self.told(error) from error
            return self._restart(error, rest, seeds(self.count))
        except RemoteEnvError as error:
            raise self.told(error) from error

    def _restart(self, lost: SessionLost, rest: Sequence[Step], seeds: list[int]) -> Transition:
        """Replace the simulator; the transition that tells of it, by the way in which environments are reset."""
        try:
            observation, infos = self.env.reset(seed=seeds)
        except RemoteEnvError as error:
            raise self.told(error) from lost
        log.warning("%s was lost and is replaced: its %d environments are truncated", self.label, self.count)
        mode = self.env.metadata["autoreset_mode"].name
        told = _final_info(f"{self.label}: {lost}", seeds)
        if mode == "SAME_STEP":
            finals = objects_of(self.env.observation_space, self.observation, self.count)
            told = {"final_obs": finals, "_final_obs": np.ones(self.count, np.bool_), **told, **infos}
        elif mode == "NEXT_STEP":
            rest = self._leave_for_next(self._transition(observation, infos, truncated=False), rest)
        for step in rest:  # of the new episodes
            step.lost = None
            self.send(step)
        return self._transition(observation if mode == "SAME_STEP" else self.observation, told, truncated=True)

    def _leave_for_next(self, begun: Transition, rest: Sequence[Step]) -> Sequence[Step]:
        """Have the next step take what the reset brought; the steps behind that one."""
        if not rest:
            self._after_restart = begun
            return rest
        rest[0].result, rest[0].lost = begun, None
        return rest[1:]

    def _transition(self, observation: Any, infos: dict[str, Any], *, truncated: bool) -> Transition:
        never = np.zeros(self.count, np.bool_)
        return observation, np.zeros(self.count), never, np.full(self.count, truncated), infos

    def told(self, error: RemoteEnvError) -> RemoteEnvError:
        """The same error, which says whose it is."""
        first, last = self.first, self.first + self.count - 1
        which = f"environments {first} to {last}, " if first < last else f"environment {first}, " if self.count else ""
        return type(error)(f"{which}{self.label}: {error}", **{**error.__dict__, "env_ids": list(self.rows)})


def _final_info(why: str, seeds: Sequence[int]) -> dict[str, Any]:
    count = len(seeds)
    ever = np.ones(count, np.bool_)
    inner = {
        "host_lost": np.full(count, why, object),
        "_host_lost": ever.copy(),
        "restart_seed": np.array(seeds, np.int64),
        "_restart_seed": ever.copy(),
    }
    return {"final_info": inner, "_final_info": ever}
