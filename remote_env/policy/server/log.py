"""The server's log: lines with the time, whole ones whatever thread writes them, at once."""

from __future__ import annotations

import contextlib
import sys
import threading
import time

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_CONTROLS |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


class Log:
    """Writes lines to standard output; what cannot be written is lost, since a full disk must not end the server."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()

    def __call__(self, text: str) -> None:
        """Write a line, or several that belong together; those after the first are indented.

        What a client sent may stand in it, and must not look like a line of ours or steer the terminal.
        """
        shown = text.translate(_CONTROLS).replace("\n", "\n  ")
        line = f"{time.strftime('%H:%M:%S')} {shown}\n"
        with self._mutex, contextlib.suppress(OSError, ValueError):
            sys.stdout.write(
                line.encode(sys.stdout.encoding or "ascii", "backslashreplace").decode(sys.stdout.encoding)
            )
            sys.stdout.flush()
