from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_server import SshServer

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, RemoteEnvError, StartError
from remote_env.server import relay
from remote_env.ssh import LaunchedShell, ServerHandle, SshConnection, start_server
from remote_env.ssh import stream_frames as client_end
from remote_env.ssh.programs import LAUNCH

sys.path.insert(0, str(Path(__file__).parent))

from launching import network_namespace, write_pty_prefix
from stand_in import write_package

LIMIT_S = 20.0


def soon(seconds: float = LIMIT_S) -> float:
    return time.monotonic() + seconds


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = soon()
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    monkeypatch.setattr("remote_env.ssh.inside.LAUNCH", LAUNCH.replace("sleep 2 &", "sleep 0.2 &"))
    with SshServer() as server:
        yield server
        wait_until(lambda: not server.processes(), "something of a session still runs")


@pytest.fixture
def connection(server: SshServer) -> Iterator[SshConnection]:
    with SshConnection(server.target, **server.login) as connection:
        yield connection


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("far_end"))


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    with network_namespace() as prefix:
        yield prefix


@pytest.fixture(params=["pipes", "terminal"])
def prefix(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> str:
    return namespace if request.param == "pipes" else f"{namespace} {write_pty_prefix(tmp_path)}"


def start(connection: SshConnection, package: Path, launch: str) -> ServerHandle:
    settings = {"task": {"mode": "serve", "kind": ""}}
    return start_server(connection, settings, python=sys.executable, deadline=soon(), source=package, launch=launch)


def dial(handle: ServerHandle) -> Any:
    assert handle.dial is not None
    return handle.dial(soon())


def echo(stream: Any, data: bytes) -> bytes:
    stream.send_all([data], soon())
    back = bytearray(len(data))
    stream.recv_exactly_into(memoryview(back), soon())
    return bytes(back)


def pids_with(server: SshServer, *words: str) -> list[int]:
    found = []
    for pid in server.processes():
        with contextlib.suppress(OSError):  # it has ended
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if all(word in line for word in words):
                found.append(pid)
    return found


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def kill_logins(server: SshServer) -> None:
    for pid in server.connection_pids():
        with contextlib.suppress(OSError):  # it has ended with its parent
            if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                os.kill(pid, signal.SIGKILL)


def receive(stream: Any, deadline: float) -> int:
    return int(stream.recv_some_into(memoryview(bytearray(10)), deadline))


def relay_pids(server: SshServer) -> list[int]:
    return pids_with(server, "-I", "exec(compile(source")


def test_both_ends_speak_the_same_frames() -> None:
    for name in ("MAGIC", "OPEN", "OPENED", "REFUSED", "DATA", "CREDIT", "END", "CLOSE", "BEAT", "BYE"):
        assert getattr(relay, name) == getattr(client_end, name)
    assert relay.HEADER.format == client_end.HEADER.format
    assert relay.MAX_PAYLOAD_BYTES == client_end.MAX_PAYLOAD_BYTES


@pytest.mark.parametrize("victim", ["relay", "prefix"])
def test_a_killed_relay_or_prefix_is_told_and_the_next_dial_makes_another(
    server: SshServer, connection: SshConnection, package: Path, prefix: str, victim: str
) -> None:
    handle = start(connection, package, prefix)
    stream = dial(handle)
    assert echo(stream, b"hello") == b"hello"
    words = ("-I", "exec(compile(source") if victim == "relay" else ("sh", "while read -r word size nonce")
    for pid in pids_with(server, *words):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ConnectionLost):
        receive(stream, soon())
    with pytest.raises(ConnectionLost):
        stream.send_all([b"x"], soon())
    stream.close()
    again = dial(handle)
    assert echo(again, b"again") == b"again"
    again.close()
    handle.stop(soon())


def test_a_killed_server_ends_its_connections_and_is_stopped_all_the_same(
    server: SshServer, connection: SshConnection, package: Path, prefix: str
) -> None:
    handle = start(connection, package, prefix)
    stream = dial(handle)
    os.kill(handle.pid, signal.SIGKILL)
    with pytest.raises(ConnectionLost, match="closed the connection"):
        receive(stream, soon())
    with pytest.raises((ConnectError, ConnectionLost)):
        receive(dial(handle), soon())  # a dying process's listener may outlive its connections for a moment
    stream.close()
    handle.stop(soon())
    assert not Path(handle.session_folder).exists()


