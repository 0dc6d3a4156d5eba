"""Nothing is left behind: not by Ctrl-C at any moment, not by the death of any process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import is_alive, isolated_home, marked_processes, no_leaks, wait_until

from remote_env import RemoteEnv

__all__ = ["isolated_home", "no_leaks"]
pytestmark = pytest.mark.fault

ROOT = Path(__file__).resolve().parents[1]
TASK = "tasks_for_tests.misbehaving:OnDemand"
ACTION = np.zeros(2, np.float32)

# A client that says on its standard output where it is, and keeps a KeyboardInterrupt as its last words.
_CLIENT = """
import faulthandler, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background shell would have ignored
sys.path[:0] = ["tests"]
import numpy as np
from remote_env import RemoteEnv
from remote_env.errors import SessionLost
faulthandler.dump_traceback_later(40, exit=True)
gate = sys.argv[1]
def say(text): print(text, flush=True)
def wait(): return "until:" + gate
env = RemoteEnv(env="tasks_for_tests.misbehaving:OnDemand", env_kwargs=KWARGS)
try:
    BODY
except KeyboardInterrupt:
    say("interrupted")
    AFTER
"""


@pytest.fixture
def gate(isolated_home: Path) -> Iterator[Path]:
    """The file that a waiting task waits for."""
    path = isolated_home / "gate"
    yield path
    path.unlink(missing_ok=True)


def start_client(gate: Path, body: str, *, after: str = "env.close()", kwargs: str = "{}") -> subprocess.Popen[str]:
    def indented(text: str) -> str:
        return textwrap.indent(textwrap.dedent(text), "    ").strip()

    code = _CLIENT.replace("BODY", indented(body)).replace("AFTER", indented(after)).replace("KWARGS", kwargs)
    return subprocess.Popen([sys.executable, "-c", code, str(gate)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def read_line(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


def nothing_runs() -> bool:
    return not marked_processes() and not list(Path(tempfile.gettempdir()).glob("remote-env-*"))


def finish(client: subprocess.Popen[str]) -> str:
    output, _ = client.communicate(timeout=20)
    return output


def interrupt(client: subprocess.Popen[str]) -> str:
    """What it printed after a Ctrl-C; it and everything that it started must be gone."""
    client.send_signal(signal.SIGINT)
    output = finish(client)
    wait_until(nothing_runs, "everything is gone")
    return output


def simulators() -> list[int]:
    return [pid for pid, command in marked_processes().items() if "--simulator" in command]


def supervisors() -> list[int]:
    found = marked_processes().items()
    return [pid for pid, command in found if "launch.py" in command and "--simulator" not in command]


# Ctrl-C


def test_interrupt_while_the_task_is_made(gate: Path) -> None:
    client = start_client(gate, "say('starting'); env.start()", kwargs="{'init': wait()}")
    assert read_line(client) == "starting"
    wait_until(simulators, "the simulator runs", 20)
    assert "interrupted" in interrupt(client)


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.06, 0.15, 0.3])
def test_interrupt_at_any_moment_of_the_start(gate: Path, delay_s: float) -> None:
    client = start_client(gate, "say('starting'); env.reset(); say('started'); time.sleep(30)")
    assert read_line(client) == "starting"
    time.sleep(delay_s)  # not to synchronise: the moment is what is tested
    assert "interrupted" in interrupt(client)


@pytest.mark.parametrize("how", ["close", "end without close"])
def test_interrupt_in_a_step(gate: Path, how: str) -> None:
    client = start_client(
        gate,
        "env.reset(); env.call('plan', wait()); say('stepping'); env.step(np.zeros(2, np.float32))",
        after="open(gate, 'w').close()\n" + ("env.close()" if how == "close" else "raise SystemExit(0)"),
    )
    assert read_line(client) == "stepping"
    assert "interrupted" in interrupt(client)


def test_an_interrupted_step_is_resumed(gate: Path) -> None:
    client = start_client(
        gate,
        """
        env.reset(); env.call('plan', wait())
        threading.Timer(0.0, lambda: (say('stepping'))).start()
        env.step(np.full(2, 0.5, np.float32))
        """,
        after="""
        try: env.step(np.zeros(2, np.float32))
        except ValueError as error: say("resume()" in str(error))
        open(gate, 'w').close()
        say(env.resume()[0].tolist()); say(env.resume()); say(env.step(np.zeros(2, np.float32))[0].tolist())
        env.close()
        """,
    )
    assert read_line(client) == "stepping"
    time.sleep(0.1)  # so that the request is out; a Ctrl-C that comes earlier is another test's
    assert interrupt(client).split("\n")[:5] == ["interrupted", "True", "[1.0, 1.0]", "None", "[0.0, 2.0]"]


def test_interrupt_in_a_reset(gate: Path) -> None:
    client = start_client(
        gate,
        "env.reset(); say('resetting'); env.reset(options={'how': wait()})",
        after="open(gate, 'w').close(); env.close()",
    )
    assert read_line(client) == "resetting"
    assert "interrupted" in interrupt(client)


def test_interrupt_in_close(gate: Path) -> None:
    client = start_client(
        gate,
        """
        env._step_timeout_s = 0.1
        env.reset(); env.call('plan', wait())
        try: env.step(np.zeros(2, np.float32))
        except TimeoutError: pass
        say('closing'); env.close()
        """,
        after="open(gate, 'w').close()",
    )
    assert read_line(client) == "closing"
    time.sleep(0.1)  # into the wait for the simulator's end
    assert "interrupted" in interrupt(client)


def test_interrupts_while_stepping(gate: Path) -> None:
    """Whatever moment is hit: the next call works, or says that the session must be resumed or reset."""
    client = start_client(
        gate,
        """
        env.reset(); say('stepping')
        interrupts = 0
        until = time.monotonic() + 20
        while interrupts < 15 and time.monotonic() < until:
            try:
                while True:
                    say(env.step(np.zeros(2, np.float32))[0][1])
            except KeyboardInterrupt:
                interrupts += 1
                try: env.resume()
                except SessionLost: env.reset()  # a request was cut short: said, never guessed
                say('settled')
        say('end'); env.close()
        """,
    )
    assert read_line(client) == "stepping"
    for _ in range(15):
        for _ in range(20):
            read_line(client)
        client.send_signal(signal.SIGINT)
        while not (line := read_line(client)).endswith("settled"):  # a print may be cut short too
            assert line, "the client ended"
    assert read_line(client) == "end"
    finish(client)
    assert client.returncode == 0
    wait_until(nothing_runs, "everything is gone")


# Deaths


@pytest.mark.parametrize("how", ["idle", "sleep", "hold-gil"])
def test_a_killed_client_takes_its_server_along(gate: Path, how: str) -> None:
    body = "env.reset(); env.call('plan', 'HOW'); say('there'); HOW".replace("HOW", how, 1)
    body = body.replace("; HOW", "; time.sleep(30)" if how == "idle" else "; env.step(np.zeros(2, np.float32))")
    client = start_client(gate, body.replace("'idle'", "''"))
    assert read_line(client) == "there"
    client.kill()
    finish(client)
    wait_until(nothing_runs, "server, simulator and folder are gone")


def test_a_killed_client_with_a_living_child(gate: Path) -> None:
    """A forked worker holds copies of all that its parent had open; they must not keep the server up."""
    body = """
    import os
    env.reset()
    worker = os.fork()
    if worker == 0:
        time.sleep(30); os._exit(0)
    say(worker); time.sleep(30)
    """
    client = start_client(gate, body)
    worker = int(read_line(client))
    client.kill()
    client.wait(10)
    try:
        wait_until(lambda: not simulators() and not supervisors(), "server and simulator are gone")
        assert is_alive(worker)
    finally:
        os.kill(worker, signal.SIGKILL)
        finish(client)


@pytest.mark.parametrize("how", ["", "hold-gil", "sleep"])
def test_a_killed_supervisor_takes_its_simulator_along(isolated_home: Path, how: str) -> None:
    note = isolated_home / "grandchild"
    env = RemoteEnv(env=TASK, env_kwargs={"grandchild": str(note)}, step_timeout_s=0.3)
    env.reset()
    env.call("plan", how)
    try:
        env.step(ACTION)
    except TimeoutError:
        assert how
    pids = [env.status()["pid"], int(note.read_text())]
    assert all(map(is_alive, pids))
    env._life.server.stop.__self__._process.kill()
    wait_until(lambda: not any(map(is_alive, pids)), "simulator and grandchild die with the supervisor", 1.0)
    env.close()


def test_a_dead_simulator_takes_its_children_along(isolated_home: Path) -> None:
    note = isolated_home / "grandchild"
    with RemoteEnv(env=TASK, env_kwargs={"grandchild": str(note)}) as env:
        env.reset()
        os.kill(env.status()["pid"], signal.SIGKILL)
        wait_until(lambda: not is_alive(int(note.read_text())), "the grandchild dies with the simulator", 2.0)


def test_a_normal_end_takes_the_task_s_children_along(isolated_home: Path) -> None:
    note = isolated_home / "grandchild"
    with RemoteEnv(env=TASK, env_kwargs={"grandchild": str(note)}) as env:
        env.reset()
    assert not is_alive(int(note.read_text()))


def test_a_client_that_never_closes_ends_cleanly(gate: Path) -> None:
    client = start_client(gate, "env.reset(); say('done')")
    assert "done" in finish(client)
    assert client.returncode == 0
    assert nothing_runs()


def test_close_right_after_every_stage() -> None:
    def made(env: RemoteEnv) -> Any:
        return env

    stages = [made, RemoteEnv.setup_tunnel, RemoteEnv.start_remote_server, RemoteEnv.start, lambda env: env.reset()]
    for stage in stages:
        env = RemoteEnv(env="CartPole-v1")
        stage(env)
        env.close()
        assert nothing_runs()


def test_close_is_quick() -> None:
    env = RemoteEnv(env="CartPole-v1")
    env.reset()
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 3.0
    assert threading.active_count() == 1
