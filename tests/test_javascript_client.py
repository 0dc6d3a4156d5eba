"""examples/minimal_client.mjs, written from docs/protocol.md alone, against real servers and over links that break."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import gymnasium
import numpy as np
import pytest
from leak_check import isolated_home, no_leaks, wait_until
from server_process import ServerProcess

from remote_env.tasks.aloha import AlohaEnv
from remote_env.testing import CountingEnv, FaultProxy

__all__ = ["isolated_home", "no_leaks"]

NODE = shutil.which("node")
ROOT = Path(__file__).resolve().parents[1]
CLIENT = ROOT / "examples" / "minimal_client.mjs"
COUNTING = {"image": True, "episode_length": 4}
LIMIT_S = 60.0
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed (apt-get install nodejs, 18 or later)")


@pytest.fixture(scope="module")
def servers(isolated_home: Path) -> Iterator[dict[str, ServerProcess]]:
    """All servers of this file, started at once."""
    started = {
        "cartpole": ServerProcess(),
        "aloha": ServerProcess("remote_env/AlohaTransferCube-v0"),
        "counting": ServerProcess("remote_env.testing.counting:make", COUNTING),
        "cut": ServerProcess("remote_env.testing.counting:make", COUNTING),
    }
    try:
        yield {name: server.wait_listening().wait_ready() for name, server in started.items()}
    finally:
        for server in started.values():
            server.stop()


def start(token: str, port: int, *arguments: str) -> subprocess.Popen[str]:
    """The client as a process."""
    return subprocess.Popen(
        [str(NODE), str(CLIENT), f"127.0.0.1:{port}", *arguments],
        env={**os.environ, "REMOTE_ENV_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(client: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit status, what it prints from here on, and what it complains of."""
    with client:
        assert client.stdout is not None
        assert client.stderr is not None
        printed, complaints = (
            client.stdout.read(),
            client.stderr.read(),
        )  # communicate() loses what a readline() read ahead
        return client.wait(LIMIT_S), printed, complaints


def run(server: ServerProcess, *arguments: str, token: str | None = None) -> tuple[int, str, str]:
    """The same of a whole run."""
    return finish(start(token or server.token, server.port, *arguments))


def printed_form(value: Any) -> Any:
    """A local value as the client prints it."""
    if isinstance(value, dict):
        return {key: printed_form(part) for key, part in value.items()}
    if isinstance(value, np.ndarray) and value.size > 64:
        return {
            "dtype": str(value.dtype),
            "shape": list(value.shape),
            "sha256": hashlib.sha256(value.tobytes()).hexdigest(),
        }
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def compare_with_local(printed: str, env: gymnasium.Env[Any, Any], seed: int) -> int:
    """Do locally what the client did; every number that it printed is the local one. How many episodes it began."""
    replies = [json.loads(line) for line in printed.splitlines()]
    resets = 0
    for reply in replies:
        if reply["reply"] == "RESET":
            observation, info = env.reset(seed=seed if resets == 0 else None)
            resets += 1
        elif reply["reply"] == "STEP":
            action = np.asarray(reply["action"], env.action_space.dtype)
            observation, reward, terminated, truncated, info = env.step(action if action.ndim else action.item())
            assert math.isclose(reply["reward"], float(reward), rel_tol=0, abs_tol=0)
            assert (reply["terminated"], reply["truncated"]) == (terminated, truncated)
        else:
            continue
        assert reply["observation"] == printed_form(observation)
        assert reply.get("info", {}) == printed_form(info)
    numbers = [reply["request"] for reply in replies[1:]]
    assert numbers == list(range(1, len(replies)))
    return resets


