"""openpi's own client, from PyPI and unmodified, in an environment of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from dialect_server import serving
from policies_for_tests import FailingPolicy
from policy_server_process import policy_server

from remote_env.policy.dialects import openpi

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-openpi" / "bin" / "python"
SCRIPT = ROOT / "tests" / "dialects" / "openpi_client_run.py"
TOKEN = "t" * 40

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no openpi-client here: scripts/prepare.sh test")


def run_client(*arguments: str) -> None:
    done = subprocess.run(
        [str(PYTHON), str(SCRIPT), *arguments], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well with openpi-client 0.1.2" in done.stdout


def test_openpis_own_client_works_with_our_server_program():
    with policy_server("failing") as server:
        run_client(str(server.port))
        server.wait_for("Client #1 closed")


def test_openpis_own_client_works_with_cameras_texts_and_a_token():
    policy = FailingPolicy(images=1, text=True)
    with serving(openpi.serve, policy, token=TOKEN, require_token=True) as server:
        run_client(str(server.port), TOKEN)
