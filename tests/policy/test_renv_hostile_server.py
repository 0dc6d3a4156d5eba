"""A policy server that has the token and says nonsense: its client ends with a typed error, and lets go of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from renv_serving import TOKEN

from remote_env.errors import ConnectError, InputError, PolicyError, ProtocolError, RemoteEnvError
from remote_env.policy.dialects.renv_client import RenvPolicy
from remote_env.protocol import codec, frames
from remote_env.protocol.handshake import POLICY_ROLE, ServerHandshake, pack_link, parse_link
from remote_env.transport import SocketTransport

FEATURE = {"kind": "state", "shape": [2], "dtype": "float32"}
METADATA = {"name": "x", "observation": {"state": FEATURE}, "action_names": ["a"]}
WELCOME = {"metadata": METADATA, "instance": "0" * 32, "resumed": False}


@contextlib.contextmanager
def saying(welcome: Any, *replies: tuple[int, int, bytes, int]) -> Iterator[tuple[str, int]]:
    """A server's address, which says this to its one client, and waits for it to leave."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=_serve, args=(listener, welcome, replies))
        thread.start()
        yield listener.getsockname()
        thread.join(10)
        assert not thread.is_alive(), "the client holds its connection"


def _serve(listener: socket.socket, welcome: Any, replies: Any) -> None:
    sock, _ = listener.accept()
    with sock, contextlib.suppress(RemoteEnvError):
        stream, until = frames.FrameStream(SocketTransport(sock)), time.monotonic() + 30
        handshake = ServerHandshake(TOKEN, (POLICY_ROLE,))
        while not handshake.done:
            header = stream.recv(until)
            answer = handshake.feed(header.type, parse_link(stream.body_bytes()))
            if answer is not None:
                stream.send(answer, until)
        stream.send(pack_link(frames.WELCOME, welcome), until)
        for kind, flags, body, payload_size in replies:
            header = stream.recv(until)
            answer = frames.pack_frame(kind, body, flags=flags, sequence=header.sequence, payload_size=payload_size)
            stream.send(answer, until)
        while True:
            stream.recv(until)


def connect(address: tuple[str, int]) -> RenvPolicy:
    return RenvPolicy(*address, TOKEN, timeout_s=5.0, reconnect_timeout_s=0.0)


def with_feature(**changed: Any) -> dict[str, Any]:
    return {**WELCOME, "metadata": {**METADATA, "observation": {"state": {**FEATURE, **changed}}}}


@pytest.mark.parametrize(
    "welcome",
    [
        {},
        {**WELCOME, "metadata": []},
        {**WELCOME, "metadata": {**METADATA, "observation": []}},
        {**WELCOME, "metadata": {**METADATA, "action_names": 5}},
        {**WELCOME, "max_message_bytes": "many"},
        with_feature(dtype="object"),
        with_feature(dtype="O"),
        with_feature(dtype="no such"),
        with_feature(shape=[-1, -1]),
        with_feature(shape=[2**62, 2**62]),
        with_feature(shape="ab"),
    ],
)
def test_a_welcome_that_is_none(welcome: Any) -> None:
    with saying(welcome) as address, pytest.raises(ConnectError, match="does not answer as a policy server does"):
        connect(address)


def actions(rows: int, length: int, body: bytes) -> bytes:
    return rows.to_bytes(4, "little") + length.to_bytes(4, "little") + bytes(8) + body


@pytest.mark.parametrize(
    "reply",
    [
        (frames.RESULT, frames.FIXED, b"", 0),
        (frames.RESULT, frames.FIXED, actions(2**32 - 1, 2**32 - 1, b""), 0),
        (frames.RESULT, frames.FIXED, actions(1, 1, bytes(4)), 64),
        (frames.RESULT, frames.TAIL, actions(1, 1, bytes(4)), 0),
        (frames.ERROR, frames.TAIL, b"\xc0", 0),
        (frames.ERROR, frames.TAIL, b"\xc1", 0),
        (frames.READY, 0, b"", 0),
    ],
)
def test_a_reply_that_is_none(reply: tuple[int, int, bytes, int]) -> None:
    with saying(WELCOME, reply) as address:
        policy = connect(address)
        try:
            with pytest.raises((ProtocolError, PolicyError, ConnectError)):
                policy.infer({"state": np.zeros((1, 2), np.float32)}, episode_ids=["a"])
        finally:
            policy.close()


def test_an_error_may_say_odd_things() -> None:
    body, _ = codec.encode({"kind": "InputError", "message": [1], "traceback": {}}, where="x")
    with saying(WELCOME, (frames.ERROR, frames.TAIL, body, 0)) as address:
        policy = connect(address)
        try:
            with pytest.raises(InputError, match=r"\[1\]"):
                policy.infer({"state": np.zeros((1, 2), np.float32)}, episode_ids=["a"])
        finally:
            policy.close()
