"""One end of a remote environment that computes nothing, for each system that bench_peers compares.

    python peer_rivals.py serve NAME PORT OBSERVATION     prints "ready", serves until killed
    python peer_rivals.py drive NAME PORT OBSERVATION     reads counts from standard input, one a line; answers each
                                                          with "took" and the seconds of so many steps, as JSON

NAME is one of `RIVALS`, OBSERVATION is small (14 float64) or image (480×640×3 uint8); actions are 14 float32. Each runs
in the interpreter of that system's own environment, so this file imports nothing of the others. Each is used as its own
examples do, and hands out NumPy arrays of the right dtype, since that is what a policy needs; asynchronous clients are
measured inside their own running loop. What they do not carry (info, truncation) is left out for them.

- in one process: no server, nothing between; for bench_memory.
- remote-env: servers/task_server.py over TCP, through `gymnasium.make`.
- openpi: openpi-client's `WebsocketClientPolicy` with an environment behind it. openpi's server is on no package index:
  the one here is written after it, on the `websockets` and openpi-client's own coding, as theirs.
- dm_env_rpc: `DmEnvAdaptor` and a servicer of one world.
- OpenEnv: a FastAPI app under uvicorn and an `EnvClient`; images are base64 in a string field.
- HUD robot: a `RobotBridge` under `serve_bridge` and a `RobotClient`.
- Ray actor: an actor's method and `ray.get`. It is started by its client.
- AsyncVectorEnv: Gymnasium's own with one environment and shared memory. It has no network: the floor on one machine.
- pickle: `!I` length and pickle both ways, blocking sockets, TCP_NODELAY.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

HOST = "127.0.0.1"
ACTION = np.zeros(14, np.float32)

# So many steps -> the seconds that each took.
Run = Callable[[int], list[float]]


def first_observation(kind: str) -> Any:
    """What every rival hands out, but for a counter in its first number: (14,) float64 or (480, 640, 3) uint8.

    The image is a slope with a camera's noise: some of the rivals compress, and nothing at all costs them too little.
    """
    random = np.random.default_rng(0)
    if kind == "small":
        return random.normal(size=14)
    slope = np.linspace(40, 200, 640)[None, :, None] + np.linspace(0, 40, 480)[:, None, None]
    return (slope + random.normal(0, 4, (480, 640, 3))).clip(0, 255).astype(np.uint8)


class Counter:
    """The task itself."""

    def __init__(self, kind: str) -> None:
        self._observation, self._steps = first_observation(kind), 0

    def step(self) -> Any:
        """The same observation with the count of steps in it."""
        self._steps += 1
        self._observation.flat[0] = self._steps & 0xFF
        return self._observation


def timed(step: Callable[[], Any], kind: str) -> Run:
    """Measure a call that returns an observation, once that has been seen to be one."""
    _check(step(), kind)
    clock = time.perf_counter

    def run(count: int) -> list[float]:
        stamps = [clock()]
        for _ in range(count):
            step()
            stamps.append(clock())
        return np.diff(stamps).tolist()

    return run


def timed_async(step: Callable[[], Awaitable[Any]], loop: asyncio.AbstractEventLoop, kind: str) -> Run:
    """The same for a coroutine function, all steps in one run of its loop."""

    async def once() -> Any:
        return await step()

    async def many(count: int) -> list[float]:
        clock = time.perf_counter
        stamps = [clock()]
        for _ in range(count):
            await step()
            stamps.append(clock())
        return np.diff(stamps).tolist()

    _check(loop.run_until_complete(once()), kind)
    atexit.register(_end_tasks, loop)
    return lambda count: loop.run_until_complete(many(count))


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def _check(observation: Any, kind: str) -> None:
    wanted = first_observation("small" if kind == "aloha" else kind)
    if not isinstance(observation, np.ndarray) or observation.shape != wanted.shape:
        raise SystemExit(f"this is no {kind} observation: {observation!r:.200}")
    if kind == "aloha":
        return
    same = np.array_equal(observation.flat[1:], wanted.flat[1:])
    if observation.dtype != wanted.dtype or not same or not 1 <= observation.flat[0] <= 3:
        raise SystemExit(f"this {observation.dtype} observation is not the task's: {observation!r:.200}")


# remote-env


def make_env(kind: str) -> Any:
    """The task for our server: the same observations; or ALOHA's transfer without cameras, for bench_memory."""
    from benchmarks.trivial_env import TrivialEnv

    if kind == "aloha":
        return _make_aloha()
    env = TrivialEnv(image=kind == "image")
    env._observation[...] = first_observation(kind)
    return env


