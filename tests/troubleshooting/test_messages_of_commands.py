"""What `remote-env` prints when it cannot do what it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from listeners import listener_that_says
from quotes import produces
from server_process import ServerProcess
from ssh_client import free_port
from ssh_server import SshServer

from remote_env.cli import main

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import collect_parallel


def login_words(server: SshServer) -> list[str]:
    return ["-i", str(server.identity_file), "--known-hosts", str(server.known_hosts), "--config", str(server.config)]


class Printed:
    """Runs commands."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: object) -> str:
        """What a command that fails prints, its complaints first."""
        assert main([str(word) for word in words]) == 1
        output, complaints = self._capture.readouterr()
        return complaints + output


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    return Printed(capsys)


@pytest.fixture
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@contextmanager
def listening() -> Iterator[ServerProcess]:
    """A server, ready or not."""
    server = ServerProcess()
    try:
        yield server.wait_listening()
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    with listening() as server:
        yield server.wait_ready()


@produces("nothing to end on …; no server of yours runs there")
@pytest.mark.usefixtures("nothing_runs")
def test_stop_finds_nothing(printed: Printed) -> str:
    return printed("stop", "local", "--all")


@produces("error: no task server of yours runs on …; RemoteEnv starts one")
@pytest.mark.usefixtures("nothing_runs")
def test_logs_find_nothing(printed: Printed) -> str:
    return printed("logs", "local")


@produces("error: no session there begins with '…'; there run: …")
@pytest.mark.usefixtures("server")
def test_an_id_that_no_server_has(printed: Printed) -> str:
    return printed("logs", "local", "zz")


@produces("error: … servers of yours run there; name one: …")
@pytest.mark.usefixtures("server")
def test_several_servers(printed: Printed) -> str:
    with listening():
        return printed("attach", "local")


@produces("…: cannot be asked: …")
def test_a_host_that_cannot_be_asked(printed: Printed) -> str:
    return printed("ps", "ssh://me@127.0.0.1:1")


@produces("error: nothing answers on port … of …: …. Is the server running? remote-env ps …")
def test_a_tunnel_to_nothing(printed: Printed, ssh_server: SshServer) -> str:
    return printed("tunnel", ssh_server.target, free_port(), *login_words(ssh_server))


@produces("error: no tunnel '…' runs in the background on this machine; running: …")
def test_a_tunnel_that_does_not_run(printed: Printed) -> str:
    return printed("tunnel", "--stop", "3f2a")


@produces("error: … accepted the connection and said nothing in time; …")
def test_a_command_whose_login_fails(printed: Printed) -> str:
    with listener_that_says(b"") as port:
        return printed("logs", f"ssh://me@127.0.0.1:{port}", "--connect-timeout", "0.5")


@produces("remote-env bench: error: name the task with --env, or a server that runs there with --server-port")
def test_a_bench_of_nothing(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(["bench", "local"])
    return capsys.readouterr().err.splitlines()[-1]


@produces("error: --env-kwargs '…' is no JSON …")
def test_a_bench_of_a_task_with_unreadable_arguments(printed: Printed) -> str:
    return printed("bench", "local", "--env", "CartPole-v1", "--env-kwargs", "{name: 1}")


@produces("server … is left out: …")
def test_a_server_that_collects_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    words = ["--task", "CartPole-v1", "--no-states", "--servers", "1", "--output-dir", str(tmp_path)]
    assert collect_parallel.main([*words, "--host", "tcp://127.0.0.1", "--port", str(free_port())]) == 1
    return capsys.readouterr().err
