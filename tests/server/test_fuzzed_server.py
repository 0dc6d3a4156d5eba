"""A turn of fuzz/supervisor.py: a real server that is sent garbage goes on answering, with the same simulator."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the targets are no part of the package

from server_process import serving

from fuzz import supervisor
from remote_env.errors import InputError
from remote_env.protocol import frames
from remote_env.session import Session
from remote_env.transport import Transport, connect_tcp

CALLS = [(["x"], (), {}), ({}, (), {}), (5, (), {}), ("scene_description", [], {}), ("scene_description", (), None)]


@pytest.mark.fault
def test_garbage_ends_nothing() -> None:
    fuzzer, found = supervisor.fuzz(0.1, seed=2)
    assert found == ""
    assert fuzzer.executions >= supervisor.CHECK_EVERY


@pytest.mark.fault
def test_a_simulator_that_is_gone_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor.Fuzzer, "strange", _kill)
    assert "is no more" in supervisor.fuzz(0.1, seed=2)[1]


def _kill(_: supervisor.Fuzzer, server: supervisor.ServerProcess) -> None:
    with supervisor.BareClient(server) as client:
        client.shake_hands(session=None)
        client.ask(supervisor.frames.KILL)


def test_calls_of_what_is_no_name_are_the_callers_mistake() -> None:
    with serving() as server:

        def dial(deadline: float) -> Transport:
            return connect_tcp("127.0.0.1", server.port, deadline)

        session = Session(dial, server.token, time.monotonic() + 20)
        try:
            session.reset(1, None, 10)
            for call in CALLS:
                with pytest.raises(InputError):
                    session._value(frames.CALL, call, 10)
        finally:
            session.close()
