"""The policy server as a process: its log, its ports, its clients' ends, and its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import wait_until
from policies_for_tests import observe
from policy_server_process import ROOT, PolicyServerProcess, policy_server
from server_process import read_to_end
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as ws_connect

from remote_env.errors import AuthError, PolicyError, RemoteEnvError
from remote_env.policy.dialects import openpi
from remote_env.policy.dialects.ilstudio_messages import EMPTY_REPLY, read_reply, write_request
from remote_env.policy.dialects.renv import connect
from remote_env.policy.meta import MetaObs
from remote_env.policy.token_file import read_token, token_path

RENV = ("--listen", "renv://127.0.0.1:0")


def test_a_client_comes_works_and_goes() -> None:
    with policy_server("echo", *RENV, "--health-port", "0") as server:
        with connect("127.0.0.1", server.port) as policy:
            for value in range(12):
                assert policy.infer(observe(value), episode_ids=[""])[0, 0, 0] == value
        log = server.wait_for("Client #1 closed: 12 requests in total")
        assert re.search(r"^\d\d:\d\d:\d\d loaded echo on cpu in \d+\.\d\d s$", log, re.MULTILINE)
        assert "warmed up with zeros" in log
        assert f"listening on 127.0.0.1:{server.port} (renv; and HTTP for /healthz and /metrics)" in log
        assert f"Ctrl-C or kill {server.process.pid} stops it" in log
        assert f"python examples/policy_client_example.py --host localhost --port {server.port}" in log
        assert re.search(r"Client #1 connected from 127\.0\.0\.1:\d+ \(renv\)", log)
        assert "Client #1: 10 requests processed" in log
        token = read_token(server.port)
        assert token is not None
        assert token not in log
        health = int(re.findall(r"http://127\.0\.0\.1:(\d+)/healthz", log)[0])
        for port in (server.port, health):
            assert server.http("/", port=port).startswith("HTTP/1.1 200 OK")
            assert server.http("/healthz", "HEAD", port=port).startswith("HTTP/1.1 200 OK")
            page = server.http("/metrics", port=port)
            assert 'remote_env_policy_requests_total{dialect="renv"} 12' in page
            assert 'remote_env_policy_batch_rows_bucket{le="1"} 12' in page
            assert "remote_env_policy_request_seconds_count 12" in page
            assert 'remote_env_policy_queue_length{worker="0"} 0' in page
            assert "remote_env_resident_bytes " in page
        path = token_path(server.port)
        assert server.stop(signal.SIGINT) == 0
        assert server.read_log().rstrip().endswith("stopped")
        assert "SIGINT: stopping; once more ends it at once" in server.read_log()
        assert not path.exists()


def test_memory_is_per_client_and_a_killed_client_leaves_none() -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from policies_for_tests import observe\n"
        "from remote_env.policy.dialects.renv import connect\n"
        "policy = connect('127.0.0.1', int(sys.argv[1]))\n"
        "policy.infer(observe(), episode_ids=['mine'])\n"
        "print(policy.infer(observe(), episode_ids=['mine'])[0, 0, 0], flush=True)\n"
        "sys.stdin.read()\n"
    )
    with policy_server("counting", *RENV) as server, connect("127.0.0.1", server.port) as policy:

        def count(episode: str) -> float:
            return float(policy.infer(observe(), episode_ids=[episode])[0, 0, 0])

        assert [count("mine"), count("mine")] == [1, 2]
        command = [sys.executable, "-c", script, str(server.port), str(ROOT), str(ROOT / "tests" / "policy")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"2.0\n"
            other.send_signal(signal.SIGKILL)
        assert [count("mine"), count("other")] == [3, 1]
        policy.reset(["mine"])
        assert [count("mine"), count("other")] == [1, 2]
        server.stop()
        assert "Client #2 closed: 2 requests in total" in server.read_log()


def test_the_model_s_exception_has_its_traceback_at_the_client() -> None:
    with policy_server("failing", *RENV) as server, connect("127.0.0.1", server.port) as policy:
        with pytest.raises(PolicyError, match="the model chokes on a negative number") as caught:
            policy.infer(observe(-1), episode_ids=[""])
        assert "policies_for_tests.py" in caught.value.remote_traceback
        assert policy.infer(observe(2), episode_ids=[""])[0, 0, 0] == 2
        server.wait_for("the policy failed: ValueError: the model chokes")
        assert 'remote_env_policy_errors_total{dialect="renv"} 1' in server.http("/metrics")


def test_sixteen_clients_in_batches() -> None:
    with policy_server("slow_echo", *RENV, "--max_batch", "16", "--max_wait_ms", "50") as server:

        def work(number: int) -> int:
            with connect("127.0.0.1", server.port) as policy:
                for turn in range(3):
                    chunk = policy.infer(observe(10 * number + turn), episode_ids=[""])
                    assert np.array_equal(chunk[0, :, 0], 10 * number + turn + np.arange(4))
            return number

        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(work, range(16))) == list(range(16))
        page = server.http("/metrics")
        calls = int(re.findall(r"remote_env_policy_batch_rows_count (\d+)", page)[0])
        assert "remote_env_policy_batch_rows_sum 48" in page
        assert calls < 40


def test_an_unnamed_port_speaks_them_all() -> None:
    with policy_server("echo", first_bytes_timeout_s=0.5) as server:
        assert f"127.0.0.1:{server.port} (renv, ilstudio, openpi; and HTTP" in server.read_log()
        with connect("127.0.0.1", server.port) as policy:
            assert policy.infer(observe(5), episode_ids=[""])[0, 0, 0] == 5
        with server.connect() as sock:
            sock.sendall(b"SSH-2.0-OpenSSH\r\n")
            assert read_to_end(sock) == b""
        with server.connect() as sock:
            assert read_to_end(sock) == b""
        with server.connect() as sock:
            bad = pickle.dumps(os.system)
            sock.sendall(struct.pack(">I", len(bad)) + bad)
            read_to_end(sock)
        server.wait_for("its first bytes are of no dialect; this port takes renv, ilstudio, openpi")
        server.wait_for("it sent nothing")
        with pytest.raises(AuthError, match="token"):
            connect("127.0.0.1", server.port, token="0" * 64)
        assert server.http("/").endswith("ready\n")


def test_several_places_and_devices() -> None:
    places = [f"{dialect}://127.0.0.1:0" for dialect in ("renv", "ilstudio", "openpi", "lerobot")]
    flags = [word for place in places for word in ("--listen", place)]
    with policy_server("echo", *flags, "--device", "cpu,cpu") as server:
        log = server.read_log()
        assert log.count("loaded echo on cpu in ") == log.count("warmed up") == 2
        assert len(server.ports) == 4
        for dialect, port in zip(("renv", "ilstudio", "openpi"), server.ports[:3], strict=True):
            assert f"listening on 127.0.0.1:{port} ({dialect}; and HTTP for /healthz and /metrics)" in log
            assert server.http("/healthz", port=port).startswith("HTTP/1.1 200 OK")
            assert token_path(port).exists() is (dialect == "renv")
        assert f"listening on 127.0.0.1:{server.ports[3]} (lerobot; gRPC only)" in log
        assert 'remote_env_policy_queue_length{worker="1"} 0' in server.http("/metrics")
        with connect("127.0.0.1", server.port) as policy:
            assert policy.infer(observe(5), episode_ids=[""])[0, 0, 0] == 5
        with openpi.connect("127.0.0.1", server.ports[2], token=None, timeout_s=8, reconnect_timeout_s=1) as policy:
            assert policy.infer(observe(6), episode_ids=[""])[0, 0, 0] == 6
        assert server.stop() == 0


def test_beyond_loopback_openpi_needs_the_token() -> None:
    with policy_server("echo", "--listen", "openpi://0.0.0.0:0", "--insecure") as server:
        with pytest.raises(RemoteEnvError, match="token"):
            openpi.connect("127.0.0.1", server.port, token="0" * 64, timeout_s=8, reconnect_timeout_s=0)
        token = read_token(server.port)
        with openpi.connect("127.0.0.1", server.port, token=token, timeout_s=8, reconnect_timeout_s=1) as policy:
            assert policy.infer(observe(6), episode_ids=[""])[0, 0, 0] == 6
        assert server.http("/healthz").startswith("HTTP/1.1 200 OK")


def test_while_the_model_loads_only_the_health_port_answers() -> None:
    server = PolicyServerProcess("loading_forever", *RENV, "--health-port", "0")
    try:
        log = server.wait_for("loading loading_forever on cpu")
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/healthz", log)[0])
        answer = server.http("/healthz", port=port)
        assert answer.startswith("HTTP/1.1 503 ")
        assert "not ready: loading the model for 0 s" in answer
        assert "remote_env_ready 0" in server.http("/metrics", port=port)
        assert server.stop(signal.SIGTERM) == 0
        assert server.read_log().rstrip().endswith("stopped")
    finally:
        server.stop()


def fail(model: str, *flags: str, **options: Any) -> str:
    """What a server that cannot start says."""
    server = PolicyServerProcess(model, *flags, **options)
    try:
        assert server.wait_exit() == 1
        return server.read_log()
    finally:
        server.stop()


def test_a_model_that_does_not_load() -> None:
    log = fail("broken", *RENV)
    assert "Traceback (most recent call last)" in log
    assert "error: broken could not be loaded on cpu: RuntimeError: these weights are of another model" in log


def test_more_connections_than_descriptors() -> None:
    with policy_server("echo", *RENV, max_files=40) as server, connect("127.0.0.1", server.port) as policy:
        with contextlib.ExitStack() as held:
            for _ in range(60):
                held.enter_context(server.connect())
            server.wait_for("cannot accept a connection: Too many open files; trying again")
            assert policy.infer(observe(5), episode_ids=[""])[0, 0, 0] == 5
        assert server.http("/healthz").startswith("HTTP/1.1 200 OK")


def test_without_a_dialect_s_package_the_others_are_served() -> None:
    wanted = (
        r"the dialect 'openpi' needs 'websockets\S*, which is not installed here: pip install 'remote-env\[policy\]'"
    )
    with policy_server("echo", missing=["websockets"]) as server:
        assert re.search(f"openpi is not served: {wanted}", server.read_log())
        assert f"127.0.0.1:{server.port} (renv, ilstudio; and HTTP" in server.read_log()
    assert re.search(f"error: {wanted}", fail("echo", "--listen", "openpi://127.0.0.1:0", missing=["websockets"]))


def test_a_busy_port_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        log = fail("echo", "-p", str(port))
        assert f"error: the port 127.0.0.1:{port} is busy: process {os.getpid()} (" in log
        assert "loading" not in log
        assert not token_path(port).exists()


def test_beyond_loopback() -> None:
    log = fail("echo", "--host", "0.0.0.0")
    assert "refused to listen on 0.0.0.0:0, beyond this machine: the ilstudio dialect cannot authenticate" in log
    assert "--listen renv://0.0.0.0:0 --insecure" in log
    for flags in (("--listen", "renv://0.0.0.0:0"), (*RENV, "--host", "0.0.0.0", "--health-port", "0")):
        assert "beyond this machine: nothing is encrypted there" in fail("echo", *flags)
    with policy_server("echo", "--listen", "renv://0.0.0.0:0", "--insecure") as server:
        log = server.read_log()
        assert f"REMOTE_ENV_TOKEN=$(ssh {socket.gethostname()} cat {token_path(server.port)})" in log
        assert str(read_token(server.port)) not in log
        assert token_path(server.port).stat().st_mode & 0o777 == 0o600
        with connect("127.0.0.1", server.port) as policy:
            assert policy.infer(observe(1), episode_ids=[""])[0, 0, 0] == 1


def ask_and_be_cut(port: int) -> str:
    """The error of a client whose server ends."""
    with connect("127.0.0.1", port, reconnect_timeout_s=0.2) as policy:
        try:
            policy.infer(observe(), episode_ids=[""])
        except RemoteEnvError as error:
            return type(error).__name__
    return "none"


def test_a_second_signal_ends_a_stop_that_waits() -> None:
    with policy_server("stuck", *RENV) as server, ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask_and_be_cut, server.port)
        server.wait_for("the model is stuck")
        path = token_path(server.port)
        server.process.send_signal(signal.SIGINT)
        server.wait_for("SIGINT: stopping")
        server.process.send_signal(signal.SIGINT)
        assert server.wait_exit() == 128 + signal.SIGINT
        assert asking.result(20) in ("ConnectionLost", "ConnectError", "PolicyError")
        assert not path.exists()
        assert "SIGINT again: ended at once" in server.read_log()


@pytest.mark.parametrize("model", ["making_an_error_of_a_signal", "swallowing_a_signal", "loading_forever"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_loads_is_no_error(model: str, number: int) -> None:
    server = PolicyServerProcess(model)
    try:
        server.wait_for("loading " + model if model == "loading_forever" else "the loading waits")
        server.process.send_signal(number)
        assert server.wait_exit() == 0
        assert "Traceback" not in server.read_log()
        assert "error" not in server.read_log().replace(model, "")
        assert server.read_log().endswith("stopped\n")
    finally:
        server.stop()


def test_a_signal_before_the_program_begins_is_no_traceback() -> None:
    code = f"""
