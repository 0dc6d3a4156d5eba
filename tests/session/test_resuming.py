"""A session outlives its connections: whatever cuts them, each call runs once, and the episode goes on where it was."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import is_alive, wait_until
from server_process import ServerProcess, serving

from remote_env import RemoteEnv
from remote_env.errors import DeadlineExceeded, NotRun, SessionLost
from remote_env.session import ControlLink, LinkEvent, LinkOptions, Session
from remote_env.testing import CountingEnv, FaultProxy
from remote_env.transport import connect_tcp

ROOT = Path(__file__).resolve().parents[2]
COUNTING = "remote_env.testing.counting:make"
KWARGS: dict[str, Any] = {"image": True, "render_mode": "rgb_array"}
LARGE = {"goal": np.arange(300_000.0)}  # 2.4 MB, which fills every buffer on the way
pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    with serving(COUNTING, KWARGS, max_sessions=1) as process:
        yield process


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[FaultProxy]:
    with FaultProxy(("127.0.0.1", server.port), seed=7) as proxy:
        yield proxy


def attach(proxy: FaultProxy, server: ServerProcess, **arguments: Any) -> RemoteEnv:
    assert isinstance(proxy.address, tuple)
    return RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", token=server.token, **arguments)


def soon(timeout_s: float = 10.0) -> float:
    return time.monotonic() + timeout_s


def ask(server: ServerProcess) -> ControlLink:
    """Another's link to the supervisor, past the proxy."""
    dial = partial(connect_tcp, "127.0.0.1", server.port)
    return ControlLink(dial, server.token, soon(), session=None, client="the test")


def sessions(server: ServerProcess) -> int:
    link = ask(server)
    try:
        return int(link.status()["sessions"])
    finally:
        link.close()


