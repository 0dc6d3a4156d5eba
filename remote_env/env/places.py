"""Where a task server runs: this machine, a machine reached over SSH, or an address where one listens already."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from remote_env.errors import AuthError, ConfigError, ConnectError, DeadlineExceeded, StartError
from remote_env.session import Dial
from remote_env.transport import Transport, connect_tcp, connect_unix

LAUNCHER = Path(__file__).parents[1] / "server" / "launch.py"
POLL_S = 0.002
RECORD_WAIT_S = 0.5  # a server listens a moment before its record is there
MAX_UNIX_PATH = 100  # bytes; the kernels' own limits are 107 on Linux and 103 on macOS
STOP_TIMEOUT_S = 10.0
Progress = Callable[[str], None]


@dataclass
class Server:
    """A task server that can be dialled.

    Attributes:
        dial: makes a transport to it.
        token: its token; never shown.
        started: whether we started it, so that closing ends it.
        where: its address, to show.
        stop: ends it, by force if need be, and removes what starting it made. Only if `started`.
        log_tail: the last lines of its log, for when it can no longer be asked.
        let_go: in a forked child, frees what would keep it running when its starter dies.
    """

    dial: Dial
    token: str = field(repr=False)
    started: bool
    where: str
    stop: Callable[[float], None] = lambda _deadline: None
    log_tail: Callable[[int], str] = lambda _lines: ""
    let_go: Callable[[], None] = lambda: None


class Place(Protocol):
    """Where servers run."""

    name: str

    def find(self, port: int, deadline: float) -> Server | None:
        """The server of ours that listens on `port` there, or None when nothing of ours does."""

    def start(self, settings: dict[str, Any], deadline: float, on_progress: Progress) -> Server:
        """Start a server with these settings; StartError when it does not come up."""

    def send_folder(self, folder: Path, deadline: float) -> str:
        """Make a local folder or file available there, under its own name; its path there."""

    def close(self) -> None:
        """Free the connection to the place; servers that run there go on."""


class LocalPlace:
    """This machine.

    Args:
        python: the interpreter that serves; None for the client's own.
        busy_poll_s: see `SocketTransport`.
        token: for servers found by port, when not in this user's registry.
    """

    name = "local"

    def __init__(self, *, python: str | None = None, busy_poll_s: float = 0.0, token: str | None = None) -> None:
        self._python = python or sys.executable
        self._busy_poll_s = busy_poll_s
        self._token = token

    def find(self, port: int, deadline: float) -> Server | None:
        """See `Place.find`."""
        if not _listens("127.0.0.1", port, deadline):
            return None
        token = self._token or read_registered_token(port)
        return Server(self._dial_tcp(port), token, started=False, where=f"127.0.0.1:{port}")

    def _dial_tcp(self, port: int, host: str = "127.0.0.1") -> Dial:
        return lambda deadline: connect_tcp(host, port, deadline, busy_poll_s=self._busy_poll_s)

    def start(self, settings: dict[str, Any], deadline: float, on_progress: Progress) -> Server:
        """See `Place.start`."""
        on_progress("starting the embedded server")
        embedded = EmbeddedServer(self._python, settings)
        try:
            ready = embedded.wait_ready(deadline)
        except BaseException:
            embedded.stop(time.monotonic() + STOP_TIMEOUT_S)
            raise
        listen = ready["listen"]
        dial: Dial
        if "unix" in listen:
            dial = lambda until: connect_unix(listen["unix"], until, busy_poll_s=self._busy_poll_s)  # noqa: E731
            where = str(listen["unix"])
        else:
            dial, where = self._dial_tcp(listen["tcp"][1], listen["tcp"][0]), "{}:{}".format(*listen["tcp"])
        stop, log_tail, let_go = embedded.stop, embedded.log_tail, embedded.let_go
        return Server(dial, settings["token"], True, where, stop=stop, log_tail=log_tail, let_go=let_go)

    def send_folder(self, folder: Path, deadline: float) -> str:  # noqa: ARG002  nothing to wait for
        """See `Place.send_folder`; here it is where it is."""
        return str(folder)

    def close(self) -> None:
        """See `Place.close`."""


class EmbeddedServer:
    """A server process on this machine, in a private temporary folder that goes with it."""

    def __init__(self, python: str, settings: dict[str, Any]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="remote-env-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._leash = -1
        try:
            self._launch(python, settings)
        except BaseException:
            self.stop(time.monotonic() + STOP_TIMEOUT_S)
            raise

    def _launch(self, python: str, settings: dict[str, Any]) -> None:
        settings = {**settings, "listen": settings["listen"] or self._default_address()}
        leash, self._leash = os.pipe()
        posix = os.name == "posix"
        if posix:
            settings["leash_fd"] = leash
        try:
            path = self._folder / "settings.json"
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(settings, file)
            with (self._folder / "log").open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603  the interpreter is the caller's to name
                    [*split_command(python), str(LAUNCHER), str(self._folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in our terminal is ours to handle
                    pass_fds=(leash,) if posix else (),
                )
        except OSError as error:
            raise StartError(
                f"python={python!r} cannot be run on this machine ({error}); pass python= with an interpreter that can"
            ) from error
        finally:
            os.close(leash)

    def _default_address(self) -> dict[str, Any]:
        path = str(self._folder / "socket")
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= MAX_UNIX_PATH:
            return {"unix": path}
        return {"tcp": ["127.0.0.1", 0]}

    def wait_ready(self, deadline: float) -> dict[str, Any]:
        """What the server says once it listens.

        Raises:
            StartError: it failed, or ended without a word; `log_tail` holds its last lines.
            DeadlineExceeded: neither came in time.
        """
        ready, failed = self._folder / "ready.json", self._folder / "failed.json"
        while time.monotonic() < deadline:
            if ready.exists():
                return dict(json.loads(ready.read_text()))
            ended = self._process is not None and self._process.poll() is not None
            if failed.exists():
                failure = json.loads(failed.read_text())
                raise StartError(failure["message"], kind=failure["kind"], log_tail=self.log_tail(40))
            if ended:
                raise StartError(
                    f"the embedded server ended with status {self._process.returncode}:\n{self.log_tail(20)}",  # type: ignore[union-attr]
                    log_tail=self.log_tail(40),
                )
            time.sleep(POLL_S)
        raise DeadlineExceeded("the embedded server did not start in time; is this machine overloaded?")

    def log_tail(self, lines: int) -> str:
        """The last `lines` lines of its log; "" once the folder is gone."""
        path = self._folder / "log"
        try:
            return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def let_go(self) -> None:
        """Close our end of its leash: it ends when no process holds one."""
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1

    def stop(self, deadline: float) -> None:
        """End it: by its leash, and by force at the deadline; then remove its folder."""
        self.let_go()
        if self._process is not None:
            try:
                self._process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                # All of its process group, for `python` may be a wrapper; the simulators die by their leashes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL) if os.name == "posix" else self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class AddressPlace(LocalPlace):
    """A server that listens at a TCP address already; nothing is started there."""

    def __init__(self, host: str, port: int, *, busy_poll_s: float = 0.0, token: str | None = None) -> None:
        super().__init__(busy_poll_s=busy_poll_s, token=token)
        self.name = f"tcp://{host}:{port}"
        self._address = host, port

    def find(self, port: int, deadline: float) -> Server:
        """See `Place.find`; ConnectError when nothing listens."""
        host, port = self._address
        dial = self._dial_tcp(port, host)
        dial(deadline).close()
        return Server(dial, self._token or read_registered_token(port), started=False, where=f"{host}:{port}")


class SshPlace:
    """A machine reached over SSH; one login serves everything.

    Args:
        connection: a `remote_env.ssh.SshConnection`, not connected yet.
        python: the far interpreter's command line.
        token: for servers found by port; default what the far registry says, else REMOTE_ENV_TOKEN.
    """

    def __init__(self, connection: Any, *, python: str | None = None, token: str | None = None) -> None:
        self._connection = connection
        self._python = python or "python3"
        self._token = token
        self.name = connection.description

    def _connect(self, deadline: float) -> Any:
        self._connection.connect(deadline)  # nothing when logged in already
        return self._connection

    def find(self, port: int, deadline: float) -> Server | None:
        """See `Place.find`."""
        from remote_env.ssh import find_server

        connection = self._connect(deadline)
        entry = find_server(connection, port, deadline)
        token = self._token or (entry["token"] if entry else os.environ.get("REMOTE_ENV_TOKEN"))
        if token is None or (entry is None and not self._answers(port, deadline)):
            return None
        return Server(self._dial(port), token, started=False, where=f"{self.name} port {port}")

    def _answers(self, port: int, deadline: float) -> bool:
        try:
            self._connect(deadline).open_port(port, deadline).close()
        except ConnectError:
            return False
        return True

    def _dial(self, port: int) -> Dial:
        def dial(deadline: float) -> Transport:
            transport: Transport = self._connect(deadline).open_port(port, deadline)
            return transport

        return dial

    def start(self, settings: dict[str, Any], deadline: float, on_progress: Progress) -> Server:
        """See `Place.start`."""
        from remote_env.ssh import start_server

        on_progress(f"connecting to {self.name}")
        connection = self._connect(deadline)
        settings = {**settings, "listen": settings["listen"] or {"tcp": ["127.0.0.1", 0]}}
        handle = start_server(connection, settings, python=self._python, deadline=deadline, on_progress=on_progress)
        return Server(
            self._dial(handle.port),
            settings["token"],
            True,
            f"{self.name} port {handle.port}",
            stop=handle.stop,
            log_tail=lambda lines: str(handle.log_tail(lines, time.monotonic() + STOP_TIMEOUT_S)),
        )

    def send_folder(self, folder: Path, deadline: float) -> str:
        """See `Place.send_folder`: by content, once."""
        from remote_env.ssh import upload_folder

        return str(upload_folder(self._connect(deadline), folder, deadline))

    def close(self) -> None:
        """See `Place.close`."""
        with contextlib.suppress(OSError):
            self._connection.close()


def open_place(host: str | None, options: PlaceOptions) -> Place:
    """The place that `host` names; nothing is connected yet.

    Raises:
        ConfigError: `host` is no address that we understand.
    """
    if host is None or host == "local":
        return LocalPlace(python=options.python, busy_poll_s=options.busy_poll_s, token=options.token)
    if host.startswith("tcp://"):
        name, _, port = host.removeprefix("tcp://").rpartition(":")
        if not name or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"host={host!r} is no TCP address; write it with the port: tcp://127.0.0.1:8888")
        return AddressPlace(name.strip("[]"), int(port), busy_poll_s=options.busy_poll_s, token=options.token)
    if "://" in host and not host.startswith("ssh://"):
        raise ConfigError(
            f"host={host!r}: write user@box or ssh://user@box:2222 for SSH, tcp://127.0.0.1:8888 to attach"
        )
    from remote_env.ssh import SshConnection

    connection = SshConnection(
        host,
        ssh_port=options.ssh_port,
        identity_file=options.identity_file,
        accept_new_host_key=options.accept_new_host_key,
        known_hosts_file=options.known_hosts_file,
        config_file=options.ssh_config_file,
        connect_timeout_s=options.connect_timeout_s,
    )
    return SshPlace(connection, python=options.python, token=options.token)


@dataclass(frozen=True)
class PlaceOptions:
    """How to reach a place; see `RemoteEnv` for each."""

    python: str | None = None
    busy_poll_s: float = 0.0
    token: str | None = field(default=None, repr=False)
    ssh_port: int | None = None
    identity_file: str | None = None
    accept_new_host_key: bool = False
    known_hosts_file: str | None = None
    ssh_config_file: str | None = None
    connect_timeout_s: float = 30.0


def _listens(host: str, port: int, deadline: float) -> bool:
    with socket.socket() as sock:
        sock.settimeout(max(deadline - time.monotonic(), 0.1))
        return sock.connect_ex((host, port)) == 0


def read_registered_token(port: int) -> str:
    """The token of this user's server on a port of this machine: of the record that it keeps, else of the environment.

    Raises:
        AuthError: neither is there.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    path = base / "remote-env" / "servers" / platform.node() / f"{port}.json"
    from_environment = os.environ.get("REMOTE_ENV_TOKEN")
    if from_environment and not path.exists():
        return from_environment
    until = time.monotonic() + RECORD_WAIT_S
    while not path.exists() and time.monotonic() < until:
        time.sleep(POLL_S)
    try:
        return str(json.loads(path.read_text())["token"])
    except (OSError, ValueError, KeyError) as error:
        raise AuthError(
            f"something listens on port {port}, but its token is unknown: there is no {path}, and REMOTE_ENV_TOKEN is "
            "not set; is that a task server of yours? Pass token= or set REMOTE_ENV_TOKEN"
        ) from error


def split_command(python: str) -> list[str]:
    """A local interpreter as an argument list: a path that exists is one word, anything else is a command line."""
    import shlex

    if Path(python).expanduser().exists():
        return [str(Path(python).expanduser())]
    words = shlex.split(python)
    return [str(Path(words[0]).expanduser()), *words[1:]] if words else [python]
