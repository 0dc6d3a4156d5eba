"""The server's log as its supervisor keeps it: what stands in it, what a user should see, no more than a bound.

Offsets count all bytes that were ever written: they keep growing when the log is cut. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from remote_env.protocol.log_text import Problem, ProblemFinder, clean, last_line, without_time

LIMIT_BYTES = 64 << 20
MAX_KEPT_BYTES = 16 << 20  # of what a cut keeps, so that cutting takes milliseconds
TAIL_BYTES = 160 << 10  # escaped as JSON it still is a link message
MAX_READ_BYTES = 128 << 10
LAST_LINE_BYTES = 8 << 10
CLEAN_TAIL_BYTES = (16 << 10, 64 << 10)  # the second when the first holds too few lines; cleaning is slow
MAX_CLEAN_TAIL = 16 << 10
SCAN_BYTES = 8 << 10
SCAN_S = 0.005  # a turn; then others are served
LAST_SCAN_S = 0.1
MAX_BEHIND_BYTES = 8 << 20  # a log that grows faster than it can be searched is searched in part
MAX_LINE_BYTES = 64 << 10
QUIET_S = 1.0  # a traceback that does not go on for so long is complete
MAX_PROBLEMS = 200
MAX_PROBLEM_TEXT = 8 << 10
MAX_REPLY_TEXT = 64 << 10


class Log:
    """The file `log` of a session folder; a server that is run by hand has none.

    Args:
        path: of the file.
        limit_bytes: above this size its first part is cut away.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self._base = 0  # bytes that were cut away
        self._held = 0  # bytes that were there when it was last looked at
        self._may_cut = _append_to(path)
        self._scanned = 0
        self._rest = b""  # of a line whose end has not come
        self._grew_at = 0.0
        self._finder = ProblemFinder()
        self.problems = Problems()

    @property
    def size(self) -> int:
        """How many bytes were ever written: the offset of what comes next."""
        try:
            held = self._path.stat().st_size
        except OSError:
            held = 0
        if held < self._held:  # somebody else has emptied it, or put another in its place
            self._base += self._held
        self._held = held
        return self._base + held

    @property
    def held_bytes(self) -> int:
        """How many bytes are there."""
        size = self.size
        return size - self._base

    def _read(self, offset: int, count: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                file.seek(offset - self._base)
                return file.read(count)
        except OSError:
            return b""

    def _read_last(self, count: int) -> tuple[str, int]:
        """The last `count` bytes as text, and the offset of what comes next."""
        size = self.size
        data = self._read(max(self._base, size - count), count)
        return data.decode(errors="replace"), size

    def tail(self, lines: int) -> tuple[str, int]:
        """The last `lines` lines, as they are, and the offset to go on from."""
        text, following = self._read_last(TAIL_BYTES)
        return "\n".join(deque(text.splitlines(), maxlen=lines)), following

    def clean_tail(self, lines: int) -> str:
        """The last `lines` lines, made readable."""
        shown: list[str] = []
        for count in CLEAN_TAIL_BYTES:
            shown = clean(self._read_last(count)[0].rstrip()).split("\n")
            if len(shown) > lines:
                break
        return "\n".join(shown[-lines:])[-MAX_CLEAN_TAIL:]

    def last_line(self) -> str:
        """The last line that says something, made readable."""
        return last_line(self._read_last(LAST_LINE_BYTES)[0])

    def since(self, offset: int, max_bytes: int) -> tuple[str, int]:
        """What was written from `offset` on, and the offset to go on from.

        A part of at most `max_bytes` ends at a line's end where it can; what was cut away is left out.
        """
        size = self.size
        start = min(max(offset, self._base), size)
        data = self._read(start, min(max(max_bytes, 1 << 10), MAX_READ_BYTES))
        if start + len(data) < size and b"\n" in data:
            data = data[: data.rindex(b"\n") + 1]
        data = _whole_characters(data)
        return data.decode(errors="replace"), start + len(data)

    # Problems

    def scan(self, time_s: float = SCAN_S) -> None:
        """Search what is new for `time_s` at most; see `is_behind`."""
        until = time.monotonic() + time_s
        if self.unsearched_bytes > MAX_BEHIND_BYTES:
            self._skip_to_last(8 * SCAN_BYTES)
        while self._scan_part() and time.monotonic() < until:
            pass
        if self._finder.is_reading_block and time.monotonic() - self._grew_at > QUIET_S:
            self._note(self._finder.finish())

    def _skip_to_last(self, count: int) -> None:
        """Leave what is before the last `count` bytes unsearched."""
        self._scanned, self._rest = self.size - count, b""

    def _scan_part(self) -> bool:
        """Search a little of what is new; whether there was any."""
        if not self.unsearched_bytes:
            return False
        start = max(self._scanned, self._base)
        data = self._read(start, SCAN_BYTES)
        self._scanned = start + len(data)
        self._grew_at = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-MAX_LINE_BYTES:]
        self._note(self._finder.feed([line.decode(errors="replace") for line in lines]))
        return bool(data)

    @property
    def is_behind(self) -> bool:
        """Whether `scan` has more to search, or to make sure of."""
        return self.unsearched_bytes > 0 or self._finder.is_reading_block

    @property
    def unsearched_bytes(self) -> int:
        """How much `scan` has to search."""
        size = self.size
        return size - max(self._scanned, self._base)

    def scan_to_end(self) -> None:
        """Search what is new up to its end: whoever wrote it has ended. Of much the last part only."""
        self.scan(LAST_SCAN_S)
        if self.unsearched_bytes > 2 * SCAN_BYTES:
            self._skip_to_last(2 * SCAN_BYTES)
        self.scan(LAST_SCAN_S)
        rest, self._rest = self._rest, b""
        self._note([*self._finder.feed([rest.decode(errors="replace")] if rest else []), *self._finder.finish()])

    def _note(self, found: Iterable[Problem]) -> None:
        for problem in found:
            self.problems.add(problem)

    # The bound

    def bound(self) -> bool:
        """Cut the first part away when the log is above its limit; whether it was.

        Its writers append, so that they go on behind what is kept. What is written in the very moment is lost.
        """
        if not self._may_cut or self.held_bytes <= self._limit:
            return False
        with contextlib.suppress(OSError), self._path.open("ab+", buffering=0) as file:
            held = os.fstat(file.fileno()).st_size
            kept = min(self._limit // 4, MAX_KEPT_BYTES)
            data = os.pread(file.fileno(), kept + (1 << 20), held - kept)
            data = data[data.find(b"\n") + 1 :]
            end = self._base + os.fstat(file.fileno()).st_size
            file.truncate(0)
            self._base, self._held = end, 0  # holds even when the disk takes nothing back
            self._base -= file.write(data) or 0
            return True
        return False


class Problems:
    """What was found in the log: the latest, numbered from 1; one that says the same as another counts only."""

    def __init__(self) -> None:
        self.count = 0
        self.by_kind: Counter[str] = Counter()
        self._latest: deque[dict[str, Any]] = deque(maxlen=MAX_PROBLEMS)
        self._said: deque[str] = deque(maxlen=MAX_PROBLEMS)

    def add(self, problem: Problem) -> None:
        """Note one."""
        self.by_kind[problem.kind] += 1
        text = _shorten(problem.text)
        if without_time(text) in self._said:
            return
        self.count += 1
        self._said.append(without_time(text))
        self._latest.append({"number": self.count, "kind": problem.kind, "text": text, "time": time.time()})

    def after(self, number: int) -> list[dict[str, Any]]:
        """Those with a higher number, the oldest first, as many as one message takes."""
        found: list[dict[str, Any]] = []
        size = 0
        for problem in self._latest:
            if problem["number"] > number:
                size += len(problem["text"])
                if found and size > MAX_REPLY_TEXT:
                    break
                found.append(problem)
        return found


def _shorten(text: str) -> str:
    if len(text) <= MAX_PROBLEM_TEXT:
        return text
    half = MAX_PROBLEM_TEXT // 2
    return f"{text[:half]}\n…\n{text[-half:]}"


def _whole_characters(data: bytes) -> bytes:
    """`data` without the first bytes of a character whose last ones have not been read."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return data[:-back] if needed > back else data
    return data


def _append_to(path: Path) -> bool:
    """Have our standard output and error, and with them our children's, append to the log if that is where they go.

    Returns:
        Whether it is; else others write it, and it is theirs to bound.
    """
    is_ours = False
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
                is_ours = True
    return is_ours
