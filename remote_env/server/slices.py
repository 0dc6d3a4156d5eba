"""A slice of a rollout: what is asked for, and what it has gone through (docs/protocol.md, "Rollouts")."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from remote_env.errors import InputError
from remote_env.protocol.stacking import copied, size_of, stack
from remote_env.server.backend import Backend
from remote_env.state import SceneLayout, SceneState

WANTS = ("observation", "action", "reward", "state", "info", "frame")


@dataclass(frozen=True)
class Slice:
    """What one ROLLOUT request asks for.

    Attributes:
        begin: the seed and options of a reset that comes first; None goes on with the episode.
        steps: the most steps to run.
        time_s: no further step begins after this [s].
        size_bytes: nor when the reply is as large as this.
        want: which of WANTS the reply is to carry.
        chunk_size: the most actions to apply of one inference; None for all.
        stacked: whether the values of all steps are to be stacked into arrays; else each stays what it is.
    """

    begin: tuple[int | None, dict[str, Any] | None] | None
    steps: int
    time_s: float
    size_bytes: int
    want: frozenset[str]
    chunk_size: int | None
    stacked: bool = True

    @classmethod
    def of(cls, request: Any) -> Slice:
        """The slice that a request describes; InputError when it describes none."""
        try:
            begin = request["begin"]
            chunk_size = request["chunk_size"]
            asked = cls(
                None if begin is None else (begin[0], begin[1]),
                int(request["steps"]),
                float(request["time_s"]),
                int(request["size_bytes"]),
                frozenset(request["want"]),
                None if chunk_size is None else int(chunk_size),
                bool(request["stacked"]),
            )
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"not a rollout's request ({error!r:.200}): {reprlib.repr(request)}") from error
        asked.check()
        return asked

    def check(self) -> None:
        """InputError when a number is out of its bounds, or something is wanted that there is not."""
        if self.steps < 1 or (self.chunk_size is not None and self.chunk_size < 1):
            raise InputError(f"a rollout runs at least one step and one action of a chunk; got {self}")
        if not self.want <= set(WANTS):
            unknown = ", ".join(sorted(map(str, self.want - set(WANTS))))
            raise InputError(f"a rollout has no {unknown}; it brings any of {', '.join(WANTS)}")


class Record:
    """What a slice has gone through, as far as it is wanted; arrays are copies, since tasks use theirs again."""

    def __init__(self, want: frozenset[str], backend: Backend) -> None:
        self._backend = backend
        self._rows: dict[str, list[Any]] = {name: [] for name in WANTS if name in want}
        self._rows["reward"] = []
        self._last: tuple[Any, ...] = ()
        self._success: bool | None = None
        self.steps = self.size = self.inferences = 0
        self.inference_s = 0.0

    def add(self, observation: Any, info: dict[str, Any]) -> None:
        """What a reset or a step brought; the state and the frame are read now."""
        if "observation" in self._rows:
            self._keep("observation", observation)
        if "info" in self._rows:
            self._keep("info", info)
        if "state" in self._rows:
            state = self._backend.state(native=False)
            self._keep("state", SceneState(state.layout, state.values.copy()))
            self.size += state.values.nbytes
        if "frame" in self._rows:
            self._keep("frame", self._frame())

    def _frame(self) -> Any:
        frame = self._backend.render()
        if frame is None:
            raise InputError("want='frame' needs a task that renders: make it with render_mode='rgb_array'")
        return frame

    def add_step(self, action: Any, transition: tuple[Any, Any, Any, Any, dict[str, Any]]) -> None:
        """One action, and what came of it."""
        observation, reward, terminated, truncated, info = transition
        self.steps += 1
        self._last = (reward, terminated, truncated, info)
        self._keep("reward", reward)
        if "action" in self._rows:
            self._keep("action", action)
        if isinstance(info, Mapping) and "is_success" in info:
            self._success = bool(self._success) or bool(info["is_success"])
        self.add(observation, info)

    def _keep(self, name: str, value: Any) -> None:
        self._rows[name].append(copied(value))
        self.size += size_of(value)

    def result(self, *, stacked: bool) -> dict[str, Any]:
        """As the reply holds it."""
        rows = {
            name: stack(values) if stacked and name not in ("info", "state") else values
            for name, values in self._rows.items()
        }
        return {
            "steps": self.steps,
            "rows": rows,
            "last": self._last,
            "success": self._success,
            "inferences": self.inferences,
            "inference_s": self.inference_s,
        }


def runs(states: Sequence[SceneState]) -> Iterator[tuple[SceneLayout, Any]]:
    """States in a row of one layout each: the layout, and (n, layout.size) float64."""
    for scene, group in itertools.groupby(states, key=lambda state: state.layout):
        yield scene, np.stack([state.values for state in group])
