"""For tests of peers of ill will: servers with other limits, and how one dawdles."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest
import server_process

PATCH = """
import importlib, json
for name, value in json.loads(%r).items():
    module, _, constant = name.rpartition(".")
    setattr(importlib.import_module(f"remote_env.{module}"), constant, value)
from remote_env.protocol import frames
frames._OURS = (frames.MAGIC, frames.VERSION)
sys.exit("""


def patch_server(patch: pytest.MonkeyPatch, **constants: float) -> None:
    """Have servers started from now on with other limits: module__CONSTANT is that of remote_env.server.module."""
    names = {name.replace("__", ".").removeprefix("."): value for name, value in constants.items()}
    full = {name if name.startswith("protocol.") else f"server.{name}": value for name, value in names.items()}
    driver = server_process._DRIVER.replace("sys.exit(", PATCH % json.dumps(full))
    patch.setattr(server_process, "_DRIVER", driver)


def trickle(sock: socket.socket, data: bytes, then: bytes = b" ") -> bytes:
    """Send `data` byte by byte, and `then` for ever after it, until the other side closes; what it said."""
    sock.settimeout(0.02)
    said = b""
    with contextlib.suppress(ConnectionError):
        for index in range(2000):
            sock.sendall(data[index : index + 1] or then)
            try:
                if not (got := sock.recv(4096)):
                    return said
                said += got
            except TimeoutError:
                continue
        pytest.fail("it is never dropped")
    return said
