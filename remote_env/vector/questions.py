"""What a batch that is spread over servers can be asked besides steps and resets: attributes, frames, scenes."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from remote_env.errors import InputError
from remote_env.state import SceneState
from remote_env.vector.part import Part
from remote_env.vector.remote_vector_env import check_ids

if TYPE_CHECKING:
    from typing_extensions import Self


class SpreadQuestions(abc.ABC):
    """The questions of a `SpreadVectorEnv`, each passed to those servers whom it concerns."""

    _parts: list[Part]
    num_envs: int

    @abc.abstractmethod
    def start(self) -> Self:
        """Have the servers run."""

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Of each environment an attribute, or what its method returns; see `RemoteVectorEnv.call`."""
        self.start()
        return tuple(value for part in self._parts for value in part.env.call(name, *args, **kwargs))

    def get_attr(self, name: str) -> Any:
        """Of each environment an attribute; as `call`."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment; see `RemoteVectorEnv.set_attr`."""
        self.start()
        if isinstance(values, (list, tuple)) and len(values) != self.num_envs:
            raise InputError(f"{len(values)} values for {self.num_envs} environments; give one each, or one for all")
        for part in self._parts:
            is_each = isinstance(values, (list, tuple))
            part.env.set_attr(name, values[part.slice] if is_each else values)

    def render(self) -> Any:
        """What all of them render, one frame per environment."""
        self.start()
        frames = [part.env.render() for part in self._parts]
        return None if any(row is None for row in frames) else tuple(itertools.chain.from_iterable(frames))

    def get_states(self, env_ids: Sequence[int] | None = None) -> list[SceneState]:
        """The scenes of these environments now, in this order; see `RemoteVectorEnv.get_states`."""
        self.start()
        ids = check_ids(env_ids, self.num_envs)
        found: dict[int, SceneState] = {}
        for part in self._parts:
            own = [index for index in ids.tolist() if index in part.rows]
            if own:
                found.update(zip(own, part.env.get_states([index - part.first for index in own]), strict=True))
        return [found[index] for index in ids.tolist()]

    def get_state(self, env_id: int = 0) -> SceneState:
        """The scene of one environment now."""
        return self.get_states([env_id])[0]

    def set_states(self, states: Sequence[SceneState], env_ids: Sequence[int] | None = None) -> None:
        """Put these environments into these scenes, one each; see `RemoteVectorEnv.set_states`."""
        self.start()
        ids = check_ids(env_ids, self.num_envs).tolist()
        if len(states) != len(ids):
            raise InputError(f"{len(states)} states for {len(ids)} environments; give one each")
        for part in self._parts:
            own = [(state, index - part.first) for state, index in zip(states, ids, strict=True) if index in part.rows]
            if own:
                part.env.set_states([state for state, _ in own], [index for _, index in own])

    @property
    def final_states(self) -> dict[int, SceneState]:
        """The scenes in which environments ended in the last step, by environment; see `RemoteVectorEnv`."""
        return {part.first + index: state for part in self._parts for index, state in part.env.final_states.items()}