def test_a_cut_link_ends_the_relay_and_leaves_the_server(
    server: SshServer, package: Path, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = tmp_path / "relay.py"  # behind the terminal only its beat tells that the link is gone
    hasty.write_text(Path(relay.__file__).read_text().replace("BEAT_S = 10.0", "BEAT_S = 0.3"))
    monkeypatch.setattr("remote_env.ssh.inside.RELAY_FILE", hasty)
    with SshConnection(server.target, **server.login) as connection:
        handle = start(connection, package, prefix)
        stream = dial(handle)
        kill_logins(server)
        with pytest.raises(ConnectionLost):
            receive(stream, soon())
        stream.close()
        wait_until(lambda: not relay_pids(server), "the relay outlived its link")
        assert _lives(handle.pid)
        connection.connect(soon())
        again = dial(handle)
        assert echo(again, b"again") == b"again"
        handle.stop(soon())


@pytest.mark.fault
def test_a_cut_link_ends_a_prefix_that_has_nothing_to_say_yet(server: SshServer, prefix: str) -> None:
    with SshConnection(server.target, **server.login) as connection:
        shell = LaunchedShell(connection, prefix)
        shell.enter(soon())
        assert pids_with(server, "while read -r word size nonce")
        kill_logins(server)
        wait_until(lambda: not server.processes(), "the prefix outlived its login")
        shell.close()


def test_a_relay_that_does_not_answer_keeps_deadlines_and_does_not_keep_stop_from_its_work(
    server: SshServer, connection: SshConnection, package: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_env.ssh.launch.ANSWER_S", 0.5)
    handle = start(connection, package, namespace)
    stream = dial(handle)
    for pid in relay_pids(server):
        os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        receive(stream, soon(0.3))
    with pytest.raises(DeadlineExceeded):
        stream.send_all([bytes(64 * 2**20)], soon(0.5))
    assert time.monotonic() - begun < 4.0
    frozen = relay_pids(server)
    handle.stop(soon())
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    assert not _lives(handle.pid)


def test_a_reader_that_sleeps_holds_up_nobody(connection: SshConnection, package: Path, namespace: str) -> None:
    handle = start(connection, package, namespace)
    sleepy, awake = dial(handle), dial(handle)
    data = os.urandom(1 << 16) * 512  # 32 MiB: more than all windows and buffers on both ways hold
    sender = threading.Thread(target=sleepy.send_all, args=([data], soon()))
    sender.start()
    for _ in range(20):
        assert echo(awake, b"hello") == b"hello"
    assert sender.is_alive()
    back = bytearray(len(data))
    sleepy.recv_exactly_into(memoryview(back), soon())
    sender.join(LIMIT_S)
    assert back == data
    sleepy.close()
    awake.close()
    handle.stop(soon())


def test_many_connections_at_once_are_whole(connection: SshConnection, package: Path, prefix: str) -> None:
    handle = start(connection, package, prefix)
    failures: list[BaseException] = []

    def converse(number: int) -> None:
        try:
            stream = dial(handle)
            for size in (1, 1000, 70_000, 400_000):
                data = os.urandom(16) * (size // 16 + 1)
                assert echo(stream, data) == data
            stream.close()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=converse, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert failures == []
    handle.stop(soon())


def test_garbage_on_the_stream_ends_it_on_either_side(
    server: SshServer, connection: SshConnection, package: Path, namespace: str
) -> None:
    handle = start(connection, package, namespace)
    stream = dial(handle)
    shell = handle.connection
    assert isinstance(shell, LaunchedShell)
    carrier = shell._stream._carrier  # type: ignore[union-attr]
    carrier.send_all([b"this is no frame"], soon())
    with pytest.raises(ConnectionLost):
        receive(stream, soon())
    stream.close()
    wait_until(lambda: not relay_pids(server), "the relay took garbage for frames")
    handle.stop(soon())


def test_a_nosy_prefix_that_writes_into_the_stream_is_told(
    connection: SshConnection, package: Path, tmp_path: Path, namespace: str
) -> None:
    program = tmp_path / "nosy"
    program.write_text(
        '#!/bin/sh\n(while [ ! -e "$0.go" ]; do sleep 0.1; done; echo hello from the prefix) &\nexec "$@"\n'
    )
    program.chmod(0o755)
    handle = start(connection, package, f"{namespace} {program}")
    stream = dial(handle)
    (tmp_path / "nosy.go").write_text("")
    with pytest.raises(ConnectionLost, match="something else writes to its stream: b'hello from"):
        receive(stream, soon())
    stream.close()
    handle.stop(soon())


def test_a_port_where_nothing_listens_in_there_is_a_connect_error(
    connection: SshConnection, package: Path, namespace: str
) -> None:
    handle = start(connection, package, namespace)
    shell = handle.connection
    assert isinstance(shell, LaunchedShell)
    nowhere = shell.dialer(handle.pid, handle.start_time, 1, soon())
    assert nowhere is not None
    with pytest.raises(ConnectError, match=r"port 1 in .* cannot be reached: Connection refused") as refused:
        nowhere(soon())
    assert refused.value.nothing_listens
    handle.stop(soon())


def test_a_process_that_is_not_in_there_gets_no_relay(connection: SshConnection, namespace: str) -> None:
    shell = LaunchedShell(connection, namespace)
    with pytest.raises(StartError, match="process 1, the server, does not run in"):
        shell.dialer(1, "123", 5000, soon())
    shell.close()


def test_a_forked_child_cannot_touch_the_parents_stream(
    connection: SshConnection, package: Path, namespace: str
) -> None:
    handle = start(connection, package, namespace)
    stream = dial(handle)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            for use in (lambda: stream.send_all([b"x"], soon(1.0)), lambda: receive(stream, soon(1.0))):
                try:
                    use()
                except RemoteEnvError as error:
                    status = 0 if "parent process" in str(error) else 2
            stream.close()
            handle.connection.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert echo(stream, b"still mine") == b"still mine"
    stream.close()
    handle.stop(soon())


def test_nothing_is_left_on_the_client(connection: SshConnection, package: Path, namespace: str) -> None:
    def held() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    for _ in range(2):
        handle = start(connection, package, namespace)
        stream = dial(handle)
        assert echo(stream, b"hello") == b"hello"
        stream.close()
        handle.stop(soon())
    assert held() == before


# The relay alone, over pipes.


class Pipes:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", relay.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.sink, self.source = self.process.stdin.detach(), self.process.stdout  # type: ignore[union-attr]
        assert self.source.readline() == b"\n"
        assert self.source.readline() == b"@remote-env relay\n"

    def put(self, kind: int, number: int, payload: bytes = b"") -> None:
        self.sink.write(relay.HEADER.pack(relay.MAGIC, kind, number, len(payload)) + payload)

    def take(self) -> tuple[int, int, bytes]:
        magic, kind, number, size = relay.HEADER.unpack(self.source.read(relay.HEADER.size))
        assert magic == relay.MAGIC
        return kind, number, self.source.read(size)

    def end(self) -> int:
        self.sink.close()
        status = self.process.wait(LIMIT_S)
        self.source.close()
        return status


def test_the_relay_runs_programs_and_ends_with_its_input() -> None:
    pipes = Pipes()
    pipes.put(relay.OPEN, 7, b"run 1000 cat; echo $((1 + 1))")
    assert pipes.take()[:2] == (relay.OPENED, 7)
    pipes.put(relay.DATA, 7, b"some words\n")
    assert pipes.take() == (relay.DATA, 7, b"some words\n")
    pipes.put(relay.END, 7)
    assert pipes.take() == (relay.DATA, 7, b"2\n")
    assert pipes.take() == (relay.END, 7, b"")
    assert pipes.end() == 0


def test_the_relay_sends_no_more_than_there_is_room_for() -> None:
    pipes = Pipes()
    pipes.put(relay.OPEN, 1, b"run 10 printf 0123456789abcdef")
    assert pipes.take()[0] == relay.OPENED
    assert pipes.take() == (relay.DATA, 1, b"0123456789")
    pipes.put(relay.CREDIT, 1, struct.pack(">I", 100))
    assert pipes.take() == (relay.DATA, 1, b"abcdef")
    pipes.put(relay.BYE, 0)
    assert pipes.end() == relay.ORDERLY_EXIT


def test_a_client_that_sends_more_than_there_is_room_for_ends_the_relay() -> None:
    pipes = Pipes()
    pipes.put(relay.OPEN, 1, b"run 10 sleep 30")
    assert pipes.take()[0] == relay.OPENED
    piece = bytes(relay.MAX_PAYLOAD_BYTES)
    for _ in range(8):
        try:
            pipes.put(relay.DATA, 1, piece)
        except BrokenPipeError:
            break
    assert pipes.end() == 1
