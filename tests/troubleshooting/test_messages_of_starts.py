"""What is told when a task server or its task does not start, or is not the one that was wanted."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from listeners import listener_that_hangs_up, listener_that_says
from quotes import ROOT, produces
from server_process import BareClient, ServerProcess, serving
from ssh_client import free_port, nothing_is_left, over_ssh
from ssh_server import SshServer

from remote_env import RemoteEnv

__all__ = ["nothing_is_left"]
SLOW = "tasks_for_tests.slow:Slow"
TOKEN = "f" * 64


def start(host: str | None = None, port: int | None = None, **arguments: Any) -> None:
    RemoteEnv(host, port, **arguments).start()


def start_there(server: SshServer, port: int | None = None, **arguments: Any) -> None:
    over_ssh(server, port, **{"env": "CartPole-v1", **arguments}).start()


# What was asked for


@produces("TypeError: RemoteEnv has no argument use_tunnel= (did you mean tunnel=?)")
def test_an_argument_of_another_client() -> None:
    start(use_tunnel=True)


@produces("ConfigError: nothing to run: name the task with env= …")
def test_no_task() -> None:
    start()


@produces("ConfigError: there is no … on this machine to send along")
def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    start(env="CartPole-v1", upload=[tmp_path / "nothing"])


@produces("ConfigError: env=… cannot be pickled (…); pass env='module:function' …")
def test_a_callable_that_holds_what_cannot_travel() -> None:
    lock = threading.Lock()
    start(env=lambda: lock.locked())


# The machine there


@produces("StartError: … did not run our shell script (exit status …): …")
def test_a_login_that_runs_no_commands() -> None:
    with SshServer(extra_config="ForceCommand echo only sftp here >&2; exit 1") as server:
        start_there(server)


@produces("StartError: … our script did not arrive whole: …")
def test_a_login_file_that_reads_what_is_ours() -> None:
    with SshServer(extra_config='ForceCommand read -r line; exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"') as server:
        start_there(server)


@produces("StartError: … cannot take the far end's files: …")
def test_a_cache_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with SshServer(cache=tmp_path / "file" / "cache") as server:
        start_there(server)


# The interpreter


@produces("StartError: … was not found on …; pass python=…")
def test_an_interpreter_that_is_not_there(ssh_server: SshServer) -> None:
    start_there(ssh_server, python="python3.99")


@produces("StartError: … cannot be executed on …; pass python=…")
def test_an_interpreter_that_is_no_program(ssh_server: SshServer, tmp_path: Path) -> None:
    start_there(ssh_server, python=str(tmp_path))


@produces("StartError: python=… cannot be run on this machine (…); …")
def test_an_interpreter_that_is_not_here() -> None:
    start(env="CartPole-v1", python="python3.99")


# What a Python 3.8 does with our launcher, which is written for it; there is none on the machines that test.
_OLD = """\
#!/bin/sh
exec {python} -c 'import runpy, sys
sys.version_info = (3, 8, 10)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


def write_wrapper(path: Path, text: str) -> str:
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o755)
    return str(path)


@produces("StartError: the task server on … did not start: … is Python 3.8.10; the far end needs 3.10 or later: …")
def test_an_old_interpreter(ssh_server: SshServer, tmp_path: Path) -> None:
    start_there(ssh_server, python=write_wrapper(tmp_path / "python", _OLD))


@produces("StartError: the task server on … ended while it started: exit status …; last log lines:…")
def test_a_command_that_ends(ssh_server: SshServer) -> None:
    start_there(ssh_server, python="false")


@produces("StartError: the task server on … ended while it started: killed by signal … (SIG…); last log lines:…")
def test_a_command_that_is_killed(ssh_server: SshServer) -> None:
    start_there(ssh_server, python="kill -SEGV $$ #")


# The server's process says who it is, and ends; the wrapper does not.
_GOES_ON = """\
#!/bin/sh
{python} -c 'import runpy, sys
runpy.run_path(sys.argv[1])["_note_process"](sys.argv[2])' "$@"
sleep 60
"""


@produces("StartError: the task server on … ended while it started, and what … runs beside it did not; …")
def test_a_wrapper_that_goes_on(ssh_server: SshServer, tmp_path: Path) -> None:
    start_there(ssh_server, python=write_wrapper(tmp_path / "python", _GOES_ON))


@produces("StartError: the embedded server …")
def test_a_command_that_ends_here() -> None:
    start(env="CartPole-v1", python="false")


# What is installed


@produces("StartError: … lacks what the task requires: …. Install it there: … -m pip install …")
def test_a_requirement_that_is_missing() -> None:
    start(env="CartPole-v1", requirements=["numpy", "no-such-package-of-ours>=2"])


