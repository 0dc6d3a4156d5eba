"""No program of ours listens beyond loopback unless told to, and each that refuses says how to come through SSH."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from server_process import HandServer, ServerProcess

from remote_env import RemoteEnv
from remote_env.errors import ConfigError, StartError
from remote_env.server.connections import open_listener

PROGRAMS = {
    "task_server.py": ("--env", "CartPole-v1"),
    "isaac_task_server.py": ("--task", "Isaac-Reach-Franka-v0"),
}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.2"])
def test_what_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=r"refusing to listen on .*ssh -L PORT:127\.0\.0\.1:PORT.*--insecure"):
        open_listener({"tcp": [host, 0]}, insecure=False).close()


def test_what_is_not_refused() -> None:
    for host in ("127.0.0.1", "localhost"):
        with open_listener({"tcp": [host, 0]}, insecure=False) as sock:
            assert sock.getsockname()[0] == "127.0.0.1"
    with open_listener({"tcp": ["0.0.0.0", 0]}, insecure=True) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"


def test_nobody_else_may_knock_at_a_unix_socket(tmp_path: Path) -> None:
    with open_listener({"unix": str(tmp_path / "s")}, insecure=False):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) & 0o177 == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_refuse_and_show_the_way(program: str) -> None:
    with HandServer(*PROGRAMS[program], "--host", "0.0.0.0", program=program) as server:
        assert server.process.wait(20) == 1
    for part in (
        "refusing to listen on 0.0.0.0",
        f"ssh -L {server.port}:127.0.0.1:{server.port} THIS-HOST",
        "RemoteEnv('user@this-host')",
        "--insecure",
    ):
        assert part in server.output
    assert "Traceback" not in server.output


def test_settings_alone_open_nothing() -> None:
    """As RemoteEnv writes them for a server elsewhere (launch_host=), without insecure=True."""
    own = ServerProcess(listen={"tcp": ["0.0.0.0", 0]})
    assert own.process.wait(20) == 1
    assert "RemoteEnv: insecure=True" in (own.folder / "failed.json").read_text()
    for path in own.folder.iterdir():
        path.unlink()
    own.folder.rmdir()


def test_an_address_beyond_loopback_is_refused_to_remote_env() -> None:
    with pytest.raises((ConfigError, StartError)):
        RemoteEnv("local", env="CartPole-v1", launch_host="0.0.0.0").start()
