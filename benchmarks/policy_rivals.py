"""One end of a policy connection with a policy that computes nothing, for each system that bench_policy compares.

    python policy_rivals.py serve NAME PORT OBSERVATION       prints "ready", serves until killed
    python policy_rivals.py drive NAME PORT OBSERVATION       reads counts from standard input, one a line; answers each
                                                              with the seconds of so many requests, as JSON
    python policy_rivals.py crowd PORT CLIENTS                the same by so many clients of ours at once, of the policy
                                                              that the server says it has; each asks so often

NAME: renv, openpi, lerobot or pickle. OBSERVATION: small (14 float32) or images (3 × 480×640×3 uint8). Every reply is a
chunk of 16 actions of 14 numbers. Each runs in the interpreter of that system's own environment, so this file imports
nothing of the others.

- renv: servers/start_policy_server.py, and our client.
- openpi: openpi-client's `WebsocketClientPolicy`. openpi's server is on no package index: the one here is written after
  it, on the `websockets` and openpi-client's own coding, as theirs.
- lerobot: `PolicyServer` and the messages of LeRobot, with its inference replaced by a constant.
- pickle: `!I` length and pickle both ways, blocking sockets, TCP_NODELAY.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HOST = "127.0.0.1"
CHUNK, ACTION = 16, 14
CAMERAS = ("top", "left", "right")


def make_observation(kind: str) -> dict[str, Any]:
    """One observation: feature name -> array without a batch axis."""
    if kind == "small":
        return {"state": np.zeros(14, np.float32)}
    noise = np.random.default_rng(0)
    return {name: noise.integers(0, 255, (480, 640, 3), np.uint8) for name in CAMERAS}


def make_actions() -> Any:
    """What every server answers."""
    return np.zeros((CHUNK, ACTION), np.float32)


# renv


def make_null_policy(kind: str = "small") -> Any:
    """Our policy that computes nothing."""
    from remote_env.policy import Feature, Policy, PolicyMetadata

    if kind == "small":
        features = {"state": Feature("state", (14,))}
    else:
        features = {name: Feature("image", (480, 640, 3), "uint8", layout="HWC") for name in CAMERAS}

    class NullPolicy(Policy):
        metadata = PolicyMetadata("null", features, tuple(f"a{index}" for index in range(ACTION)), chunk_size=CHUNK)

        def infer(self, observation: Any, *, episode_ids: Any) -> Any:
            return np.zeros((len(episode_ids), CHUNK, ACTION), np.float32)

    return NullPolicy()


def make_small_policy() -> Any:
    """For the server's command line."""
    return make_null_policy("small")


def make_images_policy() -> Any:
    """For the server's command line."""
    return make_null_policy("images")


def drive_renv(port: int, kind: str) -> Callable[[], Any]:
    """A request of ours."""
    from remote_env.policy.dialects import load_dialect

    policy = load_dialect("renv").connect(HOST, port, token=None, timeout_s=30.0, reconnect_timeout_s=5.0)
    batch = {name: value[None] for name, value in make_observation(kind).items()}
    return lambda: policy.infer(batch, episode_ids=("0",))


# openpi


def serve_openpi(port: int, _kind: str) -> None:
    """A server as openpi's."""
    import asyncio

    from openpi_client import msgpack_numpy
    from websockets.asyncio.server import serve

    async def handle(connection: Any) -> None:
        packer = msgpack_numpy.Packer()
        await connection.send(packer.pack({}))
        async for message in connection:
            start = time.monotonic()
            msgpack_numpy.unpackb(message)
            reply = {"actions": make_actions(), "server_timing": {"infer_ms": (time.monotonic() - start) * 1e3}}
            await connection.send(packer.pack(reply))

    async def main() -> None:
        async with serve(handle, HOST, port, compression=None, max_size=None) as server:
            print("ready", flush=True)
            await server.serve_forever()

    asyncio.run(main())


