"""What is told when a `launch=` prefix does not let us in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from leak_check import wait_until
from quotes import produces
from ssh_client import over_ssh, remains
from ssh_server import SshServer


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left(ssh_server: SshServer) -> Iterator[None]:
    """Nothing runs inside a login in the end; a prefix's watcher may take two seconds to go."""
    yield
    wait_until(lambda: not remains(ssh_server), "all has ended")


def launch(server: SshServer, prefix: str, **arguments: Any) -> None:
    over_ssh(server, env="CartPole-v1", launch=prefix, **arguments).start()


@produces("StartError: launch=… was not found; …")
def test_a_prefix_that_is_not_there(ssh_server: SshServer) -> None:
    launch(ssh_server, "no-such-program-of-ours exec")


@produces("StartError: launch=… ended with status … before it ran our shell; …")
def test_a_prefix_that_fails(ssh_server: SshServer) -> None:
    launch(ssh_server, "echo no such container >&2; false")


@produces("DeadlineExceeded: … behind launch=… did not run our shell in time; …")
def test_a_prefix_that_lets_nobody_in(ssh_server: SshServer) -> None:
    launch(ssh_server, "cat #", start_timeout_s=1.0)


@produces("StartError: the task server on … did not start: refusing to listen on …")
def test_a_network_address_without_leave(ssh_server: SshServer) -> None:
    launch(ssh_server, "env", launch_host="127.0.0.2")
