"""Peers of ill will at a policy server: replay, reflection, other versions, and those who dawdle."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leak_check import wait_until
from policies_for_tests import EchoPolicy, observe
from policy_server_process import policy_server
from renv_serving import TOKEN, RenvServer, serving
from rude_peers import trickle
from server_process import read_exactly, read_to_end

from remote_env.errors import (
    AuthError,
    ConfigError,
    ConnectError,
    PolicyError,
    ProtocolError,
    RemoteEnvError,
    VersionMismatch,
)
from remote_env.policy.dialects import renv, renv_conversation, renv_places, renv_server
from remote_env.policy.dialects.renv_link import open_link
from remote_env.policy.server import connections as limits
from remote_env.policy.token_file import read_token, token_path
from remote_env.protocol import frames
from remote_env.protocol.handshake import POLICY_ROLE, ClientHandshake, pack_link, parse_link

pytestmark = pytest.mark.fault


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RenvServer]:
    monkeypatch.setattr(renv_places, "KEEP_S", 0.0)
    monkeypatch.setattr(renv_server, "HANDSHAKE_TIMEOUT_S", 0.4)
    with serving(EchoPolicy()) as server:
        yield server
        with server.connect() as client:
            assert client.infer(observe(3.0, client.metadata), episode_ids=["a"])[0, 0, 0] == 3.0


class Bare:
    """A connection on which a test sends what it likes."""

    def __init__(self, server: RenvServer) -> None:
        self.sock = socket.create_connection(("127.0.0.1", server.port), timeout=8)

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def recv(self) -> tuple[frames.Header, dict[str, Any]]:
        header = frames.parse_header(read_exactly(self.sock, frames.HEADER_SIZE))
        return header, parse_link(read_exactly(self.sock, header.body_size))


def shake(token: str = TOKEN) -> ClientHandshake:
    return ClientHandshake(token, POLICY_ROLE, client=secrets.token_hex(16))


def test_a_handshake_that_comes_byte_by_byte_is_dropped_at_the_deadline(server: RenvServer) -> None:
    with Bare(server) as slow:
        hello = pack_link(frames.HELLO, {"role": POLICY_ROLE, "nonce": "0" * 64, "client": "x" * 15_000})
        assert trickle(slow.sock, bytes(hello), b"\0") == b""


def test_silence_after_the_challenge_is_dropped_at_the_deadline(server: RenvServer) -> None:
    with Bare(server) as silent:
        silent.sock.sendall(shake().hello())
        assert silent.recv()[0].type == frames.CHALLENGE
        assert read_to_end(silent.sock) == b""


def test_a_recorded_handshake_played_back_is_refused(server: RenvServer) -> None:
    handshake = shake()
    with Bare(server) as client:
        hello = bytes(handshake.hello())
        client.sock.sendall(hello)
        header, challenge = client.recv()
        answer = bytes(handshake.answer(header.type, challenge))
        client.sock.sendall(answer)
        assert client.recv()[0].type == frames.WELCOME
    with Bare(server) as thief:
        thief.sock.sendall(hello + answer)
        assert thief.recv()[1]["nonce"] != challenge["nonce"]
        assert thief.recv()[1]["kind"] == "auth"


def test_the_servers_own_proof_sent_back_is_refused(server: RenvServer) -> None:
    with Bare(server) as mirror:
        mirror.sock.sendall(shake().hello())
        challenge = mirror.recv()[1]
        mirror.sock.sendall(pack_link(frames.PROOF, {"proof": challenge["proof"]}))
        assert mirror.recv()[1]["kind"] == "auth"


@pytest.mark.parametrize("kind", [frames.INFER, frames.POLICY_INFO, frames.POLICY_RESET, frames.CLOSE])
def test_nothing_is_done_for_who_has_proved_nothing(server: RenvServer, kind: int) -> None:
    with Bare(server) as stranger:
        stranger.sock.sendall(frames.pack_frame(kind, b"\xc0", sequence=1))
        assert stranger.recv()[1]["kind"] == "protocol"
        assert read_to_end(stranger.sock) == b""


def test_a_task_servers_proof_is_none_here(server: RenvServer) -> None:
    with Bare(server) as client:
        client.sock.sendall(ClientHandshake(TOKEN, "control", session="new").hello())
        message = client.recv()[1]
    assert message["kind"] == "protocol"
    assert "this is a policy server, and the client asks for a task: check the port" in message["message"]


# Secrets


def test_the_token_is_where_it_must_be_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    token = "5ec2e7" * 10 + "cafe"
    monkeypatch.setenv("REMOTE_ENV_TOKEN", token)
    shown: list[str] = []
    with policy_server("failing", "--listen", "renv://127.0.0.1:0") as server:
        monkeypatch.delenv("REMOTE_ENV_TOKEN")
        path = token_path(server.port)
        assert read_token(server.port) == token
        assert path.stat().st_mode & 0o777 == 0o600
        assert token not in (Path(f"/proc/{server.process.pid}/cmdline")).read_text()
        with renv.connect("127.0.0.1", server.port) as policy:
            with pytest.raises(PolicyError) as raised:
                policy.infer(observe(-1.0), episode_ids=[""])
            shown += [repr(policy), str(raised.value), str(vars(raised.value))]
        with pytest.raises(AuthError) as refused:
            renv.connect("127.0.0.1", server.port, token="0" * 64, reconnect_timeout_s=0.0)
        shown += [str(refused.value), server.http("/metrics"), server.http("/healthz"), server.http("/x")]
        for mode in (0o640, 0o602):
            path.chmod(mode)
            with pytest.raises(ConfigError, match=f"mode is {mode:04o}.* chmod go-rwx {path}"):
                renv.connect("127.0.0.1", server.port)
        path.chmod(0o600)
    assert not path.exists()
    for text in (*shown, server.read_log()):
        assert token not in text


# Half of something, once the token is proved


@pytest.mark.parametrize("size", [1, frames.HEADER_SIZE, frames.HEADER_SIZE + 5])
def test_half_a_request_is_dropped_at_a_deadline(
    server: RenvServer, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renv_server, "STALL_S", 0.3)
    monkeypatch.setattr(renv_conversation, "TRANSFER_TIMEOUT_S", 0.3)
    link = open_link("127.0.0.1", server.port, TOKEN, secrets.token_hex(16), time.monotonic() + 10)
    frame = frames.pack_frame(frames.POLICY_INFO, b"\xc0" * 100, sequence=1)
    try:
        link.stream.send(frame[:size], time.monotonic() + 5)
        with pytest.raises(RemoteEnvError, match=r"closed|broke"):
            link.stream.recv(time.monotonic() + 8)
    finally:
        link.transport.close()


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize(
    ("dialect", "first", "rest"),
    [
        ("openpi", UPGRADE, b"\x82\xfe\xff\xff" + bytes(4)),  # a masked binary frame of 65535 bytes
        ("ilstudio", b"\0\0\xff\xff\x80", b""),
    ],
)
def test_a_message_of_another_dialect_may_not_trickle_in_for_ever(dialect: str, first: bytes, rest: bytes) -> None:
    with serving(EchoPolicy(), dialect=dialect, idle_timeout_s=0.5) as server, Bare(server) as slow:
        slow.sock.sendall(first)
        trickle(slow.sock, rest, b"\0")
        wait_until(lambda: any("deadline" in line for line in server.lines), "the log says so")


def test_a_payload_that_never_comes_is_dropped_at_a_deadline(
    server: RenvServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renv_conversation, "TRANSFER_TIMEOUT_S", 0.3)
    link = open_link("127.0.0.1", server.port, TOKEN, secrets.token_hex(16), time.monotonic() + 10)
    body, payload = renv_conversation.codec.encode(
        {"observation": {"state": observe(0.0).get("state").repeat(2000, 0)}, "episodes": [""]}, where="test"
    )
    assert payload
    frame = frames.pack_frame(frames.INFER, body, sequence=1, payload_size=sum(map(len, payload)))
    try:
        link.stream.send(frame, time.monotonic() + 5)
        with pytest.raises(RemoteEnvError, match=r"closed|broke"):
            link.stream.recv(time.monotonic() + 8)
    finally:
        link.transport.close()


@pytest.mark.parametrize("size", [frames.MAX_BODY_SIZE, 0xFFFFFFFF])
def test_a_body_above_the_servers_limit_is_refused_before_it_comes(size: int) -> None:
    with serving(EchoPolicy(), max_message_bytes=1 << 20) as server:
        link = open_link("127.0.0.1", server.port, TOKEN, secrets.token_hex(16), time.monotonic() + 10)
        header = frames.HEADER.pack(frames.MAGIC, frames.VERSION, frames.INFER, 4, 0, 0, 1, 0, size, 0)
        try:
            link.stream.send(header, time.monotonic() + 5)
            with pytest.raises(RemoteEnvError, match=r"closed|broke"):
                link.stream.recv(time.monotonic() + 8)
        finally:
            link.transport.close()


# How many


def test_who_has_proved_nothing_holds_no_clients_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STRANGERS", 4)
    with serving(EchoPolicy(), max_clients=2) as server, contextlib.ExitStack() as held:
        for _ in range(30):  # each in the middle of a handshake, whose deadline is far
            stranger = held.enter_context(Bare(server))
            stranger.sock.sendall(pack_link(frames.HELLO, {"role": POLICY_ROLE, "nonce": "0" * 64}))
        with server.connect() as one, server.connect() as two:
            for client in (one, two):
                assert client.infer(observe(3.0, client.metadata), episode_ids=["a"])[0, 0, 0] == 3.0
            with pytest.raises(ConnectError, match=r"no place for one more client \(--max_clients\)"):
                server.connect(reconnect_timeout_s=0.0)


# Other versions


def test_a_client_of_another_version_is_told_both(server: RenvServer) -> None:
    hello = shake().hello()
    hello[4] = 9
    with Bare(server) as client:
        client.sock.sendall(hello)
        header, message = client.recv()
    assert (header.type, message["kind"]) == (frames.REFUSED, "version")
    assert f"version 9, this end version {frames.VERSION}; install the same remote-env release" in message["message"]
    wait_until(lambda: any("version 9" in line for line in server.lines), "the log says so")


def test_a_server_of_another_version_is_told_by_name() -> None:
    """The listener stands for a policy server of version 9: it answers as ours does, in frames of its own version."""
    refused = pack_link(frames.REFUSED, {"kind": "version", "message": "…"})
    refused[4] = 9
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        import threading

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, contextlib.suppress(OSError):
                        sock.settimeout(5)
                        sock.recv(4096)
                        sock.sendall(refused)
                        read_to_end(sock)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(VersionMismatch, match=f"version 9, this end version {frames.VERSION}"):
                renv.connect("127.0.0.1", port, token=TOKEN, timeout_s=5.0, reconnect_timeout_s=0.0)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def test_an_impostor_gets_no_proof() -> None:
    """The listener stands for somebody who has taken the port and does not know the token."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        import threading

        def answer() -> None:
            with contextlib.suppress(OSError):
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(5)
                    heard.append(sock.recv(4096))
                    sock.sendall(pack_link(frames.CHALLENGE, {"nonce": "1" * 64, "proof": "2" * 64}))
                    heard.append(read_to_end(sock))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises((AuthError, ProtocolError), match="does not have this token"):
                renv.connect("127.0.0.1", port, token=TOKEN, timeout_s=5.0, reconnect_timeout_s=0.0)
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)
    assert heard[1] == b""
    assert TOKEN.encode() not in heard[0]
    assert json.loads(heard[0][frames.HEADER_SIZE :])["role"] == POLICY_ROLE
