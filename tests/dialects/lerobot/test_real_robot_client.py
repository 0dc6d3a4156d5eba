"""LeRobot's own robot client, unmodified, at our policy server; the robot is simulated."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from lerobot_programs import OUR_PYTHON, PATIENCE_S, Program, free_port
from ssh_server import SshServer

EPISODE_STEPS = 400


def check_episode(client: Program, server: Program, folder: Path, name: str = "robot") -> dict[str, object]:
    """The client's report, once its episode has ended and the server has noticed."""
    client.wait()
    report: dict[str, object] = json.loads((folder / f"{name}.json").read_text())
    assert report["steps"] == EPISODE_STEPS, client.log
    errors = [line for line in client.log.splitlines() if line.startswith(("ERROR", "WARNING"))]
    assert all("Error receiving actions" in line for line in errors[:1]), client.log  # of the call that its end cancels
    assert len(errors) <= 1, client.log
    server.wait_for("requests in total")
    return report


def test_an_episode(programs):
    port = free_port()
    server = programs.serve(port)
    client = programs.robot_client(port, robot__seed=3)
    report = check_episode(client, server, programs.folder)
    log = server.log
    assert "state (41,) float32  <-  observation.state (41,)" in log
    assert int(re.search(r"closed: (\d+) requests in total", log)[1]) >= 5, log
    assert "refused" not in log
    print("best reward", report["best"])


def test_a_policy_that_is_not_served_is_refused_with_the_reason(programs):
    port = free_port()
    server = programs.serve(port)
    client = programs.robot_client(port, model="somebody/else")
    client.wait()
    assert "Failed to connect to policy server" in client.log
    assert "asks for the policy 'somebody/else'" in client.log
    assert "--allow_model DIR" in server.log


def test_two_robots_at_once_share_nothing(programs):
    port = free_port()
    server = programs.serve(port)
    clients = [programs.robot_client(port, name=name, robot__seed=seed) for name, seed in (("a", 3), ("b", 4))]
    for client, name in zip(clients, "ab", strict=True):
        check_episode(client, server, programs.folder, name)
    server.wait_for("Client #2 closed")
    assert "Client #1 closed" in server.log


def test_through_a_tunnel_over_ssh(programs):
    """The sequence of docs/policies.md: server, tunnel in the background, robot client at the tunnel's local port."""
    port, local_port = free_port(), free_port()
    server = programs.serve(port)
    with SshServer() as sshd:
        login = ["--identity-file", str(sshd.identity_file), "--known-hosts", str(sshd.known_hosts)]
        tunnel = [OUR_PYTHON, "-m", "remote_env", "tunnel"]
        environment = {
            "XDG_CACHE_HOME": str(programs.folder / "cache"),
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
        }

        def run(*words: str) -> str:
            done = subprocess.run(
                [*tunnel, *words], capture_output=True, text=True, timeout=60, env=environment, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        run(sshd.target, str(port), "--local-port", str(local_port), "--background", *login)
        try:
            client = programs.robot_client(local_port, robot__seed=3)
            check_episode(client, server, programs.folder)
        finally:
            run("--stop", "all")


def test_the_interpreter_that_runs_this_has_no_policy_server_of_ours():
    """The two ends run in different environments: what they share is the wire."""
    assert Path(OUR_PYTHON).parent != Path(sys.executable).parent
    assert PATIENCE_S > 0
