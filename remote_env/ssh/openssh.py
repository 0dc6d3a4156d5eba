"""Tunnels of the system's own `ssh`: what it can log in to with its configuration, its agents and hardware keys."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from remote_env.errors import AuthError, ConfigError, ConnectError, ConnectionLost, DeadlineExceeded, HostKeyError
from remote_env.ssh.connection import ANSWER_S, SshConnection
from remote_env.ssh.opening import REFUSED
from remote_env.ssh.tunnel import LOOPBACK, ExplainedTransport, LocalPort
from remote_env.transport import Transport, connect_unix

POLL_S = 0.01  # how often a start looks for the socket; the death of ssh wakes it at once
WORDS_S = 0.2  # how long a broken stream waits for ssh to say why
END_TIMEOUT_S = 2.0
SHORT_TRUST_S = 0.1  # a host that was heard so lately is not asked whether it lives
MAX_LINES = 20
MAX_LINE_BYTES = 4096
MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107 (Linux) or 103 (macOS)
SOCKET = "socket"

# aes-gcm moved 1.5 × the bytes of OpenSSH's first choice, and every OpenSSH since 6.2 has it.
_CIPHERS = (
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr"
)
_OPTIONS = (
    *("-N", "-T", "-S", "none"),
    *("-o", "ControlMaster=no"),  # a master would keep the tunnel when its client has been killed
    *("-o", "LogLevel=INFO"),  # why a connection could not be opened
    *("-o", "RemoteCommand=none", "-o", "PermitLocalCommand=no"),
    *("-o", "IgnoreUnknown=*", "-o", "ForkAfterAuthentication=no"),  # it would leave us; unknown before OpenSSH 8.7
    *("-o", "ForwardAgent=no", "-o", "ForwardX11=no"),
    *("-o", "Compression=no"),  # it made images 10 to 20 times slower
    *("-o", f"Ciphers={_CIPHERS}"),
)
# ssh ends with us, however we end: a guard beside it reads a pipe of ours, and signals the process group at its end.
# (A parent-death signal would fire when the *thread* that started ssh ends, and ssh -N reads no input.) USR1 ends ssh
# at once whatever it waits for; TERM is for a caller that ignores USR1, which is inherited. The shell goes last, so
# that whoever has waited for it knows that ssh is gone; ssh alone holds our standard error, whose end tells its death.
_GUARDED = """\
trap : USR1 TERM
exec 3<&0 4>&2 </dev/null 2>/dev/null
(
    trap '' USR1 TERM
    exec 4>&-
    read -r line <&3
    rm -f "$1/socket"
    rmdir "$1"
    kill -USR1 0
    kill -TERM 0
) &
guard=$!
shift
"$@" 3<&- 2>&4 4>&- &
ssh=$!
exec 3<&- 4>&-
status=255
while kill -0 "$ssh"; do
    wait "$ssh"
    status=$?
