"""The simulator's loop by itself, over a pair of sockets."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest

from remote_env.protocol import codec, frames
from remote_env.server import loop
from remote_env.server.board import Board
from remote_env.server.gymnasium_backend import GymnasiumBackend


def test_a_client_that_announces_a_payload_and_stalls_costs_its_link_and_not_the_simulator(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "SEND_TIMEOUT_S", 0.2)
    backend, board = GymnasiumBackend(), Board.create()
    backend.make("CartPole-v1", {})
    ours, theirs = socket.socketpair()
    body, arrays = codec.encode((None, {"map": np.zeros(10_000)}), where="options")
    with ours:
        ours.sendall(frames.pack_frame(frames.RESET, body, epoch=1, sequence=1, payload_size=len(arrays[0])))
        before = time.monotonic()
        loop.SimulatorLoop(backend, board, {}, frozenset()).serve(theirs, epoch=1)
        assert time.monotonic() - before < 10
    assert "the data connection ended" in capfd.readouterr().out
    backend.close()
    board.close()
