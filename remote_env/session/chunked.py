"""Several steps of a session in one request (docs/protocol.md, "Several steps")."""

from __future__ import annotations

import abc
import time
from collections.abc import Sequence
from typing import Any

from gymnasium import spaces

from remote_env.errors import (
    ConfigError,
    InputError,
    TaskError,
)
from remote_env.protocol import codec, frames
from remote_env.protocol.chunks import MAX_BYTES, MAX_STEPS, ChunkOptions, Transitions, check_outcomes, split_actions
from remote_env.protocol.delivery import Selection
from remote_env.protocol.stacking import stack
from remote_env.protocol.vector_step import Transition
from remote_env.session.bringing import Bringing
from remote_env.session.exchange import MALFORMED
from remote_env.session.slices import count_rows, last_row
from remote_env.spaces import space_size


class Chunked(Bringing, abc.ABC):
    """A session whose steps may be sent together."""

    state: Any
    action_space: spaces.Space[Any]

    @abc.abstractmethod
    def _check_action(self, action: Any) -> None:
        """Raise InputError for an action that is not of the task's action space."""

    @abc.abstractmethod
    def _read_info(self, rest: dict[str, Any]) -> dict[str, Any]:
        """The info that the tail of a reply holds."""

    @abc.abstractmethod
    def _read_row_states(self, packed: Any) -> list[Any]:
        """The scenes of several steps; notes the last as the present one."""

    def step_many(
        self, actions: Any, timeout_s: float, options: ChunkOptions, *, want_state: bool = False
    ) -> Transitions:
        """Run several steps in one round trip.

        Args:
            actions: (K, …), stacked as the action space is built; or a list of K actions.
            timeout_s: for all of them together [s].
            options: how they run, and what is wanted of them.
            want_state: also the scenes.

        Raises:
            InputError: an action is not the task's, there are none or too many, or what they bring would be too
                large; nothing was sent.
            NotRun: they stood behind a step that ended the episode, or failed.
            TaskError: the task raised; `completed` has what the steps before brought.
            And as `step`.
        """
        self._check_usable()
        if isinstance(actions, (tuple, range)) and not isinstance(self.action_space, spaces.Tuple):
            actions = list(actions)  # of such a space alone a tuple is one with stacked parts
        rows = split_actions(actions)
        for row in rows:
            self._check_action(row)
        self._check_size(len(rows), options)
        body, arrays = codec.encode((actions, options.to_plain()), where="actions")
        self._adapt(timeout_s)
        self.state = None
        self._deadline = time.monotonic() + timeout_s
        flags = frames.WANT_STATE if want_state else 0
        header = self._exchange(frames.STEP_MANY, flags, bytearray(frames.HEADER_SIZE) + body, arrays)
        return self._read_chunk(header, len(rows), options.want)

    def step_picking(
        self, action: Any, timeout_s: float, options: ChunkOptions, *, want_state: bool = False
    ) -> Transition:
        """Run one step that brings what `options` say; see `step_many`."""
        return last_transition(self.step_many([action], timeout_s, options, want_state=want_state))

    def _check_size(self, count: int, options: ChunkOptions) -> None:
        try:
            each = space_size(Selection(self.observation_space, options.keys).space)
        except ConfigError as error:
            raise InputError(str(error)) from error
        if options.want == "all" and count * each > MAX_BYTES:
            raise InputError(
                f"{count} observations of {each} bytes are {count * each}; one call brings at most {MAX_BYTES}: send "
                f'at most {max(MAX_BYTES // each, 1)} actions at once, or ask for want="last" or fewer observation_keys'
            )

    def _read_chunk(self, header: frames.Header, sent: int = MAX_STEPS, want: str | None = None) -> Transitions:
        """The rest of a reply to STEP_MANY: of so many actions, what is wanted of them, where that is known."""
        try:
            value = self._receive_value(header)
            transitions = self._unpack_chunk(value, header.sequence, sent, want)
        except MALFORMED as error:
            raise self._malformed(error) from error
        self._settle(header)
        if "error" not in value:
            return transitions
        failed = self._error(value["error"])
        if isinstance(failed, TaskError):
            failed.completed = transitions
        raise failed

    def _unpack_chunk(self, value: dict[str, Any], sequence: int, sent: int, want: str | None) -> Transitions:
        rewards, terminated, truncated = check_outcomes(value, self.ready.get("num_envs"), sent)
        ran, rows, observations, rests = value["ran"], value["rows"], value["observation"], value["info"]
        ages: Sequence[int] = ()
        if self._images is not None and type(observations) is list:
            observations, ages = stack(self._images.decode_rows(observations, sequence)), self._images.ages
        is_whole = all(count == rows for count in count_rows(observations)) and (rests is None or len(rests) == rows)
        is_due = rows in (1, ran) if want is None else rows == (ran if want == "all" else 1)
        if type(rows) is not int or not is_due or not is_whole:
            raise ValueError(f"observations or infos of other steps than the {rows} that are due")
        infos = [{} for _ in range(rows)] if rests is None else [self._read_info(rest) for rest in rests]
        if self.delivery.image_every > 1:
            for info, age in zip(infos, ages, strict=True):
                info["image_age"] = age
        states = self._read_row_states(value["states"]) if "states" in value else None
        if states is not None and len(states) != rows:
            raise ValueError(f"{len(states)} states of {rows} steps")
        if infos:
            self._tell_times(infos[-1], sequence, value.get("timing"), None)
        return Transitions(observations, rewards, terminated, truncated, infos, ran, states)


def last_transition(chunk: Transitions) -> Transition:
    """Its last step's."""
    flags = chunk.terminated[-1], chunk.truncated[-1]
    rest = (chunk.rewards[-1], *flags) if chunk.rewards.ndim > 1 else (float(chunk.rewards[-1]), *map(bool, flags))
    return (last_row(chunk.observations), *rest, chunk.infos[-1])