@pytest.mark.parametrize("names", [("golden_frames", "golden_resuming_frames"), ("golden_batch_frames",)])
def test_its_functions_agree_with_the_recorded_conversations(names: tuple[str, ...]) -> None:
    paths = [ROOT / "tests" / "data" / f"{name}.json" for name in names]
    command = [str(NODE), str(ROOT / "tests" / "javascript_golden.mjs"), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["frames"] == sum(len(json.loads(path.read_text())) for path in paths)
    if "golden_frames" in names:  # the other one holds no handshake, and requests of batches
        assert min(counts.values()) > 5, counts


def test_cartpole_is_the_local_one_over_several_episodes(servers: dict[str, ServerProcess]) -> None:
    status, printed, complaints = run(servers["cartpole"], "--seed", "5", "--steps", "40")
    assert (status, complaints) == (0, "")
    with gymnasium.make("CartPole-v1") as env:
        assert compare_with_local(printed, env, 5) >= 2
    refused = [reply for reply in map(json.loads, printed.splitlines()) if reply["reply"] == "ERROR"]
    assert [(reply["of"], reply["kind"]) for reply in refused] == [("GET_STATE", "Unsupported")] * 2


def test_aloha_and_its_state_by_name_are_the_local_ones(servers: dict[str, ServerProcess]) -> None:
    status, printed, complaints = run(servers["aloha"], "--seed", "1", "--steps", "5")
    assert (status, complaints) == (0, "")
    with AlohaEnv("transfer_cube") as env:
        assert compare_with_local(printed, env, 1) == 1
        state = env.get_scene_state()
    last = json.loads(printed.splitlines()[-1])["state"]
    assert last["source"] == state.layout.source
    assert last["time"] == state.time_s
    assert last["entities"] == [
        {"name": entity.name, "joints": list(entity.joint_names), "links": list(entity.link_names)}
        for entity in state.layout.entities
    ]
    assert last["vector"] == printed_form(state.values)


@pytest.mark.fault
def test_over_a_link_that_breaks_it_prints_what_it_prints_over_one_that_does_not(
    servers: dict[str, ServerProcess],
) -> None:
    arguments = ("--seed", "3", "--steps", "9", "--state")
    status, printed, complaints = run(servers["counting"], *arguments)
    assert (status, complaints) == (0, "")
    with CountingEnv(**COUNTING) as env:  # its infos carry a digest of every call that it has had
        assert compare_with_local(printed, env, 3) == 3

    server = servers["cut"]
    with FaultProxy(("127.0.0.1", server.port), seed=1) as proxy:
        client = start(server.token, proxy.address[1], *arguments)
        first = wait_for_line(client.stdout)
        proxy.cut_every(2e6)
        status, rest, complaints = finish(client)
        assert status == 0, complaints
        assert first + rest == printed
        assert proxy.cuts >= 2
        assert "resumed with request" in complaints
    wait_until(lambda: "remote_env_sessions 0" in server.http("/metrics"), "the session has ended")


def wait_for_line(stream: IO[str] | None) -> str:
    assert stream is not None
    line = stream.readline()
    assert line, "the client printed nothing"
    return line


def test_another_token_is_refused_before_ours_is_proved(servers: dict[str, ServerProcess]) -> None:
    status, printed, complaints = run(servers["cartpole"], token="f" * 64)
    assert (status, printed) == (1, "")
    assert complaints.startswith("minimal_client: the server's token is another than ours: pass the file")


def test_where_nobody_listens_it_says_how_to_start_a_server() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        status, printed, complaints = finish(start("f" * 64, sock.getsockname()[1]))
    assert (status, printed) == (1, "")
    assert "ECONNREFUSED" in complaints
    assert "servers/task_server.py" in complaints


@pytest.mark.fault
def test_a_server_that_is_stopped_ends_it_with_a_sentence(servers: dict[str, ServerProcess]) -> None:
    client = start(servers["cartpole"].token, servers["cartpole"].port, "--steps", "1000000")
    for _ in range(5):
        wait_for_line(client.stdout)
    servers["cartpole"].stop()
    status, _, complaints = finish(client)
    assert status == 1
    assert re.fullmatch(r"minimal_client: the (server|simulator) is .*\n", complaints), complaints


@pytest.mark.fault
def test_a_simulator_that_dies_ends_it_with_why(servers: dict[str, ServerProcess]) -> None:
    server = servers["aloha"]
    client = start(server.token, server.port, "--steps", "1000000")
    for _ in range(5):
        wait_for_line(client.stdout)
    (simulator,) = children_of(server.process.pid)
    os.kill(simulator, signal.SIGSEGV)
    status, _, complaints = finish(client)
    assert status == 1
    assert complaints.startswith("minimal_client: the simulator is dead: "), complaints
    assert "SIGSEGV" in complaints
    wait_until(lambda: "remote_env_sessions 0" in server.http("/metrics"), "the session has ended")


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
