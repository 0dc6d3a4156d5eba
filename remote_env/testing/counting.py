"""An environment that counts and hashes every call, so that a step done twice, left out or moved shows at once."""

from __future__ import annotations

import hashlib
import struct
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from remote_env.errors import InputError
from remote_env.state import EntityLayout, SceneLayout, SceneState

STEP_S = 0.02  # of simulated time
IMAGE_SHAPE = (480, 640, 3)
_LAYOUT = SceneLayout((EntityLayout("counter", ("steps",)),), "remote_env.testing counting")
_EPISODE = struct.Struct("<32sQ")  # the episode's chain, its steps: what native state restores
_JOINT_AT = 1 + 13  # behind the time, the root's pose and its velocity


class CountingEnv(gymnasium.Env[Any, Any]):
    """Every call goes into two SHA-256 chains: one of the episode, which its observations show, and one for life.

    The chain of the episode begins anew with each reset, so that the same seed and actions give the same numbers. The
    one for life begins with the constructor and forgets nothing, `set_scene_state` included: two runs whose `digest`
    is equal have made the same calls in the same order, each once. It stands in every `info` as "digest", beside
    "calls", how many there were; a remote client can also ask for both by name.

    Args:
        image: observations are a dict of "state" and "image", (480, 640, 3) uint8, in one buffer that each call
            overwrites.
        episode_length: a step truncates from this one on; None: never.
        step_s: how long a step takes [s], so that faults can fall into one.
        render_mode: None or "rgb_array".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / STEP_S)}  # noqa: RUF012  # Gymnasium's own way
    remote_calls = ("digest", "calls")

    def __init__(
        self,
        *,
        image: bool = False,
        episode_length: int | None = None,
        step_s: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self._episode_length, self._step_s = episode_length, step_s
        self._life = self._episode = bytes(32)
        self._calls = self._steps = 0
        self._image = np.zeros(IMAGE_SHAPE, np.uint8) if image else None
        numbers = spaces.Box(0.0, 1.0, (4,), np.float64)
        pictures = spaces.Box(0, 255, IMAGE_SHAPE, np.uint8)
        self.observation_space = spaces.Dict({"state": numbers, "image": pictures}) if image else numbers
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)

    def digest(self) -> str:
        """The chain of all calls so far, in hex; asking is no call."""
        return self._life.hex()

    def calls(self) -> int:
        """How many calls there were; asking is none."""
        return self._calls

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self._steps, self._episode = 0, bytes(32)
        self._count(b"reset", _canonical((seed, options)))
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`; one after the episode's end counts like any other."""
        if self._step_s:
            time.sleep(self._step_s)
        self._steps += 1
        self._count(b"step", _canonical(np.asarray(action)))
        truncated = self._episode_length is not None and self._steps >= self._episode_length
        return self._observe(), _fractions(self._episode)[0], False, truncated, self._info()

    def render(self) -> Any:
        """A picture of the chain, for `render_mode` "rgb_array"."""
        self._count(b"render", b"")
        if self.render_mode is None:
            return None
        return np.frombuffer(self._episode, np.uint8).reshape(4, 8, 1).repeat(3, axis=2)

    def close(self) -> None:
        """Counted too."""
        self._count(b"close", b"")

    def get_scene_state(self, *, native: bool = False) -> SceneState:
        """How many steps the episode has had, as a joint's position; reading is no call."""
        values = np.zeros(_LAYOUT.size)
        values[0], values[4], values[_JOINT_AT] = self._steps * STEP_S, 1.0, self._steps
        return SceneState(_LAYOUT, values, _EPISODE.pack(self._episode, self._steps) if native else None)

    def set_scene_state(self, state: SceneState) -> None:
        """Take the episode's steps back, and with native state its chain; the chain for life grows by this call."""
        if state.layout != _LAYOUT:
            raise InputError("this state is not of a CountingEnv")
        native = state.native or _EPISODE.pack(self._episode, round(float(state.values[_JOINT_AT])))
        self._count(b"set_scene_state", state.values.tobytes() + native)
        self._episode, self._steps = _EPISODE.unpack(native)

    def _count(self, name: bytes, what: bytes) -> None:
        record = name + b"\0" + what
        self._life = hashlib.sha256(self._life + record).digest()
        self._episode = hashlib.sha256(self._episode + record).digest()
        self._calls += 1

    def _observe(self) -> Any:
        state = np.array(_fractions(self._episode))
        if self._image is None:
            return state
        self._image.reshape(-1, 32)[:] = np.frombuffer(self._episode, np.uint8)
        return {"state": state, "image": self._image}

    def _info(self) -> dict[str, Any]:
        return {"calls": self._calls, "digest": self.digest()}


def make(**kwargs: Any) -> CountingEnv:
    """A `CountingEnv`, for servers: `env="remote_env.testing.counting:make"`."""
    return CountingEnv(**kwargs)


def _fractions(chain: bytes) -> list[float]:
    """Four numbers from 0 to 1 that are the chain's 32 bytes."""
    return [number / 2**64 for number in struct.unpack("<4Q", chain)]


def _canonical(value: Any) -> bytes:
    """Bytes that are equal for equal values of equal types, whichever way they came here."""
    if isinstance(value, (np.ndarray, np.generic)):
        return f"{value.dtype.str}{value.shape}".encode() + value.tobytes()
    if isinstance(value, dict):
        return b"{" + b",".join(_canonical(key) + b":" + _canonical(value[key]) for key in value) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(_canonical, value)) + b"]"
    return repr(value).encode()