def drive_openpi(port: int, kind: str) -> Callable[[], Any]:
    """A request of openpi's own client."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    policy = WebsocketClientPolicy(HOST, port)
    observation = make_observation(kind)
    return lambda: policy.infer(observation)


# lerobot


def _load_lerobot() -> Any:
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests/dialects/lerobot"))
    import torchvision_ops  # noqa: F401  torchvision of PyPI does not load beside torch's CPU build without it
    from lerobot.async_inference import helpers, policy_server
    from lerobot.transport import services_pb2, services_pb2_grpc, utils

    return helpers, policy_server, services_pb2, services_pb2_grpc, utils


def serve_lerobot(port: int, _kind: str) -> None:
    """LeRobot's server, but for what the model does; without the pause that it makes by default."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    import torch

    _, policy_server, _, services_pb2_grpc, _ = _load_lerobot()

    class NullServer(policy_server.PolicyServer):  # type: ignore[misc, name-defined]
        def _predict_action_chunk(self, observation: Any) -> Any:
            actions = list(torch.zeros(CHUNK, ACTION))
            return self._time_action_chunk(observation.get_timestamp(), actions, observation.get_timestep())

    config = policy_server.PolicyServerConfig(host=HOST, port=port, inference_latency=0.0)
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(NullServer(config), server)
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def drive_lerobot(port: int, kind: str) -> Callable[[], Any]:
    """What its robot client does for a chunk: send an observation, ask for actions."""
    import pickle

    import grpc

    helpers, _, services_pb2, services_pb2_grpc, utils = _load_lerobot()
    stub = services_pb2_grpc.AsyncInferenceStub(grpc.insecure_channel(f"{HOST}:{port}", utils.grpc_channel_options()))
    stub.Ready(services_pb2.Empty())
    observation = make_observation(kind)
    state = observation.pop("state", np.zeros(0, np.float32))
    raw = {**{f"joint_{index}.pos": float(value) for index, value in enumerate(state)}, **observation}
    steps = iter(range(1 << 60))

    def ask() -> Any:
        timed = helpers.TimedObservation(timestamp=time.time(), observation=raw, timestep=next(steps), must_go=True)
        parts = utils.send_bytes_in_chunks(pickle.dumps(timed), services_pb2.Observation, silent=True)
        stub.SendObservations(parts)
        return pickle.loads(stub.GetActions(services_pb2.Empty()).data)

    return ask


# pickle


def serve_pickle(port: int, _kind: str) -> None:
    """The server that people write by hand."""
    import pickle
    import socket
    import struct

    listener = socket.create_server((HOST, port))
    print("ready", flush=True)
    while True:
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while head := sock.recv(4):
            pickle.loads(_receive(sock, struct.unpack("!I", head)[0]))
            data = pickle.dumps(make_actions())
            sock.sendall(struct.pack("!I", len(data)) + data)


def drive_pickle(port: int, kind: str) -> Callable[[], Any]:
    """The client that belongs to it."""
    import pickle
    import socket
    import struct

    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    observation = make_observation(kind)

    def ask() -> Any:
        data = pickle.dumps(observation)
        sock.sendall(struct.pack("!I", len(data)) + data)
        return pickle.loads(_receive(sock, struct.unpack("!I", _receive(sock, 4))[0]))

    return ask


def _receive(sock: Any, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        view = view[sock.recv_into(view) :]
    return data


SERVERS: dict[str, Callable[[int, str], None]] = {
    "openpi": serve_openpi,
    "lerobot": serve_lerobot,
    "pickle": serve_pickle,
}
CLIENTS: dict[str, Callable[[int, str], Callable[[], Any]]] = {
    "renv": drive_renv,
    "openpi": drive_openpi,
    "lerobot": drive_lerobot,
    "pickle": drive_pickle,
}


def drive(ask: Callable[[], Any]) -> None:
    """Ask as often as each line of standard input says; print the seconds that each request took."""
    print("ready", flush=True)
    clock = time.perf_counter
    for line in sys.stdin:
        stamps = [clock()]
        for _ in range(int(line)):
            ask()
            stamps.append(clock())
        print(json.dumps(np.diff(stamps).tolist()), flush=True)


def crowd(port: int, clients: int) -> None:
    """Be many clients, each a thread and a connection."""
    from concurrent.futures import ThreadPoolExecutor

    from remote_env.policy.dialects import load_dialect

    connect = load_dialect("renv").connect
    policies = [connect(HOST, port, token=None, timeout_s=60.0, reconnect_timeout_s=5.0) for _ in range(clients)]
    shapes = {name: (1, *feature.shape) for name, feature in policies[0].metadata.observation.items()}
    batch = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def ask(policy: Any, count: int) -> list[float]:
        stamps = [time.perf_counter()]
        for _ in range(count):
            policy.infer(batch, episode_ids=("0",))
            stamps.append(time.perf_counter())
        return np.diff(stamps).tolist()

    print("ready", flush=True)
    with ThreadPoolExecutor(clients) as pool:
        for line in sys.stdin:
            answers = pool.map(ask, policies, [int(line)] * clients)
            print(json.dumps([value for answer in answers for value in answer]), flush=True)


def main() -> None:
    """See the module's docstring."""
    if sys.argv[1] == "crowd":
        crowd(*map(int, sys.argv[2:]))
        return
    role, name, port, kind = sys.argv[1:]
    if role == "serve":
        SERVERS[name](int(port), kind)
    else:
        drive(CLIENTS[name](int(port), kind))


if __name__ == "__main__":
    main()
