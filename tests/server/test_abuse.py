"""Peers of ill will at the supervisor: each costs its own connection, within a time and a memory that are bounded."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import server_process
from leak_check import wait_until
from server_process import BareClient, ServerProcess, read_to_end, serving

from remote_env import RemoteEnv
from remote_env.errors import AuthError, ConnectError, DeadlineExceeded, ProtocolError, VersionMismatch
from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, pack_link, proof

pytestmark = pytest.mark.fault

PATCH = """
import importlib, json
for name, value in json.loads(%r).items():
    module, _, constant = name.rpartition(".")
    setattr(importlib.import_module(f"remote_env.{module}"), constant, value)
from remote_env.protocol import frames
frames._OURS = (frames.MAGIC, frames.VERSION)
sys.exit("""


def patch_server(patch: pytest.MonkeyPatch, **constants: float) -> None:
    """Have servers started from now on with other limits: module__CONSTANT is that of remote_env.server.module."""
    names = {name.replace("__", ".").removeprefix("."): value for name, value in constants.items()}
    full = {name if name.startswith("protocol.") else f"server.{name}": value for name, value in names.items()}
    driver = server_process._DRIVER.replace("sys.exit(", PATCH % json.dumps(full))
    patch.setattr(server_process, "_DRIVER", driver)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One server for all, with short time limits and few places."""
    with pytest.MonkeyPatch.context() as patch:
        patch_server(
            patch,
            peer__MESSAGE_TIMEOUT_S=0.4,
            connections__MAX_PROVED=8,
            connections__LINES_EVERY_S=0.5,
        )
        running = ServerProcess(handshake_timeout_s=0.4)
    try:
        yield running.wait_listening().wait_ready()
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def still_serves(server: ServerProcess) -> Iterator[None]:
    yield
    with BareClient(server) as client:
        assert client.shake_hands(session=None)["type"] == frames.WELCOME
        assert client.ask(frames.STATUS)["state"] == "ready"
    assert server.process.poll() is None


def trickle(sock: socket.socket, data: bytes) -> bytes:
    """Send `data` byte by byte, and spaces for ever then, until the other side closes; what it said."""
    sock.settimeout(0.02)
    said = b""
    with contextlib.suppress(ConnectionError):
        for index in range(2000):
            sock.sendall(data[index : index + 1] or b" ")
            try:
                if not (got := sock.recv(4096)):
                    return said
                said += got
            except TimeoutError:
                continue
        pytest.fail("it is never dropped")
    return said


LONG = pack_link(frames.HELLO, {"role": "control", "nonce": "0" * 64, "client": "x" * 15_000})


@pytest.mark.parametrize(
    "data", [b"RENV", bytes(LONG), b"GET /healthz HTTP/1.1\r\nX: "], ids=["magic", "handshake", "http"]
)
def test_a_stranger_who_sends_byte_by_byte_is_dropped_at_the_deadline(server: ServerProcess, data: bytes) -> None:
    with server.open_socket() as sock:
        assert trickle(sock, data) == b""
    assert "silent for too long" in server.read_log()


def test_a_proof_that_comes_byte_by_byte_is_dropped_at_the_deadline(server: ServerProcess) -> None:
    with BareClient(server) as client:
        handshake = ClientHandshake(server.token, "control", session=None)
        client.send(handshake.hello())
        header, challenge = client.recv()
        answer = handshake.answer(header.type, challenge)
        assert trickle(client.sock, bytes(answer[:-1])) == b""


HALF = pack_link(frames.PING, {"padding": "x" * 1000})


@pytest.mark.parametrize("size", [1, frames.HEADER_SIZE - 1, frames.HEADER_SIZE, len(HALF) - 1])
def test_half_a_message_of_one_who_has_proved_himself_is_dropped_at_the_deadline(
    server: ServerProcess, size: int
) -> None:
    with BareClient(server) as client, BareClient(server) as idle:
        client.shake_hands(session=None)
        idle.shake_hands(session=None)
        client.send(HALF[:size])
        assert read_to_end(client.sock) == b""
        # Saying nothing between messages is no fault.
        assert "state" in idle.ask(frames.PING)


def test_a_message_of_one_who_has_proved_himself_may_not_trickle_in(server: ServerProcess) -> None:
    with BareClient(server) as client:
        client.shake_hands(session=None)
        assert trickle(client.sock, bytes(LONG)) == b""


def test_messages_one_after_the_other_have_a_deadline_each(server: ServerProcess) -> None:
    with BareClient(server) as client:
        client.shake_hands(session=None)
        client.sock.settimeout(0.05)
        frame = pack_link(frames.PING, {}, sequence=1)
        answers = 0
        for _ in range(12):  # 0.6 s and more in all
            client.send(frame[:10])
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
            client.send(frame[10:])
            client.sock.settimeout(8)
            answers += client.recv()[0].type == frames.REPLY
            client.sock.settimeout(0.05)
        assert answers == 12


@pytest.mark.parametrize("size", [(64 << 10) + 1, frames.MAX_LINK_BODY_SIZE, 0xFFFFFFFF])
def test_a_message_that_is_too_long_is_refused_before_it_comes(server: ServerProcess, size: int) -> None:
    header = frames.HEADER.pack(frames.MAGIC, frames.VERSION, frames.PING, 0, 0, 0, 1, 0, size, 0)
    with BareClient(server) as client:
        client.shake_hands(session=None)
        client.send(header)
        assert client.recv()[1]["kind"] == "protocol"
        assert read_to_end(client.sock) == b""


@pytest.mark.parametrize(
    "fields",
    [
        {"session": "x" * 60_000},
        {"session": {"a": {"b": None}}},
        {"lines": "9" * 60_000},
        {"since": "\x1b[2J\n" * 1000},
        {"since": -(10**300)},
        {"max_bytes": 10**300},
    ],
    ids=["long", "nested", "digits", "escapes", "negative", "huge"],
)
@pytest.mark.parametrize("kind", [frames.LOGS, frames.PING, frames.STATUS])
def test_odd_fields_are_answered_or_refused_in_few_words(
    server: ServerProcess, kind: int, fields: dict[str, Any]
) -> None:
    with BareClient(server) as client:
        client.shake_hands(session=None)
        client.send(pack_link(kind, fields, sequence=1))
        header, message = client.recv()
    assert header.type in (frames.REPLY, frames.REFUSED)
    if header.type == frames.REFUSED:
        assert len(message["message"]) <= 2000
    assert all(len(line) < 3000 and "\x1b" not in line for line in server.read_log().splitlines())


def test_objects_within_objects_within_objects(server: ServerProcess) -> None:
    with BareClient(server) as client:
        client.shake_hands(session=None)
        for depth in (100, 900, 5000):
            with contextlib.suppress(OSError, EOFError):
                body = b'{"session": ' + b"[" * depth + b"]" * depth + b"}"
                client.send(frames.pack_frame(frames.PING, body, sequence=1))
                client.recv()


# How many, and how much


def test_one_connection_too_many_is_told_so_and_there_is_room_again(server: ServerProcess) -> None:
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(BareClient(server)) for _ in range(8)]
        assert {client.shake_hands(session=None)["type"] for client in clients} == {frames.WELCOME}
        with BareClient(server) as late:
            answer = late.shake_hands(session="new")
            assert (answer["type"], answer["kind"]) == (frames.REFUSED, "busy")
            assert "8 connections and takes no more" in answer["message"]
        assert "state" in clients[0].ask(frames.PING)

    def has_room() -> bool:
        with BareClient(server) as client:
            return client.shake_hands(session=None)["type"] == frames.WELCOME

    wait_until(has_room, "their places are free again")


