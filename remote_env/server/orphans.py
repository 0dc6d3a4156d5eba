"""What simulators leave behind: processes that they started and that left their process group (`setsid`).

The supervisor adopts every orphan below it (PR_SET_CHILD_SUBREAPER), so that such a process becomes its own child when
its parents have ended. Only unreaped children are ever killed: their numbers cannot be another's.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

MARK = "REMOTE_ENV_SIMULATOR"  # in the environment of a simulator and of all that it starts
GRACE_S = 1.0
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> bool:
    """Become the parent of every process below us whose parent ends; whether this system can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


class Orphans:
    """The adopted processes of simulators that are gone: each is asked to end, and killed when it does not."""

    def __init__(self) -> None:
        self._foreign = children()  # of a wrapper that became us
        self._asked: dict[int, float] = {}  # pid, and when it was asked [s, monotonic]

    def __bool__(self) -> bool:
        """Whether some have been asked and have not ended."""
        return bool(self._asked)

    def sweep(self, ours: Collection[int], marks: Collection[str], grace_s: float = GRACE_S) -> None:
        """Do what is due now. What an ended one leaves becomes ours in turn, with a SIGCHLD: sweep again then.

        Args:
            ours: the processes that we started ourselves, which are left alone.
            marks: of the simulators that live: what they started may live too.
            grace_s: how long after it was asked to one is killed.
        """
        now = time.monotonic()
        try:
            others = children() - self._foreign - set(ours)
        except OSError:
            return  # no descriptor is left: later
        living = [pid for pid in others if not _reap(pid)]
        orphans = [pid for pid in living if pid in self._asked or _is_orphan(pid, marks)]
        for pid in orphans:
            if pid not in self._asked:
                _signal(pid, signal.SIGTERM)
            elif now - self._asked[pid] >= grace_s:
                _signal(pid, signal.SIGKILL)
        self._asked = {pid: self._asked.get(pid, now) for pid in orphans}

    def end(self, timeout_s: float = 5.0) -> None:
        """Have every child of ours end, for the last time."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.sweep((), ())
            with contextlib.suppress(OSError):
                if not self and not children() - self._foreign:
                    return
            time.sleep(0.005)


def _is_orphan(pid: int, marks: Collection[str]) -> bool:
    mark = _read_mark(pid)
    # One without a mark (it has cleared its environment) is nobody's only when no simulator lives.
    return mark not in marks and bool(mark or not marks)


def children() -> set[int]:
    """Our children, adopted ones and zombies too."""
    try:
        tasks = [task / "children" for task in Path("/proc/self/task").iterdir()]
        return {int(pid) for task in tasks for pid in task.read_text().split()}
    except FileNotFoundError:
        return _children_by_parent()


def _children_by_parent() -> set[int]:
    """The same on a kernel without CONFIG_PROC_CHILDREN; nothing where there is no /proc."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(path.parent.name))
    return found


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _read_mark(pid: int) -> str:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    prefix = MARK.encode() + b"="
    return next((entry[len(prefix) :].decode() for entry in entries if entry.startswith(prefix)), "")
