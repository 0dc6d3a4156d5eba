"""Who listens on a port of this machine, as far as Linux' /proc tells this user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

LISTENING = "0A"  # of /proc/net/tcp
MAX_COMMAND = 120


def describe_holder(port: int) -> str:
    """The process in words: "process 123 (python servers/…) listens there"."""
    inodes = set(_listening_inodes(port))
    for pid, inode in _sockets(inodes):
        if inode in inodes:
            return f"process {pid} ({_command(pid)}) listens there"
    return "another process listens there" if inodes else "it is in use"


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def _sockets(inodes: set[str]) -> Iterator[tuple[int, str]]:
    """Sockets of the processes that we may look into."""
    for folder in Path("/proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            for link in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(link.readlink())
                    if target.startswith("socket:["):
                        yield int(folder.name), target[8:-1]


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return "it has ended since"
    text = b" ".join(words).decode(errors="replace")
    return text if len(text) <= MAX_COMMAND else text[:MAX_COMMAND] + "…"