class Twin:
    """A remote environment, and the same one here: what both answer must be equal, and so must the number of calls."""

    def __init__(self, env: RemoteEnv, **kwargs: Any) -> None:
        self.env, self.here = env, CountingEnv(**{**KWARGS, **kwargs})
        self._random, self._more = np.random.default_rng(3), 0

    def reset(self, options: dict[str, Any] | None = None) -> None:
        (seen, info), (expected, here) = (
            self.env.reset(seed=5, options=options),
            self.here.reset(seed=5, options=options),
        )
        self._more = info["calls"] - here["calls"] if not self._more else self._more
        self.compare((seen, info), (expected, here))

    def act(self) -> Any:
        return self._random.uniform(-1.0, 1.0, 2)

    def step(self) -> None:
        action = self.act()
        self.compare(self.env.step(action), self.here.step(action))

    def compare(self, seen: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
        assert_equal(seen[0], expected[0])
        assert seen[1:-1] == expected[1:-1]
        assert seen[-1]["calls"] == expected[-1]["calls"] + self._more


def assert_equal(seen: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert seen.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(seen[name], value)
    else:
        np.testing.assert_array_equal(seen, expected)


# Cuts in every kind of call


def get_and_set(twin: Twin) -> None:
    """Two calls: the state of here put there, and what comes back."""
    state = twin.here.get_scene_state(native=True)
    twin.env.set_state(state)
    twin.here.set_scene_state(state)


def get(twin: Twin) -> None:
    seen, expected = twin.env.get_state(native=True), twin.here.get_scene_state(native=True)
    np.testing.assert_array_equal(seen.values, expected.values)
    assert seen.native == expected.native


def render(twin: Twin) -> None:
    assert_equal(twin.env.render(), twin.here.render())


def call(twin: Twin) -> None:
    assert twin.env.call("calls") == twin.here.calls() + twin._more


CALLS: dict[str, Callable[[Twin], None]] = {
    "reset": Twin.reset,
    "step": Twin.step,
    "get_state": get,
    "set_state": get_and_set,
    "render": render,
    "call": call,
}
PLACES = [("up", 0), ("up", 1), ("up", 41), ("down", 0), ("down", 39), ("down", 40)]


@pytest.mark.parametrize("name", CALLS)
def test_a_cut_in_a_call_is_not_noticed(server: ServerProcess, proxy: FaultProxy, name: str) -> None:
    with attach(proxy, server) as env:
        twin = Twin(env)
        twin.reset()
        twin.step()
        for direction, count in PLACES:
            cuts = proxy.cuts
            proxy.cut_after(count, direction, reset=count == 1)  # type: ignore[arg-type]
            CALLS[name](twin)
            assert proxy.cuts == cuts + 1
        twin.step()


@pytest.mark.parametrize(("direction", "count"), [("up", 1_000_000), ("down", 500_000), ("down", 921_700)])
def test_a_cut_in_a_large_message_is_not_noticed(
    server: ServerProcess, proxy: FaultProxy, direction: Any, count: int
) -> None:
    with attach(proxy, server) as env:
        twin = Twin(env)
        twin.reset()
        proxy.cut_after(count, direction)
        twin.reset(LARGE)
        twin.step()
        assert proxy.cuts == 1


def test_a_damaged_message_is_sent_again(server: ServerProcess, proxy: FaultProxy) -> None:
    with attach(proxy, server) as env:
        twin = Twin(env)
        twin.reset()
        for direction, offset in (("up", 3), ("up", 45), ("down", 20), ("down", 60)):
            proxy.corrupt(direction=direction, offset=offset)  # type: ignore[arg-type]
            twin.step()
        twin.step()


def test_links_that_are_cut_all_the_time_lose_nothing(server: ServerProcess, proxy: FaultProxy) -> None:
    with attach(proxy, server) as env:
        twin = Twin(env)
        twin.reset()
        proxy.cut_every(1_500_000)  # no more than a step or two each
        for _ in range(12):
            twin.step()
        proxy.cut_every(None)
        assert proxy.cuts > 2
        twin.step()


# Steps ahead


@pytest.fixture(scope="module")
def light(isolated_home: Path) -> Iterator[ServerProcess]:
    """Without images, and with episodes of 30 steps."""
    with serving(COUNTING, {"episode_length": 30}, max_sessions=1) as process:
        yield process


def test_steps_ahead_survive_cuts_in_order(light: ServerProcess) -> None:
    with FaultProxy(("127.0.0.1", light.port), seed=2) as proxy, attach(proxy, light) as env:
        twin = Twin(env, image=False)
        for _ in range(4):
            twin.reset()
            proxy.cut_every(3000)
            actions = [twin.act() for _ in range(29)]
            for count, action in enumerate(actions):
                env.step_async(action)
                if count >= 9:  # ten are under way
                    twin.compare(env.step_wait(), twin.here.step(actions[count - 9]))
            for action in actions[-9:]:
                twin.compare(env.step_wait(), twin.here.step(action))
            proxy.cut_every(None)
        assert proxy.cuts > 3


def test_what_stands_behind_an_episode_s_end_is_not_run_though_it_is_sent_again(light: ServerProcess) -> None:
    with FaultProxy(("127.0.0.1", light.port)) as proxy, attach(proxy, light) as env:
        twin = Twin(env, image=False, episode_length=30)
        twin.reset()
        actions = [twin.act() for _ in range(33)]
        for action in actions[:28]:
            twin.compare(env.step(action), twin.here.step(action))
        proxy.cut_after(100, "up")  # within the second of the five
        for action in actions[28:]:
            env.step_async(action)
        for action in actions[28:30]:
            twin.compare(env.step_wait(), twin.here.step(action))
        for _ in actions[30:]:
            with pytest.raises(NotRun, match="the number 31"):
                env.step_wait()
        assert proxy.cuts == 1
        twin.reset()


# Links that fall silent


def test_a_silent_link_is_given_up_and_the_step_goes_on(server: ServerProcess, proxy: FaultProxy) -> None:
    events: list[LinkEvent] = []
    noticed = threading.Event()

    def on_link(event: LinkEvent) -> None:
        events.append(event)
        noticed.set()

    heartbeat = {"heartbeat_s": 0.1, "heartbeat_timeout_s": 0.2}
    with attach(proxy, server, on_link=on_link, **heartbeat) as env:
        twin = Twin(env)
        twin.reset()
        proxy.pause()
        mender = threading.Thread(target=lambda: (noticed.wait(20), proxy.resume()))
        mender.start()
        twin.step()
        mender.join(20)
    assert [event.kind for event in events] == ["cut", "resumed"]
    assert "no heartbeat for" in events[0].why


def test_time_without_a_link_does_not_count_as_the_step_s(server: ServerProcess, proxy: FaultProxy) -> None:
    back = threading.Event()
    with attach(proxy, server, step_timeout_s=0.4, on_link=lambda event: event.kind == "cut" and back.set()) as env:
        twin = Twin(env)
        twin.reset()
        proxy.refuse(True)
        proxy.cut()
        late = threading.Timer(0.6, lambda: (back.wait(20), proxy.refuse(False)))
        late.start()
        twin.step()
        late.join(20)


def test_a_step_that_is_late_is_resumed_although_the_link_was_cut_meanwhile(isolated_home: Path) -> None:
    with (
        serving(COUNTING, {"step_s": 0.6}) as process,
        FaultProxy(("127.0.0.1", process.port)) as proxy,
        attach(proxy, process, step_timeout_s=0.2) as env,
    ):
        twin = Twin(env, image=False)
        twin.reset()
        action = twin.act()
        with pytest.raises(DeadlineExceeded, match="busy in step"):
            env.step(action)
        proxy.cut()
        env._step_timeout_s = 10.0
        transition = env.resume()
        assert transition is not None
        twin.compare(transition, twin.here.step(action))
        twin.step()


# What is told


def test_what_happens_to_the_link_is_told(
    server: ServerProcess, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[LinkEvent] = []
    with attach(proxy, server, on_link=events.append) as env:
        env.reset()
        env.step(np.zeros(2))
        with caplog.at_level(logging.INFO, "remote_env"):
            proxy.cut()
            env.step(np.zeros(2))
        assert [event.kind for event in events] == ["cut", "resumed"]
        assert events[1].attempts == 1
        assert events[1].after_s > 0.0
        where = f"127.0.0.1:{proxy.address[1]}"
        told = [record for record in caplog.records if where in record.getMessage()]
        assert [record.levelname for record in told] == ["WARNING", "WARNING"]
        assert f"the link to {where} is cut (" in told[0].getMessage()
        assert "reconnecting for up to 60 s" in told[0].getMessage()
        assert "at request 2: nothing was lost" in told[1].getMessage()
    assert "resumed at request 2" in server.read_log()


def test_status_while_the_link_is_cut(server: ServerProcess, proxy: FaultProxy) -> None:
    with attach(proxy, server) as env:
        twin = Twin(env)
        twin.reset()
        proxy.refuse(True)
        proxy.cut()
        status = env.status()
        assert (status["state"], bool(status["why"])) == ("unreachable", True)
        proxy.refuse(False)
        twin.step()
        assert env.status()["state"] == "ready"


# What cannot be resumed


def test_without_resuming_a_cut_link_loses_the_session_with_it(server: ServerProcess, proxy: FaultProxy) -> None:
    with attach(proxy, server, resume="never") as env:
        env.reset()
        proxy.cut()
        with pytest.raises(
            SessionLost, match=r"the link to the simulator broke \(.*\); reset\(\) starts a new session"
        ):
            env.step(np.zeros(2))
        wait_until(lambda: sessions(server) == 0, "the session ends with its link")
        Twin(env).reset()


def test_after_the_time_to_reconnect_the_session_is_lost_and_reset_begins_another(
    server: ServerProcess, proxy: FaultProxy
) -> None:
    events: list[LinkEvent] = []
    with attach(proxy, server, reconnect_timeout_s=0.3, on_link=events.append) as env:
        env.reset()
        proxy.refuse(True)
        proxy.cut()
        with pytest.raises(SessionLost, match=r"could not be made anew within 0\.3 s .*reset\(\) starts a new session"):
            env.step(np.zeros(2))
        with pytest.raises(SessionLost):  # and stays so
            env.step(np.zeros(2))
        assert [event.kind for event in events] == ["cut", "lost"]
        assert events[1].attempts > 1
        proxy.refuse(False)
        Twin(env).reset()  # though the server has one session, and keeps the lost one for a while
        assert sessions(server) == 1


def cut_off(proxy: FaultProxy, env: RemoteEnv) -> str:
    """Have the link cut and stay so; the session's id."""
    session = env._life.session
    assert session is not None
    proxy.refuse(True)
    proxy.cut()
    return str(session.control.welcome["session"])


def test_a_simulator_that_died_meanwhile() -> None:
    with (
        serving(COUNTING) as process,
        FaultProxy(("127.0.0.1", process.port)) as proxy,
        attach(proxy, process) as env,
    ):
        env.reset()
        pid = env.status()["pid"]
        cut_off(proxy, env)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the simulator ends")
        proxy.refuse(False)
        with pytest.raises(SessionLost, match=r"the simulator is gone: .*SIGKILL"):
            env.step(np.zeros(2))
        Twin(env, image=False).reset()  # with another simulator


def test_a_session_that_another_ended_meanwhile(server: ServerProcess, proxy: FaultProxy) -> None:
    with attach(proxy, server) as env:
        env.reset()
        session, link = cut_off(proxy, env), ask(server)
        link.leave(soon(), session)
        link.close()
        wait_until(lambda: sessions(server) == 0, "the session ends")
        proxy.refuse(False)
        with pytest.raises(SessionLost, match="this session has ended: its client left"):
            env.step(np.zeros(2))
        Twin(env).reset()


def test_a_session_that_was_kept_long_enough(server: ServerProcess, proxy: FaultProxy) -> None:
    assert isinstance(proxy.address, tuple)
    dial = partial(connect_tcp, *proxy.address)
    session = Session(dial, server.token, soon(), link=LinkOptions(keep_s=0.2))
    session.reset(None, None, 10.0)
    proxy.refuse(True)
    proxy.cut()
    wait_until(lambda: sessions(server) == 0, "nobody came back")
    proxy.refuse(False)
    with pytest.raises(SessionLost, match=r"its client did not come back within 0\.2 s"):
        session.step(np.zeros(2), 10.0)
    session.close()


def test_a_server_that_was_stopped_meanwhile() -> None:
    with serving(COUNTING) as mortal:
        env = RemoteEnv(f"tcp://127.0.0.1:{mortal.port}", token=mortal.token)
        env.reset()
        mortal.stop()
        with pytest.raises(SessionLost, match=r"the server is gone: .*refused"):
            env.step(np.zeros(2))
        env.close()


# Ends


def test_close_ends_a_session_whose_link_is_cut(server: ServerProcess, proxy: FaultProxy) -> None:
    with attach(proxy, server) as env:
        env.reset()
        proxy.cut()
    wait_until(lambda: sessions(server) == 0, "the session has ended, long before its time")


def test_close_ends_where_nothing_answers(server: ServerProcess, proxy: FaultProxy) -> None:
    with attach(proxy, server) as env:
        env.reset()
        session = cut_off(proxy, env)
    link = ask(server)  # the server keeps the session for a client that it has not heard of
    link.leave(soon(), session)
    link.close()


def test_an_interrupt_is_followed_by_the_very_transition(server: ServerProcess, proxy: FaultProxy) -> None:
    """Ctrl-C while a request is sent, while its reply is awaited, and while the link is made anew."""
    assert isinstance(proxy.address, tuple)
    command = [sys.executable, "-W", "ignore", "-c", _INTERRUPTED, str(proxy.address[1])]
    client = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdin is not None
    assert client.stdout is not None

    def hears(line: str) -> None:
        assert client.stdout is not None
        assert client.stdout.readline() == f"{line}\n"

    def tell(line: str) -> None:
        assert client.stdin is not None
        client.stdin.write(f"{line}\n")
        client.stdin.flush()

    tell(server.token)
    hears("ready")
    port = proxy.address[1]
    for stage, is_there in (
        ("reset", lambda: unsent_bytes(client.pid, port) > 100_000),  # it fills the buffers on the way
        ("step", lambda: waits_in(client.pid, "recvfrom")),
    ):
        proxy.pause()
        tell(stage)
        hears("calling")
        wait_until(is_there, f"it is in {stage}")  # type: ignore[arg-type]
        client.send_signal(signal.SIGINT)
        hears("interrupted")
        proxy.resume()
        tell("resume")
        hears("equal")
    proxy.refuse(True)
    proxy.cut()
    tell("step")
    hears("calling")
    hears("cut")
    client.send_signal(signal.SIGINT)
    hears("interrupted")
    proxy.refuse(False)
    tell("resume")
    hears("equal")
    tell("close")
    hears("closed")
    assert client.wait(20) == 0
    client.stdin.close()
    client.stdout.close()
    wait_until(lambda: sessions(server) == 0, "its session ends")


_INTERRUPTED = f"""
import sys
import numpy as np
from remote_env import RemoteEnv
from remote_env.testing import CountingEnv

def tell(line):
    print(line, flush=True)

kwargs = {KWARGS!r}
token = sys.stdin.readline().strip()
told = lambda event: event.kind == "cut" and tell("cut")
env = RemoteEnv(f"tcp://127.0.0.1:{{sys.argv[1]}}", token=token, on_link=told)
here = CountingEnv(**kwargs)
env.reset(seed=1)
here.reset(seed=1)
tell("ready")
calls = {{
    "step": (lambda env: env.step(np.ones(2))),
    "reset": (lambda env: env.reset(seed=2, options={{"goal": np.arange(3_000_000.0)}})),
}}
for line in sys.stdin:
    name = line.strip()
    if name == "close":
        env.close()
        tell("closed")
        break
    try:
        tell("calling")
        calls[name](env)
        tell("it returned")
    except KeyboardInterrupt:
        tell("interrupted")
    sys.stdin.readline()
    seen, expected = env.resume(), calls[name](here)
    same = all(np.array_equal(seen[0][key], expected[0][key]) for key in expected[0])
    tell("equal" if same and seen[1:-1] == ((0.0, False, False) if name == "reset" else expected[1:-1]) else repr(seen))
"""


def unsent_bytes(pid: int, port: int) -> int:
    """The most that a connection of that process to `port` of this machine holds and has not been rid of."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return max((int(line[4].split(":")[0], 16) for line in lines if int(line[2].split(":")[1], 16) == port), default=0)


def waits_in(pid: int, call: str) -> bool:
    """Whether its main thread is in that system call."""
    numbers = {"x86_64": {"recvfrom": "45"}, "aarch64": {"recvfrom": "207"}}
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == numbers[os.uname().machine][call]