def test_strangers_who_hold_every_place_make_room_for_who_comes(server: ServerProcess) -> None:
    with serving(handshake_timeout_s=60.0) as own, contextlib.ExitStack() as held:
        first = held.enter_context(own.open_socket())
        for _ in range(199):
            held.enter_context(own.open_socket())
        with BareClient(own) as client:
            assert client.shake_hands(session="new")["type"] == frames.WELCOME
            assert client.ask(frames.STATUS)["state"] == "ready"
        assert read_to_end(first) == b""  # the oldest went, a minute before its deadline
        assert len(list(Path(f"/proc/{own.process.pid}/fd").iterdir())) < 90


def test_a_flood_of_strangers_does_not_fill_the_log(server: ServerProcess) -> None:
    before = len(server.read_log())
    for _ in range(300):
        with server.open_socket() as sock:
            sock.sendall(b"garbage, and more than a header of it: 40 bytes")
            read_to_end(sock)
    lines = server.read_log()[before:].splitlines()
    assert sum("not a remote-env frame" in line for line in lines) <= 200

    def is_counted() -> bool:
        with server.open_socket() as sock:
            sock.sendall(b"garbage, and more than a header of it: 40 bytes")
            read_to_end(sock)
        return "more connections were dropped that had proved nothing" in server.read_log()

    if sum("not a remote-env frame" in line for line in lines) < 300:
        wait_until(is_counted, "the others are counted")


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_those_who_ask_and_never_read_hold_no_more_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_server(monkeypatch, connections__MAX_UNSENT_IN_ALL=3 << 20)
    with serving("tasks_for_tests.slow:Slow", {"build": "talk:4000"}) as own, contextlib.ExitStack() as held:
        resident = resident_kib(own.process.pid)
        greedy = [held.enter_context(BareClient(own)) for _ in range(5)]
        for client in greedy:
            client.shake_hands(session=None)
            client.sock.setblocking(False)
        frame = bytes(20 * pack_link(frames.LOGS, {"since": 0, "max_bytes": 1 << 17}))
        for _ in range(20):
            for client in greedy:
                with contextlib.suppress(OSError):
                    client.sock.send(frame)
            with BareClient(own) as other:
                other.shake_hands(session=None)
                assert other.ask(frames.STATUS)["state"] == "ready"
        assert resident_kib(own.process.pid) - resident < 64 << 10
        wait_until(lambda: "asks for more than it takes" in own.read_log(), "somebody is dropped")


