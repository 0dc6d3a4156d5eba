"""The board: a few numbers in shared memory by which a simulator says what it is doing, without being asked.

The supervisor reads it while the simulator holds its interpreter. Standard library only.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import time
from typing import NamedTuple

_NOW = struct.Struct("<QdQQ")  # call (0: it waits for work), when it began [s, monotonic], steps, resets
CALLS = ("nothing", "import", "make", "reset", "step", "get_state", "set_state", "render", "call", "close")
CALL_NUMBERS = {name: number for number, name in enumerate(CALLS)}


class BoardReading(NamedTuple):
    """What a simulator is doing.

    Attributes:
        call: the name of the call that runs, or "nothing".
        since_s: how long ago it, or the last one, began [s].
        steps: how many steps it has run in all.
        resets: how many resets it has run in all.
    """

    call: str
    since_s: float
    steps: int
    resets: int


class Board:
    """Shared memory behind a descriptor that the supervisor hands to its simulator."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _NOW.size)
        self.steps = self.resets = 0

    @classmethod
    def create(cls) -> Board:
        """A fresh board, in memory only."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("remote-env-board")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _NOW.size)
        return cls(descriptor)

    def begin(self, call: int) -> None:
        """Say that the call of this number of CALLS begins now."""
        _NOW.pack_into(self._memory, 0, call, time.monotonic(), self.steps, self.resets)

    def end(self) -> None:
        """Say that the simulator waits for work."""
        self._memory[0] = 0

    def read(self) -> BoardReading:
        """What stands there now."""
        call, since, steps, resets = _NOW.unpack_from(self._memory, 0)
        # The clock is the machine's, so that both processes read the same one.
        return BoardReading(CALLS[call % len(CALLS)], max(0.0, time.monotonic() - since), steps, resets)

    def close(self) -> None:
        """Free the memory and the descriptor."""
        self._memory.close()
        os.close(self.descriptor)
