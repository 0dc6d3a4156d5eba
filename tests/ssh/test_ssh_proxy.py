"""Logins through a ProxyCommand."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from ssh_server import SshServer

from remote_env.errors import AuthError, ConnectError, DeadlineExceeded
from remote_env.ssh import SshConnection


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def open_fds() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


def _use_and_close(connection: SshConnection, answer: multiprocessing.connection.Connection) -> None:
    connection.close()
    connection.connect(soon())  # logins of the child's own
    answer.send(connection.run("echo child", deadline=soon()).stdout)
    connection.close()


_COPY = """
import os, socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while data := os.read(0, 65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := sock.recv(65536):
    while data:
        data = data[os.write(1, data):]
"""


def _proxied(server: SshServer, tmp_path: Path, command: str) -> dict[str, Any]:
    """Options under which `testbox` is reached through `command`, in which COPY is `nc`."""
    (tmp_path / "copy.py").write_text(_COPY)
    config = tmp_path / "config"
    command = command.replace("COPY", f"{sys.executable} {tmp_path}/copy.py %h %p")
    config.write_text(f"{server.config.read_text()}  ProxyCommand {command}\n")
    return {"known_hosts_file": str(server.known_hosts), "config_file": str(config)}


def _children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_a_proxy_command_carries_the_login_and_ends_with_it(ssh_server: SshServer, tmp_path: Path) -> None:
    threads, fds, children = set(threading.enumerate()), open_fds(), _children()
    marker = tmp_path / "marker"
    command = f"sh -c 'sleep 600 & echo $! > {marker}; exec COPY'"
    data = os.urandom(2**20) * 4
    with SshConnection("testbox", **_proxied(ssh_server, tmp_path, command)) as connection:
        assert connection.run("cat", stdin=data, deadline=soon(30)).stdout == data
        assert len(_children() - children) == 1
        sleeper = int(marker.read_text())
        os.kill(sleeper, 0)
    assert set(threading.enumerate()) == threads
    assert open_fds() == fds
    assert _children() == children
    deadline = soon()
    while Path(f"/proc/{sleeper}").exists() and "Z" not in Path(f"/proc/{sleeper}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_proxy_command_that_says_much_does_not_stall(ssh_server: SshServer, tmp_path: Path) -> None:
    command = "sh -c 'yes | head -c 300000 >&2; exec COPY'"
    with SshConnection("testbox", **_proxied(ssh_server, tmp_path, command)) as connection:
        assert connection.run("echo far", deadline=soon()).stdout == b"far\n"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "sh -c 'echo one >&2; echo the gate is shut >&2; exit 7'",
            r"ended with status 7; it said: one \| the gate is",
        ),
        ("/no/such/program %h", r"ended with status 127; it said: .*/no/such/program"),
        ("sh -c 'kill -9 $$'", "ended with status -9"),
    ],
)
def test_what_a_failed_proxy_command_said_is_shown(
    ssh_server: SshServer, tmp_path: Path, command: str, told: str
) -> None:
    fds, children, begun = open_fds(), _children(), time.monotonic()
    with pytest.raises(ConnectError, match=f"the login to .*testbox.* failed: the ProxyCommand .* {told}"):
        SshConnection("testbox", **_proxied(ssh_server, tmp_path, command)).connect(soon())
    assert time.monotonic() - begun < 5.0
    assert open_fds() == fds
    assert _children() == children


def test_a_proxy_command_whose_ssh_was_dropped_is_tried_again(ssh_server: SshServer, tmp_path: Path) -> None:
    script = tmp_path / "dropped_twice"
    words = "kex_exchange_identification: Connection closed by remote host"
    script.write_text(f'''#!/bin/sh
echo attempt >> "$0.log"
[ "$(wc -l < "$0.log")" -gt 2 ] && exec "$@"
echo "{words}" >&2
exit 255
''')
    script.chmod(0o755)
    children = _children()
    with SshConnection("testbox", **_proxied(ssh_server, tmp_path, f"{script} COPY")) as connection:
        assert connection.run("echo far", deadline=soon()).stdout == b"far\n"
    assert Path(f"{script}.log").read_text() == "attempt\n" * 3
    assert _children() == children


def test_a_proxy_command_that_hangs_ends_at_the_deadline(ssh_server: SshServer, tmp_path: Path) -> None:
    fds, children, begun = open_fds(), _children(), time.monotonic()
    command = "sh -c 'echo waiting >&2; sleep 600'"
    with pytest.raises(ConnectError, match=r"nothing came through the ProxyCommand .* in time.*it said: waiting"):
        SshConnection("testbox", **_proxied(ssh_server, tmp_path, command)).connect(soon(0.5))
    assert time.monotonic() - begun < 3.0
    assert open_fds() == fds
    assert _children() == children


def test_a_stopped_proxy_command_costs_no_more_than_the_deadline(ssh_server: SshServer, tmp_path: Path) -> None:
    children = _children()
    with SshConnection("testbox", **_proxied(ssh_server, tmp_path, "COPY")) as connection:
        (proxy,) = _children() - children
        os.kill(proxy, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            connection.run("true", deadline=soon(0.5))
        connection.close()
        assert time.monotonic() - begun < 4.0
    assert _children() == children


def test_a_failed_login_ends_its_proxy_command(
    ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    children = _children()
    login = _proxied(ssh_server, tmp_path, "COPY")
    with pytest.raises(AuthError):
        SshConnection("testbox", identity_file="/no/such/key", **login).connect(soon())
    assert _children() == children


def test_a_forked_child_leaves_a_proxy_command_alone(ssh_server: SshServer, tmp_path: Path) -> None:
    with SshConnection("testbox", **_proxied(ssh_server, tmp_path, "COPY")) as connection:
        mine, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=_use_and_close, args=(connection, theirs))
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert mine.recv() == b"child\n"
        assert connection.run("echo on", deadline=soon()).stdout == b"on\n"


def test_the_ssh_program_uses_the_same_proxy_command(ssh_server: SshServer, tmp_path: Path) -> None:
    command = f"sh -c 'echo 100%% >> {tmp_path}/used; exec COPY'"
    login = SshConnection("testbox", **_proxied(ssh_server, tmp_path, command)).login
    done = subprocess.run(["ssh", *login.ssh_arguments(), "echo far"], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"far\n", b"")
    assert (tmp_path / "used").read_text() == "100%\n"
