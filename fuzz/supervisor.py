"""Fuzz a running server: `python -m fuzz.supervisor --seconds 60`.

A real server process is sent spoiled handshakes, link messages, HTTP requests, and, over proved connections, session
messages whose sums are right and whose contents are not. It must go on answering, its simulator must live on, and
nothing but what a task raised may leave a traceback in its log. What was sent since the last answer is the finding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from server_process import BareClient, ServerProcess

from fuzz.make_corpus import golden_frames
from remote_env.errors import RemoteEnvError
from remote_env.protocol import codec, frames
from remote_env.protocol.handshake import ClientHandshake
from remote_env.session.control import shake_hands
from remote_env.transport import Transport, connect_tcp

ANSWER_WITHIN_S = 10.0
SHORT_S = 0.02  # to wait for an answer that need not come
CHECK_EVERY = 40
# These end the server or its simulator when they are right.
DEADLY = (frames.STOP, frames.KILL, frames.KEEP)
ASKED = (frames.STATUS, frames.LOGS, frames.PING, frames.DUMP, frames.LEAVE)
REQUESTS = (frames.RESET, frames.STEP, frames.GET_STATE, frames.SET_STATE, frames.RENDER, frames.CALL, frames.ROLLOUT)
VALUES: tuple[Any, ...] = (
    (None, None),
    (1, {"a": 1}),
    0,
    True,
    ("render_mode", (), {}),
    ({"source": "x", "entities": []}, [0.0], None),
    {"begin": None, "steps": 1, "time_s": 0.1, "size_bytes": 1, "want": [], "chunk_size": None, "stacked": True},
)
LINK: tuple[dict[str, Any], ...] = (
    {},
    {"lines": 5},
    {"since": 0, "max_bytes": 2048},
    {"session": "0" * 16, "problems_after": 3},
    {"role": "control", "nonce": "0" * 64, "session": "new", "client": "x", "lease_s": 5.0, "resume_s": 1.0},
    {"role": "data", "nonce": "0" * 64, "session": "0" * 16, "resume": None},
)
ODD = (
    b"\xff",
    b"\x00",
    b"null",
    b"1e999",
    b"-1",
    b"[",
    b"{",
    b'"',
    b"\\ud800",
    b"9" * 30,
    b"\xdd\xff\xff\xff\xff",
    b"\xc1",
)


class Finding(Exception):
    """What must not happen, happened."""


class Fuzzer:
    """Sends one spoiled thing after another to one server.

    Args:
        seed: of what is sent.

    Attributes:
        executions: how many connections were made and spoiled.
        sent: what was sent since the server last answered.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._golden = [(header, rest) for header, rest in golden_frames() if header.type < frames.READY]
        self.executions = 0
        self.sent: list[bytes] = []

    def spoil(self, data: bytes) -> bytes:
        """`data` with a few bytes changed, gone, doubled or put in."""
        made, choose = bytearray(data), self._random
        for _ in range(choose.choice((0, 1, 1, 2, 5))):
            at = choose.randrange(len(made) + 1)
            how = choose.randrange(5)
            if how == 0:
                made[at : at + 1] = bytes((choose.randrange(256),))
            elif how == 1:
                del made[at : at + choose.randrange(1, 9)]
            elif how == 2:
                made[at:at] = choose.choice(ODD)
            elif how == 3:
                made[at:at] = made[at : at + choose.randrange(1, 60)]
            else:
                made += choose.randbytes(choose.randrange(1, 40))
        return bytes(made)

    def _send(self, client: BareClient, data: bytes) -> None:
        """Send it in a few pieces, and take what comes back."""
        self.sent.append(data)
        client.sock.settimeout(SHORT_S)
        cut = self._random.randrange(len(data) + 1)
        with contextlib.suppress(OSError):  # it may have closed the connection, or have nothing to say
            client.sock.sendall(data[:cut])
            client.sock.sendall(data[cut:])
            client.sock.recv(65536)

    def strange(self, server: ServerProcess) -> None:
        """What somebody sends who has proved nothing."""
        choose = self._random
        with BareClient(server) as client:
            how = choose.randrange(4)
            header, rest = choose.choice(self._golden)
            if how == 0:
                self._send(client, self.spoil(bytes(frames.pack_frame(header.type, rest))))
            elif how == 1:
                self._send(client, bytes(frames.pack_frame(choose.randrange(256), self.spoil(rest))))
            elif how == 2:
                self._send(client, self.spoil(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))
            else:
                self._greet(client)

    def _greet(self, client: BareClient) -> None:
        """A right HELLO, then a PROOF that is not quite one."""
        handshake = ClientHandshake("f" * 64, "control", session="new")
        client.send(handshake.hello())
        client.recv()
        proof = self.spoil(json.dumps({"proof": "0" * 64, "session_proof": "0" * 64}).encode())
        self._send(client, bytes(frames.pack_frame(frames.PROOF, proof)))

    def known(self, server: ServerProcess) -> None:
        """What somebody sends who has the token, on a control connection."""
        choose = self._random
        with BareClient(server) as client:
            client.shake_hands(session=choose.choice((None, None, "new")))
            for _ in range(choose.randrange(1, 6)):
                kind = choose.choice((*ASKED, choose.randrange(256)))
                if kind not in DEADLY:
                    body = self.spoil(json.dumps(choose.choice(LINK)).encode())
                    self._send(client, bytes(frames.pack_frame(kind, body, sequence=choose.randrange(9))))

    def hello(self, server: ServerProcess) -> None:
        """A HELLO of somebody who has the token, with odd fields, and what follows."""
        choose = self._random
        role = choose.choice(("control", "data"))
        odd = choose.choice((-1, 0, 2**63, 1.5, "new", "", [], {}, None, True, "\ud800", "x" * 3000))
        name = choose.choice(("session", "client", "lease_s", "resume_s", "resume", "client_at"))
        fields = {name: 1.5 if name == "resume_s" and odd == 2**63 else odd}  # that session would stay for long
        with BareClient(server) as client, contextlib.suppress(RemoteEnvError, OSError, EOFError):
            self.sent.append(repr((role, fields)).encode("utf-8", "backslashreplace"))
            client.shake_hands(role, **{"session": "new", **fields} if role == "control" else fields)

    def session(self, server: ServerProcess) -> None:
        """What somebody sends to a simulator: frames whose sums are right."""
        with self._data_connection(server) as (transport, epoch):
            until = time.monotonic() + 1.0
            body, _ = codec.encode((1, None), where="x")
            transport.send_all([frames.pack_frame(frames.RESET, body, epoch=epoch, sequence=1)], until)
            for sequence in range(2, self._random.randrange(3, 9)):
                frame = self._request(epoch, sequence)
                self.sent.append(frame)
                transport.send_all([frame], until)
            with contextlib.suppress(RemoteEnvError):
                transport.recv_some_into(memoryview(bytearray(65536)), time.monotonic() + SHORT_S)

    def _request(self, epoch: int, sequence: int) -> bytes:
        choose = self._random
        body = self.spoil(codec.encode(choose.choice(VALUES), where="x")[0])
        flags = choose.choice((0, frames.FIXED, frames.TAIL, frames.WANT_STATE, 15, choose.randrange(1 << 16)))
        kind = choose.choice((*REQUESTS, *REQUESTS, choose.randrange(256)))
        size = choose.choice((0, 0, 0, 4096))
        sequence = choose.choice((sequence, sequence, sequence, 0, 2**64 - 1))
        acknowledged = choose.choice((0, 1, 2**63))
        frame = frames.pack_frame(
            kind, body, flags=flags, epoch=epoch, payload_size=size, sequence=sequence, acknowledged=acknowledged
        )
        damaged = self.spoil(bytes(frame)) if choose.random() < 0.2 else bytes(frame)
        return damaged + bytes(size)

    @contextlib.contextmanager
    def _data_connection(self, server: ServerProcess) -> Iterator[tuple[Transport, int]]:
        until = time.monotonic() + ANSWER_WITHIN_S

        def dial(deadline: float) -> Transport:
            return connect_tcp("127.0.0.1", server.port, deadline)

        control, _, welcome, handshake = shake_hands(dial, server.token, "control", until, session="new")
        try:
            key = handshake.derive_key(welcome["session"])
            data, stream, _, _ = shake_hands(
                dial, server.token, "data", until, key=key, session=welcome["session"], resume=None
            )
            try:
                yield data, stream.recv(until).epoch
            finally:
                data.close()
        finally:
            control.close()


