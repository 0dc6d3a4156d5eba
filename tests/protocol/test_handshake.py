"""The handshake: both sides prove the token, and nothing else passes."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import AuthError, ConnectError, ProtocolError, VersionMismatch
from remote_env.protocol import frames
from remote_env.protocol.handshake import (
    ClientHandshake,
    ServerHandshake,
    is_proof,
    new_token,
    pack_link,
    parse_link,
    proof,
    refusal,
)

TOKEN = "a" * 64
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def parse(frame: bytes | bytearray) -> tuple[int, dict[str, Any]]:
    header = frames.parse_header(frame)
    return header.type, parse_link(bytes(frame[frames.HEADER_SIZE :]))


@pytest.mark.parametrize("role", ["control", "data"])
def test_two_that_share_a_token_agree(role: str) -> None:
    client, server = ClientHandshake(TOKEN, role, session="new"), ServerHandshake(TOKEN)
    challenge = server.feed(*parse(client.hello()))
    assert challenge is not None
    assert not server.done
    assert server.feed(*parse(client.answer(*parse(challenge)))) is None
    assert server.done
    assert server.hello["session"] == "new"
    assert client.finish(*parse(pack_link(frames.WELCOME, {"x": 1}))) == {"x": 1}


def test_the_token_never_crosses() -> None:
    client, server = ClientHandshake(TOKEN, "control"), ServerHandshake(TOKEN)
    hello = client.hello()
    challenge = server.feed(*parse(hello))
    assert challenge is not None
    answer = client.answer(*parse(challenge))
    assert TOKEN.encode() not in bytes(hello + challenge + answer)


def test_a_client_gives_no_proof_to_an_impostor() -> None:
    client, impostor = ClientHandshake(TOKEN, "control"), ServerHandshake("b" * 64)
    challenge = impostor.feed(*parse(client.hello()))
    assert challenge is not None
    with pytest.raises(AuthError, match="does not have this token"):
        client.answer(*parse(challenge))


def test_a_server_refuses_another_token() -> None:
    client, server = ClientHandshake("b" * 64, "control"), ServerHandshake(TOKEN)
    _, challenge = parse(server.feed(*parse(client.hello())) or b"")
    wrong = proof("b" * 64, "client", "control", server.hello["nonce"], challenge["nonce"])
    with pytest.raises(AuthError, match="token is wrong"):
        server.feed(frames.PROOF, {"proof": wrong})
    assert not server.done


def test_a_recorded_conversation_proves_nothing_later() -> None:
    client, server = ClientHandshake(TOKEN, "control"), ServerHandshake(TOKEN)
    hello = client.hello()
    answer = client.answer(*parse(server.feed(*parse(hello)) or b""))
    later = ServerHandshake(TOKEN)
    later.feed(*parse(hello))
    with pytest.raises(AuthError):
        later.feed(*parse(answer))


def test_a_proof_is_bound_to_all_its_parts() -> None:
    parts = (TOKEN, "client", "control", "1" * 64, "2" * 64)
    right = proof(*parts)
    assert is_proof(right, *parts)
    for index in range(5):
        other = [*parts[:index], parts[index] + "x", *parts[index + 1 :]]
        assert not is_proof(right, *other)
    for given_ in (None, 5, b"x", "", right[:-1], right.upper(), "ü" * 64, "\ud800"):
        assert not is_proof(given_, *parts)


@given(st.sampled_from(sorted(frames.NAMES)), st.dictionaries(st.text(), json_values, max_size=4))
def test_a_server_fed_with_anything_raises_typed_errors(kind: int, message: dict[str, Any]) -> None:
    fresh, greeted = ServerHandshake(TOKEN), ServerHandshake(TOKEN)
    greeted.feed(*parse(ClientHandshake(TOKEN, "data").hello()))
    for server in (fresh, greeted):
        with pytest.raises((AuthError, ProtocolError, ConnectError)):
            server.feed(kind, message)
        assert not server.done


@given(st.binary(max_size=60))
def test_bodies_of_any_bytes(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(parse_link(body), dict)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("auth", AuthError), ("version", VersionMismatch), ("protocol", ProtocolError), ("busy", ConnectError)],
)
def test_refusals_have_their_error(kind: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="so it is"):
        ClientHandshake(TOKEN, "control").finish(frames.REFUSED, {"kind": kind, "message": "so it is"})
    assert type(refusal({"kind": kind, "message": "so it is"})) is error
    assert type(refusal({})) is ConnectError


def test_tokens_are_long_and_new() -> None:
    assert len({new_token() for _ in range(50)}) == 50
    assert all(len(bytes.fromhex(new_token())) == 32 for _ in range(5))
