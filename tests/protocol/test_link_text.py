"""The JSON of link messages: one object, each key once, numbers that are numbers, and no deeper than allowed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_env.errors import ProtocolError
from remote_env.protocol import frames
from remote_env.protocol.handshake import MAX_LINK_DEPTH, ClientHandshake, ServerHandshake, parse_link

REFUSED = {
    "key twice": b'{"a": 1, "a": 1}',
    "key twice, deeper": b'{"a": [{"b": 1, "b": 2}]}',
    "not a number": b'{"a": NaN}',
    "infinite": b'{"a": -Infinity}',
    "beyond float64": b'{"a": 1e999}',
    "beyond 64 bits": b'{"a": 18446744073709551616}',
    "below 64 bits": b'{"a": -9223372036854775809}',
    "a million digits": b'{"a": ' + b"9" * 1_000_000 + b"}",
    "invalid UTF-8": b'{"a": "\xff"}',
    "half a character, encoded": b'{"a": "\xed\xa0\x80"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-32": '{"a": 1}'.encode("utf-32-be"),
    "byte order mark": '\ufeff{"a": 1}'.encode(),
    "too deep": b'{"a":' + b"[" * MAX_LINK_DEPTH + b"]" * MAX_LINK_DEPTH + b"}",
    "too deep, in dicts": b'{"a":' * (MAX_LINK_DEPTH + 1) + b"1" + b"}" * (MAX_LINK_DEPTH + 1),
    "very deep": b'{"a":' + b"[" * 500_000 + b"}",
    "two objects": b"{} {}",
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_link_message(name: str) -> None:
    with pytest.raises(ProtocolError, match="a link message"):
        parse_link(REFUSED[name])


@pytest.mark.parametrize("number", [2**64 - 1, -(2**63), 1.7e308, 5e-324])
def test_numbers_of_64_bits_are_taken(number: float) -> None:
    assert parse_link(json.dumps({"a": number}).encode()) == {"a": number}


def test_the_deepest_allowed() -> None:
    body = b'{"a":' + b"[" * (MAX_LINK_DEPTH - 1) + b"]" * (MAX_LINK_DEPTH - 1) + b"}"
    assert list(parse_link(body)) == ["a"]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_what_is_packed_arrives(message: dict[str, object]) -> None:
    assert parse_link(json.dumps(message).encode()) == message


@pytest.mark.parametrize("nonce", [None, 5, "", "0" * 63, "0" * 65, "\ud800" * 64, "\0" * 64, "A" * 64, ["0"]])
def test_a_client_takes_no_other_nonce(nonce: object) -> None:
    client = ClientHandshake("0123456789abcdef" * 4, "control")
    with pytest.raises(ProtocolError, match="nonce"):
        client.answer(frames.CHALLENGE, {"nonce": nonce, "proof": "0" * 64})


@pytest.mark.parametrize("kind", [*sorted(set(frames.NAMES) - {frames.HELLO}), 0, 255])
def test_a_stranger_refuses_a_server_nothing(kind: int) -> None:
    server = ServerHandshake("0123456789abcdef" * 4)
    with pytest.raises(ProtocolError, match="expected HELLO"):  # and of REFUSED no text of the stranger's own choice
        server.feed(kind, {"kind": "busy", "message": "a text of mine"})
