"""How a simulator ended, in words: its exit status or signal, and whether the machine ran out of memory.

Standard library only.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

UNKNOWN_KILLER = "not by this server; by somebody's kill -9, a batch system at its limit, or a container's end"
LITTLE = 0.05  # of the machine's memory


def describe_exit(status: int) -> str:
    """What the return code of `subprocess` means."""
    if status >= 0:
        return f"it exited with status {status}"
    return f"it was killed by {signal_name(-status)}"


def signal_name(number: int) -> str:
    """SIGSEGV for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class MemoryWatch:
    """Tells whether the kernel's out-of-memory killer has worked since this was made, or last asked.

    Args:
        proc: where procfs is.
        groups: where the control groups are.
    """

    def __init__(self, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc, self._groups = proc, groups
        self._kills = self._count()

    def explain_kill(self) -> str:
        """Why a process of ours was killed by a SIGKILL that nobody here sent; a sentence, with what to do."""
        before, self._kills = self._kills, self._count()
        group, machine = (_has_grown(old, new) for old, new in zip(before, self._kills, strict=True))
        remedy = (
            "give the task less (fewer environments, smaller images, fewer textures), or the machine, container or "
            f"job more memory{self._limit()}"
        )
        if group:
            return f"by the out-of-memory killer: {remedy}"
        if machine or self._free_share() < LITTLE:
            return f"probably by the out-of-memory killer (`dmesg` knows): {remedy}"
        return UNKNOWN_KILLER

    def _count(self) -> tuple[int | None, int | None]:
        """How many processes it has killed: of our own control group, and of the machine."""
        group = next((count for path in self._group_files() if (count := _read_count(path)) is not None), None)
        return group, _read_count(self._proc / "vmstat")

    def _group_files(self) -> list[Path]:
        """Where our group's count may stand: version 2, version 1, and what a container sees of its own."""
        found = []
        with contextlib.suppress(OSError):
            for line in (self._proc / "self" / "cgroup").read_text().splitlines():
                number, controllers, path = line.split(":", 2)
                if number == "0":
                    found.append(self._groups / path.lstrip("/") / "memory.events")
                elif "memory" in controllers.split(","):
                    found.append(self._groups / "memory" / path.lstrip("/") / "memory.oom_control")
        return [*found, self._groups / "memory.events", self._groups / "memory" / "memory.oom_control"]

    def _limit(self) -> str:
        for file in self._group_files():
            for name in ("memory.max", "memory.limit_in_bytes"):
                with contextlib.suppress(OSError, ValueError):
                    limit = int(file.with_name(name).read_text())
                    if limit < 1 << 50:
                        return f" (its control group may use {limit / 2**30:.1f} GiB)"
        return ""

    def _free_share(self) -> float:
        """Which part of the machine's memory is available; 1 when unknown."""
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
            values = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
            return values["MemAvailable"] / values["MemTotal"]
        except (OSError, ValueError, KeyError, IndexError, ZeroDivisionError):
            return 1.0


def _read_count(path: Path) -> int | None:
    """The number after `oom_kill` in a file of "name number" lines; None when it has none."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None


def _has_grown(before: int | None, now: int | None) -> bool:
    return now is not None and now > (before or 0) and before is not None
