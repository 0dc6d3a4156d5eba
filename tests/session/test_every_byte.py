"""A conversation whose link is cut after every single byte, in both directions: nothing in it changes for that.

The client's session and the simulator's loop are the real ones; see `counted_link` for what stands between. The default
run leaves places out where their number is large; REMOTE_ENV_TEST_EXHAUSTIVE (make test-faults) leaves out none.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from counted_link import DOWN, UP, Fault
from wired import END, FAIL, TIMEOUT_S, Wired, act

from remote_env import transport
from remote_env.errors import InputError, NotRun
from remote_env.protocol import frames
from remote_env.protocol.chunks import ChunkOptions
from remote_env.protocol.delivery import DeliveryPlan
from remote_env.server import loop as simulator
from remote_env.session import control, joining
from remote_env.session.session import Session
from remote_env.state import SceneState

IS_EXHAUSTIVE = "REMOTE_ENV_TEST_EXHAUSTIVE" in os.environ
STALL_S = 0.004

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900 if IS_EXHAUSTIVE else 120)]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """No pauses, and stalls that are noticed at once; it is said thousands of times that the link is cut."""
    monkeypatch.setattr(joining, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(transport, "TICK_S", STALL_S)
    monkeypatch.setattr(control, "STALL_S", STALL_S)
    monkeypatch.setattr(simulator, "SEND_TIMEOUT_S", STALL_S)
    caplog.set_level(logging.CRITICAL, logger="remote_env")


@pytest.fixture
def wired(request: pytest.FixtureRequest) -> Iterator[Wired]:
    wired = Wired(image=getattr(request, "param", False))
    yield wired
    wired.close()


def plain(value: Any) -> Any:
    """Something that == compares, bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, SceneState):
        return value.layout, plain(value.values), value.native
    if isinstance(value, dict):
        return [(key, plain(each)) for key, each in value.items()]
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    return type(value), value


def attempt(call: Callable[[], Any]) -> Any:
    """What comes of a call: its result, or its error."""
    try:
        return plain(call())
    except InputError as error:
        return str(error), error.remote_traceback
    except NotRun:
        return "not run"


# Conversations: together all kinds of requests. Each returns what came of them.


def step(session: Session) -> list[Any]:
    results = [plain(session.reset(7, {"a": 1}, TIMEOUT_S))]
    results += [plain(session.step(act(0.1, number), TIMEOUT_S)) for number in range(2)]
    return [*results, plain(session.step(act(0.2), TIMEOUT_S, want_state=True)), plain(session.state)]


def move_the_scene(session: Session) -> list[Any]:
    session.reset(8, None, TIMEOUT_S)
    state = session.get_state(TIMEOUT_S, native=True)
    moved = session.step(act(0.1), TIMEOUT_S)
    session.set_state(state, TIMEOUT_S)
    return [plain(each) for each in (state, moved, session.step(act(0.1), TIMEOUT_S))]


def ask(session: Session) -> list[Any]:
    session.reset(9, None, TIMEOUT_S)
    results = [attempt(lambda: session.step(act(FAIL), TIMEOUT_S)), plain(session.render(TIMEOUT_S))]
    return [*results, session.call("scale", (3,), {"by": 2}, TIMEOUT_S)]


def step_ahead(session: Session) -> list[Any]:
    """The last of the steps is sent ahead of the episode's end, and must not run."""
    session.reset(7, None, TIMEOUT_S)
    for first in (0.3, END, 0.4):
        session.step_async(act(first), TIMEOUT_S)
    return [attempt(lambda: session.step_wait(TIMEOUT_S)) for _ in range(3)]


def step_and_draw(session: Session) -> list[Any]:
    results = [session.reset(5, None, TIMEOUT_S), session.step(act(0.1), TIMEOUT_S), session.render(TIMEOUT_S)]
    session.step_async(act(0.2), TIMEOUT_S)
    session.step_async(act(0.3), TIMEOUT_S)
    return [plain(results), *(plain(session.step_wait(TIMEOUT_S)) for _ in range(2))]


def bring_changes(session: Session) -> list[Any]:
    """Images and states of which only changes come, several steps at once, and a step that a reset abandons."""
    session.deliver(DeliveryPlan(image_every=2, codecs={"i": "delta"}, state_changes=True), TIMEOUT_S)
    results: list[Any] = [session.reset(6, None, TIMEOUT_S)]
    results += [session.step(act(0.1, number), TIMEOUT_S, want_state=True) for number in range(3)]
    results.append(session.step_many([act(0.2), act(0.3)], TIMEOUT_S, ChunkOptions(), want_state=True))
    session.step_async(act(0.1), TIMEOUT_S, want_state=True)
    results += [session.reset(7, None, TIMEOUT_S), session.step(act(0.4), TIMEOUT_S, want_state=True)]
    return [*map(plain, results), plain(session.state)]


Conversation = Callable[[Session], list[Any]]
CONVERSATIONS: list[tuple[Conversation, bool]] = [
    (step, False),
    (move_the_scene, False),
    (ask, False),
    (step_ahead, False),
    (step_and_draw, True),  # with payloads
    (bring_changes, True),
]


class Course(NamedTuple):
    """What a conversation is when nothing happens to it.

    Attributes:
        results: what came of it.
        calls: what the backend was called with.
        streams: what went over the data link, by direction.
    """

    results: list[Any]
    calls: list[Any]
    streams: dict[str, bytes]


