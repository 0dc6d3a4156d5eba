"""Peers of ill will at the supervisor: each costs its own connection, within a time and a memory that are bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leak_check import wait_until
from rude_peers import patch_server, trickle
from server_process import BareClient, ServerProcess, read_to_end, serving

from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, pack_link

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One server for all, with short time limits and few places."""
    with pytest.MonkeyPatch.context() as patch:
        patch_server(
            patch,
            peer__MESSAGE_TIMEOUT_S=0.5,
            connections__MAX_PROVED=8,
            connections__LINES_EVERY_S=0.5,
        )
        running = ServerProcess(handshake_timeout_s=0.5)
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


@pytest.mark.parametrize("size", [1, frames.HEADER_SIZE, len(HALF) - 1])
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
        for _ in range(14):  # 0.7 s and more in all
            client.send(frame[:10])
            with pytest.raises(TimeoutError):
                client.sock.recv(1)
            client.send(frame[10:])
            client.sock.settimeout(8)
            answers += client.recv()[0].type == frames.REPLY
            client.sock.settimeout(0.05)
        assert answers == 14


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
