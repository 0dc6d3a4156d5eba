from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import SshServer

from remote_env.errors import ConfigError, StartError
from remote_env.ssh import (
    SshConnection,
    list_servers,
    ship_far_end,
    upload_bundle,
    upload_folder,
)

sys.path.insert(0, str(Path(__file__).parent))

from own_server import connection, package, soon, start, wait_until_empty
from stand_in import write_package

__all__ = ["connection", "package"]

DAY_S = 86400.0


@pytest.fixture
def server() -> Iterator[SshServer]:
    """An sshd of its own; tests here put sessions there by hand, which stay."""
    with SshServer() as server:
        yield server
        wait_until_empty(server)


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds, time.time() - seconds))


def sessions(server: SshServer) -> set[str]:
    return {path.name for path in server.cache.glob("remote-env/sessions/*")}


def records(server: SshServer) -> list[Path]:
    return list(server.cache.glob("remote-env/servers/*/*.json"))


def test_live_servers_are_listed_with_what_they_wrote(connection: SshConnection, package: Path) -> None:
    assert list_servers(connection, soon()) == []
    handles = [start(connection, package) for _ in range(2)]
    found = {record["pid"]: record for record in list_servers(connection, soon())}
    for handle in handles:
        record = found[handle.pid]
        assert (record["token"], record["session_folder"], record["alive"]) == (
            handle.token,
            handle.session_folder,
            True,
        )
        handle.stop(soon())
    assert list_servers(connection, soon()) == []


def test_what_a_killed_server_left_is_removed_and_a_living_one_is_not(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    living, killed = start(connection, package), start(connection, package)
    for line in (Path(killed.session_folder) / "simulators").read_text().splitlines():
        os.kill(int(line.split()[0]), signal.SIGKILL)
    os.kill(killed.pid, signal.SIGKILL)
    deadline = soon()
    while len(list_servers(connection, soon())) == 2:  # it dies a moment later
        assert time.monotonic() < deadline
    assert len(sessions(server)) == 1
    assert len(records(server)) == 1
    living.stop(soon())


def test_a_dead_server_whose_simulator_lives_keeps_its_folder(
    server: SshServer, connection: SshConnection, package: Path
) -> None:
    handle = start(connection, package)
    os.kill(handle.pid, signal.SIGKILL)
    deadline = soon()
    while list_servers(connection, soon()):
        assert time.monotonic() < deadline
    assert len(sessions(server)) == 1
    handle.stop(soon())
    assert sessions(server) == set()


def test_a_start_in_progress_is_left_alone_and_a_stale_one_is_removed(
    server: SshServer, connection: SshConnection
) -> None:
    folder = server.cache / "remote-env/sessions"
    starting = subprocess.Popen(["sleep", "60"])
    try:
        begun = Path(f"/proc/{starting.pid}/stat").read_text().rpartition(")")[2].split()[19]
        place = _place()
        made = {
            "just-made": None,
            "slow-start": f"{starting.pid} {begun} {place}\n",
            "died-a-moment-ago": f"{starting.pid} 12345 {place}\n",
            "stale": f"{starting.pid} 12345 {place}\n",
            "of-another-machine": f"{starting.pid} 12345 elsewhere:pid:[1]\n",
            "long-gone-elsewhere": f"{starting.pid} 12345 elsewhere:pid:[1]\n",
        }
        for name, leader in made.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "log").write_text("")
            if leader is not None:
                (folder / name / "leader").write_text(leader)
        for name in ("slow-start", "stale", "of-another-machine"):
            age(folder / name, 3600.0)
        age(folder / "long-gone-elsewhere" / "log", 40 * DAY_S)
        age(folder / "long-gone-elsewhere", 40 * DAY_S)
        assert list_servers(connection, soon()) == []
        assert sessions(server) == set(made) - {"stale", "long-gone-elsewhere"}
    finally:
        starting.kill()
        starting.wait()


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"


def test_versions_that_nobody_used_for_two_months_go_when_another_is_uploaded(
    server: SshServer, connection: SshConnection, package: Path, tmp_path: Path
) -> None:
    def upload(name: str) -> Path:
        (tmp_path / name).write_text(name)
        return Path(upload_folder(connection, tmp_path / name, soon())).parent

    old, young, used, needed = (upload(name) for name in ("old", "young", "used", "needed"))
    for folder in (old, used, needed):
        age(folder, 62 * DAY_S)
    age(young, 58 * DAY_S)
    session = server.cache / "remote-env/sessions/elsewhere"
    session.mkdir(parents=True)
    (session / "settings.json").write_text(f'{{"python_path": ["{needed}"]}}')
    broken = old.parent / ".0123.99"
    broken.mkdir()
    age(broken, 4 * DAY_S)
    upload("used")  # which counts as use
    assert time.time() - used.stat().st_mtime < DAY_S
    last = upload("another")
    assert {path.name for path in last.parent.iterdir()} == {path.name for path in (young, used, needed, last)}


def test_a_start_counts_as_use_of_the_far_end(connection: SshConnection, package: Path) -> None:
    far_end = Path(ship_far_end(connection, soon(), source=package))
    age(far_end, 50 * DAY_S)
    handle = start(connection, package)
    assert time.time() - far_end.stat().st_mtime < DAY_S
    handle.stop(soon())


