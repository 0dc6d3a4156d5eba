"""Prefixes for `launch=` as programs: what `docker exec`, `srun --pty` and `ip netns exec` do, as far as it matters."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Runs its arguments on a terminal of their own, as `srun --pty` does, and copies both ways. It ignores the end of its
# input, and when its output is cut it ends, which hangs the terminal up. Its terminal echoes until it is told not to.
_PTY = r"""
import os, pty, select, sys
print("srun: job 17 queued and waiting for resources", file=sys.stderr, flush=True)
print("a banner of the node", flush=True)
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
sources = [0, terminal]
try:
    while True:
        for source in select.select(sources, [], [])[0]:
            data = os.read(source, 65536)
            if source == 0 and not data:
                sources.remove(0)
                continue
            if not data:
                raise OSError
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(1 if source == terminal else terminal, rest):]
except OSError:
    pass
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256)
"""


def write_pty_prefix(folder: Path) -> str:
    """A prefix that allocates a terminal."""
    program = folder / "pty_runner.py"
    program.write_text(_PTY)
    return f"'{sys.executable}' '{program}'"


def write_banner_prefix(folder: Path) -> str:
    """A prefix that talks before and while it runs its arguments, on both outputs."""
    program = folder / "a chatty prefix"
    program.write_text('#!/bin/sh\necho "Welcome to the @remote-env of tests"\necho "quota 3%" >&2\n"$@"\necho bye\n')
    program.chmod(0o755)
    return f"'{program}'"


@contextlib.contextmanager
def network_namespace() -> Iterator[str]:
    """A network namespace with nothing but its loopback; the prefix that runs a program in it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace")
    name = f"remote-env-{secrets.token_hex(4)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this container may not make a network namespace: {made.stderr.strip()}")
    try:
        subprocess.run(["ip", "netns", "exec", name, "ip", "link", "set", "lo", "up"], check=True, timeout=10)
        yield f"ip netns exec {name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=10)
