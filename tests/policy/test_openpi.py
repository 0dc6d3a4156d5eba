from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from dialect_server import answering, serving
from policies_for_tests import CountingPolicy, EchoPolicy, FailingPolicy, observe
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve

from remote_env.errors import (
    AuthError,
    ConnectError,
    ConnectionLost,
    DeadlineExceeded,
    InputError,
    PolicyError,
    ProtocolError,
)
from remote_env.policy.dialects import openpi
from remote_env.policy.dialects.openpi_messages import MAX_ITEMS, OURS, decode, encode
from remote_env.policy.token_file import remove_token, write_token

TOKEN = "t" * 40


@contextlib.contextmanager
def dial(port: int, **headers: str) -> Iterator[ClientConnection]:
    """A client of websockets' own, without openpi's manners; past the metadata."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, additional_headers=headers, open_timeout=10) as sock:
        assert OURS in decode(sock.recv(10))
        yield sock


def ask(sock: ClientConnection, message: Any) -> Any:
    sock.send(message if isinstance(message, (bytes, str)) else encode(message))
    reply = sock.recv(10)
    return decode(reply) if isinstance(reply, bytes) else reply


# The server.


def test_an_observation_is_matched_by_name_and_answered_with_a_chunk():
    with serving(openpi.serve, EchoPolicy()) as server, dial(server.port) as sock:
        for observation in (
            {"state": np.arange(14.0)},
            {"observation/state": np.arange(14, dtype=np.float32)},
            {"observation": {"robot": {"state": list(range(14))}}, "time": 3, "done": False},
            {"joints": np.arange(14, dtype=np.int64)},
        ):
            reply = ask(sock, observation)
            assert reply["actions"].shape == (4, 14)
            assert reply["actions"].dtype == np.float32
            assert reply["actions"][1].tolist() == [i + 1 for i in range(14)]
            assert reply["policy_timing"]["infer_ms"] <= reply["server_timing"]["infer_ms"]


def test_an_observation_that_does_not_fit_is_a_text_with_both_sides():
    with serving(openpi.serve, EchoPolicy()) as server, dial(server.port) as sock:
        reply = ask(sock, {"state": np.zeros(3), "other/state": np.zeros(2)})
        assert "the policy takes" in reply
        assert "the task offers" in reply
        assert "actions" in ask(sock, {"state": np.zeros(14)})


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"state": 1.0}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        ({"state": [1, [2, 3]]}, "a list that makes no array"),
        ({"state": np.zeros(14), "__reset__": np.zeros(3, bool)}, "__reset__ is true or false; got ndarray"),
        (_nested(400), "nests at most 16 maps"),
    ],
)
def test_an_observation_of_odd_parts_is_told_and_counted(observation, why):
    with serving(openpi.serve, EchoPolicy()) as server, dial(server.port) as sock:
        assert why in ask(sock, observation)
        assert ask(sock, {"state": np.full(14, 2.0)})["actions"][0, 0] == 2
        requests, errors = server.service.requests_by_dialect()
        assert (requests["openpi"], errors["openpi"]) == (1, 1)


def test_a_failing_model_is_its_traceback_and_the_connection_goes_on():
    with serving(openpi.serve, FailingPolicy()) as server, dial(server.port) as sock:
        reply = ask(sock, {"state": np.full(14, -1.0)})
        assert reply.startswith("Traceback")
        assert "the model chokes on a negative number" in reply
        assert ask(sock, {"state": np.full(14, 2.0)})["actions"][0, 0] == 2
    assert any("the model chokes" in line for line in server.lines)


def test_a_new_connection_begins_an_episode():
    with serving(openpi.serve, CountingPolicy()) as server:
        for _ in range(2):
            with dial(server.port) as sock:
                assert [ask(sock, {"state": np.zeros(14)})["actions"][0, 0] for _ in range(3)] == [1, 2, 3]


def test_our_keys_reset_and_name_episodes():
    with serving(openpi.serve, CountingPolicy()) as server, dial(server.port) as sock:

        def count(**control: Any) -> float:
            return float(ask(sock, {"state": np.zeros(14), **control})["actions"][0, 0])

        assert [count(), count(), count(__episode__="b")] == [1, 2, 1]
        assert count(__reset__=True) == 1
        assert count(__episode__="b") == 2
        assert "actions" not in ask(sock, {"__reset__": True, "__episode__": "b"})
        assert [count(), count(__episode__="b")] == [2, 1]
        assert "names an episode by a text" in ask(sock, {"state": np.zeros(14), "__episode__": 3})


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({}, "no token"),
        ({"Authorization": "Api-Key wrong"}, "a wrong token"),
        ({"Authorization": TOKEN}, "a wrong token"),
    ],
)
def test_without_the_token_nobody_gets_in(header, why):
    with serving(openpi.serve, EchoPolicy(), token=TOKEN, require_token=True) as server:
        with pytest.raises(InvalidStatus) as caught, dial(server.port, **header):
            pass
        assert caught.value.response.status_code == 401
        server.join()
        with dial(server.port, Authorization=f"Api-Key {TOKEN}") as sock:
            assert "actions" in ask(sock, {"state": np.zeros(14)})
    assert any("(openpi): " + why in line for line in server.lines)
    assert not any(TOKEN in line for line in server.lines)


def test_web_pages_are_kept_out():
    with serving(openpi.serve, EchoPolicy()) as server:
        with pytest.raises(InvalidStatus) as caught, dial(server.port, Origin="https://example.org"):
            pass
        assert caught.value.response.status_code == 403


HOSTILE_ARRAYS = {
    "objects": {"dtype": "|O", "shape": [1], "data": b"\0" * 8},
    "records": {"dtype": "f4,f4", "shape": [1], "data": b"\0" * 8},
    "text": {"dtype": "<U2", "shape": [1], "data": b"\0" * 8},
    "nothing wide": {"dtype": "|S0", "shape": [1 << 40], "data": b""},
    "complex": {"dtype": "<c8", "shape": [1], "data": b"\0" * 8},
    "dtype as a list": {"dtype": [["a", "<f4"]], "shape": [2], "data": b"\0" * 8},
    "too large": {"dtype": "<f8", "shape": [1 << 30, 1 << 30], "data": b"\0" * 8},
    "too small": {"dtype": "<f8", "shape": [1], "data": b"\0" * 16},
    "negative": {"dtype": "<f8", "shape": [-1], "data": b"\0" * 8},
    "deep": {"dtype": "|u1", "shape": [1] * 40, "data": b"\0"},
    "without data": {"dtype": "<f8", "shape": [1]},
    "data as text": {"dtype": "|u1", "shape": [3], "data": "abc"},
}
HOSTILE_MESSAGES = {
    "no msgpack": b"\xc1",
    "nothing": b"",
    "more than one": msgpack.packb({}) + msgpack.packb({}),
    "no map": msgpack.packb([1, 2]),
    "keys that are numbers": msgpack.packb({1: 2}),
    "keys that are bytes": msgpack.packb({b"state": 2}),
    "an extension": msgpack.packb({"state": msgpack.ExtType(5, b"x")}),
    "an announced list": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "an announced map": b"\x81\xa1a\xdf\xff\xff\xff\xff",
    "many values": msgpack.packb({"a": [[0] * 1000] * (MAX_ITEMS // 1000 + 1)}),
    "deep lists": b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0",
    "a scalar of text": msgpack.packb({"a": {b"__npgeneric__": True, b"data": "x", b"dtype": "<f8"}}),
    "text that is none": b"\x81\xa1a\xa2\xff\xff",
    **{
        f"an array: {name}": msgpack.packb(
            {"state": {b"__ndarray__": True, **{key.encode(): value for key, value in array.items()}}}
        )
        for name, array in HOSTILE_ARRAYS.items()
    },
}


@pytest.mark.parametrize("name", HOSTILE_MESSAGES)
def test_messages_that_are_none_are_refused(name):
    with pytest.raises(ProtocolError):
        openpi.read_observation(HOSTILE_MESSAGES[name])


@pytest.mark.parametrize("message", ["no msgpack", "keys that are bytes", "an array: objects", "text"])
def test_a_message_that_is_none_ends_the_connection(message):
    with serving(openpi.serve, EchoPolicy()) as server:
        with dial(server.port) as sock:
            reply = ask(sock, HOSTILE_MESSAGES.get(message, "a text"))
            assert reply.startswith("remote_env.errors.ProtocolError")
            with pytest.raises(ConnectionClosed) as caught:
                sock.recv(10)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1011
        server.join()
    assert any("its connection is closed" in line for line in server.lines)


def test_a_message_that_is_too_long_ends_the_connection():
    with serving(openpi.serve, EchoPolicy(), max_message_bytes=1000) as server:
        with dial(server.port) as sock:
            sock.send(bytes(1001))
            with pytest.raises(ConnectionClosed) as caught:
                sock.recv(10)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
        server.join()
    assert any("too big" in line for line in server.lines)


def test_fragments_and_pings_are_understood():
    with serving(openpi.serve, EchoPolicy()) as server, dial(server.port) as sock:
        data = encode({"state": np.full(14, 5.0)})
        pong = sock.ping()
        sock.send([data[:10], data[10:50], data[50:]])
        assert decode(sock.recv(10))["actions"][0, 0] == 5  # type: ignore[arg-type]
        assert pong.wait(10)


def test_a_client_that_says_nothing_is_let_go():
    with serving(openpi.serve, EchoPolicy(), idle_timeout_s=0.2) as server:
        with dial(server.port) as sock, pytest.raises(ConnectionClosed):
            sock.recv(10)
        server.join()
    assert any("its connection is closed: nothing was received" in line for line in server.lines)


def test_a_client_that_vanishes_leaves_nothing():
    with serving(openpi.serve, EchoPolicy()) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n")
        server.join(1)
        with dial(server.port) as sock2:
            sock2.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock2.socket.close()
        server.join(2)
        assert server.service.living == []


# The client, at our server.


def test_our_client_knows_our_servers_policy():
    with serving(openpi.serve, EchoPolicy(images=1, text=True)) as server:
        policy = openpi.connect("127.0.0.1", server.port)
        assert policy.metadata == EchoPolicy(images=1, text=True).metadata
        batch = {**observe(3.0, policy.metadata, rows=2), "instruction": ["lift", "drop"]}
        chunk = policy.infer(batch, episode_ids=["a", "b"])
        assert chunk.shape == (2, 4, 14)
        assert chunk[:, :, 0].tolist() == [[3, 4, 5, 6]] * 2
        assert chunk.flags.c_contiguous
        with pytest.raises(InputError, match="lacks 'image0'"):
            policy.infer({"state": batch["state"]}, episode_ids=["a", "b"])
        policy.close()


def test_our_client_resets_episodes():
    with serving(openpi.serve, CountingPolicy()) as server:
        policy = openpi.connect("127.0.0.1", server.port)

        def count() -> list[float]:
            return policy.infer(observe(rows=2), episode_ids=["a", "b"])[:, 0, 0].tolist()

        assert [count(), count()] == [[1, 1], [2, 2]]
        policy.reset(["b"])
        assert count() == [3, 1]
        policy.reset()
        assert count() == [1, 1]
        server.cut()
        server.join()
        with pytest.raises(ConnectionLost, match="with it went what the policy remembered"):
            count()
        policy.reset()
        assert count() == [1, 1]
        policy.close()


def test_our_client_says_why_the_model_failed():
    with serving(openpi.serve, FailingPolicy()) as server:
        policy = openpi.connect("127.0.0.1", server.port, chunk_size=3)
        with pytest.raises(PolicyError, match=r"ValueError: the model chokes on a negative number$") as caught:
            policy.infer(observe(-1), episode_ids=["a"])
        assert "Traceback" in caught.value.remote_traceback
        assert policy.infer(observe(2), episode_ids=["a"])[0, :, 0].tolist() == [2, 3, 4]
        policy.close()
    assert sum("connected from" in line for line in server.lines) == 1


def test_our_client_finds_the_token_of_a_server_on_this_machine(monkeypatch):
    with serving(openpi.serve, EchoPolicy(), token=TOKEN, require_token=True) as server:
        with pytest.raises(AuthError, match=r"401.*no token"):
            openpi.connect("127.0.0.1", server.port)
        write_token(server.port, TOKEN)
        openpi.connect("localhost", server.port).close()
        remove_token(server.port, TOKEN)
        monkeypatch.setenv("REMOTE_ENV_TOKEN", TOKEN)
        openpi.connect("127.0.0.1", server.port).close()
        with pytest.raises(AuthError, match="a wrong token"):
            openpi.connect("127.0.0.1", server.port, token="wrong")


def test_a_broken_connection_is_made_again():
    with serving(openpi.serve, EchoPolicy()) as server:
        policy = openpi.connect("127.0.0.1", server.port)
        server.cut()
        server.join()
        assert policy.infer(observe(2.0), episode_ids=["a"])[0, 0, 0] == 2
        policy.close()
        server.join()


# The client, at servers of others.


@contextlib.contextmanager
def others(handle: Any) -> Iterator[int]:
    """A server of websockets' own; `handle` gets each connection."""
    server: Server
    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join(10)