@produces("StartError: not installed in …: numpy and gymnasium; install it there, or pass python= …")
def test_an_interpreter_without_numpy(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True, timeout=60)
    start(env="CartPole-v1", python=str(tmp_path / "bare" / "bin" / "python"))


@produces("ConfigError: env=…: the interpreter … cannot import …; install it there, or pass upload=[…]…")
def test_a_module_that_is_not_there() -> None:
    start(env="no_such_module_of_ours:make")


@produces("ConfigError: env=<callable …> needs …, which … cannot import; install it there")
def test_a_callable_of_a_module_that_is_not_there(
    ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here_of_ours.py").write_text("def make():\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here_of_ours

    start_there(ssh_server, env=only_here_of_ours.make, python=sys.executable)


def other_python() -> str:
    """An interpreter of another minor version than ours."""
    for path in sorted(ROOT.glob(".venv-far*/bin/python")):
        told = subprocess.run([path, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, timeout=30)
        if told.returncode == 0 and int(told.stdout) != sys.version_info[1]:
            return str(path)
    pytest.skip(f"no interpreter here but Python 3.{sys.version_info[1]} (scripts/prepare.sh makes others)")


@produces("ConfigError: env=<callable …> was pickled by Python …, and … is Python …; …")
def test_a_callable_for_another_python(ssh_server: SshServer) -> None:
    start_there(ssh_server, env=lambda: gymnasium.make("CartPole-v1"), python=other_python())


@produces("ConfigError: the far end cannot make env=…: …")
def test_an_id_that_nobody_has_registered() -> None:
    start(env="NoSuchTaskOfOurs-v0")


# The task


@produces("TaskError: the task could not be made: …: …")
def test_a_task_that_raises_while_it_is_made() -> None:
    start(env=SLOW, env_kwargs={"build": "raise"})


@produces("StartError: the simulator died while starting: it exited with status … while …")
def test_a_task_that_exits_while_it_is_made() -> None:
    start(env=SLOW, env_kwargs={"build": "exit"})


@produces("StartError: the simulator died while starting: it was killed by SIG… while …")
def test_a_task_that_crashes_while_it_is_made() -> None:
    start(env=SLOW, env_kwargs={"build": "segv"})


@produces("DeadlineExceeded: the simulator is not ready in time: still … after … s; its last log line: …")
def test_a_task_that_takes_too_long() -> None:
    start(env=SLOW, env_kwargs={"build": "say:loading the stage;sleep"}, start_timeout_s=2.0)


# Servers that run


@pytest.fixture(scope="module")
def server(isolated_home: Path) -> Iterator[ServerProcess]:
    with serving(idle_timeout_s=300.0) as server:
        yield server


@produces("StartError: the task server on … did not start: cannot listen on …: Address already in use; …")
def test_a_port_that_another_program_has(ssh_server: SshServer) -> None:
    with listener_that_hangs_up() as port:
        start_there(ssh_server, port)


@produces("ConfigError: no task server of yours listens on port … of …; …")
def test_no_server_at_the_port(ssh_server: SshServer) -> None:
    over_ssh(ssh_server, free_port()).start()


@produces("ConfigError: that server serves env=…, and asked for was env=…")
def test_another_task_at_the_port(server: ServerProcess) -> None:
    start(port=server.port, env="Acrobot-v1")


@produces("ConfigError: session=… names no server of yours on …; …")
def test_an_id_that_no_server_has() -> None:
    start(session="3f2a")


@produces("ConnectError: all 1 session(s) of this server are taken (by … since …); …")
def test_a_server_that_somebody_holds(server: ServerProcess) -> None:
    with BareClient(server) as holder:
        holder.shake_hands(session="new", client="ann@desk pid 77")
        start(port=server.port)


@produces("AuthError: the server does not have this token: …")
def test_another_token(server: ServerProcess) -> None:
    start(f"tcp://127.0.0.1:{server.port}", token=TOKEN)


@produces("AuthError: something listens on port …, but its token is unknown: …")
def test_a_server_of_somebody_else() -> None:
    with listener_that_says(b"") as port:
        start(port=port, env="CartPole-v1")


@produces("ConnectError: nothing answers at … (…); is the server running?")
def test_nothing_at_an_address() -> None:
    start(f"tcp://127.0.0.1:{free_port()}", token=TOKEN)


@produces("ConnectError: what listens there does not answer as a task server does (…); …")
def test_another_program_at_an_address() -> None:
    with listener_that_hangs_up() as port:
        start(f"tcp://127.0.0.1:{port}", token=TOKEN)
