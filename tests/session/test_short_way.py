"""The short way of a step: taken whenever nothing else is under way, whatever came before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from wired import END, TIMEOUT_S, Wired, act

from remote_env.session.session import Session


@pytest.fixture
def session() -> Iterator[Session]:
    with contextlib.closing(Wired()) as wired, contextlib.closing(wired.open()) as session:
        yield session


@pytest.mark.parametrize(
    "before",
    [
        lambda session: session.reset(1, None, TIMEOUT_S),
        lambda session: session.render(TIMEOUT_S),
        lambda session: session.step(act(0.1), TIMEOUT_S, want_state=True),
        lambda session: (session.step_async(act(0.1), TIMEOUT_S), session.step_wait(TIMEOUT_S)),
    ],
    ids=["reset", "render", "want_state", "step_async"],
)
def test_a_step_takes_it_after(
    session: Session, before: Callable[[Session], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session.reset(1, None, TIMEOUT_S)
    before(session)
    swaps, swap = [], session._swap
    monkeypatch.setattr(session, "_swap", lambda *given: swaps.append(swap(*given)) or swaps[-1])
    session.step(act(0.2), TIMEOUT_S)
    session.step(act(0.3), TIMEOUT_S)
    assert swaps == [True, True]


def test_a_request_takes_it_where_the_observation_is_no_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for takes_it in (True, False):
        with contextlib.closing(Wired(image=True)) as wired, contextlib.closing(wired.open()) as session:
            session.reset(1, None, TIMEOUT_S)
            sent, send = [], session._send_alone
            monkeypatch.setattr(session, "_send_alone", lambda *given: sent.append(send(*given)))  # noqa: B023
            if not takes_it:
                session._vector_step = None
            seen.append([session.step(act(value), TIMEOUT_S) for value in (0.1, 0.2, END)])
            assert len(sent) == 3 * takes_it
    for short, general in zip(*seen, strict=True):
        assert short[1:] == general[1:]
        assert {key: value.tobytes() for key, value in short[0].items()} == {
            key: value.tobytes() for key, value in general[0].items()
        }


def test_it_tells_that_a_layout_has_arrived(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.reset(1, None, TIMEOUT_S)
    announced, find = [], session._find_layout
    monkeypatch.setattr(session, "_find_layout", lambda number, told: announced.append(told) or find(number, told))
    for _ in range(3):
        session.step(act(0.1), TIMEOUT_S)
        session.get_state(TIMEOUT_S, native=False)
    assert [told is not None for told in announced] == [True, False, False]
