"""Running one policy for those whose turn it is, and what becomes of its failures."""

from __future__ import annotations

import copy
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray, vdot

from remote_env.errors import InputError, PolicyError
from remote_env.policy.policy import Chunk, ObservationBatch, Policy
from remote_env.policy.quick_check import is_finite
from remote_env.policy.server.histogram import BATCH_BOUNDS, LATENCY_BOUNDS_S, Histogram

FLOAT32 = np.dtype(np.float32)
MAX_TEXT, MAX_TRACEBACK = 4_000, 20_000  # characters that a model's error may have


class Job:
    """One request: rows to infer, or episodes to reset.

    Attributes:
        owner: the client's number.
        rows: B.
        observation: feature name -> (B, …); None for a reset.
        episodes: B names, or those to reset.
        chunk: (B, K, D) once it ran.
        error: what it ended with instead.
        leads: it is woken to lead the next turn, not because it is done.
        gate: held until it is woken; None while it never waited.
    """

    __slots__ = ("chunk", "episodes", "error", "gate", "leads", "observation", "owner", "rows", "started")

    def __init__(self, owner: int, observation: ObservationBatch | None, episodes: Sequence[str]) -> None:
        self.owner, self.observation, self.episodes, self.rows = owner, observation, episodes, len(episodes)
        self.chunk: Chunk | None = None
        self.error: Exception | None = None
        self.gate: threading.Lock | None = None
        self.leads = False
        self.started = time.perf_counter()


class Room(NamedTuple):
    """Where actions are to go.

    Attributes:
        actions: (1, K, D) float32.
        shape: of these.
        numbers: the same memory, one after the other.
        memory: likewise, its bytes.
    """

    actions: Chunk
    shape: tuple[int, ...]
    numbers: Chunk
    memory: memoryview

    @classmethod
    def of(cls, actions: Chunk) -> Room:
        """The room that these take, which lie there row by row."""
        return cls(actions, actions.shape, actions.reshape(-1), memoryview(actions.reshape(-1)).cast("B"))


