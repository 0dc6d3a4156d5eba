"""What the machine's GPUs do, by nvidia-smi where it is; asked for in the background. Standard library only."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from typing import IO, cast

from remote_env.protocol.monitoring import GPU_FIELDS, Gpu, parse_gpus

FRESH_S = 5.0
TIMEOUT_S = 10.0
MAX_OUTPUT = 64 << 10


class GpuWatch:
    """Asks nvidia-smi when it is asked, and answers what is known by then: never waits.

    Args:
        selector: what the supervisor waits on.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: list[subprocess.Popen[bytes]] = []
        self._asked = float("-inf")
        self._output = b""
        self._known: list[Gpu] = []

    def read(self) -> list[Gpu]:
        """What was last known; a new question is on its way when that is old."""
        if self._process is None and time.monotonic() - self._asked > FRESH_S:
            self._ask()
        return self._known

    def _ask(self) -> None:
        self._asked, self._output = time.monotonic(), b""
        program = shutil.which("nvidia-smi")
        if program is None:
            self._known = []
            return
        try:
            self._process = subprocess.Popen(  # noqa: S603  the system's own
                [program, f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return
        answer = cast("IO[bytes]", self._process.stdout)
        os.set_blocking(answer.fileno(), False)
        self._selector.register(answer, selectors.EVENT_READ, lambda: self._hear(answer))

    def _hear(self, answer: IO[bytes]) -> None:
        chunk = os.read(answer.fileno(), 65536)
        self._output += chunk
        if not chunk or len(self._output) > MAX_OUTPUT:
            self._known = parse_gpus(self._output.decode(errors="replace"))
            self.end()

    @property
    def pids(self) -> tuple[int, ...]:
        """Of what runs."""
        return tuple(process.pid for process in (self._process, *self._ending) if process is not None)

    @property
    def deadline(self) -> float:
        """When `turn` has something to do [s, monotonic]."""
        return self._asked + TIMEOUT_S if self._process else float("inf")

    def turn(self, now: float) -> None:
        """Give up one that does not answer: a driver that hangs."""
        self._reap()
        if self.deadline < now:
            self._known = []
            self.end()

    def end(self) -> None:
        """End what runs."""
        process, self._process = self._process, None
        if process is None or process.stdout is None:
            return
        self._selector.unregister(process.stdout)
        process.stdout.close()
        process.kill()  # it has said all, or too much, or nothing for too long
        self._ending.append(process)
        self._reap()

    def _reap(self) -> None:
        self._ending = [process for process in self._ending if process.poll() is None]
