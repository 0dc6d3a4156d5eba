"""Tasks that make batches hard: observations of every kind, infos that come and go, and batches of a backend's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from tasks_for_tests.scene import Scene

from remote_env.errors import Unsupported
from remote_env.server.backend import Backend
from remote_env.state import EntityLayout, Floats, SceneLayout


class Choosy(gymnasium.Env[Any, Any]):
    """Leaves out of observations what nobody wants; each tells in its info what that was. Episodes of three steps."""

    action_space = spaces.Discrete(2)
    remote_calls = ("fail",)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        views = spaces.Dict({name: spaces.Box(0, 255, (4, 4, 3), np.uint8) for name in ("left", "right")})
        place = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = spaces.Dict({"views": views, "place": place, "count": spaces.Discrete(9, start=1)})
        self._keys: tuple[str, ...] | None = None
        self._count = 0

    def set_wanted_observations(self, keys: tuple[str, ...] | None) -> None:
        """What the observations are to hold from now on: keys, and paths such as "views/left"; None for all."""
        self._keys = keys

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self._count = 1
        return self._observe()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`; raises when the action is 1 in the second step."""
        self._count += 1
        if action == 1 and self._count == 3:
            raise ValueError("as told")
        observation, info = self._observe()
        return observation, 1.0, self._count == 4, False, info

    def _observe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        view = np.full((4, 4, 3), self._count, np.uint8)
        whole = {"views/left": view, "views/right": view, "place": np.full(3, self._count, np.float64)}
        whole["count"] = self._count
        made = [name for name in whole if self._keys is None or {name, name.split("/")[0]} & set(self._keys)]
        observation: dict[str, Any] = {name: whole[name] for name in made if "/" not in name}
        views = {name.split("/")[1]: whole[name] for name in made if "/" in name}
        return {**observation, **({"views": views} if views else {})}, {"made": ",".join(made)}


class Varied(gymnasium.Env[Any, Any]):
    """A Dict observation; infos with texts, None, arrays, dicts, that some steps have and others not; short episodes.

    Args:
        text: the observation is a text instead, which does not stack.
    """

    action_space = spaces.Dict({"push": spaces.Box(-1, 1, (2,), np.float32), "mode": spaces.Discrete(3)})
    remote_calls = ("weight", "describe")

    def __init__(self, *, text: bool = False, render_mode: str | None = None) -> None:
        self.render_mode, self.weight, self._text = render_mode, 1.5, text
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 7}
        picture = spaces.Box(0, 255, (40, 40, 3), np.uint8)  # larger than what stays in the body
        self.observation_space: Any = spaces.Dict(
            {"picture": picture, "place": spaces.Box(-np.inf, np.inf, (3,), np.float64), "count": spaces.Discrete(99)}
        )
        if text:
            self.observation_space = spaces.Text(20, charset="abcdef0123456789 ")
        self._left = 0

    def describe(self, word: str) -> dict[str, Any]:
        """A value of its own."""
        return {"word": word, "weight": self.weight}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(2, 6))
        return self._observe(), {"began": self._left, "options": str(sorted(options or {}))}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        self._left -= 1
        info: dict[str, Any] = {
            "pushed": np.asarray(action["push"]) * 2,
            "task": {"name": "abc", "mode": action["mode"]},
        }
        if self._left % 2:
            info["odd"] = None if self._left == 1 else [1, "two", {"three": 3.0}]
        return self._observe(), float(self.np_random.normal()), self._left == 0, self._left < -3, info

    def _observe(self) -> Any:
        if self._text:
            return "abc " + str(self._left % 10)
        return {
            "picture": self.np_random.integers(0, 255, (40, 40, 3), np.uint8),
            "place": self.np_random.normal(size=3),
            "count": max(self._left, 0),
        }

    def render(self) -> Any:
        """A frame that knows how far it is."""
        return np.full((30, 20, 3), self._left + 10, np.uint8)


class ShortScene(Scene):
    """The scene of one cube, whose episodes end at a height."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`; the task ends when the cube is as high as the action's first number says × 10."""
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.height >= round(10 * abs(float(action[0]))), truncated, info


