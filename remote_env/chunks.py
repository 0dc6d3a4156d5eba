"""ChunkedActions: an environment whose action is a chunk of actions, run in one round trip."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from remote_env.env import RemoteEnv
from remote_env.errors import ConfigError, InputError
from remote_env.protocol.chunks import MAX_STEPS


class ChunkedActions(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes K actions at once, as policies that predict chunks give them: one `step` is K of the task's.

    Its observation is the last one's, its reward the sum of all, and its info holds "chunk", the `Transitions` of the
    steps that ran: fewer than K where the episode ended.

    Args:
        env: a `RemoteEnv`.
        chunk_size: K, 1 to 4096.
        want: "last" brings the observation and info of the last step alone, "all" those of each, in info["chunk"].

    Raises:
        ConfigError: `env` is no RemoteEnv, or the size is none.
    """

    def __init__(self, env: RemoteEnv, chunk_size: int, *, want: Literal["all", "last"] = "last") -> None:
        if not isinstance(env.unwrapped, RemoteEnv) or env is not env.unwrapped:
            raise ConfigError(
                f"ChunkedActions wraps a RemoteEnv itself, whose steps it sends together; got {env}. "
                "Where its `unwrapped` is one give that, and put the wrappers around the ChunkedActions"
            )
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or not 1 <= chunk_size <= MAX_STEPS:
            raise ConfigError(f"chunk_size={chunk_size!r}: a whole number from 1 to {MAX_STEPS}")
        super().__init__(env)
        self._remote, self._want = env, want
        self.chunk_size = chunk_size

    @property  # type: ignore[misc]  # Gymnasium's has a setter
    def action_space(self) -> gymnasium.Space[Any]:  # type: ignore[override]
        """(chunk_size, …): a chunk of the task's actions."""
        return batch_space(self._remote.action_space, self.chunk_size)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Run a chunk; see the class.

        Raises:
            InputError: there are more or fewer than `chunk_size` actions; nothing was sent.
            And as `RemoteEnv.step_many`.
        """
        is_counted = isinstance(action, list) or (isinstance(action, np.ndarray) and action.ndim > 0)
        if is_counted and len(action) != self.chunk_size:
            raise InputError(
                f"{len(action)} actions where chunk_size={self.chunk_size}; the RemoteEnv's own step_many() takes any "
                "number of them"
            )
        chunk = self._remote.step_many(action, want=self._want)
        observation = _last(chunk.observations)
        ended = bool(chunk.terminated[-1]), bool(chunk.truncated[-1])
        return observation, float(np.sum(chunk.rewards)), *ended, {**chunk.infos[-1], "chunk": chunk}


def _last(stacked: Any) -> Any:
    if isinstance(stacked, dict):
        return {key: _last(part) for key, part in stacked.items()}
    return tuple(map(_last, stacked)) if isinstance(stacked, tuple) else stacked[-1]
