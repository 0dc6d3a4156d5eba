"""Servers of several network namespaces of one machine that listen on one port."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import SshServer

from remote_env.env import records
from remote_env.ssh import ServerHandle, SshConnection, find_server, list_servers, start_server

sys.path.insert(0, str(Path(__file__).parent))

from launching import network_namespace

LIMIT_S = 30.0


def soon() -> float:
    return time.monotonic() + LIMIT_S


@pytest.fixture
def server() -> Iterator[SshServer]:
    with SshServer() as server:
        yield server


@pytest.fixture
def connection(server: SshServer) -> Iterator[SshConnection]:
    with SshConnection(server.target, **server.login) as connection:
        yield connection


def start(connection: SshConnection, port: int = 0, launch: str | None = None) -> ServerHandle:
    settings = {"task": {"env": "CartPole-v1"}, "max_sessions": 1, "idle_timeout_s": 60.0, "env": {}, "cwd": None}
    settings |= {"python_path": [], "leash_fd": None, "listen": {"tcp": ["127.0.0.1", port]}}
    return start_server(connection, settings, python=sys.executable, deadline=soon(), launch=launch)


def names(server: SshServer) -> set[str]:
    return {path.name for path in server.cache.glob("remote-env/servers/*/*")}


def test_each_keeps_a_record_and_is_found_from_its_own_network(
    server: SshServer, connection: SshConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(server.cache))
    with network_namespace() as prefix:
        inside = start(connection, launch=prefix)
        outside = start(connection, inside.port)
        assert names(server) == {f"{inside.port}.json", f"{inside.port}.{outside.pid}.json"}
        for handle in (inside, outside):
            found = find_server(handle.connection, handle.port, soon())
            assert found is not None
            assert (found["pid"], found["token"]) == (handle.pid, handle.token)
        assert records.read_registered_token(inside.port) == outside.token
        pids = {inside.pid, outside.pid}
        assert {record["pid"] for record in list_servers(connection, soon())} == pids
        assert {record.pid for record in records.list_local_records()} == pids
        outside.stop(soon())
        assert names(server) == {f"{inside.port}.json"}
        inside.stop(soon())
    assert names(server) == set()


@pytest.mark.fault
@pytest.mark.parametrize("by", ["stop", "list", "local stop"])
def test_the_record_of_a_killed_one_goes_and_the_other_stays(
    server: SshServer, connection: SshConnection, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(server.cache))
    with network_namespace() as prefix:
        inside = start(connection, launch=prefix)
        outside = start(connection, inside.port)
        (record,) = (record for record in records.list_local_records() if record.pid == outside.pid)
        os.kill(outside.pid, signal.SIGKILL)
        deadline = soon()
        while records.is_running(outside.pid, outside.start_time):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        if by == "stop":
            outside.stop(soon())
        elif by == "list":
            while f"{inside.port}.{outside.pid}.json" in names(server):  # once its simulators have ended
                assert time.monotonic() < deadline
                list_servers(connection, soon())
        else:
            records.stop_local(record, soon())
        assert names(server) == {f"{inside.port}.json"}
        found = find_server(connection, inside.port, soon())
        assert found is not None  # for who asks from elsewhere, it is better than none
        assert found["pid"] == inside.pid
        inside.stop(soon())
    assert names(server) == set()
