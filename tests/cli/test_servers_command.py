"""`remote-env ps`, `attach`, `logs` and `stop` on real servers, here and over a real sshd."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from leak_check import is_alive, isolated_home, no_leaks, wait_until
from server_process import BareClient, HandServer, ServerProcess, serving
from ssh_client import PATIENCE_S, command_line
from ssh_server import SshServer

sys.path.insert(0, str(Path(__file__).parent))

from command import FAR_PYTHON, login_words, run, start

from remote_env import RemoteEnv, __version__
from remote_env.cli import asking, main
from remote_env.cli.asking import describe_state, is_stale
from remote_env.env import records
from remote_env.env.local_place import LocalPlace
from remote_env.env.server import ServerRecord
from remote_env.protocol import frames
from remote_env.server.folder import record_path

__all__ = ["isolated_home", "no_leaks"]
SLOW = "tasks_for_tests.slow:Slow"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process: its status, what it printed, what it complained of."""

    def said(*words: str) -> tuple[int, str, str]:
        status = main(words)
        return (status, *capsys.readouterr())

    return said


@contextmanager
def warm(server: SshServer, env: str = "CartPole-v1") -> Iterator[ServerRecord]:
    """A server there that somebody left warm; ended at the end."""
    login = {"identity_file": str(server.identity_file), "known_hosts_file": str(server.known_hosts)}
    remote = RemoteEnv(server.target, env=env, keep=True, python=FAR_PYTHON, progress=False, **login)  # type: ignore[arg-type]
    with remote:
        remote.reset(seed=0)
        remote.step(0)
    record = newest(server)
    try:
        yield record
    finally:
        main(["stop", server.target, *login_words(server), "--all"])
        wait_for_end(server)
        assert list(server.cache.glob("remote-env/sessions/*")) == []


def wait_for_end(server: SshServer) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while left := server.processes():
        assert time.monotonic() < deadline, f"left behind there: {[*map(command_line, left)]}"
        time.sleep(0.01)


def newest(server: SshServer) -> ServerRecord:
    """The server there that started last, by its record."""
    paths = server.cache.glob("remote-env/servers/*/*.json")
    records = [ServerRecord.from_plain(json.loads(path.read_text())) for path in paths]
    return max(records, key=lambda record: record.started)


def own(server: ServerProcess) -> ServerRecord:
    """The record of a server on this machine."""
    return next(record for record in LocalPlace().list(0.0) if record.port == server.port)


def read_on(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a program says until its end; pytest's own deadline is ours. `communicate` would lose what we read ahead."""
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdout.read(), process.stderr.read()


# The program


def test_the_installed_program_runs() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"remote-env {__version__}\n", "")


@pytest.mark.parametrize("command", ["bench", "doctor", "ps", "attach", "logs", "stop", "tunnel"])
def test_each_command_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "examples:" in printed
    assert f"remote-env {command}" in printed


def test_a_reader_that_leaves_is_no_error() -> None:
    with serving(SLOW, {"build": "talk:3000"}), start("logs", "local", "-n", "3000") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 141


# ps


def test_ps_lists_this_machine(said: Any) -> None:
    assert said("ps") == (0, "this machine: no task server of yours\n", "")
    with serving() as server:
        record = own(server)
        status, printed, complaints = said("ps")
        assert (status, complaints) == (0, "")
        heading, line = printed.splitlines()
        assert heading.split() == ["SESSION", "TASK", "USER", "STARTED", "LAST", "USE", "STATE", "PORT", "KEPT"]
        assert re.match(
            rf"{re.escape(record.id[:8])} +CartPole-v1 +\S+ +\d\d:\d\d +idle \d+ s +ready +{server.port}$", line
        )
        with RemoteEnv(port=server.port) as env:
            env.reset()
            assert f"held by {record.user}@" in said("ps")[1]


def test_ps_asks_several_hosts_and_one_that_is_not_there_is_a_line(ssh_server: SshServer, said: Any) -> None:
    login = login_words(ssh_server)
    with warm(ssh_server) as record:
        status, printed, complaints = said("ps", ssh_server.target, "ssh://nobody@127.0.0.1:1", "local", *login)
        assert status == 1
        lines = printed.splitlines()
        assert lines[0].startswith("HOST ")
        assert lines[1].startswith(f"{ssh_server.target}  {record.id[:8]}  CartPole-v1")
        assert lines[1].endswith("yes")  # it was left warm
        assert lines[2] == "this machine: no task server of yours"
        assert complaints.startswith("ssh://nobody@127.0.0.1:1: cannot be asked: 127.0.0.1:1 refused the connection")
        status, printed, _ = said("ps", "--json", ssh_server.target, "ssh://nobody@127.0.0.1:1", *login)
    there, nowhere = json.loads(printed)
    assert status == 1
    assert there["error"] is None
    assert [server["id"] for server in there["servers"]] == [record.id]
    assert there["servers"][0]["status"]["kept"] is True
    assert "refused the connection" in nowhere["error"]
    assert record.token not in printed


