"""What a simulator's loop does for each request of one environment."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from remote_env.errors import (
    InputError,
    NotRun,
    Unsupported,
)
from remote_env.protocol import frames, layout
from remote_env.protocol.chunks import ChunkOptions, split_actions
from remote_env.protocol.delivery import DeliveryPlan, Selection
from remote_env.protocol.image_stream import available_codecs
from remote_env.protocol.stacking import stack
from remote_env.protocol.state_stream import pack_rows
from remote_env.server.branches import Branching
from remote_env.server.chunks import ChunkRecord, pack_infos
from remote_env.server.replying import Replies
from remote_env.server.slices import runs
from remote_env.state import SceneLayout, SceneState

if TYPE_CHECKING:
    from remote_env.server.rollout import PolicyRunner

SCENE_DESCRIPTION = "scene_description"  # what every client may call: `Backend.describe_scene`
_STEP_RESULT_AT = frames.HEADER_SIZE + layout.TRANSITION_SIZE  # where a step's observation lies in its frame


class Requests(Replies):
    """Runs requests on the backend, each of which ends in a reply."""

    _rollouts: PolicyRunner | None
    _branching: Branching
    _observation_layout: layout.ValueLayout | None
    _allowed: frozenset[str]
    _backend_step: Callable[[Any], Any]
    _backend_reset: Callable[..., Any]
    _backend_restore: Callable[[SceneState], None]
    _fresh: bool
    _arrived: float

    @abc.abstractmethod
    def _deliver_as(self, plan: DeliveryPlan | None) -> None:
        """Send observations so from now on; None: all of them, as they are."""

    def _expect_episode(self, call: str) -> None:
        if self._fresh:
            raise InputError(f"this session has no episode yet; call reset() before {call}()")

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
            observation, *outcome, info = transition
            observation = self._delivering.bring(observation, self._sequence, is_key=ends)
            transition = (observation, *outcome, self._delivering.pick_info(info))
            self._note_times(began, stepped)
        self._send_transition(transition, flags)

    def _note_times(self, began: float, stepped: float) -> None:
        """Note how long the task and the coding of what it brought have taken, for the reply."""
        if self._is_timed:
            queued_s = began - self._arrived
            self.timing = (queued_s, stepped - began, time.monotonic() - stepped, self.backend.render_s)

    def _deliver(self, _flags: int, plan: Any) -> None:
        self._deliver_as(DeliveryPlan.from_plain(plan))
        self._send_value(frames.RESULT, self._sequence, {"codecs": list(available_codecs())})

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
        infos = record.infos
        if self._delivering is not None:
            infos = [self._delivering.pick_info(info) for info in infos]
        value["rows"], value["info"] = len(record.observations), pack_infos(infos, self._add_info)
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
        self._forget_images()
        self._send_value(frames.RESULT, self._sequence, None)

    def _answer_branching(self, name: str, _flags: int, request: Any) -> None:
        self._expect_episode("try_chunks() or fork" if name == "branch" else name)
        value = getattr(self._branching, name)(request)
        if name == "restore":
            self._forget_images()
        self._send_value(frames.RESULT, self._sequence, value, where=name)

    def _forget_images(self) -> None:
        """Have the next step bring its images: those of before show another scene than the one that was set."""
        if self._delivering is not None:
            self._delivering.forget()

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
        state = self._read_state()
        return SceneState(state.layout, state.values.copy())

    def _pack_row_states(self, states: list[Any]) -> list[Any]:
        """The states of several steps as a reply holds them."""
        return [self._pack_run(run) for run in runs(states)]

    def _pack_run(self, run: tuple[SceneLayout, Any]) -> tuple[int, Any, Any]:
        """The number of a layout, the layout until the client has it, and the vectors of states in a row."""
        number = self._layouts.number(run[0])
        announced = run[0].to_plain() if self._layouts.must_announce(number, self._sequence) else None
        return number, announced, run[1] if self._states is None else pack_rows(run[1])
