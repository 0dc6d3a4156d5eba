"""Environments that go wrong on demand, for tests: what to do is named by an argument, an option or an action."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


def die(how: str) -> None:
    """Go wrong as `how` says."""
    if how == "raise":
        raise ValueError("the cube fell through the table")
    if how == "raise-surrogate":
        raise OSError("no file \udcff here")
    if how == "raise-unprintable":
        raise Unprintable
    if how == "raise-huge":
        raise ValueError("x" * (70 << 20))
    if how == "sys.exit":
        sys.exit("the task gave up")
    if how == "exit":
        os._exit(3)
    if how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "sleep":
        time.sleep(60)
    if how == "hold-gil":
        until = time.monotonic() + 60
        while time.monotonic() < until:  # a signal cuts a sleep short, also that of a request for its stacks
            ctypes.PyDLL(None).usleep(60_000_000)
    if how.startswith("until:"):
        wait_for_file(Path(how.removeprefix("until:")))


def wait_for_file(path: Path) -> None:
    """Return once `path` exists; at most 30 s."""
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.002)


class Unprintable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class OnDemand(gymnasium.Env[Any, Any]):
    """Counts its steps, and goes wrong as told by `init=`, reset's options["how"], or `how` set by `plan`.

    Args:
        init: see `die`, at construction.
        grandchild: start a child process that writes its pid here and never ends by itself.
    """

    observation_space = spaces.Box(-1e9, 1e9, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    remote_calls = ("plan", "total_steps", "pid", "fail_call")

    def __init__(self, init: str = "", grandchild: str = "", render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        die(init)
        if grandchild:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
            Path(grandchild).write_text(str(child.pid))
        self.total_steps = 0
        self.pid = os.getpid()
        self.how = ""

    def plan(self, how: str) -> str:
        """Go wrong like this in the next step."""
        self.how = how
        return how

    def fail_call(self) -> None:
        """Raise."""
        raise ValueError("the call went wrong")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        die((options or {}).get("how", ""))
        return np.array([-1.0, self.total_steps]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        how, self.how = self.how, ""
        self.total_steps += 1
        die(how)
        return np.array([float(np.sum(action)), self.total_steps]), 1.0, False, False, odd_info(how)


def odd_info(how: str) -> dict[str, Any]:
    """An info that is large or cannot cross."""
    if how == "uncodable":
        return {"deep": [1, {"lock": object()}]}
    if how == "huge-integer":
        return {"count": 1 << 9000}
    if how == "huge-array":
        return {"map": np.arange(3_000_000, dtype=np.float64)}
    if how == "too-huge":
        return {"text": "x" * (65 << 20)}
    if how == "print":
        for number in range(20_000):
            print(f"line {number} of a task that talks too much")
    return {}


class OddTypes(gymnasium.Env[Any, Any]):
    """Rewards and flags of every type that environments return, one after another; one buffer for all observations."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(5)
    kinds = (
        (1, False, False),
        (np.int64(-3), np.bool_(True), False),
        (np.float32(0.1), False, np.bool_(True)),
        (np.float64(-0.0), np.bool_(False), np.bool_(False)),
        (2**60 + 1, True, True),
        (np.int32(7), np.bool_(True), np.bool_(True)),
        (float("nan"), 0, 1),
        (np.array(1.5), False, False),
        (True, False, False),
        (float("inf"), False, True),
    )

    def __init__(self) -> None:
        self._buffer = np.zeros(3, np.float32)
        self._count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self._count = 0
        self._buffer[:] = self.np_random.random(3)
        return self._buffer, {"seeded": seed is not None}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `gymnasium.Env.step`; the third observation is of another dtype than the space says."""
        reward, terminated, truncated = self.kinds[self._count % len(self.kinds)]
        self._count += 1
        self._buffer += np.float32(self.np_random.random())
        observation: Any = self._buffer.astype(np.float64) / 3 if self._count == 3 else self._buffer
        return observation, reward, terminated, truncated, {"count": self._count} if self._count % 2 else {}


class Nested(gymnasium.Env[Any, Any]):
    """Dict, Tuple, Text, Discrete, MultiBinary, MultiDiscrete and a large image in one observation."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, render_mode: str | None = None, with_text: bool = True, size: int = 40) -> None:
        parts: dict[str, Any] = {
            "image": spaces.Box(0, 255, (size, size, 3), np.uint8),
            "pair": spaces.Tuple((spaces.Discrete(5, start=-2), spaces.MultiBinary(4))),
            "grid": spaces.MultiDiscrete([3, 4]),
            "pose": spaces.Dict({"xyz": spaces.Box(-1.0, 1.0, (3,), np.float64)}),
        }
        if with_text:
            parts["note"] = spaces.Text(12)
        self.observation_space = spaces.Dict(parts)
        self.action_space = spaces.Dict({"kind": spaces.Discrete(3), "aim": spaces.Box(-1.0, 1.0, (2,), np.float32)})
        self.render_mode = render_mode
        self._size = size

    def _observe(self) -> dict[str, Any]:
        random, size = self.np_random, self._size
        note = {"note": "".join(random.choice(list("abcXYZ"), 5))} if "note" in self.observation_space.spaces else {}
        full = {
            "grid": random.integers(0, 3, 2),
            "image": random.integers(0, 256, (size, size, 3), dtype=np.uint8),
            "pair": (np.int64(random.integers(-2, 3)), random.integers(0, 2, 4, dtype=np.int8)),
            "pose": {"xyz": random.uniform(-1, 1, 3)},
            **note,
        }
        return {key: full[key] for key in self.observation_space.spaces}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {"options": options, "nothing": None}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        self._steps += 1
        reward = float(action["aim"].sum()) + int(action["kind"])
        info = {"path": (1, [2, (3,)]), "big": 10**30, "raw": b"\0\xff", "half": np.float16(0.5)}
        return self._observe(), reward, self._steps >= 6, False, info

    def render(self) -> Any:
        """A flat picture."""
        return np.full((16, 24, 3), min(self._steps * 10, 255), np.uint8)


class FourTuple(OnDemand):
    """Speaks the step of old Gym."""

    def step(self, action: Any) -> Any:
        """Four values."""
        return super().step(action)[:4]


class RaisesAtThird(OnDemand):
    """Raises in the third step of each episode."""

    action_space = spaces.Discrete(2)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Count anew."""
        self.left = 2
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """Two steps, then no more."""
        if not self.left:
            raise ValueError("the third step")
        self.left -= 1
        return super().step(action)


class OddSpace(OnDemand):
    """Has an observation space of a class of its own."""

    class Own(spaces.Space[Any]):
        """Nobody else knows it."""

    observation_space = Own((2,), np.float64)  # type: ignore[assignment]


def make_nothing() -> str:
    """A factory that makes no environment."""
    return "not an environment"


def make_cartpole(**kwargs: Any) -> Any:
    """A factory by name."""
    return gymnasium.make("CartPole-v1", **kwargs)


not_callable = 3
