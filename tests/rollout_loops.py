"""For tests of rollouts: the loop that one stands for, run here, and something that happens in the middle of one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from remote_env import Rollout
from remote_env.policy import Policy
from remote_env.policy.observation import ActionMapping, ObservationMapping


def local_rollout(
    env: Any, policy: Policy, seed: int, *, chunk_size: int | None = None, max_steps: int = 10_000
) -> Rollout:
    """One episode of `env` under `policy`, in this process."""
    names = getattr(env.unwrapped, "state_names", ())
    seen = ObservationMapping.between(env.observation_space, policy.metadata, state_names=names)
    done = ActionMapping.between(env.action_space, policy.metadata)
    observation, info = env.reset(seed=seed)
    policy.reset(["here"])
    observations, actions, rewards, infos = [observation], [], [], [info]
    queue: list[Any] = []
    terminated = truncated = False
    while not (terminated or truncated) and len(actions) < max_steps:
        if not queue:
            queue = list(policy.infer(seen.batch([observation]), episode_ids=["here"])[0][:chunk_size])
        actions.append(done.action(queue.pop(0)))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
    told = [info["is_success"] for info in infos[1:] if "is_success" in info]
    return Rollout(
        seed,
        len(actions),
        terminated,
        truncated,
        any(told) if told else None,
        np.array(rewards),
        infos[-1],
        np.stack(actions),
        np.stack(observations),
        infos,
    )


def assert_same(ours: Rollout, theirs: Rollout) -> None:
    """Both are the same, bit by bit; infos only where both have them."""
    for name in ("seed", "steps", "terminated", "truncated", "success", "last_info", "total_reward"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("observations", "actions", "rewards"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes()), name
    assert not ours.infos or ours.infos == theirs.infos


class Meanwhile:
    """Has something done, once, as soon as a file exists: in the main thread, whatever that waits for."""

    def __init__(self, mark: Path, deed: Callable[[], object]) -> None:
        self._mark, self._deed = mark, deed

    def _look(self, *_: object) -> None:
        if self._mark.exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._deed()

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
