"""What bench_step compares with: raw ping-pong of the same bytes, and the plain `!I`-length + pickle server.

Each is a server process and a client object with `step(action)` and `close()`. The pickle pair is what people write by
hand: blocking sockets, TCP_NODELAY, `sendall`, and a `recv` loop.
"""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import struct
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.trivial_env import TrivialEnv

_LENGTH = struct.Struct("!I")
_SPAWN = multiprocessing.get_context("spawn")


def receive_exactly(sock: socket.socket, size: int) -> bytearray:
    """`size` bytes."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        view = view[sock.recv_into(view) :]
    return data


def _listen(family: str, folder: str) -> tuple[socket.socket, Any]:
    if family == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"{folder}/socket")
    else:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
    sock.listen(1)
    return sock, sock.getsockname()


def _no_delay(sock: socket.socket) -> socket.socket:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _serve_raw(family: str, folder: str, request_size: int, reply_size: int, address: Any) -> None:
    listener, name = _listen(family, folder)
    address.send(name)
    sock = _no_delay(listener.accept()[0])
    reply = bytes(reply_size)
    request = memoryview(bytearray(request_size))
    while sock.recv_into(request):
        sock.sendall(reply)


def _serve_pickle(family: str, folder: str, image: bool, address: Any) -> None:
    listener, name = _listen(family, folder)
    address.send(name)
    sock = _no_delay(listener.accept()[0])
    env = TrivialEnv(image=image)
    env.reset()
    while True:
        head = sock.recv(4)
        if not head:
            return
        request = pickle.loads(receive_exactly(sock, _LENGTH.unpack(head)[0]))
        observation, reward, terminated, truncated, info = env.step(request["action"])
        reply = {"obs": observation, "reward": reward, "terminated": terminated, "truncated": truncated, "info": info}
        data = pickle.dumps(reply)
        sock.sendall(_LENGTH.pack(len(data)) + data)


class _Rival:
    """A server in a process of its own, and a socket to it."""

    def __init__(self, target: Any, family: str, *arguments: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        receiver, sender = _SPAWN.Pipe(duplex=False)
        self._process = _SPAWN.Process(target=target, args=(family, self._folder.name, *arguments, sender), daemon=True)
        self._process.start()
        address = receiver.recv()
        self._sock = socket.socket(socket.AF_UNIX if family == "unix" else socket.AF_INET)
        self._sock.connect(address)
        _no_delay(self._sock)

    def close(self) -> None:
        """End both."""
        self._sock.close()
        self._process.join(5)
        self._folder.cleanup()


class RawPingPong(_Rival):
    """As many bytes each way as a step has, and nothing else."""

    def __init__(self, family: str, *, request_size: int, reply_size: int) -> None:
        super().__init__(_serve_raw, family, request_size, reply_size)
        self._request = bytes(request_size)
        self._reply = memoryview(bytearray(reply_size))

    def step(self, _action: Any) -> None:
        """One round trip."""
        self._sock.sendall(self._request)
        view = self._reply
        while view:
            view = view[self._sock.recv_into(view) :]


class PickleServer(_Rival):
    """`!I` length and pickle, both ways."""

    def __init__(self, family: str, *, image: bool) -> None:
        super().__init__(_serve_pickle, family, image)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step."""
        data = pickle.dumps({"type": "STEP", "action": action})
        self._sock.sendall(_LENGTH.pack(len(data)) + data)
        reply = pickle.loads(receive_exactly(self._sock, _LENGTH.unpack(receive_exactly(self._sock, 4))[0]))
        return reply["obs"], reply["reward"], reply["terminated"], reply["truncated"], reply["info"]


def machine() -> str:
    """What this runs on, to stand beside the numbers."""
    import os
    import platform

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{cpu}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}"
