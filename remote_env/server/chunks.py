"""Several steps in one request: what they have gone through, as far as it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from remote_env.errors import TaskError
from remote_env.protocol.chunks import MAX_BYTES, ChunkOptions, pack_outcomes
from remote_env.protocol.stacking import copied, size_of

Transition = tuple[Any, Any, Any, Any, dict[str, Any]]
SLACK_BYTES = 32 << 20  # for keys and infos: a client has reckoned with the observations' values alone


class ChunkRecord:
    """Collects transitions; what a task may write to again is copied, but for the last one's.

    Args:
        options: what the client wants.
        read_state: reads the scene, or the scenes, of a row; None where they are not wanted.
    """

    def __init__(self, options: ChunkOptions, read_state: Callable[[], Any] | None) -> None:
        self._keeps_all, self._read_state = options.want == "all", read_state
        self._outcomes: list[tuple[Any, Any, Any]] = []
        self._last: Transition | None = None
        self._size_bytes = 0
        self.observations: list[Any] = []
        self.infos: list[dict[str, Any]] = []
        self.states: list[Any] = []

    def add(self, transition: Transition, observation: Any) -> None:
        """Note a step that has just run, with what of its observation is wanted.

        Raises:
            TaskError: all of them together are more than one reply may bring.
        """
        _, reward, terminated, truncated, info = transition
        self._outcomes.append(copied((reward, terminated, truncated)))
        self._last = (observation, reward, terminated, truncated, info)
        if self._keeps_all:
            self._check_room(observation, info)
            self.observations.append(copied(observation))
            self.infos.append(copied(info))
            self._note_state()

    def _check_room(self, observation: Any, info: dict[str, Any]) -> None:
        self._size_bytes += size_of(observation) + size_of(info)
        if self._size_bytes > MAX_BYTES + SLACK_BYTES:
            raise TaskError(
                f"{len(self._outcomes)} steps ran, but what they bring is more than {MAX_BYTES} bytes; send fewer at "
                'once, or ask for want="last" or fewer observation_keys'
            )

    def _note_state(self) -> None:
        if self._read_state is not None:
            self.states.append(self._read_state())

    def finish(self) -> dict[str, Any]:
        """What the reply says of all steps; with "last" alone this is when the last one's state is read.

        Raises:
            TaskError: a reward or a flag is no number.
        """
        if not self._keeps_all and self._last is not None:
            self.observations, self.infos = [self._last[0]], [self._last[4]]
            self._note_state()
        try:
            reward, terminated, truncated = pack_outcomes(self._outcomes)
        except (TypeError, ValueError) as error:
            raise TaskError(f"the steps ran, but a reward or a flag of theirs is no number: {error}") from error
        ran = len(self._outcomes)
        return {"ran": ran, "reward": reward, "terminated": terminated, "truncated": truncated}


def pack_infos(infos: Sequence[dict[str, Any]], add_info: Callable[[dict[str, Any], dict[str, Any]], None]) -> Any:
    """The infos as a reply holds them, None where all are empty."""
    if not any(infos):
        return None
    packed = []
    for info in infos:
        rest: dict[str, Any] = {}
        add_info(rest, info)
        packed.append(rest)
    return packed
