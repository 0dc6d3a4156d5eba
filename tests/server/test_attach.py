"""Servers that run already: found by address or port, shared, left as they were; and task_server.py by hand."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from leak_check import is_alive, marked_processes, wait_until
from server_process import ROOT, HandServer, ServerProcess, serving

from remote_env import RemoteEnv
from remote_env.errors import AuthError, ConfigError, ConnectError, InputError, ProtocolError
from remote_env.server.folder import record_path

TASK = "tasks_for_tests.misbehaving:OnDemand"
ACTION = np.zeros(2, np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(TASK) as running:
        yield running


def sessions_of(server: ServerProcess) -> str:
    return next(line for line in server.http("/metrics").splitlines() if line.startswith("remote_env_sessions "))


@pytest.fixture(autouse=True)
def stays_up(server: ServerProcess) -> Iterator[None]:
    yield
    assert server.process.poll() is None
    wait_until(lambda: sessions_of(server).endswith(" 0"), "every session ends")


def test_attach_by_address(server: ServerProcess) -> None:
    with RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=server.token) as env:
        env.reset()
        assert env.remote_spec["id"] == "OnDemand"
        assert env.step(ACTION)[1] == 1.0


def test_attach_by_port_finds_the_token(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with RemoteEnv(port=server.port) as env:
        env.reset()
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    with pytest.raises(AuthError, match=r"token is unknown.*REMOTE_ENV_TOKEN"):
        RemoteEnv(port=server.port).start()
    monkeypatch.setenv("REMOTE_ENV_TOKEN", server.token)
    with RemoteEnv(port=server.port) as env:
        env.reset()


def test_attach_with_the_same_task_named(server: ServerProcess) -> None:
    with RemoteEnv(port=server.port, env=TASK) as env:
        env.reset()


@pytest.mark.parametrize(
    "arguments", [{"env": "CartPole-v1"}, {"env": TASK, "env_kwargs": {"init": "x"}}, {"env": TASK, "simulator": "a:b"}]
)
def test_attach_with_another_task_is_refused(server: ServerProcess, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"serves env='tasks_for_tests\.misbehaving:OnDemand'.*leave env= out"):
        RemoteEnv(port=server.port, **arguments).start()


def test_the_order_of_arguments_is_no_difference() -> None:
    kwargs = {"with_text": False, "size": 8}
    with (
        serving("tasks_for_tests.misbehaving:Nested", kwargs) as own,
        RemoteEnv(
            port=own.port, env="tasks_for_tests.misbehaving:Nested", env_kwargs=dict(reversed(kwargs.items()))
        ) as env,
    ):
        assert env.observation_space["image"].shape == (8, 8, 3)


@pytest.mark.parametrize("token", ["0" * 64, "", "ü" * 40])
def test_a_wrong_token(server: ServerProcess, token: str) -> None:
    env = RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=token or "1" * 64)
    with pytest.raises(AuthError, match="does not have this token"):
        env.start()
    assert server.token not in server.read_log()


def test_the_warm_simulator_serves_the_next_session(server: ServerProcess) -> None:
    with RemoteEnv(port=server.port) as env:
        env.reset()
        env.step(ACTION)
        pid, steps = env.call("pid"), env.call("total_steps")
    with RemoteEnv(port=server.port) as env:
        assert env.call("pid") == pid
        for early in (lambda: env.step(ACTION), env.render, env.get_state):
            with pytest.raises(InputError, match=r"call reset\(\) before"):
                early()
        env.reset()
        assert env.step(ACTION)[0][1] == steps + 1
        env.step(ACTION)
    assert is_alive(pid)


def test_a_busy_server_names_its_holder(server: ServerProcess) -> None:
    with (
        RemoteEnv(port=server.port),
        pytest.raises(ConnectError, match=rf"taken \(by .* pid {os.getpid()} since") as caught,
    ):
        RemoteEnv(port=server.port).start()
    assert type(caught.value) is ConnectError


def test_two_sessions_have_two_simulators() -> None:
    with serving(TASK, max_sessions=2) as own:
        with RemoteEnv(port=own.port) as one, RemoteEnv(port=own.port) as other:
            one.reset()
            other.reset()
            assert one.call("pid") != other.call("pid")
            for _ in range(3):
                one.step(ACTION)
            assert (one.call("total_steps"), other.call("total_steps")) == (3, 0)
            one.call("plan", "kill")
            with pytest.raises(Exception, match="SIGKILL"):
                one.step(ACTION)
            other.step(ACTION)  # another's death is no matter
            one.reset()
            with pytest.raises(ConnectError, match="all 2 session"):
                RemoteEnv(port=own.port).start()
        wait_until(lambda: sessions_of(own).endswith(" 0"), "both end")


def test_a_client_killed_in_mid_step_frees_the_server(server: ServerProcess, isolated_home: Path) -> None:
    gate = isolated_home / "gate"
    code = (
        "import sys, numpy as np; from remote_env import RemoteEnv\n"
        "env = RemoteEnv(port=int(sys.argv[1])); env.reset(); env.call('plan', 'until:' + sys.argv[2])\n"
        "env.step(np.zeros(2, np.float32))\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code, str(server.port), str(gate)], cwd=ROOT)
    wait_until(lambda: '"busy"' in _states(server), "the step runs", 20)
    client.kill()
    client.wait()
    wait_until(lambda: "is cut off, and kept for 90 s" in server.read_log(), "the server notices")
    gate.touch()
    # Which sees that nobody comes back for that session; the late reply of the dead client's step goes nowhere.
    with RemoteEnv(port=server.port) as env:
        env.reset()
        before = env.call("total_steps")
        assert env.step(ACTION)[0].tolist() == [0.0, before + 1]
    gate.unlink()


def _states(server: ServerProcess) -> str:
    from server_process import BareClient

    from remote_env.protocol import frames
    from remote_env.protocol.handshake import pack_link

    with BareClient(server) as client:
        client.shake_hands(session=None)
        client.send(pack_link(frames.STATUS, {}))
        return json.dumps(client.recv()[1])


# Nothing there, or something else


def test_nothing_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"no task server of yours listens on port {port} of local; name the task"):
        RemoteEnv(port=port).start()
    with pytest.raises(ConnectError, match=r"nothing answers at 127\.0\.0\.1"):
        RemoteEnv(f"tcp://127.0.0.1:{port}").start()
    with RemoteEnv(port=port, env="CartPole-v1") as env:  # so it starts one there
        env.reset()
        with pytest.raises(ConnectError, match="taken"):
            RemoteEnv(port=port).start()


@contextmanager
def listener(answer: bytes | None) -> Iterator[int]:
    """Something that is no task server: it says `answer` and closes, or says nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = sock.accept()
                except OSError:
                    return
                if answer is None:
                    held.append(connection)
                    continue
                held.append(connection)
                with contextlib.suppress(OSError):  # whoever only knocked is gone already
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            sock.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for connection in held:
                connection.close()


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"", ConnectError, "does not answer as a task server does"),
        (None, ConnectError, "does not answer as a task server does"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 40, ProtocolError, "not a remote-env frame"),
        (b"SSH-2.0-x\r\n", ConnectError, "does not answer"),
    ],
)
def test_something_else_listens(
    answer: bytes | None, kind: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remote_env.session import control

    monkeypatch.setattr(control, "CONTROL_TIMEOUT_S", 0.3)
    with listener(answer) as port:
        with pytest.raises(kind, match=text):
            RemoteEnv(f"tcp://127.0.0.1:{port}", token="t" * 64).start()
        with pytest.raises(AuthError, match="token is unknown"):
            RemoteEnv(port=port, env="CartPole-v1").start()


# By hand


def test_by_hand_with_its_own_token() -> None:
    with HandServer("--env", "CartPole-v1", "--kwargs", '{"sutton_barto_reward": true}') as server:
        server.wait_listening()
        with RemoteEnv(port=server.port) as env:
            env.reset(seed=1)
            assert env.step(0)[1] == 0.0
        record = record_path(server.port)
        token = json.loads(record.read_text())["token"]
        assert server.process.poll() is None
    assert server.process.returncode == 0
    assert str(record) in server.output
    assert token not in server.output
    assert not record.exists()


def test_by_hand_with_a_given_token() -> None:
    token = secrets.token_hex(32)
    with HandServer("--env", "CartPole-v1", REMOTE_ENV_TOKEN=token) as server:
        server.wait_listening()
        with RemoteEnv(f"tcp://127.0.0.1:{server.port}", token=token) as env:
            env.reset()
        for pid in marked_processes():
            assert token.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert token not in server.output


def test_by_hand_what_cannot_be_served_is_said() -> None:
    with contextlib.ExitStack() as opened:
        refused = [
            (opened.enter_context(HandServer(*arguments, **environment)), text)
            for arguments, environment, text in (
                (("--env", "NoSuchTask-v0"), {}, "NoSuchTask"),
                ((), {}, "name a task with --env"),
                (("--env", "CartPole-v1", "--host", "0.0.0.0"), {}, "refusing to listen on 0.0.0.0"),
                (("--env", "CartPole-v1"), {"REMOTE_ENV_TOKEN": "short"}, "REMOTE_ENV_TOKEN"),
            )
        ]
        for server, _ in refused:
            assert server.process.wait(20) == 1
    for server, text in refused:
        assert text in server.output


def test_by_hand_beyond_loopback_when_told() -> None:
    with HandServer("--env", "CartPole-v1", "--host", "0.0.0.0", "--insecure") as server:
        server.wait_listening()
        with RemoteEnv(port=server.port) as env:
            env.reset()


def test_a_closed_terminal_does_not_end_it_badly() -> None:
    with HandServer("--env", "CartPole-v1") as server:
        server.wait_listening()
        server.process.stdout.close()
        with RemoteEnv(port=server.port) as env:
            env.reset()
            env.step(0)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(15)
        server.process.stdout = None
    assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--kwargs", "[1]"], "give a JSON object"),
        (["--kwargs", "{bad"], "not JSON"),
        (["--port", "80000"], "from 1 to 65535"),
        (["--max-sessions", "0"], "at least 1"),
    ],
)
def test_the_server_program_checks_its_flags_before_it_makes_anything(flags: list[str], says: str) -> None:
    command = [sys.executable, str(ROOT / "servers" / "task_server.py"), "--env", "CartPole-v1", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert says in done.stderr


def test_steps_and_resets_are_counted_as_they_end() -> None:
    with RemoteEnv(env="CartPole-v1") as env:
        env.reset()
        for _ in range(3):
            env.step(0)
        status = env.status()
        assert (status["steps"], status["resets"]) == (3, 1)
