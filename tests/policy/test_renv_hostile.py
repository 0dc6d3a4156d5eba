"""Whatever comes over a connection that has proved itself ends that connection at most."""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leak_check import wait_until
from policies_for_tests import EchoPolicy, describe, observe
from renv_serving import TOKEN, RenvServer, serving

from remote_env.errors import ConnectionLost, MessageTooBig, ProtocolError
from remote_env.policy.dialects import renv_places
from remote_env.policy.dialects.renv_features import infer_codec
from remote_env.policy.dialects.renv_link import open_link
from remote_env.protocol import codec, frames
from remote_env.protocol.inference import InferCodec

FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
METADATA = describe("echo", images=1, text=True)


class TextEcho(EchoPolicy):
    """An echo that also takes an image and a text."""

    def __init__(self) -> None:
        super().__init__(images=1, text=True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RenvServer]:
    monkeypatch.setattr(renv_places, "KEEP_S", 0.0)
    with serving(TextEcho(), max_message_bytes=1 << 20) as server:
        yield server


def say(server: RenvServer, data: bytes) -> list[int]:
    """The types of the frames that answer these bytes, sent over a connection that has proved itself."""
    link = open_link("127.0.0.1", server.port, TOKEN, secrets.token_hex(16), time.monotonic() + 10)
    answers = []
    with contextlib.suppress(ConnectionLost):
        link.stream.send(data, time.monotonic() + 10)
        with contextlib.suppress(OSError):  # the server may have ended the connection already
            link.transport._sock.shutdown(socket.SHUT_WR)
        while True:
            answers.append(link.stream.recv(time.monotonic() + 10).type)
    link.transport.close()
    return answers


def check_others(server: RenvServer) -> None:
    with server.connect() as client:
        assert client.infer(observe(3.0, METADATA), episode_ids=["a"])[0, 0, 0] == 3.0


@FUZZ
@given(st.binary(max_size=300))
def test_any_bytes(server: RenvServer, data: bytes) -> None:
    assert say(server, data) == []
    check_others(server)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["episodes", "observation", "state", "image0", "instruction", "coder"]), inner
        )
    ),
    max_leaves=8,
)


@FUZZ
@given(
    st.sampled_from([frames.INFER, frames.POLICY_RESET, frames.POLICY_INFO, frames.STEP, frames.HELLO, 250]),
    st.integers(0, 15),
    plain.map(lambda value: codec.encode(value, where="fuzz")[0]) | st.binary(max_size=100),
    st.sampled_from([0, 0, 1, 4096, 9216, 1 << 21]),
)
def test_any_frame(server: RenvServer, kind: int, flags: int, body: bytes, payload: int) -> None:
    frame = frames.pack_frame(kind, body, flags=flags, sequence=1, payload_size=payload)
    answers = say(server, bytes(frame) + bytes(min(payload, 10_000)))
    assert set(answers) <= {frames.RESULT, frames.ERROR}
    check_others(server)


def infer(observation: Any, episodes: Any = ("",)) -> bytes:
    body, payload = codec.encode({"observation": observation, "episodes": list(episodes)}, where="test")
    frame = frames.pack_frame(frames.INFER, body, sequence=1, payload_size=sum(map(len, payload)))
    return bytes(frame) + b"".join(payload)


CODED = {"coder": "zstd", "dtype": "uint8", "shape": [1, 48, 64, 3], "data": [np.zeros(40, np.uint8)]}


@pytest.mark.parametrize(
    "observation",
    [
        {"state": None},
        {"state": "x" * 1000},
        {**observe(0.0, METADATA), "image0": CODED},
        {**observe(0.0, METADATA), "image0": {**CODED, "shape": [1 << 20, 1 << 20]}},
        {**observe(0.0, METADATA), "state": {**CODED, "dtype": "float32", "shape": [1, 14]}},
        {**observe(0.0, METADATA), "instruction": [7]},
    ],
    ids=str,
)
def test_a_wrong_observation_is_an_error_and_no_more(server: RenvServer, observation: Any) -> None:
    assert say(server, infer(observation)) == [frames.ERROR]
    check_others(server)


def test_a_number_that_is_too_low_ends_the_connection(server: RenvServer) -> None:
    good = infer(observe(0.0, METADATA))
    low = bytearray(good)
    second = frames.pack_frame(frames.POLICY_INFO, msgpack.packb(None), sequence=2)
    assert say(server, bytes(second) + bytes(low)) == [frames.RESULT]


def test_a_payload_above_the_servers_limit_ends_the_connection(server: RenvServer) -> None:
    big = struct.pack("<I", 200)
    frame = frames.pack_frame(frames.INFER, big, flags=frames.FIXED, sequence=1, payload_size=2 << 20)
    assert say(server, bytes(frame)) == []
    wait_until(lambda: any("this server takes 1048576" in line for line in server.lines), "the log says why")
    check_others(server)


# The codec by itself


@given(st.binary(max_size=400), st.integers(0, 15), st.sampled_from([0, 100, 4096, 9216, 1 << 25]))
@settings(max_examples=200, deadline=None)
def test_any_body_is_read_or_refused(body: bytes, flags: int, payload: int) -> None:
    messages = infer_codec(METADATA, 1 << 24)
    header = frames.parse_header(frames.pack_frame(frames.INFER, body, flags=flags, payload_size=payload))
    for read in (messages.read_request, messages.read_result):
        with contextlib.suppress(ProtocolError):
            *_, views = read(header, bytearray(body), 0, len(body))
            assert sum(map(len, views)) == payload


@pytest.mark.parametrize("rows", [0, 1, 65_537, (1 << 32) - 1])
def test_rows_without_bytes_take_no_memory(rows: int) -> None:
    # A feature of no size: nothing but the count says how many rows there are.
    messages = InferCodec({"nothing": ("float32", (0,))}, 1)
    body = struct.pack("<I", rows)
    header = frames.parse_header(frames.pack_frame(frames.INFER, body, flags=frames.FIXED))
    if rows > 65_536:
        with pytest.raises(ProtocolError, match="at most 65536"):
            messages.read_request(header, bytearray(body), 0, 4)
    else:
        assert len(messages.read_request(header, bytearray(body), 0, 4)[1]) == rows


def test_more_than_the_limit_is_refused() -> None:
    messages = infer_codec(METADATA, 1 << 16)
    header = frames.parse_header(frames.pack_frame(frames.INFER, b"", flags=frames.FIXED, payload_size=1 << 17))
    with pytest.raises(MessageTooBig, match="this server takes 65536"):
        messages.read_request(header, bytearray(), 0, 0)
