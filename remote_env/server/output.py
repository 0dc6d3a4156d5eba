"""Standard output and error that survive a full disk. Standard library only."""

from __future__ import annotations

import io
import sys
from typing import Any


class _ForgivingFile(io.FileIO):
    """A descriptor whose failing writes are lost instead of raised: a full disk must not end a task or a server."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def forgive_failing_writes() -> None:
    """From now on what cannot be written to standard output and error is lost, silently; nothing is buffered."""
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            # Unbuffered in both layers: what was printed before a crash is in the log.
            _ForgivingFile(descriptor, "wb", closefd=False),
            encoding="utf-8",
            errors="backslashreplace",
            write_through=True,
        )
        for descriptor in (1, 2)
    )
