"""Servers that are left warm, taken again, chosen by id, and ended when they are old; here, on this machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import is_alive, wait_until

from remote_env import RemoteEnv
from remote_env.env.choosing import HUNG_S, ask_status
from remote_env.env.places import LocalPlace
from remote_env.errors import ConfigError, ConnectError, DeadlineExceeded

ROOT = Path(__file__).resolve().parents[2]
TASK = "tasks_for_tests.misbehaving:OnDemand"


@pytest.fixture(autouse=True)
def nothing_runs_on(isolated_home: Path) -> Iterator[None]:
    """Ends what a test has left warm."""
    yield
    for record in LocalPlace().list(soon()):
        LocalPlace().stop(record, soon())
    wait_until(lambda: not folders(isolated_home), "no session folder is left")


def folders(home: Path) -> list[Path]:
    return list((home / "cache" / "remote-env").glob("sessions/*"))


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def ids() -> list[str]:
    return [record.id for record in LocalPlace().list(soon())]


def leave_warm(**arguments: Any) -> int:
    """Start a server and leave it; its simulator's pid."""
    with RemoteEnv(**{"env": "CartPole-v1", "keep": True, **arguments}) as env:
        env.reset(seed=0)
        return int(env.status()["pid"])


def test_a_kept_server_is_taken_again_warm_and_quickly() -> None:
    pid = leave_warm()
    assert is_alive(pid)
    [record] = LocalPlace().list(soon())
    assert (record.task_label, record.user != "", record.token not in repr(record)) == ("CartPole-v1", True, True)
    began = time.monotonic()
    with RemoteEnv(env="CartPole-v1", reuse=True) as env:
        env.reset(seed=0)
        assert time.monotonic() - began < 2.0
        status = env.status()
        assert (status["pid"], status["kept"], status["sessions"]) == (pid, True, 1)
    assert ids() == [record.id]  # an attached server stays
    with RemoteEnv(session=record.id[:6]) as env:
        assert env.status()["pid"] == pid


def test_without_a_warm_server_reuse_starts_one_and_close_ends_it() -> None:
    with RemoteEnv(env="CartPole-v1", reuse=True) as env:
        assert env._life.server.started
        assert len(ids()) == 1
    assert ids() == []


def test_a_server_of_another_task_or_setup_is_not_taken() -> None:
    leave_warm()
    others: list[dict[str, Any]] = [
        {"env": "Acrobot-v1"},
        {"env_kwargs": {"sutton_barto_reward": True}},
        {"server_env": {"A": "1"}},
        {"cwd": "/tmp"},
        {"requirements": ["numpy"]},
        {"python": sys.executable},
    ]
    envs = [RemoteEnv(**{"env": "CartPole-v1", "reuse": True, **other}) for other in others]
    with ThreadPoolExecutor(len(envs)) as pool:  # each waits for its server more than it works
        list(pool.map(RemoteEnv.start_remote_server, envs))
        started = [env._life.server.started for env in envs]
        list(pool.map(RemoteEnv.close, envs))
    assert started == [True] * len(envs)


def test_a_server_that_is_held_is_not_taken() -> None:
    pid = leave_warm()
    with RemoteEnv(env="CartPole-v1", reuse=True) as holder:
        assert holder.status()["pid"] == pid
        with RemoteEnv(env="CartPole-v1", reuse=True) as other:
            assert other._life.server.started
        [record] = LocalPlace().list(soon())
        with pytest.raises(ConnectError, match=r"all 1 session\(s\) of this server are taken \(by .* since"):
            RemoteEnv(session=record.id).start()


def test_one_whose_simulator_hangs_is_not_taken() -> None:
    env = RemoteEnv(env=TASK, keep=True, step_timeout_s=0.2)
    env.reset()
    hung = env.status()["pid"]
    env.call("plan", "hold-gil")
    with pytest.raises(DeadlineExceeded):
        env.step(np.zeros(2, np.float32))
    env.close()
    [record] = LocalPlace().list(soon())
    server = LocalPlace().attach(record, soon())
    wait_until(lambda: (ask_status(server, soon()) or {}).get("since_s", 0.0) > HUNG_S, "it has hung for a while")
    with RemoteEnv(env=TASK, reuse=True) as other:
        other.reset()
        assert other._life.server.started
        assert other.status()["pid"] != hung
    os.kill(hung, signal.SIGKILL)  # else ending its server takes its time


def test_one_that_ends_while_it_is_taken_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_warm()
    attach = LocalPlace.attach

    def end_first(place: LocalPlace, record: Any, deadline: float) -> Any:
        server = attach(place, record, deadline)
        dial, dialled = server.dial, []

        def dial_and_die(until: float) -> Any:
            if dialled:  # when it was asked what it does it lived
                place.stop(record, until)
            dialled.append(until)
            return dial(until)

        server.dial = dial_and_die
        return server

    with monkeypatch.context() as patch:
        patch.setattr(LocalPlace, "attach", end_first)
        with RemoteEnv(env="CartPole-v1", reuse=True) as env:
            env.reset(seed=0)
            assert env._life.server.started


def test_a_server_with_a_session_free_is_shared() -> None:
    leave_warm(max_sessions=2)
    with RemoteEnv(env="CartPole-v1", reuse=True) as one, RemoteEnv(env="CartPole-v1", reuse=True) as other:
        assert one._life.server.port == other._life.server.port
        assert one.status()["pid"] != other.status()["pid"]


