"""Servers on a machine that is reached over SSH; one login serves everything."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_env.env.processes import PS, Processes, read_processes
from remote_env.env.server import STOP_TIMEOUT_S, Progress, Server, ServerRecord
from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded
from remote_env.session import Dial
from remote_env.transport import Transport

if TYPE_CHECKING:
    from remote_env.env.places import PlaceOptions

FIRST_SHARE, FIRST_S = 1 / 3, 3.0  # of a dial's time, and at most: for a login that may have fallen silent just now
MORE_S = 0.5  # it then gets so much more

# path, lines
_TAIL = r"""
case "$path" in "~/"*) path="$HOME/${path#??}" ;; esac
[ -f "$path" ] && [ -r "$path" ] || refuse "$path is no file that you can read there"
say text
tail -n "$lines" "$path" | tail -c 1000000
"""
_LIST_PROCESSES = f"""
say processes
{" ".join(PS)} "$(id -u)"
"""


class SshPlace:
    """A machine reached over SSH.

    Args:
        connection: a `remote_env.ssh.SshConnection`, not connected yet.
        options: `python`, `token`, `tunnel`, `launch`, `launch_host` and `connect_timeout_s` count here.
    """

    is_remote = True

    def __init__(self, connection: Any, options: PlaceOptions) -> None:
        self._connection = connection
        self._options = options
        self._python = options.python or "python3"
        self._tunnel: Any = None
        self._launched: Any = None
        self._has_logged_in = self._is_closed = False
        self._pid = os.getpid()
        self._making = threading.Lock()
        self.name = connection.description

    def _connect(self, deadline: float, **patience: float) -> Any:
        """The login: made when there is none, and made anew when the old one has ended or does not answer.

        `patience` is as `SshConnection.revive` takes it.
        """
        self._check_usable()
        until = time.monotonic() + self._options.connect_timeout_s
        self._connection.revive(min(deadline, until), **patience)
        self._has_logged_in = True
        if self._is_closed:  # meanwhile, by another thread
            self._connection.close()
        self._check_usable()
        return self._connection

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise ConnectionLost(f"the SSH login to {self.name} belongs to another process; make a new one in this one")
        if self._is_closed:
            raise ConnectionLost(f"the SSH login to {self.name} was closed; nothing logs in again")

    def _shell(self, deadline: float) -> Any:
        """Where programs run: the login, or what `launch` leads to."""
        connection = self._connect(deadline)
        if self._options.launch is None:
            return connection
        from remote_env.ssh import LaunchedShell

        with self._making:
            if self._launched is None:
                self._launched = LaunchedShell(connection, self._options.launch, self._options.launch_host)
            return self._launched

    def find(self, port: int, deadline: float) -> Server | None:
        """See `Place.find`."""
        from remote_env.ssh import find_server

        entry = find_server(self._shell(deadline), port, deadline)
        token = self._options.token or (entry["token"] if entry else os.environ.get("REMOTE_ENV_TOKEN"))
        if token is None or (entry is None and not self._answers(port, deadline)):
            return None
        return self._server(port, token, self._own_dial(entry, port, deadline))

    def _answers(self, port: int, deadline: float) -> bool:
        if self._options.launch is not None:
            return False  # only a server of ours can be reached in there: by its record
        try:
            self._connect(deadline).open_port(port, deadline).close()
        except ConnectError:
            return False
        return True

    def _own_dial(self, entry: dict[str, Any] | None, port: int, deadline: float) -> Dial | None:
        """How a server behind `launch` is reached; None: like a port of the host."""
        if entry is None or self._options.launch is None:
            return None
        dial: Dial | None = self._shell(deadline).dialer(int(entry["pid"]), str(entry["start_time"]), port, deadline)
        return dial

    def _server(self, port: int, token: str, own_dial: Dial | None = None, **more: Any) -> Server:
        def reach(deadline: float) -> Transport:
            return self._open_tunnel().dial(port, deadline) if own_dial is None else own_dial(deadline)

        def dial(deadline: float) -> Transport:
            return self._dial(reach, deadline, is_own=own_dial is not None)

        def redial(deadline: float) -> Transport:
            self._check_usable()
            needs_login = self._open_tunnel().needs_login(port) if own_dial is None else not self._connection.is_open
            if needs_login:
                raise ConnectionLost(f"the SSH login to {self.name} has ended")
            return self._unless_closed(reach(deadline))

        where = f"{self.name} port {port}"
        return Server(dial, token, **{"started": False, "where": where, "port": port, "redial": redial, **more})

    def _open_tunnel(self) -> Any:
        from remote_env.ssh.tunnel import open_tunnel

        with self._making:
            self._check_usable()
            if self._tunnel is None:
                self._tunnel = open_tunnel(self._options.tunnel, self._connection)
            return self._tunnel

    def _dial(self, reach: Dial, deadline: float, *, is_own: bool) -> Transport:
        """What `reach` gives, over a login that lives; a dead one is replaced, and then nobody is asked for anything.

        Args:
            reach: makes a transport over the login as it is.
            deadline: of all of it.
            is_own: `reach` may have to run the prefix of `launch` again, which takes its time.
        """
        from remote_env.ssh.credentials import asking_nobody

        with asking_nobody() if self._has_logged_in else contextlib.nullcontext():
            self._prepare(deadline, is_own=is_own)
            until = deadline if is_own else _part_of(deadline)
            try:
                return self._unless_closed(reach(until))
            except (ConnectionLost, DeadlineExceeded):
                if time.monotonic() >= deadline:
                    raise
            # It has ended just now, or fallen silent: a question of ours has been out all the while.
            self._prepare(deadline, is_own=is_own, trust_s=MORE_S, answer_s=MORE_S)
            return self._unless_closed(reach(deadline))

    def _prepare(self, deadline: float, *, is_own: bool, **patience: float) -> None:
        """See that the login lives, where it is what carries the tunnel."""
        self._check_usable()
        if is_own or self._options.tunnel != "openssh":  # which makes logins of its own, and looks after them
            proves_little = is_own or self._options.tunnel == "sshtunnel"  # a local accept says nothing of the host
            self._connect(deadline, **(patience or ({"trust_s": 0.0} if proves_little else {})))

    def _unless_closed(self, transport: Transport) -> Transport:
        if self._is_closed:
            transport.close()
            self._release()
        self._check_usable()
        return transport

    def start(
        self, settings: dict[str, Any], deadline: float, on_progress: Progress, *, outlives: bool = False
    ) -> Server:
        """See `Place.start`."""
        from remote_env.ssh import start_server

        del outlives  # they all do
        shell = self._shell(deadline)
        settings = {**settings, "listen": settings["listen"] or {"tcp": ["127.0.0.1", 0]}}
        handle = start_server(shell, settings, python=self._python, deadline=deadline, on_progress=on_progress)
        return self._server(
            handle.port,
            settings["token"],
            handle.dial,
            started=True,
            stop=handle.stop,
            log_tail=lambda lines: str(handle.log_tail(lines, time.monotonic() + STOP_TIMEOUT_S)),
        )

    def send_folder(self, folder: Path, deadline: float) -> str:
        """See `Place.send_folder`: by content, once."""
        from remote_env.ssh import upload_folder

        return str(upload_folder(self._shell(deadline), folder, deadline))

    def send_bundle(self, paths: Sequence[Path], deadline: float) -> str:
        """See `Place.send_bundle`: by content, once."""
        from remote_env.ssh import upload_bundle

        return str(upload_bundle(self._shell(deadline), paths, deadline))

    def list(self, deadline: float) -> list[ServerRecord]:
        """See `Place.list`."""
        from remote_env.ssh import list_servers

        found = list_servers(self._shell(deadline), deadline)
        return sorted(map(ServerRecord.from_plain, found), key=lambda record: record.started)

    def attach(self, record: ServerRecord, deadline: float) -> Server:
        """See `Place.attach`."""
        own_dial = self._own_dial(record.to_plain(), record.port, deadline)
        return self._server(record.port, record.token, own_dial)

    def stop(self, record: ServerRecord, deadline: float) -> None:
        """See `Place.stop`."""
        from remote_env.ssh import ServerHandle

        ServerHandle.from_record(self._shell(deadline), record.port, record.to_plain()).stop(deadline)

    def read_tail(self, path: str, lines: int, deadline: float) -> str:
        """See `Place.read_tail`."""
        return self._run(_TAIL, {"path": path, "lines": lines}, deadline)

    def list_processes(self, name: str, deadline: float) -> Processes:
        """See `Place.list_processes`."""
        return read_processes(self._run(_LIST_PROCESSES, {}, deadline), name)

    def _run(self, script: str, variables: dict[str, object], deadline: float) -> str:
        from remote_env.ssh.scripts import run_script

        return str(run_script(self._shell(deadline), script, variables, deadline=deadline).following)

    def close(self) -> None:
        """See `Place.close`. From now on nothing logs in again, whoever dials."""
        self._is_closed = True
        self._release()

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            if self._launched is not None:
                self._launched.close()
            if self._tunnel is not None:
                self._tunnel.close()
            self._connection.close()


def _part_of(deadline: float) -> float:
    """When a first attempt is to end, so that there is time for another."""
    now = time.monotonic()
    return now + min((deadline - now) * FIRST_SHARE, FIRST_S)