done
kill -KILL "$guard"
wait "$guard"
exit "$status"
"""


class SshChild:
    """One `ssh -L` process and the private folder with its Unix socket, for one port of the host.

    Args:
        login: OpenSSH's arguments for the login, without "ssh".
        target: "host:port" to lead to, as `-L` takes it.
        local_port: a TCP port of 127.0.0.1 that leads there too, or None.
        exit_on_failure: whether it ends when a forwarding cannot be set up, those of the user's configuration too.
    """

    def __init__(
        self, login: Sequence[str], target: str, *, local_port: int | None = None, exit_on_failure: bool = True
    ) -> None:
        self._pid = os.getpid()
        self._folder = _private_folder()
        self.socket_path = self._folder / SOCKET
        self._failing = "cannot listen to port" if exit_on_failure else None
        # The socket comes last: once it is there, so is the TCP port, or ssh has said that it cannot be had.
        forwards = [] if local_port is None else ["-L", f"{LOOPBACK}:{local_port}:{target}"]
        forwards += ["-o", f"ExitOnForwardFailure={'yes' if exit_on_failure else 'no'}"]
        forwards += ["-L", f"{self.socket_path}:{target}"]
        self._stderr, stderr = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603  no shell reads the arguments
                ["/bin/sh", "-c", _GUARDED, "sh", str(self._folder), "ssh", *_OPTIONS, *forwards, *login],
                bufsize=0,  # so that a forked child can close its copy without a lock
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # a Ctrl-C at the terminal is not meant for it
            )
        except BaseException:
            os.close(self._stderr)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            os.close(stderr)
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._count = 0
        self._spoke = threading.Condition()
        self._ended = threading.Event()
        self._started_at = time.monotonic()
        self._streams: weakref.WeakSet[ExplainedTransport] = weakref.WeakSet()
        self._reader = threading.Thread(target=self._read, name="remote-env-ssh-stderr", daemon=True)
        self._reader.start()
        self._finalizer = weakref.finalize(self, _end, self._process, self._folder, self._pid)

    def _read(self) -> None:
        rest = b""
        poll = _poll(self._stderr)
        while poll.poll():
            with self._spoke:  # at once read and noted: see `_is_listening`
                chunk = os.read(self._stderr, 4096)
                *lines, rest = (rest[-MAX_LINE_BYTES:] + chunk).split(b"\n")
                self._note(lines)
            if not chunk:
                break
        with self._spoke:
            self._note([rest])
            os.close(self._stderr)
            self._ended.set()
            self._spoke.notify_all()

    def _note(self, lines: Sequence[bytes]) -> None:
        texts = [text for line in lines if (text := line.decode(errors="replace").strip())]
        with self._spoke:
            self._lines.extend(texts)
            self._count += len(texts)
            self._spoke.notify_all()

    @property
    def is_alive(self) -> bool:
        """Whether ssh runs."""
        return not self._ended.is_set() and self._process.poll() is None

    @property
    def line_count(self) -> int:
        """How many lines ssh has written."""
        return self._count

    def said(self, since: int = 0) -> str:
        """What ssh has written after its first `since` lines, at most the last 20; "" when nothing."""
        with self._spoke:
            fresh = min(self._count - since, len(self._lines))
            return "; ".join(list(self._lines)[len(self._lines) - fresh :]) if fresh else ""

    def last_failure(self) -> str:
        """The last line in which ssh said that it could not open a connection; "" when there is none."""
        with self._spoke:
            return next((line for line in reversed(self._lines) if "open failed" in line), "")

    def explain(self, since: int) -> str:
        """Why a stream that began after `since` lines ended: what ssh says of it or at its own death, soon."""
        with self._spoke:  # other words are its last ones
            self._spoke.wait_for(lambda: "open failed" in self.said(since) or self._ended.is_set(), WORDS_S)
        return self.said(since)

    def _is_listening(self) -> bool:
        """Whether all that was asked for is there; with a port that is taken ssh opens the socket too, and ends."""
        if not self.socket_path.exists():
            return False
        with self._spoke:
            if self._ended.is_set() or _poll(self._stderr).poll(0):
                return False
            return self._failing is None or not any(self._failing in line for line in self._lines)

    def wait_listening(self, deadline: float) -> None:
        """Return when the login is made and the socket is there.

        Raises:
            ConnectError: ssh ended; the message has what it said. HostKeyError and AuthError where it said so.
            DeadlineExceeded: it is not there yet.
        """
        while not self._is_listening():
            if self._ended.wait(POLL_S) or not self.is_alive:
                self._reader.join(WORDS_S)
                raise _start_failure(self._process.wait(END_TIMEOUT_S), self.said())
            if time.monotonic() >= deadline:
                said = self.said() or "nothing"
                raise DeadlineExceeded(f"ssh has not opened its tunnel in time; it said: {said}")
        self._started_at = time.monotonic()

    def dial(self, place: str, deadline: float) -> Transport:
        """A connection to its socket, which leads to `place`; ConnectError when nobody listens there."""
        since = self.line_count
        transport = connect_unix(str(self.socket_path), deadline)
        stream = ExplainedTransport(transport, lambda error: _explain(self, since, place, error))
        with self._spoke:
            self._streams.add(stream)
        return stream

    def lives(self, deadline: float) -> bool:
        """Whether ssh runs, and its host has been heard lately, or answers now in a third of the time and at most 3 s.

        ssh itself can say nothing of that: it takes connections whether or not there is anybody at the other end.
        """
        if not self.is_alive:
            return False
        now = time.monotonic()
        with self._spoke:
            heard_at = max([self._started_at, *(stream.heard_at for stream in self._streams)])
        return now - heard_at < SHORT_TRUST_S or self._is_answering(min((deadline - now) / 3, ANSWER_S))

    def _is_answering(self, timeout_s: float) -> bool:
        """Whether a connection that we open and end at once is ended at the other end too: by sshd or the server."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(max(timeout_s, 0.001))
            try:
                probe.connect(str(self.socket_path))
                probe.shutdown(socket.SHUT_WR)
                probe.recv(1)
            except TimeoutError:
                return False
            except OSError:  # it has ended, or is ending
                pass
        return self.is_alive

    def close(self) -> None:
        """End ssh, and remove its folder."""
        if self._pid == os.getpid():
            self._finalizer()
            self._reader.join(END_TIMEOUT_S)

    def abandon(self) -> None:
        """In a forked child: leave ssh to the parent."""
        self._finalizer.detach()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if not self._ended.is_set():
            os.close(self._stderr)
        self._process.returncode = 0  # not our child: nothing to wait for