def test_two_clients_that_race_for_one_warm_server_both_get_one() -> None:
    pid, barrier, got = leave_warm(), threading.Barrier(2), []

    def take() -> None:
        env = RemoteEnv(env="CartPole-v1", reuse=True)
        barrier.wait(10)
        env.reset(seed=0)
        got.append(env)

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    pids = [env.status()["pid"] for env in got]
    for env in got:
        env.close()
    assert len(set(pids)) == 2
    assert pid in pids


def test_close_may_decide_to_keep_or_not() -> None:
    env = RemoteEnv(env="CartPole-v1", reuse=True)
    env.reset(seed=0)
    pid = env.status()["pid"]
    env.close(keep=True)
    assert is_alive(pid)
    assert env.status() == {"state": "closed"}
    with RemoteEnv(env="CartPole-v1", keep=True, server_env={"A": "2"}) as env:
        other = env.status()["pid"]
        env.close(keep=False)
    assert not is_alive(other)
    assert is_alive(pid)


def test_a_program_that_ends_without_close_leaves_what_was_to_be_kept() -> None:
    code = "from remote_env import RemoteEnv\nenv = RemoteEnv(env='CartPole-v1', keep=True)\nenv.reset(seed=0)\n"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, timeout=60, check=True)
    assert len(ids()) == 1


def test_a_server_that_hangs_on_us_cannot_be_kept() -> None:
    env = RemoteEnv(env="CartPole-v1")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"ends with this process.*keep=True"):
        env.close(keep=True)
    env.step(0)  # nothing was ended
    env.close()


def test_a_server_that_was_only_started_can_be_kept() -> None:
    env = RemoteEnv(env="CartPole-v1", keep=True, idle_timeout_s=30.0).start_remote_server()
    env.close()
    assert len(ids()) == 1


def test_an_id_that_names_none_or_several_lists_what_runs() -> None:
    with pytest.raises(ConfigError, match=r"session='abc' names no server of yours on local; none runs there"):
        RemoteEnv(session="abc").start()
    leave_warm()
    leave_warm(env="Acrobot-v1")
    with pytest.raises(ConfigError, match=r"session='' names no server.*\(CartPole-v1, port \d+.*\(Acrobot-v1, port"):
        RemoteEnv(session="").start()
    with pytest.raises(ConfigError, match=r"serves env='CartPole-v1', and asked for was env='Acrobot-v1'"):
        RemoteEnv(session=ids()[0], env="Acrobot-v1").start()


def test_it_ends_itself_when_nobody_came_back(isolated_home: Path) -> None:
    pid = leave_warm(idle_timeout_s=0.3)
    wait_until(lambda: not is_alive(pid), "the kept server ends after its idle time-out")
    wait_until(lambda: not ids(), "its record is gone")
    wait_until(lambda: not folders(isolated_home), "its folder is gone, a moment later")


def test_cleanup_old_ends_what_nobody_holds_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    kept = leave_warm()
    env = RemoteEnv(env="Acrobot-v1", reuse=True)
    env.reset(seed=0)
    forgotten = start_and_vanish()
    wait_until(lambda: len(ids()) == 3, "three servers run")
    with caplog.at_level(logging.WARNING), RemoteEnv(env="CartPole-v1", cleanup_old=True):
        assert not is_alive(forgotten)
    assert [record.message for record in caplog.records if "ended the old server" in record.message]
    assert is_alive(kept)
    env.step(0)
    env.close()


def test_cleanup_old_leaves_alone_what_waits_for_its_starter() -> None:
    env = RemoteEnv(env="Acrobot-v1", reuse=True).start_remote_server()
    with RemoteEnv(env="CartPole-v1", cleanup_old=True):
        env.reset(seed=0)
    env.close()


def start_and_vanish() -> int:
    """A client that is killed while it holds a server which it did not mean to keep; the simulator's pid."""
    code = (
        "import os, signal\nfrom remote_env import RemoteEnv\n"
        "env = RemoteEnv(env='MountainCar-v0', reuse=True)\nenv.reset(seed=0)\n"
        "print(env.status()['pid'], flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return int(done.stdout)


def test_cleanup_old_removes_what_a_killed_server_left(isolated_home: Path) -> None:
    pid = leave_warm()
    [record] = LocalPlace().list(soon())
    os.kill(record.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the simulator dies with its supervisor")
    wait_until(lambda: not is_alive(record.pid), "the supervisor, whose files the kernel closes first, is gone")
    cache = isolated_home / "cache" / "remote-env"
    assert list(cache.glob("servers/*/*.json"))
    with RemoteEnv(env="CartPole-v1", cleanup_old=True):
        assert list(cache.glob("servers/*/*.json")) == []
        assert list(cache.glob("sessions/*")) == []


def test_a_reused_server_survives_cleanup_old() -> None:
    with RemoteEnv(env="CartPole-v1", reuse=True) as env:
        pid = env.status()["pid"]
        env.close(keep=True)
    with RemoteEnv(env="CartPole-v1", reuse=True, cleanup_old=True) as env:
        assert env.status()["pid"] == pid


def test_a_kept_server_brings_everything_to_its_next_client() -> None:
    counting: dict[str, Any] = {"env": "remote_env.testing.counting:make", "env_kwargs": {"image": True}}
    with RemoteEnv(**counting, observation_keys=["state"], keep=True) as env:
        assert list(env.reset(seed=0)[0]) == ["state"]
    with RemoteEnv(**counting, reuse=True) as env:
        assert sorted(env.reset(seed=0)[0]) == ["image", "state"]
