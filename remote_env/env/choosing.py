"""Which of the servers that run on a host to take, and which to end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from remote_env.env.places import Place
from remote_env.env.server import Server, ServerRecord
from remote_env.errors import ConfigError, RemoteEnvError
from remote_env.session import ControlLink

log = logging.getLogger("remote_env")

ASK_TIMEOUT_S = 5.0  # a supervisor answers at once


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
        if status is not None and status.get("sessions", 0) < status.get("max_sessions", 1):
            return server
    return None


def end_old(place: Place, deadline: float, on_ended: Callable[[str], None], besides: Iterable[int] = ()) -> None:
    """End this user's servers there that hold no session and were not left warm on purpose.

    One that cannot be asked is left alone.

    Args:
        place: where to look.
        deadline: monotonic [s].
        on_ended: told of each.
        besides: ports of servers to leave alone.
    """
    for record in place.list(deadline):
        status = None if record.port in besides else ask_status(place.attach(record, deadline), deadline)
        if status is None or status.get("sessions", 0) or status.get("kept"):
            continue
        place.stop(record, deadline)
        on_ended(f"ended the old server {record.id} ({record.task_label}, pid {record.pid}, up {_age(record)})")


def ask_status(server: Server, deadline: float) -> dict[str, Any] | None:
    """What that server does; None when it does not say."""
    try:
        until = min(deadline, time.monotonic() + ASK_TIMEOUT_S)
        link = ControlLink(server.dial, server.token, until, session=None, client="")
        try:
            return link.status(max(until - time.monotonic(), 0.1))
        finally:
            link.close()
    except RemoteEnvError as error:
        log.debug("%s cannot be asked: %s", server.where, error)
        return None