class Swarm(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """A vector environment of its own kind, without `envs`."""

    def __init__(self, num_envs: int, *, says_how: bool = True, made: int | None = None) -> None:
        self.num_envs = num_envs if made is None else made
        self.single_observation_space = spaces.Box(-9, 9, (2,), np.float32)
        self.single_action_space = spaces.Box(-1, 1, (1,), np.float32)
        self.observation_space = spaces.Box(-9, 9, (self.num_envs, 2), np.float32)
        self.action_space = spaces.Box(-1, 1, (self.num_envs, 1), np.float32)
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP} if says_how else {}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.vector.VectorEnv.reset`."""
        self._at = np.zeros((self.num_envs, 2), np.float32)
        return self._at, {"seed": seed}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `gymnasium.vector.VectorEnv.step`; rewards are of a dtype that has no fixed place."""
        self._at += actions
        never = np.zeros(self.num_envs, np.bool_)
        return self._at, np.arange(self.num_envs, dtype=np.int32), never, never, {}


def make_swarm(num_envs: int | None = None, **kwargs: Any) -> Any:
    """A Swarm, or without `num_envs` something that is none."""
    return object() if num_envs is None else Swarm(num_envs, **kwargs)


class Flock(Backend):
    """A batch of counters, natively: they end at 5, begin again in the same step, and tell where they ended."""

    metadata: Mapping[str, Any] = {"render_modes": []}
    spec: Mapping[str, Any] = {"id": "Flock"}
    callable_names = frozenset({"size"})
    takes_reset_mask = True

    def make(self, env: Any, kwargs: Mapping[str, Any]) -> None:
        """Only as a batch."""
        if self.num_envs is None:
            raise Unsupported("Flock is a batch: give num_envs")
        count, kind = self.num_envs, kwargs.get("dtype", "float32")
        self.single_observation_space = spaces.Box(0, np.inf, (1,), np.float32)
        self.single_action_space = spaces.Discrete(3)
        self.observation_space = spaces.Box(0, np.inf, (count, 1), np.float32)
        self.action_space = spaces.MultiDiscrete([3] * count)
        self.autoreset_mode = kwargs.get("autoreset_mode", "SAME_STEP")
        self._layout = SceneLayout((EntityLayout("bird"),), source=str(env))
        self._at, self._ended, self._kind = np.zeros(count), np.zeros(count, bool), np.dtype(kind)
        self._wrong = str(kwargs.get("wrong", ""))

    def reset(self, seed: Any, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        """Back to where each seed says, or to 0."""
        mask = (options or {}).get("reset_mask", np.ones(len(self._at), bool))
        seeds = seed if isinstance(seed, list) else [seed or 0] * len(self._at)
        self._at[mask] = np.array([each or 0 for each in seeds], float)[mask]
        self._ended[:] = False
        return self._observe(), {"seed": seed}

    def _observe(self) -> Any:
        return self._at.astype(np.float32)[:, None]

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Count on."""
        self._at += action
        self._ended = self._at >= 5
        self._final = self._at.copy()
        rewards, final = action.astype(self._kind), np.array([None] * len(self._at), object)
        for index in np.flatnonzero(self._ended):
            final[index] = np.array([self._at[index]], np.float32)
        self._at[self._ended] = 0
        info = {"final_obs": final, "_final_obs": self._ended.copy()} if self._ended.any() else {}
        return self._observe(), rewards, self._ended.copy(), np.zeros(len(self._at), bool), info

    def _rows(self, heights: Floats) -> Floats:
        rows = np.zeros((len(heights), self._layout.size))
        rows[:, 3], rows[:, 4] = heights, 1.0
        return rows[:, :-1] if self._wrong == "rows" else rows

    def states(self, env_ids: Sequence[int]) -> tuple[SceneLayout, Floats]:
        """Each bird at its height."""
        return self._layout, self._rows(self._at[list(env_ids)])

    def final_states(self) -> tuple[Sequence[int], Floats] | None:
        """Where they ended."""
        ids = np.flatnonzero(self._ended)
        return (ids.tolist(), self._rows(self._final[ids])) if ids.size else None

    def restore_states(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """Set heights."""
        if layout != self._layout:
            raise ValueError("no birds in this state")
        self._at[list(env_ids)] = values[:, 3]

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Only `size`."""
        return len(self._at)

    def close(self) -> None:
        """Nothing to free."""
