"""A simulator process as its supervisor sees it: start, listen to, pass connections to, end. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from remote_env.server import orphans
from remote_env.server.board import Board, BoardReading
from remote_env.server.endings import UNKNOWN_KILLER, MemoryWatch, describe_exit, signal_name
from remote_env.server.stacks import DUMP_SIGNAL

CLOSE_TIMEOUT_S = 5.0  # how long a task's own close() may take
TERMINATE_TIMEOUT_S = 1.0
KILL_TIMEOUT_S = 10.0  # a process that hangs in the kernel, in a GPU driver say, outlives SIGKILL
LAUNCHER = Path(__file__).with_name("launch.py")


class SimulatorProcess:
    """One simulator, in a process group of its own.

    Attributes:
        pid: of the process, which leads its group.
        channel: the line to it; readable when it has said something.
        ready: its task is made, and it takes connections.
        ending: how it ended, in words; "" while it runs.
        killed_by: after a SIGKILL whose, in words; else "".
        condemned: why it has been killed, in words, from then on until it has ended and after; else "".
        mark: what its environment and those of its descendants hold under `orphans.MARK`.

    Args:
        folder: the session folder.
        settings: what stands there.
        memory: tells why a simulator was killed.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], memory: MemoryWatch) -> None:
        self.mark = secrets.token_hex(8)
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as passed:
            self.channel, theirs = socket.socketpair()
            ours.callback(self.channel.close)
            passed.callback(theirs.close)
            self.channel.setblocking(False)
            self._board = Board.create()
            ours.callback(self._board.close)
            leash, self._leash = os.pipe()
            ours.callback(os.close, self._leash)
            passed.callback(os.close, leash)
            self._process = self._start(folder, settings, (theirs.fileno(), self._board.descriptor, leash))
            ours.pop_all()
        self.pid = self._process.pid
        self.ready = False
        self.ending = self.killed_by = self.condemned = ""
        self.channel_closed = False
        self._memory = memory
        self._condemned_at = 0.0
        self._was_signalled = False
        self._returncode: int | None = None
        self._failure: dict[str, Any] | None = None
        self._phase = "starting"
        self._heard = b""
        self._started = self._phase_since = time.monotonic()
        self._ended = 0.0
        self._epoch = self._connections = 0
        self._is_occupied = False  # from a connection that it was given until it has let go of it
        self._abandoned_at = 0.0
        self._link: socket.socket | None = None  # a duplicate of its data connection, to end it by

    def _start(self, folder: Path, settings: dict[str, Any], descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, orphans.MARK: self.mark}
        path = [*settings.get("python_path", []), *filter(None, [environment.get("PYTHONPATH")])]
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(path)
        return subprocess.Popen(  # noqa: S603  our own launcher
            [sys.executable, "-u", str(LAUNCHER), str(folder), "--simulator", *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            start_new_session=True,
            env=environment,
        )

    @property
    def abandoned_for_s(self) -> float:
        """For how long it has been in a call of a session that has ended [s]; 0 when it is not."""
        return time.monotonic() - self._abandoned_at if self._abandoned_at else 0.0

    @property
    def condemned_for_s(self) -> float:
        """How long ago it was killed [s]."""
        return time.monotonic() - self._condemned_at

    @property
    def usable(self) -> bool:
        """Whether a new session may have it."""
        return not self.ending and self._failure is None and not self.condemned

    @property
    def age_s(self) -> float:
        """For how long it has existed, or did [s]."""
        return (self._ended or time.monotonic()) - self._started

    def read_board(self) -> BoardReading:
        """What it does, and has done in all."""
        return self._last_reading if self._leash < 0 else self._board.read()

    def hear(self) -> list[dict[str, Any]]:
        """What it has said since; also notes it."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while chunk := self.channel.recv(65536):
                self._heard += chunk
            self.channel_closed = True
        *lines, self._heard = self._heard.split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            self._note(message)
        return messages

    def _note(self, message: dict[str, Any]) -> None:
        if message["event"] == "phase":
            self._phase, self._phase_since = message["phase"], time.monotonic()
        elif message["event"] == "ready":
            self.ready, self._phase = True, "ready"
        elif message["event"] == "released" and message["connection"] == self._connections:
            self._is_occupied, self._abandoned_at = False, 0.0
        elif message["event"] == "failed":
            self._failure = message

    def status(self) -> dict[str, Any]:
        """State, and what belongs to it: phase, call and its age, or why it is dead."""
        reading = self.read_board()
        common = {"pid": self.pid, "steps": reading.steps, "resets": reading.resets, "age_s": self.age_s}
        if self._failure is not None:
            failure = {key: self._failure[key] for key in ("kind", "message", "traceback")}
            return {"state": "failed", "phase": self._phase, **failure, **common}
        if self.ending:
            return {"state": "dead", **self._death(reading), **common}
        if self.condemned:
            return {"state": "dead", "why": f"it is ending: {self.condemned}", **common}
        if self._abandoned_at:
            phase = f"busy in {reading.call} for a session that has ended"
            return {"state": "starting", "phase": phase, "since_s": self.abandoned_for_s, **common}
        if not self.ready:
            since_s = time.monotonic() - self._phase_since
            return {"state": "starting", "phase": self._phase, "since_s": since_s, **common}
        state = "ready" if reading.call == "nothing" else "busy"
        return {"state": state, "call": reading.call, "since_s": reading.since_s, **common}

    def _death(self, reading: BoardReading) -> dict[str, Any]:
        """Why it ended, and what it was doing: its phase until it was ready, its call from then on."""
        status = self._returncode or 0
        how: dict[str, Any] = {"signal": signal_name(-status)} if status < 0 else {"exit_status": status}
        if self._phase != "ready":
            doing, what = f" while {self._phase}", {"phase": self._phase}
        else:
            doing = "" if reading.call == "nothing" else f" in {reading.call} (step {reading.steps})"
            what = {"call": reading.call}
        # What nobody here can tell is said in the log alone.
        by = f": {self.killed_by}" if self.killed_by and self.killed_by != UNKNOWN_KILLER else ""
        return {"why": f"{self.ending}{doing}{by}", "killed_by": self.killed_by, **how, **what}

    def new_epoch(self) -> int:
        """A number for a session that begins with it."""
        self._epoch += 1
        return self._epoch

    def take(self, sock: socket.socket, epoch: int, resume: int | None) -> None:
        """Pass a data connection to it; from now on the socket is its own.

        Args:
            sock: the connection.
            epoch: of its session.
            resume: the last reply that its client has received; None when it begins.
        """
        self.hang_up()
        self._link = sock
        line = json.dumps({"epoch": epoch, "connection": self._connections + 1, "resume": resume}).encode()
        try:
            socket.send_fds(self.channel, [line], [sock.fileno()])
        except OSError:
            # It is ending, and its client will hear so on its control connection; or it is busy, and its client has
            # opened so many connections meanwhile that no more can wait.
            self.hang_up()
            return
        self._connections += 1
        self._is_occupied = True

    def hang_up(self) -> None:
        """End its data connection, which also frees it when it waits there."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)
            self._link.close()
            self._link = None

    def abandon(self) -> None:
        """End the connection of a session that is gone; whether it still works for that one will show."""
        self.hang_up()
        if self._is_occupied and not self._abandoned_at:
            self._abandoned_at = time.monotonic()

    def kill(self, why: str) -> None:
        """End it by force, with its process group; `reap` tells when it has gone. No new session gets it."""
        if not self.condemned:
            self.condemned, self._condemned_at = why, time.monotonic()
        self._signal(signal.SIGKILL)

    def dump_stacks(self) -> bool:
        """Have it write the stacks of its Python threads to the log; whether it can.

        It can once it has told the kernel so; the signal would end a process that has not.
        """
        if self.ending or DUMP_SIGNAL not in caught_signals(self.pid):
            return False
        os.kill(self.pid, DUMP_SIGNAL)  # unreaped, hence still its number
        return True

    def reap(self) -> bool:
        """Whether it has ended; if so `ending` says how, and its process group is gone too."""
        if self.ending:
            return False
        # Look without reaping first: as long as the leader is a zombie its group's number cannot be another's.
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        self._signal(signal.SIGKILL)
        self._returncode = status = self._process.wait()
        self.ending, self._ended = describe_exit(status), time.monotonic()
        if status == -signal.SIGKILL and not self._was_signalled:
            self.killed_by = self.condemned or self._memory.explain_kill()
        self.ready = False
        return True

    def ask_to_end(self) -> None:
        """Have it close its task and exit, when its call in progress is over."""
        self.hang_up()
        self.channel.close()

    def end(self, begun: float) -> bool:
        """Have it end, by force when it does not; whether it has.

        Args:
            begun: when it was asked to [s, monotonic]; the server's simulators end side by side.
        """
        until = begun + (CLOSE_TIMEOUT_S if self.ready else 0.0)  # a task that is being made has nothing to close
        for wait_s, then in ((TERMINATE_TIMEOUT_S, signal.SIGTERM), (KILL_TIMEOUT_S, signal.SIGKILL)):
            if self._wait(until):
                break
            self._was_signalled = True
            self._signal(then)
            until = max(until, time.monotonic()) + wait_s
        has_ended = self._wait(until)
        self.free()
        return has_ended

    def _wait(self, until: float) -> bool:
        while not self.ending and not self.reap():
            if time.monotonic() >= until:
                return False
            time.sleep(0.002)
        return True

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def free(self) -> None:
        """Free the descriptors of a process that has ended."""
        self.channel.close()
        if self._leash >= 0:
            self._last_reading = self._board.read()
            os.close(self._leash)
            self._leash = -1
            self._board.close()


def caught_signals(pid: int) -> set[int]:
    """The signals for which a process has handlers."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    except (OSError, StopIteration, ValueError):
        return set()
    return {number + 1 for number in range(mask.bit_length()) if mask >> number & 1}


def process_start_time(pid: int) -> str:
    """The kernel's start time of a process (field 22 of /proc/PID/stat), or "" where there is no /proc."""
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
