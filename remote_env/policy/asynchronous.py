"""AsyncPolicy: act at every step while the next chunk is being inferred."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from remote_env.errors import ConfigError, InputError
from remote_env.policy.chunk_queue import (
    DEFAULT_AGGREGATE,
    DEFAULT_THRESHOLD,
    Action,
    Aggregate,
    ChunkQueue,
    QueuedAction,
)
from remote_env.policy.inference_thread import Answer, InferenceThread
from remote_env.policy.policy import ObservationBatch, Policy

Observed = ObservationBatch | Callable[[], ObservationBatch]

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_CLOSE_TIMEOUT_S = 5.0


class AsyncPolicy:
    """One robot's or environment's view of a policy that infers beside it.

    `select_action` returns a queued action at once. When the queue runs low, the observation of that step goes to the
    policy, in a thread, while the queued actions are applied; the answer's actions for steps that have passed are
    dropped. Only when nothing is queued does `select_action` wait: at an episode's first step, and when inference is
    slower than the queue lasts (starvation, which `report` counts).

    Each instance holds one episode at a time and is used from one thread. Several may share a policy that may be
    used from several threads.

    Args:
        policy: local or remote; it stays the caller's, who closes it after this.
        fps: how many actions are applied per second; default: the policy's own control rate.
        environment_dt: the same as seconds per action; give one of the two.
        actions_per_chunk: see `ChunkQueue`.
        chunk_size_threshold: see `ChunkQueue`.
        aggregate: see `ChunkQueue`.
        timeout_s: how long `select_action` waits for actions at most.

    Attributes:
        environment_dt: seconds per action; 0 when unknown. It only serves the report: nothing is paced here.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        fps: float | None = None,
        environment_dt: float | None = None,
        actions_per_chunk: int | None = None,
        chunk_size_threshold: float = DEFAULT_THRESHOLD,
        aggregate: str | Aggregate = DEFAULT_AGGREGATE,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.environment_dt = _seconds_per_action(fps, environment_dt, policy.metadata.control_rate_hz)
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s={timeout_s}: the wait for actions must last longer than nothing")
        self._queue = ChunkQueue(
            actions_per_chunk=actions_per_chunk, chunk_size_threshold=chunk_size_threshold, aggregate=aggregate
        )
        self._thread = InferenceThread(policy)
        self._timeout_s = timeout_s
        self._episode_id = ""
        self._is_closed = False
        self._measured = _Measured()
        self._asked_at: int | None = None  # the step
        self._last: tuple[int, QueuedAction] | None = None  # step and action before

    def reset(self, episode_id: str = "") -> None:
        """Begin another episode, at step 0.

        Queued actions and an answer under way are dropped. The policy is told, in the thread that uses it, before it
        sees the new episode; should that fail, the next `select_action` raises what it raised.

        Args:
            episode_id: names the episode to the policy.

        Raises:
            InputError: this is closed.
        """
        self._check_open()
        self._queue.clear()
        self._last = self._asked_at = None
        both = dict.fromkeys((self._episode_id, episode_id))
        self._thread.forget(tuple(both))
        self._episode_id = episode_id

    def select_action(self, observation: Observed, *, step: int) -> Action:
        """The action to apply now.

        Args:
            observation: what the policy takes, with B = 1; read while steps go on, so it must not be written to. Or a
                function that makes it, called only at the steps whose observation the policy is asked about.
            step: of the episode, from 0; grows from call to call. Actions of steps that are left out are dropped.

        Returns:
            (D,) float32, the caller's own.

        Raises:
            PolicyError: the policy raised, now or since the last call; `remote_traceback` holds where. The next call
                asks again.
            DeadlineExceeded: nothing was queued and no actions came within `timeout_s`; call again to go on waiting.
            InputError: the step has passed, or this is closed.
            RemoteEnvError: what else a remote policy raises, as it raised it.
        """
        self._check_open()
        answer = self._thread.take()
        if answer is not None:
            self._put(answer)
        found = self._queue.pop(step) or self._starve(observation, step)
        # A policy with memory must not see an observation twice, hence the last condition.
        if self._queue.wants_chunk and not self._thread.is_asking and self._asked_at != step:
            self._ask(observation, step)
        self._note(step, found)
        return found.action.copy()

    def close(self, timeout_s: float = DEFAULT_CLOSE_TIMEOUT_S) -> None:
        """End the thread; may be called again. The policy stays open.

        Raises:
            DeadlineExceeded: an inference has not ended within `timeout_s`; its thread ends with it, or with the
                process.
        """
        self._is_closed = True
        self._thread.close(timeout_s)

    def report(self) -> dict[str, Any]:
        """What was measured over all episodes so far, plain JSON.

        Returns:
            - `actions`, `inferences`: how many;
            - `latency_p50_s`, `latency_p99_s`, `latency_max_s`: of an inference;
            - `first_waits_s`: for the first actions of all episodes together;
            - `starved`, `starved_s`: how often the queue was empty later, and for how long altogether;
            - `stale_actions`: dropped because their step had passed;
            - `largest_jump_at_seams`, `largest_jump_inside`: the most that any number of an action changed from one
              step to the next, where another chunk takes over and within one;
            - `threshold_for_p99`: the smallest `chunk_size_threshold` that leaves enough actions for an inference of
              that latency; more than 1 when chunks are too short for it.

            None where nothing was measured.
        """
        measured = self._measured
        p50, p99, largest = _quantiles(measured.latencies_s)
        return {
            "actions": measured.actions,
            "inferences": len(measured.latencies_s),
            "latency_p50_s": p50,
            "latency_p99_s": p99,
            "latency_max_s": largest,
            "first_waits_s": measured.first_waits_s,
            "starved": measured.starved,
            "starved_s": measured.starved_s,
            "stale_actions": self._queue.stale_actions,
            "largest_jump_at_seams": measured.largest_jump_at_seams,
            "largest_jump_inside": measured.largest_jump_inside,
            "threshold_for_p99": self._threshold_for(p99),
        }

    def __enter__(self) -> AsyncPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError("this AsyncPolicy is closed; make another one")

    def _ask(self, observation: Observed, step: int) -> None:
        self._asked_at = step
        self._thread.ask(observation() if callable(observation) else observation, step, self._episode_id)

    def _put(self, answer: Answer) -> None:
        if answer.error is not None:
            raise answer.error
        assert answer.chunk is not None  # noqa: S101  # for the type checker: one of the two is there
        self._measured.latencies_s.append(answer.latency_s)
        self._queue.put(answer.chunk, answer.step)

    def _starve(self, observation: Observed, step: int) -> QueuedAction:
        """Wait for an action for `step`; a chunk that is all stale on arrival is followed by a question from here."""
        began_at = time.monotonic()
        deadline = began_at + self._timeout_s
        while True:
            if not self._thread.is_asking:
                self._ask(observation, step)
            self._put(self._thread.wait(max(0.0, deadline - time.monotonic())))
            found = self._queue.pop(step)
            if found is not None:
                self._measured.add_wait(time.monotonic() - began_at, is_first=self._last is None)
                return found

    def _note(self, step: int, found: QueuedAction) -> None:
        if self._last is not None and self._last[0] == step - 1:
            self._measured.add_jump(self._last[1], found)
        self._measured.actions += 1
        self._last = (step, found)

    def _threshold_for(self, latency_s: float | None) -> float | None:
        if latency_s is None or not self.environment_dt:
            return None
        return math.ceil(latency_s / self.environment_dt) / self._queue.largest_chunk


