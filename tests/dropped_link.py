"""A host at the end of a cable that can be pulled: a network namespace of its own. Only root can make one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MADE_IN_S = 20.0


@dataclass
class Cable:
    """A pair of network devices between us and the namespace.

    Attributes:
        name: of our end.
        address: of the other.
        enter: a command that runs the one behind it there.
    """

    name: str
    address: str
    enter: list[str]

    def pull(self) -> None:
        """From now on no packet arrives, and nobody is told."""
        _run("ip", "link", "set", self.name, "down")

    def plug_in(self) -> None:
        """Undo `pull`."""
        _run("ip", "link", "set", self.name, "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=MADE_IN_S)


@contextlib.contextmanager
def cable_to_a_host() -> Iterator[Cable]:
    """A cable, while its host is there; skips the test where none can be made."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    host = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
    try:
        _wait_for_own_network(host.pid)
        cable = Cable(f"rd{host.pid}"[:14], "169.254.78.2", ["nsenter", "--net", "--target", str(host.pid)])
        make = ["ip", "link", "add", cable.name, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid)]
        if subprocess.run(make, capture_output=True, timeout=MADE_IN_S).returncode:
            pytest.skip("this kernel has no veth")
        _run("ip", "addr", "add", "169.254.78.1/30", "dev", cable.name)
        cable.plug_in()
        _run(*cable.enter, "ip", "link", "set", "lo", "up")
        _run(*cable.enter, "ip", "addr", "add", f"{cable.address}/30", "dev", "eth0")
        _run(*cable.enter, "ip", "link", "set", "eth0", "up")
        yield cable
    finally:
        host.communicate(timeout=10)


def _wait_for_own_network(pid: int) -> None:
    deadline = time.monotonic() + MADE_IN_S
    while Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
        assert time.monotonic() < deadline
        time.sleep(0.005)
