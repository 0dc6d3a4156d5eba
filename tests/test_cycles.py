"""Opening and closing again and again leaves everything as it was: processes, descriptors, sockets, files, memory.

The default run makes few cycles; `make test-faults` makes 200.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from leak_check import isolated_home
from ssh_server import SshServer

__all__ = ["isolated_home"]

ROOT = Path(__file__).resolve().parents[1]
CYCLES = int(os.environ.get("REMOTE_ENV_TEST_CYCLES", "4"))
WARM_UP = 4  # imports, caches and paramiko's tables are there after these
MEMORY_GROWTH_LIMIT = 10 * 2**20

# Prints what the client's process holds, after the warm-up and at the end.
_CLIENT = """
import gc, json, os, sys, threading
from pathlib import Path
from remote_env import RemoteEnv
target, arguments, counts = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

def held():
    gc.collect()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    links = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
    return {
        "resident": int(fields["VmRSS"].split()[0]) * 1024,
        "descriptors": len(links),
        "sockets": sum(link.startswith("socket:") for link in links),
        "threads": threading.active_count(),
        "children": Path(f"/proc/self/task/{os.getpid()}/children").read_text().split(),
    }

for count in counts:
    for _ in range(count):
        with RemoteEnv(target or None, env="CartPole-v1", **arguments) as env:
            env.reset(seed=0)
            env.step(0)
    print(json.dumps(held()), flush=True)
"""


def run_cycles(target: str, arguments: dict[str, object], *counts: int) -> list[dict[str, int]]:
    """What a client process holds after so many cycles, and so many more."""
    command = [sys.executable, "-c", _CLIENT, target, json.dumps(arguments), json.dumps(counts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60 + 5 * CYCLES)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_no_growth(first: dict[str, int], last: dict[str, int]) -> None:
    assert last.pop("resident") - first.pop("resident") < MEMORY_GROWTH_LIMIT
    assert last == first


@pytest.mark.timeout(120 + 6 * CYCLES)
@pytest.mark.parametrize("tunnel", ["channel", "openssh", "sshtunnel"])
def test_cycles_over_ssh(ssh_server: SshServer, isolated_home: Path, tunnel: str) -> None:
    names = {"config_file": "ssh_config_file"}
    login = {names.get(name, name): value for name, value in ssh_server.login.items()}
    python = os.environ.get("REMOTE_ENV_TEST_PYTHON", str(ROOT / ".venv-far" / "bin" / "python"))
    arguments = {**login, "python": python, "tunnel": tunnel}
    run_cycles(ssh_server.target, arguments, 1)  # what is uploaded once is there now
    before = sorted(ssh_server.cache.rglob("*"))
    assert_no_growth(*run_cycles(ssh_server.target, arguments, WARM_UP, CYCLES))
    assert sorted(ssh_server.cache.rglob("*")) == before
    assert ssh_server.processes() == []
    assert list((isolated_home / "tmp").iterdir()) == []


@pytest.mark.timeout(60 + 3 * CYCLES)
def test_cycles_of_the_embedded_server(isolated_home: Path) -> None:
    assert_no_growth(*run_cycles("", {}, WARM_UP, CYCLES))
    assert list((isolated_home / "tmp").iterdir()) == []
