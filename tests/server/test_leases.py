"""Clients that vanish without a word, and servers that stay warm or go."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from leak_check import is_alive, wait_until
from server_process import ROOT, BareClient, ServerProcess, serving

from remote_env.errors import ConnectionLost
from remote_env.protocol import codec, frames
from remote_env.protocol.handshake import parse_link
from remote_env.server.folder import record_path
from remote_env.session.control import shake_hands
from remote_env.transport import Transport, connect_tcp

TASK = "tasks_for_tests.slow:Slow"
SILENT = """
import socket, sys
sys.path.insert(0, "tests")
from server_process import BareClient
server = type("Server", (), {"token": sys.stdin.readline().strip()})()
server.open_socket = lambda: socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client = BareClient(server)
print(client.shake_hands(session="new", client="silent", lease_s=0.6)["session"], flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[ServerProcess]:
    with serving(TASK) as running:
        yield running


@pytest.fixture
def server(shared: ServerProcess) -> Iterator[ServerProcess]:
    """A server that other tests have used, and use after."""
    yield shared
    with BareClient(shared) as client:
        client.shake_hands()
        wait_until(lambda: sessions(client) == 0, "every session ends")


def sessions(client: BareClient) -> int:
    return int(client.ask(frames.STATUS)["sessions"])


def test_a_silent_client_loses_its_session_when_its_lease_runs_out(server: ServerProcess) -> None:
    with BareClient(server) as monitor:
        monitor.shake_hands()
        command = [sys.executable, "-c", SILENT, str(server.port)]
        silent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert silent.stdin is not None
        assert silent.stdout is not None
        with silent.stdin, silent.stdout:
            silent.stdin.write(server.token + "\n")
            silent.stdin.flush()
            name = silent.stdout.readline().strip()
            silent.send_signal(signal.SIGSTOP)
            assert sessions(monitor) == 1
            wait_until(lambda: sessions(monitor) == 0, "the lease runs out")
            status = monitor.ask(frames.STATUS, session=name)
            assert "its lease ran out: nothing was heard of its client for 0.6 s" in status["why"]
            assert f"session {name} of silent: its lease ran out" in server.read_log()
            with BareClient(server) as other:
                assert other.shake_hands(session="new")["type"] == frames.WELCOME
            silent.kill()
            silent.wait()


def test_pings_keep_a_lease_from_whatever_connection(server: ServerProcess) -> None:
    with BareClient(server) as client, BareClient(server) as monitor:
        welcome = client.shake_hands(session="new", lease_s=1.0)
        assert welcome["lease_s"] == 1.0
        client.wait_event("ready")
        monitor.shake_hands()
        uptime = monitor.ask(frames.STATUS)["uptime_s"]
        while monitor.ask(frames.STATUS)["uptime_s"] < uptime + 2.0:  # the server's clock, on which the lease runs
            assert monitor.ask(frames.PING, session=welcome["session"])["state"] == "ready"
        assert sessions(monitor) == 1
        # A ping that names no session is no sign of life of it.
        wait_until(lambda: monitor.ask(frames.PING) is not None and sessions(monitor) == 0, "the lease runs out")
        event = client.wait_event("dead")
        assert event["kind"] == "lease"
        with pytest.raises(EOFError):
            client.recv()


def test_calls_keep_a_lease(server: ServerProcess) -> None:
    with BareClient(server) as monitor:
        monitor.shake_hands()
        with contextlib.closing(Client(server, lease_s=1.5)) as client:
            uptime = monitor.ask(frames.STATUS)["uptime_s"]
            while monitor.ask(frames.STATUS)["uptime_s"] < uptime + 2.0:
                client.step()
            assert sessions(monitor) == 1
            wait_until(lambda: sessions(monitor) == 0, "the lease runs out")
            with pytest.raises(ConnectionLost):
                client.step()


class Client:
    """A control and a data connection with a lease, without heartbeats; its data connection speaks the session's."""

    def __init__(self, server: ServerProcess, lease_s: float) -> None:
        def dial(until: float) -> Transport:
            return connect_tcp("127.0.0.1", server.port, until)

        until = time.monotonic() + 15.0
        self._control, stream, welcome, opened = shake_hands(
            dial, server.token, "control", until, session="new", lease_s=lease_s
        )
        while parse_link(_body(stream, until))["state"] != "ready":
            pass
        session = welcome["session"]
        key = opened.derive_key(session)
        self._transport, self._stream = shake_hands(
            dial, server.token, "data", until, key=key, session=session, resume=None
        )[:2]
        self._epoch, self._sequence = self._stream.recv(until).epoch, 0
        self._stream.fill([memoryview(bytearray(0))], until)
        self._ask(frames.RESET, codec.encode((None, None), where="reset")[0])

    def step(self) -> None:
        self._ask(frames.STEP, codec.encode(0, where="action")[0])

    def _ask(self, kind: int, body: bytes) -> None:
        until = time.monotonic() + 15.0
        numbers = {"sequence": self._sequence + 1, "acknowledged": self._sequence}
        self._sequence += 1
        self._stream.send(frames.pack_frame(kind, body, epoch=self._epoch, **numbers), until)
        assert self._stream.recv(until).type == frames.RESULT

    def close(self) -> None:
        self._transport.close()
        self._control.close()


def _body(stream: frames.FrameStream, until: float) -> bytes:
    assert stream.recv(until).type == frames.EVENT
    return stream.body_bytes()


def test_a_lease_is_a_positive_number_and_none_is_none(server: ServerProcess) -> None:
    for lease in (0, -1.0, "60", True, []):
        with BareClient(server) as client:
            answer = client.shake_hands(session="new", lease_s=lease)
            assert answer["type"] == frames.REFUSED
            assert "positive number of seconds" in answer["message"]
    with BareClient(server) as client:
        assert "lease_s" not in client.shake_hands(session="new")


# Staying and going


def test_an_idle_time_of_zero_ends_the_server_with_its_last_session() -> None:
    with serving(TASK, idle_timeout_s=0, max_sessions=2) as server:
        with BareClient(server) as first:
            first.shake_hands(session="new")
            with BareClient(server) as second:
                second.shake_hands(session="new")
                assert sessions(second) == 2
            wait_until(lambda: sessions(first) == 1, "one of two goes")
            assert first.ask(frames.STATUS)["idle_s"] == 0
        assert server.process.wait(10) == 0
        assert not server.folder.exists()


def test_a_server_that_is_kept_says_so_and_stays() -> None:
    with serving(TASK, idle_timeout_s=0) as server:
        assert json.loads(record_path(server.port).read_text())["kept"] is False
        with BareClient(server) as client:
            client.shake_hands(session="new")
            assert client.ask(frames.KEEP, kept=True, idle_timeout_s=60) == {}
        with BareClient(server) as monitor:
            monitor.shake_hands()
            wait_until(lambda: sessions(monitor) == 0, "the session ends")
            status = monitor.ask(frames.STATUS)
            assert status["kept"] is True
            assert status["idle_timeout_s"] == 60
            assert status["idle_s"] < 60
            assert json.loads(record_path(server.port).read_text())["kept"] is True
            # Let go again, it ends at once.
            monitor.ask(frames.KEEP, kept=False, idle_timeout_s=0)
        assert server.process.wait(10) == 0


def test_an_idle_time_is_a_number_from_zero_on(server: ServerProcess) -> None:
    for seconds in (-1, "soon", []):
        with BareClient(server) as client:
            client.shake_hands()
            with pytest.raises(AssertionError, match="KEEP with a wrong field"):
                client.ask(frames.KEEP, kept=True, idle_timeout_s=seconds)
    with BareClient(server) as client:
        client.shake_hands()
        assert client.ask(frames.STATUS)["kept"] is False


def test_a_kept_server_outlives_its_starter_and_one_that_is_not_does_not() -> None:
    for kept in (True, False):
        leash, held = os.pipe()
        os.set_inheritable(leash, True)
        server = ServerProcess("CartPole-v1", leash_fd=leash, pass_fds=(leash,))
        try:
            server.wait_listening().wait_ready()
            with BareClient(server) as client:
                client.shake_hands()
                client.ask(frames.KEEP, kept=kept)
                os.close(held)
                if kept:
                    assert client.ask(frames.STATUS)["kept"] is True
                    client.ask(frames.KEEP, kept=False)
            assert server.process.wait(10) == 0
        finally:
            os.close(leash)
            server.stop()


def test_several_sessions_are_told_apart() -> None:
    with serving(TASK, max_sessions=2) as server, BareClient(server) as one, BareClient(server) as two:
        names = [client.shake_hands(session="new", client=name)["session"] for client, name in ((one, "a"), (two, "b"))]
        for client in (one, two):
            client.wait_event("ready")
        pids = [two.ask(frames.STATUS, session=name)["pid"] for name in names]
        assert len(set(pids)) == 2
        assert [holder["client"] for holder in one.ask(frames.STATUS)["holders"]] == ["a", "b"]
        assert one.ask(frames.KILL, session=names[1])["pid"] == pids[1]
        assert two.wait_event("dead")["pid"] == pids[1]
        wait_until(lambda: not is_alive(pids[1]), "it ends")
        assert one.ask(frames.STATUS)["state"] == "ready"