def test_our_client_works_with_a_server_that_tells_nothing():
    seen: list[Any] = []

    def handle(sock: ServerConnection) -> None:
        sock.send(msgpack.packb({"reset_pose": [0.0]}))
        for message in sock:
            seen.append(decode(message))  # type: ignore[arg-type]
            sock.send(encode({"actions": np.arange(6.0).reshape(3, 2), "state": np.zeros(2)}))

    with others(handle) as port:
        policy = openpi.connect("127.0.0.1", port, keys={"state": "observation/state", "instruction": "prompt"})
        assert policy.metadata.extra == {"unknown": True}
        assert policy.server_metadata == {"reset_pose": [0.0]}
        chunk = policy.infer({"state": np.ones((1, 5), np.float32), "instruction": ["lift"]}, episode_ids=["a"])
        assert chunk.tolist() == [[[0, 1], [2, 3], [4, 5]]]
        assert (policy.metadata.chunk_size, policy.metadata.action_size) == (3, 2)
        policy.reset(["a"])
        policy.infer({"state": np.ones((1, 5), np.float32)}, episode_ids=["a"])
        policy.close()
    assert seen[0]["prompt"] == "lift"
    assert [sorted(each) for each in seen] == [["observation/state", "prompt"], ["observation/state"]]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"action": np.zeros((2, 2))}, r"without 'actions' \(K, D\); its reply holds \['action'\]"),
        ({"actions": np.zeros((2, 2, 2))}, "without 'actions'"),
        ({"actions": np.full((2, 2), np.nan)}, "not finite"),
        (HOSTILE_MESSAGES["an array: objects"], "an array of dtype '|O'"),
        ("Traceback (most recent call last):\n  File\nValueError: oh\nno", "failed: ValueError: oh\nno$"),
    ],
)
def test_replies_that_are_none_are_refused(reply, message):
    def handle(sock: ServerConnection) -> None:
        sock.send(msgpack.packb({}))
        for _ in sock:
            sock.send(reply if isinstance(reply, (bytes, str)) else encode(reply))

    with others(handle) as port:
        policy = openpi.connect("127.0.0.1", port)
        with pytest.raises((PolicyError, ProtocolError), match=message):
            policy.infer({"state": np.zeros((1, 2))}, episode_ids=["a"])
        policy.close()


