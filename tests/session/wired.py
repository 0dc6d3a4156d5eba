"""A session that is open in this process, and a backend that writes down how it was called."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from counted_link import TOKEN, Plan, StandInSupervisor
from gymnasium import spaces

from remote_env.errors import InputError
from remote_env.server.backend import Backend
from remote_env.server.board import Board
from remote_env.server.loop import SimulatorLoop
from remote_env.session.session import Session
from remote_env.state import EntityLayout, SceneLayout, SceneState

TIMEOUT_S = 20.0
IMAGE_SIZE = 4099  # bytes; from 4096 on an array is a frame's payload
END = 0.75  # an action of so much ends the episode
FAIL = -0.75


def act(first: float, second: float = 0.0) -> Any:
    return np.array([first, second])


class Recorder(Backend):
    """Writes down every call; its observations tell of all calls since the reset, and share one buffer."""

    action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)
    metadata: Mapping[str, Any] = {}
    spec: Mapping[str, Any] = {}
    render_mode = "ansi"
    callable_names = frozenset({"scale"})

    def make(self, env: Any, kwargs: Any) -> None:
        self.calls: list[Any] = []
        self._layout = SceneLayout((EntityLayout("ball"),), source="recorder")
        self._numbers, self._image = np.zeros(3), np.zeros(IMAGE_SIZE, np.uint8)
        self._has_image = bool(kwargs["image"])
        numbers = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        pictures = spaces.Box(0, 255, (IMAGE_SIZE,), np.uint8)
        self.observation_space = spaces.Dict({"n": numbers, "i": pictures}) if self._has_image else numbers

    def _observe(self) -> Any:
        self._numbers[1] += 1
        self._image[:] = np.arange(IMAGE_SIZE) * int(self._numbers[1]) % 251
        return {"n": self._numbers, "i": self._image} if self._has_image else self._numbers

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        self.calls.append(("reset", seed, options))
        self._numbers[:] = seed or 0, 0, 0
        return self._observe(), {"seed": seed}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.calls.append(("step", *action.tolist()))
        if action[0] == FAIL:
            raise InputError("no", remote_traceback="here")
        self._numbers[0] = self._numbers[0] * 3 + action[0]
        self._numbers[2] += action[1]
        return self._observe(), float(action[0]), bool(action[0] == END), False, {}

    def state(self, *, native: bool) -> SceneState:
        self.calls.append(("state", native))
        values = np.zeros(self._layout.size)
        values[3], values[4] = self._numbers[0], 1.0
        return SceneState(self._layout, values, self._numbers.tobytes() if native else None)

    def restore(self, state: SceneState) -> None:
        self.calls.append(("restore", *state.values.tolist(), state.native))
        self._numbers[:] = np.frombuffer(state.native or bytes(24))

    def render(self) -> Any:
        self.calls.append(("render",))
        return self._image if self._has_image else self._numbers

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append((name, args, kwargs))
        return args[0] * kwargs["by"]

    def close(self) -> None:
        pass


class Wired:
    """One session, open, and what it is wired with."""

    def __init__(self, *, image: bool = False) -> None:
        self.backend, self._board, self.plan = Recorder(), Board.create(), Plan()
        self.backend.make("", {"image": image})
        self.supervisor = StandInSupervisor(SimulatorLoop(self.backend, self._board, {}, frozenset()), self.plan)

    def open(self) -> Session:
        return Session(self.supervisor.dial, TOKEN, time.monotonic() + TIMEOUT_S)

    def close(self) -> None:
        self.supervisor.close()
        self._board.close()
