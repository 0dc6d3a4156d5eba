"""A small conversation of chunks and of observations that bring less, recorded frame by frame.

Run it to write tests/data/golden_chunk_frames.json anew, after a change of the protocol that docs/protocol.md tells:

    PYTHONPATH=.:tests/protocol python tests/protocol/golden_chunks.py
"""

from __future__ import annotations

import json
import time
from typing import Any

import golden_conversation as one
import numpy as np
from gymnasium import spaces

from remote_env.errors import TaskError, Unsupported
from remote_env.protocol.chunks import ChunkOptions
from remote_env.protocol.delivery import DeliveryPlan
from remote_env.session import Session

GOLDEN_CHUNKS = one.ROOT / "tests" / "data" / "golden_chunk_frames.json"


class ToyWithCamera(one.Toy):
    """Sees its cube, too: an image whose every pixel is the number of steps."""

    def make(self, env: Any, kwargs: Any) -> None:
        super().make(env, kwargs)
        camera, at = spaces.Box(0, 255, (2, 2, 3), np.uint8), spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.observation_space = spaces.Dict({"at": at, "camera": camera})

    def _observe(self) -> dict[str, Any]:
        return {"at": np.array([0.5, -0.5]), "camera": np.full((2, 2, 3), self._steps, np.uint8)}

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed, options)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        if action not in (0, 1):
            raise ValueError("no such action")
        self._steps += 1
        return self._observe(), 1.0, self._steps == 5, False, {}


def talk(peers: one.Peers) -> None:
    """Chunks as they are, with an error in one, then with images of every second step and changes of states."""
    session = Session(peers.dial, one.TOKEN, time.monotonic() + one.TIMEOUT_S, client="ann@desk pid 1")
    session.reset(7, None, one.TIMEOUT_S)
    chunk = session.step_many(np.array([0, 1]), one.TIMEOUT_S, ChunkOptions(), want_state=True)
    assert (chunk.ran, len(chunk.states or ())) == (2, 2)
    session.step_many([1, 1], one.TIMEOUT_S, ChunkOptions(want="last", keys=("at",)))
    one.expect_error(TaskError, lambda: session.step_many([1, 9], one.TIMEOUT_S, ChunkOptions(stop=False)))
    one.expect_error(Unsupported, lambda: session.take_snapshot(one.TIMEOUT_S))
    session.deliver(DeliveryPlan(image_every=2, float32=True, state_changes=True), one.TIMEOUT_S)
    session.reset(7, None, one.TIMEOUT_S, want_state=True)
    for _ in range(2):
        session.step(1, one.TIMEOUT_S, want_state=True)
    chunk = session.step_many([1] * 9, one.TIMEOUT_S, ChunkOptions(), want_state=True)
    assert (chunk.ran, chunk.observations["camera"][:, 0, 0, 0].tolist()) == (3, [2, 4, 5])
    session.close()


def record_chunks() -> list[dict[str, str]]:
    """The frames of the data connection, without its handshake."""
    recorded = one.record_conversation(talk, ToyWithCamera, links=("control", "data"))
    frames = [frame for frame in recorded if frame["link"] == "data"]
    return frames[[frame["message"] for frame in frames].index("READY") :]


if __name__ == "__main__":
    GOLDEN_CHUNKS.write_text(json.dumps(record_chunks(), indent=1) + "\n")
    print(f"wrote {GOLDEN_CHUNKS}")
