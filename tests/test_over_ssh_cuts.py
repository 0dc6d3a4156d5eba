"""Episodes over a real sshd whose logins, hosts and cables fail: they go on at the same step, nothing doubled."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dropped_link import Cable, cable_to_a_host
from leak_check import is_alive, wait_until
from ssh_client import FAR_PYTHON, nothing_is_left, over_ssh, remains
from ssh_server import SshServer
from trajectories import TASK, Events, Tell, here, walk, walk_ahead

from remote_env import RemoteEnv
from remote_env.errors import SessionLost

sys.path.insert(0, str(Path(__file__).parent / "ssh"))

from launching import network_namespace

__all__ = ["nothing_is_left"]
pytestmark = pytest.mark.fault

KWARGS = {"episode_length": 17}
STEPS = 60


@pytest.fixture
def server() -> Iterator[SshServer]:
    """An sshd of its own, whose logins a test may kill."""
    with SshServer() as server:
        yield server
        wait_until(lambda: not remains(server), "nothing is left there")


def remote(server: SshServer, events: Events, **arguments: Any) -> RemoteEnv:
    """The counting environment there; a silent link counts as cut soon."""
    quick = {"heartbeat_s": 0.2, "heartbeat_timeout_s": 1.0, "ssh_keepalive_s": 1, "ssh_keepalive_count": 2}
    return over_ssh(server, env=TASK, env_kwargs=KWARGS, on_link=events, **{**quick, **arguments})


def at(strikes: dict[int, Callable[[], object]]) -> Tell:
    """Does this after each of these steps."""

    def tell(step: int) -> None:
        if step in strikes:
            strikes[step]()

    return tell


def soon() -> float:
    """A deadline."""
    return time.monotonic() + 20.0


def kill(server: SshServer) -> Callable[[], None]:
    """Kills every login there."""
    return lambda: server.signal_connections(signal.SIGKILL)


def check(env: RemoteEnv, events: Events, strikes: Tell, *, least: int, take: Any = walk) -> None:
    """Walk under these strikes: as many cuts as said at least, and every call once."""
    seen = take(env, STEPS, strikes)
    assert (seen.doubled, seen.lost) == (0, 0)
    assert seen.is_like(here(walk, STEPS, **KWARGS))
    assert len(events.resumed_s) >= least, events.all


# Logins


@pytest.mark.parametrize(("kind", "take"), [("channel", walk), ("openssh", walk_ahead), ("sshtunnel", walk)])
def test_logins_that_die_do_not_show_and_a_server_that_dies_does_at_once(
    server: SshServer, kind: str, take: Any
) -> None:
    with remote(server, events := Events(), tunnel=kind) as env:
        strikes = {5: kill(server), 20: kill(server), 21: kill(server), 40: restart(server, events)}
        check(env, events, at(strikes), least=2, take=take)
        [record] = env.setup_tunnel().list(soon())
        os.kill(record.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(record.pid), "the supervisor has died")
        with pytest.raises(SessionLost, match=r"the server is gone: .*does anything listen there"):
            env.step(np.zeros(2))
        assert events.all[-1].kind == "lost"
        assert events.all[-1].after_s < env._life.arguments.reconnect_timeout_s / 2, "it is not waited for"
        env.setup_tunnel().list(soon())  # which removes what the killed one has left


def restart(server: SshServer, events: Events) -> Callable[[], None]:
    """Has sshd away until that is noticed."""

    def strike() -> None:
        events.is_cut.clear()
        server.stop()
        in_background(lambda: events.is_cut.wait(20) and server.start_again())

    return strike


def in_background(work: Callable[[], object]) -> None:
    """Have it done meanwhile."""
    threading.Thread(target=work).start()


def test_a_client_that_computes_meanwhile_keeps_its_session(server: SshServer) -> None:
    with remote(server, Events()) as env:
        env.reset(seed=0)
        kill(server)()
        died = time.monotonic()
        monitor = env._life.monitor
        assert monitor is not None
        # Nobody calls: the heartbeat logs in anew by itself, else the lease would run out.
        wait_until(lambda: not monitor.silence[0] and monitor._heard_at > died, "the server is asked again")
        env.step(np.zeros(2))


def test_a_login_that_stands_still_is_left(server: SshServer) -> None:
    stopped: list[int] = []

    def stop() -> None:
        stopped.extend(server.connection_pids())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    with remote(server, events := Events()) as env:
        check(env, events, at({20: stop}), least=1)
        for pid in filter(is_alive, stopped):
            os.kill(pid, signal.SIGKILL)


def test_jump_hosts_that_die_do_not_show(server: SshServer) -> None:
    with SshServer(jump=server) as behind:
        login = {"known_hosts_file": str(behind.known_hosts), "ssh_config_file": str(behind.config)}
        how = {"env": TASK, "env_kwargs": KWARGS, "python": FAR_PYTHON, **login}
        with RemoteEnv("testbox", on_link=(events := Events()), **how) as env:  # type: ignore[arg-type]
            check(env, events, at({5: kill(server), 20: kill(behind)}), least=2)
        wait_until(lambda: not remains(behind), "nothing is left there")


def test_logins_that_die_do_not_show_behind_a_launch_prefix(server: SshServer) -> None:
    with network_namespace() as prefix, remote(server, events := Events(), launch=prefix) as env:
        check(env, events, at(dict.fromkeys((5, 20, 21), kill(server))), least=2)


# Cables


@pytest.fixture
def cable() -> Iterator[Cable]:
    with cable_to_a_host() as cable:
        yield cable


def test_a_cable_that_is_pulled_and_plugged_in_again_does_not_show(cable: Cable) -> None:
    with SshServer(address=cable.address, prefix=cable.enter) as server:
        with remote(server, events := Events()) as env:

            def blink() -> None:
                cable.pull()
                cable.plug_in()

            def pull() -> None:
                events.is_cut.clear()
                cable.pull()
                in_background(lambda: events.is_cut.wait(20) and cable.plug_in())

            check(env, events, at({5: blink, 20: pull}), least=1)
        wait_until(lambda: not remains(server), "nothing is left there")


def test_a_cable_that_is_pulled_for_good_ends_the_session_in_time(
    cable: Cable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_env.env.life.STOP_TIMEOUT_S", 1.0)
    monkeypatch.setattr("remote_env.env.life.KEPT_BEYOND_S", 1.0)
    with SshServer(address=cable.address, prefix=cable.enter) as server:
        env = remote(server, events := Events(), reconnect_timeout_s=2.0, lease_timeout_s=1.0, idle_timeout_s=0.2)
        env.reset(seed=0)
        cable.pull()
        began = time.monotonic()
        with pytest.raises(SessionLost, match=r"could not be made anew within 2 s \(.+\)"):
            env.step(np.zeros(2))
        env.close()
        assert time.monotonic() - began < 20.0
        assert events.all[-1].kind == "lost"
        wait_until(lambda: not remains(server), "the server ends by itself")


def test_who_cannot_reach_the_server_to_stop_it_is_told_when_it_ends_by_itself(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("remote_env.env.life.KEPT_BEYOND_S", 0.5)
    with remote(server, Events(), reconnect_timeout_s=0.5, idle_timeout_s=0.25) as env:
        env.reset(seed=1)
        server.stop()
    assert "cannot be reached to stop; it ends 2.25 s after it loses us" in caplog.text
    wait_until(lambda: not remains(server), "it has ended")
    server.start_again()
