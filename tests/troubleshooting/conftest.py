"""Every test of this folder runs in a home of its own and must leave nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from leak_check import isolated_home, no_leaks

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))
sys.path += [str(_HERE.parent / name) for name in ("policy", "evaluate", "ssh")]  # their policies, servers, tasks

__all__ = ["isolated_home", "no_leaks"]


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have an SSH agent."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
