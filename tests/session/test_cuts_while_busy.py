"""Links that break while the client waits on a new one for a busy simulator, and what `on_link=` may do meanwhile."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from counted_link import TOKEN
from leak_check import wait_until
from wired import TIMEOUT_S, Wired, act

from remote_env.errors import ConnectError, InputError, SessionLost
from remote_env.session import LinkEvent, LinkOptions, joining
from remote_env.session.session import Session
from remote_env.transport import Transport

pytestmark = pytest.mark.fault


class Busy:
    """A session whose simulator is in a reset until it is let go on."""

    def __init__(self, wired: Wired, monkeypatch: pytest.MonkeyPatch, link: LinkOptions) -> None:
        self._wired, self.dialled = wired, list[Transport]()
        self._begun, self._may_end = threading.Event(), threading.Event()
        self._answers: list[Any] = []
        monkeypatch.setattr(wired.supervisor.loop, "_backend_reset", self._wait)
        self.session = Session(self._dial, TOKEN, time.monotonic() + TIMEOUT_S, link=link)
        self._thread = threading.Thread(target=self._reset)
        self._thread.start()
        assert self._begun.wait(TIMEOUT_S)

    def _dial(self, deadline: float) -> Transport:
        self.dialled.append(self._wired.supervisor.dial(deadline))
        return self.dialled[-1]

    def _wait(self, seed: int, options: Any) -> Any:
        self._begun.set()
        self._may_end.wait(TIMEOUT_S)
        return self._wired.backend.reset(seed, options)

    def _reset(self) -> None:
        try:
            self._answers.append(self.session.reset(7, None, TIMEOUT_S))
        except SessionLost as error:
            self._answers.append(error)

    def cut(self) -> None:
        """Find the link dead, as the heartbeat does; returns when the client waits for the simulator on another."""
        before = len(self.dialled)
        self.session.cut("no heartbeat")
        wait_until(lambda: len(self.dialled) > before, "another connection")
        wait_until(lambda: self.session._transport is self.dialled[-1], "it is known as the session's")

    def let_go_on(self) -> None:
        self._may_end.set()

    def answer(self) -> Any:
        """What the reset returned or raised."""
        self.let_go_on()
        self._thread.join(TIMEOUT_S)
        return self._answers[0]

    def close(self) -> None:
        self.let_go_on()
        self.session.close()
        self._thread.join(TIMEOUT_S)


@pytest.fixture
def wired() -> Iterator[Wired]:
    with contextlib.closing(Wired()) as made:
        yield made


def test_a_link_that_falls_silent_before_the_busy_simulator_answers_on_it_is_given_up(
    wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(Busy(wired, monkeypatch, LinkOptions())) as busy:
        for _ in range(3):
            busy.cut()
        assert busy.answer()[4] == {"seed": 7}
    assert [name for name, *_ in wired.backend.calls] == ["reset"]


def test_the_time_to_reconnect_begins_anew_for_a_link_that_has_held(
    wired: Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "HELD_S", 0.02)
    link = LinkOptions(reconnect_timeout_s=0.3)
    with contextlib.closing(Busy(wired, monkeypatch, link)) as busy:
        until = time.monotonic() + 2 * link.reconnect_timeout_s
        while time.monotonic() < until:
            busy.cut()
            held = time.monotonic() + 2 * joining.HELD_S
            wait_until(lambda held=held: time.monotonic() > held, "time passes")
        assert busy.answer()[4] == {"seed": 7}


def test_a_close_ends_a_call_that_waits_on_a_new_link(wired: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Busy(wired, monkeypatch, LinkOptions())) as busy:
        busy.cut()
        # The simulator is still busy: nothing but our own end of the link can end the call.
        busy.session.close()
        wait_until(lambda: busy._answers, "the call is told")
        assert isinstance(busy._answers[0], SessionLost)


def test_a_host_that_takes_long_over_a_login_gets_longer(wired: Wired, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "FIRST_ATTEMPT_S", 0.05)
    took_s = [0.0]

    def dial(deadline: float) -> Transport:
        if time.monotonic() + took_s[0] > deadline:
            threading.Event().wait(max(deadline - time.monotonic(), 0.0))
            raise ConnectError("the login was not done in time")
        return wired.supervisor.dial(deadline)

    session = Session(dial, TOKEN, time.monotonic() + TIMEOUT_S, link=LinkOptions())
    with contextlib.closing(session):
        session.reset(1, None, TIMEOUT_S)
        took_s[0] = 0.3
        session.cut("no heartbeat")
        assert session.step(act(0.25), TIMEOUT_S)[1] == 0.25


# What on_link= does


def raise_error(_session: Session) -> None:
    raise RuntimeError("a mistake of the user's")


def step(session: Session) -> None:
    session.step(act(0.5), TIMEOUT_S)


def reset(session: Session) -> None:
    session.reset(1, None, TIMEOUT_S)


def look_ahead(session: Session) -> None:
    session.step_async(act(0.5), TIMEOUT_S)


def resume(session: Session) -> None:
    session.resume(TIMEOUT_S)


@pytest.mark.parametrize("deed", [raise_error, step, reset, look_ahead, resume])
@pytest.mark.parametrize("kind", ["cut", "resumed"])
def test_what_on_link_does_changes_nothing_about_the_call(
    wired: Wired, caplog: pytest.LogCaptureFixture, kind: str, deed: Callable[[Session], None]
) -> None:
    told: list[str] = []

    def on_link(event: LinkEvent) -> None:
        told.append(event.kind)
        if event.kind == kind:
            deed(session)

    session = Session(wired.supervisor.dial, TOKEN, time.monotonic() + TIMEOUT_S, link=LinkOptions(on_link=on_link))
    with contextlib.closing(session):
        session.reset(1, None, TIMEOUT_S)
        session.cut("no heartbeat")
        with caplog.at_level(logging.ERROR, "remote_env"):
            assert session.step(act(0.25), TIMEOUT_S)[1] == 0.25
        session.step(act(0.125), TIMEOUT_S)
    assert told == ["cut", "resumed"]
    assert [call for call in wired.backend.calls if call[0] != "state"] == [
        ("reset", 1, None),
        ("step", 0.25, 0.0),
        ("step", 0.125, 0.0),
    ]
    record = next(record for record in caplog.records if record.exc_info)
    assert record.message == f"on_link= raised as it was told of a link that is {kind}"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError if deed is raise_error else InputError)


@pytest.mark.parametrize("kind", ["cut", "resumed"])
def test_on_link_can_close_the_session(wired: Wired, kind: str) -> None:
    def on_link(event: LinkEvent) -> None:
        if event.kind == kind:
            session.close()

    session = Session(wired.supervisor.dial, TOKEN, time.monotonic() + TIMEOUT_S, link=LinkOptions(on_link=on_link))
    session.reset(1, None, TIMEOUT_S)
    session.cut("no heartbeat")
    with pytest.raises(SessionLost, match="was closed"):
        session.step(act(0.25), TIMEOUT_S)
