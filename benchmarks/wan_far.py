"""What stands at the far end of bench_wan's links beside our own server: raw ping-pong, and a seed-style pickle server.

    python -m benchmarks.wan_far raw|pickle ADDRESS

The second is what people write by hand: `!I` length and pickle, blocking sockets, TCP_NODELAY, one request at a time,
`STEP` and `GET_STATE` apart. It says how long its simulator took for each step. Also the clients of both.
"""

from __future__ import annotations

import pickle
import socket
import struct
import sys
import time
from typing import Any

from benchmarks.rivals import receive_exactly

PORTS = {"ours": 9000, "raw": 9001, "pickle": 9002, "ours with images": 9003}  # in a network of its own
REQUEST_BYTES, REPLY_BYTES = 40 + 56, 40 + 10 + 112  # a STEP of ALOHA and its RESULT, as bench_step counts them
TASK = "remote_env/AlohaTransferCube-v0"
EPISODE_STEPS = 400
# Episodes that go on for 400 steps whatever happens; a picture costs what the fast quality costs.
TASK_KWARGS: dict[str, Any] = {
    "obs_type": "agent_pos",
    "end_on_success": False,
    "max_episode_steps": EPISODE_STEPS,
    "render_mode": "rgb_array",
    "quality": "fast",
}
IMAGE_KWARGS: dict[str, Any] = {**TASK_KWARGS, "obs_type": "pixels_agent_pos"}
DIAL_TIMEOUT_S = 30.0

_LENGTH = struct.Struct("!I")


def make_task() -> Any:
    """The task, in this process."""
    import gymnasium

    from remote_env.tasks import register_tasks

    register_tasks()
    return gymnasium.make(TASK, disable_env_checker=True, **TASK_KWARGS)


# The far end


def serve_raw(address: str) -> None:
    """Answer each request of `REQUEST_BYTES` with `REPLY_BYTES`."""
    for client in _clients(address, PORTS["raw"]):
        request, reply = memoryview(bytearray(REQUEST_BYTES)), bytes(REPLY_BYTES)
        while _fill(client, request):
            client.sendall(reply)


def serve_pickle(address: str) -> None:
    """Serve the task as people do by hand."""
    env = make_task()
    for client in _clients(address, PORTS["pickle"]):
        while head := client.recv(4):
            request = pickle.loads(receive_exactly(client, _LENGTH.unpack(head)[0]))
            data = pickle.dumps(_answer(env, request))
            client.sendall(_LENGTH.pack(len(data)) + data)


def _answer(env: Any, request: dict[str, Any]) -> dict[str, Any]:
    if request["type"] == "RESET":
        observation, info = env.reset(seed=request["seed"])
        return {"obs": observation, "info": info}
    if request["type"] == "GET_STATE":
        state = env.unwrapped.get_scene_state()
        return {"names": state.layout.to_plain(), "values": state.values}
    began = time.perf_counter()
    observation, reward, terminated, truncated, info = env.step(request["action"])
    took = time.perf_counter() - began
    done = {"obs": observation, "reward": reward, "done": terminated or truncated, "info": info}
    return {**done, "simulate_s": took}


def _clients(address: str, port: int) -> Any:
    """Whoever connects, one after the other."""
    with socket.create_server((address, port)) as listener:
        print(f"listening on {port}", flush=True)
        while True:
            client = listener.accept()[0]
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with client:
                yield client


def _fill(sock: socket.socket, view: memoryview) -> bool:
    while view:
        count = sock.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True


# Its clients


def _dial(host: str, kind: str) -> socket.socket:
    sock = socket.create_connection((host, PORTS[kind]), DIAL_TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class PingPong:
    """As many bytes each way as a step has, and nothing else."""

    def __init__(self, host: str) -> None:
        self._sock = _dial(host, "raw")
        self._reply = memoryview(bytearray(REPLY_BYTES))

    def ask(self) -> None:
        """One round trip."""
        self._sock.sendall(bytes(REQUEST_BYTES))
        _fill(self._sock, self._reply)

    def close(self) -> None:
        """Close it."""
        self._sock.close()


class PickleClient:
    """The task through the pickle server.

    Attributes:
        simulate_s: what the last step took its simulator [s].
    """

    def __init__(self, host: str) -> None:
        self._sock = _dial(host, "pickle")
        self.simulate_s = 0.0

    def _ask(self, **request: Any) -> Any:
        data = pickle.dumps(request)
        self._sock.sendall(_LENGTH.pack(len(data)) + data)
        return pickle.loads(receive_exactly(self._sock, _LENGTH.unpack(receive_exactly(self._sock, 4))[0]))

    def reset(self, seed: int) -> Any:
        """Start an episode."""
        return self._ask(type="RESET", seed=seed)

    def step(self, action: Any) -> Any:
        """One step: one round trip."""
        reply = self._ask(type="STEP", action=action)
        self.simulate_s = reply["simulate_s"]
        return reply

    def get_state(self) -> Any:
        """The scene's state: one more."""
        return self._ask(type="GET_STATE")

    def close(self) -> None:
        """Close it."""
        self._sock.close()


if __name__ == "__main__":
    {"raw": serve_raw, "pickle": serve_pickle}[sys.argv[1]](sys.argv[2])
