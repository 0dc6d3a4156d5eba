"""Running the probe by the interpreter that is to serve, and a look around by the shell alone."""

from __future__ import annotations

import base64
import inspect
import json
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remote_env.cli.shells import Shell
from remote_env.errors import DeadlineExceeded
from remote_env.protocol.log_text import clean
from remote_env.server import probe

MARK = "@remote-env "
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # a POSIX shell's exit statuses
TOOLS = {
    "setsid": "util-linux",
    "tar": "tar",
    "gzip": "gzip",
    "dd": "coreutils",
    "head": "coreutils",
    "df": "coreutils",
    "cat": "coreutils",
    "wc": "coreutils",
    "date": "coreutils",
    "sed": "sed",
    "ps": "procps",
}

# Of an interpreter that is too old to read the probe, the version alone.
_START = (
    "import sys;sys.version_info<(3,6) and sys.exit('@remote-env old %s %s'%(sys.version.split()[0],sys.executable));"
    "import zlib,base64;exec(compile(zlib.decompress(base64.b64decode('{}')),'probe','exec'))"
)
# launch, python, start, asked: as the far end is started, but for its output, which comes here. No argument has a line
# break, which conda run refuses.
_PROBE = r"""
choose='shell=sh; command -v bash >/dev/null 2>&1 && shell=bash; exec "$shell" -c "$@"'
begin='command=$1; shift; eval "$command \"\$@\""'
eval "$launch"' sh -c "$choose" sh "$begin" remote-env "$python" -c "$start" "$asked"' 2>&1
exit
"""
# Path, version, prefix, and those of our packages that it has; nothing of one that is too old.
_TELL = (
    "import sys;sys.version_info<(3,10) and sys.exit(1);from importlib.util import find_spec as f;"
    "print('\\n@remote-env python',sys.argv[1],'%d.%d'%sys.version_info[:2],sys.prefix,"
    "*[n for n in('numpy','gymnasium')if f(n)],sep='\\t')"
)
# tools, tell
_LOOK = r"""
printf '\n@remote-env system %s\n' "$(uname -srm 2>/dev/null)"
for tool in $tools; do
  command -v "$tool" >/dev/null 2>&1 || printf '\n@remote-env missing %s\n' "$tool"
done
for place in python3.10 python3.11 python3.12 python3.13 python3 ~/miniconda3/envs/*/bin/python \
  ~/anaconda3/envs/*/bin/python ~/miniforge3/envs/*/bin/python ~/.venv/bin/python /opt/*/bin/python; do
  found=$(command -v "$place" 2>/dev/null) || continue
  [ -x "$found" ] || continue
  "$found" -c "$tell" "$found" 2>/dev/null
done
printf '\n@remote-env looked\n'
"""


@dataclass(frozen=True)
class Python:
    """An interpreter that is new enough.

    Attributes:
        path: to name it by.
        version: such as (3, 12).
        prefix: its environment.
        packages: which of numpy and gymnasium it has.
    """

    path: str
    version: tuple[int, ...]
    prefix: str
    packages: tuple[str, ...]

    def __str__(self) -> str:
        has = f" with {', '.join(self.packages)}" if self.packages else ""
        return f"{self.path} ({'.'.join(map(str, self.version))}{has})"


@dataclass
class Look:
    """What the shell alone can see.

    Attributes:
        system: its name for itself, such as "Linux 6.1.0 x86_64".
        missing: tools that we need and that are not there.
        pythons: interpreters that are new enough.
        is_complete: whether it came to its end.
    """

    system: str = ""
    missing: list[str] = field(default_factory=list)
    pythons: list[Python] = field(default_factory=list)
    is_complete: bool = False


def look_around(shell: Shell, deadline: float) -> Look:
    """What `shell` sees; raises as `Shell.start`."""
    look = Look()
    with shell.start(_LOOK, {"tools": " ".join(TOOLS), "tell": _TELL}, deadline) as running:
        while (line := running.read_line(deadline)) is not None:
            if line.startswith(MARK):
                _note(look, *line.removeprefix(MARK).partition(" ")[::2])
    return look


def _note(look: Look, word: str, rest: str) -> None:
    if word == "system":
        look.system = rest
    elif word == "missing":
        look.missing.append(rest)
    elif word.startswith("python\t"):
        _, path, version, prefix, *packages = f"{word} {rest}".strip().split("\t")
        if prefix not in {one.prefix for one in look.pythons}:
            look.pythons.append(Python(path, tuple(map(int, version.split("."))), prefix, tuple(packages)))
    elif word == "looked":
        look.is_complete = True


class ProbeFailed(Exception):
    """The interpreter did not run the probe, or not to its end.

    Attributes:
        status: its exit status, None when it did not end.
        output: what it said.
        version: of an interpreter that is far too old, else "".
    """

    def __init__(self, message: str, status: int | None = None, output: str = "", version: str = "") -> None:
        super().__init__(message)
        self.status, self.output, self.version = status, output, version


def probe_parts(
    shell: Shell, *, python: str, launch: str, packages: Sequence[str], isaac: bool, timeout_s: float
) -> Iterator[tuple[str, Any]]:
    """What the probe tells, part by part, as it comes.

    Args:
        shell: where it runs.
        python: the interpreter's command line.
        launch: the prefix that leads to where the interpreter lives.
        packages: whose versions are wanted.
        isaac: whether Isaac's needs are.
        timeout_s: for each part [s].

    Raises:
        ProbeFailed: it could not be run, or ended early; the message says how.
        ConnectionLost, DeadlineExceeded: as `Shell.start`.
    """
    source = zlib.compress(inspect.getsource(probe).encode(), 9)
    variables = {
        "launch": launch,
        "python": python,
        "start": _START.replace("{}", base64.b64encode(source).decode()),
        "asked": json.dumps({"packages": list(packages), "isaac": isaac}),
    }
    deadline, is_whole = time.monotonic() + timeout_s, False
    with shell.start(_PROBE, variables, deadline) as running:
        said: list[str] = []
        while (line := _next_line(running, deadline, said)) is not None:
            told = _read_part(line)
            if told is None:
                said = [*said[-50:], line]
                continue
            deadline = time.monotonic() + timeout_s
            is_whole = is_whole or told["part"] == "end" or told["facts"].get("is_new_enough") is False
            yield told["part"], told["facts"]
        if not is_whole:
            raise _failed(running.ending(deadline)[0], said)


def _next_line(running: Any, deadline: float, said: Sequence[str]) -> str | None:
    try:
        line: str | None = running.read_line(deadline)
    except DeadlineExceeded as error:
        raise ProbeFailed("it did not answer in time", output=clean("\n".join(said))) from error
    return line


def _read_part(line: str) -> Mapping[str, Any] | None:
    line = line.strip("\r")  # of a prefix that makes a terminal, such as srun --pty
    if line.startswith(MARK + "old "):
        version, _, executable = line.removeprefix(MARK + "old ").partition(" ")
        raise ProbeFailed(f"{executable} is Python {version}", version=version)
    return dict(json.loads(line.removeprefix(MARK + "probe "))) if line.startswith(MARK + "probe ") else None


def _failed(status: int, said: Sequence[str]) -> ProbeFailed:
    output = clean("\n".join(said)).strip()
    if status > 128 or status < 0:
        return ProbeFailed(f"it was killed by signal {status - 128 if status > 0 else -status}", status, output)
    return ProbeFailed(f"it ended with status {status}", status, output)
