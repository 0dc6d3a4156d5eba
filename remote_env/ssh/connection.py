"""One SSH login: verified, authenticated, and able to run commands and open channels."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import paramiko

from remote_env.errors import ConnectError, ConnectionLost, DeadlineExceeded, RemoteEnvError
from remote_env.ssh.channel import WINDOW_BYTES, ChannelTransport
from remote_env.ssh.command import COMMAND_WINDOW_BYTES, CompletedCommand, RunningCommand
from remote_env.ssh.credentials import AskSecret, Secrets, authenticate
from remote_env.ssh.link import Link, hears, keep_alive, negotiated, open_transport
from remote_env.ssh.login import Login, keep_alive_by, resolve_login
from remote_env.ssh.opening import (
    LOGIN_ATTEMPTS,
    Dropped,
    channel_refused,
    exchange_keys,
    explain_failure,
    name_hop,
    wait_to_retry,
)
from remote_env.ssh.proxy import ProxyWay
from remote_env.ssh.target import SshTarget
from remote_env.ssh.ways import ChannelWay, open_tcp

TRUST_S = 1.0  # who has been heard so lately is not asked whether it lives
ANSWER_S = 3.0  # who is asked, and does not answer for so long, is dead
JOIN_TIMEOUT_S = 5.0
HANG_UP_TIMEOUT_S = 1.0  # for telling a jump host that a channel is done with


class SshConnection:
    """One SSH login; a context manager that connects on entry and closes on exit.

    Args:
        target: a host as `SshTarget.parse` takes it, or a login that was resolved already.
        ssh_port: the SSH port, when `target` does not say.
        identity_file: the private key to log in with; default those of `~/.ssh/config` or the usual names.
        accept_new_host_key: trust a host never seen before and write its key down; never a changed key.
        known_hosts_file: default `~/.ssh/known_hosts`.
        config_file: default `~/.ssh/config`.
        connect_timeout_s: how long `with` gives the login [s], with what `ask_secret` takes of it.
        via: jump hosts as `parse_hops` takes them, in place of those of the configuration; "none" for a direct way.
        ask_secret: called for passphrases, one-time codes and passwords, on the thread that connects.
        ssh_keepalive_s: how long the host may be silent before it is asked whether it lives [s], 0 (never) or 1 to
            3600; default the configuration's ServerAliveInterval, else 15.
        ssh_keepalive_count: after how many such intervals of silence the login is given up, 0 (never) to 1000;
            default the configuration's ServerAliveCountMax, else 3. Both hold for jump hosts too.

    Raises:
        ConfigError: the target or the SSH configuration cannot be read, or an argument is not allowed.
    """

    def __init__(
        self,
        target: SshTarget | Login | str,
        *,
        ssh_port: int | None = None,
        identity_file: str | None = None,
        accept_new_host_key: bool = False,
        known_hosts_file: str | None = None,
        config_file: str | None = None,
        connect_timeout_s: float = 30.0,
        via: str | Sequence[str] | None = None,
        ask_secret: AskSecret | None = None,
        ssh_keepalive_s: float | None = None,
        ssh_keepalive_count: int | None = None,
    ) -> None:
        if isinstance(target, str):
            target = SshTarget.parse(target)
        if isinstance(target, SshTarget):
            target = resolve_login(
                target,
                ssh_port=ssh_port,
                identity_file=identity_file,
                known_hosts_file=known_hosts_file,
                config_file=config_file,
                via=via,
            )
        self.login: Login = keep_alive_by(target, ssh_keepalive_s, ssh_keepalive_count)
        self._hop: SshConnection | None = None
        if self.login.via is not None:
            self._hop = SshConnection(self.login.via, accept_new_host_key=accept_new_host_key, ask_secret=ask_secret)
        self._secrets = Secrets(ask_secret, self.description)
        self._negotiated: dict[str, str] = {}
        self._accept_new_host_key = accept_new_host_key
        self._connect_timeout_s = connect_timeout_s
        self._transport: paramiko.Transport | None = None
        self._link: Link | None = None
        self._channels: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()
        self._pid = os.getpid()
        self._connecting = threading.Lock()
        self._ending = threading.Lock()
        self._closings = 0
        self._has_run_a_command = False

    @property
    def description(self) -> str:
        """`user@box:22`."""
        return self.login.description

    @property
    def is_open(self) -> bool:
        """Whether commands and channels can be tried."""
        transport, link = self._transport, self._link  # which knows of the end before the transport does
        return transport is not None and link is not None and transport.is_active() and not link.has_ended

    @property
    def host_key(self) -> paramiko.PKey:
        """The key that the host showed, verified; raises ConnectionLost when not logged in."""
        return self._need_transport().get_remote_server_key()

    def __enter__(self) -> SshConnection:
        self.connect(time.monotonic() + self._connect_timeout_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self, deadline: float) -> None:
        """Log in; nothing when logged in already. A login that has ended is replaced, also in a forked child.

        Raises:
            ConnectError: the host is unknown, refuses, does not answer in time, or is no SSH server.
            HostKeyError: the host's key is unknown or has changed.
            AuthError: the host refused every key; the message lists them.
        """
        with self._alone(deadline):
            if not self.is_open:
                self._replace_login(deadline)

    def revive(self, deadline: float, *, trust_s: float = TRUST_S, answer_s: float = ANSWER_S) -> None:
        """Make sure that the host answers: a login that has ended, or on which nothing answers, is replaced.

        Raises as `connect`.

        Args:
            deadline: for all of it.
            trust_s: a host that was heard so lately is not asked [s].
            answer_s: how long it has to answer [s], but no longer than a third of the time.
        """
        with self._alone(deadline):
            if not self._lives(trust_s, min((deadline - time.monotonic()) / 3, answer_s)):
                self._replace_login(deadline)

    def _lives(self, trust_s: float, answer_s: float) -> bool:
        link = self._link
        if not self.is_open or link is None:
            return False
        return link.silent_s < trust_s or self.is_answering(time.monotonic() + answer_s)

    @contextlib.contextmanager
    def _alone(self, deadline: float) -> Iterator[None]:
        """One thread at a time looks after the login."""
        if not self._connecting.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise ConnectError(f"another thread was still logging in to {self.description} at the deadline")
        try:
            yield
        finally:
            self._connecting.release()

    def _replace_login(self, deadline: float) -> None:
        """End what is left of the login, and make a new one; a jump host that lives is kept."""
        closings, had_hop = self._closings, self._hop is not None and self._hop.is_open
        self._end_login()
        try:
            self._log_in_patiently(deadline, closings)
            self._refuse_if_closed(closings)
        except BaseException:
            self._end_login()
            if self._hop is not None and not had_hop:
                self._hop.close()
            raise

    def _log_in_patiently(self, deadline: float, closings: int) -> None:
        for attempt in range(LOGIN_ATTEMPTS):
            try:
                self._log_in(deadline)
            except Dropped as dropped:
                self._end_login()  # and keep that to the jump host
                self._refuse_if_closed(closings)
                wait_to_retry(self.login, attempt, deadline, dropped)
            else:
                return

    def _refuse_if_closed(self, closings: int) -> None:
        if self._closings != closings:
            raise ConnectionLost(f"the SSH connection to {self.description} was closed while it was made")

    def _log_in(self, deadline: float) -> None:
        link = self._open_link(deadline)
        transport = open_transport(link)
        self._link, self._transport, self._pid = link, transport, os.getpid()
        self._has_run_a_command = False
        self._secrets.begin()
        try:
            with link.armed(deadline):
                exchange_keys(self.login, transport, link, deadline, accept_new=self._accept_new_host_key)
                self._negotiated = negotiated(transport)
                self._negotiated["authentication"] = authenticate(transport, self.login, self._secrets, deadline)
        except (paramiko.SSHException, EOFError, OSError) as error:
            if isinstance(error, RemoteEnvError):
                raise
            raise explain_failure(self.login, error, link, self._secrets.waited_s) from error
        keep_alive(transport, link, self.login.alive_interval_s, self.login.alive_count)
        _OPEN.add(self)

    def _open_link(self, deadline: float) -> Link:
        """A link to the host's SSH port: through the jump host or the proxy command, or direct."""
        if self._hop is not None:
            with name_hop(self._hop.login.host):
                self._hop.revive(deadline)
                return self._hop._open_link_beyond(self.login.address, self.login.port, deadline)
        if self.login.proxy_command is not None:
            return Link(ProxyWay(self.login.proxy_command))
        return Link(open_tcp(self.login, deadline))

    def _open_link_beyond(self, address: str, port: int, deadline: float) -> Link:
        """A link to `address:port` as seen from this host, which is a jump host."""
        if not self._has_run_a_command:
            # sshd sets its own TCP_NODELAY when a command starts; one that allows none is slower, and will do.
            with contextlib.suppress(ConnectError):
                self.start_command(":", deadline=deadline).close()
        channel = self._open_channel("direct-tcpip", (address, port), WINDOW_BYTES, deadline)
        return Link(ChannelWay(channel, self._hang_up, self._tell_trouble), self._need_link())

    def _hang_up(self, close: Callable[[], None]) -> None:
        """Call `close`, which tells this host that a channel is done with, for a limited time."""
        link = self._link
        if link is None or self._pid != os.getpid():
            return
        # A failure means that the connection has ended, and the channel with it.
        ended = contextlib.suppress(OSError, EOFError, paramiko.SSHException)
        with link.armed(time.monotonic() + HANG_UP_TIMEOUT_S), ended:
            close()

    def _tell_trouble(self) -> str:
        """Why what leads through this jump host may have ended; "" while its connection is well."""
        link = self._link
        if self.is_open and link is not None and not link.trouble:
            return ""
        trouble = "" if link is None else link.trouble
        return f"the connection to the jump host {self.login.host} has ended" + (f": {trouble}" if trouble else "")

    @property
    def negotiated(self) -> dict[str, str]:
        """What the last login agreed upon: server_version, kex, host_key, cipher, mac, authentication.

        `authentication` is the method that the host accepted, several joined by "+".
        """
        return dict(self._negotiated)

    def is_answering(self, deadline: float) -> bool:
        """Whether the host still answers on this login; one on which it has not by `deadline` is ended.

        Raises:
            ConnectionLost: this is a forked child; the login is its parent's.
        """
        self._refuse_after_fork()
        transport, link = self._transport, self._link
        if transport is None or link is None or not transport.is_active():
            return False
        if hears(transport, link, deadline):
            return True
        link.give_up("it does not answer")
        self._end_login(transport)
        return False

    def run(self, command: str, *, stdin: bytes = b"", deadline: float) -> CompletedCommand:
        """Run `command` in the login shell and return what it left.

        It may print 64 MiB before it has taken all of its input.

        Raises:
            DeadlineExceeded: it was still running; it may run on.
            ConnectionLost: the link broke; whether the command ran to its end is unknown.
        """
        with self.start_command(command, stdin=stdin, deadline=deadline) as running:
            stdout = []
            while data := running.read_some(deadline):
                stdout.append(data)
            return running.finish(b"".join(stdout), deadline)

    def start_command(self, command: str, *, stdin: bytes | None = b"", deadline: float) -> RunningCommand:
        """Start `command`, send all of `stdin` and its end (None: neither, the caller does); raises as `run` does."""
        channel = self._open_channel("session", None, COMMAND_WINDOW_BYTES, deadline)
        with self._failures("starting a command", deadline):
            channel.exec_command(command)
        self._has_run_a_command = True
        running = RunningCommand(channel, self._need_link(), self.description)
        try:
            if stdin is not None:
                running.send_input(stdin, deadline)
        except BaseException:
            running.close()
            raise
        return running

    def open_port(self, port: int, deadline: float, host: str = "127.0.0.1") -> ChannelTransport:
        """A transport to `host:port` as seen from the remote machine.

        Raises:
            ConnectError: nothing listens there, or sshd forbids forwarding.
            DeadlineExceeded: no answer in time.
            ConnectionLost: the link broke.
        """
        channel = self.open_channel((host, port), deadline)
        return ChannelTransport(channel, self._need_link(), f"port {port} on {self.login.host}")

    def open_channel(self, address: tuple[str, int], deadline: float) -> paramiko.Channel:
        """The bare channel to `address` that `open_port` makes a transport of; raises as that does."""
        if not self._has_run_a_command:
            self.run(":", deadline=deadline)  # sshd sets its own TCP_NODELAY then; bursts had p99 44 ms without
        return self._open_channel("direct-tcpip", address, WINDOW_BYTES, deadline)

    def _open_channel(
        self, kind: str, address: tuple[str, int] | None, window: int, deadline: float
    ) -> paramiko.Channel:
        transport = self._need_transport()
        if self._has_run_a_command:
            self._need_link().settle()
        source = None if address is None else ("127.0.0.1", 0)
        place = "a shell" if address is None else f"{address[0]}:{address[1]}"
        with self._failures(f"opening a channel to {place}", deadline):
            channel = transport.open_channel(
                kind, address, source, window, timeout=max(deadline - time.monotonic(), 0.0)
            )
        self._channels.add(channel)
        return channel

    @contextlib.contextmanager
    def _failures(self, doing: str, deadline: float) -> Any:
        """Arm the link's deadline, and turn paramiko's exceptions into ours."""
        link = self._need_link()
        try:
            with link.armed(deadline):
                yield
        except paramiko.ChannelException as error:
            raise channel_refused(self.login.host, doing, error) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            if isinstance(error, RemoteEnvError):
                raise
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"{self.description} did not answer in time while {doing}") from error
            why = link.trouble or str(error) or "the host hung up"
            raise ConnectionLost(f"the SSH connection to {self.description} broke while {doing}: {why}") from error

    def _need_transport(self) -> paramiko.Transport:
        self._need_link()
        if self._transport is None or not self._transport.is_active():
            raise ConnectionLost(f"the SSH connection to {self.description} has ended; connect again")
        return self._transport

    def _refuse_after_fork(self) -> None:
        if self._pid != os.getpid():
            raise ConnectionLost("this SSH connection belongs to the parent process; open a new one after a fork")

    @property
    def link(self) -> Link:
        """What lies under this very login; raises ConnectionLost when there is none, or it is another process's."""
        return self._need_link()

    def _need_link(self) -> Link:
        self._refuse_after_fork()
        if self._link is None:
            raise ConnectionLost(f"there is no SSH connection to {self.description}; call connect() first")
        return self._link

    def close(self) -> None:
        """End the login, with those to its jump hosts, and join their threads; never raises, may be called again.

        In a forked child it does nothing: the logins are the parent's.
        """
        self._closings += 1
        if self.is_open and self._link is not None:
            self._link.give_up("it was closed here")
        self._end_login()
        if self._hop is not None:
            self._hop.close()

    def _end_login(self, which: paramiko.Transport | None = None) -> None:
        """End this login, or nothing when it is another by now; None: whichever there is."""
        if self._pid != os.getpid():
            return
        with self._ending:
            transport, link = self._transport, self._link
            if transport is None or link is None or (which is not None and which is not transport):
                return
            _OPEN.discard(self)
            self._transport = self._link = None
        link.close()
        transport.close()
        if transport.ident is not None:
            transport.join(JOIN_TIMEOUT_S)

    def _abandon(self) -> None:
        """In a forked child: free the descriptor, and let no finaliser write into the parent's connection."""
        self._connecting = threading.Lock()  # here and below: another thread may have held it at the fork
        self._ending = threading.Lock()
        if self._link is not None:
            self._link.abandon()
        if self._transport is not None:
            self._transport.active = False
        for channel in list(self._channels):
            channel.closed = True
            channel.lock = threading.Lock()


_OPEN: weakref.WeakSet[SshConnection] = weakref.WeakSet()


def _abandon_all() -> None:
    for connection in list(_OPEN):
        connection._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
