"""A server of LeRobot's async inference and the calls of a robot client, over real gRPC."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from leak_check import wait_until

from remote_env.policy.dialects.lerobot import listen
from remote_env.policy.dialects.lerobot_messages import SERVICE, Actions, Empty, PolicySetup, cut
from remote_env.policy.dialects.lerobot_pickle import (
    HELPERS,
    RemotePolicyConfig,
    TimedAction,
    TimedObservation,
    dump_observation,
    dump_setup,
    load_actions,
)
from remote_env.policy.policy import Policy
from remote_env.policy.server.service import PolicyService, ServeContext

MODEL = "the/model"
STATE = [f"s{index}.pos" for index in range(14)]
DEADLINE_S = 20.0


@pytest.fixture(scope="module", autouse=True)
def grpc_is_loaded(isolated_home: Path) -> None:
    """gRPC's own descriptors, which stay as long as the process does, are there before the first test looks."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(DEADLINE_S)
    server.stop(0).wait()


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    """Makes things that are closed in the end, the last first."""
    before = set(threading.enumerate())
    with contextlib.ExitStack() as stack:

        def open_one(kind: Callable[..., Any], *args: Any, **options: Any) -> Any:
            made = kind(*args, **options)
            stack.callback(made.close)
            return made

        yield open_one
    wait_until(lambda: before.issuperset(threading.enumerate()), "the threads of gRPC end")
    gc.collect()  # what they held, its objects hold each other


class Place:
    """A server of one policy, and what it logged."""

    def __init__(self, policy: Policy, **context: Any) -> None:
        self.lines: list[str] = []
        self.policy = policy
        self.service = PolicyService([policy], log=self.lines.append)
        self.context = ServeContext(log=self.lines.append, model=MODEL, **context)
        self.listener = listen("127.0.0.1", 0, self.service, self.context)

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.log, words)

    def wait_for_calls(self, count: int) -> None:
        """Until so many calls of robots are being answered."""
        robots = self.listener._robots._robots
        wait_until(lambda: sum(robot.calls for robot in list(robots.values())) == count, f"{count} calls run")

    def restart(self) -> None:
        """The same server on the same port, which knows nobody."""
        self.listener.close()
        self.listener = listen(*self.listener.address, self.service, self.context)

    def close(self) -> None:
        self.context.stopping.set()
        self.listener.close()
        self.service.close()


class RobotClient:
    """The calls that LeRobot's robot client makes."""

    def __init__(self, place: Place, module: str = HELPERS) -> None:
        self.address, self._module = "{}:{}".format(*place.listener.address), module
        self.channel = grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])

    def _unary(self, name: str, request: Any, reply: Any) -> Any:
        method = self.channel.unary_unary(f"/{SERVICE}/{name}", lambda message: message.SerializeToString(), reply)
        return method(request, timeout=DEADLINE_S)

    def ready(self) -> None:
        self._unary("Ready", Empty(), Empty.FromString)

    def instruct(self, features: dict[str, Any] | None = None, **changes: Any) -> None:
        features = {"observation.state": {"dtype": "float32", "shape": (14,), "names": STATE}} | (features or {})
        fields = {"pretrained_name_or_path": MODEL, "actions_per_chunk": 4} | changes
        setup = RemotePolicyConfig("act", lerobot_features=features, module=self._module, **fields)
        self._unary("SendPolicyInstructions", PolicySetup(data=dump_setup(setup)), Empty.FromString)

    def start(self, **changes: Any) -> RobotClient:
        self.ready()
        self.instruct(**changes)
        return self

    def send(self, value: float = 0.0, timestep: int = 0, timestamp: float = 100.0, **more: Any) -> None:
        raw = {name: value if name == "s0.pos" else 0.0 for name in STATE} | more
        observation = TimedObservation(timestamp, timestep, raw, must_go=False)
        self.send_parts(cut(dump_observation(observation, self._module)))

    def send_parts(self, parts: Iterator[Any]) -> None:
        self.stream(parts).result()

    def stream(self, parts: Iterator[Any]) -> Any:
        method = self.channel.stream_unary(
            f"/{SERVICE}/SendObservations", lambda message: message.SerializeToString(), Empty.FromString
        )
        return method.future(parts, timeout=DEADLINE_S)

    def get(self) -> list[TimedAction]:
        reply = self._unary("GetActions", Empty(), Actions.FromString)
        return load_actions(reply.data) if reply.data else []

    def waiting_get(self) -> Any:
        """GetActions that is under way."""
        method = self.channel.unary_unary(
            f"/{SERVICE}/GetActions", lambda message: message.SerializeToString(), Actions.FromString
        )
        return method.future(Empty(), timeout=DEADLINE_S)

    def close(self) -> None:
        self.channel.close()