def check(server: ServerProcess, pid: int) -> None:
    """Raise Finding unless the server answers as before, with the same simulator, and nobody holds a session.

    Each session of ours has ended with its connection, or ends when it is not taken back.
    """
    if server.process.poll() is not None:
        raise Finding(f"the server has ended with {server.process.returncode}")
    until = time.monotonic() + ANSWER_WITHIN_S
    with BareClient(server) as client:
        client.sock.settimeout(ANSWER_WITHIN_S)
        client.shake_hands(session=None)
        while True:
            status = client.ask(frames.STATUS)
            if status.get("pid") != pid or status["state"] in ("dead", "failed"):
                raise Finding(f"the simulator {pid} is no more: {status}")
            if status["state"] in ("ready", "busy") and not status["sessions"]:
                return
            if time.monotonic() > until:
                raise Finding(f"not ready, or a session stays that nobody holds: {status}")
            time.sleep(0.05)


def check_log(server: ServerProcess) -> None:
    """Raise Finding when the supervisor, or the simulator outside its task, has left a traceback."""
    for part in server.read_log().split("Traceback (most recent call last):")[1:]:
        if "_backend_" not in part and "self.backend." not in part:
            raise Finding(f"a traceback in the server's log:\n{part[:3000]}")


def fuzz(seconds: float, seed: int) -> tuple[Fuzzer, str]:
    """Send things for so long; the fuzzer, and what was found ("" for nothing)."""
    fuzzer = Fuzzer(seed)
    server = ServerProcess("CartPole-v1", max_sessions=8).wait_listening().wait_ready()
    try:
        with BareClient(server) as client:
            client.shake_hands(session=None)
            pid = client.ask(frames.STATUS)["pid"]
        turns = (fuzzer.strange, fuzzer.strange, fuzzer.known, fuzzer.hello, fuzzer.session)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(CHECK_EVERY):
                turn = fuzzer._random.choice(turns)
                fuzzer.executions += 1
                with contextlib.suppress(RemoteEnvError, OSError, EOFError, KeyError):  # we are refused, and closed
                    turn(server)
            check(server, pid)
            check_log(server)
            fuzzer.sent.clear()
        return fuzzer, ""
    except (Finding, AssertionError, RemoteEnvError, OSError, EOFError) as error:
        return fuzzer, f"{type(error).__name__}: {error}"
    finally:
        server.stop()


def main() -> None:
    """Fuzz, print how much and what was found, and exit with 1 when anything was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--findings", type=Path, default=Path("outputs/fuzz/supervisor"))
    options = parser.parse_args()
    fuzzer, found = fuzz(options.seconds, options.seed)
    print(f"seed {options.seed}\nstat::number_of_executed_units: {fuzzer.executions}")
    if found:
        options.findings.mkdir(parents=True, exist_ok=True)
        lines = [found, f"seed {options.seed}", *(part.hex() for part in fuzzer.sent)]
        (options.findings / f"crash-{options.seed}").write_text("\n".join(lines) + "\n")
        print(found)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
