"""The supervisor: owns the socket, the sessions, the lease and the log, and answers whatever the simulators do.

One thread, one selector, the standard library only. It authenticates each connection, keeps the control ones, and
passes the data ones on to the simulator of their session.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from remote_env.errors import AuthError, ConfigError, ProtocolError, RemoteEnvError, VersionMismatch
from remote_env.protocol import frames
from remote_env.protocol.handshake import ServerHandshake, pack_link
from remote_env.server.folder import read_log_tail, read_settings, record_path, remove_folder, write_atomically
from remote_env.server.peer import HANDSHAKE_TIMEOUT_S, Peer
from remote_env.server.process import SimulatorProcess, process_start_time
from remote_env.server.web import answer_http

FIRST_CLIENT_TIMEOUT_S = 120.0  # a started server to which nobody ever comes ends itself
RELEASE_TIMEOUT_S = 30.0  # how long a simulator may go on with a call whose session has ended
MAX_STRANGERS = 64  # connections at once that have not authenticated
ACCEPT_PAUSE_S = 1.0
BACKLOG = 128


class Session:
    """One client's hold on one simulator."""

    def __init__(self, control: Peer, simulator: SimulatorProcess, holder: str) -> None:
        self.id = secrets.token_hex(8)
        self.secret = secrets.token_hex(16)
        self.control = control
        self.simulator = simulator
        self.holder = holder
        self.since = time.time()
        self.has_link = False  # whether it has had a data connection


