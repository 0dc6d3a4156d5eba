"""The board: a few numbers in shared memory by which a simulator says what it is doing, without being asked.

The supervisor reads it while the simulator holds its interpreter. Counting costs a step 0.6 µs. Standard library only.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from bisect import bisect_left
from typing import NamedTuple

CALLS = (
    *("nothing", "import", "make", "reset", "step", "get_state", "set_state", "render", "call", "close", "rollout"),
    *("step_many", "snapshot", "restore", "branch", "deliver"),
)
CALL_NUMBERS = {name: number for number, name in enumerate(CALLS)}
STEP_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

# Words of 8 bytes, native and aligned, so that each is read and written whole: call (0: it waits for work), since when
# [s, monotonic], steps, resets, bytes received and sent, seconds in steps, how many steps took up to each bound.
_CALL, _SINCE, _STEPS, _RESETS, _RECEIVED, _SENT, _STEP_SECONDS, _BUCKETS = range(8)
_WORDS = _BUCKETS + len(STEP_BOUNDS_S) + 1
_SIZE = 8 * _WORDS
_STEP = CALL_NUMBERS["step"]


class BoardReading(NamedTuple):
    """What a simulator is doing, and what it has done in all.

    Attributes:
        call: the name of the call that runs, or "nothing".
        since_s: for how long it has run, or nothing has [s].
        since: when that began [s, monotonic].
        steps: how many steps it has run.
        resets: how many resets it has run.
        received: bytes of requests, but for the one that runs.
        sent: bytes of replies.
        step_seconds: how long all steps took together [s], from request read to reply packed.
        step_counts: how many steps took at most each of STEP_BOUNDS_S and more than the one before; last those beyond.
    """

    call: str
    since_s: float
    since: float
    steps: int
    resets: int
    received: int
    sent: int
    step_seconds: float
    step_counts: tuple[int, ...]


class Board:
    """Shared memory behind a descriptor that the supervisor hands to its simulator.

    Attributes:
        steps, resets, received, sent: to be counted up by the simulator; shown from the next `begin` or `end` on.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _SIZE)
        self._view = memoryview(self._memory)
        self._words = self._view.cast("Q")
        self._floats = self._view.cast("d")
        self.steps = self.resets = self.received = self.sent = 0
        self._call, self._since = 0, 0.0

    @classmethod
    def create(cls) -> Board:
        """A fresh board, in memory only."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("remote-env-board")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, _SIZE)
            return cls(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def begin(self, call: int) -> None:
        """Say that the call of this number of CALLS begins now."""
        # Word by word: struct's pack_into clears all of them first, and a reader would see that.
        words = self._words
        self._call = call
        self._floats[_SINCE] = self._since = time.monotonic()
        words[_STEPS] = self.steps
        words[_RESETS] = self.resets
        words[_RECEIVED] = self.received
        words[_CALL] = call

    def count_step(self, took_s: float) -> None:
        """Count a step that ran inside another call, and how long it took [s]."""
        self.steps += 1
        words = self._words
        words[_BUCKETS + bisect_left(STEP_BOUNDS_S, took_s)] += 1
        self._floats[_STEP_SECONDS] += took_s
        words[_STEPS] = self.steps
        words[_RESETS] = self.resets

    def end(self) -> None:
        """Say that the simulator waits for work."""
        now = time.monotonic()
        words, floats = self._words, self._floats
        if self._call == _STEP:
            took = now - self._since
            words[_BUCKETS + bisect_left(STEP_BOUNDS_S, took)] += 1
            floats[_STEP_SECONDS] += took
        self._call = 0
        words[_SENT] = self.sent
        floats[_SINCE] = now
        words[_CALL] = 0

    def read(self) -> BoardReading:
        """What stands there now."""
        # The clock is the machine's, so that both processes read the same one.
        words, floats, since = self._words, self._floats, self._floats[_SINCE]
        call = CALLS[words[_CALL] % len(CALLS)]
        counts = words[_STEPS], words[_RESETS], words[_RECEIVED], words[_SENT]
        buckets = tuple(words[_BUCKETS:])
        return BoardReading(call, max(0.0, time.monotonic() - since), since, *counts, floats[_STEP_SECONDS], buckets)

    def close(self) -> None:
        """Free the memory and the descriptor."""
        for view in (self._words, self._floats, self._view):
            view.release()
        self._memory.close()
        os.close(self.descriptor)
