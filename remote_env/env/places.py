"""Where a task server runs: this machine, a machine reached over SSH, or an address where one listens already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from remote_env.env.local_place import AddressPlace, LocalPlace
from remote_env.env.processes import Processes
from remote_env.env.server import Progress, Server, ServerRecord
from remote_env.env.ssh_place import SshPlace
from remote_env.errors import ConfigError
from remote_env.transport import SocketOptions


class Place(Protocol):
    """Where servers run.

    Attributes:
        name: to show.
        is_remote: whether it is another machine.
    """

    name: str
    is_remote: bool

    def find(self, port: int, deadline: float) -> Server | None:
        """The server of ours that listens on `port` there, or None when nothing of ours does."""

    def start(
        self, settings: dict[str, Any], deadline: float, on_progress: Progress, *, outlives: bool = False
    ) -> Server:
        """Start a server with these settings; StartError when it does not come up.

        Args:
            settings: what its settings.json holds.
            deadline: monotonic [s].
            on_progress: told of each phase and what it does.
            outlives: whether it may go on when this process ends; over SSH all do.
        """

    def send_folder(self, folder: Path, deadline: float) -> str:
        """Make a local folder or file available there, under its own name; its path there."""

    def send_bundle(self, paths: Sequence[Path], deadline: float) -> str:
        """Make several local files and folders available there, side by side in one folder; its path there."""

    def list(self, deadline: float) -> list[ServerRecord]:
        """The living servers of this user there that listen on a port, oldest first.

        What dead ones left behind is removed, by process id and start time.
        """

    def attach(self, record: ServerRecord, deadline: float) -> Server:
        """The server of a record, to dial; closing it leaves it running."""

    def stop(self, record: ServerRecord, deadline: float) -> None:
        """End exactly this server and its simulators, and remove its folder; it may have ended already.

        Raises:
            ConnectError: the machine cannot be reached; the server may run on.
            DeadlineExceeded: as `ConnectError`.
        """

    def read_tail(self, path: str, lines: int, deadline: float) -> str:
        """The last lines of a file there; at most 1 MB.

        Raises:
            ConfigError, StartError: it cannot be read; the message says why.
        """

    def list_processes(self, name: str, deadline: float) -> Processes:
        """This user's processes there whose command line contains `name`: `pid`, `elapsed_s`, `command`."""

    def close(self) -> None:
        """Free the connection to the place; servers that run there go on."""


@dataclass(frozen=True)
class PlaceOptions:
    """How to reach a place; see `RemoteEnv` for each."""

    python: str | None = None
    busy_poll_s: float = 0.0
    tcp_user_timeout_s: float = 30.0
    ssh_keepalive_s: float | None = None
    ssh_keepalive_count: int | None = None
    token: str | None = field(default=None, repr=False)
    ssh_port: int | None = None
    identity_file: str | None = None
    accept_new_host_key: bool = False
    known_hosts_file: str | None = None
    ssh_config_file: str | None = None
    connect_timeout_s: float = 30.0
    tunnel: str = "channel"
    via: str | Sequence[str] | None = None
    launch: str | None = None
    launch_host: str | None = None
    ask_secret: Callable[[Any], str | None] | None = None


def open_place(host: str | None, options: PlaceOptions) -> Place:
    """The place that `host` names; nothing is connected yet.

    Raises:
        ConfigError: `host` is no address that we understand, or an option means nothing there.
    """
    sockets = SocketOptions(options.busy_poll_s, options.tcp_user_timeout_s)
    if host is None or host == "local":
        _refuse_ssh_options("this machine", options)
        return LocalPlace(python=options.python, token=options.token, sockets=sockets)
    if host.startswith("tcp://"):
        _refuse_ssh_options(host, options)
        name, _, port = host.removeprefix("tcp://").rpartition(":")
        if not name or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"host={host!r} is no TCP address; write it with the port: tcp://127.0.0.1:8888")
        return AddressPlace(name.strip("[]"), int(port), token=options.token, sockets=sockets)
    if "://" in host and not host.startswith("ssh://"):
        raise ConfigError(
            f"host={host!r}: write user@box or ssh://user@box:2222 for SSH, tcp://127.0.0.1:8888 to attach"
        )
    return SshPlace(make_connection(host, options), options)


def _refuse_ssh_options(place: str, options: PlaceOptions) -> None:
    given = [name for name in ("via", "launch", "launch_host") if getattr(options, name) is not None]
    if given:
        raise ConfigError(f"{given[0]}= means a machine reached over SSH, and host= is {place}; name it: 'user@box'")


def make_connection(host: str, options: PlaceOptions) -> Any:
    """The SSH login that reaches `host`, a `remote_env.ssh.SshConnection`; nothing is connected yet."""
    from remote_env.ssh import SshConnection

    return SshConnection(
        host,
        ssh_port=options.ssh_port,
        identity_file=options.identity_file,
        accept_new_host_key=options.accept_new_host_key,
        known_hosts_file=options.known_hosts_file,
        config_file=options.ssh_config_file,
        connect_timeout_s=options.connect_timeout_s,
        via=options.via,
        ask_secret=options.ask_secret,
        ssh_keepalive_s=options.ssh_keepalive_s,
        ssh_keepalive_count=options.ssh_keepalive_count,
    )
