from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_server import SshServer

from remote_env.errors import ConnectError, DeadlineExceeded, StartError
from remote_env.ssh import LaunchedShell, ServerHandle, SshConnection, find_server, list_servers, start_server
from remote_env.ssh.far_end import ship_far_end, upload_folder
from remote_env.transport import Transport

sys.path.insert(0, str(Path(__file__).parent))

from launching import network_namespace, write_banner_prefix, write_pty_prefix
from own_server import connection, package, server, soon
from own_server import start as start_plain

__all__ = ["connection", "package", "server"]


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    with network_namespace() as prefix:
        yield prefix


def start(
    connection: Any, package: Path, launch: str | None = None, mode: str = "serve", **options: Any
) -> ServerHandle:
    return start_plain(connection, package, mode, launch=launch, **options)


def echo(stream: Transport, data: bytes) -> bytes:
    stream.send_all([data], soon())
    back = bytearray(len(data))
    stream.recv_exactly_into(memoryview(back), soon())
    return bytes(back)


def receive_megabyte(stream: Transport) -> bytes:
    stream.send_all([b"B"], soon())
    back = bytearray(1_000_000)
    stream.recv_exactly_into(memoryview(back), soon())
    return bytes(back)


def test_a_port_in_another_network_namespace_is_reached_over_the_stream(
    server: SshServer, connection: SshConnection, package: Path, namespace: str
) -> None:
    handle = start(connection, package, namespace)
    assert handle.dial is not None
    with pytest.raises(ConnectError):
        connection.open_port(handle.port, soon())
    first, second = handle.dial(soon()), handle.dial(soon())
    assert echo(first, bytes(range(256)) * 40) == bytes(range(256)) * 40
    assert receive_megabyte(second) == b"x" * 1_000_000
    assert echo(first, b"still here") == b"still here"
    first.close()
    assert echo(second, b"alone") == b"alone"
    second.close()
    assert "serving" in handle.log_tail(5, soon())
    handle.stop(soon())


def test_a_prefix_with_a_terminal_is_eight_bits_clean(
    server: SshServer, connection: SshConnection, package: Path, tmp_path: Path, namespace: str
) -> None:
    handle = start(connection, package, f"{namespace} {write_pty_prefix(tmp_path)}")
    assert handle.dial is not None
    stream = handle.dial(soon())
    everything = bytes(range(256)) * 500
    assert echo(stream, everything) == everything
    assert receive_megabyte(stream) == b"x" * 1_000_000
    stream.close()
    handle.stop(soon())


def test_a_prefix_in_our_own_network_is_dialled_directly(
    server: SshServer, connection: SshConnection, package: Path, tmp_path: Path
) -> None:
    handle = start(connection, package, write_banner_prefix(tmp_path))
    assert handle.dial is None
    stream = connection.open_port(handle.port, soon())
    assert echo(stream, b"hello") == b"hello"
    stream.close()
    handle.stop(soon())


def test_where_sshd_forbids_forwarding_the_stream_carries_the_data(package: Path) -> None:
    with (
        SshServer(extra_config="AllowTcpForwarding no") as server,
        SshConnection(server.target, **server.login) as connection,
    ):
        handle = start(connection, package, "env")
        assert handle.dial is not None
        stream = handle.dial(soon())
        assert echo(stream, b"hello") == b"hello"
        stream.close()
        handle.stop(soon())


