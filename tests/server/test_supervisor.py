"""The supervisor under bad manners: whatever a connection does, the others are served."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leak_check import is_alive, marked_processes, wait_until
from server_process import ROOT, BareClient, ServerProcess, read_to_end, serving

from remote_env.errors import ConfigError
from remote_env.protocol import frames
from remote_env.protocol.handshake import ClientHandshake, pack_link, proof
from remote_env.server.folder import read_settings, record_path


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """One server for the whole module: each test proves that it survived the others."""
    with serving(handshake_timeout_s=0.5) as running:
        yield running


@pytest.fixture(autouse=True)
def still_serves(server: ServerProcess) -> Iterator[None]:
    yield
    with BareClient(server) as client:
        welcome = client.shake_hands(session="new", client="the check after each test")
        assert welcome["type"] == frames.WELCOME, welcome
        client.wait_event("ready")
    assert server.process.poll() is None
    # The session is free again once the supervisor has seen our end.
    wait_until(lambda: "remote_env_sessions 0" in server.http("/metrics"), "the session ends")


def refusal_of(server: ServerProcess, data: bytes | bytearray) -> dict[str, str]:
    with BareClient(server) as client:
        client.send(data)
        header, message = client.recv()
        assert header.type == frames.REFUSED
        assert read_to_end(client.sock) == b""
    return message


def reseal(frame: bytearray, **fields: int) -> bytearray:
    """`frame` with other header fields and a CRC that fits, as a peer of ill will would send it."""
    header = frames.HEADER.unpack_from(frame)
    values = dict(zip(frames.Header._fields, header, strict=True))
    values.update(fields)
    values["crc"] = 0
    frames.HEADER.pack_into(frame, 0, *values.values())
    values["crc"] = zlib.crc32(frame)
    frames.HEADER.pack_into(frame, 0, *values.values())
    return frame


def test_one_that_asks_and_never_reads_is_dropped_and_holds_up_nobody() -> None:
    with (
        serving("tasks_for_tests.slow:Slow", {"build": "talk:4000"}) as own,
        BareClient(own) as greedy,
        BareClient(own) as other,
    ):
        greedy.shake_hands()
        other.shake_hands()
        greedy.send(200 * pack_link(frames.LOGS, {"since": 0, "max_bytes": 1 << 17}))
        assert other.ask(frames.STATUS)["state"] == "ready"
        wait_until(lambda: "asks for more than it takes" in own.read_log(), "it is dropped")
        assert other.ask(frames.STATUS)["state"] == "ready"


def test_whoever_asks_for_much_at_once_is_answered_all_of_it(server: ServerProcess) -> None:
    with BareClient(server) as client:
        client.shake_hands()
        for _ in range(4):
            client.send(200 * pack_link(frames.STATUS, {}))
            assert {client.recv()[0].type for _ in range(200)} == {frames.REPLY}


# Health page


@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_health_is_200_when_ready(server: ServerProcess, path: str) -> None:
    head, _, body = server.http(path).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert f"Content-Length: {len(body)}" in head
    assert body == "ready\n"


def test_head_has_no_body(server: ServerProcess) -> None:
    head, _, body = server.http("/healthz", "HEAD").partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert body == ""


def test_curl_sees_200(server: ServerProcess) -> None:
    url = f"http://127.0.0.1:{server.port}/healthz"
    code = "import sys,urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).status)"
    assert subprocess.check_output([sys.executable, "-c", code, url], text=True, timeout=20).strip() == "200"


def test_metrics_count_and_name_nothing_private(server: ServerProcess) -> None:
    text = server.http("/metrics")
    assert "remote_env_ready 1" in text
    assert "remote_env_sessions 0" in text
    assert "# TYPE remote_env_steps_total counter" in text
    for private in ("CartPole", str(server.folder), os.environ["XDG_CACHE_HOME"], "root", server.token):
        assert private not in text


def test_other_paths_and_methods(server: ServerProcess) -> None:
    assert server.http("/etc/passwd").startswith("HTTP/1.1 404")
    assert server.http("/healthz?x=1").startswith(("HTTP/1.1 200", "HTTP/1.1 404"))


@pytest.mark.parametrize("state", ["starting", "failed"])
def test_health_is_503_with_a_reason(state: str, isolated_home: Path) -> None:
    gate = isolated_home / "gate"
    how = f"until:{gate}" if state == "starting" else "raise"
    other = ServerProcess("tasks_for_tests.misbehaving:OnDemand", {"init": how}).wait_listening()
    try:
        if state == "failed":
            wait_until(lambda: "ended" in other.read_log(), "the simulator ends")
        answer = other.http("/healthz")
        assert answer.startswith("HTTP/1.1 503")
        assert "not ready: " in answer
        reasons = {
            "starting": r"not ready: (starting|checking|importing|building) for \d+ s\n",
            "failed": r"not ready: the task could not be made \(ValueError in building\)\n",
        }
        assert re.search(reasons[state], answer)
        assert "OnDemand" not in answer
        assert "remote_env_ready 0" in other.http("/metrics")
        gate.touch()
        if state == "starting":
            other.wait_ready()
    finally:
        gate.touch()
        other.stop()
        gate.unlink()


# Bytes that are none of ours


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 44,
        b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n" + b"x" * 44,
        b"\x16\x03\x01" + b"t" * 200,
        secrets.token_bytes(4096),
    ],
    ids=["zeros", "ssh", "tls", "random"],
)
def test_garbage_is_refused(server: ServerProcess, garbage: bytes) -> None:
    if garbage[:1] in b"GH":
        garbage = b"\0" + garbage
    message = refusal_of(server, garbage)
    assert message["kind"] == "protocol"
    assert "not a remote-env frame" in message["message"]


def test_http_garbage_is_answered_or_dropped(server: ServerProcess) -> None:
    with server.open_socket() as sock:
        sock.sendall(b"GET\r\n\r\n")
        assert read_to_end(sock).startswith(b"HTTP/1.1 405")
    with server.open_socket() as sock:
        sock.sendall(b"G" * 9000)
        assert b"8 KiB" in read_to_end(sock)
    with server.open_socket() as sock:
        sock.sendall(b"HEAD \xff\xfe\0 HTTP/1.1\r\n\r\n")
        assert read_to_end(sock).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("start", [b"", b"R", b"RENV", b"GET / HTTP/1.1\r\nHost:"])
def test_silence_is_dropped_at_the_deadline(server: ServerProcess, start: bytes) -> None:
    with server.open_socket() as sock:
        sock.sendall(start)
        assert read_to_end(sock) == b""
    assert "silent for too long" in server.read_log()


def test_silence_after_the_challenge_is_dropped(server: ServerProcess) -> None:
    with BareClient(server) as client:
        client.send(ClientHandshake(server.token, "control").hello())
        client.recv()
        assert read_to_end(client.sock) == b""


def test_many_random_connections(server: ServerProcess) -> None:
    generator = random.Random(5)
    for _ in range(60):
        with server.open_socket() as sock:
            start = frames.MAGIC if generator.random() < 0.5 else b""
            sock.sendall(start + generator.randbytes(generator.randrange(200)))
            if generator.random() < 0.5:
                # A reset instead of a close.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_another_version_is_told_both(server: ServerProcess) -> None:
    frame = reseal(ClientHandshake(server.token, "control").hello(), version=9)
    message = refusal_of(server, frame)
    assert message["kind"] == "version"
    assert "version 9" in message["message"]
    assert f"version {frames.VERSION}" in message["message"]


@pytest.mark.parametrize("field", ["body_size", "payload_size"])
@pytest.mark.parametrize("size", [frames.MAX_LINK_BODY_SIZE + 1, 0xFFFFFFFF])
def test_an_oversized_message_is_refused_unread(server: ServerProcess, field: str, size: int) -> None:
    frame = reseal(pack_link(frames.HELLO, {}), **{field: size})
    assert refusal_of(server, frame)["kind"] == "protocol"


def test_a_damaged_frame_is_refused(server: ServerProcess) -> None:
    frame = ClientHandshake(server.token, "control").hello()
    frame[-3] ^= 1
    assert "CRC32" in refusal_of(server, frame)["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'"x"', b"1" * 5000],
    ids=["empty", "list", "null", "cut", "bytes", "deep", "text", "number"],
)
def test_bodies_that_are_no_objects(server: ServerProcess, body: bytes) -> None:
    assert refusal_of(server, frames.pack_frame(frames.HELLO, body))["kind"] == "protocol"


@pytest.mark.parametrize(
    "hello",
    [
        {},
        {"role": "control"},
        {"role": "control", "nonce": 5},
        {"role": "control", "nonce": "0" * 63},
        {"role": "control", "nonce": "\ud800" * 64},
        {"role": "control", "nonce": "\0" * 64},
        {"role": ["control"], "nonce": "0" * 64},
        {"role": "root", "nonce": "0" * 64},
    ],
)
def test_bad_hellos(server: ServerProcess, hello: dict[str, object]) -> None:
    assert refusal_of(server, pack_link(frames.HELLO, hello))["kind"] == "protocol"


@pytest.mark.parametrize("kind", [0, frames.PROOF, frames.STOP, frames.STEP, frames.WELCOME, 255])
def test_nothing_but_hello_comes_first(server: ServerProcess, kind: int) -> None:
    assert refusal_of(server, pack_link(kind, {"session": "new"}))["kind"] == "protocol"


@pytest.mark.parametrize("given", ["0" * 64, "", None, 7, "\ud800", "ü", ["x"], "other side", "other token"])
def test_a_wrong_proof_is_refused(server: ServerProcess, given: object) -> None:
    nonce = "0" * 64
    with BareClient(server) as client:
        client.send(pack_link(frames.HELLO, {"role": "control", "nonce": nonce, "session": "new"}))
        _, challenge = client.recv()
        if given == "other side":
            given = challenge["proof"]  # the server's own, sent back
        elif given == "other token":
            given = proof("f" * 64, "client", "control", nonce, challenge["nonce"])
        client.send(pack_link(frames.PROOF, {"proof": given}))
        header, message = client.recv()
    assert (header.type, message["kind"]) == (frames.REFUSED, "auth")
    assert "token" in message["message"]


def test_a_proof_for_control_is_none_for_data(server: ServerProcess) -> None:
    nonce = "0" * 64
    with BareClient(server) as client:
        client.send(pack_link(frames.HELLO, {"role": "data", "nonce": nonce}))
        _, challenge = client.recv()
        client.send(
            pack_link(frames.PROOF, {"proof": proof(server.token, "client", "control", nonce, challenge["nonce"])})
        )
        assert client.recv()[1]["kind"] == "auth"


# Authenticated, and still wrong


@pytest.mark.parametrize("fields", [{}, {"session": "none", "key": "x"}, {"session": "\ud800"}, {"session": 5}])
def test_a_data_connection_without_a_session(server: ServerProcess, fields: dict[str, Any]) -> None:
    with BareClient(server) as client:
        answer = client.shake_hands("data", **fields)
    assert (answer["type"], answer["kind"]) == (frames.REFUSED, "auth")


@pytest.mark.parametrize("role", ["data", "control"])
@pytest.mark.parametrize("given", [None, "", "0" * 64, "\ud800", 5, ["0" * 64]])
def test_a_session_is_nobody_s_who_cannot_prove_that_it_is(server: ServerProcess, role: str, given: object) -> None:
    with BareClient(server) as control:
        session = control.shake_hands(session="new")["session"]
        with BareClient(server) as client:
            client.send(pack_link(frames.HELLO, {"role": role, "nonce": "a" * 64, "session": session}))
            nonce = client.recv()[1]["nonce"]
            mine = {"proof": proof(server.token, "client", role, "a" * 64, nonce)}
            client.send(pack_link(frames.PROOF, mine if given is None else {**mine, "session_proof": given}))
            header, answer = client.recv()
        assert (header.type, answer["kind"]) == (frames.REFUSED, "auth")
        assert control.ask(frames.STATUS)["holders"][0]["cut_off"] is False  # its owner's connection stands


def test_a_holder_is_named_to_the_next(server: ServerProcess) -> None:
    with BareClient(server) as first, BareClient(server) as second:
        assert first.shake_hands(session="new", client="ada@lovelace pid 7")["type"] == frames.WELCOME
        answer = second.shake_hands(session="new", client="x")
    assert (answer["type"], answer["kind"]) == (frames.REFUSED, "busy")
    assert "ada@lovelace pid 7 since " in answer["message"]


@pytest.mark.parametrize("name", ["\ud800 \n\x1b[2J", 5, None, ["x"], "n" * 10_000])
def test_odd_client_names(server: ServerProcess, name: object) -> None:
    with BareClient(server) as client:
        assert client.shake_hands(session="new", client=name)["type"] == frames.WELCOME
    for line in server.read_log().splitlines():
        assert "\x1b" not in line
        assert len(line) < 5000


def test_questions_without_a_session(server: ServerProcess) -> None:
    with BareClient(server) as client:
        assert client.shake_hands(session=None)["task"] == "CartPole-v1"
        client.send(pack_link(frames.STATUS, {}, sequence=3))
        header, status = client.recv()
        assert (header.type, header.sequence, status["state"]) == (frames.REPLY, 3, "ready")
        client.send(pack_link(frames.PING, {}, sequence=4))
        assert client.recv()[0].sequence == 4
        client.send(pack_link(frames.LOGS, {"lines": -5}, sequence=5))
        assert len(client.recv()[1]["text"].splitlines()) == 1


@pytest.mark.parametrize(
    "frame",
    [
        pack_link(frames.LOGS, {"lines": "many"}),
        pack_link(frames.LOGS, {"lines": [1]}),
        pack_link(frames.LOGS, {"lines": 1e400}),
        pack_link(77, {}),
        pack_link(frames.HELLO, {}),
    ],
    ids=["words", "list", "infinite", "unknown", "hello again"],
)
def test_bad_questions_cost_the_connection_only(server: ServerProcess, frame: bytearray) -> None:
    with BareClient(server) as other, BareClient(server) as client:
        other.shake_hands(session=None)
        client.shake_hands(session=None)
        client.send(frame)
        assert client.recv()[1]["kind"] == "protocol"
        assert read_to_end(client.sock) == b""
        other.send(pack_link(frames.PING, {}, sequence=1))
        assert other.recv()[0].sequence == 1


def test_a_client_that_vanishes_frees_its_session(server: ServerProcess) -> None:
    for linger in (b"", struct.pack("ii", 1, 0)):
        with BareClient(server) as client:
            client.shake_hands(session="new")
            if linger:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        wait_until(lambda: "remote_env_sessions 0" in server.http("/metrics"), "the session ends")


def test_a_dead_simulator_is_replaced_for_the_next_session() -> None:
    with serving() as own:
        for _ in range(3):  # its end and its last words race each other at the supervisor
            with BareClient(own) as client:
                client.shake_hands(session="new")
                pid = client.wait_event("ready")["pid"]
                os.kill(pid, signal.SIGKILL)
                event = client.wait_event("dead")
            assert "killed by SIGKILL" in event["why"]
            assert not is_alive(pid)
            wait_until(lambda: "remote_env_sessions 0" in own.http("/metrics"), "the session ends")
        assert own.process.poll() is None


# Settings, secrets, the end


def write_settings(folder: Path, mode: int, **content: object) -> None:
    path = folder / "settings.json"
    path.write_text(json.dumps({"token": "t" * 64, **content}))
    path.chmod(mode)


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o755, 0o600), (0o700, 0o644), (0o700, 0o640), (0o770, 0o600)])
def test_settings_that_others_can_read_are_refused(tmp_path: Path, folder_mode: int, file_mode: int) -> None:
    write_settings(tmp_path, file_mode)
    tmp_path.chmod(folder_mode)
    with pytest.raises(ConfigError, match="chmod go-rwx"):
        read_settings(tmp_path)


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    write_settings(tmp_path, 0o600, token="short")
    tmp_path.chmod(0o700)
    with pytest.raises(ConfigError, match="at least 32 characters"):
        read_settings(tmp_path)


def test_beyond_loopback_needs_a_word() -> None:
    own = ServerProcess(listen={"tcp": ["0.0.0.0", 0]})
    assert own.process.wait(20) == 1
    failed = json.loads((own.folder / "failed.json").read_text())
    assert "refusing to listen on 0.0.0.0" in failed["message"]
    assert "--insecure" in failed["message"]
    for path in own.folder.iterdir():
        path.unlink()
    own.folder.rmdir()


def test_a_taken_port_is_said(server: ServerProcess) -> None:
    own = ServerProcess(listen={"tcp": ["127.0.0.1", server.port]})
    assert own.process.wait(20) == 1
    assert json.loads((own.folder / "failed.json").read_text())["kind"] == "port-in-use"
    # The record of the server that has the port is untouched.
    record = record_path(server.port)
    assert json.loads(record.read_text())["token"] == server.token
    for path in own.folder.iterdir():
        path.unlink()
    own.folder.rmdir()


def test_the_record_tells_what_a_client_chooses_by(server: ServerProcess) -> None:
    record = json.loads(record_path(server.port).read_text())
    assert record["pid"] == server.process.pid
    assert record["port"] == server.port
    assert record["id"] == server.folder.name == Path(record["session_folder"]).name
    assert record["host"] == record_path(server.port).parent.name == os.uname().nodename
    assert record["task_label"] == "CartPole-v1"
    assert record["setup"] == ""
    assert set(record) == {
        *("pid", "start_time", "token", "session_folder", "id", "task_label", "digest", "setup", "started", "user"),
        *("python", "port", "host", "kept"),
    }


def test_the_token_shows_nowhere(server: ServerProcess) -> None:
    record = record_path(server.port)
    assert record.stat().st_mode & 0o777 == 0o600
    assert {folder.stat().st_mode & 0o777 for folder in record.parents[:2]} == {0o700}
    for pid in [server.process.pid, *marked_processes()]:
        assert server.token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert server.token not in server.read_log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with serving() as own:
        simulators = (own.folder / "simulators").read_text().split()
        own.process.send_signal(number)
        assert own.process.wait(10) == 0
        assert not own.folder.exists()
        assert not is_alive(int(simulators[0]))
        record = record_path(own.port)
        assert not record.exists()


def test_a_server_without_clients_ends_itself() -> None:
    with serving(idle_timeout_s=0.2) as own:
        with BareClient(own) as client:
            client.shake_hands(session="new")
        assert own.process.wait(10) == 0
        assert not own.folder.exists()


def test_stop_ends_the_server() -> None:
    with serving() as own, BareClient(own) as client:
        client.shake_hands(session=None)
        client.send(pack_link(frames.STOP, {}))
        assert read_to_end(client.sock) == b""
        assert not own.folder.exists()  # everything is gone before the client hears
        assert own.process.wait(10) == 0


def test_the_supervisor_imports_the_standard_library_only() -> None:
    code = (
        "import sys, types; package = types.ModuleType('remote_env'); package.__path__ = ['remote_env']\n"
        "sys.modules['remote_env'] = package\n"
        "import remote_env.server.supervisor\n"
        "print([name for name in ('numpy', 'gymnasium', 'msgpack', 'paramiko') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-S", "-c", code], cwd=ROOT, text=True, timeout=20) == "[]\n"
