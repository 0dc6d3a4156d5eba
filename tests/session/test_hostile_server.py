"""A server that has the token and sends nonsense: a client ends with a typed error, at once, and holds nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_env.errors import ProtocolError, RemoteEnvError
from remote_env.protocol import codec, frames, layout
from remote_env.protocol.chunks import ChunkOptions
from remote_env.protocol.delivery import DeliveryPlan
from remote_env.protocol.handshake import ServerHandshake, pack_link, parse_link
from remote_env.session import Session
from remote_env.session.joining import LinkOptions
from remote_env.spaces import space_to_plain
from remote_env.state import EntityLayout, SceneLayout
from remote_env.transport import SocketTransport, Transport

TOKEN = "0123456789abcdef" * 4
SPACE = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)})
WELCOME = {"session": "0" * 16, "task": "Toy-v0", "digest": "0" * 16}
EVENT = {"state": "ready", "call": "nothing", "since_s": 0.5}
READY = {
    "observation_space": space_to_plain(SPACE),
    "action_space": space_to_plain(spaces.Discrete(2)),
    "metadata": {},
    "render_mode": None,
    "spec": {},
    "callable_names": [],
    "facts": {},
    "policy": {},
}
SCENE = SceneLayout((EntityLayout("cube"),), "toy")
Body = tuple[int, int, bytes]  # type, flags, body


class Scripted:
    """A server that says what it was told, whatever it is asked. Each connection ends with the client's."""

    def __init__(self, *, welcome: Any = WELCOME, event: Any = EVENT, ready: Any = READY, replies: Any = ()) -> None:
        self._welcome, self._event, self._ready, self._replies = welcome, event, ready, iter(replies)
        self._threads: list[threading.Thread] = []

    def dial(self, deadline: float) -> Transport:
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(theirs,))
        self._threads.append(thread)
        thread.start()
        return SocketTransport(ours)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "the client holds a connection"

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, RemoteEnvError):
            stream = frames.FrameStream(SocketTransport(sock))
            until = time.monotonic() + 10
            handshake = ServerHandshake(TOKEN)
            while not handshake.done:
                header = stream.recv(until)
                answer = handshake.feed(header.type, parse_link(stream.body_bytes()))
                if answer is not None:
                    stream.send(answer, until)
            if handshake.hello["role"] == "control":
                stream.send(pack_link(frames.WELCOME, self._welcome), until)
                stream.send(pack_link(frames.EVENT, self._event), until)
                while True:
                    header = stream.recv(until)
                    stream.send(pack_link(frames.REPLY, {"state": "ready"}, sequence=header.sequence), until)
            stream.send(pack_link(frames.WELCOME, {"session": "0" * 16}), until)
            body = self._ready if isinstance(self._ready, bytes) else codec.encode(self._ready, where="ready")[0]
            stream.send(frames.pack_frame(frames.READY, body, flags=frames.TAIL, epoch=1), until)
            for kind, flags, body in self._replies:
                header = stream.recv(until)
                answer = frames.pack_frame(kind, body, flags=flags, epoch=1, sequence=header.sequence)
                stream.send(answer, until)
            stream.recv(until)


@contextlib.contextmanager
def scripted(**script: Any) -> Iterator[Scripted]:
    server = Scripted(**script)
    try:
        yield server
    finally:
        server.join()


def open_session(server: Scripted) -> Session:
    return Session(server.dial, TOKEN, time.monotonic() + 5, link=LinkOptions(resume=False))


def packed(value: Any) -> bytes:
    return codec.encode(value, where="value")[0]


TRANSITION = bytearray(layout.TRANSITION_SIZE)
layout.write_transition(TRANSITION, 0, 1.0, False, False)
OBSERVATION = bytes(8 + 9)
GOOD_RESET: Body = (frames.RESULT, frames.FIXED, OBSERVATION)
GOOD_STEP: Body = (frames.RESULT, frames.FIXED, bytes(TRANSITION) + OBSERVATION)
STATE = layout.pack_state(0, np.zeros(SCENE.size))
CHUNK: dict[str, Any] = {
    "ran": 2,
    "reward": np.zeros(2),
    "terminated": np.zeros(2, np.bool_),
    "truncated": np.zeros(2, np.bool_),
    "rows": 2,
    "observation": np.zeros((2, 3)),
    "info": None,
}
NO_FLAGS = {"terminated": np.zeros(0, np.bool_), "truncated": np.zeros(0, np.bool_)}
HUGE = SceneLayout(tuple(EntityLayout(f"cube {number}") for number in range(1000)), "huge")  # 4096 rows: 426 MB
TRIED: dict[str, Any] = {
    "rewards": np.zeros((1, 2)),
    "ran": np.zeros(1, np.int64),
    "terminated": np.zeros(1, np.bool_),
    "truncated": np.zeros(1, np.bool_),
    "observations": np.zeros((1, 3)),
    "infos": [{}],
}


def step_twice(session: Session, want: str = "all", **options: Any) -> Any:
    return session.step_many([0, 1], 3, ChunkOptions(want=want), **options)


