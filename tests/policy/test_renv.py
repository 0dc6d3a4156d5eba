"""The dialect renv on real sockets: what comes back is what a local policy gives, or an error that says why."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policies_for_tests import CountingPolicy, EchoPolicy, FailingPolicy, GatedPolicy, describe, observe
from renv_serving import TOKEN, RenvServer, serving

from remote_env.errors import (
    AuthError,
    ConfigError,
    ConnectError,
    DeadlineExceeded,
    InputError,
    PolicyError,
    VersionMismatch,
)
from remote_env.policy.dialects import renv, renv_link
from remote_env.policy.policy import Chunk, Feature, ObservationBatch, Policy, PolicyMetadata
from remote_env.policy.token_file import remove_token, token_path, write_token
from remote_env.protocol import frames
from remote_env.protocol.handshake import ServerHandshake, pack_link, parse_link
from remote_env.transport import SocketTransport, connect_tcp


class SeeingPolicy(Policy):
    """Keeps what it was given.

    Attributes:
        seen: observation and episodes of the last call.
    """

    def __init__(self, metadata: PolicyMetadata) -> None:
        self.metadata = metadata
        self.seen: tuple[ObservationBatch, list[str]] = ({}, [])

    def infer(self, observation: ObservationBatch, *, episode_ids: Any) -> Chunk:
        self.seen = observation, list(episode_ids)
        return np.zeros((len(episode_ids), self.metadata.chunk_size, self.metadata.action_size), np.float32)


@pytest.fixture
def echo() -> Iterator[RenvServer]:
    with serving(EchoPolicy()) as server:
        yield server


# What comes back


def test_metadata_arrives_whole() -> None:
    metadata = describe("all", images=2, text=True, control_rate_hz=50.0, dataset_ids=("x",), extra={"env": "a"})
    with serving(SeeingPolicy(metadata)) as server, server.connect() as client:
        assert client.metadata == metadata


@pytest.mark.parametrize("rows", [1, 2, 300])
def test_actions_are_those_of_a_local_policy(echo: RenvServer, rows: int) -> None:
    observation = {"state": np.random.default_rng(0).normal(size=(rows, 14)).astype(np.float32)}
    names = [f"e{row}" for row in range(rows)]
    expected = EchoPolicy().infer(observation, episode_ids=names)
    with echo.connect() as client:
        got = client.infer(observation, episode_ids=names)
        assert got.dtype == np.float32
        assert got.tobytes() == expected.tobytes()
        assert got.flags.writeable
        assert got.flags.c_contiguous
        assert client.served_s >= 0
        again = client.infer(observation, episode_ids=names)
        got += 1  # its own memory
        np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("coding", ["raw", "zstd", "auto"])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_kind_of_feature_arrives_as_it_was(coding: str, rows: int) -> None:
    policy = SeeingPolicy(describe("all", images=2, text=True))
    rng = np.random.default_rng(1)
    observation = observe(2.5, policy.metadata, rows)
    observation["image0"] = rng.integers(0, 255, observation["image0"].shape, np.uint8)  # noise does not code
    observation["instruction"] = [f"pick {row} ünd" for row in range(rows)]
    names = [f"e{row}" for row in range(rows)]
    with serving(policy) as server, server.connect(image_coding=coding) as client:
        client.infer(observation, episode_ids=names)
        seen, episodes = policy.seen
        assert [name.rpartition("/")[2] for name in episodes] == names
        assert list(seen) == list(observation) or set(seen) == set(observation)
        for name, value in observation.items():
            np.testing.assert_array_equal(seen[name], value)


def test_jpeg_is_near_and_only_on_request() -> None:
    policy = SeeingPolicy(describe("all", images=1))
    observation = observe(0.0, policy.metadata)
    observation["image0"] += np.arange(64, dtype=np.uint8)[None, None, :, None] * 3
    with serving(policy) as server, server.connect(image_coding="jpeg") as client:
        client.infer(observation, episode_ids=[""])
        seen = policy.seen[0]["image0"]
        assert seen.shape == observation["image0"].shape
        assert 0 < np.abs(seen.astype(int) - observation["image0"]).max() < 30


def test_jpeg_for_channels_first_is_refused_when_connecting() -> None:
    metadata = PolicyMetadata("chw", {"top": Feature("image", (3, 48, 64), "uint8", layout="CHW")}, ("a",))
    with serving(SeeingPolicy(metadata)) as server:
        with pytest.raises(ConfigError, match=r"\['top'\] are CHW; take zstd"):
            server.connect(image_coding="jpeg")
        with pytest.raises(ConfigError, match="unknown image coding 'png'"):
            server.connect(image_coding="png")


def test_only_the_policys_features_are_sent(echo: RenvServer) -> None:
    sent: list[int] = []
    with echo.connect() as client:
        link = client._connection.link
        assert link is not None
        send = link.stream.send

        def count(frame: Any, deadline: float, payload: Any = ()) -> None:
            sent.append(len(frame) + sum(map(len, payload)))
            send(frame, deadline, payload)

        link.stream.send = count  # type: ignore[method-assign]
        client.infer({**observe(1.0), "camera": np.zeros((1, 480, 640, 3), np.uint8)}, episode_ids=[""])
    assert sent[0] < 200


def test_keys_restrict_what_is_sent() -> None:
    policy = SeeingPolicy(describe("all", images=1))
    with serving(policy) as server:
        with server.connect(keys=["state"]) as client, pytest.raises(InputError, match="lacks 'image0'"):
            client.infer(observe(0.0, policy.metadata), episode_ids=[""])
        with pytest.raises(ConfigError, match=r"no feature \['depth'\]; it has state, image0"):
            server.connect(keys=["depth"])


def test_a_shorter_chunk_may_be_asked_for(echo: RenvServer) -> None:
    with echo.connect(chunk_size=2) as client:
        assert client.metadata.chunk_size == 2
        assert client.infer(observe(1.0), episode_ids=[""]).shape == (1, 2, 14)
    with echo.connect(chunk_size=64) as client:
        assert client.metadata.chunk_size == 4
    with pytest.raises(ConfigError, match="chunk_size is at least 1; got 0"):
        echo.connect(chunk_size=0)


def test_arrays_of_any_memory_order(echo: RenvServer) -> None:
    wide = np.zeros((1, 28), np.float32)
    wide[0, ::2] = np.arange(14)
    with echo.connect() as client:
        np.testing.assert_array_equal(client.infer({"state": wide[:, ::2]}, episode_ids=[""])[0, 0], np.arange(14))


def test_memory_goes_by_episode_and_reset() -> None:
    with serving(CountingPolicy()) as server, server.connect() as one, server.connect() as other:

        def count(client: Any, *names: str) -> list[float]:
            return client.infer(observe(0.0, rows=len(names)), episode_ids=names)[:, 0, 0].tolist()

        assert count(one, "a", "b") == [1, 1]
        assert count(one, "a") == [2]
        assert count(other, "a") == [1]
        one.reset(["a"])
        assert count(one, "a", "b") == [1, 2]
        one.reset()
        assert count(one, "b", "a") == [1, 1]
        assert count(other, "a") == [2]


def test_what_the_server_says_of_itself(echo: RenvServer) -> None:
    with echo.connect() as client, echo.connect():
        client.infer(observe(), episode_ids=[""])
        info = client.info()
        assert [info["requests"], info["clients"]] == [1, 1]
        assert info["metadata"]["name"] == "echo"


def test_a_client_that_leaves_is_gone_at_once() -> None:
    with serving(CountingPolicy()) as server:
        with server.connect() as client:
            client.infer(observe(), episode_ids=["a"])
        client.close()
        with pytest.raises(ConfigError, match="was closed"):
            client.infer(observe(), episode_ids=["a"])
    assert server.lines[-1] == "Client #1 closed: 1 requests in total"


def test_threads_share_a_client(echo: RenvServer) -> None:
    wrong: list[float] = []
    with echo.connect() as client:

        def ask(value: float) -> None:
            for _ in range(20):
                if client.infer(observe(value), episode_ids=[""])[0, 0, 0] != value:
                    wrong.append(value)

        threads = [threading.Thread(target=ask, args=(float(number),)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not wrong


def infer_in_child(client: Any, results: Any) -> None:
    results.put(float(client.infer(observe(5.0), episode_ids=[""])[0, 0, 0]))
    client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_a_connection_of_its_own(echo: RenvServer) -> None:
    context = multiprocessing.get_context("fork")
    with echo.connect() as client:
        results = context.Queue()
        child = context.Process(target=infer_in_child, args=(client, results))
        child.start()
        assert results.get(timeout=20) == 5.0
        child.join(20)
        assert client.infer(observe(6.0), episode_ids=[""])[0, 0, 0] == 6.0
        child.close()
        results.close()
        results.join_thread()


# What goes wrong


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({}, "lacks 'state'"),
        ({"state": np.zeros((1, 13), np.float32)}, r"\(B, 14,\)"),
        ({"state": np.zeros((1, 14))}, "is float32; got float64"),
        ({"state": np.full((1, 14), np.nan, np.float32)}, "must be finite"),
        ({"state": np.zeros((2, 14), np.float32)}, "2 rows came with 1 episode"),
        ({"state": [0.0] * 14}, "is an array"),
    ],
)
def test_a_wrong_observation_is_told_and_nothing_breaks(echo: RenvServer, observation: Any, message: str) -> None:
    with echo.connect() as client:
        with pytest.raises(InputError, match=message):
            client.infer(observation, episode_ids=[""])
        assert client.infer(observe(4.0), episode_ids=[""])[0, 0, 0] == 4.0


def test_what_cannot_cross_is_told_before_anything_is_sent(echo: RenvServer) -> None:
    with echo.connect() as client:
        with pytest.raises(InputError, match="observation"):
            client.infer({"state": object()}, episode_ids=[""])
        assert client.infer(observe(4.0), episode_ids=[""])[0, 0, 0] == 4.0


def test_a_policy_that_raises_is_told_with_its_traceback() -> None:
    with serving(FailingPolicy()) as server, server.connect() as client:
        with pytest.raises(PolicyError, match="ValueError: the model chokes on a negative number") as raised:
            client.infer(observe(-1), episode_ids=[""])
        assert "policies_for_tests.py" in raised.value.remote_traceback
        assert client.infer(observe(4.0), episode_ids=[""])[0, 0, 0] == 4.0


def test_too_large_an_observation_is_not_sent() -> None:
    policy = SeeingPolicy(describe("all", images=1, image_shape=(480, 640, 3)))
    with serving(policy, max_message_bytes=1_000_000) as server, server.connect() as client:
        with pytest.raises(InputError, match="an observation of 1843200 bytes; this server takes 1000000"):
            client.infer(observe(0.0, policy.metadata, rows=2), episode_ids=["a", "b"])
        client.infer(observe(0.0, policy.metadata), episode_ids=[""])


def test_an_inference_that_takes_too_long_says_what_it_waited_for() -> None:
    class Slow(GatedPolicy):
        def __init__(self) -> None:
            super().__init__()
            self.metadata = describe("slow", has_memory=True)

    policy = Slow()
    with serving(policy) as server, server.connect(timeout_s=0.3) as client:
        with pytest.raises(DeadlineExceeded, match=r"no reply to INFER .* within 0.3 s; the policy may still be at it"):
            client.infer(observe(), episode_ids=[""])
        policy.gate.release()


# The token


def test_a_wrong_token_is_refused_without_a_proof(echo: RenvServer) -> None:
    with pytest.raises(AuthError, match=f"the policy server at 127.0.0.1:{echo.port}: .*does not have this token"):
        echo.connect(token="f" * 64)


def test_the_server_refuses_a_client_that_cannot_prove_the_token(echo: RenvServer) -> None:
    # Our own client would not come so far: it has the server prove itself first.
    with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as sock:
        hello = {"role": "policy", "nonce": "0" * 64, "client": "0" * 32}
        sock.sendall(pack_link(frames.HELLO, hello))
        stream = frames.FrameStream(SocketTransport(sock))
        deadline = time.monotonic() + 10
        stream.recv(deadline)
        stream.send(pack_link(frames.PROOF, {"proof": "0" * 64}), deadline)
        assert stream.recv(deadline).type == frames.REFUSED
        assert parse_link(stream.body_bytes())["kind"] == "auth"


def test_no_token_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for host, login in (("127.0.0.1", "HOST"), (socket.gethostname(), socket.gethostname())):
            if host != "127.0.0.1":
                monkeypatch.setattr(renv_link, "connect_tcp", lambda host, *_: connect_tcp("127.0.0.1", *_))
            with pytest.raises(ConfigError) as raised:
                renv.connect(host, port)
            line = f"export REMOTE_ENV_TOKEN=$(ssh {login} cat '~/.cache/remote-env/policies/{port}.token')"
            assert line in str(raised.value)
            assert str(token_path(port)) in str(raised.value)
    with pytest.raises(ConfigError, match="has 5 characters; one has at least 32"):
        renv.connect("gpu-box", 5000, token="short")


def test_without_a_token_a_server_that_is_not_there_is_told_first() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectError, match="nothing answers at 127"):
        renv.connect("127.0.0.1", port)


def test_the_token_is_found_in_the_environment_and_in_the_servers_file(
    echo: RenvServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_token(echo.port, TOKEN)
    echo.connect(token=None).close()
    remove_token(echo.port, TOKEN)
    monkeypatch.setenv("REMOTE_ENV_TOKEN", TOKEN)
    echo.connect(token=None).close()
    Path(token_path(echo.port)).parent.rmdir()


def test_a_server_without_a_token_does_not_serve() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, serving(EchoPolicy()) as server:
        context = type("Context", (), {"token": None})()
        with pytest.raises(ConfigError, match="this server has no token"):
            renv.serve(theirs, server.service, context)


# What else may listen there


def answering(data: bytes, *, then_wait: bool = False) -> tuple[int, Callable[[], None]]:
    """A port where one connection is answered with `data` and closed, or left waiting; and its end."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            sock.sendall(data)
            if then_wait:
                sock.recv(65536)

    thread = threading.Thread(target=answer)
    thread.start()

    def end() -> None:
        listener.close()
        thread.join(10)

    return listener.getsockname()[1], end


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "speaks HTTP or WebSocket; .* openpi://127"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18), "HTTP/2, as gRPC does; .* lerobot://127"),
        (b"\x00\x00\x00\x05\x80\x04]\x94.", "length-prefixed pickle; write ilstudio://127"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is an SSH server's"),
        (b"hello there", "it sent b'hello there'"),
        (b"", "the peer closed the connection; if a server of another dialect listens there, write so: ilstudio://"),
    ],
)
def test_a_server_of_another_dialect_is_told(data: bytes, message: str) -> None:
    port, end = answering(data)
    with pytest.raises(ConnectError, match=message):
        renv.connect("127.0.0.1", port, token=TOKEN, timeout_s=5.0)
    end()


