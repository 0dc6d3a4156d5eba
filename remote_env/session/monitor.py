"""The monitor: renews a session's lease and passes on what a user should see of the far log, in a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from remote_env.errors import ConnectError, RemoteEnvError
from remote_env.session.control import ControlLink, Dial
from remote_env.session.follow import LogReader
from remote_env.transport import Transport

log = logging.getLogger("remote_env")

READ_EVERY_S = 0.5  # when log lines are wanted as they come
DIAL_TIMEOUT_S = 30.0  # a new login may be part of it
JOIN_TIMEOUT_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
_WARNINGS = ("traceback", "vulkan")  # what a task may survive; the other kinds of problems are errors


def remote_logger(host: str) -> logging.Logger:
    """The logger of what servers on `host` write: `remote_env.remote.<host>`."""
    return logging.getLogger(f"remote_env.remote.{host}")


class Monitor:
    """Watches one session over a control link of its own, until it is stopped: its heartbeat.

    It pings the server, which renews the lease; writes the problems that the server found in its log to the logger
    `remote_env.remote.<host>` as warnings and errors; and, when that logger is enabled for INFO, each line of the log.
    A link that breaks is made anew, with growing pauses.

    Args:
        dial: makes transports, over a new login if need be; must not ask anybody for a password.
        token: the server's.
        session: the id of the session.
        lease_s: how long the session lives without a ping [s]; None for ever.
        host: for the logger's name.
        heartbeat_s: how often it asks [s]; at least every third of `lease_s`.
        heartbeat_timeout_s: after how long without an answer the server counts as silent [s].
        on_silence: told then why, and again after as long a silence: the session's own links will not notice by
            themselves.
        problems_after: the number of the last problem that is old news.
        lines_from: where in the log this session's lines begin.
    """

    def __init__(
        self,
        dial: Dial,
        token: str,
        *,
        session: str,
        lease_s: float | None,
        host: str,
        heartbeat_s: float = 5.0,
        heartbeat_timeout_s: float = 20.0,
        on_silence: Callable[[str], None] = lambda _why: None,
        problems_after: int = 0,
        lines_from: int = 0,
    ) -> None:
        self._dial, self._token, self._session, self._host = dial, token, session, host
        self._log = remote_logger(host)
        self._ping_every_s = min(heartbeat_s, lease_s / 3) if lease_s is not None else heartbeat_s
        self._answer_timeout_s, self._on_silence = heartbeat_timeout_s, on_silence
        self._problems_after = problems_after
        self._lines_from = lines_from
        self._stopping = threading.Event()
        self._transport: Transport | None = None
        self._heard_at = time.monotonic()
        self._trouble, self._told_at = "", 0.0
        self._thread = threading.Thread(target=self._run, name="remote-env monitor", daemon=True)
        self._thread.start()

    @property
    def silence(self) -> tuple[float, str]:
        """Since how long the server has not answered [s], and why; 0.0 and "" when it does."""
        trouble = self._trouble
        return (time.monotonic() - self._heard_at, trouble) if trouble else (0.0, "")

    @property
    def bookmark(self) -> tuple[int, int]:
        """The number of the last problem that was passed on, and where in the log the next line begins."""
        return self._problems_after, self._lines_from

    def stop(self) -> None:
        """Have it end; never raises and does not wait. `join` does."""
        self._stopping.set()
        transport = self._transport
        if transport is not None:
            transport.close()  # frees a thread that waits there

    def join(self) -> None:
        """Wait until it has ended; no longer than a few seconds."""
        if self._thread is not threading.current_thread():  # where the garbage of a program may be collected
            self._thread.join(JOIN_TIMEOUT_S)

    def let_go(self) -> None:
        """In a forked child, which has no such thread: free its copy of the link's descriptor."""
        if self._transport is not None:
            self._transport.close()

    # The thread

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._watch()
            except RemoteEnvError as error:
                self._note_trouble(error)
            except Exception:
                log.exception("the monitor of %s failed", self._host)
                return
            pause_s = (
                FIRST_PAUSE_S if self._heard_at > began else min(2 * pause_s, LONGEST_PAUSE_S, self._answer_timeout_s)
            )
            self._stopping.wait(pause_s)

    def _watch(self) -> None:
        """Ping and read until the link breaks."""
        link = ControlLink(self._dial_noted, self._token, self._soon(DIAL_TIMEOUT_S), session=None, client="")
        try:
            reader = LogReader(link, self._lines_from)
            while not self._stopping.is_set():
                self._heard(link.ping(self._session, self._problems_after, self._soon(self._answer_timeout_s)))
                self._rest(reader)
        finally:
            self._transport = None
            link.close()

    def _dial_noted(self, deadline: float) -> Transport:
        """A transport that `stop` and `let_go` can reach from its first moment on."""
        transport = self._transport = self._dial(deadline)
        if self._stopping.is_set():
            transport.close()
            raise ConnectError("the monitor was stopped")
        return transport

    def _soon(self, timeout_s: float) -> float:
        return time.monotonic() + timeout_s

    def _rest(self, reader: LogReader) -> None:
        """Until the next ping; meanwhile pass on lines of the log, if anybody wants them."""
        until = self._soon(self._ping_every_s)
        while not self._stopping.is_set() and time.monotonic() < until:
            wants_lines = self._log.isEnabledFor(logging.INFO)
            if wants_lines:
                self._pass_on(reader)
            wait_s = until - time.monotonic()
            self._stopping.wait(min(wait_s, READ_EVERY_S) if wants_lines else wait_s)

    def _pass_on(self, reader: LogReader) -> None:
        for line in reader.read(self._soon(self._answer_timeout_s)):
            self._log.info("%s", line)
        self._lines_from = reader.offset

    def _heard(self, reply: dict[str, Any]) -> None:
        self._heard_at = time.monotonic()
        if self._trouble:
            self._trouble = ""
            log.info("%s answers again", self._host)
        for problem in reply.get("problems", ()):
            self._problems_after = max(self._problems_after, int(problem["number"]))
            level = logging.WARNING if problem["kind"] in _WARNINGS else logging.ERROR
            self._log.log(level, "%s in the log: %s", problem["kind"], problem["text"])

    def _note_trouble(self, error: RemoteEnvError) -> None:
        if self._stopping.is_set():
            return
        if not self._trouble:
            log.info("%s does not answer: %s", self._host, error)
        self._trouble = str(error)
        now = time.monotonic()
        # Told again, too: the session may have been resumed meanwhile, and its new link have fallen silent.
        if now - max(self._heard_at, self._told_at) >= self._answer_timeout_s:
            self._told_at = now
            self._on_silence(f"no heartbeat for {now - self._heard_at:.0f} s: {error}")
