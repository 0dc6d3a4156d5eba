"""Proofs that are somebody else's, from another time or of another version, at the supervisor and at its clients."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from leak_check import wait_until
from rude_peers import patch_server, trickle
from server_process import BareClient, ServerProcess, read_to_end, serving

from remote_env import RemoteEnv
from remote_env.errors import AuthError, ConnectError, DeadlineExceeded, ProtocolError, VersionMismatch
from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, pack_link, proof

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving() as running:
        yield running


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
