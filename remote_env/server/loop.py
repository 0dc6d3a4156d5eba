"""The simulator's loop: read a request, run it on the backend, send the reply. The hot path of the far end."""

from __future__ import annotations

import functools
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from remote_env.errors import (
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    NotRun,
    ProtocolError,
    Unsupported,
)
from remote_env.protocol import codec, frames, layout, machine
from remote_env.protocol.chunks import ChunkOptions, split_actions
from remote_env.protocol.delivery import DeliveryPlan, Selection
from remote_env.protocol.ledger import REPLIES_LIMIT_BYTES, ReplyLedger
from remote_env.protocol.stacking import stack
from remote_env.protocol.state_stream import pack_rows
from remote_env.protocol.vector_step import VectorStep
from remote_env.server.backend import Backend
from remote_env.server.board import CALL_NUMBERS, Board
from remote_env.server.branches import Branching
from remote_env.server.chunks import ChunkRecord, pack_infos
from remote_env.server.delivering import Delivering
from remote_env.server.layout_numbers import LayoutNumbers
from remote_env.server.replies import check_parts, encodable, encode_reply
from remote_env.server.replying import SEND_TIMEOUT_S, LinkEnded, Replies
from remote_env.server.slices import runs
from remote_env.spaces import space_to_plain
from remote_env.state import SceneLayout, SceneState
from remote_env.transport import SocketTransport

if TYPE_CHECKING:
    from remote_env.server.rollout import PolicyRunner

NEVER = float("inf")
SCENE_DESCRIPTION = "scene_description"  # what every client may call: `Backend.describe_scene`
_STEP = CALL_NUMBERS["step"]
_STEP_RESULT_AT = frames.HEADER_SIZE + layout.TRANSITION_SIZE  # where a step's observation lies in its frame


