from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ssh_server import SshServer

from remote_env.errors import ConfigError, ConnectError, DeadlineExceeded, HostKeyError, RemoteEnvError, StartError
from remote_env.ssh import (
    ServerHandle,
    SshConnection,
    find_server,
    ship_far_end,
    start_server,
    upload_folder,
)
from remote_env.ssh.pack import pack_far_end
from remote_env.ssh.programs import UPLOAD
from remote_env.ssh.scripts import RunningLines, run_script

sys.path.insert(0, str(Path(__file__).parent))

from stand_in import write_package

LIMIT_S = 15.0


def soon(seconds: float = LIMIT_S) -> float:
    return time.monotonic() + seconds


def wait_until(condition: Any, seconds: float = 8.0) -> None:
    deadline = soon(seconds)
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def server() -> Iterator[SshServer]:
    """An sshd of its own, so that the cache starts empty; nothing may be left of any session."""
    with SshServer() as server:
        yield server
        wait_until(lambda: not server.processes())
        assert list(server.cache.glob("remote-env/sessions/*")) == []


@pytest.fixture
def connection(server: SshServer) -> Iterator[SshConnection]:
    with SshConnection(server.target, **server.login) as connection:
        yield connection


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("far_end"))


def start(connection: SshConnection, package: Path, mode: str = "serve", **options: Any) -> ServerHandle:
    settings = {"task": {"mode": mode, "kind": options.pop("kind", "")}, **options.pop("settings", {})}
    arguments = {"python": sys.executable, "deadline": soon(), "source": package, **options}
    return start_server(connection, settings, **arguments)


