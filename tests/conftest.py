"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ssh_server import SshServer

if importlib.util.find_spec("hypothesis"):  # which environments for other tools' tests lack
    from hypothesis import settings

    # No test is timed: a slow machine is no fault. `make test-faults` looks at more examples.
    settings.register_profile("quick", deadline=None, max_examples=40)
    settings.register_profile("exhaustive", deadline=None, max_examples=200)
    settings.load_profile("exhaustive" if os.environ.get("REMOTE_ENV_TEST_EXHAUSTIVE") else "quick")

# Files whose tests start processes come first, so that no long one is left for the end.
LONG_FIRST = ("test_over_ssh", "ssh", "cli", "env", "server", "evaluate", "troubleshooting", "session", "test_")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[SshServer]:
    """One real sshd for the whole run; its far-end cache is shared, as a user's is."""
    with SshServer() as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by how long their tests take."""
    root = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        first = item.path.relative_to(root).parts[0]
        return next((number for number, start in enumerate(LONG_FIRST) if first.startswith(start)), len(LONG_FIRST))

    items.sort(key=rank)
