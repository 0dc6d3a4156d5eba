"""A small conversation with a batch of two environments, recorded frame by frame.

Run it to write tests/data/golden_batch_frames.json anew, after a change of the protocol that docs/protocol.md tells:

    PYTHONPATH=.:tests/protocol python tests/protocol/golden_batch.py
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Sequence
from typing import Any
from unittest import mock

import golden_conversation as one
import numpy as np
from gymnasium import spaces

from remote_env.errors import InputError
from remote_env.protocol import frames
from remote_env.server.backend import Backend
from remote_env.server.batch_loop import BatchLoop
from remote_env.session import BatchSession
from remote_env.state import EntityLayout, Floats, SceneLayout

GOLDEN_BATCH = one.ROOT / "tests" / "data" / "golden_batch_frames.json"


class ToyBatch(Backend):
    """Two tasks with one cube each; the second ends at its second step, and is reset in it."""

    def make(self, env: Any, kwargs: Any) -> None:
        self.num_envs = 2
        self.single_observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = spaces.Box(-1.0, 1.0, (2, 2), np.float32)
        self.action_space = spaces.MultiDiscrete([2, 2])
        self.autoreset_mode = "SAME_STEP"
        self.metadata, self.render_mode, self.spec = {"render_fps": 50}, None, {"id": "Toy-v0"}
        self.callable_names = frozenset({"difficulty"})
        self._layout = SceneLayout((EntityLayout("cube"),), "toy 1")
        self._steps = np.zeros(2)

    def reset(self, seed: Any, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        self._steps[:] = 0
        return np.zeros((2, 2), np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._steps += 1
        ended = np.array([False, self._steps[1] == 2])
        self._steps[ended] = 0
        final = np.array([None, None], object)
        final[1] = np.array([0.5, -0.5], np.float32)
        info = {"final_obs": final, "_final_obs": ended} if ended.any() else {}
        return np.full((2, 2), 0.5, np.float32), np.array([1.0, 2.0]), ended, np.array([False, False]), info

    def _rows(self, times: Any) -> Floats:
        rows = np.zeros((len(times), self._layout.size))
        rows[:, 0], rows[:, 4] = times, 1.0
        return rows

    def states(self, env_ids: Sequence[int]) -> tuple[SceneLayout, Floats]:
        return self._layout, self._rows(0.02 * self._steps[list(env_ids)])

    def final_states(self) -> tuple[Sequence[int], Floats] | None:
        return [1], self._rows([0.04])

    def restore_states(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        self._steps[list(env_ids)] = np.round(values[:, 0] / 0.02)

    def set_attribute(self, name: str, values: Any) -> None:
        pass

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return 3, 3

    def close(self) -> None:
        pass


def talk(peers: one.Peers) -> None:
    """Every form of a batch's messages."""
    session = BatchSession(peers.dial, one.TOKEN, time.monotonic() + one.TIMEOUT_S, client="ann@desk pid 1")
    session.reset([7, None], None, one.TIMEOUT_S)
    session.step(np.array([1, 0]), one.TIMEOUT_S)
    session.step([1, 0], one.TIMEOUT_S, want_state=True)
    states = session.get_states(np.array([1]), one.TIMEOUT_S)
    session.set_states(states.layout, states.values, np.array([0]), one.TIMEOUT_S)
    session.call("set_attr", ("difficulty", [1, 2]), {}, one.TIMEOUT_S)
    one.expect_error(InputError, lambda: session.call("set_attr", ("secret", 1), {}, one.TIMEOUT_S))
    session.close()
    one.stop(peers)


def record_batch() -> list[dict[str, str]]:
    """The frames of the data connection, but for its handshake."""
    with mock.patch.object(traceback, "format_exc", return_value="Traceback (most recent call last): ..."):
        recorded = one.record_conversation(talk, ToyBatch, BatchLoop, {"num_envs": 2})
    return [frame for frame in recorded if frame["link"] == "data" and bytes.fromhex(frame["hex"])[5] >= frames.READY]


if __name__ == "__main__":
    GOLDEN_BATCH.write_text(json.dumps(record_batch(), indent=1) + "\n")
    print(f"wrote {GOLDEN_BATCH}")
