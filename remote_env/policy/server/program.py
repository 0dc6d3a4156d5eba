"""The program: listen, load, serve, end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from remote_env.errors import ConfigError, RemoteEnvError
from remote_env.policy.dialects import load_dialect
from remote_env.policy.observation import describe_features
from remote_env.policy.policy import Policy
from remote_env.policy.server.connections import Connections
from remote_env.policy.server.exposure import (
    asks_all_for_the_token,
    check_exposure,
    describe_clients,
    is_loopback,
)
from remote_env.policy.server.listener import Listener, show_place
from remote_env.policy.server.log import Log
from remote_env.policy.server.metrics import GpuReader, Readiness, read_metrics
from remote_env.policy.server.runner import advise
from remote_env.policy.server.service import PolicyService, ServeContext
from remote_env.policy.server.settings import Endpoint, Settings, read_settings
from remote_env.policy.token_file import MIN_TOKEN_LENGTH, check_token_place, remove_token, write_token
from remote_env.protocol.handshake import new_token
from remote_env.protocol.monitoring import answer_http, write_metrics

TOLD_APART = ("renv", "ilstudio", "openpi")  # by their first bytes, on a port of no named dialect
CLOSE_TIMEOUT_S = 5.0
HANG_UP_TIMEOUT_S = 1.0
SIGNALS_EVERY_S = 0.25
TOKEN_VARIABLE = "REMOTE_ENV_TOKEN"  # noqa: S105  its name
Load = Callable[..., Policy]


class Place(Protocol):
    """Something that listens."""

    address: tuple[str, int]

    def close(self) -> None:
        """Stop listening."""


def main(arguments: Sequence[str] | None = None, *, load: Load | None = None) -> int:
    """Serve until Ctrl-C; the exit status: 0 after a stop, 1 when it cannot serve.

    Args:
        arguments: flags; the process's own by default.
        load: makes the policy from the model's name; `load_policy` by default.
    """
    flags = list(sys.argv[1:] if arguments is None else arguments)
    log = Log()
    try:
        settings = read_settings(flags)
        return Server(settings, log, load or _load_policy, command=[*_program(), *flags]).run()
    except RemoteEnvError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


def _program() -> list[str]:
    return ["python", sys.argv[0]]


def _take_token() -> str:
    """The token that the user chose, which then is in no environment of ours any more; else a fresh one."""
    token = os.environ.pop(TOKEN_VARIABLE, "") or new_token()
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConfigError(
            f"{TOKEN_VARIABLE} is shorter than {MIN_TOKEN_LENGTH} characters; make one: openssl rand -hex 32"
        )
    return token


def _load_policy(*args: Any, **options: Any) -> Policy:
    from remote_env.policy.loading import load_policy  # what it needs may be slow to import, or missing

    return load_policy(*args, **options)


class Server:
    """One run of the program.

    Args:
        settings: what it does.
        log: takes lines.
        load: makes the policy, as `load_policy`.
        command: the command line, to be quoted in advice.
    """

    def __init__(self, settings: Settings, log: Callable[[str], None], load: Load, *, command: Sequence[str]) -> None:
        self._settings, self._log, self._load, self._command = settings, log, load, command
        self._stopping = threading.Event()
        self._readiness, self._gpus, self._started = Readiness(), GpuReader(), time.monotonic()
        self._connections = Connections(settings.max_clients)
        self._service: PolicyService | None = None
        self._token = _take_token()
        self._places: list[Place] = []
        self._tokens_at: list[int] = []  # ports whose token files are ours
        self._may_raise = True  # a signal ends what the main thread does
        self._signals = 0

    def run(self) -> int:
        """Serve until a signal; 0 after a clean end.

        Raises:
            RemoteEnvError: it cannot serve; nothing is left behind.
        """
        with self._signals_handled():
            try:
                self._serve()
            except KeyboardInterrupt:
                pass  # a signal before it was ready
            except Exception:
                if not self._stopping.is_set():
                    raise
                # What was being imported or loaded has made an error of its own of the signal.
            finally:
                self._may_raise = False
                self._end()
        self._log("stopped")
        return 0

    def _serve(self) -> None:
        places = self._bind()
        self._service = service = self._make_service()
        if self._stopping.is_set():  # what was being loaded has swallowed the signal
            return
        self._describe(service)
        self._readiness.change("warming up")
        service.warm_up()
        for endpoint, listener in places:
            self._open(endpoint, listener, service)
        self._readiness.change("")
        self._log(f"ready; waiting for clients. Ctrl-C or kill {os.getpid()} stops it")
        self._may_raise = False
        # The system may hand a signal to another thread, which does not wake this one; only here is it handled.
        while not self._stopping.wait(SIGNALS_EVERY_S):
            pass

    # Ports

    def _bind(self) -> list[tuple[Endpoint, Listener]]:
        """Take every port, without listening yet: clients are refused, not kept waiting, while the model loads."""
        self._check_ports()
        spoken = [(endpoint, self._dialects(endpoint)) for endpoint in self._settings.endpoints]
        for endpoint, dialects in spoken:
            check_exposure(self._settings, endpoint, dialects, self._command)
        health = self._settings.health_port
        if health is not None:
            check_exposure(self._settings, Endpoint("", self._settings.host, health), {}, self._command)
            listener = self._listener(Endpoint("", self._settings.host, health), {})
            listener.start(None)
            self._log(f"http://{show_place(*listener.address)}/healthz and /metrics answer from now on")
        places = [(endpoint, self._listener(endpoint, dialects)) for endpoint, dialects in spoken]
        for endpoint, listener in places:
            if self._needs_token(endpoint, listener):
                check_token_place(listener.address[1])
        return places

    def _check_ports(self) -> None:
        """ConfigError when a port is asked for twice; the system would tell only once the model is loaded."""
        settings = self._settings
        health = [] if settings.health_port is None else [(settings.host, settings.health_port)]
        places = [*((endpoint.host, endpoint.port) for endpoint in settings.endpoints), *health]
        for place in places:
            if place[1] and places.count(place) > 1:
                raise ConfigError(
                    f"{show_place(*place)} is asked for twice; give each --listen, and health, its own port"
                )

    def _needs_token(self, endpoint: Endpoint, listener: Listener) -> bool:
        asks_all = asks_all_for_the_token(endpoint, listener.dialects)
        return "renv" in listener.dialects or (asks_all and "openpi" in listener.dialects)

    def _dialects(self, endpoint: Endpoint) -> dict[str, Any]:
        """The modules of what is spoken there; on a port of no named dialect what is not installed is left out."""
        if endpoint.dialect:
            return {endpoint.dialect: load_dialect(endpoint.dialect)}
        modules = {}
        for name in TOLD_APART:
            try:
                modules[name] = load_dialect(name)
            except ConfigError as error:
                self._log(f"{name} is not served: {error}")
        return modules

    def _listener(self, endpoint: Endpoint, dialects: dict[str, Any]) -> Listener:
        context = ServeContext(log=self._log, stopping=self._stopping)
        listener = Listener(
            endpoint.host,
            endpoint.port,
            dialects,
            connections=self._connections,
            context=context,
            answer=self._answer_http,
        )
        self._places.append(listener)
        return listener

    def _open(self, endpoint: Endpoint, listener: Listener, service: PolicyService) -> None:
        """Listen, and say so."""
        beyond = not is_loopback(endpoint.host)
        context = self._context(require_token=asks_all_for_the_token(endpoint, listener.dialects))
        place: Place = listener
        spoken, token_file = list(listener.dialects), None
        if endpoint.dialect == "lerobot":
            listener.close()  # it has shown that the port was free; gRPC binds it itself
            place = listener.dialects["lerobot"].listen(endpoint.host, endpoint.port, service, context)
            self._places.append(place)
        else:
            if self._needs_token(endpoint, listener):
                token_file = self._leave_token(place.address[1])
            listener.start(service, context)
        self._announce(replace(endpoint, port=place.address[1]), spoken, token_file, beyond=beyond)

    def _announce(self, endpoint: Endpoint, spoken: list[str], token_file: Path | None, *, beyond: bool) -> None:
        more = "gRPC only" if endpoint.dialect == "lerobot" else "and HTTP for /healthz and /metrics"
        self._log(f"listening on {show_place(endpoint.host, endpoint.port)} ({', '.join(spoken)}; {more})")
        if token_file is not None:
            self._log(f"clients of this account find the token in {token_file}")
        for line in describe_clients(endpoint, spoken, token_file, beyond=beyond):
            self._log(line)

    def _context(self, *, require_token: bool) -> ServeContext:
        settings = self._settings
        return ServeContext(
            token=self._token,
            require_token=require_token,
            log=self._log,
            stopping=self._stopping,
            allow_models=settings.allow_model,
            model=settings.model_name_or_path,
        )

    def _leave_token(self, port: int) -> Path:
        self._tokens_at.append(port)
        return write_token(port, self._token)

    def _remove_tokens(self) -> None:
        for port in self._tokens_at:
            remove_token(port, self._token)

    def _answer_http(self, head: bytes) -> bytes:
        return answer_http(head, self._readiness.health(), self._write_metrics)

    def _write_metrics(self) -> str:
        return write_metrics(read_metrics(self._service, self._readiness, self._gpus, self._started))

    # The model

    def _make_service(self) -> PolicyService:
        settings = self._settings
        policies: list[Policy] = []
        try:
            policies.extend(self._load_on(device) for device in settings.devices)
            return PolicyService(
                policies,
                log=self._log,
                max_batch=settings.max_batch,
                max_wait_s=settings.max_wait_ms / 1000,
                max_queue=settings.max_queue,
                queue_policy=settings.queue_policy,
            )
        except BaseException:
            for policy in policies:
                policy.close()
            raise

    def _describe(self, service: PolicyService) -> None:
        metadata = service.metadata
        rate = f" at {metadata.control_rate_hz:g} Hz" if metadata.control_rate_hz else ""
        sizes = f"{metadata.chunk_size} × {metadata.action_size}"
        self._log(f"it takes {describe_features(metadata)} and gives chunks of {sizes} actions{rate}")
        if self._settings.max_batch > 1 and not metadata.batches:
            self._log("--max_batch has no effect: this policy takes one observation at a time")

    def _load_on(self, device: str) -> Policy:
        settings, began = self._settings, time.monotonic()
        model = settings.model_name_or_path
        self._readiness.change("loading the model")
        self._log(f"loading {model} on {device}")
        try:
            policy = self._load(model, dataset_id=settings.dataset_id, device=device, chunk_size=settings.chunk_size)
        except RemoteEnvError:
            raise
        except Exception as error:
            if self._stopping.is_set():
                raise
            self._log(traceback.format_exc().rstrip())
            why = f"{type(error).__name__}: {error}{advise(error)}"
            raise ConfigError(f"{model} could not be loaded on {device}: {why}") from error
        self._log(f"loaded {policy.metadata.name} on {device} in {time.monotonic() - began:.2f} s")
        return policy

    # The end

    def _end(self) -> None:
        """Take no more clients, answer what runs, end the connections, close the model; then no file is left."""
        self._readiness.change("stopping")
        self._stopping.set()
        for place in self._places:
            place.close()
        until = time.monotonic() + CLOSE_TIMEOUT_S
        self._connections.stop_reading()
        is_closed = self._service is None or self._service.close(CLOSE_TIMEOUT_S)
        if is_closed:
            self._connections.join(until - time.monotonic())
        self._connections.shut_down()
        self._connections.join(HANG_UP_TIMEOUT_S)
        for client in [] if self._service is None else self._service.living:  # lost ones, whose places were kept
            client.close()
        self._remove_tokens()
        if not is_closed:
            self._log(f"the model was still busy after {CLOSE_TIMEOUT_S:g} s; stopped")
            os._exit(0)  # its thread cannot be ended, and would crash in an interpreter that ends

    @contextlib.contextmanager
    def _signals_handled(self) -> Iterator[None]:
        """Ctrl-C, kill and a closed terminal end the server; what whoever started us ignores stays ignored."""
        before = {}
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._signals += 1
        name = signal.Signals(number).name
        if self._signals > 1:
            _write(f"{name} again: ended at once")
            self._remove_tokens()
            os._exit(128 + number)
        self._stopping.set()
        _write(f"{name}: stopping; once more ends it at once")
        if self._may_raise:
            raise KeyboardInterrupt


def _write(text: str) -> None:
    """A line from a signal handler, which must not wait for the log's lock: its holder may be what it interrupted."""
    with contextlib.suppress(OSError):
        os.write(1, f"{time.strftime('%H:%M:%S')} {text}\n".encode())