def without(reply: dict[str, Any], **changed: Any) -> bytes:
    """The value with these fields changed; those that are ... left out."""
    return packed({name: value for name, value in {**reply, **changed}.items() if value is not ...})


ASKS: dict[str, Callable[[Session], Any]] = {
    "step_many": step_twice,
    "step_many last": lambda session: step_twice(session, "last"),
    "step_many states": lambda session: step_twice(session, want_state=True),
    "step picking": lambda session: session.step_picking(1, 3, ChunkOptions(want="last")),
    "deliver": lambda session: session.deliver(DeliveryPlan(timing=True), 3),
    "snapshot": lambda session: session.take_snapshot(3),
    "fork": lambda session: session.fork(2, None, 3),
    "try": lambda session: session.try_chunks([[0, 1]], 3, snapshot=None, want="last", stop=True),
    "reset": lambda session: session.reset(1, None, 3),
    "step": lambda session: session.step(1, 3, want_state=True),
    "get_state": lambda session: session.get_state(3, native=True),
    "render": lambda session: session.render(3),
    "call": lambda session: session.call("x", (), {}, 3),
    "rollout": lambda session: session.rollout({"begin": None, "time_s": 0.1}, 3),
}


def test_the_script_is_right_when_nothing_is_wrong() -> None:
    state = (frames.RESULT, frames.STATE | frames.TAIL, STATE + packed({"native": b"x", "layout": SCENE.to_plain()}))
    with scripted(replies=[GOOD_RESET, GOOD_STEP, state]) as server:
        session = open_session(server)
        assert session.reset(1, None, 3)[0]["b"] == 0
        assert session.step(1, 3)[1] == 1.0
        assert session.get_state(3, native=True).native == b"x"
        session.close()


@pytest.mark.parametrize(
    "welcome", [{}, {**WELCOME, "session": None}, {**WELCOME, "session": ["x"]}, {**WELCOME, "session": 5}]
)
def test_a_welcome_that_is_none(welcome: Any) -> None:
    with scripted(welcome=welcome) as server, pytest.raises(ProtocolError, match="names no session"):
        open_session(server)


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"state": ["ready"]},
        {"state": "dead"},
        {"state": "failed", "message": 5},
        {"state": "failed", "kind": "x", "message": "y", "traceback": {}},
        {"state": "starting", "since_s": "soon"},
        {"state": "starting", "log_tail": [1]},
    ],
)
def test_an_event_that_is_none(event: Any) -> None:
    with scripted(event=event) as server, pytest.raises(ProtocolError, match="a status in which"):
        open_session(server)


