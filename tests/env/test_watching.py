"""What a RemoteEnv tells at any time: status, logs, problems in them, and processes beside its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from leak_check import descriptors, wait_until

from remote_env import RemoteEnv
from remote_env.env.places import AddressPlace, LocalPlace
from remote_env.env.processes import read_processes
from remote_env.env.watching import RemoteLog
from remote_env.errors import ConfigError, ConnectionLost, Unsupported

TALKER = """
from gymnasium.envs.classic_control import CartPoleEnv

class Talker(CartPoleEnv):
    remote_calls = ("say",)
    def say(self, text):
        print(text, flush=True)

def make_env():
    return Talker()
"""
TRACEBACK = "Traceback (most recent call last):\n  File \"x.py\", line 3, in f\nKeyError: 'lamp'"


@pytest.fixture
def talker(tmp_path: Path) -> Iterator[RemoteEnv]:
    """A task that writes what it is told to."""
    (tmp_path / "talker.py").write_text(TALKER)
    with RemoteEnv(server_script=tmp_path / "talker.py") as env:
        env.reset(seed=0)
        yield env


def test_status_at_every_stage() -> None:
    env = RemoteEnv(env="CartPole-v1")
    assert env.status() == {"state": "not started"}
    env.start_remote_server()
    assert env.status() == {"state": "not connected"}
    env.connect()
    status = env.status()
    assert (status["state"], status["sessions"]) == ("ready", 1)
    assert {"pid", "uptime_s", "resets", "steps", "last_line", "problems", "holders", "since_s"} <= set(status)
    env.close()
    assert env.status() == {"state": "closed"}


def test_status_of_what_is_dead_and_what_is_gone() -> None:
    with RemoteEnv(env="CartPole-v1") as env:
        env.reset(seed=0)
        os.kill(env.status()["pid"], signal.SIGKILL)
        dead = wait_until(lambda: (status := env.status())["state"] == "dead" and status, "its death is known")
        assert "SIGKILL" in dead["why"]
        env._life.server.stop.__self__._process.kill()
        gone = wait_until(lambda: (status := env.status())["state"] == "unreachable" and status, "nobody answers")
        assert gone["since_s"] >= 0.0
        assert "answer" in gone["why"]  # nothing does, or not as a task server: it depends on the moment
        assert env.status()["since_s"] >= gone["since_s"]


def test_status_of_a_server_that_is_stopped_ends_in_time() -> None:
    with RemoteEnv(env="CartPole-v1") as env:
        env.reset(seed=0)
        supervisor = env._life.server.stop.__self__._process
        supervisor.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert env.status()["state"] == "unreachable"
        assert time.monotonic() - began < 6.0
        supervisor.send_signal(signal.SIGCONT)
        wait_until(lambda: env.status()["state"] == "ready", "it answers again")


# Logs


def test_logs_are_followed_until_the_server_ends(talker: RemoteEnv) -> None:
    talker.call("say", "one")
    followed: list[str] = []
    thread = threading.Thread(target=lambda: followed.extend(talker.logs(3, follow=True)))
    thread.start()
    wait_until(lambda: "one" in followed, "what was there is read")
    talker.call("say", "two\nthree")
    wait_until(lambda: "three" in followed, "what comes is read")
    talker.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [line for line in followed if line in ("one", "two", "three")] == ["one", "two", "three"]


def test_an_iterator_over_the_log_that_is_left_frees_its_link(talker: RemoteEnv) -> None:
    before = len(descriptors())
    lines = talker.logs(follow=True)
    next(iter(lines))
    assert len(descriptors()) == before + 1
    lines.close()  # type: ignore[attr-defined]
    assert len(descriptors()) == before


def test_a_log_that_is_read_after_close_opens_nothing(talker: RemoteEnv) -> None:
    lines = talker.logs(follow=True)
    talker.close()
    with pytest.raises(ConnectionLost, match="closed before its log was read"):
        next(lines)
    assert list(talker.logs(follow=True)) == []


def test_problems_in_the_log_are_found(talker: RemoteEnv, tmp_path: Path) -> None:
    assert talker.check_remote_log().problems == ()
    talker.call("say", TRACEBACK)
    log = talker.check_remote_log(lines=20)
    assert [problem.kind for problem in log.problems] == ["traceback"]
    assert "KeyError: 'lamp'" in log.problems[0].text
    assert log.text == str(log)
    assert "KeyError: 'lamp'" in log
    (tmp_path / "kit.log").write_text("a\n" * 500 + "RuntimeError: CUDA error: out of memory\nlast\n")
    there = talker.check_remote_log(str(tmp_path / "kit.log"), 3)
    assert (there.splitlines(), there.problems[0].kind) == (
        ["a", "RuntimeError: CUDA error: out of memory", "last"],
        "cuda",
    )
    with pytest.raises(ConfigError, match=r"no-such\.log cannot be read on this machine: No such file"):
        talker.check_remote_log(str(tmp_path / "no-such.log"))


def test_a_log_survives_pickling() -> None:
    import pickle

    log = RemoteLog("Segmentation fault (core dumped)")
    again = pickle.loads(pickle.dumps(log))
    assert (again, again.problems) == (log, log.problems)


# Processes


def test_processes_of_this_user_are_found_and_none_is_ended() -> None:
    mark = f"mark-{os.getpid()}-of-this-test"
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", mark], stdin=subprocess.PIPE)
    try:
        [found] = RemoteEnv(env="CartPole-v1").check_remote_process(mark)
        assert found["pid"] == process.pid
        assert mark in found["command"]
        assert 0 <= found["elapsed_s"] < 60
        assert process.poll() is None
        assert LocalPlace().list_processes(f"no-{mark}", time.monotonic() + 5) == []
    finally:
        process.communicate()


def test_elapsed_times_as_ps_writes_them() -> None:
    listed = "  12       05 a\n 13    01:05 b c\n 14 02:01:05 d\n  15 3-02:01:05 e\nnonsense\n"
    listed = listed.replace("       05 a", "    00:05 a")
    assert [entry["elapsed_s"] for entry in read_processes(listed, "")] == [5, 65, 7265, 266465]
    assert read_processes(listed, "c") == [{"pid": 13, "elapsed_s": 65, "command": "b c"}]


def test_an_address_has_no_machine_to_ask() -> None:
    place = AddressPlace("127.0.0.1", 8888)
    for ask in (
        lambda: place.list(0.0),
        lambda: place.read_tail("x", 1, 0.0),
        lambda: place.list_processes("x", 0.0),
    ):
        with pytest.raises(Unsupported, match=r"is an address, not a login.*host='user@box'"):
            ask()