def _end(process: subprocess.Popen[bytes], folder: Path, pid: int) -> None:
    if os.getpid() != pid:
        return
    if process.stdin is not None:
        process.stdin.close()  # its guard then kills its process group
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _poll(descriptor: int) -> select.poll:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return poll


def _private_folder() -> Path:
    """A new folder of mode 0700 whose sockets have paths that the kernel and `ssh -L` take."""
    folder = tempfile.mkdtemp(prefix="remote-env-")
    if len(os.fsencode(folder)) + len(SOCKET) + 1 <= MAX_SOCKET_PATH and ":" not in folder:
        return Path(folder)
    Path(folder).rmdir()
    return Path(tempfile.mkdtemp(prefix="remote-env-", dir="/tmp"))


def _start_failure(status: int, said: str) -> ConnectError:
    message = f"ssh ended with status {status} before its tunnel was open; it said: {said or 'nothing'}"
    if "IDENTIFICATION HAS CHANGED" in said or "Host key verification failed" in said:
        return HostKeyError(message)
    if "Permission denied" in said or "Too many authentication failures" in said:
        return AuthError(f'{message}. It asks nobody: load the key with ssh-add, or use tunnel="channel"')
    if _is_forwarding_failure(said):
        return ConnectError(f"{message}. Forwardings of that host in your SSH configuration count too")
    return ConnectError(message)


def _is_forwarding_failure(said: str) -> bool:
    return "Could not request local forwarding" in said or "remote port forwarding failed" in said


