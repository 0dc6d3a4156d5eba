"""Files that hold secrets: private when made, refused when others could get at them, no way through links."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from remote_env.errors import ConfigError
from remote_env.private_files import (
    check_private_folder,
    make_private_folder,
    read_private_text,
    write_private_text,
)
from remote_env.server.folder import read_settings
from remote_env.server.process import LAUNCHER

SECRET = "5ec2e7" * 11
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask() -> object:
    """What most accounts have: new files are readable by everybody."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "remote-env" / "servers"
    make_private_folder(path)
    return path


def test_what_is_made_is_for_its_owner_alone(folder: Path) -> None:
    write_private_text(folder / "token", SECRET)
    assert mode_of(folder / "token") == 0o600
    assert [mode_of(made) for made in (folder, folder.parent, folder.parents[1])] == [0o700] * 3
    assert read_private_text(folder / "token") == SECRET
    assert [path.name for path in folder.iterdir()] == ["token"]


@pytest.mark.parametrize("mode", [0o755, 0o711, 0o770, 0o777, 0o1777, 0o701])
def test_a_folder_that_others_may_enter_is_refused_and_told_how_to_mend(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    for check in (make_private_folder, check_private_folder):
        with pytest.raises(ConfigError, match=f"mode is {mode:04o}.* chmod go-rwx {folder}"):
            check(folder)
    folder.chmod(0o700)
    check_private_folder(folder)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o602, 0o604, 0o666])
def test_a_file_that_others_may_read_or_write_is_not_read(folder: Path, mode: int) -> None:
    path = folder / "token"
    write_private_text(path, SECRET)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode is {mode:04o}.* chmod go-rwx {path}") as caught:
        read_private_text(path)
    assert SECRET not in str(caught.value)


def test_links_lead_nowhere(folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    write_private_text(theirs, SECRET)
    link = folder / "token"
    link.symlink_to(theirs)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        read_private_text(link)
    assert read_private_text(link, follow=True) == SECRET  # a file that the user named
    write_private_text(link, "another")
    assert not link.is_symlink()
    assert read_private_text(theirs) == SECRET
    (tmp_path / "sessions").symlink_to(folder)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        make_private_folder(tmp_path / "sessions")


def test_a_link_that_waits_under_the_name_of_the_partial_file_is_not_written_through(folder: Path) -> None:
    victim = folder / "victim"
    victim.write_text("mine")
    (folder / f"token.{os.getpid()}.partial").symlink_to(victim)
    write_private_text(folder / "token", SECRET)
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["token", "victim"]


def test_a_pipe_in_a_token_files_place_holds_nobody_up(folder: Path) -> None:
    os.mkfifo(folder / "token", 0o600)
    with pytest.raises(ConfigError, match="is no file"):
        read_private_text(folder / "token")


@needs_root
def test_what_belongs_to_another_user_is_refused(folder: Path) -> None:
    path = folder / "token"
    write_private_text(path, SECRET)
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match=r"another user \(id 12345; this is 0\).* XDG_CACHE_HOME"):
        read_private_text(path)
    os.chown(folder, 12345, -1)
    with pytest.raises(ConfigError, match="another user"):
        make_private_folder(folder)


def test_settings_behind_a_link_are_refused(folder: Path, tmp_path: Path) -> None:
    write_private_text(folder / "settings.json", f'{{"token": "{SECRET}"}}')
    assert read_settings(folder)["token"] == SECRET
    other = tmp_path / "other"
    make_private_folder(other)
    (other / "settings.json").symlink_to(folder / "settings.json")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        read_settings(other)
    (tmp_path / "linked").symlink_to(folder)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        read_settings(tmp_path / "linked")


def test_a_server_writes_through_no_link_into_a_folder_that_is_not_private(folder: Path) -> None:
    victim = folder / "victim"
    victim.write_text("mine")
    shared = folder / "shared"
    shared.mkdir()
    write_private_text(shared / "settings.json", f'{{"token": "{SECRET}"}}')
    for name in ("supervisor", f"failed.json.{os.getpid()}.partial"):
        (shared / name).symlink_to(victim)
    shared.chmod(0o777)
    command = [sys.executable, "-S", str(LAUNCHER), str(shared)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 1
    assert f"chmod go-rwx {shared}" in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("text", [f'{{"token": "{SECRET}"', f'"{SECRET}"', "[]", '{"token": 5}', ""])
def test_settings_that_are_none_show_nothing_of_themselves(folder: Path, text: str) -> None:
    write_private_text(folder / "settings.json", text)
    with pytest.raises(ConfigError) as caught:
        read_settings(folder)
    assert "5ec2e7" not in str(caught.value)
