"""A client's session with one environment: steps, the policy beside it, its scene."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from gymnasium import Space

from remote_env.errors import ConfigError, ProtocolError, Unsupported
from remote_env.protocol import codec, frames, layout, machine
from remote_env.protocol.delivery import EVERYTHING
from remote_env.protocol.state_stream import StateReceiver
from remote_env.protocol.vector_step import Transition, VectorStep
from remote_env.session.actions import compile_action_check
from remote_env.session.branches import BranchRequests
from remote_env.session.exchange import MALFORMED
from remote_env.session.slices import check_reply, last_transition, read_runs
from remote_env.state import SceneState


class Session(BranchRequests):
    """A hold on a simulator of one environment; arguments and attributes are `TaskSession`'s."""

    state: SceneState | None

    def _check_count(self, num_envs: int | None) -> None:
        if num_envs is not None:
            raise ConfigError(
                f"that server holds a batch of {num_envs} environments, and a RemoteEnv is for one: take it with "
                "RemoteVectorEnv(…), or give another port= to start a server with one environment"
            )

    def _read_spaces(self, ready: dict[str, Any]) -> None:
        super()._read_spaces(ready)
        self._check_given = compile_action_check(self.action_space)

    def _bring(self, space: Space[Any]) -> None:
        super()._bring(space)
        self._states = StateReceiver()
        action, observation = self._action_layout, self._observation_layout
        self._vector_step: VectorStep | None = None
        is_plain = self.delivery == EVERYTHING
        if is_plain and action and action.vector:
            self._vector_step = VectorStep(action.vector, observation.vector if observation else None, self._epoch)

    def _check_action(self, action: Any) -> None:
        self._check_given(action)

    def step(self, action: Any, timeout_s: float, *, want_state: bool = False) -> Transition:
        """See `TaskSession.step`."""
        self.state = None
        vector, requests = self._vector_step, self._requests
        is_alone = requests.lone is None and not requests.queue
        if vector is not None and is_alone and not want_state and self._link is machine.JOINED:
            received = requests.received
            sequence = received + 1
            ready = vector.pack_step(action, sequence, received)
            if ready is not None:
                self._deadline = time.monotonic() + timeout_s
                if not vector.has_results:
                    self._send_alone(sequence, ready)
                    return self._read_transition(self._await(sequence, frames.STEP), is_step=True)
                if self._swap(sequence, ready, vector.result_shape):
                    try:
                        transition = vector.read_result(self._stream.body)
                    except MALFORMED as error:
                        raise self._malformed(error) from error
                    requests.received = sequence
                    requests.lone = None
                    self._in_call = False
                    return transition
                header = self._await(sequence, frames.STEP)
                vector.expect_like(header)
                return self._read_transition(header, is_step=True)
        self._check_action(action)
        return self._read_transition(self._ask_step(action, timeout_s, want_state=want_state), is_step=True)

    def _send_alone(self, sequence: int, step: bytearray) -> None:
        """Send a STEP behind which nothing is under way; `_await` has its reply."""
        self._in_call = True
        self._requests.lone = (sequence, step)
        self._transmit((step,), frames.STEP)

    def rollout(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Have the policy beside the simulator act for one slice (docs/protocol.md, "Rollouts").

        Args:
            request: as the protocol has it; one that begins an episode abandons a call that is unsettled, as `reset`.
            timeout_s: for the reply [s], besides the time that the request allows the slice.

        Returns:
            The reply, its states as a list of `SceneState`.

        Raises:
            Unsupported: there is no policy; nothing was sent.
            PolicyError: it raised; the episode stands where it did before that.
            InputError: there is no episode to go on with. And as `step`.
        """
        if "policy" not in self.ready:
            raise Unsupported(
                "this server has no policy beside its task: start one with RemoteEnv(policy=…) or with "
                "task_server.py --policy …, or step with actions of your own"
            )
        body, arrays = codec.encode(request, where="request")  # before anything is abandoned
        self.state = None
        frame = bytearray(frames.HEADER_SIZE) + body
        begins = request["begin"] is not None
        self._deadline = time.monotonic() + timeout_s + float(request["time_s"])
        header = self._exchange(frames.ROLLOUT, 0, frame, arrays, abandons=begins)
        return self._read_rollout(header)

    def get_state(self, timeout_s: float, *, native: bool) -> SceneState:
        """The scene now."""
        self._looks += 1
        self._deadline = time.monotonic() + timeout_s
        return self._read_state_reply(self._ask(frames.GET_STATE, native))

    def set_state(self, state: SceneState, timeout_s: float) -> None:
        """Put the scene into `state`."""
        request = (state.layout.to_plain(), state.values, state.native)
        self.state = None
        self._value(frames.SET_STATE, request, timeout_s)

    # Replies

    def _unpack_transition(self, header: frames.Header, *, is_step: bool) -> Transition:
        stream, flags, fixed = self._stream, header.flags, self._observation_layout
        body, at, end = stream.body, stream.body_start, stream.body_end
        observation: Any = None
        tail: Any = None
        reward: Any = 0.0
        terminated: Any = False
        truncated: Any = False
        views: Sequence[memoryview] = ()
        info: dict[str, Any] = {}
        if flags & frames.FIXED:
            if fixed is None:
                raise self._break(ProtocolError("a fixed layout for an observation space that has none"))
            if is_step:
                reward, terminated, truncated = layout.read_transition(body, at)
                at += layout.TRANSITION_SIZE
            observation, views = fixed.read(body, at, end)
            at += fixed.size
        if flags & (frames.STATE | frames.TAIL) or at != end:
            numbered, tail, more = self._read_rest(header, at, end, views, is_streamed=self.delivery.state_changes)
            if isinstance(tail, dict):
                observation = tail.get("observation", observation)
                reward = tail.get("reward", reward)
                terminated = tail.get("terminated", terminated)
                truncated = tail.get("truncated", truncated)
                info = tail.get("info", info)
            self.state = self._state(numbered, tail)
            views = [*views, *more]
        if views or header.payload_size:
            self._fill(views, header)
        if tail is not None:
            observation = self._finish(observation, info, header, tail)
        self._settle(header)
        return observation, reward, terminated, truncated, info

    def _read_late(self, kind: int, header: frames.Header) -> Transition | None:
        """Of a slice of a rollout the last transition, if it carried observations."""
        if kind == frames.GET_STATE:
            self._read_state_reply(header)
            return None
        if kind == frames.ROLLOUT:
            return last_transition(self._read_rollout(header))
        return super()._read_late(kind, header)

    def _read_rest(
        self, header: frames.Header, at: int, end: int, views: Sequence[memoryview], *, is_streamed: bool = False
    ) -> tuple[tuple[int, Any] | None, Any, list[memoryview]]:
        """The state's layout number and vector if there is one, the msgpack value if there is one, and its views."""
        stream, numbered, tail = self._stream, None, None
        more: list[memoryview] = []
        if header.flags & frames.STATE:
            if is_streamed:
                is_change = bool(header.flags & frames.CHANGE)
                number, values, at = self._states.read(stream.body, at, end, header.sequence, is_change=is_change)
            else:
                number, values, at = layout.read_state(stream.body, at, end)
            numbered = (number, values)
        if header.flags & frames.TAIL:
            left = header.payload_size - sum(map(len, views))
            if left < 0:
                raise self._break(ProtocolError("a payload is shorter than the arrays of its layout"))
            tail, more = codec.decode(bytes(stream.body[at:end]), left)
        elif at != end:
            raise ProtocolError(f"a RESULT with {end - at} bytes left over")
        return numbered, tail, more

    def _state(self, numbered: tuple[int, Any] | None, tail: Any) -> SceneState | None:
        if numbered is None:
            return None
        rest = tail if isinstance(tail, dict) else {}
        return SceneState(self._find_layout(numbered[0], rest.get("layout")), numbered[1], rest.get("native"))

    def _read_rollout(self, header: frames.Header) -> dict[str, Any]:
        value = self._read_value(header)
        try:
            reply = check_reply(value)
            if "state" in reply["rows"]:
                reply["rows"]["state"] = states = read_runs(reply["rows"]["state"], self._layouts)
                self.state = states[-1]
        except MALFORMED as error:
            raise self._malformed(error) from error
        return reply

    def _read_info(self, rest: dict[str, Any]) -> dict[str, Any]:
        info = rest["info"]
        if not isinstance(info, dict):
            raise ProtocolError(f"a {type(info).__name__} in place of an info")
        return info

    def _read_row_states(self, packed: Any) -> list[Any]:
        states = read_runs(packed, self._layouts)
        self.state = states[-1]
        return states

    def _read_state_reply(self, header: frames.Header) -> SceneState:
        try:
            numbered, tail, views = self._read_rest(header, self._stream.body_start, self._stream.body_end, [])
            self._fill(views, header)
            state = self._state(numbered, tail)
        except MALFORMED as error:
            raise self._malformed(error) from error
        if state is None:
            raise self._break(ProtocolError("a reply to GET_STATE without a state"))
        self._settle(header)
        return state
