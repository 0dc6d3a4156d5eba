"""One thread that runs a policy's inferences, so that whoever acts need not wait for them."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass

from remote_env.errors import DeadlineExceeded, PolicyError, RemoteEnvError
from remote_env.policy.policy import Chunk, ObservationBatch, Policy


@dataclass(frozen=True)
class Answer:
    """What one inference gave.

    Attributes:
        step: of the observation that was asked about.
        chunk: (K, D) float32, or None after an error.
        error: to be raised in the caller's thread, or None.
        latency_s: how long the inference took, by a monotonic clock [s].
    """

    step: int
    chunk: Chunk | None
    error: RemoteEnvError | None
    latency_s: float


@dataclass(frozen=True)
class _Ask:
    observation: ObservationBatch
    step: int
    episode_id: str


@dataclass(frozen=True)
class _Forget:
    episode_ids: tuple[str, ...]


class InferenceThread:
    """Asks a policy in a thread of its own; one question at a time, resets in between, in order.

    The policy is only ever used from this one thread. It is started with the first question, and a daemon, so that an
    inference that hangs does not keep the process alive.

    Args:
        policy: stays the caller's, who closes it after this thread.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._changed = threading.Condition()
        self._jobs: deque[_Ask | _Forget] = deque()
        self._answer: Answer | None = None
        self._asked: _Ask | None = None  # whose answer is still wanted
        self._began_at: float | None = None  # the inference that runs now
        self._failed_reset: RemoteEnvError | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def is_asking(self) -> bool:
        """Whether a question waits for its answer."""
        return self._asked is not None

    def ask(self, observation: ObservationBatch, step: int, episode_id: str) -> None:
        """Begin an inference; `take` or `wait` bring its answer, before which nothing else may be asked.

        Args:
            observation: of one row; read until the answer is there, so it must not be written to.
            step: of the episode, comes back with the answer.
            episode_id: that the observation belongs to.
        """
        question = _Ask(observation, step, episode_id)
        with self._changed:
            self._asked, self._answer = question, None
            self._enqueue(question)

    def forget(self, episode_ids: tuple[str, ...]) -> None:
        """Drop the question under way with its answer, then have the policy forget these episodes."""
        with self._changed:
            self._asked, self._answer = None, None
            kept = [job for job in self._jobs if isinstance(job, _Forget)]
            self._jobs = deque(kept)
            self._enqueue(_Forget(episode_ids))

    def take(self) -> Answer | None:
        """The answer if it is there; never waits."""
        with self._changed:
            return self._take()

    def wait(self, timeout_s: float) -> Answer:
        """The answer to what was asked.

        Raises:
            DeadlineExceeded: there was none within `timeout_s`; the inference may still run, and its answer come later.
        """
        with self._changed:
            if self._changed.wait_for(lambda: self._answer is not None, timeout_s):
                answer = self._take()
                assert answer is not None  # noqa: S101  # for the type checker
                return answer
            raise DeadlineExceeded(f"no actions came within {timeout_s:.1f} s; {self._doing()}")

    def close(self, timeout_s: float) -> None:
        """End the thread; calling it again waits again.

        Raises:
            DeadlineExceeded: an inference still runs after `timeout_s`. Its thread ends when the inference does:
                closing a remote policy ends it.
        """
        with self._changed:
            self._closing = True
            self._asked, self._answer = None, None
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise DeadlineExceeded(
                f"{self._doing()}; its thread was not over within {timeout_s:.1f} s of being told to end. It ends with "
                "the inference: close the policy, or end the process, for which the thread is no hindrance"
            )

    def _enqueue(self, job: _Ask | _Forget) -> None:
        self._jobs.append(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="policy inference", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _take(self) -> Answer | None:
        answer, self._answer = self._answer, None
        if answer is not None:
            self._asked = None
        return answer

    def _doing(self) -> str:
        if self._began_at is None:
            return "no inference runs"
        return f"an inference of {self._policy.metadata.name} has run for {time.monotonic() - self._began_at:.1f} s"

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if self._closing:
                    return
                job = self._jobs.popleft()
                self._began_at = time.monotonic()
            if isinstance(job, _Forget):
                self._reset(job)
            else:
                self._deliver(job, self._infer(job))
            self._began_at = None

    def _reset(self, job: _Forget) -> None:
        try:
            self._policy.reset(job.episode_ids)
        except BaseException as error:  # noqa: BLE001  # it answers the next question, in the caller's thread
            self._failed_reset = _for_caller(error)

    def _infer(self, job: _Ask) -> Answer:
        began_at, chunk = time.monotonic(), None
        # A policy that still remembers another episode is not asked.
        error, self._failed_reset = self._failed_reset, None
        if error is None:
            try:
                chunk = _only_row(self._policy.infer(job.observation, episode_ids=[job.episode_id]))
            except BaseException as raised:  # noqa: BLE001  # it is raised in the caller's thread
                error = _for_caller(raised)
        return Answer(job.step, chunk, error, time.monotonic() - began_at)

    def _deliver(self, job: _Ask, answer: Answer) -> None:
        with self._changed:
            if job is self._asked:  # else nobody wants it any more
                self._answer = answer
                self._changed.notify_all()


def _only_row(chunks: Chunk) -> Chunk:
    if chunks.ndim != 3 or len(chunks) != 1:
        raise PolicyError(
            f"for one observation a policy gives actions of shape (1, K, D); this one gave {chunks.shape}"
        )
    row: Chunk = chunks[0]
    return row


def _for_caller(error: BaseException) -> RemoteEnvError:
    """The error as the caller's thread is to raise it; ours as they are, with the traceback they have."""
    if isinstance(error, RemoteEnvError):
        return error
    text = "".join(traceback.format_exception(error))
    wrapped = PolicyError(f"the policy raised {type(error).__name__}: {error}", remote_traceback=text)
    wrapped.__cause__ = error
    return wrapped