def run(wired: Wired, session: Session, conversation: Conversation, *faults: Fault) -> Course:
    """Have the conversation, on a link that is well when it begins."""
    wired.plan.begin()
    session.call("scale", (0,), {"by": 0}, TIMEOUT_S)  # a cut behind the last run's last byte is noticed here
    wired.backend.calls.clear()
    wired.plan.begin(*faults)
    results = conversation(session)
    streams = {way: bytes(wired.plan.streams["data", way]) for way in (UP, DOWN)}
    return Course(results, list(wired.backend.calls), streams)


class Rehearsal:
    """An open session whose conversation is had again and again.

    Attributes:
        expected: the conversation when nothing happens to it.
    """

    def __init__(self, wired: Wired, conversation: Conversation) -> None:
        self._wired, self._conversation = wired, conversation
        self._session = wired.open()
        conversation(self._session)  # the first time the scene's layout is told
        self.expected = run(wired, self._session, conversation)

    def repeat(self, *faults: Fault) -> bool:
        """Nothing of it changes for these faults; whether all of them came to pass."""
        course = run(self._wired, self._session, self._conversation, *faults)
        assert (course.results, course.calls) == (self.expected.results, self.expected.calls), faults
        return self._wired.plan.done == len(faults)

    def close(self) -> None:
        self._session.close()


def outside_payloads(stream: bytes) -> list[int]:
    """Where the stream's headers and bodies lie."""
    places: list[int] = []
    at = 0
    while at < len(stream):
        header = frames.parse_header(stream, at)
        behind = at + frames.HEADER_SIZE + header.body_size
        places += range(at, behind)
        at = behind + header.payload_size
    return places


def cut_places(stream: bytes) -> list[int]:
    """Before every byte and behind the last; of payloads, of which one byte is like another, some."""
    told = outside_payloads(stream)
    return sorted({*told, *range(0, len(stream), 1 if IS_EXHAUSTIVE else 211), len(stream)})


def every(exhaustive: int, otherwise: int) -> int:
    """A step through places: that of the exhaustive run, or that of the default one."""
    return exhaustive if IS_EXHAUSTIVE else otherwise


by_conversation = pytest.mark.parametrize(
    ("conversation", "wired"), CONVERSATIONS, ids=[each.__name__ for each, _ in CONVERSATIONS], indirect=["wired"]
)


@pytest.fixture
def rehearsal(wired: Wired, conversation: Conversation) -> Iterator[Rehearsal]:
    with contextlib.closing(Rehearsal(wired, conversation)) as made:
        yield made


@by_conversation
def test_a_cut_at_any_byte_changes_nothing(rehearsal: Rehearsal, conversation: Conversation) -> None:
    streams = rehearsal.expected.streams
    stride = 1 if conversation is step else every(1, 29 if conversation is bring_changes else 3)
    faults = [Fault(way, at) for way in (UP, DOWN) for at in cut_places(streams[way])[::stride]]
    assert len(faults) > 100
    print(f"{len(faults)} cuts")
    for fault in faults:
        assert rehearsal.repeat(fault)


@by_conversation
def test_nor_does_a_link_that_brings_one_byte_at_a_time(wired: Wired, rehearsal: Rehearsal) -> None:
    wired.plan.is_trickling = True
    assert rehearsal.repeat()


@pytest.mark.parametrize("role", ["data", "control"])
@pytest.mark.parametrize("conversation", [step_ahead])
def test_nor_does_a_second_cut_at_any_byte_while_the_link_is_made_anew(rehearsal: Rehearsal, role: str) -> None:
    streams, count = rehearsal.expected.streams, 0
    firsts = [Fault(way, at) for way in (UP, DOWN) for at in range(90, len(streams[way]), every(16, 2_000))]
    for first in firsts:
        for way in (UP, DOWN):
            at = count % every(1, 7)
            while rehearsal.repeat(first, Fault(way, at, role=role)):
                at, count = at + every(5, 17), count + 1
    print(f"{count} second cuts")
    assert count > 10


@pytest.mark.parametrize("conversation", [step])
def test_nor_does_a_damaged_byte_while_the_link_is_made_anew(rehearsal: Rehearsal) -> None:
    for way in (UP, DOWN):
        at = 4  # the version
        while rehearsal.repeat(Fault(DOWN, 90), Fault(way, at, flip=1 << at % 8)):
            at += every(1, 97)
        assert at > 400


@by_conversation
def test_nor_does_a_damaged_byte_of_any_header_or_body(rehearsal: Rehearsal) -> None:
    streams, count = rehearsal.expected.streams, 0
    for way in (UP, DOWN):
        places = outside_payloads(streams[way])
        for at in places[:: every(1, max(13, len(places) // 40))]:
            assert rehearsal.repeat(Fault(way, at, flip=1 << count % 8))
            count += 1
    print(f"{count} damaged bytes")
    assert count > 30


@pytest.mark.parametrize("way", [UP, DOWN])
def test_a_session_opens_though_its_data_link_is_cut_at_any_byte_of_that(wired: Wired, way: str) -> None:
    wired.plan.begin()
    with contextlib.closing(wired.open()) as session:
        size, expected = len(wired.plan.streams["data", way]), move_the_scene(session)
    places = range(0, size + 1, every(1, 7))
    print(f"{len(places)} of {size + 1} places")
    for at in places:
        wired.plan.begin(Fault(way, at))
        with contextlib.closing(wired.open()) as session:
            assert move_the_scene(session) == expected, at
        assert wired.plan.done == 1