class Runner:
    """One policy; one thread at a time uses it.

    Attributes:
        policy: what runs.
        metadata: its own.
        latencies: seconds from each request's coming to its answer.
        batches: rows of each inference.
        is_quiet: failures are not logged.

    Args:
        policy: see above.
        log: takes a line.
    """

    def __init__(self, policy: Policy, log: Callable[[str], None]) -> None:
        self.policy, self.metadata, self._log = policy, policy.metadata, log
        self._last_traceback = ""
        self.is_quiet = False
        self.clear_counts()

    def clear_counts(self) -> None:
        """Count from zero."""
        self.latencies, self.batches = Histogram(LATENCY_BOUNDS_S), Histogram(BATCH_BOUNDS)

    def reset(self, job: Job) -> None:
        """Have the policy forget the job's episodes."""
        try:
            self.policy.reset(job.episodes)
        except BaseException as error:  # noqa: BLE001  a model may raise anything
            _raise_interrupt(error)
            job.error = self._explain(error)

    def close(self, timeout_s: float) -> bool:
        """Close the policy; what it raises is logged. False when it takes longer, and goes on."""
        closing = threading.Thread(target=self._close, name="closing the policy", daemon=True)
        closing.start()
        closing.join(max(0.1, timeout_s))
        return not closing.is_alive()

    def _close(self) -> None:
        try:
            self.policy.close()
        except BaseException as error:  # noqa: BLE001  a model may raise anything
            self._explain(error)

    def run(self, turn: list[Job]) -> None:
        """Infer for all of these at once; each job has its chunk or its error afterwards."""
        try:
            self._infer(turn)
        except BaseException as error:  # noqa: BLE001  a model may raise anything, asyncio.CancelledError for one
            _raise_interrupt(error)
            if len(turn) > 1 and not self.metadata.has_memory:
                for job in turn:  # one client's poison must not hurt the others
                    self.run([job])
                return
            explained = self._explain(error)
            for job in turn:
                job.error = copy.copy(explained)
        now = time.perf_counter()
        for job in turn:
            self.latencies.add(now - job.started)

    def run_row(
        self, observation: ObservationBatch, episodes: Sequence[str], room: Room, started: float
    ) -> tuple[Chunk, float]:
        """`run` for one row alone, in as few calls as can be; raises what the job would hold as its error.

        Args:
            observation: feature name -> (1, …).
            episodes: one name.
            room: filled when the policy gives just as many actions.
            started: when the request came [monotonic s].

        Returns:
            The actions, `room.actions` itself if they fit in there, and seconds since `started`.
        """
        batches = self.batches
        batches.counts[0] += 1
        batches.total += 1
        try:
            chunk = self.policy.infer(observation, episode_ids=episodes)
            if type(chunk) is ndarray and chunk.dtype is FLOAT32 and chunk.shape == room.shape:
                room.memory[:] = chunk.tobytes()  # a copy, for the same reason as in `_call`
                chunk, numbers = room.actions, room.numbers
                if not isfinite(vdot(numbers, numbers)):  # as `is_finite`
                    self._check(chunk, 1)
            else:
                chunk = self._check(np.array(chunk, np.float32, order="C"), 1)
        except BaseException as error:  # noqa: BLE001  as in `run`
            _raise_interrupt(error)
            self.latencies.add(monotonic() - started)
            raise self._explain(error) from None
        seconds = monotonic() - started
        self.latencies.add(seconds)
        return chunk, seconds

    def _infer(self, turn: list[Job]) -> None:
        job = turn[0]
        if len(turn) == 1:
            self.batches.add(job.rows)
            job.chunk = self._checked(job)
            return
        whole = _join(turn)
        self.batches.add(whole.rows)
        chunk, start = self._checked(whole), 0
        for job in turn:
            job.chunk = chunk[start : start + job.rows].copy()
            start += job.rows

    def _checked(self, job: Job) -> Chunk:
        """The policy's chunk for these rows, once it is known to be one."""
        observation = job.observation or {}
        if job.rows > 1 and not self.metadata.batches:
            chunk = np.concatenate([self._call(*row) for row in _rows(observation, job.episodes)])
        else:
            chunk = self._call(observation, job.episodes)
        return self._check(chunk, job.rows)

    def _check(self, chunk: Chunk, rows: int) -> Chunk:
        size = self.metadata.action_size
        if chunk.ndim != 3 or chunk.shape[0] != rows or chunk.shape[2] != size or not chunk.shape[1]:
            raise PolicyError(f"the policy gave actions of shape {chunk.shape}, not ({rows}, K, {size})")
        if chunk.shape[1] > self.metadata.chunk_size:
            most = self.metadata.chunk_size
            raise PolicyError(f"the policy gave {chunk.shape[1]} actions at once; its metadata says chunk_size={most}")
        if not is_finite(chunk):
            raise PolicyError(
                "the policy gave actions that are not finite (NaN or infinity), and none of them is sent: look at its "
                "weights, normalize.json and the observation"
            )
        return chunk

    def _call(self, observation: ObservationBatch, episodes: Sequence[str]) -> Chunk:
        # A copy: a policy that gives the same array each time must not change what another client is being sent.
        return np.array(self.policy.infer(observation, episode_ids=episodes), np.float32, order="C")

    def _explain(self, error: BaseException) -> Exception:
        """The error for the client; the log gets the cause, and its traceback once."""
        if isinstance(error, InputError):
            return error
        trace = _shortened(getattr(error, "remote_traceback", "") or traceback.format_exc(), MAX_TRACEBACK)
        said = f"{type(error).__name__}: {_text(error)}"
        self._log_failure(f"the policy failed: {said}", trace)
        if isinstance(error, PolicyError):
            return PolicyError(_text(error), remote_traceback=trace)
        return PolicyError(f"the policy raised {said}{advise(error)}", remote_traceback=trace)

    def _log_failure(self, line: str, trace: str) -> None:
        if self.is_quiet:
            return
        self._log(line)
        if trace != self._last_traceback:
            self._last_traceback = trace
            self._log(trace.rstrip())


def _raise_interrupt(error: BaseException) -> None:
    """Go on with a Ctrl-C; only the main thread gets one, elsewhere it is the model's own."""
    if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error


def _shortened(text: str, most: int) -> str:
    """The text, without its middle when it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} […] {text[-most // 2 :]}"


def _text(error: BaseException) -> str:
    try:
        return _shortened(str(error), MAX_TEXT)
    except Exception as unprintable:  # noqa: BLE001  a foreign __str__ may raise anything
        return f"(its text cannot be had: {type(unprintable).__name__})"


def advise(error: BaseException) -> str:
    """What to do about an error of a model, where that is known."""
    if isinstance(error, MemoryError) or "out of memory" in _text(error).lower():
        return "; free memory (nvidia-smi shows who holds a GPU's), lower --max_batch, or choose another --device"
    return ""


def _join(jobs: Sequence[Job]) -> Job:
    """One request with the rows of all; texts are lists, everything else is an array."""
    observations = [job.observation or {} for job in jobs]
    joined: dict[str, Any] = {}
    for name in observations[0]:
        parts = [observation[name] for observation in observations]
        if isinstance(parts[0], np.ndarray):
            joined[name] = np.concatenate(parts)
        else:
            joined[name] = [text for part in parts for text in part]
    return Job(0, joined, [name for job in jobs for name in job.episodes])


def _rows(observation: ObservationBatch, episodes: Sequence[str]) -> Iterator[tuple[ObservationBatch, Sequence[str]]]:
    """Each row as a batch of one."""
    for row, episode in enumerate(episodes):
        yield {name: value[row : row + 1] for name, value in observation.items()}, [episode]
