"""A small task and a small policy, which fail in the ways that evaluations must survive."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from remote_env.errors import TaskError
from remote_env.policy.policy import Feature, Policy, PolicyMetadata

HERE = Path(__file__)
STEPS = 5


class SmallEnv(gymnasium.Env[Any, Any]):
    """Five steps; a return that depends on the seed and the actions; success for even seeds.

    Args:
        fault: what happens in the second step of the episode with `at_seed`: "kill", "raise", "give up", "hang"
            or nothing.
        at_seed: of the episode.
        once: a file that is made when the fault happens; while it is there, it does not happen again.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  as in Gymnasium's base class
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(
        self, *, fault: str = "", at_seed: int = -1, once: str | None = None, render_mode: str | None = None
    ) -> None:
        self.render_mode = render_mode
        self._fault, self._at_seed, self._once = fault, at_seed, once

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed, self._step = seed, 0
        return self.np_random.random(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        if self._step == 2 and self._seed == self._at_seed and not (self._once and Path(self._once).exists()):
            if self._once:
                Path(self._once).touch()
            self._fail()
        observation = self.np_random.random(3, np.float32)
        info = {"is_success": self._seed is not None and self._seed % 2 == 0}
        return observation, float(action.sum()), False, self._step == STEPS, info

    def _fail(self) -> None:
        print(f"about to {self._fault}", flush=True)
        if self._fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._fault == "raise":
            raise RuntimeError("the gripper fell off")
        elif self._fault == "give up":
            raise TaskError("the simulation became unstable")
        elif self._fault == "hang":
            threading.Event().wait(60)

    def render(self) -> Any:
        return np.full((32, 32, 3), 40 * self._step, np.uint8)


def make(**kwargs: Any) -> SmallEnv:
    """What "small.py:make" names."""
    return SmallEnv(**kwargs)


class SmallPolicy(Policy):
    """Actions that are the observation's first two numbers; chunks of two.

    Args:
        fails: whether every inference raises.
    """

    def __init__(self, *, fails: bool = False) -> None:
        self._fails = fails
        self.metadata = PolicyMetadata(
            "small", {"state": Feature("state", (3,), "float32")}, ("left", "right"), chunk_size=2
        )

    def infer(self, observation: Any, *, episode_ids: Sequence[str]) -> Any:
        if self._fails:
            raise ValueError("the weights are gone")
        return np.repeat(observation["state"][:, None, :2], 2, axis=1).copy()


def task_file(folder: Path, **kwargs: Any) -> str:
    """A YAML file that makes a SmallEnv with these arguments."""
    path = folder / "small.yaml"
    lines = "\n".join(f"  {name}: {value}" for name, value in kwargs.items())
    path.write_text(f"env: {HERE}:make\nenv_kwargs:\n{lines or '  {}'}\n")
    return str(path)