def _make_aloha() -> Any:
    import gymnasium

    from remote_env.tasks import TRANSFER_CUBE_ID, register_tasks

    register_tasks()
    endless: dict[str, Any] = {"max_episode_steps": 1 << 40, "end_on_success": False}
    return gymnasium.make(TRANSFER_CUBE_ID, obs_type="agent_pos", disable_env_checker=True, **endless)


def drive_local(_port: int, kind: str) -> Run:
    """The task without anything between."""
    env = make_env(kind)
    env.reset()
    return timed(lambda: env.step(ACTION)[0], kind)


def drive_remote_env(port: int, kind: str) -> Run:
    """A step of ours; bench_peers starts the task server."""
    import gymnasium

    import remote_env  # noqa: F401  registers Remote-v0

    env: Any = gymnasium.make("Remote-v0", host=f"tcp://{HOST}:{port}")
    env.reset()
    return timed(lambda: env.step(ACTION)[0], kind)


# openpi


def serve_openpi(port: int, kind: str) -> None:
    """A server as openpi's with the task in it."""
    from openpi_client import msgpack_numpy
    from websockets.asyncio.server import serve

    task = Counter(kind)

    async def handle(connection: Any) -> None:
        packer = msgpack_numpy.Packer()
        await connection.send(packer.pack({}))
        async for message in connection:
            msgpack_numpy.unpackb(message)
            await connection.send(packer.pack({"observation": task.step(), "reward": 0.0, "terminated": False}))

    async def main() -> None:
        async with serve(handle, HOST, port, compression=None, max_size=None) as server:
            print("ready", flush=True)
            await server.serve_forever()

    asyncio.run(main())


def drive_openpi(port: int, kind: str) -> Run:
    """A request of openpi's own client."""
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    client = WebsocketClientPolicy(HOST, port)
    return timed(lambda: client.infer({"action": ACTION})["observation"], kind)


# dm_env_rpc


