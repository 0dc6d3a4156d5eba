"""Cuts of links that are no session's yet, or never: while a simulator starts, and under the reader of a log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess

from remote_env import RemoteEnv
from remote_env.session import ControlLink, LinkEvent, control, follow_log
from remote_env.testing import FaultProxy
from remote_env.transport import Transport, connect_tcp

pytestmark = pytest.mark.fault


@contextlib.contextmanager
def behind_a_proxy(build: str = "") -> Iterator[tuple[ServerProcess, FaultProxy]]:
    """A server that listens, and the way to it."""
    server = ServerProcess("tasks_for_tests.slow:Slow", {"build": build})
    try:
        server.wait_listening()
        with FaultProxy(("127.0.0.1", server.port)) as proxy:
            yield server, proxy
    finally:
        server.stop()


def test_a_control_link_that_falls_silent_while_the_simulator_starts_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ControlLink.status, "__defaults__", (0.3,))
    told: list[str] = []

    def on_progress(text: str) -> None:
        if "building" in text and not told:
            told.append("silent")
            proxy.pause()

    def on_link(event: LinkEvent) -> None:
        told.append(event.kind)
        if event.kind == "cut":
            proxy.resume()
        else:
            (tmp_path / "gate").touch()

    with behind_a_proxy(f"until:{tmp_path / 'gate'}") as (server, proxy):
        arguments: dict[str, Any] = {"token": server.token, "on_progress": on_progress, "on_link": on_link}
        with RemoteEnv(f"tcp://127.0.0.1:{proxy.address[1]}", **arguments) as env:
            env.reset()
        assert told == ["silent", "cut", "resumed"]


def test_a_log_is_followed_over_cuts_until_the_server_ends() -> None:
    with behind_a_proxy() as (server, proxy):
        dial = partial(connect_tcp, "127.0.0.1", int(proxy.address[1]))
        past = partial(connect_tcp, "127.0.0.1", server.port)

        def open_link() -> ControlLink:
            return ControlLink(dial, server.token, time.monotonic() + 10, session=None, client="")

        def say(name: str) -> str:
            link = ControlLink(past, server.token, time.monotonic() + 10, session="new", client=name)
            link.close()
            return f"opened by {name}"

        with contextlib.closing(follow_log(open_link)) as lines:
            for number in range(3):
                wanted = say(f"number {number}")
                assert any(line.endswith(wanted) for line in lines)
                proxy.cut(reset=number == 1)
            proxy.close()  # then the machine itself says that nothing listens there
            assert not [line for line in lines if "opened by" in line]


def test_a_session_is_left_although_its_link_has_fallen_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LEAVE_TIMEOUT_S", 0.3)
    with behind_a_proxy() as (server, proxy):
        ways = [int(proxy.address[1])]  # what is forgotten of a link by a NAT concerns no other

        def dial(deadline: float) -> Transport:
            return connect_tcp("127.0.0.1", ways.pop() if ways else server.port, deadline)

        def open_session() -> ControlLink:
            return ControlLink(dial, server.token, time.monotonic() + 10, session="new", client="", resume_s=60.0)

        link = open_session()
        proxy.pause()
        link.close()
        open_session().close()  # of which there can be one at a time
