"""The example of a task of one's own, as its user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ssh_client import FAR_PYTHON, nothing_is_left
from ssh_server import SshServer

__all__ = ["nothing_is_left"]

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from login_flags import in_flags  # noqa: E402


def run_over_ssh(server: SshServer, home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "own_task.py"), "--host", "127.0.0.1", "--episodes", "1"]
    login = ["--ssh-port", str(server.port), "--identity", str(server.identity_file), "--python", FAR_PYTHON]
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.run(
        [*command, *login, *flags], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_its_flags_lead_to_another_machine_and_its_errors_name_them(ssh_server: SshServer, tmp_path: Path) -> None:
    unknown = run_over_ssh(ssh_server, tmp_path)
    assert unknown.returncode == 1
    assert "or pass --accept-new-host-key" in unknown.stderr
    done = run_over_ssh(ssh_server, tmp_path, "--accept-new-host-key", "--tunnel", "channel", "--reuse")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("episode 0: ")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("check the port (ssh_port=…)", "check the port (--ssh-port)"),
        ("Pass identity_file=…, load", "Pass --identity, load"),
        ("or pass accept_new_host_key=True", "or pass --accept-new-host-key"),
        ("pass python= with it", "pass --python with it"),
        ("python='/x' cannot be run", "--python '/x' cannot be run"),
    ],
)
def test_advice_is_given_in_flags(ours: str, theirs: str) -> None:
    assert in_flags(ValueError(ours)) == theirs


def test_it_brings_the_mass_home_in_every_episode() -> None:
    command = [sys.executable, str(ROOT / "examples" / "own_task.py"), "--episodes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    ends = re.findall(r"^episode \d: (\d+) steps, ends at ([+-][\d.]+) m$", done.stdout, re.MULTILINE)
    assert len(ends) == 2
    assert all(int(steps) < 400 and abs(float(position)) < 0.01 for steps, position in ends)
