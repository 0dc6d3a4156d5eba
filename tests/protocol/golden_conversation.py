"""A small conversation between the real client session and the real simulator loop, recorded frame by frame.

Run it to write tests/data/golden_frames.json anew, after a change of the protocol that docs/protocol.md tells:

    PYTHONPATH=. python tests/protocol/golden_conversation.py
"""

from __future__ import annotations

import functools
import json
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from gymnasium import spaces

from remote_env.errors import ConnectionLost, InputError, TaskError
from remote_env.protocol import frames, handshake
from remote_env.server.backend import Backend
from remote_env.server.board import Board
from remote_env.server.loop import SimulatorLoop
from remote_env.session import Session
from remote_env.state import EntityLayout, SceneLayout, SceneState
from remote_env.transport import Buffer, SocketTransport

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden_frames.json"
TOKEN = "0123456789abcdef" * 4
SESSION, SECRET = "00112233aabbccdd", "ffeeddccbbaa99887766554433221100"
NONCES = {side: character * 64 for side, character in zip(("s1", "s2", "c1", "c2"), "1234", strict=True)}
TIMEOUT_S = 10.0


class Toy(Backend):
    """A task with one cube, whose every answer is fixed."""

    def make(self, env: Any, kwargs: Any) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
        self.render_mode = "rgb_array"
        self.spec = {"id": "Toy-v0"}
        self.callable_names = frozenset({"difficulty"})
        self._layout = SceneLayout((EntityLayout("cube"),), "toy 1")
        self._steps = 0

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        return np.array([0.0, 0.0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        if action not in (0, 1):
            raise ValueError("no such action")
        self._steps += 1
        info = {"lucky": True} if self._steps == 2 else {}
        return np.array([0.5, -0.5], np.float32), 1.0, self._steps == 2, False, info

    def state(self, *, native: bool) -> SceneState:
        values = np.zeros(self._layout.size)
        values[0], values[4] = 0.02 * self._steps, 1.0
        return SceneState(self._layout, values, b"\x01\x02" if native else None)

    def restore(self, state: SceneState) -> None:
        self._steps = round(state.time_s / 0.02)

    def render(self) -> Any:
        return np.full((37, 37, 3), 7, np.uint8)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return 3

    def close(self) -> None:
        pass


class RecordingTransport:
    """A transport that notes what goes through it, in both directions."""

    def __init__(self, sock: socket.socket, link: str, recorded: list[tuple[str, str, bytes]]) -> None:
        self._inner, self._link, self._recorded = SocketTransport(sock), link, recorded

    def send_all(self, buffers: Sequence[Buffer], deadline: float) -> None:
        self._recorded.append((self._link, "client", b"".join(bytes(buffer) for buffer in buffers)))
        self._inner.send_all(buffers, deadline)

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        count = self._inner.recv_some_into(view, deadline)
        self._recorded.append((self._link, "server", bytes(view[:count])))
        return count

    def recv_exactly_into(self, view: memoryview, deadline: float) -> None:
        done = 0
        while done < len(view):
            done += self.recv_some_into(view[done:], deadline)

    def close(self) -> None:
        self._inner.close()


def record_conversation(
    talk: Callable[[Callable[[float], Any]], None] | None = None,
    backend: type[Backend] = Toy,
    loop: type[SimulatorLoop] = SimulatorLoop,
    welcome: dict[str, Any] | None = None,
) -> list[dict[str, str]]:
    """Each frame that crossed, in order: link, sender, message name, hex.

    Args:
        talk: what the client does, given what dials.
        backend: what is served.
        loop: what serves it.
        welcome: what the server says more of itself.
    """
    recorded: list[tuple[str, str, bytes]] = []
    with (
        mock.patch.object(handshake, "new_nonce", side_effect=NONCES.values()),
        mock.patch.object(traceback, "format_exc", return_value="Traceback (most recent call last): ..."),
        mock.patch.object(traceback, "print_exc"),
    ):
        serve_control = functools.partial(_serve_control, more=welcome or {})
        serve_data = functools.partial(_serve_data, kind=backend, loop=loop)
        servers: Any = iter([("control", serve_control), ("data", serve_data)])
        proofs = [handshake.ServerHandshake(TOKEN), handshake.ServerHandshake(TOKEN)]
        threads: list[threading.Thread] = []

        def dial(_deadline: float) -> RecordingTransport:
            link, serve = next(servers)
            ours, theirs = socket.socketpair()
            threads.append(threading.Thread(target=serve, args=(theirs, proofs.pop(0))))
            threads[-1].start()
            return RecordingTransport(ours, link, recorded)

        (talk or _talk)(dial)
        for thread in threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
    return list(_split(recorded))


def _talk(dial: Callable[[float], Any]) -> None:
    session = Session(dial, TOKEN, time.monotonic() + TIMEOUT_S, client="ann@desk pid 1")
    session.reset(7, None, TIMEOUT_S)
    session.step(1, TIMEOUT_S)
    session.step(np.int32(1), TIMEOUT_S, want_state=True)
    expect_error(TaskError, lambda: session.step(9, TIMEOUT_S))
    state = session.get_state(TIMEOUT_S, native=True)
    session.set_state(state, TIMEOUT_S)
    session.render(TIMEOUT_S)
    session.call("difficulty", (), {}, TIMEOUT_S)
    expect_error(InputError, lambda: session.call("secret", (), {}, TIMEOUT_S))
    session.control.status()
    session.control.stop_server(time.monotonic() + TIMEOUT_S)
    session.close()


def expect_error(kind: type[Exception], call: Callable[[], Any]) -> None:
    """Call, and fail when nothing of that kind is raised."""
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def _shake_hands(sock: socket.socket, server: handshake.ServerHandshake) -> frames.FrameStream:
    stream = frames.FrameStream(SocketTransport(sock))
    while not server.done:
        header = stream.recv(time.monotonic() + TIMEOUT_S)
        reply = server.feed(header.type, handshake.parse_link(stream.body_bytes()))
        if reply is not None:
            stream.send(reply, time.monotonic() + TIMEOUT_S)
    return stream


def _serve_control(sock: socket.socket, server: handshake.ServerHandshake, more: dict[str, Any]) -> None:
    """What a supervisor says, with every number fixed."""
    stream = _shake_hands(sock, server)
    welcome = {"task": "Toy-v0", "digest": "0011223344556677", "pid": 100, "session": SESSION, "secret": SECRET, **more}
    counts = {"pid": 101, "steps": 0, "resets": 0, "uptime_s": 1.0}
    starting = {"state": "starting", "phase": "building", "since_s": 0.5, **counts, "log_tail": ""}
    ready = {"state": "ready", "call": "nothing", "since_s": 0.25, **counts}
    for kind, message in ((frames.WELCOME, welcome), (frames.EVENT, starting), (frames.EVENT, ready)):
        stream.send(handshake.pack_link(kind, message), time.monotonic() + TIMEOUT_S)
    while (header := stream.recv(time.monotonic() + TIMEOUT_S)).type != frames.STOP:
        assert header.type == frames.STATUS
        reply = handshake.pack_link(frames.REPLY, {**ready, "sessions": 1}, sequence=header.sequence)
        stream.send(reply, time.monotonic() + TIMEOUT_S)
    sock.close()


def _serve_data(
    sock: socket.socket, server: handshake.ServerHandshake, kind: type[Backend], loop: type[SimulatorLoop]
) -> None:
    stream = _shake_hands(sock, server)
    stream.send(handshake.pack_link(frames.WELCOME, {"session": SESSION}), time.monotonic() + TIMEOUT_S)
    backend, board = kind(), Board.create()
    backend.make("Toy-v0", {})
    try:
        loop(backend, board, {"python": "3.11.7"}, frozenset()).serve(sock, epoch=1)
    except ConnectionLost as error:
        raise AssertionError("the client left in mid-call") from error
    finally:
        board.close()


def _split(recorded: list[tuple[str, str, bytes]]) -> Iterator[dict[str, str]]:
    """The frames in what was recorded; one that came in pieces counts when it is whole."""
    held: dict[tuple[str, str], bytes] = {}
    for link, side, data in recorded:
        data = held.get((link, side), b"") + data
        while len(data) >= frames.HEADER_SIZE:
            header = frames.parse_header(data)
            size = frames.HEADER_SIZE + header.body_size + header.payload_size
            if len(data) < size:
                break
            yield {"link": link, "from": side, "message": frames.NAMES[header.type], "hex": data[:size].hex()}
            data = data[size:]
        held[link, side] = data
    assert not any(held.values())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record_conversation(), indent=1) + "\n")
    print(f"wrote {GOLDEN}")
