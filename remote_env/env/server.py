"""A task server as its clients know it: how it is dialled, and what it wrote down about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from remote_env.session import Dial

STOP_TIMEOUT_S = 10.0
Progress = Callable[[str, str], None]  # a phase of a start, and what it does just now


@dataclass
class Server:
    """A task server that can be dialled.

    Attributes:
        dial: makes a transport to it.
        token: its token; never shown.
        started: whether we started it, so that closing ends it.
        where: its address, to show.
        port: where it listens on its machine's loopback; 0 when it does not.
        redial: as `dial`, but never logs in anew: for questions that are not worth it.
        stop: ends it, by force if need be, and removes what starting it made. Only if `started`.
        log_tail: the last lines of its log, for when it can no longer be asked.
        let_go: in a forked child, frees what would keep it running when its starter dies.
        can_stay: whether it can go on without its starter.
    """

    dial: Dial
    token: str = field(repr=False)
    started: bool
    where: str
    port: int = 0
    redial: Dial | None = None
    stop: Callable[[float], None] = lambda _deadline: None
    log_tail: Callable[[int], str] = lambda _lines: ""
    let_go: Callable[[], None] = lambda: None
    can_stay: bool = True


@dataclass(frozen=True)
class ServerRecord:
    """What a server that listens on a port wrote about itself, for clients of the same user.

    Attributes:
        id: the name of its session folder; what `session=` takes.
        port: where it listens on its machine's loopback.
        pid: the supervisor's process id.
        start_time: when that process started, as the kernel has it; tells it from a later one of the same pid.
        token: what its clients authenticate with; never shown.
        session_folder: its folder there.
        task_label: the task's name.
        digest: of the task, its arguments and its simulator.
        setup: of what else it was started with; with equal digest and setup two servers are interchangeable.
        started: when, in seconds since 1970.
        user: whose it is.
        python: the version of its interpreter.
        host: the machine's own name for itself.
    """

    id: str
    port: int
    pid: int
    start_time: str
    token: str = field(repr=False)
    session_folder: str
    task_label: str = ""
    digest: str = ""
    setup: str = ""
    started: float = 0.0
    user: str = ""
    python: str = ""
    host: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> ServerRecord:
        """The record in what a server wrote as JSON; KeyError, TypeError or ValueError when it is none."""
        folder = str(plain["session_folder"])
        return cls(
            id=str(plain.get("id") or folder.rstrip("/").rpartition("/")[2]),
            port=int(plain["port"]),
            pid=int(plain["pid"]),
            start_time=str(plain["start_time"]),
            token=str(plain["token"]),
            session_folder=folder,
            started=float(plain.get("started") or 0.0),
            **{
                name: str(plain.get(name) or "") for name in ("task_label", "digest", "setup", "user", "python", "host")
            },
        )

    def to_plain(self) -> dict[str, Any]:
        """The same as a dict, token included."""
        return dict(vars(self))