def test_the_version_of_a_server_that_runs_stays_however_old(
    connection: SshConnection, package: Path, tmp_path: Path
) -> None:
    far_end = Path(ship_far_end(connection, soon(), source=package))
    handle = start(connection, package)
    unused = Path(ship_far_end(connection, soon(), source=_another(tmp_path / "one")))
    for folder in (far_end, unused):
        age(folder, 400 * DAY_S)
    another = Path(ship_far_end(connection, soon(), source=_another(tmp_path / "two")))
    assert set(far_end.parent.iterdir()) == {far_end, another}
    handle.stop(soon())


def _another(folder: Path) -> Path:
    package = write_package(folder)
    (package / "__init__.py").write_text(f"# {folder.name}")
    return package


def test_a_bundle_lies_side_by_side(connection: SshConnection, tmp_path: Path) -> None:
    (tmp_path / "serve.py").write_text("import helper")
    (tmp_path / "models" / "deep").mkdir(parents=True)
    (tmp_path / "models" / "deep" / "arm.xml").write_text("<mujoco/>")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "serve.py").write_text("other")
    seen: list[tuple[str, str]] = []
    paths = [tmp_path / "serve.py", tmp_path / "models"]
    sent = Path(upload_bundle(connection, paths, soon(), on_progress=lambda *what: seen.append(what)))
    assert (sent / "serve.py").read_text() == "import helper"
    assert (sent / "models/deep/arm.xml").read_text() == "<mujoco/>"
    assert seen == [("uploading", "0.0 of 0.0 MB")]
    assert upload_bundle(connection, reversed(paths), soon()) == str(sent)
    with pytest.raises(ConfigError, match="have the same name"):
        upload_bundle(connection, [tmp_path / "serve.py", tmp_path / "elsewhere" / "serve.py"], soon())


def test_an_upload_tells_how_much_of_how_much_was_sent(connection: SshConnection, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(os.urandom(3 * 10**6))
    seen: list[str] = []
    upload_folder(connection, tmp_path / "big", soon(), on_progress=lambda _, detail: seen.append(detail))
    assert seen[-1] == "3.0 of 3.0 MB"
    assert seen == sorted(seen)
    assert len(seen) > 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a read-only folder")
def test_a_read_only_home_is_a_start_error_that_says_what_else_can_be_done(tmp_path: Path, package: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(home)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount a read-only folder")
    try:
        with (
            SshServer(cache=home / "cache") as server,
            SshConnection(server.target, **server.login) as connection,
            pytest.raises(
                StartError, match=r"cannot take .*: Read-only file system.*set XDG_CACHE_HOME to a folder"
            ) as caught,
        ):
            start(connection, package)
        assert "mkdir" in str(caught.value)
    finally:
        subprocess.run(["umount", str(home)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a read-only folder")
def test_a_cache_that_became_read_only_is_a_start_error(tmp_path: Path, package: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with SshServer(cache=cache) as server, SshConnection(server.target, **server.login) as connection:
        ship_far_end(connection, soon(), source=package)
        mounted = subprocess.run(["mount", "--bind", str(cache), str(cache)], check=False)
        if mounted.returncode:
            pytest.skip("this container may not mount")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(cache)], check=True)
            with pytest.raises(StartError, match=r"cannot take .*: Read-only file system"):
                start(connection, package)
        finally:
            subprocess.run(["umount", str(cache)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the small disk")
def test_a_full_disk_refuses_the_settings_and_leaves_no_session(tmp_path: Path, package: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount a small disk")
    try:
        with SshServer(cache=disk / "cache") as server, SshConnection(server.target, **server.login) as connection:
            ship_far_end(connection, soon(), source=package)
            subprocess.run(["dd", "if=/dev/zero", f"of={disk}/ballast", "bs=4096"], capture_output=True, check=False)
            with pytest.raises(StartError, match=r"cannot take .*No space left on device.*, 0 KiB free"):
                start(connection, package)
            assert sessions(server) == set()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("setsid", "setsid was not found; install util-linux"), ("tar", "cannot take .*tar: not found")],
)
def test_a_missing_program_is_named(tmp_path: Path, package: Path, missing: str, said: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            if program.name != missing and not (programs / program.name).is_symlink():
                (programs / program.name).symlink_to(program)
    shell = tmp_path / "shell"
    shell.write_text(f'#!/bin/sh\nPATH={programs}\nexport PATH\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
    shell.chmod(0o755)
    with (
        SshServer(extra_config=f"ForceCommand {shell}") as server,
        SshConnection(server.target, **server.login) as connection,
        pytest.raises(StartError, match=said),
    ):
        start(connection, package)


def test_no_home_folder_is_named(tmp_path: Path, package: Path) -> None:
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\nunset XDG_CACHE_HOME\nHOME=/nonexistent exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
    shell.chmod(0o755)
    with (
        SshServer(extra_config=f"ForceCommand {shell}") as server,
        SshConnection(server.target, **server.login) as connection,
        pytest.raises(StartError, match=r"no home folder \(HOME is '/nonexistent'\).*set XDG_CACHE_HOME"),
    ):
        start(connection, package)
