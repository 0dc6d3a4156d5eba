"""A client's session: how it opens, and the requests that one environment and a batch of them have in common."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from typing import Any

from gymnasium import Space

from remote_env.errors import (
    ConfigError,
    ConnectError,
    ConnectionLost,
    DamagedFrame,
    DeadlineExceeded,
    InputError,
    ProtocolError,
    RemoteEnvError,
    SessionLost,
    StartError,
)
from remote_env.protocol import codec, frames, layout, machine
from remote_env.protocol.delivery import EVERYTHING, DeliveryPlan
from remote_env.protocol.ledger import REPLIES_LIMIT_BYTES
from remote_env.protocol.vector_step import Transition
from remote_env.session.chunked import Chunked, last_transition
from remote_env.session.coder_choice import AUTO, CoderChoice
from remote_env.session.control import ControlLink, Dial
from remote_env.session.exchange import MALFORMED, MAX_DAMAGED, WINDOW, WINDOW_BYTES
from remote_env.session.explain import explain_delay
from remote_env.session.joining import DEFAULT_LINK_OPTIONS, Joining, LinkOptions
from remote_env.spaces import space_from_plain
from remote_env.state import SceneLayout


class TaskSession(Chunked, abc.ABC):
    """A hold on one simulator, be it of one environment or of a batch. One request at a time.

    Args:
        dial: makes transports to the server.
        token: the server's.
        deadline: monotonic [s]; for the simulator to be ready.
        client: how the server may name us to others.
        client_at: which process of which machine that is, for others of this machine to tell whether it lives.
        digest: of the task that is wanted; None takes what is served.
        asked: that task's name, to show.
        num_envs: how many environments a batch is to have; None takes what is served.
        lease_s: the session counts as cut off when it was not pinged for so long [s]; whoever opens it pings. None:
            never.
        link: what to do when a connection breaks.
        delivery: what observations are to bring.
        codecs: of all their images, instead of those that it names by path; "auto" chooses by what is measured.
        is_near: the server is on this machine, with nothing in between.
        on_open: given the control link as soon as the session is ours, while its simulator may still start.
        on_status: told of each status while the simulator starts.

    Attributes:
        observation_space: the task's.
        action_space: the task's.
        ready: what the far end said of the task: metadata, render_mode, spec, facts, callable_names; and policy, where
            one is beside it.
        control: the link to the supervisor.
        state: the scene, or the scenes, after the last reset or step, when that was asked to bring them.
        delivery: what observations bring.
        far_codecs: the image codecs of the far end, once `deliver` has heard of them.
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
        client_at: str = "",
        digest: str | None = None,
        asked: str = "",
        num_envs: int | None = None,
        lease_s: float | None = None,
        link: LinkOptions = DEFAULT_LINK_OPTIONS,
        delivery: DeliveryPlan = EVERYTHING,
        codecs: str | None = None,
        is_near: bool = False,
        on_open: Callable[[ControlLink], None] | None = None,
        on_status: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._wanted = num_envs
        resume_s = link.keep_s if link.resume else 0.0
        self.control = control = ControlLink(
            dial,
            token,
            deadline,
            session="new",
            client=client,
            client_at=client_at,
            lease_s=lease_s,
            resume_s=resume_s,
        )
        try:
            self._check_task(digest, asked)
            if on_open is not None:
                on_open(control)
            self._begin_exchange(Joining(dial, token, control, link), link)
            self._open(deadline, on_status)
        except BaseException:
            control.close()
            raise
        try:
            if codecs is not None or delivery != EVERYTHING:
                self.deliver(self._with_codecs(delivery, codecs), deadline - time.monotonic())
            self._tells_times = delivery.timing
            if codecs == AUTO:
                self._choice = CoderChoice(self.observation_space, self.far_codecs, is_near=is_near)
                self._bring(self.observation_space)
        except BaseException:
            self.close()
            raise

    def _check_task(self, digest: str | None, asked: str) -> None:
        served = self.control.welcome
        self._check_count(served.get("num_envs"))
        if digest is not None and served.get("digest") != digest:
            raise ConfigError(
                f"that server serves env={served.get('task')!r}, and asked for was env={asked!r}, or it has other "
                "arguments, another simulator or another policy; leave env= out to take what it serves, or give "
                "another port= to start one"
            )

    def _open(self, deadline: float, on_status: Callable[[dict[str, Any]], None] | None) -> None:
        """Wait for the simulator and join it, on other connections when the first ones break."""
        damaged = 0
        while True:
            if not self._is_ready(deadline, on_status):
                continue
            try:
                self._open_data(deadline)
                return
            except (ConnectionLost, ConnectError, DamagedFrame) as error:
                damaged += isinstance(error, DamagedFrame)
                is_refused = isinstance(error, ConnectError) and not _is_cut(error)
                is_known = isinstance(error, ConnectionLost)  # why is for `_hold_on` to say
                if is_refused or damaged > MAX_DAMAGED or not (is_known or self._options.resume):
                    raise
                # Whose every attempt ends at once gets no new time with each.
                self._hold_on(error, min(deadline, self._joining.begin(error, 0)))
            except DeadlineExceeded as error:
                raise explain_delay(self.control, frames.READY) from error

    def _is_ready(self, deadline: float, on_status: Callable[[dict[str, Any]], None] | None) -> bool:
        """Wait until the simulator is ready; False when the control link had to be made anew meanwhile."""
        try:
            self.control.wait_ready(deadline, on_status)
        except ConnectionLost as error:
            self._wait_on(error, deadline)
            return False
        except DeadlineExceeded as error:
            if error.phase or not self._options.resume or time.monotonic() >= deadline:
                raise
            self._wait_on(error, deadline)  # the supervisor answers at once: its link has fallen silent
            return False
        return True

    def _wait_on(self, why: RemoteEnvError, deadline: float) -> None:
        """Have the control connection again; a simulator may take minutes to start, so each cut has its own time."""
        self._joining.begin(why, 0)
        self._hold_on(why, min(deadline, time.monotonic() + self._options.reconnect_timeout_s))

    def _hold_on(self, why: RemoteEnvError, until: float) -> None:
        """Have the control connection again, or tell why the session cannot begin."""
        try:
            if not self._options.resume:
                raise self._joining.explain_loss(why)
            self._joining.reconnect(lambda _by: None, until)
        except SessionLost as error:
            tail = error.log_tail
            raise StartError(f"the session could not begin: {error}\n{tail}", log_tail=tail) from error

    def _open_data(self, deadline: float) -> None:
        transport, stream = self._joining.open_data(None, deadline)
        self.state = None
        self._layouts: dict[int, SceneLayout] = {}
        try:
            header = stream.recv(deadline)
            if header.type != frames.READY:
                raise ProtocolError(f"expected READY, got {frames.NAMES.get(header.type, header.type)}")
            self._epoch = header.epoch
            self.ready, views = codec.decode(stream.body_bytes(), header.payload_size)
            stream.fill(views, deadline)
            self._check_count(self.ready.get("num_envs"))
            self._read_spaces(self.ready)
            self._ledger_bytes = int(self.ready.get("ledger_bytes", REPLIES_LIMIT_BYTES))
        except BaseException as error:
            transport.close()
            if isinstance(error, MALFORMED) and not isinstance(error, RemoteEnvError):
                raise ProtocolError(f"a READY that holds something else than is due: {error!r:.300}") from error
            raise
        self._use(transport, stream)
        self._joining.resumed(0)

    def _read_spaces(self, ready: dict[str, Any]) -> None:
        self.observation_space: Space[Any] = space_from_plain(ready["observation_space"])
        self.action_space: Space[Any] = space_from_plain(ready["action_space"])
        self._action_layout = layout.compile_layout(self.action_space)
        self.delivery = EVERYTHING
        self._bring(self.observation_space)

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

    def _ask_step(self, action: Any, timeout_s: float, *, want_state: bool) -> frames.Header:
        """Send an action that was checked; the header of the reply."""
        self._check_usable()
        if self._requests.pending:
            raise self._unsettled()
        self._adapt(timeout_s)
        self._deadline = time.monotonic() + timeout_s
        return self._await(self._send_step(action, want_state=want_state), frames.STEP)

    def _send_step(self, action: Any, *, want_state: bool) -> int:
        """Send an action in its layout, if it fits that; the number of the request."""
        flags = frames.WANT_STATE if want_state else 0
        fixed = self._action_layout
        if fixed is not None:
            frame = bytearray(frames.HEADER_SIZE + fixed.size)
            payload = fixed.write(action, frame, frames.HEADER_SIZE)
            if payload is not None:
                return self._send(frames.STEP, flags | frames.FIXED, frame, payload)
        body, arrays = codec.encode(action, where="action")
        return self._send(frames.STEP, flags, bytearray(frames.HEADER_SIZE) + body, arrays)

    def reset(
        self, seed: Any, options: dict[str, Any] | None, timeout_s: float, *, want_state: bool = False
    ) -> Transition:
        """Start an episode; also abandons a call that is unsettled."""
        flags = frames.WANT_STATE if want_state else 0
        body, arrays = codec.encode((seed, options), where="(seed, options)")  # before anything is abandoned
        self.state = None
        self._deadline = time.monotonic() + timeout_s
        frame = bytearray(frames.HEADER_SIZE) + body
        header = self._exchange(frames.RESET, flags, frame, arrays, abandons=True)
        return self._read_transition(header, is_step=False)

    def resume(self, timeout_s: float) -> Transition | None:
        """Wait for the call that was interrupted, and return its transition; None when nothing is under way.

        Of several steps that are under way it is the first.

        Raises:
            SessionLost: the simulator is gone.
        """
        self._check_usable()
        if not self._requests.pending:
            return None
        return self._take_next(timeout_s)

    def _take_next(self, timeout_s: float) -> Transition | None:
        """The result of the first request that is under way."""
        self._deadline = time.monotonic() + timeout_s
        self._leave_interrupted_link()
        first = self._requests.pending[0]
        self._in_call = True
        return self._read_late(first.kind, self._await(first.sequence, first.kind))

    # Steps ahead

    def step_async(self, action: Any, timeout_s: float, *, want_state: bool = False) -> None:
        """Send a step without waiting for its result; `step_wait` takes the results in order.

        A step behind one that ends the episode, or fails, is not run: `step_wait` raises `NotRun` for it.

        Args:
            action: as for `step`.
            timeout_s: for the connection to take it [s].
            want_state: as for `step`.

        Raises:
            InputError: the action is not the task's, or as many steps are under way as may be; nothing was sent.
        """
        self._check_usable()
        self._check_action(action)
        pending = self._requests.pending
        if pending and pending[-1].kind != frames.STEP:
            raise self._unsettled()
        if len(pending) >= self.window:
            raise InputError(f"{len(pending)} steps are under way, and no more may be; take one with step_wait()")
        self._adapt(timeout_s)
        self._deadline = time.monotonic() + timeout_s
        self._sent_ahead = self._send_step(action, want_state=want_state)
        self._requests.own(len(pending) - 1)
        self._in_call = False

    def step_wait(self, timeout_s: float) -> Transition:
        """The result of the first step that is under way.

        Raises:
            InputError: none is.
            NotRun: it stood behind a step that ended the episode, or failed.
            And as `step`.
        """
        self._check_usable()
        pending = self._requests.pending
        if not pending or pending[0].kind != frames.STEP:
            raise self._unsettled() if pending else InputError("no step is under way; call step_async() first")
        transition = self._take_next(timeout_s)
        assert transition is not None  # noqa: S101  it is a step's
        return transition

    def step_ready(self) -> bool:
        """Whether the result of the first step that is under way has begun to come, or its connection has ended."""
        is_joined = self._link == machine.JOINED and bool(self._requests.pending)
        return is_joined and (bool(self._stream.unread) or self._transport.has_bytes())

    @property
    def window(self) -> int:
        """How many steps may be under way at once: so many that what is kept of them at both ends is bounded."""
        largest_request = max((message.size for message in self._requests.pending), default=1)
        fit = min(self._ledger_bytes // (2 * max(self._largest_reply, 1)), WINDOW_BYTES // largest_request)
        return max(1, min(WINDOW, fit))

    def _read_late(self, kind: int, header: frames.Header) -> Transition | None:
        """Read a late reply: the transition that it brings, or None of a call whose result nobody can use any more.

        Of several steps in one request it is the last.
        """
        if kind == frames.STEP_MANY:
            return last_transition(self._read_chunk(header))
        if kind in (frames.STEP, frames.RESET):
            return self._read_transition(header, is_step=kind == frames.STEP)
        self._read_value(header)
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

    def _read_transition(self, header: frames.Header, *, is_step: bool) -> Transition:
        """The rest of a reply to RESET or STEP; without `is_step` reward and flags mean nothing."""
        try:
            return self._unpack_transition(header, is_step=is_step)
        except MALFORMED as error:
            raise self._malformed(error) from error

    @abc.abstractmethod
    def _unpack_transition(self, header: frames.Header, *, is_step: bool) -> Transition:
        """As `_read_transition`; raises what it likes of `MALFORMED` when the reply is none."""

    def _find_layout(self, number: int, announced: Any) -> SceneLayout:
        """The layout of that number, which the same reply may announce."""
        if announced is not None:
            self._layouts[number] = SceneLayout.from_plain(announced)
        if number not in self._layouts:
            raise self._break(ProtocolError(f"a state of layout {number}, which was never announced"))
        return self._layouts[number]


def _is_cut(error: ConnectError) -> bool:
    """Whether a connection broke while it was made; the server has not refused it, and is not known to be gone."""
    cause = error.__cause__
    return isinstance(cause, (ConnectionLost, DeadlineExceeded, OSError)) and not error.nothing_listens
