"""This user's processes on a machine, as `ps` lists them; nothing here ends one."""

from __future__ import annotations

import re
from typing import Any

Processes = list[dict[str, Any]]  # of each: pid, elapsed_s, command
# And the user's number. What is looked for stands on no command line, so that the search does not find itself.
PS = ("ps", "-ww", "-o", "pid=", "-o", "etime=", "-o", "args=", "-u")
_LINE = re.compile(r"\s*(\d+)\s+(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)\s+(.*)")


def read_processes(listed: str, name: str) -> Processes:
    """The processes of a `ps` listing whose command line contains `name`: pid, elapsed_s, command."""
    found = []
    for line in listed.splitlines():
        match = _LINE.match(line)
        if match is None or name not in match[6]:
            continue
        days, hours, minutes, seconds = (int(part or 0) for part in match.group(2, 3, 4, 5))
        elapsed_s = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        found.append({"pid": int(match[1]), "elapsed_s": elapsed_s, "command": match[6]})
    return found
