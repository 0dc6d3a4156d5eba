"""What the supervisor says: a status, and the answers to link messages (docs/protocol.md). Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from remote_env.errors import ProtocolError
from remote_env.protocol import frames
from remote_env.server.log import Log
from remote_env.server.peer import Peer
from remote_env.server.process import SimulatorProcess
from remote_env.server.sessions import Session, Sessions
from remote_env.server.simulators import Simulators

MAX_LINES = 10_000
TAIL_LINES = 40


class Answers:
    """Answers link messages; STOP and KEEP are the supervisor's own.

    Args:
        log: of the server.
        sessions: of the server.
        simulators: of the server.
        say: writes a line to the log.
        on_keep: told whether the server is to be kept.
    """

    def __init__(
        self,
        log: Log,
        sessions: Sessions,
        simulators: Simulators,
        say: Callable[[str], None],
        on_keep: Callable[[bool], None],
    ) -> None:
        self._log, self._sessions, self._simulators = log, sessions, simulators
        self._say, self._on_keep = say, on_keep
        self._started = time.monotonic()
        self._answers: dict[int, Callable[[Peer, dict[str, Any]], dict[str, Any]]] = {
            frames.STATUS: self._status,
            frames.LOGS: self._logs,
            frames.PING: self._ping,
            frames.DUMP: self._dump,
            frames.KILL: self._kill,
            frames.KEEP: self._keep,
            frames.LEAVE: lambda _peer, _message: {},  # the supervisor's own
        }

    def answer(self, peer: Peer, kind: int, message: dict[str, Any]) -> dict[str, Any]:
        """The fields of the REPLY.

        Raises:
            ProtocolError: no such message, or a field of another type than is due.
        """
        known = self._answers.get(kind)
        if known is None:
            raise ProtocolError(f"unknown link message {frames.NAMES.get(kind, kind)}")
        try:
            return known(peer, message)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ProtocolError(f"a {frames.NAMES[kind]} with a wrong field: {error}") from error

    @property
    def uptime_s(self) -> float:
        """For how long the server has run [s]."""
        return time.monotonic() - self._started

    def describe(self, simulator: SimulatorProcess, session: Session | None = None) -> dict[str, Any]:
        """The status of a simulator, for others or for a session that holds or waits for it; as in an EVENT."""
        status = {**simulator.status(), "uptime_s": self.uptime_s}
        if session is not None and session.is_waiting and simulator.condemned:
            status["state"], status["since_s"] = "starting", simulator.condemned_for_s
            status["phase"] = f"waiting for the end of the last simulator ({simulator.condemned})"
        if status["state"] in ("starting", "failed", "dead"):
            status["log_tail"] = self._log.clean_tail(TAIL_LINES)
        return status

    # The messages

    def _status(self, peer: Peer, message: dict[str, Any]) -> dict[str, Any]:
        simulator, why = self._find(peer, message)
        self._log.scan()
        shown = {"state": "dead", "why": why, "uptime_s": self.uptime_s}
        if simulator is not None:
            shown = self.describe(simulator, self.find_session(peer, message))
        return {
            **shown,
            "sessions": len(self._sessions),
            "max_sessions": self._sessions.max_sessions,
            "holders": self._sessions.holders(),
            "idle_s": self._sessions.idle_s,
            "idle_timeout_s": _finite(self._sessions.idle_timeout_s),
            "kept": self._sessions.kept,
            "last_line": self._log.last_line(),
            "log_size": self._log.size,
            "problems": self._log.problems.count,
        }

    def _logs(self, _peer: Peer, message: dict[str, Any]) -> dict[str, Any]:
        if "since" in message:
            text, following = self._log.since(int(message["since"]), int(message.get("max_bytes", 64 << 10)))
        else:
            text, following = self._log.tail(min(max(int(message.get("lines", 100)), 1), MAX_LINES))
        return {"text": text, "next": following, "size": max(self._log.size, following)}

    def _ping(self, peer: Peer, message: dict[str, Any]) -> dict[str, Any]:
        session = self.find_session(peer, message)
        if session is not None:
            session.renew()
        self._log.scan()
        simulator, _ = self._find(peer, message)
        return {
            "problems": self._log.problems.after(int(message.get("problems_after", 0))),
            "state": self.describe(simulator, session)["state"] if simulator else "dead",
            "last_line": self._log.last_line(),
        }

    def _dump(self, peer: Peer, message: dict[str, Any]) -> dict[str, Any]:
        simulator, why = self._find_running(peer, message)
        if simulator is None:
            return {"error": why}
        log_from = self._log.size
        if not simulator.dump_stacks():
            return {"error": f"the simulator {simulator.pid} cannot be asked for its stacks: it has only just started"}
        return {"log_from": log_from, "pid": simulator.pid}

    def _kill(self, peer: Peer, message: dict[str, Any]) -> dict[str, Any]:
        simulator, why = self._find_running(peer, message)
        if simulator is None:
            return {"error": why}
        self._say(f"simulator {simulator.pid} is killed on request")
        simulator.kill("killed on request")
        return {"pid": simulator.pid}

    def _keep(self, _peer: Peer, message: dict[str, Any]) -> dict[str, Any]:
        timeout_s = message.get("idle_timeout_s")
        if timeout_s is not None and not float(timeout_s) >= 0:
            raise ValueError(f"idle_timeout_s is {timeout_s!r}; it must be at least 0")
        if timeout_s is not None:
            self._sessions.idle_timeout_s = float(timeout_s)
        self._sessions.kept = bool(message.get("kept", True))
        self._on_keep(self._sessions.kept)
        return {}

    def find_session(self, peer: Peer, message: dict[str, Any]) -> Session | None:
        """The session that a message is about: the one that it names, else the connection's own."""
        if message.get("session") is not None:
            return self._sessions.find(str(message["session"]))
        return self._sessions.held_by(peer)

    def _find(self, peer: Peer, message: dict[str, Any]) -> tuple[SimulatorProcess | None, str]:
        """The simulator that a message is about, or None and why there is none."""
        session = self.find_session(peer, message)
        if session is not None:
            return session.simulator, ""
        if message.get("session") is not None:
            return None, f"this session has ended: {self._sessions.why_ended(str(message['session']))}"
        return next(iter(self._simulators.living), None), "no simulator runs"

    def _find_running(self, peer: Peer, message: dict[str, Any]) -> tuple[SimulatorProcess | None, str]:
        simulator, why = self._find(peer, message)
        if simulator is not None and simulator.ending:
            return None, f"the simulator has ended: {simulator.ending}"
        return simulator, why


def _finite(seconds: float) -> float | None:
    """A number that JSON knows."""
    return seconds if seconds < float("inf") else None
