"""What a RemoteEnv offers where a policy is beside its simulator."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium

from remote_env.env.life import Life
from remote_env.env.local_view import LocalView
from remote_env.env.progress import show_rollouts
from remote_env.env.rollouts import ONE_STEP, Pace, Plan, Rollout, RolloutStatus
from remote_env.errors import InputError
from remote_env.session import Session


class PolicySide(gymnasium.Env[Any, Any]):
    """The part of `RemoteEnv` that has the far end's policy act."""

    _life: Life[Session]
    _step_timeout_s: float
    _reset_timeout_s: float
    _capture_state: bool
    _local: LocalView | None
    _pace: Pace  # of all rollouts: what one has learnt of the link serves the next

    @abc.abstractmethod
    def _running(self) -> Session:
        """The session, opened if there is none yet."""

    @abc.abstractmethod
    def _begin(self, seed: int | None) -> Session:
        """A session in which an episode can begin."""

    @property
    def policy_metadata(self) -> dict[str, Any] | None:
        """What the policy beside the simulator takes and gives, as plain values; None when there is none.

        As `remote_env.policy.PolicyMetadata.to_plain`, with `source`, where it came from, and `mapping`, which of the
        task's observations it sees, in words.
        """
        told = self._running().ready.get("policy")
        return None if told is None else dict(told)

    def rollout(
        self,
        n_steps: int | None = None,
        n_episodes: int | None = None,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        want: Sequence[str] = ("observation", "action", "reward"),
        chunk_size: int | None = None,
        max_episode_steps: int | None = None,
        on_progress: Callable[[RolloutStatus], None] | None = None,
        progress: bool | None = None,
    ) -> list[Rollout]:
        """Let the policy beside the simulator act, where both are, and return what happened.

        Bit for bit what a loop of `reset`, the policy and `step` gives. Each episode begins with a reset; without
        `n_steps` and `n_episodes` it is one. A Ctrl-C leaves the far end at rest within a second or so.

        Args:
            n_steps: stop after so many steps in all; the last episode may be cut.
            n_episodes: stop after so many episodes. With both, what comes first.
            seed: of each episode in a sequence, or of the first one; those after it count up. None: none.
            options: for each reset.
            want: what to bring back of each step: any of "observation", "action", "reward", "state", "info" and
                "frame", what the task renders. Rewards and the last info always come.
            chunk_size: the most actions to apply of one inference; None for all that the policy gives.
            max_episode_steps: cut each episode there.
            on_progress: told how far it is, about once a second or more often. It may look (`render`, `get_state`), but
                not act.
            progress: show a bar on standard error; None: when that is a terminal.

        Raises:
            Unsupported: the server has no policy, or the task no states or frames.
            InputError: an argument is not one; nothing was sent.
            PolicyError: the policy raised, or its server is gone; `remote_traceback` holds where. The episode stands
                where it did, and what of it has not come back is lost; so it is with the errors of `step`.
        """
        return list(
            self.iter_rollout(
                n_steps,
                n_episodes,
                seed=seed,
                options=options,
                want=want,
                chunk_size=chunk_size,
                max_episode_steps=max_episode_steps,
                on_progress=on_progress,
                progress=progress,
            )
        )

    def iter_rollout(
        self,
        n_steps: int | None = None,
        n_episodes: int | None = None,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
        want: Sequence[str] = ("observation", "action", "reward"),
        chunk_size: int | None = None,
        max_episode_steps: int | None = None,
        on_progress: Callable[[RolloutStatus], None] | None = None,
        progress: bool | None = None,
    ) -> Iterator[Rollout]:
        """As `rollout`, each episode as soon as it has ended; nothing runs before it is asked for."""
        if on_progress is not None and not callable(on_progress):
            raise InputError(f"on_progress={on_progress!r}: something to call with a RolloutStatus, or None")
        plan = Plan.of(n_steps, n_episodes, seed, options, want, chunk_size, max_episode_steps)
        timeouts_s = self._step_timeout_s, self._reset_timeout_s
        return show_rollouts(
            plan, self._begin, timeouts_s, self._pace, self._life.task.label, on_progress, show=progress
        )

    def step_policy(self) -> tuple[Any, Any, Any, bool, bool, dict[str, Any]]:
        """Let the policy beside the simulator act once: on the last observation, or by the next action of its chunk.

        Mixes with `step` and `reset`: what is left of a chunk is dropped when somebody else acts. A policy with memory
        is told of resets; steps that it did not ask for it sees by their observation alone.

        Returns:
            action, observation, reward, terminated, truncated, info.

        Raises:
            Unsupported: the server has no policy.
            InputError: there is no observation to act on: no episode yet, it has ended, or `set_state` came after it.
            PolicyError: the policy raised; the episode stands where it did.
            And as `step`.
        """
        want = [*ONE_STEP["want"], *(["state"] if self._capture_state else [])]
        session = self._running()
        reply = session.rollout({**ONE_STEP, "want": want}, self._step_timeout_s)
        if self._local is not None:
            self._local.show(session.state)
        rows = reply["rows"]
        return (rows["action"][0], rows["observation"][0], *reply["last"])
