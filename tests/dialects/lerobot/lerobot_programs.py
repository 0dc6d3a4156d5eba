"""Real programs for these tests: our policy server, LeRobot's robot client and policy server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent
CHECKPOINT = ROOT / "ckpt" / "act_sim_transfer_cube_scripted_zscore_example"
PATIENCE_S = 90.0  # LeRobot imports for many seconds
OUR_PYTHON = os.environ.get("REMOTE_ENV_SERVER_PYTHON", str(ROOT / ".venv" / "bin" / "python"))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """A running program and what it has written."""

    def __init__(self, command: list[str], folder: Path, name: str) -> None:
        self.log_path = folder / f"{name}.log"
        environment = os.environ | {
            "PYTHONPATH": str(HERE),
            "HF_LEROBOT_HOME": str(folder / "lerobot"),
            "HF_HOME": str(folder / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PYTHONUNBUFFERED": "1",
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")

    def wait_for(self, words: str, timeout_s: float = PATIENCE_S) -> str:
        """The log, once these words stand in it."""
        deadline = time.monotonic() + timeout_s
        while words not in (text := self.log):
            if self.process.poll() is not None and words not in self.log:
                raise AssertionError(f"ended with {self.process.returncode} without {words!r}:\n{self.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {timeout_s} s: {words!r} in\n{text}")
            time.sleep(0.01)
        return text

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.log}") from None

    def end(self) -> None:
        """End it, if it still runs."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(10)


class Programs:
    """Starts programs; those that still run end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Program] = []

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in reversed(self._started):
            program.end()

    def start(self, name: str, *command: str) -> Program:
        """Any program."""
        program = Program(list(command), self.folder, name)
        self._started.append(program)
        return program

    def serve(self, port: int, model: str = str(CHECKPOINT), *options: str) -> Program:
        """Our policy server, with its own interpreter, once it is ready."""
        script = str(ROOT / "servers" / "start_policy_server.py")
        listen = ["--listen", f"lerobot://127.0.0.1:{port}"]
        server = self.start("our_server", OUR_PYTHON, script, "-m", model, "--device", "cpu", *listen, *options)
        server.wait_for("ready; waiting for clients")
        return server

    def robot_client(self, port: int, model: str = str(CHECKPOINT), name: str = "robot", **options: object) -> Program:
        """LeRobot's own robot client, unmodified, with the simulated robot."""
        settings = {
            "robot.type": "simulated_aloha",
            "robot.id": name,
            "robot.report": self.folder / f"{name}.json",
            "task": "transfer the cube",
            "server_address": f"127.0.0.1:{port}",
            "policy_type": "act",
            "pretrained_name_or_path": model,
            "actions_per_chunk": 50,
            "fps": 50,
        } | {key.replace("__", "."): value for key, value in options.items()}
        words = [f"--{key}={value}" for key, value in settings.items()]
        return self.start(name, *self._lerobot("robot_client"), *words)

    def lerobot_server(self, port: int) -> Program:
        """LeRobot's own policy server, unmodified, once it listens."""
        server = self.start("lerobot_server", *self._lerobot("policy_server"), "--host=127.0.0.1", f"--port={port}")
        server.wait_for("PolicyServer started on")
        return server

    def _lerobot(self, module: str) -> list[str]:
        return [sys.executable, str(HERE / "run_lerobot.py"), f"lerobot.async_inference.{module}"]
