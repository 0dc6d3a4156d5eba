from __future__ import annotations

import pytest
from server_process import serving

from remote_env.testing import check_task_server

pytestmark = pytest.mark.fault


def test_a_server_of_ours_passes():
    with serving("remote_env.testing.counting:make", {"episode_length": 50, "image": True}) as server:
        check_task_server(("127.0.0.1", server.port), server.token)
