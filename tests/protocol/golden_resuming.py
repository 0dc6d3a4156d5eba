"""A small conversation whose data connection breaks and is resumed, recorded frame by frame.

Run it to write tests/data/golden_resuming_frames.json anew, after a change of the protocol that docs/protocol.md tells:

    PYTHONPATH=.:tests/protocol python tests/protocol/golden_resuming.py
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import golden_conversation as one

from remote_env.errors import NotRun
from remote_env.protocol import frames
from remote_env.session import Session

GOLDEN_RESUMING = one.ROOT / "tests" / "data" / "golden_resuming_frames.json"


class ToyThatTells(one.Toy):
    """Tells when its episode, of two steps, has ended."""

    def make(self, env: Any, kwargs: Any) -> None:
        super().make(env, kwargs)
        self.has_ended = threading.Event()

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        transition = super().step(action)
        if transition[2]:
            self.has_ended.set()
        return transition


def talk(peers: one.Peers) -> None:
    """Two steps run whose replies are lost with their connection; a third is sent with the next one."""
    session = Session(peers.dial, one.TOKEN, time.monotonic() + one.TIMEOUT_S, client="ann@desk pid 1")
    session.reset(7, None, one.TIMEOUT_S)
    for _ in range(2):
        session.step_async(1, one.TIMEOUT_S)
    assert isinstance(peers.backend, ToyThatTells)
    assert peers.backend.has_ended.wait(one.TIMEOUT_S)
    session.cut("a test")
    session.step_async(1, one.TIMEOUT_S)
    assert [session.step_wait(one.TIMEOUT_S)[2] for _ in range(2)] == [False, True]
    one.expect_error(NotRun, lambda: session.step_wait(one.TIMEOUT_S))
    session.close()


def record_resuming() -> list[dict[str, str]]:
    """The frames of both data connections, their handshakes too."""
    recorded = one.record_conversation(talk, ToyThatTells, links=("control", "data", "data"))
    assert sum(frame["message"] == frames.NAMES[frames.RESUMED] for frame in recorded) == 1
    return [frame for frame in recorded if frame["link"] == "data"]


if __name__ == "__main__":
    GOLDEN_RESUMING.write_text(json.dumps(record_resuming(), indent=1) + "\n")
    print(f"wrote {GOLDEN_RESUMING}")
