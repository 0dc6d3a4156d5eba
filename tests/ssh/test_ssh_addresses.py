"""Names are looked up within the deadline, and what was found before serves while the resolver is cut off."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from remote_env.errors import ConnectError
from remote_env.ssh import addresses
from remote_env.ssh.addresses import find_addresses


@pytest.fixture
def stuck_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The real resolver until the event is cleared; then one that does not answer, as when its network is gone."""
    real, works, over = socket.getaddrinfo, threading.Event(), threading.Event()

    def look_up(name: str, port: int, **options: Any) -> Any:
        if not works.is_set() and not options.get("flags"):
            over.wait(20.0)
        return real(name, port, **options)

    works.set()
    monkeypatch.setattr(addresses, "_found", {})
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield works
    over.set()
    for thread in threading.enumerate():
        if thread.name == "remote-env-resolve":
            thread.join(20.0)


def test_a_resolver_that_does_not_answer_costs_no_more_than_the_deadline(stuck_resolver: threading.Event) -> None:
    stuck_resolver.clear()
    began = time.monotonic()
    with pytest.raises(ConnectError, match=r"address of 'localhost' could not be found: .* not answer in time.*DNS"):
        find_addresses("localhost", 22, time.monotonic() + 0.1)
    assert time.monotonic() - began < 5.0


def test_what_was_found_before_serves_while_the_resolver_is_cut_off(stuck_resolver: threading.Event) -> None:
    found = find_addresses("localhost", 22, time.monotonic() + 10.0)
    stuck_resolver.clear()
    assert find_addresses("localhost", 22, time.monotonic() + 0.3) == found


def test_numbers_are_not_looked_up(stuck_resolver: threading.Event) -> None:
    stuck_resolver.clear()
    [address] = find_addresses("127.0.0.1", 22, time.monotonic() + 0.1)
    assert address[4] == ("127.0.0.1", 22)
    [address] = find_addresses("::1", 22, time.monotonic() + 0.1)
    assert address[4][0] == "::1"


def test_a_name_that_nobody_knows_is_told() -> None:
    with pytest.raises(ConnectError, match=r"host 'no-such-host\.invalid' is unknown"):
        find_addresses("no-such-host.invalid", 22, time.monotonic() + 20.0)
