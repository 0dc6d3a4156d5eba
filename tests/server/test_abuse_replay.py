"""Frames of a session that somebody has recorded, sent again: nothing of them is run, now or in another session."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from leak_check import wait_until
from server_process import BareClient, ServerProcess, read_exactly, read_to_end, serving

from remote_env.protocol import codec, frames
from remote_env.protocol.handshake import (
    ClientHandshake,
    pack_link,
    proof,
    session_key,
    session_proof,
)

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving("CartPole-v1") as running:
        yield running


class Session:
    """One client's hold on the simulator, raw.

    Attributes:
        control: its control connection.
        data: its data connection.
        sent: every frame that went over the data connection, as somebody on the way would have recorded it.
    """

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.control = BareClient(server)
        nonce = secrets.token_hex(32)
        self.control.send(pack_link(frames.HELLO, {"role": "control", "nonce": nonce, "session": "new"}))
        challenge = self.control.recv()[1]
        mine = proof(server.token, "client", "control", nonce, challenge["nonce"])
        self.control.send(pack_link(frames.PROOF, {"proof": mine}))
        self.id = self.control.recv()[1]["session"]
        self.key = session_key(server.token, self.id, nonce, challenge["nonce"])
        self.sent: list[bytes] = []
        self.control.wait_event("ready")
        self.data = BareClient(server)
        handshake = ClientHandshake(server.token, "data", key=self.key, session=self.id, resume=None)
        self.hello = bytes(handshake.hello())
        self.data.send(self.hello)
        header, message = self.data.recv()
        self.proof = bytes(handshake.answer(header.type, message))
        self.data.send(self.proof)
        assert self.data.recv()[0].type == frames.WELCOME
        self.epoch = self.recv().epoch

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.sock.close()
        self.control.send(pack_link(frames.LEAVE, {"session": self.id}))
        self.control.sock.close()

    def recv(self) -> frames.Header:
        """The next frame's header; its content is read and left."""
        header = frames.parse_header(read_exactly(self.data.sock, frames.HEADER_SIZE))
        read_exactly(self.data.sock, header.body_size + header.payload_size)
        return header

    def pack(self, kind: int, value: Any, sequence: int) -> bytes:
        body, _ = codec.encode(value, where="test")
        return bytes(frames.pack_frame(kind, body, epoch=self.epoch, sequence=sequence, acknowledged=sequence - 1))

    def ask(self, kind: int, value: Any, sequence: int) -> None:
        """Send a request and read its answer, which must be no error."""
        self.sent.append(self.pack(kind, value, sequence))
        self.data.send(self.sent[-1])
        assert self.recv().type == frames.RESULT

    def begin(self) -> Session:
        """Reset and step once."""
        self.ask(frames.RESET, (0, None), 1)
        self.ask(frames.STEP, 1, 2)
        return self

    def counts(self) -> tuple[int, int]:
        """Steps and resets that the simulator has run in all."""
        status = self.control.ask(frames.STATUS)
        return status["steps"], status["resets"]


def test_a_request_sent_again_ends_the_link_and_is_not_run_again(server: ServerProcess) -> None:
    with Session(server).begin() as session:
        before = session.counts()
        session.data.send(session.sent[-1])
        assert read_to_end(session.data.sock) == b""
        assert session.counts() == before


@pytest.mark.parametrize("sequence", [0, 1, 4, 2**64 - 1])
def test_a_request_out_of_its_turn_ends_the_link_and_is_not_run(server: ServerProcess, sequence: int) -> None:
    with Session(server).begin() as session:
        before = session.counts()
        frame = frames.pack_frame(
            frames.STEP, codec.encode(1, where="test")[0], epoch=session.epoch, sequence=sequence, acknowledged=2
        )
        session.data.send(frame)
        assert read_to_end(session.data.sock) == b""
        assert session.counts() == before


def test_requests_of_an_earlier_session_are_nothing_in_another(server: ServerProcess) -> None:
    with Session(server).begin() as recorded:
        pass
    wait_until(lambda: "remote_env_sessions 0" in server.http("/metrics"), "the recorded session ends")
    with Session(server) as session:
        assert session.epoch != recorded.epoch
        before = session.counts()
        session.data.send(b"".join(recorded.sent))
        assert read_to_end(session.data.sock) == b""
        assert session.counts() == before


def test_a_recorded_data_connection_joins_no_session(server: ServerProcess) -> None:
    with Session(server).begin() as session:
        before = session.counts()
        with BareClient(server) as thief:  # while the session lives
            thief.send(session.hello + session.proof + b"".join(session.sent))
            assert thief.recv()[0].type == frames.CHALLENGE
            assert thief.recv()[1]["kind"] == "auth"
        assert session.counts() == before
        session.ask(frames.STEP, 1, 3)  # and its own link has not been replaced


@pytest.mark.parametrize("role", ["data", "control"])
def test_the_token_alone_takes_no_session_over(server: ServerProcess, role: str) -> None:
    """Who knows the token and a session's id, and has not opened it, cannot pass for its client."""
    with Session(server).begin() as session:
        for key in (None, "0" * 64, server.token):
            with BareClient(server) as thief:
                handshake = ClientHandshake(server.token, role, key=key, session=session.id, resume=2)
                thief.send(handshake.hello())
                header, message = thief.recv()
                thief.send(handshake.answer(header.type, message))
                header, message = thief.recv()
                assert (header.type, message["kind"]) == (frames.REFUSED, "auth")
        session.ask(frames.STEP, 1, 3)


def test_a_sessions_proof_for_one_role_is_none_for_the_other(server: ServerProcess) -> None:
    with Session(server).begin() as session, BareClient(server) as thief:
        nonce = "5" * 64
        hello = {"role": "control", "nonce": nonce, "session": session.id}
        thief.send(pack_link(frames.HELLO, hello))
        theirs = thief.recv()[1]["nonce"]
        proofs = {
            "proof": proof(server.token, "client", "control", nonce, theirs),
            "session_proof": session_proof(session.key, "data", nonce, theirs, session.id),
        }
        thief.send(pack_link(frames.PROOF, proofs))
        assert thief.recv()[1]["kind"] == "auth"
        session.ask(frames.STEP, 1, 3)


def test_no_secret_of_a_session_crosses_the_wire(server: ServerProcess) -> None:
    with Session(server).begin() as session:
        said = session.hello + session.proof + b"".join(session.sent)
        assert session.key.encode() not in said
        assert server.token.encode() not in said
        assert session.key not in server.read_log()
        assert "secret" not in str(session.control.ask(frames.STATUS))