def test_halves_of_messages_hold_no_more_than_the_bound() -> None:
    with serving() as own, contextlib.ExitStack() as held:
        resident = resident_kib(own.process.pid)
        half = pack_link(frames.PING, {"padding": "x" * 60_000})[:-1]
        for _ in range(60):
            client = held.enter_context(BareClient(own))
            client.shake_hands(session=None, junk=[[] for _ in range(3900)])  # 300 KiB once it is parsed
            client.send(half)
        with BareClient(own) as other:
            other.shake_hands(session=None)
            assert other.ask(frames.STATUS)["state"] == "ready"
        assert resident_kib(own.process.pid) - resident < 12 << 10  # 60 halves are 3.6 MiB


# Proofs that are not one's own


class Recorder:
    """Stands between a client and the server and keeps what each said; a handshake goes through unchanged."""

    def __init__(self, server: ServerProcess) -> None:
        self.said_by_client = self.said_by_server = b""
        with BareClient(server) as client:
            handshake = ClientHandshake(server.token, "control", session="new", client="who is recorded")
            hello = handshake.hello()
            client.send(hello)
            header, challenge = client.recv()
            answer = handshake.answer(header.type, challenge)
            client.send(answer)
            assert client.recv()[0].type == frames.WELCOME
        self.hello, self.answer, self.challenge = bytes(hello), bytes(answer), challenge
        wait_until(lambda: "remote_env_sessions 0" in server.http("/metrics"), "the recorded session ends")


def test_a_recorded_handshake_played_back_is_refused(server: ServerProcess) -> None:
    recorded = Recorder(server)
    with BareClient(server) as thief:
        thief.send(recorded.hello)
        _, challenge = thief.recv()
        assert challenge["nonce"] != recorded.challenge["nonce"]
        thief.send(recorded.answer)
        header, message = thief.recv()
    assert (header.type, message["kind"]) == (frames.REFUSED, "auth")
    assert "remote_env_sessions 0" in server.http("/metrics")
    with BareClient(server) as thief:  # all at once, without waiting for the challenge
        thief.send(recorded.hello + recorded.answer)
        thief.recv()
        assert thief.recv()[1]["kind"] == "auth"


