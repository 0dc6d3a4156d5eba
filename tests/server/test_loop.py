"""The simulator's loop by itself, over a pair of sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from remote_env.protocol import codec, frames
from remote_env.server import loop
from remote_env.server.board import Board
from remote_env.server.gymnasium_backend import GymnasiumBackend
from remote_env.server.simulator import Channel


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
        loop.SimulatorLoop(backend, board, {}, frozenset()).serve(theirs, 1, None)
        assert time.monotonic() - before < 10
    assert "the data connection ended" in capfd.readouterr().out
    backend.close()
    board.close()


@pytest.mark.parametrize("is_unread", [True, False])
def test_a_supervisor_that_is_gone_ends_the_simulator_quietly(*, is_unread: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        channel = Channel(theirs)
        if is_unread:  # what it has not read when it closes makes the kernel report a reset instead of an end
            channel.say(event="released", epoch=1)
        ours.close()
        assert channel.next_connection() is None


def modules_after(imports: str) -> set[str]:
    """What an interpreter of its own has loaded after these imports."""
    code = f"import sys\n{imports}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def test_a_simulator_without_a_policy_imports_nothing_of_that_room() -> None:
    loaded = modules_after("from remote_env.server import facts, gymnasium_backend, loop, simulator, supervisor")
    assert not [name for name in loaded if name.startswith("remote_env.policy") or name == "remote_env.server.rollout"]


def test_what_opens_a_policy_needs_no_package_of_the_client_s_and_none_that_only_some_policies_need() -> None:
    loaded = modules_after("import remote_env.server.rollout")
    needless = {"onnxruntime", "torch", "yaml", "rich", "websockets", "grpc", "zstandard", "simplejpeg", "paramiko"}
    assert not needless & loaded
