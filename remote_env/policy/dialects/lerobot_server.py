"""A server of LeRobot's async inference: any robot client of LeRobot's may use the policy.

It differs from LeRobot's own in this: what comes is read as data (nothing that a pickle names runs); each robot client
has its own place; an observation is dropped only when a newer one came before its turn; a refusal says why.
"""

from __future__ import annotations

import errno
import functools
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from remote_env.errors import ConfigError, InputError, MessageTooBig, PolicyError, ProtocolError, RemoteEnvError
from remote_env.policy.dialects.lerobot_messages import (
    EXTENSION,
    MAX_GRPC_MESSAGE_BYTES,
    SERVICE,
    Actions,
    Empty,
    Observation,
    PolicySetup,
    join,
)
from remote_env.policy.dialects.lerobot_models import Models
from remote_env.policy.dialects.lerobot_pickle import dump_actions, load_observation, load_setup
from remote_env.policy.dialects.lerobot_robots import CALLS_PER_ROBOT, MAX_STRANGERS, Robot, Robots
from remote_env.policy.dialects.restricted_pickle import PickleLimits
from remote_env.policy.server.port_holder import describe_holder
from remote_env.policy.server.service import PolicyService, ServeContext

WAIT_S = 2.0  # how long GetActions waits for an observation; LeRobot's own server waits as long
DEFAULT_RATE_HZ = 30.0  # LeRobot's own
STOP_TIMEOUT_S = 5.0
TRANSFER_TIMEOUT_S = 60.0  # for one observation
OVERHEAD_BYTES = 64  # of the message around a chunk
MAX_DETAILS = 2000  # characters of a reason; gRPC sends it as a header
_CODES: dict[type[RemoteEnvError], grpc.StatusCode] = {
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    MessageTooBig: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    PolicyError: grpc.StatusCode.INTERNAL,
}


class Listener:
    """A gRPC server on a port of its own.

    Attributes:
        address: (host, port) that it listens on.

    Args:
        host: a name or an address.
        port: 0 for any that is free.
        service: what it serves.
        context: of the server.

    Raises:
        ConfigError: the port is taken, or the host is not this machine's.
    """

    def __init__(self, host: str, port: int, service: PolicyService, context: ServeContext) -> None:
        _check_free(host, port)
        self._models = Models(service, context)
        self._robots = Robots(self._models, context)
        workers = self._robots.limit * CALLS_PER_ROBOT + 2 * MAX_STRANGERS
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=f"lerobot-{port}")
        self._server = grpc.server(self._executor, options=_options(), maximum_concurrent_rpcs=workers)
        self._server.add_generic_rpc_handlers(_Methods(service, self._robots, context).handlers())
        try:
            bound = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            self._executor.shutdown(wait=False)
            raise ConfigError(
                f"cannot listen on {host}:{port}: {describe_holder(port)}; choose another port"
            ) from error
        self.address: tuple[str, int] = (host, bound)
        self._server.start()
        self._robots.start()

    def close(self) -> None:
        """Answer what runs with a failure, let every robot go, and free the port; may be called again."""
        self._robots.close()
        self._server.stop(grace=0.2).wait(STOP_TIMEOUT_S)
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._models.close()


def listen(host: str, port: int, service: PolicyService, context: ServeContext) -> Listener:
    """Serve robot clients from now on; see `Listener`."""
    return Listener(host, port, service, context)


def _check_free(host: str, port: int) -> None:
    """ConfigError unless the port can be had: gRPC would not say why, and keep descriptors of a server that failed."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        why = describe_holder(port) if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {why}; end that, or choose another port") from error


def _options() -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # else two servers share a port, and clients meet either
        ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_BYTES),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.keepalive_time_ms", 30_000),  # a robot that was switched off is noticed
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


class _Methods:
    """What gRPC calls, each in a thread of its pool."""

    def __init__(self, service: PolicyService, robots: Robots, context: ServeContext) -> None:
        self._service, self._robots, self._context = service, robots, context
        self._limits = PickleLimits(max_bytes=context.max_message_bytes)
        self._dt_s = 1 / (service.metadata.control_rate_hz or DEFAULT_RATE_HZ)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Of LeRobot's service, and of the one by which our own clients ask what is served."""
        theirs = {
            "Ready": self._unary(self.ready, Empty),
            "SendPolicyInstructions": self._unary(self.send_policy_instructions, PolicySetup),
            "SendObservations": grpc.stream_unary_rpc_method_handler(
                self._explained(self.send_observations), Observation.FromString, _to_bytes
            ),
            "GetActions": self._unary(self.get_actions, Empty),
        }
        ours = {"Describe": self._unary(self.describe, Empty), "Leave": self._unary(self.leave, Empty)}
        return (
            grpc.method_handlers_generic_handler(SERVICE, theirs),
            grpc.method_handlers_generic_handler(EXTENSION, ours),
        )

    def ready(self, _request: Any, call: grpc.ServicerContext) -> Any:
        """A robot client starts: it has no episode yet."""
        self._robots.open(call.peer()).restart()
        return Empty()

    def send_policy_instructions(self, request: Any, call: grpc.ServicerContext) -> Any:
        """It says which policy it wants, and what its robot has."""
        with self._robots.using(call) as robot:
            robot.instruct(load_setup(request.data))
        return Empty()

    def send_observations(self, messages: Iterator[Any], call: grpc.ServicerContext) -> Any:
        """It brings one observation."""
        with self._robots.using(call, timeout_s=TRANSFER_TIMEOUT_S) as robot:
            robot.put(load_observation(join(messages, self._context.max_message_bytes), self._limits))
        return Empty()

    def get_actions(self, _request: Any, call: grpc.ServicerContext) -> Any:
        """The chunk for what it brought last; an empty one when nothing came in time, or something failed."""
        try:
            with self._robots.using(call, leaves_when_cancelled=True) as robot:
                return self._infer(robot)
        except RemoteEnvError as error:
            self._robots.complain(call, f"no actions: {error}")
            return Actions()

    def _infer(self, robot: Robot) -> Any:
        waiting = robot.take(WAIT_S)
        if waiting is None or robot.setup is None:
            return Actions()
        chunk = robot.infer(waiting)
        data = dump_actions(
            chunk,
            timestamp=waiting.timestamp,
            timestep=waiting.timestep,
            dt_s=self._dt_s,
            module=robot.setup.module,
        )
        if len(data) > MAX_GRPC_MESSAGE_BYTES - OVERHEAD_BYTES:
            raise MessageTooBig(f"a chunk of {len(data)} bytes; LeRobot's clients take {MAX_GRPC_MESSAGE_BYTES}")
        return Actions(data=data)

    def describe(self, _request: Any, _call: grpc.ServicerContext) -> Any:
        """What is served, for our own clients: LeRobot's have no such question."""
        about = {"metadata": self._service.metadata.to_plain(), "model": self._context.model}
        return Actions(data=json.dumps(about).encode())

    def leave(self, _request: Any, call: grpc.ServicerContext) -> Any:
        """One of our own clients says goodbye."""
        self._robots.forget(call.peer())
        return Empty()

    def _unary(self, method: Callable[..., Any], request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._explained(method), request.FromString, _to_bytes)

    def _explained(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, whose errors reach the client with a reason, and the log."""

        @functools.wraps(method)
        def answer(request: Any, call: grpc.ServicerContext) -> Any:
            try:
                return method(request, call)
            except RemoteEnvError as error:
                self._robots.complain(call, f"refused: {error}")
                code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)
                call.abort(code, str(error)[:MAX_DETAILS])

        return answer


def _to_bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