@pytest.mark.fault
def test_ps_of_a_stopped_sshd_ends_in_time(said: Any) -> None:
    with SshServer() as server:
        os.kill(server.pid, signal.SIGSTOP)
        status, printed, complaints = said("ps", server.target, "local", *login_words(server), "--connect-timeout", "1")
        os.kill(server.pid, signal.SIGCONT)
    assert (status, printed) == (1, "this machine: no task server of yours\n")
    assert "said nothing in time" in complaints


def test_ps_says_what_a_simulator_does(said: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    with serving(SLOW) as server, RemoteEnv(port=server.port) as env:
        env.reset()
        env.call("plan", f"until:{go}")
        stepping = threading.Thread(target=env.step, args=(0,))
        stepping.start()
        wait_until(lambda: "busy: step" in said("ps")[1], "ps shows the step")
        go.touch()
        stepping.join(10)
        env.call("plan", "exit")
        with pytest.raises(Exception, match="simulator"):
            env.step(0)
        assert "dead" in said("ps")[1]
        assert "exited with status 3" in said("logs", "local")[1]


def test_states_are_told_in_words() -> None:
    busy = {"state": "busy", "call": "step", "since_s": 12.0, "steps": 37}
    assert describe_state(busy) == "busy: step, 12 s; 37 steps"
    assert describe_state({"state": "starting", "phase": "importing", "since_s": 200}) == "starting: importing, 3 min"
    assert describe_state({"state": "dead", "why": "killed by\nSIGKILL"}) == "dead: killed by SIGKILL"
    assert is_stale({"state": "no answer"})
    assert not is_stale({"state": "ready", "sessions": 0, "kept": True})


# logs


def test_logs_are_read_while_it_starts_and_while_it_holds_the_interpreter(said: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"
    server = ServerProcess(SLOW, {"build": f"say:assets are loaded;bar:50;repeat:200;until:{go}"}).wait_listening()
    try:
        wait_until(lambda: "repeated" in said("logs", "local")[1], "its lines are there while it starts")
        status, printed, complaints = said("logs", "local", "-n", "1000")
        assert (status, complaints) == (0, "")
        assert "assets are loaded" in printed
        assert printed.count("the stage is dirty") < 5
        assert "starting: building" in said("ps")[1]
        go.touch()
        server.wait_ready()
        with RemoteEnv(port=server.port) as env:
            env.reset()
            env.call("plan", "say:now it holds;hold:1")
            stepping = threading.Thread(target=env.step, args=(0,))
            stepping.start()
            wait_until(lambda: "now it holds" in said("logs", "local", "-n", "5")[1], "its line is there")
            stepping.join(10)
    finally:
        server.stop()


def test_a_server_that_was_started_by_hand_can_be_stopped(said: Any) -> None:
    with HandServer("--env", "CartPole-v1") as server:
        server.wait_listening()
        session = Path(json.loads(record_path(server.port).read_text())["session_folder"]).name
        status, printed, complaints = said("logs", "local")
        assert (status, printed.strip()) == (0, "")
        assert complaints.startswith(f"-- {session}: its log is empty")
        assert said("stop", "local", session[:8])[0] == 0
        assert server.process.wait(20) == 0


def test_following_a_log_ends_with_the_server(ssh_server: SshServer) -> None:
    with warm(ssh_server) as record:
        words = ("logs", "-f", ssh_server.target, record.id[:5], *login_words(ssh_server))
        with start(*words) as process:
            assert process.stdout is not None
            assert "clients of this user find the token" in process.stdout.readline()
            assert main(["stop", ssh_server.target, *login_words(ssh_server), record.id]) == 0
            rest, complaints = read_on(process)
        assert process.returncode == 0
        assert complaints == f"-- {record.id} has ended\n"
        assert "serving CartPole-v1" in rest


@pytest.mark.fault
def test_a_server_that_does_not_answer_is_seen_read_and_ended(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ASK_TIMEOUT_S", 0.4)
    monkeypatch.setattr(records, "GRACE_S", 0.5)
    with serving() as server:
        record = own(server)
        os.kill(record.pid, signal.SIGSTOP)
        assert "no answer" in said("ps")[1]
        status, printed, _ = said("logs", "local")
        assert status == 0
        assert "serving CartPole-v1" in printed  # from the file
        status, printed, _ = said("stop", "local", "--stale")
        assert status == 0
        assert printed.startswith(f"ended {record.id} (CartPole-v1, pid {record.pid}, port {server.port}, up ")
        assert not is_alive(record.pid)


# attach


def test_attach_shows_and_leaves_it_running(ssh_server: SshServer) -> None:
    with warm(ssh_server) as record:
        with start("attach", ssh_server.target, *login_words(ssh_server)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f'RemoteEnv("{ssh_server.target}", session="{record.id}")\n'
            lines = iter(process.stdout.readline, "")
            assert any("-- ready" in line for line in lines)
            process.send_signal(signal.SIGINT)
            rest, complaints = read_on(process)
        assert (process.returncode, complaints) == (0, "")
        assert rest.splitlines()[-1] == f"{record.id} runs on"
        assert is_alive(record.pid)
        with start("attach", ssh_server.target, record.id[:4], *login_words(ssh_server)) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            main(["stop", ssh_server.target, *login_words(ssh_server), record.id])
            rest, complaints = read_on(process)
        assert (process.returncode, complaints) == (0, "")
        assert rest.splitlines()[-1] == f"{record.id} has ended"


def test_nothing_to_attach_to(said: Any) -> None:
    assert said("attach", "local")[2] == "error: no task server of yours runs on this machine; RemoteEnv starts one\n"


# stop


def test_several_servers_have_to_be_named_and_stop_ends_exactly_those(said: Any) -> None:
    with serving() as one, serving() as other:
        first, second = own(one), own(other)
        for command in ("attach", "logs", "stop"):
            status, printed, complaints = said(command, "local")
            assert (status, printed) == (1, "")
            assert complaints.startswith("error: 2 servers of yours run there; name one: there run: ")
            assert first.id in complaints
            assert second.id in complaints
        assert "no session there begins with 'zz'" in said("logs", "local", "zz")[2]
        status, printed, _ = said("stop", "local", first.id[:-1])
        assert status == 0
        assert printed.startswith(f"ended {first.id} (CartPole-v1, pid {first.pid}, ")
        assert not is_alive(first.pid)
        assert is_alive(second.pid)
        status, _, complaints = said("stop", "local", first.id)
        assert status == 1
        assert second.id in complaints  # what runs there
        assert is_alive(second.pid)


def test_a_held_or_kept_server_is_not_stale(said: Any) -> None:
    with serving() as held, serving() as kept, serving() as left, RemoteEnv(port=held.port) as env:
        env.reset()
        keep(kept)
        doomed = own(left)
        status, printed, _ = said("stop", "local", "--stale")
        assert status == 0
        assert [line.split()[1] for line in printed.splitlines()] == [doomed.id]
        assert {record.port for record in LocalPlace().list(0.0)} == {held.port, kept.port}
        status, printed, _ = said("stop", "local", "--stale")
        assert status == 1
        assert printed.startswith("nothing to end on this machine; there run: ")
        env.step(env.action_space.sample())


def keep(server: ServerProcess) -> None:
    """Mark a server as left warm on purpose."""
    with BareClient(server) as client:
        client.shake_hands()
        client.ask(frames.KEEP, kept=True)


def test_all_are_ended_over_ssh(ssh_server: SshServer, said: Any) -> None:
    login = login_words(ssh_server)
    with warm(ssh_server) as one, warm(ssh_server, "Acrobot-v1") as other:
        status, printed, complaints = said("stop", ssh_server.target, "--all", *login)
        assert (status, complaints) == (0, "")
        assert {line.split()[1] for line in printed.splitlines()} == {one.id, other.id}
        assert not is_alive(one.pid)
        assert not is_alive(other.pid)
        status, printed, _ = said("stop", ssh_server.target, *login)
        assert (status, printed) == (1, f"nothing to end on {ssh_server.target}; no server of yours runs there\n")


@pytest.mark.fault
def test_a_record_of_another_process_ends_nobody(said: Any) -> None:
    """The pid of a dead server belongs to somebody else by now: its start time tells."""
    with serving() as server:
        record = own(server)
        path = records.record_path(server.port).with_name("1.json")
        false = {"port": 1, "pid": os.getpid(), "start_time": "1", "session_folder": "/nowhere/sessions/x"}
        path.touch(0o600)  # else it is believed by nobody
        path.write_text(json.dumps({**record.to_plain(), **false}))
        status, printed, _ = said("stop", "local", "--all")
        assert (status, printed.count("CartPole-v1")) == (0, 1)
        assert not path.exists()
