"""A control group of our own with little memory, in which the kernel's out-of-memory killer works for real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_group(limit_bytes: int) -> Iterator[list[str]]:
    """A command line that runs the one behind it with so much memory; the test is skipped where there can be none."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    old = [Path("/sys/fs/cgroup/memory" + path) for _, kinds, path in lines if "memory" in kinds.split(",")]
    home = old[0] if old else Path("/sys/fs/cgroup") / lines[-1][2].lstrip("/")
    group = home / f"remote-env-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        limit = group / ("memory.limit_in_bytes" if old else "memory.max")
        if not limit.exists():
            pytest.skip("the control groups here do not limit memory")
        limit.write_text(str(limit_bytes))
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "wrapper"]
    finally:
        group.rmdir()
