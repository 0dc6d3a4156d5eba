"""`remote-env tunnel` as a person runs it: in this process, or as one of its own; a real sshd, real servers, curl."""

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
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from leak_check import children, is_alive, isolated_home, no_leaks, wait_until
from server_process import ServerProcess, serving
from ssh_server import SshServer

sys.path.insert(0, str(Path(__file__).parent))

import command
from command import login_words

from remote_env import RemoteEnv
from remote_env.cli import main, tunnel_background, tunnel_holder
from remote_env.cli.health import Health
from remote_env.cli.tunnel_background import start_in_background
from remote_env.cli.tunnel_holder import Ending, Request, TunnelHolder
from remote_env.cli.tunnel_records import STARTING_S
from remote_env.env.places import PlaceOptions
from remote_env.ssh.tunnel import KINDS

__all__ = ["isolated_home", "no_leaks"]
TIMEOUT_S = 30.0
NO_TUNNEL = "no tunnel runs in the background on this machine\n"


@pytest.fixture(scope="module")
def task() -> Iterator[ServerProcess]:
    with serving(idle_timeout_s=600.0) as server:
        yield server


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `remote-env tunnel` in this process: its status, what it printed, what it complained of."""

    def said(*words: object) -> tuple[int, str, str]:
        status = main(["tunnel", *map(str, words)])
        return (status, *capsys.readouterr())

    return said


@pytest.fixture
def folder(isolated_home: Path) -> Iterator[Path]:
    """Where the records and logs of tunnels in the background lie; nothing is in it at the end."""
    folder = isolated_home / "cache" / "remote-env" / "tunnels"
    before = children()
    yield folder
    for pid in children() - before:  # they outlive a command, which is this process here
        os.waitpid(pid, 0)
    assert list(folder.iterdir()) == []


def options(server: SshServer) -> PlaceOptions:
    return PlaceOptions(
        identity_file=str(server.identity_file),
        known_hosts_file=str(server.known_hosts),
        ssh_config_file=str(server.config),
    )


def start(server: SshServer, *words: object) -> subprocess.Popen[str]:
    """`remote-env tunnel words…` with the login to the test's sshd."""
    return command.start("tunnel", *words, *login_words(server))


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
        assert f"  remote-env eval -m localhost:{port}\n" in lines
        assert any(f"/policies/{task.port}.token')" in line for line in lines)
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


