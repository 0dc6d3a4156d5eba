"""The simulator's loop: read a request, run it on the backend, send the reply. The hot path of the far end."""

from __future__ import annotations

import functools
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from remote_env.errors import (
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
)
from remote_env.protocol import codec, frames, layout, machine
from remote_env.protocol.delivery import DeliveryPlan
from remote_env.protocol.ledger import REPLIES_LIMIT_BYTES, ReplyLedger
from remote_env.protocol.vector_step import VectorStep
from remote_env.server.backend import Backend
from remote_env.server.board import CALL_NUMBERS, Board
from remote_env.server.branches import Branching
from remote_env.server.delivering import Delivering
from remote_env.server.layout_numbers import LayoutNumbers
from remote_env.server.replies import check_parts, encodable, encode_reply
from remote_env.server.replying import SEND_TIMEOUT_S, LinkEnded
from remote_env.server.requests import SCENE_DESCRIPTION, Requests
from remote_env.spaces import space_to_plain
from remote_env.transport import SocketTransport

if TYPE_CHECKING:
    from remote_env.server.rollout import PolicyRunner

NEVER = float("inf")
_STEP = CALL_NUMBERS["step"]
# A client that sends one of these skips the replies that it lacks.
_ABANDONING = (frames.RESET, frames.ROLLOUT, frames.DELIVER)