def impostor(answer: Any) -> tuple[socket.socket, int]:
    """A listener that stands for a server without the token; `answer` is run with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    import threading

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(5)
                    answer(sock)

    threading.Thread(target=serve, daemon=True).start()
    return listener, listener.getsockname()[1]


def against(answer: Any, token: str, *, start_timeout_s: float = 5.0) -> None:
    """Connect a real client to such a listener; raises what that gets."""
    listener, port = impostor(answer)
    try:
        with RemoteEnv(f"tcp://127.0.0.1:{port}", token=token, start_timeout_s=start_timeout_s) as env:
            env.reset()
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_recorded_challenge_played_back_gets_no_proof_of_the_client(server: ServerProcess) -> None:
    recorded = Recorder(server)
    heard: list[bytes] = []

    def play_back(sock: socket.socket) -> None:
        if hello := sock.recv(65536):
            sock.sendall(pack_link(frames.CHALLENGE, recorded.challenge))
            heard.extend((hello, read_to_end(sock)))

    with pytest.raises(AuthError, match="does not have this token"):
        against(play_back, server.token)
    wait_until(lambda: len(heard) >= 2, "the impostor has seen the end")
    assert heard[1] == b""
    assert all(server.token.encode() not in part for part in heard)


def test_a_client_is_not_taken_in_by_its_own_words(server: ServerProcess) -> None:
    def echo(sock: socket.socket) -> None:
        while got := sock.recv(65536):
            sock.sendall(got)

    with pytest.raises(ProtocolError, match="expected CHALLENGE, got HELLO"):
        against(echo, server.token)


def test_a_server_that_sends_byte_by_byte_holds_no_client_beyond_its_deadline(server: ServerProcess) -> None:
    challenge = pack_link(frames.CHALLENGE, {"nonce": "1" * 64, "padding": "x" * 60_000})

    def dawdle(sock: socket.socket) -> None:
        if sock.recv(65536):
            trickle(sock, bytes(challenge))

    with pytest.raises((ConnectError, DeadlineExceeded)):
        against(dawdle, server.token, start_timeout_s=1.0)


def test_the_servers_own_proof_sent_back_is_refused(server: ServerProcess) -> None:
    nonce = "7" * 64
    with BareClient(server) as one, BareClient(server) as other:
        one.send(pack_link(frames.HELLO, {"role": "control", "nonce": nonce, "session": "new"}))
        first = one.recv()[1]
        # The server proves itself for a nonce that it has chosen: the other connection's.
        other.send(pack_link(frames.HELLO, {"role": "control", "nonce": first["nonce"], "session": "new"}))
        second = other.recv()[1]
        for client, given in ((one, second["proof"]), (other, first["proof"])):
            client.send(pack_link(frames.PROOF, {"proof": given}))
            assert client.recv()[1]["kind"] == "auth"


def test_a_proof_by_another_version_or_role_is_none(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    nonce = "7" * 64
    for role, version in (("data", frames.VERSION), ("policy", frames.VERSION), ("control", frames.VERSION + 1)):
        with BareClient(server) as client, monkeypatch.context() as patch:
            client.send(pack_link(frames.HELLO, {"role": "control", "nonce": nonce}))
            challenge = client.recv()[1]
            patch.setattr(frames, "VERSION", version)
            given = proof(server.token, "client", role, nonce, challenge["nonce"])
            patch.undo()
            client.send(pack_link(frames.PROOF, {"proof": given}))
            assert client.recv()[1]["kind"] == "auth"


# Other versions


def test_a_client_and_a_server_of_another_version_are_both_told_both(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_server(monkeypatch, protocol__frames__VERSION=9)
    other = ServerProcess().wait_listening()
    both = f"version 9, this end version {frames.VERSION}"
    try:
        with pytest.raises(VersionMismatch, match=f"{both}; install the same remote-env release on both"):
            RemoteEnv(f"tcp://127.0.0.1:{other.port}", token=other.token, start_timeout_s=10.0).reset()
        with BareClient(other) as client:
            client.send(ClientHandshake(other.token, "control", session="new").hello())
            answer = read_to_end(client.sock)
        # In a frame of its own version, so that this end could tell by the header alone.
        assert answer[4] == 9
        said = json.loads(answer[frames.HEADER_SIZE :])
        assert said["kind"] == "version"
        assert f"version {frames.VERSION}, this end version 9" in said["message"]
        assert f"version {frames.VERSION}, this end version 9" in other.read_log()
    finally:
        other.stop()
