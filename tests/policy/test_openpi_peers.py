"""openpi's own client, from PyPI and unmodified, in an environment of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from dialect_server import serving
from policies_for_tests import FailingPolicy

from remote_env.policy.dialects import openpi

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-openpi" / "bin" / "python"
SCRIPT = ROOT / "tests" / "dialects" / "openpi_client_run.py"


@pytest.mark.skipif(not PYTHON.exists(), reason="no openpi-client here: scripts/prepare.sh test")
@pytest.mark.parametrize("token", ["", "t" * 40])
def test_openpis_own_client_works(token):
    with serving(
        openpi.serve, FailingPolicy(images=1, text=True), token=token or None, require_token=bool(token)
    ) as server:
        done = subprocess.run(
            [str(PYTHON), str(SCRIPT), str(server.port), *([token] if token else [])],
            timeout=60,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is well with openpi-client 0.1.2" in done.stdout