@dataclass
class _Measured:
    actions: int = 0
    latencies_s: list[float] = field(default_factory=list)
    first_waits_s: float = 0.0
    starved: int = 0
    starved_s: float = 0.0
    largest_jump_at_seams: float | None = None
    largest_jump_inside: float | None = None

    def add_wait(self, wait_s: float, *, is_first: bool) -> None:
        if is_first:
            self.first_waits_s += wait_s
            return
        self.starved += 1
        self.starved_s += wait_s

    def add_jump(self, before: QueuedAction, now: QueuedAction) -> None:
        jump = float(np.abs(now.action - before.action).max(initial=0.0))
        if now.chunk == before.chunk:
            self.largest_jump_inside = max(jump, self.largest_jump_inside or 0.0)
        else:
            self.largest_jump_at_seams = max(jump, self.largest_jump_at_seams or 0.0)


def _quantiles(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    if not values:
        return None, None, None
    p50, p99, largest = np.quantile(values, (0.5, 0.99, 1.0))
    return float(p50), float(p99), float(largest)


def _seconds_per_action(fps: float | None, environment_dt: float | None, control_rate_hz: float) -> float:
    if fps is not None and environment_dt is not None:
        raise ConfigError(f"fps={fps} and environment_dt={environment_dt} say the same thing; give one of them")
    if environment_dt is not None:
        return _positive("environment_dt", environment_dt)
    if fps is not None:
        return 1 / _positive("fps", fps)
    return 1 / control_rate_hz if control_rate_hz else 0.0


def _positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name}={value}: it must be a positive number")
    return value
