"""What can be asked of a server whose simulator hangs, and what can be done about it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import is_alive, wait_until
from server_process import BareClient, ServerProcess, serving
from tasks_for_tests import slow

from remote_env.errors import DeadlineExceeded, SessionLost
from remote_env.protocol import frames
from remote_env.session import Session
from remote_env.transport import Transport, connect_tcp

TASK = "tasks_for_tests.slow:Slow"
TIMEOUT_S = 15.0


def open_session(server: ServerProcess) -> Session:
    """A client's session, as RemoteEnv opens it."""

    def dial(deadline: float) -> Transport:
        return connect_tcp("127.0.0.1", server.port, deadline)

    session = Session(dial, server.token, time.monotonic() + TIMEOUT_S, client="the test")
    session.reset(None, None, TIMEOUT_S)
    return session


@contextmanager
def hung_in(plan: str, server: ServerProcess) -> Iterator[tuple[BareClient, str]]:
    """A client's session whose step does `plan` and does not come back, watched by another connection."""
    session = open_session(server)
    try:
        name = session.control.welcome["session"]
        session.call("plan", (plan,), {}, TIMEOUT_S)
        with pytest.raises(DeadlineExceeded, match="busy in step"):
            session.step(np.int64(0), 0.05)
        with BareClient(server) as monitor:
            monitor.shake_hands()
            yield monitor, name
    finally:
        session.close()


def read_since(client: BareClient, offset: int) -> str:
    text, following = "", offset
    while True:
        reply = client.ask(frames.LOGS, since=following, max_bytes=1024)
        text, following = text + reply["text"], reply["next"]
        if following == reply["size"]:
            return text