class Supervisor:
    """Serves one task from one session folder until it is stopped, or nobody has held it for the idle time-out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = read_settings(folder)
        self.started = time.monotonic()
        self.simulators: list[SimulatorProcess] = []
        self.sessions: dict[str, Session] = {}
        self._token: str = self.settings["token"]
        self._idle_timeout_s = float(self.settings["idle_timeout_s"])
        self._max_sessions = int(self.settings["max_sessions"])
        self._selector = selectors.DefaultSelector()
        self._peers: set[Peer] = set()
        self._had_client = False
        self._idle_since = time.monotonic()
        self._release_timeout_s = float(self.settings.get("release_timeout_s", RELEASE_TIMEOUT_S))
        self._accept_again_at = 0.0  # while the listener rests, when it may be tried again
        self._is_announced = False
        self._stopping = ""
        self._registry: Path | None = None

    # Life

    def run(self) -> int:
        """Listen, serve, and clean up; the exit status."""
        self._wake_on_signals()
        self._listener = self._listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        leash = self.settings.get("leash_fd")
        if leash is not None:
            self._selector.register(int(leash), selectors.EVENT_READ, lambda: self.stop("its starter is gone"))
        status = 0
        try:
            self._announce()
            self._spawn()
            while not self._stopping:
                self._turn()
            status = 1 if self._stopping.startswith("failed") else 0
        finally:
            self._say(f"stopping: {self._stopping or 'error'}")
            self._end()
        return status

    def stop(self, why: str) -> None:
        """End after this turn."""
        self._stopping = self._stopping or why

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._next_wait_s()):
            key.data()
        now = time.monotonic()
        for peer in [peer for peer in self._peers if peer.deadline < now]:
            self._drop(peer, "silent for too long")
        limit = self._idle_limit_s()
        if not self.sessions and now - self._idle_since > limit:
            self.stop(f"no client for {limit:g} s")
        for simulator in self.simulators:
            if simulator.abandoned_for_s > self._release_timeout_s:
                self._say(f"simulator {simulator.pid} is still busy for a session that is gone; killed")
                simulator.kill()
        self._mind_listener()

    def _idle_limit_s(self) -> float:
        return self._idle_timeout_s if self._had_client else max(self._idle_timeout_s, FIRST_CLIENT_TIMEOUT_S)

    def _next_wait_s(self) -> float:
        deadlines = [peer.deadline for peer in self._peers]
        if not self.sessions:
            deadlines.append(self._idle_since + self._idle_limit_s())
        if self._accept_again_at:
            deadlines.append(self._accept_again_at)
        wait = min(deadlines, default=float("inf")) - time.monotonic()
        is_abandoned = any(simulator.abandoned_for_s for simulator in self.simulators)
        return min(max(wait, 0.0) + 0.01, 0.2 if is_abandoned else 5.0)

    def _wake_on_signals(self) -> None:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._wake = (reader, writer)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN:
                continue  # as nohup wants it
            signal.signal(number, lambda got, _frame: self.stop(f"signal {signal.Signals(got).name}"))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(reader, selectors.EVENT_READ, self._on_wake)

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake[0].recv(4096)
        for simulator in list(self.simulators):
            if simulator.reap():
                self._simulator_ended(simulator)

    def _listen(self) -> socket.socket:
        listen = self.settings["listen"]
        try:
            return _open_listener(listen, insecure=bool(self.settings.get("insecure")))
        except OSError as error:
            taken = error.errno in (98, 48)  # EADDRINUSE on Linux and macOS
            place = listen.get("unix") or "{}:{}".format(*listen["tcp"])
            hint = "; choose another port, or attach to what listens there" if taken else ""
            message = f"cannot listen on {place}: {error.strerror or error}{hint}"
            write_atomically(
                self.folder / "failed.json",
                {
                    "kind": "port-in-use" if taken else "other",
                    "message": message,
                },
            )
            raise ConfigError(message) from error

    def _announce(self) -> None:
        name = self._listener.getsockname()
        listen = {"unix": name} if self._listener.family == socket.AF_UNIX else {"tcp": [name[0], name[1]]}
        facts = {"pid": os.getpid(), "start_time": process_start_time(os.getpid())}
        if "tcp" in listen:
            self._registry = record_path(name[1])
            for folder in (self._registry.parents[1], self._registry.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._registry, {**facts, **self._record(), "port": name[1]})
            self._say(f"clients of this user find the token in {self._registry}")
        python = ".".join(map(str, sys.version_info[:3]))
        ready = {**facts, "listen": listen, "python": python, "protocol": frames.VERSION}
        write_atomically(self.folder / "ready.json", ready)
        self._is_announced = True
        self._say(f"serving {self._label()} at {listen.get('unix') or '{}:{}'.format(*listen['tcp'])}")

    def _record(self) -> dict[str, Any]:
        """What this user's clients find the server by, and what they choose it by."""
        return {
            "token": self._token,
            "session_folder": str(self.folder),
            "id": self.folder.name,
            "task_label": self._label(),
            "digest": self.settings.get("digest", ""),
            "setup": self.settings.get("setup", ""),
            "started": time.time(),
            "user": _user(),
            "python": sys.executable,
            "host": os.uname().nodename,
        }

    def _label(self) -> str:
        return str(self.settings["task"]["env"])

    def _say(self, text: str) -> None:
        shown = f"{time.strftime('%H:%M:%S')} {text}".encode("ascii", "backslashreplace").decode()
        with contextlib.suppress(OSError):  # a full disk or a closed terminal must not end the server
            print(shown, flush=True)

    def _end(self) -> None:
        """Stop every simulator, then remove every file, then let the clients see that we are gone."""
        # The record goes before the port is free: the next server there writes one of its own.
        if self._registry is not None:
            self._registry.unlink(missing_ok=True)
        self._listener.close()
        for simulator in self.simulators:
            simulator.ask_to_end()
        for simulator in self.simulators:
            simulator.end()
        if self._is_announced:
            remove_folder(self.folder)  # else its starter reads there why, and removes it
        for peer in list(self._peers):
            peer.close()
        signal.set_wakeup_fd(-1)
        for sock in self._wake:
            sock.close()
        self._selector.close()

    # Simulators

    def _spawn(self) -> SimulatorProcess:
        simulator = SimulatorProcess(self.folder, self.settings)
        self.simulators.append(simulator)
        with (self.folder / "simulators").open("a") as file:
            file.write(f"{simulator.pid} {process_start_time(simulator.pid)}\n")
        self._selector.register(simulator.channel, selectors.EVENT_READ, lambda: self._hear(simulator))
        return simulator

    def _hear(self, simulator: SimulatorProcess) -> None:
        if simulator not in self.simulators:
            return  # its end and its last words were one turn's events, and its end came first
        for message in simulator.hear():
            if message["event"] == "failed" and not self._had_client and self.settings.get("stop_on_failure"):
                self.stop(f"failed: {message['kind']}: {message['message']}")
            self._tell(simulator)
        if simulator.channel_closed and simulator.channel in self._selector.get_map():
            self._selector.unregister(simulator.channel)

    def _simulator_ended(self, simulator: SimulatorProcess) -> None:
        self._hear(simulator)  # its last words
        self._say(f"simulator {simulator.pid} ended: {simulator.ending}")
        self.simulators.remove(simulator)
        if simulator.abandoned_for_s:
            # Whoever waits for it has had nothing of it yet, and gets another.
            for session in self.sessions.values():
                if session.simulator is simulator and not session.has_link:
                    session.simulator = self._spawn()
                    self._tell(session.simulator)
        self._tell(simulator)
        simulator.hang_up()
        if simulator.channel in self._selector.get_map():
            self._selector.unregister(simulator.channel)
        simulator.free()

    def _tell(self, simulator: SimulatorProcess) -> None:
        """Tell the session that holds `simulator` how it fares."""
        for session in list(self.sessions.values()):  # one that cannot be told is dropped
            if session.simulator is simulator:
                self._send(session.control, frames.EVENT, self._status(simulator))

    def _status(self, simulator: SimulatorProcess) -> dict[str, Any]:
        status = simulator.status()
        status["uptime_s"] = time.monotonic() - self.started
        if status["state"] in ("starting", "failed", "dead"):
            status["log_tail"] = read_log_tail(self.folder, 40)
        return status

    # Connections

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            self._say(f"a connection could not be accepted: {error}")
            self._accept_again_at = time.monotonic() + ACCEPT_PAUSE_S
            return
        peer = Peer(sock, ServerHandshake(self._token), time.monotonic() + HANDSHAKE_TIMEOUT_S)
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._readable(peer))

    def _mind_listener(self) -> None:
        """Let the listener rest while there are too many strangers, or no descriptors; the kernel queues who comes."""
        if self._accept_again_at <= time.monotonic():
            self._accept_again_at = 0.0
        strangers = sum(not peer.handshake.done for peer in self._peers)
        may_accept = strangers < MAX_STRANGERS and not self._accept_again_at
        is_accepting = self._listener in self._selector.get_map()
        if may_accept and not is_accepting:
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        elif is_accepting and not may_accept:
            self._selector.unregister(self._listener)

    def _readable(self, peer: Peer) -> None:
        try:
            for kind, sequence, message in peer.receive():
                self._handle(peer, kind, sequence, message)
                if peer.sock is None:
                    return
            if peer.http_request:
                peer.send(answer_http(self, peer.http_request))
                self._drop(peer)
            elif peer.ended:
                self._drop(peer)
        except VersionMismatch as error:
            self._refuse(peer, "version", error)
        except AuthError as error:
            self._refuse(peer, "auth", error)
        except (ProtocolError, OSError) as error:
            self._refuse(peer, "protocol", error)
        except Exception as error:  # noqa: BLE001  no message, whatever is in it, may end the server for the others
            traceback.print_exc()
            self._refuse(peer, "protocol", error)

    def _handle(self, peer: Peer, kind: int, sequence: int, message: dict[str, Any]) -> None:
        if peer.handshake.done:
            self._answer(peer, kind, sequence, message)
            return
        reply = peer.handshake.feed(kind, message)
        if reply is not None:
            peer.send(reply)
        elif peer.handshake.hello["role"] == "data":
            self._hand_over(peer)
        else:
            self._welcome(peer)

    def _welcome(self, peer: Peer) -> None:
        peer.deadline = float("inf")
        hello = peer.handshake.hello
        facts = {"task": self._label(), "digest": self.settings.get("digest", ""), "pid": os.getpid()}
        if hello.get("session") != "new":
            self._send(peer, frames.WELCOME, facts)
            return
        if len(self.sessions) >= self._max_sessions:
            holders = ", ".join(
                f"{session.holder} since {time.strftime('%H:%M:%S', time.localtime(session.since))}"
                for session in self.sessions.values()
            )
            busy = f"all {self._max_sessions} session(s) of this server are taken (by {holders})"
            self._refuse(peer, "busy", RemoteEnvError(f"{busy}; close one, or start the server with more"))
            return
        taken = {id(session.simulator) for session in self.sessions.values()}
        free = [simulator for simulator in self.simulators if simulator.usable and id(simulator) not in taken]
        holder = "".join(filter(str.isprintable, str(hello.get("client", "a client"))))[:200]
        session = Session(peer, free[0] if free else self._spawn(), holder)
        self.sessions[session.id] = session
        self._had_client = True
        self._send(peer, frames.WELCOME, {**facts, "session": session.id, "secret": session.secret})
        self._send(peer, frames.EVENT, self._status(session.simulator))
        self._say(f"session {session.id} opened by {session.holder}")

    def _hand_over(self, peer: Peer) -> None:
        hello = peer.handshake.hello
        session = self.sessions.get(str(hello.get("session")))
        given = str(hello.get("secret")).encode("utf-8", "replace")
        if session is None or not secrets.compare_digest(given, session.secret.encode()):
            raise AuthError("no such session here; open a control connection first")
        if not session.simulator.ready or session.simulator.abandoned_for_s:
            raise ProtocolError("the simulator is not ready; wait for its event")
        self._send(peer, frames.WELCOME, {"session": session.id})
        sock = peer.detach()
        self._forget(peer, sock)
        session.has_link = True
        session.simulator.take(sock)

    def _answer(self, peer: Peer, kind: int, sequence: int, message: dict[str, Any]) -> None:
        session = next((held for held in self.sessions.values() if held.control is peer), None)
        if kind == frames.STATUS:
            shown = session.simulator if session else next(iter(self.simulators), None)
            reply = self._status(shown) if shown else {"state": "dead", "why": "no simulator runs"}
            self._send(peer, frames.REPLY, {**reply, "sessions": len(self.sessions)}, sequence)
        elif kind == frames.LOGS:
            lines = min(max(int(message.get("lines", 100)), 1), 10_000)
            self._send(peer, frames.REPLY, {"text": read_log_tail(self.folder, lines)}, sequence)
        elif kind == frames.PING:
            self._send(peer, frames.REPLY, {}, sequence)
        elif kind == frames.STOP:
            self.stop("a client asked for it")
        else:
            raise ProtocolError(f"unknown link message {frames.NAMES.get(kind, kind)}")

    def _send(self, peer: Peer, kind: int, message: dict[str, Any], sequence: int = 0) -> None:
        try:
            peer.send(pack_link(kind, message, sequence=sequence))
        except OSError as error:
            self._drop(peer, f"cannot be written to: {error}")

    def _refuse(self, peer: Peer, kind: str, error: Exception) -> None:
        with contextlib.suppress(OSError):
            peer.send(pack_link(frames.REFUSED, {"kind": kind, "message": str(error)}))
        self._drop(peer, str(error))

    def _drop(self, peer: Peer, why: str = "") -> None:
        if peer.sock is None:
            return
        if why:
            self._say(f"connection dropped: {why}")
        self._forget(peer, peer.sock)
        peer.close()

    def _forget(self, peer: Peer, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._peers.discard(peer)
        for session in [held for held in self.sessions.values() if held.control is peer]:
            del self.sessions[session.id]
            session.simulator.abandon()
            self._idle_since = time.monotonic()
            self._say(f"session {session.id} closed")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run numbers without names
        return str(os.getuid())


def _open_listener(listen: dict[str, Any], *, insecure: bool) -> socket.socket:
    if "unix" in listen:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address: Any = listen["unix"]
    else:
        host, port = listen["tcp"]
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not insecure and address[0] not in ("127.0.0.1", "::1"):
            raise ConfigError(
                f"refusing to listen on {address[0]}: whoever reaches that address could see and change the traffic. "
                "Listen on 127.0.0.1 and come through SSH: RemoteEnv('user@this-host', port); or say --insecure"
            )
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def main(folder: str) -> int:
    """Run the supervisor of `folder`."""
    path = Path(folder).absolute()
    try:
        settings = read_settings(path)
        os.environ.pop("REMOTE_ENV_TOKEN", None)  # no task's business
        os.environ.update({str(name): str(value) for name, value in (settings.get("env") or {}).items()})
        if settings.get("cwd"):
            os.chdir(Path(settings["cwd"]).expanduser())
        return Supervisor(path).run()
    except (RemoteEnvError, OSError) as error:
        if not (path / "failed.json").exists() and path.is_dir():
            write_atomically(path / "failed.json", {"kind": "other", "message": str(error)})
        print(f"cannot serve: {error}", file=sys.stderr, flush=True)
        return 1