def test_a_server_that_says_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renv_link, "HANDSHAKE_TIMEOUT_S", 0.2)
    port, end = answering(b"", then_wait=True)
    with pytest.raises(ConnectError, match=r"nothing was received .*ilstudio://"):
        renv.connect("127.0.0.1", port, token=TOKEN, timeout_s=5.0)
    end()


def test_nobody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectError, match=re.escape(f"nothing answers at 127.0.0.1:{port}")):
        renv.connect("127.0.0.1", port, token=TOKEN, timeout_s=5.0)


def test_a_server_with_no_place_left() -> None:
    with (
        serving(EchoPolicy(), max_clients=1) as server,
        server.connect(),
        pytest.raises(ConnectError, match="has no place for one more client"),
    ):
        server.connect()


def test_a_server_of_another_version() -> None:
    frame = pack_link(frames.REFUSED, {"kind": "version", "message": "speaks 9"})
    frame[4] = 9
    port, end = answering(bytes(frame))
    with pytest.raises(VersionMismatch, match=f"the peer speaks protocol version 9, this end version {frames.VERSION}"):
        renv.connect("127.0.0.1", port, token=TOKEN, timeout_s=5.0)
    end()


def test_a_client_of_another_version_is_told(echo: RenvServer) -> None:
    hello = pack_link(frames.HELLO, {"role": "policy"})
    hello[4] = 9
    with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as sock:
        sock.sendall(hello)
        stream = frames.FrameStream(SocketTransport(sock))
        assert stream.recv(time.monotonic() + 10).type == frames.REFUSED
        assert parse_link(stream.body_bytes())["kind"] == "version"


def test_a_task_server_refuses_who_asks_for_a_policy() -> None:
    from remote_env.errors import ProtocolError

    hello = {"role": "policy", "nonce": "0" * 64}
    with pytest.raises(ProtocolError, match="this is a task server, and the client asks for a policy"):
        ServerHandshake(TOKEN).feed(frames.HELLO, hello)
    with pytest.raises(ProtocolError, match="this is a policy server, and the client asks for a task"):
        ServerHandshake(TOKEN, ("policy",)).feed(frames.HELLO, {**hello, "role": "control"})
