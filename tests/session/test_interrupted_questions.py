"""A Ctrl-C between any two lines of a question leaves a link that says so, and a session that goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess, serving

from remote_env import RemoteEnv
from remote_env.errors import ConnectionLost, DeadlineExceeded

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    with serving("CartPole-v1", idle_timeout_s=60.0) as process:
        yield process


@pytest.mark.parametrize("claimed", [True, False], ids=["after the lock was claimed", "before"])
def test_a_lock_that_an_interrupt_left_closed_costs_the_link_alone(server: ServerProcess, claimed: bool) -> None:
    with RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=server.token) as env:
        env.reset(seed=0)
        session = env._life.session
        assert session is not None
        control = session.control
        control._asking.acquire()  # as an interrupt leaves it that comes right behind this
        control._asker = threading.get_ident() if claimed else 0
        with pytest.raises(ConnectionLost, match="a question on this link was interrupted"):
            control.status(0.05)
        session.cut("the data link goes, too")
        env.step(0)
        assert control.status()["state"] == "ready"


def test_another_thread_that_asks_is_waited_for(server: ServerProcess) -> None:
    with RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=server.token) as env:
        env.reset(seed=0)
        session = env._life.session
        assert session is not None
        raised: list[Any] = []

        def ask() -> None:
            try:
                session.control.status(0.05)
            except DeadlineExceeded as error:
                raised.append(str(error))

        with session.control._alone(1e9):
            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
        assert raised == ["another thread still waits for an answer on this link"]