def test_what_the_prefix_says_while_it_waits_is_told(connection: SshConnection, package: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    program = tmp_path / "queue"
    program.write_text("#!/bin/sh\necho 'srun: job 17 queued' >&2\nsleep 0.7\nexec \"$@\"\n")
    program.chmod(0o755)
    handle = start(connection, package, str(program), on_progress=lambda *what: seen.append(what))
    handle.stop(soon())
    assert ("starting", "srun: job 17 queued") in seen
    assert [detail for phase, detail in seen if phase == "uploading"]


def test_servers_in_there_are_found_listed_and_stopped_by_another_client(
    server: SshServer, package: Path, namespace: str
) -> None:
    with SshConnection(server.target, **server.login) as connection:
        port = start(connection, package, namespace).port
    with SshConnection(server.target, **server.login) as connection:
        shell = LaunchedShell(connection, namespace)
        record = find_server(shell, port, soon())
        assert record is not None
        assert [found["pid"] for found in list_servers(shell, soon())] == [record["pid"]]
        dial = shell.dialer(int(record["pid"]), str(record["start_time"]), port, soon())
        assert dial is not None
        stream = dial(soon())
        assert echo(stream, b"again") == b"again"
        assert list_servers(shell, soon()) != []  # through the relay
        stream.close()
        ServerHandle.from_record(shell, port, record).stop(soon())
        assert list_servers(shell, soon()) == []
        shell.close()


def test_files_are_uploaded_behind_the_prefix(
    connection: SshConnection, package: Path, tmp_path: Path, namespace: str
) -> None:
    (tmp_path / "assets").mkdir()
    content = bytes(range(256)) * 5000
    (tmp_path / "assets" / "data").write_bytes(content)
    shell = LaunchedShell(connection, f"{namespace} {write_pty_prefix(tmp_path)}")
    sent = upload_folder(shell, tmp_path / "assets", soon())
    assert (Path(sent) / "data").read_bytes() == content
    assert upload_folder(shell, tmp_path / "assets", soon()) == sent
    handle = start(shell, package)
    assert handle.dial is not None
    handle.stop(soon())


def test_a_prefix_that_does_not_exist_is_named_with_what_was_said(connection: SshConnection, package: Path) -> None:
    with pytest.raises(StartError, match=r"launch='no-such-docker exec -i isaac' was not found; it said: .*not found"):
        start(connection, package, "no-such-docker exec -i isaac")


def test_a_prefix_that_fails_is_told_with_what_it_said(
    connection: SshConnection, package: Path, tmp_path: Path
) -> None:
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\necho 'Error: No such container: isaac' >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(
        StartError, match="ended with status 1 before it ran our shell; it said: Error: No such contain"
    ):
        start(connection, package, f"{program} exec -i isaac")


def test_a_prefix_that_never_lets_us_in_ends_at_the_deadline(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    with pytest.raises(DeadlineExceeded, match="did not run our shell in time; it said: waiting for a node"):
        start(connection, package, "echo waiting for a node; cat >/dev/null; :", deadline=soon(1.5))


@pytest.mark.parametrize(("mode", "said"), [("die", "exit status 7"), ("crash", "SIGSEGV")])
def test_a_server_that_dies_in_there_is_told(
    connection: SshConnection, package: Path, tmp_path: Path, mode: str, said: str
) -> None:
    with pytest.raises(StartError, match=said) as caught:
        start(connection, package, write_pty_prefix(tmp_path), mode)
    assert "loading the task" in caught.value.log_tail


@pytest.mark.parametrize("terminal", [False, True])
def test_a_start_in_there_that_is_given_up_leaves_nothing(
    server: SshServer, connection: SshConnection, package: Path, tmp_path: Path, terminal: bool
) -> None:
    prefix = write_pty_prefix(tmp_path) if terminal else "env"
    ship_far_end(connection, soon(), source=package)
    with pytest.raises(DeadlineExceeded, match="last log line: loading the task"):
        start(connection, package, prefix, "hang", deadline=soon(1.2))


def test_a_host_that_is_named_for_the_data_is_dialled_and_listened_on(connection: SshConnection, package: Path) -> None:
    handle = start(connection, package, "env", launch_host="127.0.0.2")
    assert handle.dial is not None
    with pytest.raises(ConnectError):
        connection.open_port(handle.port, soon())
    stream = handle.dial(soon())
    assert echo(stream, b"hello") == b"hello"
    stream.close()
    handle.stop(soon())


def test_a_network_is_only_listened_on_when_that_is_allowed(server: SshServer, connection: SshConnection) -> None:
    settings: dict[str, Any] = {"task": {"env": "CartPole-v1"}, "max_sessions": 1, "idle_timeout_s": 60.0, "env": {}}
    settings |= {"cwd": None, "python_path": [], "leash_fd": None}
    way = {"python": sys.executable, "launch": "env", "launch_host": "127.0.0.2"}
    with pytest.raises(StartError, match=r"refusing to listen on 127\.0\.0\.2"):
        start_server(connection, settings, deadline=soon(), **way)  # type: ignore[arg-type]
    handle = start_server(connection, {**settings, "insecure": True}, deadline=soon(), **way)  # type: ignore[arg-type]
    assert handle.dial is not None
    stream = handle.dial(soon())
    stream.send_all([b"GET /healthz HTTP/1.1\r\n\r\n"], soon())
    back = bytearray(8)
    stream.recv_exactly_into(memoryview(back), soon())
    assert back == b"HTTP/1.1"
    stream.close()
    handle.stop(soon())
