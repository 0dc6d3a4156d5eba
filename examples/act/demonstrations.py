"""What collect.py wrote, as chunks to learn from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SMALLEST_STD = 1e-2  # of anything, in its unit: what hardly moves is not blown up to matter


@dataclass(frozen=True)
class Normalizer:
    """Mean and standard deviation of states and actions, as float32.

    Attributes:
        state: (mean, std), each (S,).
        action: (mean, std), each (D,).
    """

    state: tuple[Floats, Floats]
    action: tuple[Floats, Floats]

    def to_plain(self) -> dict[str, Any]:
        """What a dataset's entry of `normalize.json` holds."""
        numbers = {"state": self.state, "action": self.action}
        return {
            "kind": "zscore",
            **{name: {"mean": mean.tolist(), "std": std.tolist()} for name, (mean, std) in numbers.items()},
        }


@dataclass(frozen=True)
class Demonstrations:
    """Episodes of equal length.

    Attributes:
        states: (N, T + 1, S) float32.
        actions: (N, T + K, D) float32; the last action of an episode is repeated at its end.
        chunk_size: K.
        state_names: S names.
        action_names: D names.
    """

    states: Floats
    actions: Floats
    chunk_size: int
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]

    @property
    def num_episodes(self) -> int:
        """N."""
        return len(self.states)

    @property
    def num_steps(self) -> int:
        """T, of each episode."""
        return int(self.states.shape[1]) - 1

    def take(self, episodes: NDArray[np.int64], steps: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """States (B, S) at these steps of these episodes, and the chunks (B, K, D) that begin there."""
        window = steps[:, None] + np.arange(self.chunk_size)
        return self.states[episodes, steps], self.actions[episodes[:, None], window]

    def split(self, share: float, seed: int) -> tuple[Demonstrations, Demonstrations]:
        """Most episodes, and `share` of them (one at least) that the others do not hold."""
        order = np.random.default_rng(seed).permutation(self.num_episodes)
        held_out = max(1, round(share * self.num_episodes))
        return self._only(order[held_out:]), self._only(order[:held_out])

    def _only(self, episodes: NDArray[np.int64]) -> Demonstrations:
        return replace(self, states=self.states[episodes], actions=self.actions[episodes])

    def normalizer(self) -> Normalizer:
        """Of these episodes."""
        return Normalizer(_moments(self.states), _moments(self.actions))

    def normalized(self, by: Normalizer) -> Demonstrations:
        """The same episodes in numbers of mean 0 and standard deviation 1."""
        (state_mean, state_std), (action_mean, action_std) = by.state, by.action
        return replace(
            self,
            states=(self.states - state_mean) / state_std,
            actions=(self.actions - action_mean) / action_std,
        )


def _moments(values: Floats) -> tuple[Floats, Floats]:
    rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
    std = np.maximum(rows.std(axis=0), SMALLEST_STD)
    return rows.mean(axis=0).astype(np.float32), std.astype(np.float32)


def load_demonstrations(path: Path, chunk_size: int) -> Demonstrations:
    """The episodes of a file of collect.py, each with its last action repeated for chunks that outlast it."""
    with np.load(path) as file:
        states, actions = file["states"], file["actions"]
        names = [tuple(file[key].tolist()) for key in ("state_names", "action_names")]
    tail = np.repeat(actions[:, -1:], chunk_size, axis=1)
    return Demonstrations(states, np.concatenate((actions, tail), axis=1), chunk_size, *names)
