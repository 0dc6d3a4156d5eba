"""A `.part` that is written by a thread, so that a slow disk never holds up who records."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from remote_env.errors import CaptureError
from remote_env.record.part import Frozen, PartWriter

PENDING_BYTES = 64 << 20  # how much may wait in memory before who records waits, too
# The thread writes what has come together, because waking it costs who records more than handing over does.
BATCH_S = 0.05
BATCH_BYTES = 1 << 20  # so much is written at once
STALL_S = 60.0  # a disk that takes not one record for so long is told as an error
RECORD_BYTES = 1024  # what a record costs beside its arrays, about


class _Record(NamedTuple):
    fields: Mapping[str, Any]
    arrays: Frozen
    size_bytes: int


class BackgroundPart:
    """As `PartWriter`, but `append` only hands over; `flush` says when everything is with the kernel.

    A record is written after `BATCH_S` or once `BATCH_BYTES` wait; at most `PENDING_BYTES` do. What waits is lost when
    the process is killed; when it ends by itself, Python lets the thread finish first.

    Args:
        part: to write to; only the thread does from now on.
    """

    def __init__(self, part: PartWriter) -> None:
        self.path: Path = part.path
        self._part = part
        self._thread = ThreadPoolExecutor(1, "record")
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending: deque[_Record] = deque()
        self._pending_bytes = 0
        self._written = 0
        self._is_writing = False
        self._at_once = threading.Event()
        self._error: BaseException | None = None

    def append(self, fields: Mapping[str, Any], arrays: Frozen) -> None:
        """Hand one record over.

        Raises:
            CaptureError: the disk did not take an earlier record; this one was not taken. What waits stays in memory
                and is tried again at the next call.
        """
        size = RECORD_BYTES + arrays.size_bytes
        with self._lock:
            if self._error is not None:
                self._raise_error()
            if self._pending_bytes + size > PENDING_BYTES and self._pending:
                self._start_writing(at_once=True)
                self._wait(lambda: not self._pending or self._pending_bytes + size <= PENDING_BYTES)
            self._pending.append(_Record(fields, arrays, size))
            self._pending_bytes += size
            if not self._is_writing or self._pending_bytes >= BATCH_BYTES:
                self._start_writing(at_once=self._pending_bytes >= BATCH_BYTES)

    def flush(self) -> None:
        """Wait until the kernel has every record.

        Raises:
            CaptureError: the disk did not take one; what waits stays in memory and is tried again at the next call.
        """
        with self._changed:
            self._error = None
            if self._pending:
                self._start_writing(at_once=True)
            self._wait(lambda: not self._is_writing)

    def release(self) -> None:
        """Let `repair_part` take the file although it is still open."""
        self._part.release()

    def close(self) -> None:
        """Drop what waits and close the file; calling it again does nothing."""
        with self._changed:
            self._pending.clear()
            self._pending_bytes = 0
            self._at_once.set()
        self._thread.shutdown()
        self._part.close()

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Until `is_done`, as long as the disk takes anything at all."""
        while not is_done():
            self._raise_error()
            before = self._written

            def moved(before: int = before) -> bool:
                return is_done() or self._error is not None or self._written != before

            if not self._changed.wait_for(moved, STALL_S):
                raise CaptureError(
                    f"the disk has not taken a record of {self.path} for {STALL_S:g} s; "
                    f"{len(self._pending)} wait in memory"
                )
        self._raise_error()

    def _start_writing(self, *, at_once: bool) -> None:
        if at_once:
            self._at_once.set()
        if not self._is_writing:
            self._is_writing = True
            self._thread.submit(self._write_all)

    def _write_all(self) -> None:
        self._at_once.wait(BATCH_S)
        while (record := self._next()) is not None:
            try:
                self._part.append(record.fields, record.arrays)
            except BaseException as error:  # noqa: BLE001  # told to who records, at the next call
                self._stop(error)
                return
            with self._changed:
                self._written += 1
                if self._pending:  # close() may have dropped it
                    self._pending.popleft()
                    self._pending_bytes -= record.size_bytes
                self._changed.notify_all()

    def _next(self) -> _Record | None:
        with self._changed:
            if self._pending:
                return self._pending[0]
            self._end_writing()
            return None

    def _stop(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._end_writing()

    def _end_writing(self) -> None:
        self._is_writing = False
        self._at_once.clear()
        self._changed.notify_all()
