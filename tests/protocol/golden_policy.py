"""A small conversation between renv's client and server, recorded frame by frame.

Run it to write tests/data/golden_policy_frames.json anew, after a change of the protocol that docs/protocol.md tells:

    PYTHONPATH=. python tests/protocol/golden_policy.py
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
from golden_conversation import NONCES, ROOT, TOKEN, RecordingTransport, _split

from remote_env.errors import InputError
from remote_env.policy.dialects import renv, renv_connection, renv_conversation, renv_link, renv_places
from remote_env.policy.policy import Chunk, Feature, ObservationBatch, Policy, PolicyMetadata
from remote_env.policy.server.service import PolicyService, ServeContext
from remote_env.protocol import handshake

GOLDEN_POLICY = ROOT / "tests" / "data" / "golden_policy_frames.json"
NAMES = {"client": "c" * 32, "instance": "5" * 32}  # what is random otherwise
TIMEOUT_S = 20.0


class ToyPolicy(Policy):
    """Two numbers in, chunks of two actions out: the numbers' sum, and that plus one."""

    metadata = PolicyMetadata(
        "toy",
        {"state": Feature("state", (2,), names=("x", "y"), units=("m", "m")), "instruction": Feature("text", dtype="")},
        ("push",),
        chunk_size=2,
        control_rate_hz=50.0,
        has_memory=True,
    )

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        sums = observation["state"].sum(axis=1)
        if (sums > 100).any():
            raise InputError("'state' is out of reach")
        return np.stack([sums, sums + 1], axis=1)[:, :, None].astype(np.float32)


class StoppedClock:
    """What the server measures with."""

    @staticmethod
    def monotonic() -> float:
        return 1e9


class OneTraceback:
    """What a traceback looks like."""

    @staticmethod
    def format_exception(_error: Exception) -> list[str]:
        return ["Traceback (most recent call last): ..."]


def record_policy_conversation() -> list[dict[str, str]]:
    """Each frame that crossed, in order: link, sender, message name, hex."""
    recorded: list[tuple[str, str, bytes]] = []
    service, threads = PolicyService([ToyPolicy()], log=lambda line: None), []

    def dial(_host: str, _port: int, _deadline: float) -> Any:
        ours, theirs = socket.socketpair()
        context = ServeContext(token=TOKEN, log=lambda line: None)
        threads.append(threading.Thread(target=renv.serve, args=(theirs, service, context)))
        threads[-1].start()
        return RecordingTransport(ours, "policy", recorded)

    client, server = iter([NONCES["c1"]]), iter([NONCES["s1"]])
    our_thread = threading.get_ident()
    with (
        mock.patch.object(
            handshake, "new_nonce", side_effect=lambda: next(client if threading.get_ident() == our_thread else server)
        ),
        mock.patch.object(renv_connection.secrets, "token_hex", return_value=NAMES["client"]),
        mock.patch.object(renv_link, "connect_tcp", dial),
        mock.patch.object(renv_conversation, "time", StoppedClock),
        mock.patch.object(renv_conversation, "traceback", OneTraceback),
        mock.patch.object(renv_conversation, "available_coders", return_value=("raw", "zstd")),
    ):
        renv_places.places_of(service).instance = NAMES["instance"]
        _talk()
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
    return list(_split(recorded))


def _talk() -> None:
    with renv.connect("127.0.0.1", 5000, token=TOKEN, timeout_s=TIMEOUT_S) as policy:
        observation = {"state": np.array([[0.5, 1.0]], np.float32), "instruction": ["go"]}
        policy.infer(observation, episode_ids=["a"])
        policy.reset(["a"])
        try:
            policy.infer({**observation, "state": np.full((1, 2), 99, np.float32)}, episode_ids=[""])
        except InputError:
            return
        raise AssertionError("an observation out of reach was taken")


if __name__ == "__main__":
    GOLDEN_POLICY.write_text(json.dumps(record_policy_conversation(), indent=1) + "\n")
    print(f"wrote {GOLDEN_POLICY}")
