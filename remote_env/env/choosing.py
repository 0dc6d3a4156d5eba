"""Which of the servers that run on a host to take, and which to end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from remote_env.env.clients import end_deserted
from remote_env.env.places import Place
from remote_env.env.server import Server, ServerRecord
from remote_env.errors import ConfigError, RemoteEnvError
from remote_env.session import ControlLink

log = logging.getLogger("remote_env")

ASK_TIMEOUT_S = 5.0  # a supervisor answers at once
HUNG_S = 1.0  # a simulator that works so long for nobody is not warm
FIRST_CLIENT_S = 60.0  # how long a started server may wait for its starter


def attach_by_id(place: Place, wanted: str, deadline: float) -> Server:
    """The server whose id begins with `wanted`.

    Raises:
        ConfigError: none does, or several do; the message lists what runs there.
    """
    records = place.list(deadline)
    matching = [record for record in records if record.id.startswith(wanted)]
    if len(matching) == 1 and wanted:
        return place.attach(matching[0], deadline)
    what = f"{len(matching)} servers" if matching and wanted else "no server"
    raise ConfigError(f"session={wanted!r} names {what} of yours on {place.name}; {describe_servers(records)}")


def describe_servers(records: Sequence[ServerRecord]) -> str:
    """What runs, in a few words each."""
    if not records:
        return "none runs there"
    shown = [f"{record.id} ({record.task_label}, port {record.port}, up {_age(record)})" for record in records]
    return f"there run: {', '.join(shown)}"


def _age(record: ServerRecord) -> str:
    minutes = max(time.time() - record.started, 0.0) / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"


def find_warm(place: Place, digest: str, setup: str, deadline: float, besides: Container[int]) -> Server | None:
    """The newest server there that was started for the same and has a session free, or None.

    Args:
        place: where to look.
        digest: of the task.
        setup: of what else it was started with.
        deadline: monotonic [s].
        besides: ports of servers that are not wanted.
    """
    for record in reversed(place.list(deadline)):
        if (record.digest, record.setup) != (digest, setup) or record.port in besides:
            continue
        server = place.attach(record, deadline)
        status = ask_status(server, deadline)
        if status is not None and _is_warm(status):
            return server
    return None


def _is_warm(status: Mapping[str, Any]) -> bool:
    """Whether a session is free, and no simulator hangs in a call of one that is gone."""
    sessions, phase = status.get("sessions", 0), str(status.get("phase", ""))
    is_hung = not sessions and phase.startswith("busy") and status.get("since_s", 0.0) > HUNG_S
    return sessions < status.get("max_sessions", 1) and not is_hung and status["state"] != "failed"


def end_old(place: Place, deadline: float, on_ended: Callable[[str], None], besides: Iterable[int] = ()) -> None:
    """End this user's servers there that hold no session and were not left warm on purpose.

    One that cannot be asked is left alone, and one that still waits for its starter.

    Args:
        place: where to look.
        deadline: monotonic [s].
        on_ended: told of each.
        besides: ports of servers to leave alone.
    """
    for record in place.list(deadline):
        server = place.attach(record, deadline)
        status = None if record.port in besides else ask_status(server, deadline)
        if status is None or status.get("kept") or not _is_forsaken(status):
            continue
        with _held(server, deadline) as is_ours:  # so that nobody takes it while it ends
            if is_ours:
                place.stop(record, deadline)
                on_ended(f"ended the old server {record.id} ({record.task_label}, pid {record.pid}, up {_age(record)})")


def _is_forsaken(status: Mapping[str, Any]) -> bool:
    """Whether nobody holds a session, and nobody is about to hold the first."""
    idle_s, uptime_s = status.get("idle_s", 0.0), status.get("uptime_s", 0.0)
    had_client = uptime_s - idle_s > 0.1
    return not status.get("sessions", 0) and (had_client or idle_s > FIRST_CLIENT_S)


@contextlib.contextmanager
def _held(server: Server, deadline: float) -> Iterator[bool]:
    """Hold a session of that server; whether nobody else does."""
    until = min(deadline, time.monotonic() + ASK_TIMEOUT_S)
    try:
        link = ControlLink(server.dial, server.token, until, session="new", client="who ends old servers", lease_s=60.0)
    except RemoteEnvError as error:
        log.debug("%s is not ended: %s", server.where, error)
        yield False
        return
    with contextlib.closing(link):
        yield link.status(ASK_TIMEOUT_S).get("sessions", 0) == 1


def ask_status(server: Server, deadline: float) -> dict[str, Any] | None:
    """What that server does; None when it does not say. Sessions of this machine's dead programs are ended before."""
    try:
        until = min(deadline, time.monotonic() + ASK_TIMEOUT_S)
        link = ControlLink(server.dial, server.token, until, session=None, client="")
        with contextlib.closing(link):
            status = link.status(max(until - time.monotonic(), 0.1))
            if end_deserted(link, status.get("holders", ()), until):
                status = link.status(max(until - time.monotonic(), 0.1))
            return status
    except RemoteEnvError as error:
        log.debug("%s cannot be asked: %s", server.where, error)
        return None
