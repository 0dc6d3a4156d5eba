from __future__ import annotations

from typing import Any

import pytest

from remote_env import RemoteEnv
from remote_env.testing import check_client

pytestmark = pytest.mark.fault


def connect(address: tuple[str, int], token: str, **kwargs: Any) -> RemoteEnv:
    return RemoteEnv(f"tcp://{address[0]}:{address[1]}", token=token, reconnect_timeout_s=1.5, **kwargs)


def test_our_client_passes():
    check_client(connect, reconnect_timeout_s=1.5)