class OpensshTunnel:
    """One `ssh -L` process per port of the host, started at the first dial and again when it has ended. See `Tunnel`.

    Args:
        connection: whose login it makes anew; that one itself is not used.

    Raises:
        ConfigError: there is no `ssh` program, or this is Windows.
    """

    kind = "openssh"

    def __init__(self, connection: SshConnection) -> None:
        if os.name != "posix" or shutil.which("ssh") is None:
            raise ConfigError(
                'tunnel="openssh" needs the program ssh; install OpenSSH\'s client (not on Windows), or use "channel"'
            )
        self._connection = connection
        self._children: dict[tuple[str, int], SshChild] = {}
        self._ports: weakref.WeakSet[OpensshPort] = weakref.WeakSet()
        self._starting = threading.Lock()
        _OPEN.add(self)

    @property
    def _login(self) -> list[str]:
        """As `Login.ssh_arguments`, but by the name that the user wrote: its section of the configuration counts."""
        login = self._connection.login
        *options, _ = login.ssh_arguments()
        return [*options, "-o", f"HostName={login.address}", "-l", login.user, login.host]

    def dial(self, port: int, deadline: float, host: str = LOOPBACK) -> Transport:
        """See `Tunnel.dial`."""
        place = f"{host}:{port} on {self._connection.login.host}"
        while True:
            child = self._living_child(host, port, deadline)
            try:
                return child.dial(place, deadline)
            except ConnectError:  # it ended just now, or its socket is bound and does not listen yet
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_S)

    def needs_login(self, port: int, host: str = LOOPBACK) -> bool:
        """See `Tunnel.needs_login`."""
        child = self._children.get((host, port))
        return child is None or not child.is_alive

    def _living_child(self, host: str, port: int, deadline: float) -> SshChild:
        if not self._starting.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise DeadlineExceeded(f"another thread was still opening a tunnel to {host}:{port} at the deadline")
        try:
            child = self._children.get((host, port))
            if child is None or not child.lives(deadline):
                if child is not None:
                    child.close()
                self._children[host, port] = child = self._start(_target(host, port), deadline)
            return child
        finally:
            self._starting.release()

    def _start(self, target: str, deadline: float) -> SshChild:
        try:
            return _started(SshChild(self._login, target), deadline)
        except ConnectError as error:
            if not _is_forwarding_failure(str(error)):
                raise
        # Ours is a socket in a new folder: what failed is a forwarding that the user's configuration asks for.
        return _started(SshChild(self._login, target, exit_on_failure=False), deadline)

    def listen(self, port: int, local_port: int, deadline: float, host: str = LOOPBACK) -> LocalPort:
        """See `Tunnel.listen`."""
        from remote_env.ssh.local_port import free_port

        local_port = local_port or free_port()
        child = _started(SshChild(self._login, _target(host, port), local_port=local_port), deadline)
        place = OpensshPort(child, local_port)
        self._ports.add(place)
        return place

    def close(self) -> None:
        """See `Tunnel.close`."""
        for child in self._children.values():
            child.close()
        for place in self._ports:
            place.close()
        self._children.clear()

    def _abandon(self) -> None:
        self._starting = threading.Lock()  # another thread may have held it at the fork
        for child in self._children.values():
            child.abandon()
        for place in self._ports:
            place.abandon()
        self._children = {}


class OpensshPort:
    """A local TCP port held by an `ssh -L` process. See `LocalPort`."""

    def __init__(self, child: SshChild, port: int) -> None:
        self._child = child
        self.port = port

    @property
    def is_up(self) -> bool:
        """See `LocalPort.is_up`."""
        return self._child.is_alive

    def failure(self) -> str:
        """See `LocalPort.failure`."""
        return self._child.last_failure() if self.is_up else self._child.said() or "the ssh process ended"

    def close(self) -> None:
        """See `LocalPort.close`."""
        self._child.close()

    def abandon(self) -> None:
        """In a forked child: leave it to the parent."""
        self._child.abandon()


def _target(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _started(child: SshChild, deadline: float) -> SshChild:
    try:
        child.wait_listening(deadline)
    except BaseException:
        child.close()
        raise
    return child


def _explain(child: SshChild, since: int, place: str, error: ConnectionLost) -> ConnectionLost:
    said = child.explain(since)
    if "administratively prohibited" in said:
        return ConnectionLost(f"sshd forbids a connection to {place}; its configuration needs AllowTcpForwarding yes")
    if "open failed" in said:
        message = f"ssh could not connect to {place}: {said}; does anything listen there?"
        return ConnectionLost(message, nothing_listens=True) if REFUSED in said else ConnectionLost(message)
    if not child.is_alive:
        return ConnectionLost(f"the ssh process of the tunnel to {place} ended; it said: {said or 'nothing'}")
    return error


_OPEN: weakref.WeakSet[OpensshTunnel] = weakref.WeakSet()


def _abandon_all() -> None:
    for tunnel in list(_OPEN):
        tunnel._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
