"""The monitor: keeps the lease, passes on what the far log says, mends its link, and goes when it should."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from leak_check import wait_until
from server_process import ServerProcess, serving

from remote_env import RemoteEnv
from remote_env.env.life import host_name
from remote_env.env.places import LocalPlace
from remote_env.errors import SessionLost
from remote_env.session import ControlLink
from remote_env.transport import connect_tcp

ROOT = Path(__file__).resolve().parents[2]
TASK = "tasks_for_tests.slow:Slow"
LOGGER = "remote_env.remote.127.0.0.1"


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    with serving(TASK, idle_timeout_s=60.0) as process:
        yield process


def attach(server: ServerProcess, lease_timeout_s: float | None = 3.0) -> RemoteEnv:
    """A client whose monitor pings three times in a lease."""
    env = RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=server.token, lease_timeout_s=lease_timeout_s)
    env.reset(seed=0)
    return env


def soon() -> float:
    return time.monotonic() + 5


def sessions(server: ServerProcess) -> int:
    link = ControlLink(
        partial(connect_tcp, "127.0.0.1", server.port), server.token, soon(), session=None, client="test"
    )
    try:
        return int(link.status()["sessions"])
    finally:
        link.close()


def test_an_idle_client_keeps_its_session(server: ServerProcess) -> None:
    with attach(server, 1.2) as env:
        wait_until(lambda: env.status()["since_s"] > 2.5, "more than two leases have passed")
        env.step(0)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_client_that_stands_still_is_cut_off_and_goes_on_or_loses_its_session(
    server: ServerProcess, resume: str
) -> None:
    code = (
        "import sys\nfrom remote_env import RemoteEnv\nfrom remote_env.errors import SessionLost\n"
        f"env = RemoteEnv('tcp://127.0.0.1:{server.port}', token=sys.stdin.readline().strip(), "
        f"lease_timeout_s=0.9, resume='{resume}')\n"
        "env.reset()\nprint('ready', flush=True)\nsys.stdin.readline()\n"
        "try:\n    env.step(0)\n    print(f'went on', flush=True)\n"
        "except SessionLost as error:\n    print(f'lost: {error}', flush=True)\n"
        "env.reset()\nenv.step(0)\nenv.close()\nprint('done', flush=True)\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(f"{server.token}\n")
    client.stdin.flush()
    assert client.stdout.readline() == "ready\n"
    before = server.read_log().count("its lease ran out")
    client.send_signal(signal.SIGSTOP)
    wait_until(lambda: server.read_log().count("its lease ran out") > before, "the lease runs out")
    assert sessions(server) == (1 if resume == "auto" else 0)
    client.send_signal(signal.SIGCONT)
    told, _ = client.communicate("go on\n", timeout=30)
    assert ("went on" if resume == "auto" else "lost: ") in told
    assert told.endswith("done\n")


def test_problems_become_records_once(server: ServerProcess, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), attach(server) as env:
        for number in range(2):
            env.call("perform", f"say:MemoryError number {number}")
            wait_until(lambda: records(caplog, f"MemoryError number {number}"), "it is told")  # noqa: B023
        env.call("perform", "cuda")
        wait_until(lambda: records(caplog, "CUDA error"), "it is told")
    assert [record.levelname for record in records(caplog, "MemoryError number 0")] == ["ERROR"]
    assert len(records(caplog, "CUDA error")) == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING), attach(server) as env:  # what was there before is old news
        env.call("perform", "say:Segmentation fault (core dumped)")
        wait_until(lambda: records(caplog, "Segmentation fault"), "what is new is told")
    assert not records(caplog, "CUDA error")


def records(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == LOGGER and text in record.getMessage()]


def test_lines_become_records_where_they_are_wanted(server: ServerProcess, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER), attach(server) as env:
        env.call("perform", "say:the stage is open")
        wait_until(lambda: records(caplog, "the stage is open"), "it is passed on")
    [record] = records(caplog, "the stage is open")
    assert (record.levelname, record.getMessage()) == ("INFO", "the stage is open")


def test_a_broken_link_is_made_anew(server: ServerProcess, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), attach(server) as env:
        monitor = env._life.monitor
        link = wait_until(lambda: monitor._transport, "it is linked")
        link._sock.shutdown(2)
        wait_until(lambda: monitor._transport not in (None, link), "it is linked again")
        env.call("perform", "say:MemoryError after the break")
        wait_until(lambda: records(caplog, "MemoryError after the break"), "it is told")
        assert monitor.silence == (0.0, "")


def step_often(env: RemoteEnv) -> None:
    for _ in range(100):
        env.step(0)


def test_a_server_that_is_gone_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    with serving(TASK) as mortal:
        env = attach(mortal)
        mortal.process.kill()
        mortal.process.wait()
        with caplog.at_level(logging.INFO):
            wait_until(lambda: env._life.monitor.silence[1], "it is noticed")
        assert any("127.0.0.1 does not answer" in record.getMessage() for record in caplog.records)
        status = env.status()
        assert status["state"] == "unreachable"
        assert status["since_s"] > 0.0
        with pytest.raises(SessionLost):
            step_often(env)
        env.close()
    assert mortal.port not in [record.port for record in LocalPlace().list(soon())]  # which removes its record
    shutil.rmtree(mortal.folder)


def test_it_ends_with_the_environment_and_is_not_there_in_children(server: ServerProcess) -> None:
    env = attach(server)
    monitor = env._life.monitor
    wait_until(lambda: monitor._transport, "it is linked")
    assert "remote-env monitor" in {thread.name for thread in threading.enumerate()}
    pid = os.fork()
    if pid == 0:
        os._exit(0 if monitor._transport._sock.fileno() == -1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    env.close()
    assert "remote-env monitor" not in {thread.name for thread in threading.enumerate()}


def test_without_a_lease_there_is_none_unless_lines_are_wanted(
    server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with attach(server, lease_timeout_s=None) as env:
        assert env._life.monitor is None
    with caplog.at_level(logging.INFO, LOGGER), attach(server, lease_timeout_s=None) as env:
        assert env._life.monitor is not None


def test_a_host_is_named_without_user_and_port() -> None:
    names = {
        None: "local",
        "box": "box",
        "ann@box": "box",
        "ssh://ann@box.example.org:2222": "box.example.org",
        "tcp://127.0.0.1:8888": "127.0.0.1",
        "ssh://[::1]:22": "[::1]",
    }
    assert {host: host_name(host) for host in names} == names
