"""A turn of fuzz/supervisor.py: a real server that is sent garbage goes on answering, with the same simulator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the targets are no part of the package

from fuzz import supervisor


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
