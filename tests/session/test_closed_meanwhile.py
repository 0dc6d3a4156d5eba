"""A session that one thread closes while another waits for a result, or that is used after its end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from wired import TIMEOUT_S, Wired, act

from remote_env.errors import SessionLost


@pytest.fixture
def wired() -> Iterator[Wired]:
    with contextlib.closing(Wired()) as made:
        yield made


def test_a_call_that_waits_is_told_at_once_and_nothing_reconnects(
    wired: Wired, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def wait(_seed: object, _options: object) -> None:
        begun.set()
        may_end.wait(TIMEOUT_S)
        raise RuntimeError("nobody hears this")

    monkeypatch.setattr(wired.supervisor.loop, "_backend_reset", wait)
    session, caught = wired.open(), []

    def call() -> None:
        with pytest.raises(SessionLost, match="was closed; if a call still waited for its result, another") as error:
            session.reset(1, None, TIMEOUT_S)
        caught.append(error)

    waiting = threading.Thread(target=call)
    waiting.start()
    try:
        assert begun.wait(TIMEOUT_S)
        session.close()
        waiting.join(TIMEOUT_S)
    finally:
        may_end.set()
    assert caught
    assert not caplog.records


def test_a_session_that_is_closed_stays_so(wired: Wired) -> None:
    session = wired.open()
    session.reset(1, None, TIMEOUT_S)
    session.close()
    session.close()
    with pytest.raises(SessionLost, match="was closed"):
        session.step(act(0.1), TIMEOUT_S)
