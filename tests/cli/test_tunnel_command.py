"""`remote-env tunnel` as a person runs it: a process of its own, a real sshd, real servers, curl."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from leak_check import is_alive, isolated_home, no_leaks, wait_until
from server_process import ServerProcess, serving
from ssh_server import SshServer

from remote_env import RemoteEnv
from remote_env.ssh.tunnel import KINDS

__all__ = ["isolated_home", "no_leaks"]
ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def task() -> Iterator[ServerProcess]:
    with serving(idle_timeout_s=600.0) as server:
        yield server


def login_arguments(server: SshServer) -> list[str]:
    return ["-i", str(server.identity_file), "--known-hosts", str(server.known_hosts), "--config", str(server.config)]


def start(server: SshServer, *words: object) -> subprocess.Popen[str]:
    """`remote-env tunnel words…` with the login to the test's sshd."""
    command = [sys.executable, "-W", "error", "-m", "remote_env", "tunnel", *map(str, words), *login_arguments(server)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )


def run(server: SshServer, *words: object) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    with start(server, *words) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextmanager
def opened(server: SshServer, *words: object) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """A tunnel in the foreground that is open: its process, its local port, and what it printed."""
    with start(server, *words) as process:
        lines = []
        try:
            assert process.stdout is not None
            while line := process.stdout.readline():
                lines.append(line)
                if line.startswith("Ctrl-C"):
                    break
            assert process.poll() is None, f"{''.join(lines)}{process.communicate()[1]}"
            yield process, local_port("".join(lines)), lines
        finally:
            process.kill()


def local_port(output: str) -> int:
    match = re.search(r"127\.0\.0\.1:(\d+) leads to port", output)
    assert match, output
    return int(match[1])


def tunnel_id(output: str) -> str:
    match = re.search(r"tunnel (\w+) runs in the background", output)
    assert match, output
    return match[1]


