"""Helper processes that never outlive their use, Ctrl-C included."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`command` as a process in a session of its own, ended when the block is left; `options` are those of Popen.

    Of its own session, so that Ctrl-C in a terminal reaches this program only, which then ends the other.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        with _interrupt_deferred():
            process = subprocess.Popen(command, start_new_session=True, **options)  # noqa: S603  # callers' own programs
        yield process
    finally:
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Let a Ctrl-C wait until the block is left: inside Popen it would lose a process that is running already."""
    known = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(known):
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, known)
        if caught:
            known(*caught[0])
