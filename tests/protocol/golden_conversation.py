"""A small conversation between the real client session and the real simulator loop, recorded frame by frame.

Run it to write tests/data/golden_frames.json anew, after a change of the protocol that docs/protocol.md tells:

    PYTHONPATH=. python tests/protocol/golden_conversation.py
"""

from __future__ import annotations

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

from remote_env.errors import InputError, TaskError
from remote_env.protocol import frames, handshake
from remote_env.server.backend import Backend
from remote_env.server.board import Board
from remote_env.server.loop import SimulatorLoop
from remote_env.session import ControlLink, Session
from remote_env.state import EntityLayout, SceneLayout, SceneState
from remote_env.transport import Buffer, SocketTransport

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden_frames.json"
TOKEN = "0123456789abcdef" * 4
SESSION = "00112233aabbccdd"
NONCES = {name: digit * 64 for name, digit in zip(("s1", "s2", "s3", "c1", "c2", "c3"), "125346", strict=True)}
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
        self._inner.send_all(buffers, deadline)
        self._recorded.append((self._link, "client", b"".join(bytes(buffer) for buffer in buffers)))

    def recv_some_into(self, view: memoryview, deadline: float) -> int:
        count = self._inner.recv_some_into(view, deadline)
        self._recorded.append((self._link, "server", bytes(view[:count])))
        return count

    def close(self) -> None:
        self._inner.close()


class Peers:
    """The server's end of each connection, in threads: a supervisor whose every number is fixed, and one simulator.

    Args:
        links: what each connection is to be, in order: "control" or "data".
        recorded: where to note what crosses.
        backend: what is served.
        loop: what serves it.
        welcome: what the server says more of itself.
    """

    def __init__(
        self,
        links: Sequence[str],
        recorded: list[tuple[str, str, bytes]],
        backend: type[Backend],
        loop: type[SimulatorLoop],
        welcome: dict[str, Any],
    ) -> None:
        self._links, self._recorded = iter(links), recorded
        self._handshakes = [handshake.ServerHandshake(TOKEN) for _ in links]
        self._threads: list[threading.Thread] = []
        self._welcome = {"task": "Toy-v0", "digest": "0011223344556677", "pid": 100, **welcome}
        self._board, self._is_free = Board.create(), threading.Lock()
        self.backend = backend()
        self.backend.make("Toy-v0", {})
        self._loop = loop(self.backend, self._board, {"python": "3.11.7"}, frozenset())

    def dial(self, _deadline: float) -> RecordingTransport:
        """The next connection."""
        link = next(self._links)
        ours, theirs = socket.socketpair()
        serve = self._serve_control if link == "control" else self._serve_data
        self._threads.append(threading.Thread(target=serve, args=(theirs, self._handshakes.pop(0))))
        self._threads[-1].start()
        return RecordingTransport(ours, link, self._recorded)

    def join(self) -> None:
        """Wait until every connection has ended."""
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()
        self._board.close()

    def _serve_control(self, sock: socket.socket, server: handshake.ServerHandshake) -> None:
        """What a supervisor says."""
        stream = _shake_hands(sock, server)
        opened = {} if server.hello["session"] is None else {"session": SESSION, "resume_s": 90.0}
        counts = {"pid": 101, "steps": 0, "resets": 0, "uptime_s": 1.0}
        starting = {"state": "starting", "phase": "building", "since_s": 0.5, **counts, "log_tail": ""}
        ready = {"state": "ready", "call": "nothing", "since_s": 0.25, **counts}
        events = [(frames.EVENT, starting), (frames.EVENT, ready)] if opened else []
        for kind, message in ((frames.WELCOME, {**self._welcome, **opened}), *events):
            stream.send(handshake.pack_link(kind, message), time.monotonic() + TIMEOUT_S)
        kind = 0
        while kind != frames.LEAVE and (header := stream.recv(time.monotonic() + TIMEOUT_S)).type != frames.STOP:
            kind = header.type
            reply = {frames.STATUS: {**ready, "sessions": 1}, frames.LEAVE: {}}[kind]
            frame = handshake.pack_link(frames.REPLY, reply, sequence=header.sequence)
            stream.send(frame, time.monotonic() + TIMEOUT_S)
        sock.close()

    def _serve_data(self, sock: socket.socket, server: handshake.ServerHandshake) -> None:
        stream = _shake_hands(sock, server)
        with self._is_free:  # which it is when the last connection has ended
            stream.send(handshake.pack_link(frames.WELCOME, {"session": SESSION}), time.monotonic() + TIMEOUT_S)
            self._loop.serve(sock, 1, server.hello["resume"])


def record_conversation(
    talk: Callable[[Peers], None] | None = None,
    backend: type[Backend] = Toy,
    loop: type[SimulatorLoop] = SimulatorLoop,
    welcome: dict[str, Any] | None = None,
    links: Sequence[str] = ("control", "data", "control"),
) -> list[dict[str, str]]:
    """Each frame that crossed, in order: link, sender, message name, hex. Arguments but for `talk` as `Peers`.

    Args:
        talk: what the client does.
    """
    recorded: list[tuple[str, str, bytes]] = []
    with (
        mock.patch.object(handshake, "new_nonce", side_effect=NONCES.values()),
        mock.patch.object(traceback, "format_exc", return_value="Traceback (most recent call last): ..."),
        mock.patch.object(traceback, "print_exc"),
    ):
        peers = Peers(links, recorded, backend, loop, welcome or {})
        (talk or _talk)(peers)
        peers.join()
    return list(_split(recorded))


def _talk(peers: Peers) -> None:
    session = Session(peers.dial, TOKEN, time.monotonic() + TIMEOUT_S, client="ann@desk pid 1")
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
    session.close()
    stop(peers)


def stop(peers: Peers) -> None:
    """Stop the server, by a control connection without a session."""
    control = ControlLink(peers.dial, TOKEN, time.monotonic() + TIMEOUT_S, session=None, client="ann@desk pid 1")
    control.stop_server(time.monotonic() + TIMEOUT_S)
    control.close()


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
