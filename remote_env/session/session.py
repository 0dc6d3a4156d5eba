"""A client's session: requests and replies, and what a broken link or a dead simulator means."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from remote_env.errors import (
    ConfigError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    PolicyError,
    ProtocolError,
    RemoteEnvError,
    SessionLost,
    StartError,
    TaskError,
    Unsupported,
)
from remote_env.protocol import codec, frames, layout
from remote_env.protocol.vector_step import Transition, VectorStep
from remote_env.session.actions import compile_action_check
from remote_env.session.control import ControlLink, Dial, describe_ending, shake_hands
from remote_env.session.explain import explain_delay
from remote_env.session.slices import check_reply, last_transition, read_runs
from remote_env.spaces import space_from_plain
from remote_env.state import SceneLayout, SceneState

log = logging.getLogger("remote_env")

_KINDS: dict[str, type[RemoteEnvError]] = {
    "InputError": InputError,
    "Unsupported": Unsupported,
    "ConfigError": ConfigError,
    "PolicyError": PolicyError,
}


class Session:
    """A hold on one simulator. One request at a time.

    Args:
        dial: makes transports to the server.
        token: the server's.
        deadline: monotonic [s]; for the simulator to be ready.
        client: how the server may name us to others.
        digest: of the task that is wanted; None takes what is served.
        asked: that task's name, to show.
        lease_s: the session is to end when it was not pinged for so long [s]; whoever opens it pings. None: never.
        on_open: given the control link as soon as the session is ours, while its simulator may still start.
        on_status: told of each status while the simulator starts.

    Attributes:
        observation_space: the task's.
        action_space: the task's.
        ready: what the far end said of the task: metadata, render_mode, spec, facts, callable_names; and policy, where
            one is beside it.
        control: the link to the supervisor.
        state: the scene after the last reset or step, when that was asked to bring it.
        is_lost: why the session cannot go on, or None.
    """

    def __init__(
        self,
        dial: Dial,
        token: str,
        deadline: float,
        *,
        client: str = "",
        digest: str | None = None,
        asked: str = "",
        lease_s: float | None = None,
        on_open: Callable[[ControlLink], None] | None = None,
        on_status: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.control = ControlLink(dial, token, deadline, session="new", client=client, lease_s=lease_s)
        try:
            self._check_task(digest, asked)
            if on_open is not None:
                on_open(self.control)
            self.control.wait_ready(deadline, on_status)
            self._open_data(dial, token, deadline)
        except BaseException:
            self.control.close()
            raise

    def _check_task(self, digest: str | None, asked: str) -> None:
        served = self.control.welcome
        if digest is not None and served["digest"] != digest:
            raise ConfigError(
                f"that server serves env={served['task']!r}, and asked for was env={asked!r}, or it has other "
                "arguments, another simulator or another policy; leave env= out to take what it serves, or give "
                "another port= to start one"
            )

    def _open_data(self, dial: Dial, token: str, deadline: float) -> None:
        welcome = self.control.welcome
        self._transport, self._stream, _ = shake_hands(
            dial, token, "data", deadline, session=welcome["session"], secret=welcome["secret"]
        )
        self.is_lost: RemoteEnvError | None = None
        self.state: SceneState | None = None
        self._sequence = self._acknowledged = self._looks = 0
        self._unsettled: int | None = None  # the request whose reply was not read yet
        self._layouts: dict[int, SceneLayout] = {}
        try:
            header = self._stream.recv(deadline)
            if header.type != frames.READY:
                raise ProtocolError(f"expected READY, got {frames.NAMES.get(header.type, header.type)}")
            self._epoch = header.epoch
            self.ready = self._read_value(header, deadline)
            self.observation_space = space_from_plain(self.ready["observation_space"])
            self.action_space = space_from_plain(self.ready["action_space"])
        except ConnectionLost as error:
            self._transport.close()
            tail = self.control.why_ended().get("log_tail", "")
            raise StartError(f"the simulator died as the session began ({error})\n{tail}", log_tail=tail) from error
        except DeadlineExceeded as error:
            self._transport.close()
            raise explain_delay(self.control, frames.READY) from error
        except BaseException:
            self._transport.close()
            raise
        self._check_action = compile_action_check(self.action_space)
        self._action_layout = action = layout.compile_layout(self.action_space)
        self._observation_layout = observation = layout.compile_layout(self.observation_space)
        self._vector_step: VectorStep | None = None
        if action and action.vector and observation and observation.vector:
            self._vector_step = VectorStep(action.vector, observation.vector, self._epoch)

    # Requests

    def step(self, action: Any, timeout_s: float, *, want_state: bool = False) -> Transition:
        """Run one step.

        Raises:
            InputError: the action's shape or kind is not the task's, it is not finite or cannot cross, or an earlier
                call is unsettled; nothing was sent.
            TaskError: the task raised.
            DeadlineExceeded: no reply in time; the step may still run: `resume` settles it.
            SessionLost: the simulator is gone.
        """
        deadline = time.monotonic() + timeout_s
        self.state = None
        vector = self._vector_step
        if vector is not None and not want_state and self._unsettled is None and self.is_lost is None:
            sequence = self._sequence + 1
            ready = vector.pack_step(action, sequence, self._acknowledged)
            if ready is not None:
                self._sequence = sequence
                self._send((ready,), frames.STEP, deadline)
                header = self._await(sequence, frames.STEP, deadline, vector.result_shape)
                if header is vector.result_shape.header:
                    transition = vector.read_result(self._stream.body)
                    self._unsettled, self._acknowledged = None, sequence
                    return transition
                vector.expect_like(header)
                return self._read_transition(header, deadline, is_step=True)
        self._check_action(action)
        flags = frames.WANT_STATE if want_state else 0
        fixed = self._action_layout
        if fixed is not None:
            frame = bytearray(frames.HEADER_SIZE + fixed.size)
            payload = fixed.write(action, frame, frames.HEADER_SIZE)
            if payload is not None:
                header = self._exchange(frames.STEP, flags | frames.FIXED, frame, payload, deadline)
                return self._read_transition(header, deadline, is_step=True)
        header = self._ask(frames.STEP, action, deadline, flags, "action")
        return self._read_transition(header, deadline, is_step=True)

    def reset(
        self, seed: int | None, options: dict[str, Any] | None, timeout_s: float, *, want_state: bool = False
    ) -> Transition:
        """Start an episode; also abandons a call that is unsettled."""
        deadline = time.monotonic() + timeout_s
        flags = frames.WANT_STATE if want_state else 0
        body, arrays = codec.encode((seed, options), where="(seed, options)")  # before anything is abandoned
        self.state = None
        frame = bytearray(frames.HEADER_SIZE) + body
        header = self._exchange(frames.RESET, flags, frame, arrays, deadline, abandons=True)
        return self._read_transition(header, deadline, is_step=False)

    def resume(self, timeout_s: float) -> Transition | None:
        """Wait for the step that was interrupted, and return its transition; None when nothing is unsettled.

        Of a slice of a rollout the last transition, if it carried observations.

        Raises:
            SessionLost: the request was cut short, or the simulator is gone; whether the step ran is unknown.
        """
        if self.is_lost is not None:
            raise copy.copy(self.is_lost)
        if self._unsettled is None:
            return None
        deadline = time.monotonic() + timeout_s
        sequence, kind = self._unsettled, self._unsettled_kind
        if not self._stream.has_part and not self._stream.recover(sequence):
            raise self._break(ConnectionLost("a reply was cut short by an interrupt"))
        header = self._await(sequence, kind, deadline)
        if kind in (frames.STEP, frames.RESET):
            return self._read_transition(header, deadline, is_step=kind == frames.STEP)
        # Of a call whose result nobody can use any more.
        if kind == frames.GET_STATE:
            self._read_state_reply(header, deadline)
        elif kind == frames.ROLLOUT:
            return last_transition(self._read_rollout(header, deadline))
        else:
            self._read_value(header, deadline)
        return None

    @property
    def acts(self) -> int:
        """How many requests were sent that may change the episode: all but looks at it and calls of methods."""
        return self._sequence - self._looks

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
        deadline = time.monotonic() + timeout_s + float(request["time_s"])
        body, arrays = codec.encode(request, where="request")  # before anything is abandoned
        self.state = None
        frame = bytearray(frames.HEADER_SIZE) + body
        begins = request["begin"] is not None
        header = self._exchange(frames.ROLLOUT, 0, frame, arrays, deadline, abandons=begins)
        return self._read_rollout(header, deadline)

    def get_state(self, timeout_s: float, *, native: bool) -> SceneState:
        """The scene now."""
        self._looks += 1
        deadline = time.monotonic() + timeout_s
        header = self._ask(frames.GET_STATE, native, deadline)
        return self._read_state_reply(header, deadline)

    def set_state(self, state: SceneState, timeout_s: float) -> None:
        """Put the scene into `state`."""
        request = (state.layout.to_plain(), state.values, state.native)
        self.state = None
        self._value(frames.SET_STATE, request, timeout_s)

    def render(self, timeout_s: float) -> Any:
        """What the task's `render()` returns."""
        self._looks += 1
        self.state = None  # drawing may move what is drawn
        return self._value(frames.RENDER, None, timeout_s)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout_s: float) -> Any:
        """The value of an attribute or method that the server opens to clients."""
        self._looks += 1
        self.state = None
        return self._value(frames.CALL, (name, args, kwargs), timeout_s, where=f"the arguments of {name}")

    def close(self) -> None:
        """Give the simulator back and close both links; never raises."""
        if self.is_lost is None:
            try:
                frame = bytearray(frames.HEADER_SIZE)
                self._sequence += 1
                frames.finish_frame(frame, frames.CLOSE, 0, self._epoch, self._sequence, self._acknowledged, 0)
                self._stream.send(frame, time.monotonic() + 1.0)
            except RemoteEnvError as error:
                log.debug("the data connection was gone at close: %s", error)
        self._transport.close()
        self.control.close()

    def let_go(self) -> None:
        """In a forked child: free its copies of both links' descriptors; the links live on in the parent."""
        self._transport.close()
        self.control.close()

    # The exchange

    def _value(self, kind: int, request: Any, timeout_s: float, where: str = "request") -> Any:
        deadline = time.monotonic() + timeout_s
        return self._read_value(self._ask(kind, request, deadline, 0, where), deadline)

    def _ask(self, kind: int, request: Any, deadline: float, flags: int = 0, where: str = "request") -> frames.Header:
        body, arrays = codec.encode(request, where=where)
        return self._exchange(kind, flags, bytearray(frames.HEADER_SIZE) + body, arrays, deadline)

    def _exchange(
        self,
        kind: int,
        flags: int,
        frame: bytearray,
        payload: Sequence[memoryview],
        deadline: float,
        *,
        abandons: bool = False,
    ) -> frames.Header:
        """Send one request; the header of its reply, whose body and payload are still to be read."""
        if self.is_lost is not None:
            raise copy.copy(self.is_lost)  # each with a traceback of its own
        if self._unsettled is not None and not abandons:
            raise InputError(
                f"the call before this one ({frames.NAMES[self._unsettled_kind]}) was interrupted before its result "
                "came; call resume() to wait for it, or reset() to abandon it"
            )
        self._sequence += 1
        size = sum(map(len, payload)) if payload else 0
        frames.finish_frame(frame, kind, flags, self._epoch, self._sequence, self._acknowledged, size)
        self._send((frame, *payload), kind, deadline)
        return self._await(self._sequence, kind, deadline)

    def _send(self, buffers: Sequence[bytearray | memoryview], kind: int, deadline: float) -> None:
        try:
            self._transport.send_all(buffers, deadline)
            # Until its reply is read whole: a Ctrl-C may come between any two lines.
            self._unsettled, self._unsettled_kind = self._sequence, kind
        except ConnectionLost as error:
            raise self._lose(error) from error
        except BaseException as error:
            # Part of a frame may be out: the link cannot be used again.
            self._break(ConnectionLost(f"a request was cut short ({error!r})"))
            raise

    def _await(self, sequence: int, kind: int, deadline: float, shape: frames.Shape | None = None) -> frames.Header:
        """The header of the reply to a request; the one of `shape` when the reply is just of that, and all there."""
        stream = self._stream
        try:
            if shape is not None:
                got = stream.recv_shaped(shape, deadline)
                if got == sequence:
                    return shape.header
                if got > sequence:
                    raise ProtocolError(f"a reply to request {got} where {sequence} is due")
            header = stream.recv(deadline)
            while header.sequence != sequence:
                self._skip(header, sequence, deadline)
                header = stream.recv(deadline)
        except DeadlineExceeded as error:
            raise explain_delay(self.control, kind) from error
        except ConnectionLost as error:
            raise self._lose(error) from error
        except ProtocolError as error:
            self._break(error)
            raise
        except BaseException:
            if not self._stream.recover(sequence):
                self._break(ConnectionLost("a reply was cut short by an interrupt"))
            raise
        if header.type == frames.RESULT and header.epoch == self._epoch:
            return header
        if header.epoch == self._epoch and header.type == frames.ERROR:
            raise self._error(self._read_value(header, deadline))
        what = frames.NAMES.get(header.type, header.type)
        raise self._break(ProtocolError(f"expected RESULT of session {self._epoch}, got {what} of {header.epoch}"))

    def _skip(self, header: frames.Header, sequence: int, deadline: float) -> None:
        """Pass over the reply to a call that was abandoned."""
        if header.sequence > sequence:
            raise ProtocolError(f"a reply to request {header.sequence} where {sequence} is due")
        if header.payload_size:
            self._fill([memoryview(bytearray(header.payload_size))], header.payload_size, deadline)

    # Replies

    def _read_transition(self, header: frames.Header, deadline: float, *, is_step: bool) -> Transition:
        stream, flags, fixed = self._stream, header.flags, self._observation_layout
        body, at, end = stream.body, stream.body_start, stream.body_end
        observation: Any = None
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
        if flags & (frames.STATE | frames.TAIL):
            numbered, tail, more = self._read_rest(header, at, end, views)
            if isinstance(tail, dict):
                observation = tail.get("observation", observation)
                reward = tail.get("reward", reward)
                terminated = tail.get("terminated", terminated)
                truncated = tail.get("truncated", truncated)
                info = tail.get("info", info)
            self.state = self._state(numbered, tail)
            views = [*views, *more]
        if views or header.payload_size:
            self._fill(views, header.payload_size, deadline)
        self._settle()
        return observation, reward, terminated, truncated, info

    def _read_rest(
        self, header: frames.Header, at: int, end: int, views: Sequence[memoryview]
    ) -> tuple[tuple[int, Any] | None, Any, list[memoryview]]:
        """The state's layout number and vector if there is one, the msgpack value if there is one, and its views."""
        stream, numbered, tail = self._stream, None, None
        more: list[memoryview] = []
        if header.flags & frames.STATE:
            number, values, at = layout.read_state(stream.body, at, end)
            numbered = (number, values)
        if header.flags & frames.TAIL:
            left = header.payload_size - sum(map(len, views))
            if left < 0:
                raise self._break(ProtocolError("a payload is shorter than the arrays of its layout"))
            tail, more = codec.decode(bytes(stream.body[at:end]), left)
        return numbered, tail, more

    def _state(self, numbered: tuple[int, Any] | None, tail: Any) -> SceneState | None:
        if numbered is None:
            return None
        number, values = numbered
        if isinstance(tail, dict) and tail.get("layout") is not None:
            self._layouts[number] = SceneLayout.from_plain(tail["layout"])
        if number not in self._layouts:
            raise self._break(ProtocolError(f"a state of layout {number}, which was never announced"))
        native = tail.get("native") if isinstance(tail, dict) else None
        return SceneState(self._layouts[number], values, native)

    def _read_rollout(self, header: frames.Header, deadline: float) -> dict[str, Any]:
        value = self._read_value(header, deadline)
        try:
            reply = check_reply(value)
            if "state" in reply["rows"]:
                reply["rows"]["state"] = states = read_runs(reply["rows"]["state"], self._layouts)
                self.state = states[-1]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise self._break(ProtocolError(f"a reply to ROLLOUT that is none: {error!r}")) from error
        return reply

    def _read_state_reply(self, header: frames.Header, deadline: float) -> SceneState:
        numbered, tail, views = self._read_rest(header, self._stream.body_start, self._stream.body_end, [])
        self._fill(views, header.payload_size, deadline)
        state = self._state(numbered, tail)
        if state is None:
            raise self._break(ProtocolError("a reply to GET_STATE without a state"))
        self._settle()
        return state

    def _read_value(self, header: frames.Header, deadline: float) -> Any:
        value, views = codec.decode(self._stream.body_bytes(), header.payload_size)
        self._fill(views, header.payload_size, deadline)
        self._settle()
        return value

    def _settle(self) -> None:
        """Note that the reply to the last request has been read whole."""
        self._unsettled, self._acknowledged = None, self._sequence

    def _fill(self, views: Sequence[memoryview], size: int, deadline: float) -> None:
        if sum(map(len, views)) != size:
            raise self._break(ProtocolError(f"a payload of {size} bytes where {sum(map(len, views))} are due"))
        if not views:
            return
        try:
            self._stream.fill(views, deadline)
        except ConnectionLost as error:
            raise self._lose(error) from error
        except BaseException as error:
            self._break(ConnectionLost(f"a reply was cut short ({error!r})"))
            raise

    # What went wrong

    def _break(self, error: RemoteEnvError) -> RemoteEnvError:
        """Give the link up: what comes next on it could not be trusted."""
        self.is_lost = SessionLost(f"the session ended: {error}. reset() starts a new one")
        self._transport.close()
        return error

    def _lose(self, error: ConnectionLost) -> RemoteEnvError:
        """The error that says why the data connection ended."""
        status = self.control.why_ended()
        if status:
            tail = status.get("log_tail", "")
            why = status.get("why") or status.get("message")
            last = "\n".join(tail.splitlines()[-10:])
            self.is_lost = SessionLost(
                f"the simulator is gone: {why}; reset() starts a new one. Its last log lines:\n{last}",
                log_tail=tail,
                **describe_ending(status),
            )
        else:
            self.is_lost = SessionLost(f"the link to the simulator broke ({error}); reset() starts a new session")
        self._transport.close()
        return self.is_lost

    def _error(self, value: Any) -> RemoteEnvError:
        kind = _KINDS.get(value["kind"])
        if kind is not None:
            return kind(value["message"], remote_traceback=value["traceback"])
        raised = "" if value["type"] == "TaskError" else f"the task raised {value['type']} in "
        return TaskError(
            f"{raised}{value['during']}: {value['message']}",
            remote_type=value["type"],
            remote_traceback=value["traceback"],
        )
