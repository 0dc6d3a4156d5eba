"""One policy on one device, and whose turn it is: each caller's own thread runs the policy, for others too.

There is no thread of its own. Whoever comes while the policy is free runs it at once. Whoever comes while it is busy
waits in a queue; when a turn ends, the first in the queue leads the next one and takes along what waits behind
it, as far as a batch may hold. One client alone thus pays for no hand-over between threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from remote_env.errors import PolicyError
from remote_env.policy.policy import Chunk, ObservationBatch, Policy
from remote_env.policy.server.histogram import Histogram
from remote_env.policy.server.runner import Job, Room, Runner


class Worker:
    """One policy and the requests that wait for it.

    Args:
        policy: owned from now on.
        log: takes a line.
        max_batch: rows of several requests that may run together; 1 runs each request alone.
        max_wait_s: how long a turn with room left waits for requests of other clients.
        max_queue: requests that may wait.
        queue_policy: when more come: "latest" drops the oldest waiting one of the same client, "refuse" the new one.
        wait_timeout_s: how long a request may wait for its turn.
    """

    def __init__(
        self,
        policy: Policy,
        log: Callable[[str], None],
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        queue_policy: str,
        wait_timeout_s: float,
    ) -> None:
        self._runner, self.metadata = Runner(policy, log), policy.metadata
        self._max_batch = max_batch if self.metadata.batches else 1
        self._max_wait_s, self._max_queue, self._queue_policy = max_wait_s, max_queue, queue_policy
        self._wait_timeout_s = wait_timeout_s
        self._mutex = threading.Lock()  # guards the four below
        self._turn = threading.Lock()  # held while the policy is busy
        self._queue: deque[Job] = deque()
        self._missing_rows = 0  # that the leader waits for
        self._enough: threading.Lock | None = None  # released when they are there
        self.closed = False
        self.clients = 0  # that are bound to this worker

    @property
    def latencies(self) -> Histogram:
        """Seconds from each request's coming to its answer."""
        return self._runner.latencies

    @property
    def batches(self) -> Histogram:
        """Rows of each inference."""
        return self._runner.batches

    def warm_up(self, observation: ObservationBatch) -> None:
        """Infer one row for nobody, uncounted, its failure unlogged. Raises as `infer`."""
        self._runner.is_quiet = True
        try:
            self.infer(0, observation, ["warm-up"])
        finally:
            self.reset(0, ["warm-up"])
            self._runner.is_quiet = False
            self._runner.clear_counts()

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return len(self._queue)

    def infer(self, owner: int, observation: ObservationBatch, episodes: Sequence[str]) -> Chunk:
        """Run the policy for these checked rows; waits for its turn. Raises as `ServedClient.infer`."""
        job = Job(owner, observation, episodes)
        self._do(job)
        if job.chunk is None:
            raise PolicyError("the policy was interrupted; ask again")
        return job.chunk

    def infer_at_once(
        self, observation: ObservationBatch, episodes: Sequence[str], room: Room, started: float
    ) -> tuple[Chunk, float] | None:
        """`infer` for one row if nobody is in its way; None when somebody is, or may run with it: nothing ran.

        See `Runner.run_row`.
        """
        if self._max_batch > 1 or not self._turn.acquire(False):
            return None
        try:
            # Whoever closes the policy takes the turn first, after he has said so.
            return None if self.closed else self._runner.run_row(observation, episodes, room, started)
        finally:
            self._pass_on()

    def reset(self, owner: int, episodes: Sequence[str]) -> None:
        """Have the policy forget these episodes; waits for its turn."""
        self._do(Job(owner, None, episodes))

    def close(self, timeout_s: float) -> bool:
        """Refuse what waits and what comes, then close the policy once it is free.

        Returns:
            Whether it was free, and closed, in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._mutex:
            self.closed = True
            waiting, self._queue = list(self._queue), deque()
        for job in waiting:
            _answer(job, error=_stopping())
        if not self._turn.acquire(timeout=timeout_s):
            return False
        self._turn.release()  # for whoever closes again
        return self._runner.close(deadline - time.monotonic())

    # Turns

    def _do(self, job: Job) -> None:
        with self._mutex:
            is_leader = not self.closed and self._turn.acquire(blocking=False)
            if not is_leader:
                self._enqueue(job)
        if not is_leader:
            self._wait(job)
        if is_leader or job.leads:
            self._lead(job)
        if job.error is not None:
            raise job.error

    def _enqueue(self, job: Job) -> None:
        """Wait behind the others; the mutex is held."""
        if self.closed:
            raise _stopping()
        if job.observation is not None and len(self._queue) >= self._max_queue:  # a reset always finds room
            self._make_room(job)
        job.gate = threading.Lock()
        job.gate.acquire()
        self._queue.append(job)
        self._missing_rows -= job.rows
        if self._enough is not None and (self._missing_rows <= 0 or job.observation is None):
            self._enough.release()
            self._enough = None

    def _make_room(self, job: Job) -> None:
        older = next((other for other in self._queue if _is_replaced(other, job)), None)
        if self._queue_policy != "latest" or older is None:
            raise PolicyError(
                f"the server is busy: {len(self._queue)} requests wait already (--max_queue {self._max_queue}); "
                "ask again, ask less often, or start the server with a larger --max_queue or more devices"
            )
        self._queue.remove(older)
        message = "a newer request of the same client took this one's place in the full queue (--queue_policy latest)"
        _answer(older, error=PolicyError(f"{message}; ask one after another, or raise --max_queue"))

    def _wait(self, job: Job) -> None:
        """Sleep until the request is done, or its turn to lead."""
        assert job.gate is not None  # noqa: S101  it was given one in the queue
        try:
            if job.gate.acquire(timeout=self._wait_timeout_s):
                return
            if not self._leave_queue(job) and job.gate.acquire(timeout=self._wait_timeout_s):
                return  # it was taken along in that very moment
        except BaseException:  # Ctrl-C in a main thread
            if not self._leave_queue(job) and job.gate.acquire(timeout=self._wait_timeout_s) and job.leads:
                self._pass_on()
            raise
        raise PolicyError(f"the policy has been busy with other requests for {self._wait_timeout_s:g} s; ask again")

    def _leave_queue(self, job: Job) -> bool:
        """Wait no longer; False when its turn has come by now."""
        with self._mutex:
            is_waiting = job in self._queue
            if is_waiting:
                self._queue.remove(job)
        return is_waiting

    def _lead(self, job: Job) -> None:
        turn = [job]
        try:
            if job.observation is None:
                self._runner.reset(job)
            else:
                if self._max_batch > 1:
                    turn += self._take_along(job)
                self._runner.run(turn)
        finally:
            self._pass_on()
            for other in turn[1:]:
                _answer(other, error=None if other.chunk is not None or other.error else _interrupted())

    def _pass_on(self) -> None:
        """End this turn: the first that waits leads the next."""
        with self._mutex:
            if not self._queue:
                self._turn.release()
                return
            following = self._queue.popleft()
            following.leads = True
        if following.gate is not None:
            following.gate.release()

    def _take_along(self, job: Job) -> list[Job]:
        """The requests that run with this one: those at the head of the queue, as far as there is room."""
        room = self._max_batch - job.rows
        if room <= 0:
            return []
        self._wait_for_more(room)
        taken: list[Job] = []
        with self._mutex:
            while self._queue and self._fits(self._queue[0], [job, *taken], room):
                taken.append(self._queue.popleft())
                room -= taken[-1].rows
        return taken

    def _fits(self, job: Job, turn: Sequence[Job], room: int) -> bool:
        if job.observation is None or job.rows > room:
            return False
        if not self.metadata.has_memory:
            return True
        return not any(set(job.episodes) & set(other.episodes) for other in turn)  # they come one after the other

    def _wait_for_more(self, room: int) -> None:
        """Give the other clients `max_wait_s` to fill the batch; nobody waits for clients that are not there."""
        with self._mutex:
            waiting = sum(job.rows for job in self._queue)
            wanted = min(room, self.clients - 1)
            if self._max_wait_s <= 0 or waiting >= wanted:
                return
            enough = self._enough = threading.Lock()
            enough.acquire()
            self._missing_rows = wanted - waiting
        enough.acquire(timeout=self._max_wait_s)
        with self._mutex:
            self._enough = None


def _is_replaced(older: Job, newer: Job) -> bool:
    return older.owner == newer.owner and older.observation is not None and newer.observation is not None


def _answer(job: Job, error: Exception | None) -> None:
    job.error = job.error or error
    if job.gate is not None:
        job.gate.release()


def _stopping() -> PolicyError:
    return PolicyError("the policy server is stopping; ask again when it is back")


def _interrupted() -> PolicyError:
    return PolicyError("the policy was interrupted; ask again")
