"""`remote-env` as a person runs it: the words of a login to the test's sshd, in this process or as the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ssh_server import SshServer

ROOT = Path(__file__).resolve().parents[2]
FAR_PYTHON = os.environ.get("REMOTE_ENV_TEST_PYTHON", str(ROOT / ".venv-far" / "bin" / "python"))
PROGRAM = Path(sys.executable).parent / "remote-env"
TIMEOUT_S = 60.0


def login_words(server: SshServer) -> list[str]:
    """Options that make the login to `server.target` work."""
    return ["-i", str(server.identity_file), "--known-hosts", str(server.known_hosts), "--config", str(server.config)]


def start(*words: object) -> subprocess.Popen[str]:
    """The installed program, which is to be ended by its caller."""
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [str(PROGRAM), *map(str, words)], env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    with start(*words) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