class SimulatorLoop(Replies):
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
        is_coded = delivering is not None and delivering.codes_images
        self._observation_layout = (
            None if is_coded else layout.compile_layout(delivering.space if delivering else space)
        )
        self._vector_step = self._make_vector_step() if delivering is None else None

    def _make_vector_step(self) -> VectorStep | None:
        action, observation = self._action_layout, self._observation_layout
        if action and action.vector and observation and observation.vector:
            return VectorStep(action.vector, observation.vector, self._epoch)
        return None

    def _expect_episode(self, call: str) -> None:
        if self._fresh:
            raise InputError(f"this session has no episode yet; call reset() before {call}()")

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
                self._answer(self._step_vector, vector, vector.read_step(stream.body))
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
        self._board.steps += kind == frames.STEP
        self._board.resets += kind == frames.RESET
        self._board.received += frames.HEADER_SIZE + header.body_size + header.payload_size
        self._board.begin(call)
        if self._is_timed:
            self._arrived = arrived
        self._answer(handler, header.flags, *arguments)
        return True

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

    def _step(self, flags: int, action: Any) -> None:
        self._expect_episode("step")
        if self._ledger.stated < self._ended_at:
            self._refuse_to_run()
        began = time.monotonic()
        transition = self._backend_step(action)
        ends = self._ends_episode(transition)
        if ends:
            self._ended_at = self._sequence
        if self._delivering is not None:
            stepped = time.monotonic()
            transition = (self._delivering.bring(transition[0], self._sequence, is_key=ends), *transition[1:])
            self._note_times(began, stepped)
        self._send_transition(transition, flags)

    def _note_times(self, began: float, stepped: float) -> None:
        """Note how long the task and the coding of what it brought have taken, for the reply."""
        if self._is_timed:
            queued_s = began - self._arrived
            self.timing = (queued_s, stepped - began, time.monotonic() - stepped, self.backend.render_s)

    def _deliver(self, _flags: int, plan: Any) -> None:
        self._deliver_as(DeliveryPlan.from_plain(plan))
        codecs = [] if self._delivering is None else self._delivering.codecs
        self._send_value(frames.RESULT, self._sequence, {"codecs": codecs})

    def _step_many(self, flags: int, actions: Any, asked: Any) -> None:
        self._expect_episode("step_many")
        if self._ledger.stated < self._ended_at:
            self._refuse_to_run()
        options, wants_state = ChunkOptions.from_plain(asked), bool(flags & frames.WANT_STATE)
        record = ChunkRecord(options, self._read_row_state if wants_state else None)
        pick = self._make_pick(options.keys)
        failed, ends = None, False
        first = time.monotonic()
        for number, action in enumerate(split_actions(actions)):
            began = time.monotonic()
            try:
                transition = self._backend_step(action)
            except Exception as error:
                if not number:
                    raise
                failed = self._describe_error(error)
                break
            self._board.count_step(time.monotonic() - began)
            record.add(transition, transition[0] if pick is None else pick(transition[0]))
            ends = self._ends_episode(transition)
            if ends:
                self._ended_at = self._sequence
                if options.stop:
                    break
        stepped = time.monotonic()
        value = record.finish()
        value["observation"] = self._bring_rows(record.observations, ends=ends)
        self._note_times(first, stepped)
        if self._is_timed:
            value["timing"] = self.timing
        value["rows"], value["info"] = len(record.observations), pack_infos(record.infos, self._add_info)
        if wants_state:
            value["states"] = self._pack_row_states(record.states)
        if failed is not None:
            value["error"] = failed
        self._send_value(frames.RESULT, self._sequence, value, where="step_many")

    def _make_pick(self, keys: Sequence[str] | None) -> Callable[[Any], Any] | None:
        """What picks of a task's observation what one request wants of it; None for all."""
        delivering = self._delivering
        if keys is None:
            return None if delivering is None else delivering.pick
        if delivering is None:
            return Selection(self.backend.observation_space, keys)
        select = Selection(delivering.space, keys)
        return lambda observation: select(delivering.pick(observation))

    def _bring_rows(self, observations: Sequence[Any], *, ends: bool) -> Any:
        if self._delivering is None:
            return stack(observations)
        return self._delivering.bring_rows(observations, self._sequence, ends=ends)

    def _ends_episode(self, transition: tuple[Any, Any, Any, Any, dict[str, Any]]) -> bool:
        return bool(transition[2] or transition[3])

    def _refuse_to_run(self) -> NoReturn:
        raise NotRun(
            f"this step was sent before the end of the one with the number {self._ended_at} could be known, which "
            "ended the episode or failed; it was not run"
        )

    def _send_transition(self, transition: tuple[Any, Any, Any, Any, dict[str, Any]], flags: int) -> None:
        observation, reward, terminated, truncated, info = transition
        fixed, frame, payload = self._observation_layout, None, None
        if fixed is not None:
            frame = bytearray(_STEP_RESULT_AT + fixed.size)
            if layout.write_transition(frame, frames.HEADER_SIZE, reward, terminated, truncated):
                payload = fixed.write(observation, frame, _STEP_RESULT_AT)
        rest: dict[str, Any] = {}
        if payload is None:
            rest = {
                "observation": observation,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
            }
        self._send_result(frame, payload, rest, info, flags, is_step=True)

    def _reset(self, flags: int, seed: Any, options: Any) -> None:
        began = time.monotonic()
        observation, info = self._backend_reset(seed, options)
        self._fresh = False
        if self._delivering is not None:
            stepped = time.monotonic()
            observation = self._delivering.bring(observation, self._sequence, is_key=True)
            self._note_times(began, stepped)
        fixed, frame, payload = self._observation_layout, None, None
        if fixed is not None:
            frame = bytearray(frames.HEADER_SIZE + fixed.size)
            payload = fixed.write(observation, frame, frames.HEADER_SIZE)
        self._send_result(
            frame, payload, {} if payload is not None else {"observation": observation}, info, flags, is_step=False
        )

    def _get_state(self, _flags: int, native: Any) -> None:
        self._expect_episode("get_state")  # what is there may be another session's
        state = self.backend.state(native=bool(native))
        rest: dict[str, Any] = {"native": state.native}
        start = self._pack_state(state, rest)
        self._send_value(frames.RESULT, self._sequence, rest, flags=frames.STATE, start=start)

    def _set_state(self, _flags: int, plain: Any, values: Any, native: Any) -> None:
        self._expect_episode("set_state")
        self._backend_restore(SceneState(SceneLayout.from_plain(plain), values, native))
        self._send_value(frames.RESULT, self._sequence, None)

    def _answer_branching(self, name: str, _flags: int, request: Any) -> None:
        self._expect_episode(name)
        self._send_value(frames.RESULT, self._sequence, getattr(self._branching, name)(request), where=name)

    def _pick(self, observation: Any) -> Any:
        return observation if self._delivering is None else self._delivering.pick(observation)

    def _lose_episode(self) -> None:
        self._fresh = True

    def _render(self, _flags: int, _request: Any) -> None:
        self._expect_episode("render")
        self._send_value(frames.RESULT, self._sequence, self.backend.render(), where="frame")

    def _call(self, _flags: int, name: Any, args: Any, kwargs: Any) -> None:
        self._check_open(name)
        if not isinstance(args, tuple) or not isinstance(kwargs, dict):
            raise InputError(f"the arguments of {name} are a tuple and a dict; got {type(args)} and {type(kwargs)}")
        described = name == SCENE_DESCRIPTION
        value = self.backend.describe_scene().to_plain() if described else self.backend.call(name, args, kwargs)
        self._send_value(frames.RESULT, self._sequence, value, where=name)

    def _check_open(self, name: Any) -> None:
        if not isinstance(name, str) or name not in self._allowed:
            raise InputError(
                f"{name!r} is not open to clients; open: {sorted(self._allowed)}. A task opens more by listing them in "
                "its remote_calls attribute, and whoever starts the server by allow_calls="
            )

    def _rollout(self, _flags: int, request: Any) -> None:
        began, rollouts = time.monotonic(), self._rollouts
        if rollouts is None:
            raise Unsupported(
                "this server has no policy; start one with RemoteEnv(policy=…) or task_server.py --policy"
            )
        asked, first = rollouts.parse(request), None
        if asked.begin is None:
            self._expect_episode("step_policy")
        else:
            self._board.resets += 1
            first = self._backend_reset(*asked.begin)
            self._fresh = False
        value = rollouts.run(asked, first, began)
        if "state" in value["rows"]:
            value["rows"]["state"] = self._pack_row_states(value["rows"]["state"])
        if self._delivering is not None and "observation" in value["rows"]:
            value["rows"]["observation"] = self._delivering.pick_stacked(value["rows"]["observation"])
        self._send_value(frames.RESULT, self._sequence, value, where="rollout")

    def _read_row_state(self) -> Any:
        """The scene now, to be kept beside those of other steps."""
        state = self.backend.state(native=False)
        return SceneState(state.layout, state.values.copy())

    def _pack_row_states(self, states: list[Any]) -> list[Any]:
        """The states of several steps as a reply holds them."""
        return [self._pack_run(run) for run in runs(states)]

    def _pack_run(self, run: tuple[SceneLayout, Any]) -> tuple[int, Any, Any]:
        """The number of a layout, the layout until the client has it, and the vectors of states in a row."""
        number = self._layouts.number(run[0])
        announced = run[0].to_plain() if self._layouts.must_announce(number, self._sequence) else None
        return number, announced, run[1] if self._states is None else pack_rows(run[1])
