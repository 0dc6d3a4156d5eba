"""Train on this machine, validate on another one every few updates.

Training takes many short episodes of a cheap local simulator; what counts is how the policy does where it is to run,
say in a simulator that only the other machine has. So the learning is local, and every `--every` updates the policy so
far runs on the host, all validation episodes in one batch: one round trip per step of all of them. The same episodes
run locally too; while both ends hold the same task the two returns are equal, and where the far one differs
(`--remote-env`) their difference is the gap that you want to see.

On this machine, no server needed:

    python examples/train_local_validate_remote.py

On a machine that you can log in to with `ssh user@box` (its Python needs numpy, gymnasium and the task):

    python examples/train_local_validate_remote.py --host user@box --python /opt/sim/bin/python --env CartPole-v1

The learner is a random search for a linear policy, in NumPy alone: small enough to read, and enough for
InvertedPendulum-v5 (MuJoCo) and CartPole-v1. It leaves `policy.npz`, the best by its remote return, and
`validation.csv` in the output directory; Ctrl-C saves what was found so far.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A checkout that was not installed works too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from login_flags import add_login_flags, in_flags, login_arguments
from numpy.typing import NDArray

from remote_env import RemoteVectorEnv
from remote_env.errors import ConfigError, RemoteEnvError

Floats = NDArray[np.float64]
Policy = Callable[[Any], Any]  # observations (n, d) -> actions (n, …)

FIRST_VALIDATION_SEED = 1_000_000  # no training episode has one so high
NOISE, STEP_SIZE = 0.3, 0.3  # of weights for observations of unit spread
INTERRUPTED = 130  # what a shell expects of a program that Ctrl-C ended


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_login_flags(parser)
    what = parser.add_argument_group("what it learns")
    what.add_argument("--env", default="InvertedPendulum-v5", help="to train on, here; default: %(default)s")
    what.add_argument("--remote-env", help="to validate on, there; default: the same")
    what.add_argument("--updates", type=_positive, default=6, help="default: %(default)s")
    what.add_argument("--every", type=_positive, default=3, help="updates between validations; default: %(default)s")
    what.add_argument("--episodes", type=_positive, default=8, help="of each validation; default: %(default)s")
    what.add_argument("--directions", type=_positive, default=12, help="tried in each update; default: %(default)s")
    what.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    out = Path("outputs/train_local_validate_remote")
    parser.add_argument("--output-dir", type=Path, default=out, help="default: %(default)s")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


# Learning, here


class Learner:
    """Augmented random search: try directions both ways, step along those that made the most difference.

    After Mania, Guy, Recht, "Simple random search provides a competitive approach to reinforcement learning" (2018):
    the best half of the directions, steps divided by the spread of their returns, observations divided by theirs.

    Args:
        env: to train on.
        directions: per update; each costs two episodes.
        seed: of the directions and the episodes.

    Attributes:
        steps: of the environment, in all.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], directions: int, seed: int) -> None:
        self._env, self._directions = env, directions
        self._random, self._episode_seed = np.random.default_rng(seed), seed
        self._mean = np.zeros(weights_shape(env))
        self._seen = np.zeros((2, len(self._mean) - 1))  # sums of the observations and of their squares
        self.steps = 0

    def update(self) -> float:
        """One step of the search; the mean return of the directions it went along."""
        tried = self._random.standard_normal((self._directions, *self._mean.shape))
        returns = np.array([self._try_both(direction) for direction in tried])
        best = np.argsort(returns.max(axis=1))[-max(1, self._directions // 2) :]
        gains = returns[best, 0] - returns[best, 1]
        step = np.tensordot(gains, tried[best], 1) / (len(best) * max(returns[best].std(), 1e-8))
        self._mean = self._mean + STEP_SIZE * step
        return float(returns[best].max(axis=1).mean())

    def weights(self) -> Floats:
        """(d + 1, m): what makes actions of observations as the environment gives them; the last row is the bias."""
        return self._for_observations(self._mean)

    def _for_observations(self, weights: Floats) -> Floats:
        if not self.steps:
            return weights
        mean, square = self._seen / self.steps
        spread: Floats = np.append(np.sqrt(np.maximum(square - mean**2, 0.0)) + 1e-4, 1.0)  # the bias sees 1
        return weights / spread[:, None]

    def _try_both(self, direction: Floats) -> tuple[float, float]:
        self._episode_seed = (self._episode_seed + 1) % FIRST_VALIDATION_SEED
        ahead, back = self._mean + NOISE * direction, self._mean - NOISE * direction
        return self._try(ahead), self._try(back)

    def _try(self, weights: Floats) -> float:
        """The return of one episode."""
        policy = linear_policy(self._for_observations(weights), self._env.action_space)
        total, steps = run_episode(self._env, policy, self._episode_seed, self._look)
        self.steps += steps
        return total

    def _look(self, observation: Any) -> None:
        self._seen += observation, np.square(observation, dtype=np.float64)


def weights_shape(env: gymnasium.Env[Any, Any]) -> tuple[int, int]:
    """How large a linear policy's matrix is.

    Raises:
        ConfigError: a linear policy cannot act in this environment.
    """
    seen, acts = env.observation_space, env.action_space
    if not isinstance(seen, Box) or len(seen.shape) != 1:
        raise ConfigError(f"--env: a linear policy needs observations that are a vector; these are {seen}")
    if isinstance(acts, Discrete):
        return seen.shape[0] + 1, int(acts.n)
    if isinstance(acts, Box) and len(acts.shape) == 1:
        return seen.shape[0] + 1, acts.shape[0]
    raise ConfigError(f"--env: a linear policy gives a vector or picks one of several; these actions are {acts}")


def linear_policy(weights: Floats, action_space: gymnasium.Space[Any]) -> Policy:
    """A policy for a batch of observations; its action is the largest output, or the outputs within their bounds."""

    def outputs(observations: Any) -> Floats:
        values: Floats = np.asarray(observations, np.float64) @ weights[:-1] + weights[-1]
        return values

    if isinstance(action_space, Discrete):
        start = int(action_space.start)
        return lambda observations: start + outputs(observations).argmax(axis=-1)
    assert isinstance(action_space, Box)  # noqa: S101  weights_shape has seen to it
    low, high, dtype = action_space.low, action_space.high, action_space.dtype
    return lambda observations: np.clip(outputs(observations), low, high).astype(dtype)


def run_episode(
    env: gymnasium.Env[Any, Any], policy: Policy, seed: int, look: Callable[[Any], None] | None = None
) -> tuple[float, int]:
    """One local episode: its return and its steps; `look` is shown each observation that the policy sees."""
    observation, _ = env.reset(seed=seed)
    total, steps, is_over = 0.0, 0, False
    while not is_over:
        if look is not None:
            look(observation)
        observation, reward, terminated, truncated, _ = env.step(policy(observation))
        total, steps, is_over = total + float(reward), steps + 1, terminated or truncated
    return total, steps


# Validating, there


def check_alike(here: gymnasium.Env[Any, Any], there: RemoteVectorEnv) -> None:
    """Raise ConfigError when a policy that was trained here cannot act there."""
    if there.single_action_space != here.action_space:
        raise ConfigError(f"the actions are {here.action_space} here and {there.single_action_space} there")
    if there.single_observation_space.shape != here.observation_space.shape:
        seen = f"{here.observation_space} here and {there.single_observation_space} there"
        raise ConfigError(f"the observations are {seen}")


def validate(env: RemoteVectorEnv, policy: Policy) -> Floats:
    """The returns of one episode in each of the remote environments, which are stepped together."""
    observations, _ = env.reset(seed=FIRST_VALIDATION_SEED)
    totals, runs = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
    while runs.any():  # what has ended goes on with an episode that nobody counts
        observations, rewards, terminated, truncated, _ = env.step(policy(observations))
        totals[runs] += rewards[runs]
        runs &= ~(terminated | truncated)
    return totals


@dataclass
class Validations:
    """What the validations have shown so far.

    Attributes:
        rows: of each: updates, local steps, mean local and mean remote return.
        best: weights of the policy with the highest mean remote return.
    """

    rows: list[tuple[int, int, float, float]] = field(default_factory=list)
    best: Floats | None = None

    def add(self, update: int, learner: Learner, here: float, there: float) -> None:
        """Note one, and keep the policy if it is the best."""
        if self.best is None or there > max(row[3] for row in self.rows):
            self.best = learner.weights()
        self.rows.append((update, learner.steps, here, there))

    def save(self, folder: Path) -> None:
        """Write the best policy and the table."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.best is not None:
            np.savez(folder / "policy.npz", weights=self.best)
        with (folder / "validation.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["update", "local_steps", "local_return", "remote_return"])
            writer.writerows(self.rows)


def train(options: argparse.Namespace, here: gymnasium.Env[Any, Any], there: RemoteVectorEnv) -> int:
    """Train and validate; the exit status."""
    learner, found = Learner(here, options.directions, options.seed), Validations()
    status = 0
    try:
        for update in range(1, options.updates + 1):
            trained = learner.update()
            print(f"update {update}: the best of them return {trained:.1f} here", flush=True)
            if update % options.every == 0 or update == options.updates:
                compare(update, learner, found, here, there)
    except KeyboardInterrupt:
        status = INTERRUPTED
    if found.best is None:  # cut short before it was validated: what was learnt counts
        found.best = learner.weights()
    found.save(options.output_dir)
    print(f"{'interrupted' if status else 'done'}; policy.npz and validation.csv are in {options.output_dir}")
    return status


def compare(
    update: int, learner: Learner, found: Validations, here: gymnasium.Env[Any, Any], there: RemoteVectorEnv
) -> None:
    """Run the policy so far in the same episodes there and here."""
    policy = linear_policy(learner.weights(), here.action_space)
    remote = validate(there, policy)
    local = np.array([run_episode(here, policy, FIRST_VALIDATION_SEED + i)[0] for i in range(len(remote))])
    found.add(update, learner, float(local.mean()), float(remote.mean()))
    print(
        f"  validated: {remote.mean():.1f} there, {local.mean():.1f} here (mean of {len(remote)} episodes)", flush=True
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says."""
    options = parse(arguments)
    try:
        here = gymnasium.make(options.env)
        weights_shape(here)  # before anything is started
        task, login = options.remote_env or options.env, login_arguments(options)
        with RemoteVectorEnv(options.host, env=task, num_envs=options.episodes, **login) as there:
            check_alike(here, there)
            return train(options, here, there)
    except KeyboardInterrupt:
        print("interrupted before there was anything to save", file=sys.stderr)
        return INTERRUPTED
    except gymnasium.error.Error as error:
        print(f"error: --env {options.env} cannot be made on this machine: {error}", file=sys.stderr)
        return 1
    except RemoteEnvError as error:
        print(f"error: {in_flags(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