def serve_dm_env_rpc(port: int, kind: str) -> None:
    """A world with one environment: `action` in, `observation` and `reward` out."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from dm_env_rpc.v1 import dm_env_rpc_pb2, dm_env_rpc_pb2_grpc, spec_manager

    pb, (specs, actions, observations), task = dm_env_rpc_pb2, _dm_env_rpc_specs(kind), Counter(kind)
    managers = [spec_manager.SpecManager(actions), spec_manager.SpecManager(observations)]

    def step(request: Any) -> Any:
        managers[0].unpack(request.actions)
        packed = managers[1].pack({"observation": task.step(), "reward": 0.0})
        wanted = {uid: packed[uid] for uid in request.requested_observations}
        return pb.StepResponse(state=pb.EnvironmentStateType.RUNNING, observations=wanted)

    answers: dict[str, Callable[[Any], Any]] = {
        "create_world": lambda _: pb.CreateWorldResponse(world_name="world"),
        "join_world": lambda _: pb.JoinWorldResponse(specs=specs),
        "reset": lambda _: pb.ResetResponse(specs=specs),
        "step": step,
    }

    class Servicer(dm_env_rpc_pb2_grpc.EnvironmentServicer):  # type: ignore[misc]
        def Process(self, requests: Any, _context: Any) -> Any:
            for request in requests:
                kind_of_request = request.WhichOneof("payload")
                answer = answers[kind_of_request](getattr(request, kind_of_request))
                yield pb.EnvironmentResponse(**{kind_of_request: answer})

    limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(max_workers=1), options=limits)
    dm_env_rpc_pb2_grpc.add_EnvironmentServicer_to_server(Servicer(), server)
    server.add_secure_port(f"{HOST}:{port}", grpc.local_server_credentials())
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


def _dm_env_rpc_specs(kind: str) -> Any:
    from dm_env_rpc.v1 import dm_env_rpc_pb2 as pb
    from dm_env_rpc.v1 import tensor_utils

    def spec(name: str, array: Any) -> Any:
        data_type = tensor_utils.np_type_to_data_type(array.dtype)
        return pb.TensorSpec(name=name, shape=array.shape, dtype=data_type)

    actions = {1: spec("action", ACTION)}
    observations = {1: spec("observation", first_observation(kind)), 2: spec("reward", np.zeros(()))}
    return pb.ActionObservationSpecs(actions=actions, observations=observations), actions, observations


def drive_dm_env_rpc(port: int, kind: str) -> Run:
    """A step of its dm_env adaptor."""
    from dm_env_rpc.v1 import connection, dm_env_adaptor

    channel = connection.create_secure_channel_and_connect(f"{HOST}:{port}", timeout=30)
    env, _ = dm_env_adaptor.create_and_join_world(channel, {}, {})
    env.reset()
    return timed(lambda: env.step({"action": ACTION}).observation["observation"], kind)


# OpenEnv


def serve_openenv(port: int, kind: str) -> None:
    """The app that `create_app` makes, under uvicorn with its defaults."""
    import base64
    from typing import ClassVar

    import uvicorn
    from openenv.core.env_server.http_server import create_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class Move(Action):  # type: ignore[misc]
        values: list[float]

    class Numbers(Observation):  # type: ignore[misc]
        values: list[float]

    class Image(Observation):  # type: ignore[misc]
        image: str
        shape: list[int]

    class Task(Environment):  # type: ignore[misc]
        SUPPORTS_CONCURRENT_SESSIONS: ClassVar[bool] = True

        def __init__(self) -> None:
            super().__init__()
            self._task, self._state = Counter(kind), State(episode_id="0", step_count=0)

        def reset(self, seed: Any = None, episode_id: Any = None, **kwargs: Any) -> Any:
            return self.step(None)

        def step(self, action: Any, timeout_s: Any = None, **kwargs: Any) -> Any:
            observation = self._task.step()
            if kind == "small":
                return Numbers(values=observation.tolist(), reward=0.0)
            image = base64.b64encode(observation).decode()
            return Image(image=image, shape=list(observation.shape), reward=0.0)

        @property
        def state(self) -> Any:
            return self._state

    app = create_app(Task, Move, Numbers if kind == "small" else Image, env_name="counter")
    print("ready", flush=True)  # the client waits for the port as well
    uvicorn.run(app, host=HOST, port=port, log_level="warning")


def drive_openenv(port: int, kind: str) -> Run:
    """A step of its asynchronous client."""
    import base64

    from openenv.core.client_types import StepResult
    from openenv.core.env_client import EnvClient

    class Client(EnvClient):  # type: ignore[misc]
        def _step_payload(self, action: Any) -> Any:
            return {"values": action.tolist()}

        def _parse_result(self, payload: Any) -> Any:
            data = payload["observation"]
            if kind == "small":
                observation = np.array(data["values"])
            else:
                observation = np.frombuffer(base64.b64decode(data["image"]), np.uint8).reshape(data["shape"])
            return StepResult(observation=observation, reward=payload.get("reward"), done=payload.get("done", False))

        def _parse_state(self, payload: Any) -> Any:
            return payload

    loop = asyncio.new_event_loop()
    client = Client(base_url=f"http://{HOST}:{port}")

    async def begin() -> None:
        await _wait_for_port(port)
        await client.connect()
        await client.reset()

    async def step() -> Any:
        return (await client.step(ACTION)).observation

    loop.run_until_complete(begin())
    return timed_async(step, loop, kind)


async def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            (await asyncio.open_connection(HOST, port))[1].close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


# HUD robot


def serve_hud(port: int, kind: str) -> None:
    """A bridge of its own, its control channel on `port`."""
    from hud.environment.robot import RobotBridge
    from hud.environment.robot.bridge import serve_bridge

    task = Counter(kind)

    class Bridge(RobotBridge):  # type: ignore[misc]
        def reset(self, **kwargs: Any) -> str:
            self.step(ACTION[None])
            return "count"

        def step(self, action: Any) -> None:
            self._seen = task.step()

        def get_observation(self) -> Any:
            return {"observation": self._seen[None]}, np.zeros(1, bool)

    print("ready", flush=True)  # the client waits for the port as well
    serve_bridge(Bridge(), host=HOST, port=port)


def drive_hud(port: int, kind: str) -> Run:
    """An action sent and an observation awaited, by its agent-side client."""
    from hud.capabilities.robot import RobotClient
    from hud.environment.robot import RobotEndpoint

    loop = asyncio.new_event_loop()

    async def begin() -> Any:
        await _wait_for_port(port)
        endpoint = RobotEndpoint.remote(HOST, port)
        await endpoint.start()
        episode = await endpoint.reset()
        client = await RobotClient.connect((await endpoint.capabilities())[0], token=episode["token"])
        await client.get_observation()
        return client

    client = loop.run_until_complete(begin())

    async def step() -> Any:
        await client.send_action(ACTION)
        return (await client.get_observation())["data"]["observation"]

    return timed_async(step, loop, kind)


# Ray


def drive_ray(_port: int, kind: str) -> Run:
    """A remote call of an actor, and what it returned."""
    import ray

    settings: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(num_cpus=1, _temp_dir=str(Path.cwd()), **settings)  # bench_peers removes the folder that we run in

    class Task:
        def __init__(self) -> None:
            self._task = Counter(kind)

        def step(self, _action: Any) -> Any:
            return self._task.step(), 0.0, False, False, {}

    actor = ray.remote(Task).remote()
    return timed(lambda: ray.get(actor.step.remote(ACTION))[0], kind)


# Gymnasium's AsyncVectorEnv


def drive_async_vector(_port: int, kind: str) -> Run:
    """A step of a batch of one in a process of its own."""
    from gymnasium.vector import AsyncVectorEnv

    envs = AsyncVectorEnv([lambda: make_env(kind)], shared_memory=True)
    envs.reset()
    return timed(lambda: envs.step(ACTION[None])[0][0], kind)


# pickle


def serve_pickle(port: int, kind: str) -> None:
    """The server that people write by hand."""
    import pickle
    import socket
    import struct

    listener = socket.create_server((HOST, port))
    print("ready", flush=True)
    sock, task = listener.accept()[0], Counter(kind)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while head := sock.recv(4):
        pickle.loads(_receive(sock, struct.unpack("!I", head)[0]))
        reply = {"obs": task.step(), "reward": 0.0, "terminated": False, "truncated": False, "info": {}}
        data = pickle.dumps(reply)
        sock.sendall(struct.pack("!I", len(data)) + data)


def drive_pickle(port: int, kind: str) -> Run:
    """The client that belongs to it."""
    import pickle
    import socket
    import struct

    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def step() -> Any:
        data = pickle.dumps({"type": "STEP", "action": ACTION})
        sock.sendall(struct.pack("!I", len(data)) + data)
        return pickle.loads(_receive(sock, struct.unpack("!I", _receive(sock, 4))[0]))["obs"]

    return timed(step, kind)


def _receive(sock: Any, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        view = view[sock.recv_into(view) :]
    return data


# Name -> its server (None: the client starts it, or bench_peers does) and its client.
RIVALS: dict[str, tuple[Callable[[int, str], None] | None, Callable[[int, str], Run]]] = {
    "in one process": (None, drive_local),
    "remote-env": (None, drive_remote_env),
    "openpi": (serve_openpi, drive_openpi),
    "dm_env_rpc": (serve_dm_env_rpc, drive_dm_env_rpc),
    "OpenEnv": (serve_openenv, drive_openenv),
    "HUD robot": (serve_hud, drive_hud),
    "Ray actor": (None, drive_ray),
    "AsyncVectorEnv": (None, drive_async_vector),
    "pickle": (serve_pickle, drive_pickle),
}


def drive(run: Run) -> None:
    """Step as often as each line of standard input says; print the seconds that each took."""
    print("ready", flush=True)
    for line in sys.stdin:
        print("took", json.dumps(run(int(line))), flush=True)


def main() -> None:
    """See the module's docstring."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    role, name, port, kind = sys.argv[1:]
    serve, connect = RIVALS[name]
    if role == "drive":
        drive(connect(int(port), kind))
    elif serve is not None:
        serve(int(port), kind)


if __name__ == "__main__":
    main()
