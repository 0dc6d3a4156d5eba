"""A client's session with a batch of environments: one request and one reply for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from remote_env.errors import ConfigError, InputError, ProtocolError
from remote_env.protocol import codec, frames
from remote_env.protocol.batch import AUTORESET_MODES, BatchTransition, check_env_ids, check_rows, join_objects
from remote_env.protocol.delivery import Selection
from remote_env.protocol.vector_step import Transition
from remote_env.session.actions import compile_action_check
from remote_env.session.exchange import MALFORMED
from remote_env.session.task_session import TaskSession
from remote_env.spaces import space_from_plain
from remote_env.state import Floats, SceneLayout, SceneState


class BatchStates(NamedTuple):
    """Scenes of several environments.

    Attributes:
        layout: which they share.
        env_ids: (K,) whose they are.
        values: (K, layout.size).
    """

    layout: SceneLayout
    env_ids: NDArray[Any]
    values: Floats

    def rows(self) -> list[SceneState]:
        """Each as a state of its own memory, in order."""
        return [SceneState(self.layout, row.copy()) for row in self.values]


class BatchSession(TaskSession):
    """A hold on a simulator of a batch; arguments and attributes as `TaskSession`.

    Attributes:
        num_envs: how many environments there are.
        single_observation_space: of one of them.
        single_action_space: likewise.
        autoreset_mode: "NEXT_STEP", "SAME_STEP" or "DISABLED".
        state: the scenes of all after the last reset or step, when that was asked to bring them.
        final_state: the scenes in which environments ended in the last step, when that was asked to bring them; None
            when none ended, or the far end resets in the same step and cannot tell.
    """

    state: BatchStates | None
    final_state: BatchStates | None = None

    def _check_count(self, num_envs: int | None) -> None:
        if num_envs is None:
            raise ConfigError(
                "that server holds one environment, and a RemoteVectorEnv is for a batch: take it with RemoteEnv(…), "
                "or give another port= and num_envs= to start a server with a batch"
            )
        if self._wanted not in (None, num_envs):
            raise ConfigError(
                f"that server holds a batch of {num_envs} environments, and asked for was num_envs={self._wanted}; "
                "leave num_envs= out to take what it holds, or give another port= to start one"
            )

    def _read_spaces(self, ready: dict[str, Any]) -> None:
        super()._read_spaces(ready)
        self.num_envs = int(ready["num_envs"])
        self.single_action_space: Space[Any] = space_from_plain(ready["single_action_space"])
        self.autoreset_mode = str(ready["autoreset_mode"])
        if self.autoreset_mode not in AUTORESET_MODES:
            raise ProtocolError(f"a batch whose autoreset_mode is {self.autoreset_mode!r}")
        self._batch_transition = BatchTransition(self.num_envs)
        self._check_actions = compile_action_check(self.action_space, "actions")

    def _bring(self, space: Space[Any]) -> None:
        super()._bring(space)
        plan, single = self.delivery, space_from_plain(self.ready["single_observation_space"])
        self.single_observation_space: Space[Any] = Selection(single, plan.keys, float32=plan.float32).space

    def step(self, action: Any, timeout_s: float, *, want_state: bool = False) -> Transition:
        """Run one step of all environments; see `TaskSession.step`."""
        self._check_action(action)
        self.state = self.final_state = None
        return self._read_transition(self._ask_step(action, timeout_s, want_state=want_state), is_step=True)

    def _check_action(self, action: Any) -> None:
        self._check_actions(action)

    def reset_async(
        self, seed: Any, options: dict[str, Any] | None, timeout_s: float, *, want_state: bool = False
    ) -> None:
        """Send a reset without waiting for it; what is under way is abandoned. `reset_wait` takes its result."""
        flags = frames.WANT_STATE if want_state else 0
        body, arrays = codec.encode((seed, options), where="(seed, options)")  # before anything is abandoned
        self._check_usable()
        self.state = self.final_state = None
        self._deadline = time.monotonic() + timeout_s
        self._send(frames.RESET, flags, bytearray(frames.HEADER_SIZE) + body, arrays)
        self._requests.own(len(self._requests.pending) - 1)
        self._in_call = False

    def reset_wait(self, timeout_s: float) -> Transition:
        """The result of the reset that is under way.

        Raises:
            InputError: none is.
            And as `reset`.
        """
        self._check_usable()
        pending = self._requests.pending
        if not pending or pending[-1].kind != frames.RESET:
            raise InputError("no reset is under way; call reset_async() first")
        self._deadline = time.monotonic() + timeout_s
        self._leave_interrupted_link()
        self._in_call = True
        return self._read_transition(self._await(pending[-1].sequence, frames.RESET), is_step=False)

    def get_states(self, env_ids: Any, timeout_s: float) -> BatchStates:
        """The scenes of these environments now, or of all for None."""
        self._looks += 1
        self._deadline = time.monotonic() + timeout_s
        value = self._read_value(self._ask(frames.GET_STATE, env_ids))
        try:
            return self._read_states(value, env_ids)
        except MALFORMED as error:
            raise self._malformed(error) from error

    def set_states(self, layout: SceneLayout, values: Floats, env_ids: NDArray[Any], timeout_s: float) -> None:
        """Put these environments into these scenes."""
        self.state = None
        self._value(frames.SET_STATE, (layout.to_plain(), values, env_ids), timeout_s)

    # Replies

    def _read_late(self, kind: int, header: frames.Header) -> Transition | None:
        if kind != frames.GET_STATE:
            return super()._read_late(kind, header)
        self._note_layout(self._read_value(header))
        return None

    def _unpack_transition(self, header: frames.Header, *, is_step: bool) -> Transition:
        stream, fixed, at = self._stream, self._observation_layout, self._stream.body_start
        values: tuple[Any, ...] = (np.zeros(self.num_envs), *(np.zeros(self.num_envs, np.bool_) for _ in range(2)))
        observation: Any = None
        views: list[memoryview] = []
        tail: dict[str, Any] = {}
        if header.flags & frames.FIXED:
            if fixed is None:
                raise self._break(ProtocolError("a fixed layout for an observation space that has none"))
            if is_step:
                values, views, at = self._batch_transition.read(stream.body, at, stream.body_end)
            observation, rows = fixed.read(stream.body, at, stream.body_end)
            at, views = at + fixed.size, [*views, *rows]
        if header.flags & frames.TAIL:
            tail, more = self._read_tail(header, at, views)
            views = [*views, *more]
        elif at != stream.body_end:
            raise ProtocolError(f"a RESULT with {stream.body_end - at} bytes left over")
        self._fill(views, header)
        if is_step and not header.flags & frames.FIXED:
            values = tuple(tail.get(name) for name in ("reward", "terminated", "truncated"))
        self._note_states(tail, values[1:])
        info = self._read_info(tail)
        observation = self._finish(tail.get("observation", observation), info, header, tail)
        self._settle(header)
        return observation, *values, info

    def _read_tail(self, header: frames.Header, at: int, views: Sequence[memoryview]) -> tuple[dict[str, Any], Any]:
        left = header.payload_size - sum(map(len, views))
        if left < 0:
            raise self._break(ProtocolError("a payload is shorter than the arrays of its layout"))
        tail, more = codec.decode(bytes(self._stream.body[at : self._stream.body_end]), left)
        if not isinstance(tail, dict) or not isinstance(tail.get("info", {}), dict):
            raise self._break(ProtocolError("a RESULT of a batch whose tail is no dict"))
        return tail, more

    def _read_info(self, tail: dict[str, Any]) -> dict[str, Any]:
        info: dict[str, Any] = tail.get("info", {})
        if "objects" not in tail:
            return info
        try:
            return join_objects(info, tail["objects"])  # type: ignore[no-any-return]
        except ProtocolError as error:
            raise self._break(error) from error

    def _read_row_states(self, packed: Any) -> list[Any]:
        rows = [self._read_states(row, None) for row in packed]
        self.state, self.final_state = rows[-1], None
        return [row.rows() for row in rows]

    def _note_states(self, tail: dict[str, Any], ended: tuple[Any, ...]) -> None:
        self.state = self.final_state = None
        if "states" not in tail:
            return
        self.state = state = self._read_states(tail, None)
        if tail.get("final_states") is not None:
            self.final_state = self._checked_states(state.layout, *tail["final_states"])
        elif self.autoreset_mode != "SAME_STEP":
            ids = np.flatnonzero(np.logical_or(*ended))
            self.final_state = BatchStates(state.layout, ids, state.values[ids]) if ids.size else None

    def _read_states(self, value: Any, env_ids: Any) -> BatchStates:
        return self._checked_states(self._note_layout(value), env_ids, value["states"])

    def _note_layout(self, value: Any) -> SceneLayout:
        if not isinstance(value, dict) or not isinstance(value.get("state_layout"), int) or "states" not in value:
            raise self._break(ProtocolError("a reply with states that holds none"))
        return self._find_layout(value["state_layout"], value.get("layout"))

    def _checked_states(self, layout: SceneLayout, env_ids: Any, values: Any) -> BatchStates:
        try:
            ids = check_env_ids(env_ids, self.num_envs)
            check_rows(layout, values, len(ids))
        except ValueError as error:
            raise self._break(ProtocolError(f"a reply with states that are none: {error}")) from error
        return BatchStates(layout, ids, values)
