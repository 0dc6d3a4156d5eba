"""examples/policy_client_example.py as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from policies_for_tests import EchoPolicy, FailingPolicy
from renv_serving import TOKEN, RenvServer, serving

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def command(server: RenvServer, *flags: str) -> list[str]:
    example = str(EXAMPLES / "policy_client_example.py")
    return [sys.executable, example, "--host", "127.0.0.1", "--port", str(server.port), *flags]


def run(server: RenvServer, *flags: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REMOTE_ENV_TOKEN": token} if token else dict(os.environ)
    return subprocess.run(command(server, *flags), env=environment, capture_output=True, text=True, timeout=60)


def test_each_reply_is_shown_and_summed_up() -> None:
    with serving(EchoPolicy(images=1, text=True)) as server:
        done = run(server, "--num_requests", "3", "--delay", "0")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0].endswith("echo takes state (14,) float32, image0 (48, 64, 3) uint8, instruction text")
        assert all(f"request {n + 1}: 4 actions of 14 numbers in " in lines[n + 1] for n in range(3))
        assert lines[4].startswith("3 replies: p50 ")
        assert server.lines[-1] == "Client #1 closed: 3 requests in total"


def test_the_token_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    with serving(EchoPolicy()) as server:
        flags = ("--num_requests", "1", "--token-file", str(tmp_path / "token"))
        assert run(server, *flags, token="").returncode == 0
        missing = run(server, "--token-file", str(tmp_path / "none"), token="")
        assert [missing.returncode, "cannot read the token" in missing.stderr] == [1, True]


def test_a_server_of_another_dialect_that_does_not_tell_what_it_takes() -> None:
    with serving(EchoPolicy(), dialect="ilstudio") as server:
        done = run(server, "--dialect", "ilstudio", "--num_requests", "1")
        assert "does not tell what its policy takes\nrequest 1: 4 actions of 14 numbers" in done.stdout, done.stderr


def test_errors_are_one_clear_line() -> None:
    with serving(EchoPolicy()) as server:
        wrong = run(server, token="f" * 64)
        assert [wrong.returncode, wrong.stderr.count("\n")] == [1, 1]
        assert "does not have this token" in wrong.stderr
    gone = run(server)
    assert [gone.returncode, gone.stderr.count("\n")] == [1, 1]
    assert gone.stderr.startswith("error: nothing answers at 127.0.0.1")


def test_a_policy_that_raises_is_shown_with_its_traceback() -> None:
    class Broken(FailingPolicy):
        def infer(self, observation: Any, *, episode_ids: Any) -> Any:
            observation["state"][:] = -1
            return super().infer(observation, episode_ids=episode_ids)

    with serving(Broken()) as server:
        done = run(server, "--num_requests", "1")
        assert done.returncode == 1
        assert "ValueError: the model chokes" in done.stderr
        assert "Traceback" in done.stderr


def test_ctrl_c_ends_it_with_what_there_is() -> None:
    with serving(EchoPolicy()) as server:
        environment = {**os.environ, "REMOTE_ENV_TOKEN": TOKEN}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command(server, "--delay", "30"), env=environment, **pipes) as process:
            assert process.stdout is not None
            assert "connected" in process.stdout.readline()
            assert "request 1" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        assert [process.returncode, err] == [130, ""]
        assert "interrupted; 1 replies: p50" in out


def test_unknown_flags_are_errors() -> None:
    with serving(EchoPolicy()) as server:
        done = run(server, "--num_request", "1")
        assert [done.returncode, "unrecognized arguments: --num_request" in done.stderr] == [2, True]


def test_the_client_is_had_from_beside_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from policy_client_example import PolicyClient; print(PolicyClient.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=EXAMPLES, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "remote_env.policy.client\n"
