"""The server's log: lines with the time, whole ones whatever thread writes them, at once."""

from __future__ import annotations

import contextlib
import sys
import threading
import time


class Log:
    """Writes lines to standard output; what cannot be written is lost, since a full disk must not end the server."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()

    def __call__(self, text: str) -> None:
        """Write a line, or several that belong together."""
        line = f"{time.strftime('%H:%M:%S')} {text}\n"
        with self._mutex, contextlib.suppress(OSError, ValueError):
            sys.stdout.write(
                line.encode(sys.stdout.encoding or "ascii", "backslashreplace").decode(sys.stdout.encoding)
            )
            sys.stdout.flush()