class SimulatorLoop(Requests):
    """Serves one backend to one connection after another.

    Args:
        backend: made already.
        board: where to say what runs.
        facts: versions, for READY.
        allow_calls: names that clients may call besides the backend's own.
        rollouts: of the policy beside it, if there is one.
    """

    def __init__(
        self,
        backend: Backend,
        board: Board,
        facts: dict[str, Any],
        allow_calls: frozenset[str],
        rollouts: PolicyRunner | None = None,
    ) -> None:
        self.backend = backend
        self._rollouts = rollouts
        self._board = board
        self._facts = facts
        self._allowed = backend.callable_names | allow_calls | {SCENE_DESCRIPTION}
        self._description = self._describe()  # now, so that spaces that cannot cross fail the start
        acted_on = rollouts or backend  # a policy has to know what else is done to its task
        self._backend_step, self._backend_reset, self._backend_restore = acted_on.step, acted_on.reset, acted_on.restore
        self._action_layout = layout.compile_layout(backend.action_space)
        self._epoch, self._state = 0, machine.IDLE
        self._deliver_as(None)
        self._handlers: dict[int, tuple[int, Callable[..., None], int]] = {
            # what the board says, what runs, how many parts the request has (0: it is one value)
            frames.RESET: (CALL_NUMBERS["reset"], self._reset, 2),
            frames.STEP: (_STEP, self._step, 0),
            frames.GET_STATE: (CALL_NUMBERS["get_state"], self._get_state, 0),
            frames.SET_STATE: (CALL_NUMBERS["set_state"], self._set_state, 3),
            frames.RENDER: (CALL_NUMBERS["render"], self._render, 0),
            frames.CALL: (CALL_NUMBERS["call"], self._call, 3),
            frames.ROLLOUT: (CALL_NUMBERS["rollout"], self._rollout, 0),
            frames.STEP_MANY: (CALL_NUMBERS["step_many"], self._step_many, 2),
            frames.DELIVER: (CALL_NUMBERS["deliver"], self._deliver, 0),
        }
        went_back = None if rollouts is None else rollouts.went_back
        self._branching = Branching(backend, board, self._lose_episode, went_back, self._pick)
        for kind, name in ((frames.SNAPSHOT, "snapshot"), (frames.RESTORE, "restore"), (frames.BRANCH, "branch")):
            self._handlers[kind] = (CALL_NUMBERS[name], functools.partial(self._answer_branching, name), 0)

    def serve(self, sock: socket.socket, epoch: int, resume: int | None) -> None:
        """Answer a session's requests until this link of it ends.

        Args:
            sock: the link.
            epoch: the session's number; what is under way of it is kept until another number comes.
            resume: the last reply that the client has received; None when it begins.
        """
        self._transport = SocketTransport(sock)
        self._stream = frames.FrameStream(self._transport, clock=time.monotonic, stall_s=SEND_TIMEOUT_S)
        event = "cut"
        try:
            self._join(epoch, resume)
            while self._serve_one():
                pass
            event = "left"
            self._branching.forget_all()
        except (ConnectionLost, DeadlineExceeded, LinkEnded) as error:
            print(f"session {epoch}: the data connection ended ({error})", flush=True)
        except ProtocolError as error:
            print(f"session {epoch}: {error}; connection closed", file=sys.stderr, flush=True)
        finally:
            self._transport.close()
            self._state = machine.advance(machine.SIMULATOR, self._state, event)

    def _join(self, epoch: int, resume: int | None) -> None:
        """Begin a session, or go on with one where its last link ended."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._fresh = True  # a session's first request must be RESET
            self._layouts = LayoutNumbers()
            self._ledger = ReplyLedger()
            self._ended_at = 0
            self._branching.forget_all()
            self._deliver_as(None)
        if resume is None:
            if self._ledger.taken:
                raise ProtocolError("a session that has begun cannot begin again, only resume")
            self._state = machine.advance(machine.SIMULATOR, self._state, "begun")
            self._send_value(frames.READY, 0, self._description)
            return
        missed = self._ledger.resume(resume)
        self._state = machine.advance(machine.SIMULATOR, self._state, "resumed")
        taken = self._ledger.taken
        self._send_bytes((frames.pack_frame(frames.RESUMED, b"", epoch=epoch, sequence=taken, acknowledged=resume),))
        for message in missed:
            self._send_bytes(message.buffers)
        print(f"session {epoch}: resumed at request {taken}, {len(missed)} replies sent again", flush=True)

    def _deliver_as(self, plan: DeliveryPlan | None) -> None:
        """Send observations so from now on; None: all of them, as they are."""
        space, is_coded = self.backend.observation_space, False
        delivering = None if plan is None else Delivering(space, plan)
        if delivering is not None:
            space, is_coded = delivering.space, delivering.codes_images
        if self._rollouts is None:  # a policy beside the task may want what the client does not
            self.backend.want_observations(None if plan is None else plan.keys)
        self._delivering, self._is_timed = delivering, plan is not None and plan.timing
        self._states = None if delivering is None else delivering.states
        self._observation_layout = None if is_coded else layout.compile_layout(space)
        self._vector_step = self._make_vector_step() if delivering is None else None

    def _make_vector_step(self) -> VectorStep | None:
        action, observation = self._action_layout, self._observation_layout
        if action and action.vector:
            return VectorStep(action.vector, observation.vector if observation else None, self._epoch)
        return None

    def close(self) -> None:
        """Close the policy, if there is one, and the backend."""
        try:
            if self._rollouts is not None:
                self._rollouts.close()
        finally:
            self.backend.close()

    def _describe(self) -> dict[str, Any]:
        backend = self.backend
        return {
            "observation_space": space_to_plain(backend.observation_space),
            "action_space": space_to_plain(backend.action_space),
            "metadata": encodable(dict(backend.metadata)),
            "render_mode": backend.render_mode,
            "spec": encodable(dict(backend.spec)),
            "callable_names": sorted(self._allowed),
            "facts": self._facts,
            "ledger_bytes": REPLIES_LIMIT_BYTES,
            **({} if backend.step_timeout_s is None else {"step_timeout_s": backend.step_timeout_s}),
            **({} if self._rollouts is None else {"policy": encodable(self._rollouts.description)}),
        }

    def _serve_one(self) -> bool:
        stream, vector = self._stream, self._vector_step
        if vector is not None and not self._fresh:
            sequence = stream.recv_shaped(vector.step_shape, NEVER)
            if sequence:
                self._ledger.take(sequence, stream.acknowledged)
                if self._layouts.carriers:
                    self._layouts.acknowledge(stream.acknowledged)
                self._sequence = sequence
                board = self._board
                board.steps += 1
                board.received += vector.step_shape.size
                board.begin(_STEP)
                action = vector.read_step(stream.body)
                if vector.has_results:
                    self._answer(self._step_vector, vector, action)
                else:
                    self._answer(self._step, 0, action)
                return True
        header = stream.recv(NEVER)
        kind, arrived = header.type, time.monotonic()
        if header.epoch != self._epoch:
            raise ProtocolError(f"a frame of session {header.epoch} in session {self._epoch}")
        if kind == frames.CLOSE:
            return False
        known = self._handlers.get(kind)
        if known is None:
            raise ProtocolError(f"unknown request {frames.NAMES.get(kind, kind)}")
        call, handler, parts = known
        # What the request holds is read before anything runs: a bad frame ends the link, not the task.
        request = self._read_step(header) if kind == frames.STEP else self._read_value(header)
        arguments = check_parts(request, parts) if parts else (request,)
        self._ledger.take(header.sequence, header.acknowledged)
        self._sequence = header.sequence
        self._layouts.acknowledge(header.acknowledged)
        if header.acknowledged != header.sequence - 1 and kind in _ABANDONING:
            self._note_abandoned(header.acknowledged)
        self._board.steps += kind == frames.STEP
        self._board.resets += kind == frames.RESET
        self._board.received += frames.HEADER_SIZE + header.body_size + header.payload_size
        self._board.begin(call)
        if self._is_timed:
            self._arrived = arrived
        self._answer(handler, header.flags, *arguments)
        return True

    def _note_abandoned(self, read: int) -> None:
        """Build on no reply behind the number `read`: the client skips them unread."""
        self._layouts.withdraw_after(read)
        if self._delivering is not None:
            self._delivering.forget()

    def _answer(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Run what sends a reply; when it fails for a reason of the task's, the reply says so."""
        try:
            handler(*arguments)
        except LinkEnded:
            raise
        except Exception as error:  # noqa: BLE001  a task may raise anything; the client is told what
            if self._delivering is not None:
                self._delivering.forget()
            self._send_error(error)

    # Requests

    def _step_vector(self, vector: VectorStep, action: Any) -> None:
        """A step of the commonest kind, in as few calls as can be."""
        if self._ledger.stated < self._ended_at:
            self._refuse_to_run()
        transition = self._backend_step(action)
        _, _, terminated, truncated, info = transition
        if terminated or truncated:
            self._ended_at = self._sequence
        tail, arrays = encode_reply({"info": info}, where="info") if info else (b"", ())
        frame = None if arrays else vector.pack_result(transition, tail, self._sequence)
        if frame is None:
            self._send_transition(transition, 0)
            return
        self._ledger.lone = frame
        self._board.sent += len(frame)
        self._board.end()
        self._send_bytes((frame,))

    def _read_step(self, header: frames.Header) -> Any:
        if not header.flags & frames.FIXED:
            return self._read_value(header)
        if self._action_layout is None:
            raise ProtocolError("a fixed layout for an action space that has none")
        stream = self._stream
        action, views = self._action_layout.read(stream.body, stream.body_start, stream.body_end)
        self._fill(views, header.payload_size)
        return action

    def _read_value(self, header: frames.Header) -> Any:
        value, views = codec.decode(self._stream.body_bytes(), header.payload_size)
        self._fill(views, header.payload_size)
        return value

    def _fill(self, views: Sequence[memoryview], payload_size: int) -> None:
        if not views and not payload_size:
            return
        if sum(map(len, views)) != payload_size:
            raise ProtocolError(f"a payload of {payload_size} bytes where {sum(map(len, views))} are due")
        self._stream.fill(views, NEVER)
