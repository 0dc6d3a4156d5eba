"""Serve a task of your own: this file is the task, and it runs on whichever machine you name.

Here, on an embedded server:

    python examples/own_task.py

On a machine that you can log in to, whose Python needs numpy and gymnasium (this file is sent along):

    python examples/own_task.py --host user@box --python /opt/sim/bin/python

With `--keep` the server stays warm, and `--reuse` takes it again; `login_flags.py` beside this file has all flags. By
hand on that machine, for clients that attach with `RemoteEnv("user@box", 8888)`:

    python servers/task_server.py --env examples/own_task.py:make_env --port 8888

Your own needs only a function `make_env(**kwargs)` that returns a `gymnasium.Env`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class DoubleIntegrator(gymnasium.Env[Floats, Floats]):
    """Push a point mass of 1 kg along a rail to the origin.

    Action: (1,) force [N], from -1 to 1. Observation: (2,) position [m] and velocity [m/s]. Reward: minus the distance
    [m]. The episode ends well within 1 cm at less than 1 cm/s. 20 steps a second; semi-implicit Euler.

    Args:
        start_m: the mass starts up to so far from the origin.
    """

    remote_calls = ("energy_j",)  # what clients may read or call by name, with env.call("energy_j")
    step_dt_s = 0.05

    def __init__(self, start_m: float = 1.0) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float64)
        self._start_m = start_m
        self._state = np.zeros(2)

    @property
    def energy_j(self) -> float:
        """Kinetic energy [J]."""
        return float(0.5 * self._state[1] ** 2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start at rest somewhere on the rail."""
        super().reset(seed=seed, options=options)
        self._state = np.array([self.np_random.uniform(-self._start_m, self._start_m), 0.0])
        return self._state.copy(), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Apply the force for one step."""
        self._state[1] += float(action[0]) * self.step_dt_s
        self._state[0] += self._state[1] * self.step_dt_s
        is_home = bool((np.abs(self._state) < 0.01).all())
        return self._state.copy(), -float(abs(self._state[0])), is_home, False, {}


def make_env(start_m: float = 1.0) -> gymnasium.Env[Floats, Floats]:
    """What the server calls, on the far end."""
    return gymnasium.wrappers.TimeLimit(DoubleIntegrator(start_m), max_episode_steps=400)


def main() -> int:
    """Run a few episodes with a hand-tuned controller, wherever the task is."""
    # Imported here: the far end, which imports this file for its task, needs none of it.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from login_flags import add_login_flags, in_flags, login_arguments

    from remote_env import LocalFolder, RemoteEnv
    from remote_env.errors import RemoteEnvError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_login_flags(parser)
    parser.add_argument("--episodes", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    try:
        login = login_arguments(options)
        with RemoteEnv(options.host, env=LocalFolder(__file__), env_kwargs={"start_m": 2.0}, **login) as env:
            for episode in range(options.episodes):
                position, steps = _run_episode(env, seed=episode)
                print(f"episode {episode}: {steps} steps, ends at {position:+.4f} m")
    except RemoteEnvError as error:
        print(f"error: {in_flags(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the server is stopped", file=sys.stderr)
        return 130
    return 0


def _run_episode(env: gymnasium.Env[Any, Any], seed: int) -> tuple[float, int]:
    observation, _ = env.reset(seed=seed)
    steps, is_over = 0, False
    while not is_over:
        force = np.clip([-2.0 * observation[0] - 2.5 * observation[1]], -1.0, 1.0)
        observation, _, terminated, truncated, _ = env.step(force)
        steps, is_over = steps + 1, terminated or truncated
    return float(observation[0]), steps


if __name__ == "__main__":
    sys.exit(main())
