"""What the parts of a step cost, each timed alone and warm: where RemoteEnv.step's overhead goes."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.trivial_env import TrivialEnv
from remote_env.protocol import frames, layout
from remote_env.protocol.vector_step import VectorStep
from remote_env.server.board import Board

REPEATS, NUMBER = 5, 20_000


class _Replayed:
    """A byte stream that brings the same frame again and again."""

    def __init__(self, frame: bytes) -> None:
        self._frame = frame

    def recv_some_into(self, view: memoryview, _deadline: float) -> int:
        view[: len(self._frame)] = self._frame
        return len(self._frame)


def time_parts() -> dict[str, float]:
    """Part -> microseconds, the best of five."""
    env = TrivialEnv()
    env.reset()
    action, observation = np.zeros(14, np.float32), np.zeros(14)
    spaces = [layout.compile_layout(space) for space in (env.action_space, env.observation_space)]
    vectors = [space.vector for space in spaces if space is not None and space.vector is not None]
    codec, board = VectorStep(vectors[0], vectors[1], 1), Board.create()
    step = bytes(codec.pack_step(action, 2, 1) or b"")
    result = bytes(codec.pack_result((observation, 0.0, False, False, {}), b"", 2) or b"")
    request, reply = _stream(step), _stream(result)
    request.recv_shaped(codec.step_shape, 0.0)
    reply.recv_shaped(codec.result_shape, 0.0)
    parts: dict[str, Callable[[], Any]] = {
        "client: check and pack the action": lambda: codec.pack_step(action, 2, 1),
        "server: read a frame": lambda: request.recv_shaped(codec.step_shape, 0.0),
        "server: read the action": lambda: codec.read_step(request.body),
        "server: say on the board what runs": lambda: (board.begin(4), board.end()),
        "server: the trivial task itself": lambda: env.step(action),
        "server: pack the result": lambda: codec.pack_result((observation, 0.0, False, False, {}), b"", 2),
        "client: read a frame": lambda: reply.recv_shaped(codec.result_shape, 0.0),
        "client: read the result": lambda: codec.read_result(reply.body),
    }
    times = {
        name: min(timeit.repeat(part, number=NUMBER, repeat=REPEATS)) / NUMBER * 1e6 for name, part in parts.items()
    }
    return {**times, "all of these": sum(times.values())}


def _stream(frame: bytes) -> frames.FrameStream:
    return frames.FrameStream(_Replayed(frame))  # type: ignore[arg-type]  # it only receives
