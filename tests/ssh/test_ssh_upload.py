"""Files that are put on the far end, once per content."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ssh_server import SshServer

from remote_env.errors import ConfigError, StartError
from remote_env.ssh import (
    SshConnection,
    ship_far_end,
    upload_folder,
)
from remote_env.ssh.pack import pack_far_end
from remote_env.ssh.programs import UPLOAD
from remote_env.ssh.scripts import RunningLines, run_script

sys.path.insert(0, str(Path(__file__).parent))

from own_server import connection, package, server, soon
from stand_in import write_package

__all__ = ["connection", "package", "server"]


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
