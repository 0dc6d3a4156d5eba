"""A shell inside a container, batch job or network namespace: what a `launch=` prefix starts, over one stream.

`<prefix> sh -c <bootstrap>` runs once. The bootstrap makes a terminal raw, says that it is inside, and then runs the
programs that it is sent, one after another. The last is the relay, which carries connections and further programs.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping

from remote_env.errors import ConnectError, DeadlineExceeded, RemoteEnvError, StartError
from remote_env.ssh.connection import SshConnection
from remote_env.ssh.inside import Inside
from remote_env.ssh.programs import DATA_FOLLOWS
from remote_env.ssh.scripts import RunningLines, compose, read_and_run
from remote_env.ssh.shell import Dial, Progress, Running, Sent
from remote_env.ssh.stream import Stream

INTERPRETERS = ("/proc/{pid}/exe", "python3")  # for the relay: the server's own, whatever wrapper started it
ANSWER_S = 10.0  # how long a relay gets to show that it is alive, when something is to be stopped


class LaunchedShell:
    """The shell behind a prefix; one that has ended is started again when it is needed. See `Shell`.

    Args:
        connection: the login.
        launch: the prefix, a command line for bash (or sh), such as "docker exec -i isaac". It gets `sh`, `-c` and
            a program as three more arguments.
        launch_host: a name or address by which the login's host reaches ports in there; default: they are reached
            like its own when both share a network, else through the stream.
    """

    def __init__(self, connection: SshConnection, launch: str, launch_host: str | None = None) -> None:
        self.connection = connection
        self.launch = launch
        self.name = f"{connection.login.host} behind launch={launch!r}"
        self.launch_host = launch_host
        self._inside: Inside | None = None
        self._stream: Stream | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()  # held while the stream is made or serves one program at a time

    @property
    def is_open(self) -> bool:
        """Whether the prefix runs."""
        return self._has_relay or (self._inside is not None and self._inside.is_open)

    @property
    def is_reachable(self) -> bool:
        """See `Shell.is_reachable`; it may need the prefix to be run again."""
        return self.connection.is_open

    def enter(self, deadline: float, on_progress: Progress | None = None) -> None:
        """Run the prefix, unless that is done already; see `Shell.enter`."""
        with self._alone(deadline):
            if not self.is_open:
                self._drop()
                self._inside = Inside(self.connection, self.launch, self.name, deadline, on_progress)

    @property
    def _has_relay(self) -> bool:
        return self._stream is not None and self._stream.is_open

    def start(
        self, program: str, variables: Mapping[str, object], data: bytes, deadline: float, sent: Sent | None = None
    ) -> Running:
        """See `Shell.start`."""
        self.enter(deadline)
        if self._stream is None:
            assert self._inside is not None  # noqa: S101  enter made it
            return self._inside.start(program, variables, data, deadline, sent)
        source = compose(program, variables, DATA_FOLLOWS)
        running = RunningLines(self._stream.run(read_and_run(source), deadline))
        try:
            running.feed(source, data, deadline, sent)
        except BaseException:
            running.close()
            raise
        return running

    def revive(self, deadline: float) -> None:
        """See `Shell.revive`. A relay that does not answer is given up, which ends what hangs on its stream."""
        self.connection.revive(deadline, trust_s=0.0)
        if not self._has_relay:
            return
        try:
            until = min(deadline, time.monotonic() + ANSWER_S, time.monotonic() + (deadline - time.monotonic()) / 2)
            with self.start("say here", {}, b"", until) as running:
                running.read_line(until)
        except RemoteEnvError:
            self.close()

    def dialer(self, pid: int, start_time: str, port: int, deadline: float) -> Dial | None:
        """See `Shell.dialer`; a relay is only run beside that very process."""
        self._relay(pid, start_time, deadline)
        host = self.launch_host
        if host is not None:
            return lambda until: self.connection.open_port(port, until, host)
        if self._inside is not None and self._inside.shares_network and self._is_reachable(port, deadline):
            return None
        return lambda until: self._relay(pid, start_time, until).open_port(port, until)

    def _is_reachable(self, port: int, deadline: float) -> bool:
        try:
            self.connection.open_port(port, deadline).close()
        except ConnectError:  # sshd forbids forwarding
            return False
        return True

    @contextlib.contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise DeadlineExceeded(f"another thread was still busy with the way into {self.name} at the deadline")
        try:
            yield
        finally:
            self._lock.release()

    def _relay(self, pid: int, start_time: str, deadline: float) -> Stream:
        with self._alone(deadline):
            if self._stream is not None and self._stream.is_open:
                return self._stream
            self.enter(deadline)
            assert self._inside is not None  # noqa: S101  enter made it
            said = ""
            for interpreter in INTERPRETERS:
                first, said = self._inside.start_relay(interpreter.format(pid=pid), pid, start_time, deadline)
                if first is not None:
                    self._inside.stop_using()  # for programs of its own
                    self._stream = Stream(self._inside.carrier, first, self.name)
                    return self._stream
            raise StartError(f"no Python in {self.name} could run our relay; the last one said: {said or '(nothing)'}")

    def _drop(self) -> None:
        stream, inside = self._stream, self._inside
        self._stream = self._inside = None
        if stream is not None:
            stream.close()
        elif inside is not None:
            inside.close()

    def close(self) -> None:
        """End the stream, and with it the prefix; a server in there goes on where the prefix lets it. Never raises."""
        if self._pid != os.getpid():
            return  # a forked child: the stream is the parent's
        with self._lock:
            self._drop()