def test_the_far_end_is_uploaded_once_per_content(
    connection: SshConnection, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    real = RunningLines.feed

    def counting(self: RunningLines, source: bytes, data: bytes, *rest: Any) -> None:
        sent.append(len(source) + len(data))
        real(self, source, data, *rest)

    monkeypatch.setattr(RunningLines, "feed", counting)
    folder = Path(ship_far_end(connection, soon(), source=package))
    size = len(pack_far_end(package).archive())
    assert max(sent) > size
    sent.clear()
    assert Path(ship_far_end(connection, soon(), source=package)) == folder
    assert len(sent) == 1
    assert sent[0] < 4096
    assert (folder / "remote_env/server/launch.py").read_bytes() == (package / "server/launch.py").read_bytes()
    assert (folder / "vendor/msgpack/fallback.py").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_the_real_package_travels_without_its_client_half() -> None:
    names = [name for name, _ in pack_far_end().files]
    assert "remote_env/errors.py" in names
    assert "remote_env/transport.py" in names
    assert not [name for name in names if name.startswith(("remote_env/ssh/", "remote_env/replay/"))]
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_equal_files_make_equal_archives(tmp_path: Path) -> None:
    one, two = write_package(tmp_path / "one"), write_package(tmp_path / "two")
    os.utime(two / "__init__.py", (0, 0))
    assert pack_far_end(one).digest == pack_far_end(two).digest
    assert pack_far_end(one).archive() == pack_far_end(two).archive()
    (tmp_path / "three").mkdir()
    three = write_package(tmp_path / "three")
    (three / "__init__.py").write_text("# more")
    assert pack_far_end(three).digest != pack_far_end(one).digest


def test_a_folder_is_uploaded_once_and_again_when_it_changes(connection: SshConnection, tmp_path: Path) -> None:
    (tmp_path / "meshes").mkdir()
    (tmp_path / "scene.xml").write_text("<mujoco/>")
    (tmp_path / "meshes" / "a name.stl").write_bytes(os.urandom(3 * 2**20))
    first = Path(upload_folder(connection, tmp_path, soon()))
    assert (first / "meshes" / "a name.stl").read_bytes() == (tmp_path / "meshes" / "a name.stl").read_bytes()
    written = (first / "scene.xml").stat().st_ino
    assert Path(upload_folder(connection, tmp_path, soon())) == first
    assert (first / "scene.xml").stat().st_ino == written
    (tmp_path / "scene.xml").write_text("<mujoco></mujoco>")
    assert Path(upload_folder(connection, tmp_path, soon())) != first


def test_a_single_file_keeps_its_name(connection: SshConnection, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("x = 1")
    sent = Path(upload_folder(connection, tmp_path / "task.py", soon()))
    assert (sent.name, sent.read_text()) == ("task.py", "x = 1")


def test_no_folder_and_an_empty_folder_are_config_errors(connection: SshConnection, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no .*nothing here to upload"):
        upload_folder(connection, tmp_path / "nothing", soon())
    with pytest.raises(ConfigError, match="holds no files"):
        upload_folder(connection, tmp_path, soon())


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
    assert server.processes() == []
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


def sshd_pids(server: SshServer) -> list[int]:
    """The sshd processes of all logins, without what runs in them: a start's shell may still be about to end."""
    found = []
    for pid in server.connection_pids():
        with contextlib.suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                found.append(pid)
    return found


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_stop_logs_in_anew_when_the_login_is_dead_or_frozen(server: SshServer, package: Path, sent: int) -> None:
    with SshConnection(server.target, **server.login) as connection:
        handle = start(connection, package)
        for pid in sshd_pids(server):
            os.kill(pid, sent)
        begun = time.monotonic()
        handle.stop(soon(6.0))
        assert time.monotonic() - begun < 6.0
        assert connection.is_open
    assert server.processes() == []


def test_stop_tells_when_no_new_login_can_be_made(package: Path) -> None:
    with SshServer() as server, SshConnection(server.target, **server.login) as connection:
        handle = start(connection, package)
        connection.close()
        server.known_hosts.unlink()
        with pytest.raises(HostKeyError):
            handle.stop(soon(3.0))
        server.known_hosts.write_text(server.known_hosts_line())
        handle.stop(soon())


def test_stop_keeps_its_deadline_when_the_host_is_frozen(package: Path) -> None:
    with SshServer() as server, SshConnection(server.target, **server.login) as connection:
        handle = start(connection, package)
        assert server._process is not None
        frozen = [*sshd_pids(server), server._process.pid]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        try:
            with pytest.raises(ConnectError):
                handle.stop(soon(2.0))
            assert time.monotonic() - begun < 3.0
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)


def test_the_record_of_a_dead_server_is_not_believed(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    handle = start(connection, package)
    os.kill(handle.pid, signal.SIGKILL)
    wait_until(lambda: find_server(connection, handle.port, soon()) is None)
    assert list(server.cache.glob("remote-env/servers/*/*")) != []
    handle.stop(soon())
    assert list(server.cache.glob("remote-env/servers/*/*")) == []


def test_a_server_that_ignores_the_request_to_end_is_killed_with_its_simulators(
    server: SshServer, connection: SshConnection, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_env.ssh.server.STOP_GRACE_S", 0.3)
    handle = start(connection, package, "stubborn")
    assert len(server.processes()) >= 2
    handle.stop(soon())
    wait_until(lambda: not server.processes())


def test_a_pid_that_another_process_has_by_now_is_not_signalled(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    handle = start(connection, package)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        folder = Path(handle.session_folder)
        (folder / "simulators").write_text(f"{stranger.pid} 12345\n")
        (folder / "leader").write_text(f"{stranger.pid} 12345\n")
        aged = ServerHandle(connection, str(folder), stranger.pid, "12345", handle.port, handle.token)
        aged.stop(soon())
        assert stranger.poll() is None
        assert not folder.exists()
    finally:
        stranger.kill()
        stranger.wait()
        for pid in server.processes():
            os.kill(pid, signal.SIGKILL)


def test_stop_refuses_to_remove_anything_but_a_session_folder(
    connection: SshConnection, package: Path, tmp_path: Path
) -> None:
    handle = start(connection, package)
    for folder in (str(tmp_path), handle.session_folder + "/../..", str(Path(handle.session_folder).parent)):
        with pytest.raises(StartError, match="not a session folder"):
            ServerHandle(connection, folder, 1, "1", 1, "").stop(soon())
    assert tmp_path.is_dir()
    handle.stop(soon())


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
    wait_until(lambda: not server.processes())


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
    seen: list[tuple[str, str]] = []
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="last log line: loading the task"):
        start(connection, package, "hang", deadline=soon(2.0), on_progress=lambda *what: seen.append(what))
    assert time.monotonic() - begun < 4.0
    assert ("starting", "loading the task") in seen
    wait_until(lambda: not server.processes())


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
        wait_until(lambda: list(server.cache.glob("remote-env/sessions/*/ready.json")))
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the small disk")
def test_a_full_disk_is_a_start_error(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "random").write_bytes(os.urandom(2**20))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount a small disk")
    try:
        with (
            SshServer(cache=disk / "cache") as server,
            SshConnection(server.target, **server.login) as connection,
        ):
            with pytest.raises(StartError, match=r"cannot take the far end's files: tar: .* 0 KiB free"):
                upload_folder(connection, tmp_path / "big", soon())
            assert list((disk / "cache/remote-env/assets").iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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
    assert server.processes() == []
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


def test_a_truncated_upload_leaves_nothing(server: SshServer, connection: SshConnection, package: Path) -> None:
    pack = pack_far_end(package)
    archive = pack.archive()
    variables = {"kind": "farend", "digest": pack.digest, "size": len(archive)}
    with pytest.raises(StartError, match="unexpected end of file"):
        run_script(connection, UPLOAD, variables, data=archive[:-500], deadline=soon())
    assert list((server.cache / "remote-env/farend").iterdir()) == []


def test_two_clients_that_upload_at_once_are_harmless(server: SshServer, package: Path) -> None:
    with ThreadPoolExecutor(4) as pool, SshConnection(server.target, **server.login) as connection:
        folders = list(pool.map(lambda _: ship_far_end(connection, soon(), source=package), range(4)))
    assert len(set(folders)) == 1
    assert [str(path) for path in (server.cache / "remote-env/farend").iterdir()] == folders[:1]
    assert sorted(path.name for path in Path(folders[0]).iterdir()) == ["remote_env", "vendor"]


def test_a_host_that_runs_no_commands_is_named(package: Path) -> None:
    with (
        SshServer(extra_config="ForceCommand echo only sftp here >&2; exit 1") as server,
        SshConnection(server.target, **server.login) as connection,
        pytest.raises(StartError, match=r"exit status 1\): only sftp here"),
    ):
        start(connection, package)
