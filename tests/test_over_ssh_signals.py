"""A client that ends at any moment leaves nothing on the other machine: by signals, by its exit, by forgetting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from leak_check import is_alive, wait_until
from ssh_client import FAR_PYTHON, ROOT, nothing_is_left, over_ssh, remains, ssh_arguments
from ssh_server import SshServer

from remote_env import RemoteEnv

__all__ = ["nothing_is_left"]
pytestmark = pytest.mark.fault

# Says "here" when it has come to the stage that it is given, and goes on.
_CLIENT = """
import json, sys
from remote_env import LocalFolder, RemoteEnv
target, arguments, stage, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]

def here(text=stage):
    if text.startswith(stage):
        print("here", flush=True)

kwargs = arguments.pop("env_kwargs")
if stage == "uploading":
    kwargs["build"] = ""
    arguments["upload"] = [folder]
env = RemoteEnv(target, env_kwargs=kwargs, on_progress=here, **arguments)
env.reset(seed=0)
if stage == "stepping":
    env.call("plan", "wait:30")
    here()
    env.step(0)
here()
if stage == "idling":
    sys.stdin.read()
if stage == "closing":
    env.close()
if stage == "forgetting":
    env = None
"""
SLOW = {
    "starting": {"python": f"""sh -c 'sleep 20; exec "$0" "$@"' {FAR_PYTHON}"""},
    "building": {"env_kwargs": {"build": "say:building now;wait:20"}},
    "closing": {"env_kwargs": {"close": "wait:0.5"}},
}
# How a program ends by a signal that it may handle: SystemExit(128 + n), but by Ctrl-C as the shells want it.
ENDS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: -signal.SIGINT, signal.SIGKILL: -signal.SIGKILL}


def start_client(
    server: SshServer, stage: str, folder: Path, *, idle_timeout_s: float, resume: str = "auto"
) -> subprocess.Popen[str]:
    arguments: dict[str, Any] = {
        **ssh_arguments(server),
        "env": "tasks_for_tests.slow:Slow",
        "env_kwargs": {},
        "server_env": {"PYTHONPATH": str(ROOT / "tests")},
        "idle_timeout_s": idle_timeout_s,
        "resume": resume,
        **SLOW.get(stage, {}),
    }
    command = [sys.executable, "-W", "ignore", "-c", _CLIENT, server.target, json.dumps(arguments), stage, str(folder)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_here(client: subprocess.Popen[str]) -> None:
    assert client.stdout is not None
    if client.stdout.readline() != "here\n":
        pytest.fail(f"the client did not come so far: {client.communicate()[1]}")


def end_when_here(item: tuple[signal.Signals, subprocess.Popen[str]]) -> None:
    number, client = item
    wait_here(client)
    client.send_signal(number)


@pytest.mark.parametrize("stage", ["connecting", "uploading", "starting", "building", "stepping", "closing"])
def test_a_client_that_is_ended_by_a_signal_leaves_nothing(ssh_server: SshServer, stage: str, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    if stage == "uploading":
        (folder / "random").write_bytes(os.urandom(24 << 20))
    # What handles its signal must end its server itself; after a kill the idle time-out does, once the session has
    # ended: at once, when it is not kept for a client that may come back.
    killed, ended = {"idle_timeout_s": 0.2, "resume": "never"}, {"idle_timeout_s": 600.0}
    clients = {
        number: start_client(ssh_server, stage, folder, **(killed if number == signal.SIGKILL else ended))
        for number in ENDS
    }
    try:
        # Each as soon as it is there: a moment later it may be somewhere else.
        with ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(end_when_here, clients.items()))
        for number, client in clients.items():
            _, told = client.communicate(timeout=30)
            ends = {ENDS[number], 0} if stage == "closing" else {ENDS[number]}  # it may be done before
            assert client.returncode in ends, (number.name, client.returncode, told)
    finally:
        for client in clients.values():
            client.kill()
            client.communicate()
    wait_until(lambda: not list((ssh_server.cache / "remote-env").glob("*/.*")), "no half upload is left")


@pytest.mark.parametrize("stage", ["exiting", "forgetting"])
def test_a_client_that_never_closes_leaves_nothing(ssh_server: SshServer, stage: str, tmp_path: Path) -> None:
    client = start_client(ssh_server, stage, tmp_path, idle_timeout_s=600.0)
    wait_here(client)
    _, told = client.communicate(timeout=30)
    assert client.returncode == 0, told
    assert remains(ssh_server) == []


def test_die_with_me(ssh_server: SshServer, tmp_path: Path) -> None:
    client = start_client(ssh_server, "idling", tmp_path, idle_timeout_s=0.0, resume="never")
    wait_here(client)
    assert remains(ssh_server)
    client.kill()
    client.communicate()  # and nothing is left soon after


def test_a_handler_of_ones_own_is_never_replaced_and_the_defaults_come_back(ssh_server: SshServer) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with over_ssh(ssh_server, env="CartPole-v1") as env:
            assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_DFL, signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGTERM)
            env.reset(seed=0)
        assert heard == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    with RemoteEnv(env="CartPole-v1") as env:
        env.reset()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a local server has a leash


def test_a_client_stopped_for_good_is_given_up_when_its_lease_runs_out(ssh_server: SshServer) -> None:
    arguments = {"env": "CartPole-v1", "idle_timeout_s": 0.2, "lease_timeout_s": 0.9, "resume": "never"}
    arguments |= ssh_arguments(ssh_server)
    code = (
        "import json, sys, time\nfrom remote_env import RemoteEnv\n"
        "env = RemoteEnv(sys.argv[1], **json.loads(sys.argv[2]))\nenv.reset(seed=0)\n"
        "print(env.status()['pid'], flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, ssh_server.target, json.dumps(arguments)]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    client.send_signal(signal.SIGSTOP)
    wait_until(lambda: not is_alive(pid), "the simulator of a client that stands still ends")
    client.kill()
    client.communicate()