@pytest.fixture
def visited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tunnels of this process end as soon as they are open; what curl got through each until then."""
    got: list[str] = []

    def visit(holder: TunnelHolder, *_: object) -> None:
        got.append(curl(holder.port))

    monkeypatch.setattr(TunnelHolder, "hold", visit)
    return got


def test_the_wanted_port_is_the_remote_one_and_a_taken_one_is_said(
    ssh_server: SshServer, task: ServerProcess, said: Any, visited: list[str]
) -> None:
    status, printed, _ = said(ssh_server.target, task.port, *login_words(ssh_server))
    port = local_port(printed)
    assert status == 0
    assert port != task.port  # the server itself has it, on this same machine
    assert printed.startswith(f"local port {task.port} cannot be had (taken, or not allowed); using {port}\n")
    assert visited == ["HTTP/1.1 200 OK"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_that_is_taken_while_the_login_is_made_is_another(
    ssh_server: SshServer, task: ServerProcess, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(tunnel_holder, "_choose_port", lambda request, *_: request.local_port)
    request = Request(ssh_server.target, task.port, task.port, kind)
    with closing(TunnelHolder(request, options(ssh_server), heard.append)) as holder:
        assert holder.port != task.port
        assert heard == [f"local port {task.port} was taken meanwhile; using {holder.port}"]
        assert curl(holder.port) == "HTTP/1.1 200 OK"


def test_a_server_that_is_not_ready_is_said_and_the_tunnel_stays(
    ssh_server: SshServer, said: Any, visited: list[str]
) -> None:
    server = ServerProcess("tasks_for_tests.misbehaving:OnDemand", {"init": "sleep"})
    try:
        server.wait_listening()
        status, printed, _ = said(ssh_server.target, server.port, *login_words(ssh_server))
        assert (status, visited) == (0, ["HTTP/1.1 503 Service Unavailable"])
        assert any(line.startswith("not ready: ") for line in printed.splitlines())
    finally:
        server.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_something_else_that_answers_is_said(ssh_server: SshServer, kind: str, said: Any, visited: list[str]) -> None:
    with answering(b"220 mail\r\n") as remote:
        status, printed, _ = said(ssh_server.target, remote, "--kind", kind, *login_words(ssh_server))
    assert (status, len(visited)) == (0, 1)
    assert "something answers, which is no task server" in printed


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_when_nothing_listens_there_it_says_so_and_exits_with_1(
    ssh_server: SshServer, kind: str, background: bool, said: Any
) -> None:
    words = (ssh_server.target, 1, "--kind", kind, *["--background"] * background)
    status, printed, complaints = said(*words, *login_words(ssh_server))
    assert status == 1
    assert re.fullmatch(r"error: nothing answers on port 1 of [^?]*\. Is the server running\? .*\n", complaints)
    assert "ready" not in printed


def test_a_port_that_would_lead_to_itself_is_not_taken(ssh_server: SshServer, said: Any) -> None:
    unused = free_port()
    status, printed, complaints = said(ssh_server.target, unused, *login_words(ssh_server))
    assert f"where port {unused} would lead to itself; using " in printed
    assert status == 1
    assert f"nothing answers on port {unused}" in complaints


def test_a_login_that_fails_is_told_by_its_own_error(said: Any) -> None:
    status, _, complaints = said("ssh://127.0.0.1:1", 8888, "--background")
    assert status == 1
    assert "127.0.0.1:1 refused the connection" in complaints


def test_this_machine_needs_no_tunnel(said: Any) -> None:
    assert said("local", 8888) == (1, "", "error: no tunnel leads to this machine: its ports are here already\n")


# In the background


def test_a_tunnel_in_the_background_is_listed_and_stopped(
    ssh_server: SshServer, task: ServerProcess, folder: Path, said: Any
) -> None:
    words = (ssh_server.target, task.port, "--background", *login_words(ssh_server))
    with start(*(ssh_server, *words[:3])) as process:  # as a person does
        first, errors = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, errors) == (0, "")
    status, second, errors = said(*words, "--kind", "openssh")
    assert (status, errors) == (0, "")
    ids, ports = [tunnel_id(text) for text in (first, second)], [local_port(text) for text in (first, second)]
    assert [curl(port) for port in ports] == ["HTTP/1.1 200 OK"] * 2
    records = [json.loads((folder / f"{name}.json").read_text()) for name in ids]
    assert (folder / f"{ids[0]}.json").stat().st_mode & 0o777 == 0o600
    assert os.getsid(records[0]["pid"]) != os.getsid(0)
    assert records[0]["node"] == platform.node()
    listed = said("--list")[1].splitlines()
    assert [line.split()[0] for line in listed[1:]] == ids
    assert all(line.endswith(" ready") for line in listed[1:])

    assert said("--stop", ids[0])[1].startswith(f"closed tunnel {ids[0]}")
    assert refuses(ports[0])
    assert not is_alive(records[0]["pid"])
    assert curl(ports[1]) == "HTTP/1.1 200 OK"
    assert f"running: {ids[1]}" in said("--stop", ids[0])[2]
    assert said("--stop", "all")[0] == 0
    assert refuses(ports[1])
    assert said("--list") == (0, NO_TUNNEL, "")


@pytest.mark.fault
def test_a_tunnel_that_was_killed_is_no_longer_listed_and_its_pid_is_not_hit(
    ssh_server: SshServer, task: ServerProcess, folder: Path, said: Any
) -> None:
    words = (ssh_server.target, task.port, "--background", "--kind", "openssh", *login_words(ssh_server))
    path = folder / f"{tunnel_id(said(*words)[1])}.json"
    record = json.loads(path.read_text())
    os.kill(record["pid"], signal.SIGKILL)
    wait_until(lambda: refuses(record["local_port"]), "ssh has ended with the tunnel's process")
    path.write_text(json.dumps({**record, "pid": os.getpid()}))  # another process has that pid by now: we
    assert said("--list")[1] == NO_TUNNEL
    assert not path.exists()
    path.write_text(json.dumps({**record, "node": "another-machine"}))  # of a home that machines share: not ours
    assert said("--stop", "all")[1] + said("--list")[1] == NO_TUNNEL
    path.unlink()


@pytest.mark.fault
def test_two_that_want_the_same_port_at_once_get_one_each(
    ssh_server: SshServer, task: ServerProcess, folder: Path, said: Any
) -> None:
    request = Request(ssh_server.target, task.port, free_port(), "channel")
    with ThreadPoolExecutor(2) as pool:
        opening = [pool.submit(start_in_background, request, options(ssh_server), lambda _: None) for _ in range(2)]
        opened = [each.result(TIMEOUT_S) for each in opening]
    ports = {tunnel["port"] for tunnel in opened}
    assert len(ports) == 2
    assert request.local_port in ports
    assert [curl(port) for port in ports] == ["HTTP/1.1 200 OK"] * 2
    assert said("--stop", "all")[1].count("closed tunnel") == 2


@pytest.mark.fault
def test_what_is_no_record_of_ours_harms_nobody(folder: Path, said: Any, tmp_path: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    words = {"host": "box", "kind": "channel", "node": platform.node(), "start_time": ""}
    good = {**words, "remote_port": 1, "local_port": 1, "pid": os.getpid(), "started": 1.0}
    (tmp_path / "precious.json").touch()
    changes: list[dict[str, Any]] = [
        *({"pid": pid} for pid in (-1, 0, 1, "self", None, 2.5)),
        *({"id": name} for name in (os.path.relpath(tmp_path / "precious", folder), None, "bbbbbb")),
        *({"started": "yesterday"}, {"local_port": "x"}, {"more": 1}),
    ]
    for number, text in enumerate(("", "{", "null", "[]", "17", '"text"', "\0", "{}")):
        (folder / f"text{number}.json").write_text(text)
    for number, change in enumerate(changes):
        path = folder / f"odd{number}.json"
        path.write_text(json.dumps({**good, "id": path.stem, **change}))
    assert said("--list") == (0, NO_TUNNEL, "")
    assert said("--stop", "all") == (0, "", "")
    assert (tmp_path / "precious.json").exists()
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.fault
def test_the_log_of_a_start_that_was_killed_goes_later(folder: Path, said: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    old, new = folder / "000001.log", folder / "000002.log"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - STARTING_S - 1,) * 2)
    assert said("--list")[1] == NO_TUNNEL
    assert list(folder.iterdir()) == [new]  # its tunnel may be about to open
    new.unlink()


@pytest.mark.fault
def test_where_no_file_can_be_made_the_background_is_refused(
    ssh_server: SshServer, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert said("--list") == (0, NO_TUNNEL, "")
    status, printed, complaints = said(ssh_server.target, 22, "--background", *login_words(ssh_server))
    assert (status, printed) == (1, "")
    assert "where none can be written: Not a directory; free space, set XDG_CACHE_HOME" in complaints


@pytest.mark.fault
def test_a_process_that_cannot_even_begin_is_told_with_its_words(
    folder: Path, said: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexec 0<&-\necho 'no module named remote_env' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    status, _, complaints = said("box", 22, "--background")
    assert status == 1
    assert "the tunnel's process ended with status 3 before it was open:\nno module named remote_env" in complaints


# Held


def test_each_answer_is_shown_and_a_change_is_said(
    ssh_server: SshServer, task: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["not ready: building for 9 s", "not ready: building for 19 s", "ready", "ready"])
    said: list[str] = []
    shown: list[str] = []
    ending = Ending()
    monkeypatch.setattr(tunnel_holder, "LOOK_S", 0.01)
    monkeypatch.setattr(tunnel_holder, "HEALTH_S", 0.0)
    request = Request(ssh_server.target, task.port, free_port(), "channel")
    with closing(TunnelHolder(request, options(ssh_server), said.append)) as holder:

        def look(*_: object) -> Health:
            words = next(answers, "")
            ending.is_asked = not words
            return Health("", words or "ready")

        monkeypatch.setattr(tunnel_holder, "check_health", look)
        holder.hold(ending, said.append, shown.append)
    assert said == ["not ready: building for 9 s", "ready"]
    assert shown == ["not ready: building for 9 s", "not ready: building for 19 s", *["ready"] * 3]


# Cut


@pytest.mark.fault
@pytest.mark.parametrize("kind", KINDS)
def test_a_tunnel_whose_login_is_cut_opens_again_and_again(
    task: ServerProcess, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_holder, "LOOK_S", 0.05)
    monkeypatch.setattr(tunnel_holder, "FIRST_PAUSE_S", 0.1)
    heard: list[str] = []
    ending = Ending()
    with SshServer() as server:
        request = Request(server.target, task.port, free_port(), kind)
        with closing(TunnelHolder(request, options(server), heard.append)) as holder:
            holding = threading.Thread(target=holder.hold, args=(ending, heard.append))
            holding.start()
            for times in (1, 2):
                for pid in server.connection_pids():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                wait_until(lambda times=times: heard.count("open again") == times, "it is open again", TIMEOUT_S)
                assert curl(request.local_port) == "HTTP/1.1 200 OK"
            ending.is_asked = True
            holding.join(TIMEOUT_S)
    assert any(line.startswith("the SSH connection ended") for line in heard)


def test_passwords_are_asked_before_it_goes_to_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process asks through the command; there is no terminal here, so that is checked on the pipe itself."""
    asker = tunnel_background._Asker()
    password = tunnel_background.Prompt("password", "Password:", False, "user@box:22")
    code = tunnel_background.Prompt("keyboard-interactive", "Code:", True, "user@box:22")
    read, write = os.pipe()
    with os.fdopen(read) as answers, os.fdopen(write, "w") as command:
        monkeypatch.setattr(sys, "stdin", answers)
        for prompt in (password, code):
            print(json.dumps({"answer": f"my {prompt.kind}"}), file=command, flush=True)
            assert asker(prompt) == f"my {prompt.kind}"
    asker.is_answered = False
    assert asker(password) == "my password"  # when the tunnel is opened again
    assert asker(code) is None  # each is good for one login