def curl(port: int, path: str = "/healthz") -> str:
    """The status line that `curl -I` sees; "" when it gets none."""
    done = subprocess.run(
        ["curl", "-sSI", "--max-time", "10", f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True
    )
    return done.stdout.partition("\n")[0]


def refuses(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def answering(text: bytes) -> Iterator[int]:
    """A port on which something says `text` to whoever comes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(text)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


@pytest.mark.parametrize("kind", KINDS)
def test_curl_and_a_client_go_through_until_ctrl_c(ssh_server: SshServer, task: ServerProcess, kind: str) -> None:
    words = (ssh_server.target, task.port, "--kind", kind, "--local-port", free_port())
    with opened(ssh_server, *words) as (process, port, lines):
        assert port == words[-1]
        assert "ready\n" in lines
        assert f"  curl -I http://127.0.0.1:{port}/healthz\n" in lines
        assert f'  RemoteEnv("tcp://127.0.0.1:{port}")\n' in lines
        assert curl(port) == curl(port, "/") == "HTTP/1.1 200 OK"
        with RemoteEnv(f"tcp://127.0.0.1:{port}", token=task.token) as env:
            env.reset(seed=0)
            env.step(0)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIMEOUT_S)
        assert (output, errors, process.returncode) == ("closed\n", "", 0)
        assert refuses(port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_other_ends_leave_nothing_either(ssh_server: SshServer, task: ServerProcess, number: int) -> None:
    with opened(ssh_server, ssh_server.target, task.port, "--kind", "openssh") as (process, port, _):
        process.send_signal(number)
        process.communicate(timeout=TIMEOUT_S)
        wait_until(lambda: refuses(port), "the local port is closed")


def test_the_wanted_port_is_the_remote_one_and_a_taken_one_is_said(ssh_server: SshServer, task: ServerProcess) -> None:
    with opened(ssh_server, ssh_server.target, task.port) as (_, port, lines):
        assert port != task.port  # the server itself has it, on this same machine
        assert lines[0] == f"local port {task.port} cannot be had (taken, or not allowed); using {port}\n"


def test_a_server_that_is_not_ready_is_said_and_the_tunnel_stays(ssh_server: SshServer) -> None:
    server = ServerProcess("tasks_for_tests.misbehaving:OnDemand", {"init": "sleep"})
    try:
        server.wait_listening()
        with opened(ssh_server, ssh_server.target, server.port) as (_, port, lines):
            assert any(line.startswith("not ready: ") for line in lines)
            assert curl(port) == "HTTP/1.1 503 Service Unavailable"
    finally:
        server.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_something_else_that_answers_is_said(ssh_server: SshServer, kind: str) -> None:
    with answering(b"220 mail\r\n") as remote, opened(ssh_server, ssh_server.target, remote, "--kind", kind) as tunnel:
        _, _, lines = tunnel
        assert any("something answers, which is no task server" in line for line in lines)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_when_nothing_listens_there_it_says_so_and_exits_with_1(
    ssh_server: SshServer, kind: str, background: bool
) -> None:
    done = run(ssh_server, ssh_server.target, 1, "--kind", kind, *["--background"] * background)
    assert done.returncode == 1
    assert re.fullmatch(r"error: nothing answers on port 1 of [^?]*\. Is the server running\? .*\n", done.stderr), done
    assert "ready" not in done.stdout


def test_a_port_that_would_lead_to_itself_is_not_taken(ssh_server: SshServer) -> None:
    unused = free_port()
    done = run(ssh_server, ssh_server.target, unused)
    assert f"where port {unused} would lead to itself; using " in done.stdout
    assert done.returncode == 1
    assert f"nothing answers on port {unused}" in done.stderr


def test_a_login_that_fails_is_told_by_its_own_error(ssh_server: SshServer) -> None:
    done = run(ssh_server, "ssh://127.0.0.1:1", 8888, "--background")
    assert done.returncode == 1
    assert "127.0.0.1:1 refused the connection" in done.stderr


def test_impossible_requests_are_refused(ssh_server: SshServer) -> None:
    assert "name the host and its port" in run(ssh_server, "box").stderr
    done = run(ssh_server, "box", "99999")
    assert done.returncode == 2
    assert "allowed are 1 to 65535" in done.stderr


def test_a_tunnel_in_the_background_is_listed_and_stopped(
    ssh_server: SshServer, task: ServerProcess, isolated_home: Path
) -> None:
    folder = isolated_home / "cache" / "remote-env" / "tunnels"
    first = run(ssh_server, ssh_server.target, task.port, "--background")
    second = run(ssh_server, ssh_server.target, task.port, "--background", "--kind", "openssh")
    assert (first.returncode, first.stderr, second.returncode, second.stderr) == (0, "", 0, "")
    ids = [tunnel_id(done.stdout) for done in (first, second)]
    ports = [local_port(done.stdout) for done in (first, second)]
    assert [curl(port) for port in ports] == ["HTTP/1.1 200 OK"] * 2
    records = [json.loads((folder / f"{name}.json").read_text()) for name in ids]
    assert (folder / f"{ids[0]}.json").stat().st_mode & 0o777 == 0o600
    assert os.getsid(records[0]["pid"]) != os.getsid(0)
    assert records[0]["node"] == platform.node()
    listed = run(ssh_server, "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed[1:]] == ids
    assert all(line.endswith(" ready") for line in listed[1:])

    assert run(ssh_server, "--stop", ids[0]).stdout.startswith(f"closed tunnel {ids[0]}")
    assert refuses(ports[0])
    assert not is_alive(records[0]["pid"])
    assert curl(ports[1]) == "HTTP/1.1 200 OK"
    assert f"running: {ids[1]}" in run(ssh_server, "--stop", ids[0]).stderr
    assert run(ssh_server, "--stop", "all").returncode == 0
    assert refuses(ports[1])
    assert run(ssh_server, "--list").stdout == "no tunnel runs in the background on this machine\n"
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_a_tunnel_that_was_killed_is_no_longer_listed_and_its_pid_is_not_hit(
    ssh_server: SshServer, task: ServerProcess, isolated_home: Path
) -> None:
    folder = isolated_home / "cache" / "remote-env" / "tunnels"
    done = run(ssh_server, ssh_server.target, task.port, "--background", "--kind", "openssh")
    path = folder / f"{tunnel_id(done.stdout)}.json"
    record = json.loads(path.read_text())
    os.kill(record["pid"], signal.SIGKILL)
    wait_until(lambda: refuses(record["local_port"]), "ssh has ended with the tunnel's process")
    path.write_text(json.dumps({**record, "pid": os.getpid()}))  # another process has that pid by now: we
    assert "no tunnel runs" in run(ssh_server, "--list").stdout
    assert not path.exists()
    path.write_text(json.dumps({**record, "node": "another-machine"}))  # of a home that machines share: not ours
    assert "no tunnel runs" in run(ssh_server, "--stop", "all").stdout + run(ssh_server, "--list").stdout
    path.unlink()
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


def test_a_tunnel_whose_login_is_cut_opens_again(task: ServerProcess) -> None:
    with SshServer() as server, opened(server, server.target, task.port) as (process, port, _):
        assert curl(port) == "HTTP/1.1 200 OK"
        for pid in server.connection_pids():
            os.kill(pid, signal.SIGKILL)
        assert process.stdout is not None
        while process.stdout.readline() != "open again\n":
            assert process.poll() is None
        assert curl(port) == "HTTP/1.1 200 OK"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=TIMEOUT_S)


def test_passwords_are_asked_before_it_goes_to_the_background() -> None:
    """The process asks through the command; there is no terminal here, so that is checked on the pipe itself."""
    from remote_env.cli import tunnel_background

    asker = tunnel_background._Asker()
    asked = tunnel_background.Prompt("Password:", False, "user@box:22")
    with pytest.MonkeyPatch.context() as patch:
        read, write = os.pipe()
        with os.fdopen(read) as answers, os.fdopen(write, "w") as command:
            print(json.dumps({"answer": "secret"}), file=command, flush=True)
            patch.setattr(sys, "stdin", answers)
            assert asker(asked) == "secret"
    asker.is_answered = False
    assert asker(asked) == "secret"  # when the tunnel is opened again
    assert asker(tunnel_background.Prompt("Code:", True, "user@box:22")) is None