import runpy, sys, types, os, signal
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "remote_env.policy.server.program":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Blocker())
runpy.run_path({str(ROOT / "servers" / "start_policy_server.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_signal_that_another_thread_gets_stops_the_server_too() -> None:
    # The system may choose any thread; it does when connections come at that very moment.
    with policy_server("echo", *RENV) as server:
        pid = server.process.pid
        other = next(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir() if task.name != str(pid))
        assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
        assert server.wait_exit() == 0
        assert "SIGTERM: stopping" in server.read_log()


def test_what_runs_at_the_end_is_answered_and_the_others_are_told() -> None:
    with policy_server("slow") as server, ws_connect(f"ws://127.0.0.1:{server.port}") as idle:
        idle.recv(10)
        with server.connect() as asking, server.connect() as waiting:
            for sock in (asking, waiting):
                data = write_request(MetaObs(state=np.full(14, 5.0), timestep=1))
                sock.sendall(struct.pack(">I", len(data)) + data)
                server.wait_for("the model computes")
            wait_until(lambda: 'queue_length{worker="0"} 1' in server.http("/metrics"), "the second request waits")
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as caught:
                idle.recv(10)
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1001, "the server stops")
            replies = [read_to_end(sock) for sock in (asking, waiting)]
        assert read_reply(replies[0][4:], 1).actions[0, 0, 0] == 5
        assert replies[1][4:] == EMPTY_REPLY
        assert server.wait_exit() == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_token_that_cannot_be_left_is_told_before_the_model_is_loaded(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    server = PolicyServerProcess("loading_forever", "--host", host)
    try:
        assert server.wait_exit() == 1
        assert "error: cannot write the token file" in server.read_log()
        assert "loading" not in server.read_log().replace("loading_forever", "")
    finally:
        server.stop()


def test_a_model_that_never_returns_does_not_keep_the_server() -> None:
    with policy_server("stuck", *RENV, close_timeout_s=0.1) as server, ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask_and_be_cut, server.port)
        server.wait_for("the model is stuck")
        path = token_path(server.port)
        assert server.stop(signal.SIGTERM) == 0
        assert asking.result(20) in ("ConnectionLost", "ConnectError", "PolicyError")
        assert "the model was still busy after 0.1 s; stopped" in server.read_log()
        assert not path.exists()