@pytest.mark.parametrize(
    "ready",
    [
        None,
        [],
        {},
        {**READY, "observation_space": None},
        {**READY, "action_space": {"type": "Box"}},
        {**READY, "ledger_bytes": "many"},
        {**READY, "ledger_bytes": float("nan")},
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_a_ready_that_is_none(ready: Any) -> None:
    with scripted(ready=ready) as server, pytest.raises(ProtocolError):
        open_session(server)


WRONG: dict[str, tuple[str, Body]] = {
    "too short": ("reset", (frames.RESULT, frames.FIXED, b"")),
    "left over": ("reset", (frames.RESULT, frames.FIXED, OBSERVATION + b"x")),
    "left over without flags": ("reset", (frames.RESULT, 0, b"x")),
    "no value": ("reset", (frames.RESULT, frames.TAIL, b"\xc1")),
    "a flag of a kind": ("step", (frames.RESULT, frames.FIXED, bytes(8) + b"\x09\x00" + OBSERVATION)),
    "state without a layout": ("step", (frames.RESULT, frames.FIXED | frames.STATE, GOOD_STEP[2] + STATE)),
    "state of a layout that is none": (
        "get_state",
        (frames.RESULT, frames.STATE | frames.TAIL, STATE + packed({"layout": {"source": 5}})),
    ),
    "state with a native part that is none": (
        "get_state",
        (frames.RESULT, frames.STATE | frames.TAIL, STATE + packed({"native": 5, "layout": SCENE.to_plain()})),
    ),
    "state of another size": (
        "get_state",
        (
            frames.RESULT,
            frames.STATE | frames.TAIL,
            layout.pack_state(0, np.zeros(3)) + packed({"layout": SCENE.to_plain()}),
        ),
    ),
    "no state": ("get_state", (frames.RESULT, frames.TAIL, packed({}))),
    "a value that is none": ("render", (frames.RESULT, frames.TAIL, b"\x91")),
    "an error that is none": ("call", (frames.ERROR, frames.TAIL, packed(None))),
    "an error without a kind": ("call", (frames.ERROR, frames.TAIL, packed({"message": "x"}))),
    "an error of an odd kind": (
        "call",
        (frames.ERROR, frames.TAIL, packed({name: [1] for name in ("kind", "type", "message", "traceback", "during")})),
    ),
    "no chunk": ("step_many", (frames.RESULT, frames.TAIL, packed(5))),
    "a chunk without rewards": ("step_many", (frames.RESULT, frames.TAIL, without(CHUNK, reward=...))),
    "a chunk of more steps than were sent": (
        "step picking",
        (frames.RESULT, frames.TAIL, without(CHUNK, rows=1, observation=np.zeros((1, 3)))),
    ),
    "a chunk of no steps": (
        "step picking",
        (
            frames.RESULT,
            frames.TAIL,
            without(CHUNK, ran=0, rows=0, observation=[], reward=np.zeros(0), **NO_FLAGS),
        ),
    ),
    "a chunk of steps that cannot be counted": ("step_many", (frames.RESULT, frames.TAIL, without(CHUNK, ran=2.0))),
    "a chunk of other rows than are due": ("step_many last", (frames.RESULT, frames.TAIL, without(CHUNK))),
    "a chunk with fewer observations": (
        "step_many",
        (frames.RESULT, frames.TAIL, without(CHUNK, observation=np.zeros((1, 3)))),
    ),
    "a chunk with observations that are no rows": (
        "step_many",
        (frames.RESULT, frames.TAIL, without(CHUNK, observation={"a": 5})),
    ),
    "a chunk with more rows than memory": (
        "step_many last",
        (frames.RESULT, frames.TAIL, without(CHUNK, rows=1 << 40, observation={})),
    ),
    "a chunk with an info that is none": ("step_many", (frames.RESULT, frames.TAIL, without(CHUNK, info=[1, 2]))),
    "a chunk with fewer states": (
        "step_many states",
        (frames.RESULT, frames.TAIL, without(CHUNK, states=[(0, SCENE.to_plain(), np.zeros((1, SCENE.size)))])),
    ),
    "a chunk with states of another size": (
        "step_many states",
        (frames.RESULT, frames.TAIL, without(CHUNK, states=[(0, SCENE.to_plain(), np.zeros((2, 3)))])),
    ),
    "a chunk with states of a layout that was never told": (
        "step_many states",
        (frames.RESULT, frames.TAIL, without(CHUNK, states=[(7, None, np.zeros((2, SCENE.size)))])),
    ),
    "a chunk with changes of states that take more than is allowed": (
        "step_many states",
        (
            frames.RESULT,
            frames.TAIL,
            without(CHUNK, states=[(0, HUGE.to_plain(), {"rows": 4096, "change": np.zeros(1000, np.uint8)})]),
        ),
    ),
    "a chunk with an error that is none": ("step_many", (frames.RESULT, frames.TAIL, without(CHUNK, error=5))),
    "no codecs": ("deliver", (frames.RESULT, frames.TAIL, packed(None))),
    "codecs that are none": ("deliver", (frames.RESULT, frames.TAIL, packed({"codecs": 5}))),
    "a snapshot without an id": ("snapshot", (frames.RESULT, frames.TAIL, packed({"size_bytes": 5}))),
    "a snapshot with another id": ("snapshot", (frames.RESULT, frames.TAIL, packed({"id": 5}))),
    "fewer branches": ("fork", (frames.RESULT, frames.TAIL, packed(["one"]))),
    "branches without names": ("fork", (frames.RESULT, frames.TAIL, packed([1, 2]))),
    "what was not tried": ("try", (frames.RESULT, frames.TAIL, packed([]))),
    "rewards of other chunks": ("try", (frames.RESULT, frames.TAIL, without(TRIED, rewards=np.zeros((2, 2))))),
    "observations of other chunks": ("try", (frames.RESULT, frames.TAIL, without(TRIED, observations=np.zeros(())))),
    "infos of other chunks": ("try", (frames.RESULT, frames.TAIL, without(TRIED, infos=[]))),
    "a slice that is none": ("rollout", (frames.RESULT, frames.TAIL, packed({"steps": 1}))),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reply_that_is_none_ends_the_session(name: str) -> None:
    ask, reply = WRONG[name]
    with scripted(replies=[GOOD_RESET, reply]) as server:
        session = open_session(server)
        session.reset(1, None, 3)
        with pytest.raises(ProtocolError):
            ASKS[ask](session)
        assert session.is_lost is not None
        session.close()


BODIES = [
    GOOD_RESET[2],
    GOOD_STEP[2],
    STATE + packed({"layout": SCENE.to_plain()}),
    packed({"info": {"a": 1}, "reward": 0.5}),
    packed({**CHUNK, "states": [(0, SCENE.to_plain(), np.zeros((2, SCENE.size)))], "timing": (0.0, 0.0, 0.0, 0.0)}),
    packed(TRIED),
]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(ASKS)),
    st.sampled_from([frames.RESULT, frames.RESULT, frames.ERROR]),
    st.integers(0, 15),
    st.sampled_from(BODIES) | st.binary(max_size=40),
    st.binary(max_size=3),
    st.floats(0, 1),
)
def test_any_reply_is_read_or_a_typed_error(
    ask: str, kind: int, flags: int, body: bytes, put: bytes, where: float
) -> None:
    at = int(where * len(body))
    spoiled = body[:at] + put + body[at + len(put) :]
    with scripted(replies=[GOOD_RESET, (kind, flags, spoiled)]) as server:
        session = open_session(server)
        session.reset(1, None, 3)
        try:
            ASKS[ask](session)
        except ProtocolError:
            assert session.is_lost is not None
        except RemoteEnvError:
            pass
        finally:
            session.close()