def test_a_server_of_another_kind_is_told():
    not_found = b"HTTP/1.1 404 Not Found\r\n\r\n"
    with (
        answering(lambda sock: [sock.recv(4096), sock.sendall(not_found)]) as port,
        pytest.raises(ConnectError, match=r"opens no WebSocket.*404.*does it speak openpi"),
    ):
        openpi.connect("127.0.0.1", port)
    with (
        answering(lambda sock: sock.recv(4096)) as port,
        pytest.raises(ConnectError, match="instead of opening a WebSocket"),
    ):
        openpi.connect("127.0.0.1", port)
    with others(lambda sock: sock.send("hello")) as port, pytest.raises(ProtocolError, match="said no metadata first"):
        openpi.connect("127.0.0.1", port)
    with pytest.raises(ConnectError, match="nothing answers at"):
        openpi.connect("127.0.0.1", port)


def test_a_server_that_never_answers_is_given_up():
    def handle(sock: ServerConnection) -> None:
        sock.send(msgpack.packb({}))
        for _ in sock:
            pass

    with others(handle) as port:
        policy = openpi.connect("127.0.0.1", port, timeout_s=0.3)
        with pytest.raises(DeadlineExceeded):
            policy.infer({"state": np.zeros((1, 2))}, episode_ids=["a"])
        policy.close()
