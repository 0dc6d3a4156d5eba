"""Simulators whose client has gone in the middle of a call, and servers that are treated badly in other ways."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from leak_check import is_alive, wait_until
from server_process import ROOT, BareClient, serving

from remote_env import RemoteEnv
from remote_env.errors import DeadlineExceeded, MessageTooBig, StartError
from remote_env.protocol import frames
from remote_env.server.process import LAUNCHER

TASK = "tasks_for_tests.misbehaving:OnDemand"
ACTION = np.zeros(2, np.float32)


def hang_and_leave(address: str, token: str, how: str) -> int:
    """A client whose step hangs, and who leaves; the simulator's pid."""
    env = RemoteEnv(address, token=token, step_timeout_s=0.3)
    env.reset()
    env.call("plan", how)
    with pytest.raises(DeadlineExceeded, match="busy in step"):
        env.step(ACTION)
    pid = int(env.status()["pid"])
    env.close()
    return pid


def test_a_simulator_hung_for_a_client_that_left_is_replaced_for_the_next() -> None:
    with serving(TASK, release_timeout_s=0.5) as server:
        address = f"tcp://127.0.0.1:{server.port}"
        hung = hang_and_leave(address, server.token, "sleep")
        told: list[str] = []
        with RemoteEnv(address, token=server.token, on_progress=told.append) as env:
            env.reset()
            assert env.status()["pid"] != hung
        assert any("busy in step for a session that has ended" in text for text in told)
        assert not is_alive(hung)


def test_a_simulator_that_finishes_its_call_in_time_is_kept(tmp_path: Path) -> None:
    with serving(TASK, release_timeout_s=20.0) as server:
        address = f"tcp://127.0.0.1:{server.port}"
        busy = hang_and_leave(address, server.token, f"until:{tmp_path / 'gate'}")
        told: list[str] = []
        waiting = RemoteEnv(address, token=server.token, on_progress=lambda text: (told.append(text), open_gate(text)))

        def open_gate(text: str) -> None:
            if "busy in step" in text:
                (tmp_path / "gate").touch()

        with waiting as env:
            env.reset()
            assert env.status()["pid"] == busy
        assert any("busy in step for" in text for text in told)


def test_strangers_are_bounded_and_do_not_lock_the_owner_out() -> None:
    with serving("CartPole-v1", handshake_timeout_s=1.0) as server:
        strangers = [server.open_socket() for _ in range(100)]
        descriptors = Path(f"/proc/{server.process.pid}/fd")
        wait_until(lambda: len(list(descriptors.iterdir())) > 60, "strangers are accepted")
        assert len(list(descriptors.iterdir())) < 90
        with RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=server.token) as env:
            env.reset()
        for sock in strangers:
            sock.close()


def test_a_stranger_cannot_make_the_server_hold_much() -> None:
    with serving("CartPole-v1") as server, BareClient(server) as client:
        client.send(frames.pack_frame(frames.HELLO, b" " * (32 << 10)))
        assert client.recv()[0].type == frames.REFUSED


def test_the_client_holds_no_large_frame_of_a_stranger() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        env = RemoteEnv(f"tcp://127.0.0.1:{port}", token="0" * 64, start_timeout_s=5.0)

        def answer() -> None:
            for _ in range(2):  # whether anything listens, then the handshake
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):  # the client hangs up in the middle
                    if sock.recv(4096):
                        sock.sendall(frames.pack_frame(frames.CHALLENGE, b" " * (8 << 20)))
                        sock.recv(1)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(MessageTooBig, match="proved nothing"):
            env.start()
        thread.join(5)


def test_nohup_is_respected(isolated_home: Path) -> None:
    command = [sys.executable, str(ROOT / "servers" / "task_server.py"), "--env", "CartPole-v1", "--port", "0"]
    serving_process = subprocess.Popen(
        ["nohup", *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert serving_process.stdout is not None
    with serving_process.stdout as lines:
        assert any("serving" in line for line in lines)
        serving_process.send_signal(signal.SIGHUP)
        time.sleep(0.3)  # nothing is to happen
        assert serving_process.poll() is None
        serving_process.terminate()
        assert serving_process.wait(15) == 0


def test_a_server_that_cannot_write_its_record_says_so(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = isolated_home / "a file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(StartError, match="Not a directory"):
        RemoteEnv(port=port, env="CartPole-v1").start()


def test_an_unvisited_server_sleeps() -> None:
    with serving("CartPole-v1", idle_timeout_s=float("inf")) as server:

        def switches() -> int:
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

        before = switches()
        time.sleep(1.0)
        assert switches() - before < 20


def test_the_token_of_the_environment_reaches_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_ENV_TOKEN", "a" * 64)
    with RemoteEnv(env="CartPole-v1") as env:
        env.reset()
        environment = Path(f"/proc/{env.status()['pid']}/environ").read_bytes()
    assert b"REMOTE_ENV_TOKEN" not in environment


def test_a_servers_own_record_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving("CartPole-v1") as server:
        monkeypatch.setenv("REMOTE_ENV_TOKEN", "a" * 64)
        with RemoteEnv(port=server.port) as env:
            env.reset()


def test_a_simulator_whose_supervisor_is_gone_before_it_begins_ends(tmp_path: Path) -> None:
    leash, held = os.pipe()
    os.close(held)  # the supervisor died while the interpreter started
    ours, theirs = socket.socketpair()
    board = os.memfd_create("board")
    os.ftruncate(board, 64)
    (tmp_path / "settings.json").write_text("{}")
    descriptors = (theirs.fileno(), board, leash)
    simulator = subprocess.Popen(
        [sys.executable, str(LAUNCHER), str(tmp_path), "--simulator", *map(str, descriptors)],
        pass_fds=descriptors,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "the supervisor was gone" in simulator.communicate(timeout=15)[1]
    assert simulator.returncode != 0
    for item in (ours, theirs):
        item.close()
    os.close(board)
    os.close(leash)
