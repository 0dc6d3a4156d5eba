from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path

import pytest
from leak_check import wait_until
from ssh_server import SshServer

from remote_env.errors import DeadlineExceeded, RemoteEnvError, StartError
from remote_env.ssh import (
    ServerHandle,
    SshConnection,
    find_server,
    ship_far_end,
    start_server,
)

sys.path.insert(0, str(Path(__file__).parent))

from own_server import connection, package, server, soon, start, wait_until_empty

__all__ = ["connection", "package", "server"]


def test_a_server_starts_serves_and_stops(server: SshServer, connection: SshConnection, package: Path) -> None:
    handle = start(connection, package)
    stream = connection.open_port(handle.port, soon())
    stream.send_all([b"hello"], soon())
    back = bytearray(5)
    stream.recv_exactly_into(memoryview(back), soon())
    assert bytes(back) == b"hello"
    stream.close()
    folder = Path(handle.session_folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "settings.json").stat().st_mode) == 0o600
    assert "serving" in handle.log_tail(5, soon())
    assert len(handle.token) == 64
    handle.stop(soon())
    assert not folder.exists()
    wait_until_empty(server)
    handle.stop(soon())


def test_the_token_is_on_no_command_line_and_in_no_environment(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    handle = start(connection, package)
    seen = b"".join(
        Path(f"/proc/{pid}/{name}").read_bytes() for pid in server.processes() for name in ("cmdline", "environ")
    )
    assert b"launch.py" in seen
    assert handle.token.encode() not in seen
    handle.stop(soon())


def test_a_running_server_outlives_its_connection_and_is_found_again(server: SshServer, package: Path) -> None:
    with SshConnection(server.target, **server.login) as connection:
        port = start(connection, package).port
    with SshConnection(server.target, **server.login) as connection:
        record = find_server(connection, port, soon())
        assert record is not None
        assert record["task_label"] == "echo"
        assert find_server(connection, port + 1, soon()) is None
        ServerHandle.from_record(connection, port, record).stop(soon())
        assert find_server(connection, port, soon()) is None


def test_a_missing_interpreter_is_named(connection: SshConnection, package: Path) -> None:
    with pytest.raises(StartError, match=r"python3\.99 was not found on 127\.0\.0\.1; pass python="):
        start(connection, package, python="python3.99")


def test_an_interpreter_may_be_a_command_line(connection: SshConnection, package: Path, tmp_path: Path) -> None:
    (tmp_path / "env.sh").write_text(f"MY_PYTHON={sys.executable}\n")
    handle = start(connection, package, python=f". '{tmp_path}/env.sh' && echo a banner && $MY_PYTHON -u")
    assert "a banner" in handle.log_tail(10, soon())
    handle.stop(soon())


def test_a_wrapper_script_ends_with_its_server(
    server: SshServer, connection: SshConnection, package: Path, tmp_path: Path
) -> None:
    wrapper = tmp_path / "isaaclab.sh"
    wrapper.write_text(f'#!/bin/sh\nshift\n{sys.executable} "$@"\necho "left with $?"\n')
    wrapper.chmod(0o755)
    handle = start(connection, package, python=f"{wrapper} -p")
    handle.stop(soon())
    wait_until_empty(server)


def test_a_server_that_dies_while_starting_is_told_at_once_with_its_last_words(
    connection: SshConnection, package: Path
) -> None:
    ship_far_end(connection, soon(), source=package)
    begun = time.monotonic()
    with pytest.raises(StartError, match="exit status 7") as caught:
        start(connection, package, "die")
    assert time.monotonic() - begun < 2.0
    assert "no module named the_task" in caught.value.log_tail
    assert (caught.value.exit_status, caught.value.signal, caught.value.phase) == (7, None, "starting")
    with pytest.raises(StartError, match=r"killed by signal 11 \(SIGSEGV\)") as caught:
        start(connection, package, "crash")
    assert (caught.value.exit_status, caught.value.signal) == (None, "SIGSEGV")


@pytest.mark.parametrize(("kind", "hint"), [("port-in-use", "cannot listen"), ("python-too-old", "pass python=")])
def test_a_server_that_refuses_to_start_says_why(
    connection: SshConnection, package: Path, kind: str, hint: str
) -> None:
    with pytest.raises(StartError, match=hint) as caught:
        start(connection, package, "refuse", kind=kind)
    assert vars(caught.value)["kind"] == kind


def test_a_server_that_never_gets_ready_is_ended_at_the_deadline(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    ship_far_end(connection, soon(), source=package)
    seen: list[tuple[str, str]] = []
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="last log line: loading the task"):
        start(connection, package, "hang", deadline=soon(1.0), on_progress=lambda *what: seen.append(what))
    assert time.monotonic() - begun < 4.0
    assert ("starting", "loading the task") in seen
    wait_until_empty(server)


def test_a_client_that_vanishes_during_the_start_leaves_nothing(server: SshServer, package: Path) -> None:
    class Vanished(Exception):
        pass

    connection = SshConnection(server.target, **server.login)
    connection.connect(soon())

    def vanish(phase: str, _: str) -> None:
        if phase != "starting":
            return
        connection.close()
        raise Vanished

    with pytest.raises(Vanished):
        start(connection, package, "hang", on_progress=vanish)


@pytest.mark.fault
@pytest.mark.parametrize("launch", [None, "env"])
def test_an_interrupt_of_a_start_whose_server_is_ready_leaves_nothing(
    server: SshServer,
    connection: SshConnection,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    launch: str | None,
) -> None:
    ship_far_end(connection, soon(), source=package)

    def interrupted(*_: object) -> None:
        wait_until(lambda: list(server.cache.glob("remote-env/sessions/*/ready.json")), "it is ready")
        raise KeyboardInterrupt

    monkeypatch.setattr("remote_env.ssh.starting._Starter._follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(connection, package, launch=launch)


@pytest.mark.fault
@pytest.mark.parametrize("place", ["RunningInside._read", "pieces"])
def test_an_interrupt_before_the_settings_have_arrived_leaves_nothing(
    connection: SshConnection, package: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    ship_far_end(connection, soon(), source=package)

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(f"remote_env.ssh.inside.{place}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(connection, package, launch="env")


def test_a_cache_that_takes_no_files_is_a_start_error(tmp_path: Path, package: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        SshServer(cache=tmp_path / "file" / "cache") as server,
        SshConnection(server.target, **server.login) as connection,
        pytest.raises(StartError, match=r"cannot take the far end's files: .*Not a directory"),
    ):
        start(connection, package)


def test_login_files_that_print_do_not_confuse_the_start(package: Path, tmp_path: Path) -> None:
    shell = tmp_path / "chatty-shell"
    shell.write_text('#!/bin/sh\necho "welcome to the lab"\necho "quota: 3%" >&2\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    with (
        SshServer(extra_config=f'ForceCommand {shell} -c "$SSH_ORIGINAL_COMMAND"') as server,
        SshConnection(server.target, **server.login) as connection,
    ):
        handle = start(connection, package)
        handle.stop(soon())


def test_the_script_runs_under_dash(server: SshServer, connection: SshConnection) -> None:
    assert b"dash" in connection.run("readlink -f /bin/sh", deadline=soon()).stdout


@pytest.mark.parametrize("eats", ["read -r line", "head -c 9000 >/dev/null", "cat >/dev/null"])
def test_a_login_file_that_eats_our_script_is_told(package: Path, tmp_path: Path, eats: str) -> None:
    shell = tmp_path / "hungry-shell"
    shell.write_text(f'#!/bin/sh\n{eats}\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    with (
        SshServer(extra_config=f'ForceCommand {shell} -c "$SSH_ORIGINAL_COMMAND"') as server,
        SshConnection(server.target, **server.login) as connection,
    ):
        for use in (lambda: start(connection, package), lambda: find_server(connection, 1, soon())):
            with pytest.raises(
                StartError, match=r"did not arrive whole: a start-up file there .* reads standard input"
            ):
                use()
        assert not (server.cache / "remote-env").exists()


def test_what_is_sent_is_never_a_command(connection: SshConnection, package: Path, tmp_path: Path) -> None:
    evil = f"$(touch {tmp_path}/one)`touch {tmp_path}/two`'\"\n;touch {tmp_path}/three;#"
    settings = {"task": {"env": "CartPole-v1"}, "max_sessions": 1, "idle_timeout_s": 60.0, "env": {"NAME": evil}}
    folder = tmp_path / evil.replace("/", "")
    folder.mkdir()
    settings |= {"cwd": str(folder), "python_path": [], "leash_fd": None}
    handle = start_server(connection, settings, python=f"{sys.executable}\n", deadline=soon(30))
    assert Path(f"/proc/{handle.pid}/cwd").readlink() == folder
    handle.stop(soon())
    assert list(tmp_path.iterdir()) == [folder]


def test_errors_of_a_start_survive_pickling(connection: SshConnection, package: Path) -> None:
    import pickle

    with pytest.raises(RemoteEnvError) as caught:
        start(connection, package, "die")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.log_tail) == (str(caught.value), caught.value.log_tail)


def test_the_settings_arrive_as_given(connection: SshConnection, package: Path) -> None:
    settings = {"token": "ab" * 32, "max_sessions": 3, "env": {"NAME": 'it\'s $HOME "quoted" \\ é'}}
    handle = start(connection, package, settings=settings)
    written = json.loads((Path(handle.session_folder) / "settings.json").read_text())
    assert written["env"] == settings["env"]
    assert (written["token"], written["max_sessions"]) == ("ab" * 32, 3)
    assert handle.token == "ab" * 32
    handle.stop(soon())


def test_the_real_far_end_starts_answers_and_stops(server: SshServer, connection: SshConnection) -> None:
    settings = {"task": {"env": "CartPole-v1"}, "max_sessions": 1, "idle_timeout_s": 60.0, "env": {}}
    settings |= {"cwd": None, "python_path": [], "leash_fd": None}
    handle = start_server(connection, settings, python=sys.executable, deadline=soon(30))
    try:
        record = find_server(connection, handle.port, soon())
        assert record is not None
        assert (record["pid"], record["token"]) == (handle.pid, handle.token)
        stream = connection.open_port(handle.port, soon())
        stream.send_all([b"GET /healthz HTTP/1.1\r\nHost: box\r\n\r\n"], soon())
        answer = bytearray(8)
        stream.recv_exactly_into(memoryview(answer), soon())
        assert answer == b"HTTP/1.1"
        stream.close()
    finally:
        handle.stop(soon())
    wait_until_empty(server)
    assert list(server.cache.glob("remote-env/servers/*/*")) == []


def test_a_second_real_server_on_the_same_port_says_that_the_port_is_taken(
    connection: SshConnection,
) -> None:
    settings = {"task": {"env": "CartPole-v1"}, "max_sessions": 1, "idle_timeout_s": 60.0, "env": {}}
    settings |= {"cwd": None, "python_path": [], "leash_fd": None}
    handle = start_server(connection, settings, python=sys.executable, deadline=soon(30))
    try:
        again = {**settings, "listen": {"tcp": ["127.0.0.1", handle.port]}}
        with pytest.raises(StartError) as caught:
            start_server(connection, again, python=sys.executable, deadline=soon(30))
        assert vars(caught.value)["kind"] == "port-in-use"
    finally:
        handle.stop(soon())


def test_a_host_that_runs_no_commands_is_named(package: Path) -> None:
    with (
        SshServer(extra_config="ForceCommand echo only sftp here >&2; exit 1") as server,
        SshConnection(server.target, **server.login) as connection,
        pytest.raises(StartError, match=r"exit status 1\): only sftp here"),
    ):
        start(connection, package)
