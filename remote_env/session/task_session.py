"""A client's session: how it opens, and the requests that one environment and a batch of them have in common."""

from __future__ import annotations

import abc
import copy
import time
from collections.abc import Callable
from typing import Any

from gymnasium import Space

from remote_env.errors import ConfigError, ConnectionLost, DeadlineExceeded, ProtocolError, StartError
from remote_env.protocol import codec, frames, layout
from remote_env.protocol.vector_step import Transition
from remote_env.session.control import ControlLink, Dial, shake_hands
from remote_env.session.exchange import Exchange
from remote_env.session.explain import explain_delay
from remote_env.spaces import space_from_plain
from remote_env.state import SceneLayout


class TaskSession(Exchange, abc.ABC):
    """A hold on one simulator, be it of one environment or of a batch. One request at a time.

    Args:
        dial: makes transports to the server.
        token: the server's.
        deadline: monotonic [s]; for the simulator to be ready.
        client: how the server may name us to others.
        digest: of the task that is wanted; None takes what is served.
        asked: that task's name, to show.
        num_envs: how many environments a batch is to have; None takes what is served.
        lease_s: the session is to end when it was not pinged for so long [s]; whoever opens it pings. None: never.
        on_open: given the control link as soon as the session is ours, while its simulator may still start.
        on_status: told of each status while the simulator starts.

    Attributes:
        observation_space: the task's.
        action_space: the task's.
        ready: what the far end said of the task: metadata, render_mode, spec, facts, callable_names; and policy, where
            one is beside it.
        control: the link to the supervisor.
        state: the scene, or the scenes, after the last reset or step, when that was asked to bring them.
        is_lost: why the session cannot go on, or None.
    """

    state: Any

    def __init__(
        self,
        dial: Dial,
        token: str,
        deadline: float,
        *,
        client: str = "",
        digest: str | None = None,
        asked: str = "",
        num_envs: int | None = None,
        lease_s: float | None = None,
        on_open: Callable[[ControlLink], None] | None = None,
        on_status: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._wanted = num_envs
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
        self._check_count(served.get("num_envs"))
        if digest is not None and served["digest"] != digest:
            raise ConfigError(
                f"that server serves env={served['task']!r}, and asked for was env={asked!r}, or it has other "
                "arguments, another simulator or another policy; leave env= out to take what it serves, or give "
                "another port= to start one"
            )

    def _open_data(self, dial: Dial, token: str, deadline: float) -> None:
        welcome = self.control.welcome
        transport, stream, _ = shake_hands(
            dial, token, "data", deadline, session=welcome["session"], secret=welcome["secret"]
        )
        self._begin_exchange(transport, stream)
        self.state = None
        self._layouts: dict[int, SceneLayout] = {}
        try:
            header = self._stream.recv(deadline)
            if header.type != frames.READY:
                raise ProtocolError(f"expected READY, got {frames.NAMES.get(header.type, header.type)}")
            self._epoch = header.epoch
            self.ready = self._read_value(header, deadline)
            self._check_count(self.ready.get("num_envs"))
            self._read_spaces(self.ready)
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

    def _read_spaces(self, ready: dict[str, Any]) -> None:
        self.observation_space: Space[Any] = space_from_plain(ready["observation_space"])
        self.action_space: Space[Any] = space_from_plain(ready["action_space"])
        self._action_layout = layout.compile_layout(self.action_space)
        self._observation_layout = layout.compile_layout(self.observation_space)

    @abc.abstractmethod
    def _check_count(self, num_envs: int | None) -> None:
        """Raise ConfigError when this session is not for what the server holds: one environment, or a batch."""

    # Requests

    @abc.abstractmethod
    def step(self, action: Any, timeout_s: float, *, want_state: bool = False) -> Transition:
        """Run one step.

        Raises:
            InputError: the action's shape or kind is not the task's, it is not finite or cannot cross, or an earlier
                call is unsettled; nothing was sent.
            TaskError: the task raised.
            DeadlineExceeded: no reply in time; the step may still run: `resume` settles it.
            SessionLost: the simulator is gone.
        """

    def _ask_step(self, action: Any, deadline: float, *, want_state: bool) -> frames.Header:
        """Send an action that was checked, in its layout if it fits that; the header of the reply."""
        flags = frames.WANT_STATE if want_state else 0
        fixed = self._action_layout
        if fixed is not None:
            frame = bytearray(frames.HEADER_SIZE + fixed.size)
            payload = fixed.write(action, frame, frames.HEADER_SIZE)
            if payload is not None:
                return self._exchange(frames.STEP, flags | frames.FIXED, frame, payload, deadline)
        return self._ask(frames.STEP, action, deadline, flags, "action")

    def reset(
        self, seed: Any, options: dict[str, Any] | None, timeout_s: float, *, want_state: bool = False
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
        return self._read_late(kind, header, deadline)

    def _read_late(self, kind: int, header: frames.Header, deadline: float) -> Transition | None:
        """Read a late reply: the transition that it brings, or None of a call whose result nobody can use any more."""
        if kind in (frames.STEP, frames.RESET):
            return self._read_transition(header, deadline, is_step=kind == frames.STEP)
        self._read_value(header, deadline)
        return None

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

    # Replies

    @abc.abstractmethod
    def _read_transition(self, header: frames.Header, deadline: float, *, is_step: bool) -> Transition:
        """The rest of a reply to RESET or STEP; without `is_step` reward and flags mean nothing."""

    def _find_layout(self, number: int, announced: Any) -> SceneLayout:
        """The layout of that number, which the same reply may announce."""
        if announced is not None:
            self._layouts[number] = SceneLayout.from_plain(announced)
        if number not in self._layouts:
            raise self._break(ProtocolError(f"a state of layout {number}, which was never announced"))
        return self._layouts[number]
