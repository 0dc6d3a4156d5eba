"""The supervisor: owns the socket, the sessions, the leases and the log, and answers whatever the simulators do.

One thread, one selector, the standard library only. It authenticates each connection, keeps the control ones, and
passes the data ones on to the simulator of their session.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError, ProtocolError, RemoteEnvError, SessionLost
from remote_env.private_files import make_private_folder
from remote_env.protocol import frames, machine
from remote_env.protocol.monitoring import write_metrics
from remote_env.server.answers import Answers
from remote_env.server.connections import Connections, open_listener
from remote_env.server.folder import free_record_path, read_settings, remove_folder, write_atomically
from remote_env.server.gpu import GpuWatch
from remote_env.server.log import LIMIT_BYTES, SCAN_BYTES, Log
from remote_env.server.metrics import read_metrics
from remote_env.server.output import forgive_failing_writes
from remote_env.server.peer import HANDSHAKE_TIMEOUT_S, Peer
from remote_env.server.process import SimulatorProcess, process_start_time
from remote_env.server.sessions import Session, Sessions
from remote_env.server.simulators import Simulators
from remote_env.server.web import answer_http

QUIET_TURN_S = 5.0  # how often the log is looked at while nothing runs, and while something does
BUSY_TURN_S = 1.0
HASTY_TURN_S = 0.2
SEARCH_TURN_S = 0.02  # a part of the log each; others are served in between


class Supervisor:
    """Serves one task from one session folder until it is stopped, or nobody has held it for the idle time-out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = settings = read_settings(folder)
        self._selector = selectors.DefaultSelector()
        self._log = Log(folder / "log", int(settings.get("log_limit_bytes", LIMIT_BYTES)))
        self._simulators = Simulators(folder, settings, self._selector, self._on_simulator, self._say)
        self._sessions = Sessions(self._simulators, int(settings["max_sessions"]), float(settings["idle_timeout_s"]))
        self._answers = Answers(self._log, self._sessions, self._simulators, self._say, self._on_keep)
        self._gpus = GpuWatch(self._selector)
        self._is_announced = False
        self._stopping = ""
        self._record: Path | None = None
        self._recorded: dict[str, Any] = {}

    # Life

    def run(self) -> int:
        """Listen, serve, and clean up; the exit status."""
        self._wake_on_signals()
        listener = self._listen()
        self._connections = Connections(
            self, self._selector, listener, self.settings["token"], self._say, handshake_timeout_s=HANDSHAKE_TIMEOUT_S
        )
        self._hold_leash()
        status = 0
        try:
            self._announce(listener)
            self._simulators.spawn()
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
        self._connections.turn(now)
        for session in self._sessions.overdue(now):
            self._expire(session)
        if self._sessions.idle_s > self._sessions.idle_limit_s:
            self.stop(f"no client for {self._sessions.idle_limit_s:g} s")
        self._gpus.turn(now)
        self._simulators.turn(self._gpus.pids)
        self._log.scan()
        if self._log.bound():
            self._say("the log was above its limit: its first part is gone")

    def _next_wait_s(self) -> float:
        deadline = min(self._connections.next_deadline(), self._sessions.next_deadline(), self._gpus.deadline)
        wait_s = max(deadline - time.monotonic(), 0.0) + 0.01
        if self._log.unsearched_bytes > SCAN_BYTES:
            return min(wait_s, SEARCH_TURN_S)
        if self._simulators.is_waiting or self._log.is_behind:
            return min(wait_s, HASTY_TURN_S)
        return min(wait_s, BUSY_TURN_S if self._simulators.is_busy else QUIET_TURN_S)

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
        self._simulators.reap()

    def _hold_leash(self) -> None:
        """End when our starter does, if it has given us a leash."""
        leash = self.settings.get("leash_fd")
        if leash is not None and int(leash) not in self._selector.get_map():
            self._selector.register(int(leash), selectors.EVENT_READ, lambda: self.stop("its starter is gone"))

    def _listen(self) -> socket.socket:
        listen = self.settings["listen"]
        try:
            return open_listener(listen, insecure=bool(self.settings.get("insecure")))
        except OSError as error:
            taken = error.errno in (98, 48)  # EADDRINUSE on Linux and macOS
            place = listen.get("unix") or "{}:{}".format(*listen["tcp"])
            hint = "; choose another port, or attach to what listens there" if taken else ""
            message = f"cannot listen on {place}: {error.strerror or error}{hint}"
            kind = "port-in-use" if taken else "other"
            write_atomically(self.folder / "failed.json", {"kind": kind, "message": message})
            raise ConfigError(message) from error

    def _announce(self, listener: socket.socket) -> None:
        name = listener.getsockname()
        listen = {"unix": name} if listener.family == socket.AF_UNIX else {"tcp": [name[0], name[1]]}
        facts = {"pid": os.getpid(), "start_time": process_start_time(os.getpid())}
        if "tcp" in listen:
            self._record = free_record_path(name[1])
            make_private_folder(self._record.parent)
            self._recorded = {**facts, **self._describe(), "port": name[1]}
            write_atomically(self._record, self._recorded)
            self._say(f"clients of this user find the token in {self._record}")
        python = ".".join(map(str, sys.version_info[:3]))
        ready = {**facts, "listen": listen, "python": python, "protocol": frames.VERSION}
        write_atomically(self.folder / "ready.json", ready)
        self._is_announced = True
        self._say(f"serving {self._full_label()} at {listen.get('unix') or '{}:{}'.format(*listen['tcp'])}")

    def _describe(self) -> dict[str, Any]:
        """What this user's clients find the server by, and what they choose it by."""
        return {
            "token": self.settings["token"],
            "session_folder": str(self.folder),
            "id": self.folder.name,
            "task_label": self._full_label(),
            "digest": self.settings.get("digest", ""),
            "setup": self.settings.get("setup", ""),
            "started": time.time(),
            "user": _user(),
            "python": sys.executable,
            "host": os.uname().nodename,
            "kept": False,
        }

    def _label(self) -> str:
        return str(self.settings["task"]["env"])

    def _full_label(self) -> str:
        policy, num_envs = (self.settings["task"].get(name) for name in ("policy", "num_envs"))
        beside = f" with {Path(policy['source']).name}" if policy else ""
        return self._label() + beside + (f" (batch of {num_envs})" if num_envs else "")

    def _say(self, text: str) -> None:
        encoding = sys.stdout.encoding or "ascii"
        shown = f"{time.strftime('%H:%M:%S')} {text}".encode(encoding, "backslashreplace").decode(encoding)
        with contextlib.suppress(OSError):  # a full disk or a closed terminal must not end the server
            print(shown, flush=True)

    def _end(self) -> None:
        """Stop every simulator, then remove every file, then let the clients see that we are gone."""
        # The record goes before the port is free: the next server there writes one of its own.
        if self._record is not None:
            self._remove_record(self._record)
        self._connections.stop_listening()
        self._gpus.end()
        self._simulators.end()
        if self._is_announced:
            remove_folder(self.folder)  # else its starter reads there why, and removes it
        self._connections.close()
        signal.set_wakeup_fd(-1)
        for sock in self._wake:
            sock.close()
        self._selector.close()

    def _remove_record(self, record: Path) -> None:
        try:
            record.unlink(missing_ok=True)
        except OSError as error:  # a disk that has become read-only must not keep the rest from ending
            self._say(f"the record stays: {error}")

    # What happens

    def _on_simulator(self, simulator: SimulatorProcess, message: dict[str, Any]) -> None:
        if message["event"] == "failed" and not self._sessions.had_client and self.settings.get("stop_on_failure"):
            self.stop(f"failed: {message['kind']}: {message['message']}")
        if message["event"] in ("ended", "failed"):
            self._log.scan_to_end()
        if message["event"] == "released":
            self._sessions.offer(simulator)
        for session in self._sessions.holding(simulator):
            if message["event"] == "ended" and session.is_waiting:
                self._replace_simulator(session)
            self._tell(session)

    def _replace_simulator(self, session: Session) -> None:
        """Give a session another: it has had nothing of the one that ended."""
        try:
            session.simulator, session.is_waiting = self._simulators.spawn(), False
        except OSError as error:
            self._say(f"no simulator can be started: {error}")

    def _tell(self, session: Session) -> None:
        """Tell a session how its simulator fares."""
        if session.control is not None:
            self._connections.send(session.control, frames.EVENT, self._answers.describe(session.simulator, session))

    def on_proved(self, peer: Peer) -> None:
        """See `connections.Owner`."""
        hello = peer.handshake.hello
        try:
            if hello["role"] == "data":
                self._hand_over(peer)
            elif hello.get("session") == "new":
                self._open_session(peer)
            elif hello.get("session") is not None:
                self._take_back(peer)
            else:
                self._connections.send(peer, frames.WELCOME, self._facts())
        except SessionLost as error:
            self._connections.refuse(peer, "ended", error)

    def _facts(self) -> dict[str, Any]:
        num_envs = self.settings["task"].get("num_envs")
        return {
            "task": self._label(),
            "digest": self.settings.get("digest", ""),
            "setup": self.settings.get("setup", ""),
            "id": self.folder.name,
            "pid": os.getpid(),
            "log_size": self._log.size,
            "problems": self._log.problems.count,
            **({} if num_envs is None else {"num_envs": num_envs}),
        }

    def _open_session(self, peer: Peer) -> None:
        try:
            session = self._sessions.open(peer)
        except OSError as error:
            self._connections.refuse(peer, "other", RemoteEnvError(f"no simulator can be started: {error}"))
            return
        except RemoteEnvError as error:
            self._connections.refuse(peer, "protocol" if isinstance(error, ProtocolError) else "busy", error)
            return
        opened: dict[str, Any] = {"session": session.id}
        if session.lease_s < float("inf"):
            opened["lease_s"] = session.lease_s
        if session.resume_s:
            opened["resume_s"] = session.resume_s
        self._connections.send(peer, frames.WELCOME, {**self._facts(), **opened})
        self._tell(session)
        self._say(f"session {session.id} opened by {session.holder}")

    def _take_back(self, peer: Peer) -> None:
        """Give a session another control connection."""
        session = self._sessions.prove(peer)
        before, session.control = session.control, peer
        session.advance("taken back")
        self._sessions.resumed += 1
        if before is not None:
            self._connections.drop(before)
        self._connections.send(peer, frames.WELCOME, {**self._facts(), "session": session.id})
        self._tell(session)
        self._say(f"session {session.id} was taken back by {session.holder}")

    def _hand_over(self, peer: Peer) -> None:
        session, resume = self._sessions.prove(peer), _read_resume(peer.handshake.hello.get("resume"))
        simulator = session.simulator
        if not simulator.ready or simulator.abandoned_for_s or simulator.condemned:
            raise ProtocolError("the simulator is not ready; wait for its event")
        session.is_waiting = False
        session.renew()
        session.epoch = session.epoch or simulator.new_epoch()
        self._connections.send(peer, frames.WELCOME, {"session": session.id})
        simulator.take(self._connections.hand_over(peer), session.epoch, resume)

    def _cut_off(self, session: Session, why: str) -> None:
        """Nothing connects us to its client any more: keep it for a while, if that is wanted, else end it."""
        if not session.resume_s:
            self._say(f"session {session.id} of {session.holder}: {why}")
            self._sessions.close(session, why)
            return
        self._say(f"session {session.id} of {session.holder} is cut off, and kept for {session.resume_s:g} s: {why}")
        session.advance("cut")
        session.control = None

    def _expire(self, session: Session) -> None:
        """Nothing was heard of its client for too long."""
        control = session.control
        if control is None:
            why = f"its client did not come back within {session.resume_s:g} s after its link was cut"
            self._say(f"session {session.id} of {session.holder}: {why}")
            self._sessions.close(session, why, "expired")
            return
        why = f"its lease ran out: nothing was heard of its client for {session.lease_s:g} s"
        session.simulator.hang_up()
        self._cut_off(session, why)
        if session.state == machine.ENDED:
            self._connections.send(control, frames.EVENT, {"state": "dead", "why": why, "kind": "lease"})
        self._connections.drop(control)

    def on_message(self, peer: Peer, kind: int, sequence: int, message: dict[str, Any]) -> None:
        """See `connections.Owner`."""
        if kind == frames.STOP:
            self.stop("a client asked for it")
            return
        if kind == frames.LEAVE:
            self._leave(peer, message)
        self._connections.send(peer, frames.REPLY, self._answers.answer(peer, kind, message), sequence)

    def _leave(self, peer: Peer, message: dict[str, Any]) -> None:
        """End the session that is named, else the connection's own."""
        session = self._answers.find_session(peer, message)
        if session is not None:
            self._sessions.close(session, "its client left")
            self._say(f"session {session.id}: {session.holder} has left")

    def _on_keep(self, kept: bool) -> None:
        """Outlive our starter, or not; and say in the record that we do."""
        leash = self.settings.get("leash_fd")
        if not kept:
            self._hold_leash()
        elif leash is not None and int(leash) in self._selector.get_map():
            self._selector.unregister(int(leash))
        if self._record is not None:
            self._recorded["kept"] = kept
            with contextlib.suppress(OSError):  # a full disk costs the note, not the server
                write_atomically(self._record, self._recorded)

    def on_http(self, request: bytes) -> bytes:
        """See `connections.Owner`."""
        return answer_http(request, self._simulators.statuses(), self._write_metrics)

    def _write_metrics(self, ready: bool) -> str:
        gpus, uptime_s = self._gpus.read(), self._answers.uptime_s
        return write_metrics(
            read_metrics(self._simulators, self._sessions, self._log, gpus, ready=ready, uptime_s=uptime_s)
        )

    def on_gone(self, peer: Peer) -> None:
        """See `connections.Owner`."""
        session = self._sessions.held_by(peer)
        if session is not None:
            self._cut_off(session, "its client closed it, or its connection broke")


def _read_resume(given: Any) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < 1 << 63:
        raise ProtocolError(f"resume is {str(given)[:100]!r}; it must be the number of a reply, or null")
    return given


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run numbers without names
        return str(os.getuid())


def main(folder: str) -> int:
    """Run the supervisor of `folder`."""
    forgive_failing_writes()
    path = Path(folder).absolute()
    try:
        settings = read_settings(path)
        for name in ("REMOTE_ENV_TOKEN", "REMOTE_ENV_POLICY_TOKEN"):
            os.environ.pop(name, None)  # no task's business
        os.environ.update({str(name): str(value) for name, value in (settings.get("env") or {}).items()})
        if settings.get("cwd"):
            os.chdir(Path(settings["cwd"]).expanduser())
        return Supervisor(path).run()
    except (RemoteEnvError, OSError) as error:
        if not (path / "failed.json").exists() and path.is_dir():
            with contextlib.suppress(OSError):
                write_atomically(path / "failed.json", {"kind": "other", "message": str(error)})
        print(f"cannot serve: {error}", file=sys.stderr, flush=True)
        return 1
