"""What is told of files that hold tokens and are not private, and of addresses that others reach."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from listeners import listener_that_says
from quotes import produces
from server_process import HandServer

from remote_env import RemoteEnv
from remote_env.env.records import record_path
from remote_env.private_files import make_private_folder, write_private_text


@pytest.fixture
def record() -> Iterator[Path]:
    """What a server that listens would have written of itself, token included."""
    with listener_that_says(b"") as port:
        path = record_path(port)
        make_private_folder(path.parent)
        write_private_text(path, "{}")
        yield path
        path.unlink()


def find_server(record: Path) -> None:
    RemoteEnv(port=int(record.stem)).start()


@produces("ConfigError: … can be reached by others (its mode is …) and holds a token; make it private: chmod go-rwx …")
def test_a_record_that_others_can_read(record: Path) -> None:
    record.chmod(0o644)
    find_server(record)


@produces("ConfigError: … belongs to another user (id …; this is …), who could read the token in it: …")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_record_of_somebody_else(record: Path) -> None:
    os.chown(record, 12345, -1)
    find_server(record)


@produces("ConfigError: … is a symbolic link to …, and holds a token: put the file itself there")
def test_a_record_that_is_a_link(record: Path, tmp_path: Path) -> None:
    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    find_server(record)


@produces("ConfigError: … is a symbolic link to …, and what holds tokens must be a folder: remove the link")
def test_a_folder_of_tokens_that_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "tokens").symlink_to(tmp_path / "elsewhere")
    make_private_folder(tmp_path / "tokens")


@produces("cannot serve: refusing to listen on …: clients must know the token, but nothing is encrypted, …")
def test_a_task_server_beyond_loopback() -> str:
    with HandServer("--env", "CartPole-v1", "--host", "0.0.0.0") as server:
        assert server.process.wait(20) == 1
    return server.output