def test_while_native_code_holds_the_interpreter_everything_is_answered_and_the_stack_is_shown(tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    plan = f"touch:{reached};hold-gil"
    with serving(TASK) as server, hung_in(plan, server) as (monitor, name):
        wait_until(reached.exists, "the step holds the interpreter")
        status = monitor.ask(frames.STATUS, session=name)
        assert (status["state"], status["call"], status["steps"]) == ("busy", "step", 1)
        later = monitor.ask(frames.STATUS, session=name)
        assert later["since_s"] > status["since_s"] > 0
        assert later["holders"][0]["client"] == "the test"
        assert later["holders"][0]["since"] <= time.time()
        assert monitor.ask(frames.PING, session=name)["state"] == "busy"
        dumped = monitor.ask(frames.DUMP, session=name)
        assert dumped["pid"] == status["pid"]
        wait_until(lambda: "in step" in read_since(monitor, dumped["log_from"]), "the stack is in the log")
        stack = read_since(monitor, dumped["log_from"])
        assert "(most recent call first)" in stack
        assert 'misbehaving.py", line ' in stack
        assert " in die" in stack
        assert 'slow.py", line ' in stack
        # A stack that was asked for is no problem.
        assert monitor.ask(frames.PING)["problems"] == []
        monitor.ask(frames.KILL, session=name)


def test_stacks_survive_a_task_that_installs_handlers_and_redirects_its_output(tmp_path: Path) -> None:
    (tmp_path / "rude.py").write_text(
        "import faulthandler, os, signal\n"
        "from tasks_for_tests.slow import Slow\n"
        "def make():\n"
        "    for name in ('SIGUSR1', 'SIGUSR2', 'SIGTERM', 'SIGSEGV', 'SIGQUIT', 'SIGALRM', 'SIGRTMIN', 'SIGRTMAX'):\n"
        "        signal.signal(getattr(signal, name), lambda *_: None)\n"
        "    faulthandler.disable()\n"
        "    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n"
        "    return Slow()\n"
    )
    with serving("rude:make", python_path=[str(tmp_path), *slow_path()]) as server, BareClient(server) as client:
        client.shake_hands(session="new")
        wait_until(lambda: client.ask(frames.STATUS)["state"] == "ready", "the task is made")
        first = client.ask(frames.DUMP)["log_from"]

        def has_stack() -> bool:
            """Whether it waits for work in what has been dumped by now; it may not have come there yet."""
            return "next_connection" in read_since(client, first) or not client.ask(frames.DUMP)

        wait_until(has_stack, "the stack is in the log")


def slow_path() -> list[str]:
    root = Path(slow.__file__).parents[2]
    return [str(root), str(root / "tests")]


def test_stacks_are_refused_where_the_signal_would_kill(tmp_path: Path) -> None:
    (tmp_path / "rude.py").write_text(
        "import faulthandler\n"
        "from remote_env.server.stacks import DUMP_SIGNAL\n"
        "from tasks_for_tests.slow import Slow\n"
        "def make():\n"
        "    faulthandler.unregister(DUMP_SIGNAL)\n"
        "    return Slow()\n"
    )
    with serving("rude:make", python_path=[str(tmp_path), *slow_path()]) as server, BareClient(server) as client:
        client.shake_hands(session="new")
        assert "cannot be asked for its stacks" in client.ask(frames.DUMP)["error"]
        assert client.ask(frames.STATUS)["state"] == "ready"


def test_a_killed_simulator_is_told_and_never_handed_out(tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    with serving(TASK) as server:
        with hung_in(f"touch:{reached};hold-gil", server) as (monitor, name):
            wait_until(reached.exists, "the step holds the interpreter")
            killed = monitor.ask(frames.KILL, session=name)["pid"]
            wait_until(lambda: "signal" in monitor.ask(frames.STATUS, session=name), "it has ended")
            status = monitor.ask(frames.STATUS, session=name)
            assert status["why"] == "it was killed by SIGKILL in step (step 1): killed on request"
            assert (status["state"], status["signal"]) == ("dead", "SIGKILL")
            assert "has ended" in monitor.ask(frames.KILL, session=name)["error"]
            assert "has ended" in monitor.ask(frames.DUMP, session=name)["error"]
        fresh = open_session(server)
        assert fresh.control.status()["pid"] != killed
        assert fresh.control.status()["steps"] == 0
        fresh.close()
        assert not is_alive(killed)


def test_a_session_that_opens_while_a_killed_simulator_ends_gets_a_fresh_one() -> None:
    with serving(TASK) as server, BareClient(server) as monitor:
        monitor.shake_hands()
        old = monitor.ask(frames.STATUS)["pid"]
        os.kill(old, signal.SIGSTOP)  # what is stopped dies of SIGKILL all the same, and does nothing meanwhile
        for _ in range(3):
            assert monitor.ask(frames.KILL).get("pid", old) >= old
        session = open_session(server)
        assert session.control.status()["pid"] != old
        session.close()


def test_the_session_that_loses_its_simulator_hears_why() -> None:
    with serving(TASK) as server, BareClient(server) as client, BareClient(server) as monitor:
        welcome = client.shake_hands(session="new")
        client.wait_event("ready")
        monitor.shake_hands()
        monitor.ask(frames.KILL, session=welcome["session"])
        assert client.wait_event("dead")["killed_by"] == "killed on request"


def test_nothing_of_a_session_that_has_ended_is_answered_for_another() -> None:
    with serving(TASK) as server, BareClient(server) as monitor:
        monitor.shake_hands()
        with BareClient(server) as client:
            gone = client.shake_hands(session="new")["session"]
        wait_until(lambda: monitor.ask(frames.STATUS)["sessions"] == 0, "the session ends")
        status = monitor.ask(frames.STATUS, session=gone)
        assert status["state"] == "dead"
        assert "its client closed it" in status["why"]
        for kind in (frames.KILL, frames.DUMP):
            assert "this session has ended" in monitor.ask(kind, session=gone)["error"]
        assert "no such session" in monitor.ask(frames.KILL, session="0" * 16)["error"]
        assert monitor.ask(frames.STATUS)["state"] == "ready"


def test_a_new_session_gets_a_free_simulator_before_one_that_is_busy_for_a_past_session(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with serving(TASK, max_sessions=2) as server:
        with hung_in(f"until:{gate}", server) as (monitor, name):
            busy = monitor.ask(frames.STATUS, session=name)["pid"]
            free = open_session(server)
            free_pid = free.control.status()["pid"]
            free.close()
            wait_until(lambda: monitor.ask(frames.STATUS)["sessions"] == 1, "the second session ends")
        session = open_session(server)
        assert session.control.status()["pid"] == free_pid != busy
        session.close()
        gate.touch()


def test_a_session_that_waits_gets_the_first_simulator_that_is_free(tmp_path: Path) -> None:
    gates = [tmp_path / "early", tmp_path / "late"]
    with serving(TASK, max_sessions=2) as server:
        with hung_in(f"until:{gates[1]}", server) as (monitor, name):
            first = monitor.ask(frames.STATUS, session=name)["pid"]
            with hung_in(f"until:{gates[0]}", server) as (_, other):
                second = monitor.ask(frames.STATUS, session=other)["pid"]
        with BareClient(server) as waiting:
            session = waiting.shake_hands(session="new")["session"]
            assert waiting.ask(frames.STATUS, session=session)["pid"] in (first, second)
            gates[0].touch()
            wait_until(lambda: waiting.ask(frames.STATUS, session=session)["state"] == "ready", "it gets the free one")
            assert waiting.ask(frames.STATUS, session=session)["pid"] == second != first
        gates[1].touch()


# The log


def test_problems_are_told_once_each_to_whoever_asks() -> None:
    plan = "cuda;cuda;say:[Error] [carb.graphics-vulkan.plugin] VkResult: ERROR_DEVICE_LOST;say:all is well"
    with serving(TASK) as server, BareClient(server) as client:
        assert client.shake_hands()["problems"] == 0
        session = open_session(server)
        session.call("perform", (plan,), {}, TIMEOUT_S)
        session.close()
        wait_until(lambda: client.ask(frames.STATUS)["problems"] == 2, "the problems are found")
        first, second = client.ask(frames.PING, problems_after=0)["problems"]
        assert (first["number"], first["kind"], first["text"]) == (1, "cuda", slow.CUDA_LINE)
        assert (second["number"], second["kind"]) == (2, "vulkan")
        assert abs(first["time"] - time.time()) < 60
        assert client.ask(frames.PING, problems_after=1)["problems"] == [second]
        assert client.ask(frames.PING, problems_after=2)["problems"] == []
        assert client.ask(frames.PING)["last_line"].endswith(" has left")
        metrics = server.http("/metrics")
        assert 'remote_env_log_problems_total{kind="cuda"} 2' in metrics
        assert 'remote_env_log_problems_total{kind="vulkan"} 1' in metrics


def test_what_a_crash_says_last_is_a_problem() -> None:
    with serving(TASK) as server, BareClient(server) as monitor:
        monitor.shake_hands()
        session = open_session(server)
        with pytest.raises(SessionLost, match="SIGSEGV in step"):
            session.step(np.int64(slow.ACTIONS.index("segv")), TIMEOUT_S)
        session.close()
        kinds: list[Any] = [problem["kind"] for problem in monitor.ask(frames.PING)["problems"]]
        assert kinds == ["segfault", "segfault"]  # the interpreter's word, and ours
