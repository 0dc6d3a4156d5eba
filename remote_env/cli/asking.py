"""Reaching a host for its servers, asking them what they do, and saying it in words."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from remote_env.cli.show import login_options, one_line, show_seconds
from remote_env.env.places import Place, make_connection, open_place
from remote_env.env.server import ServerRecord
from remote_env.env.ssh_place import SshPlace
from remote_env.errors import RemoteEnvError
from remote_env.session import ControlLink

LIST_TIMEOUT_S, ASK_TIMEOUT_S = 20.0, 5.0
SHORT_ID = 8


@contextlib.contextmanager
def reach(host: str, options: argparse.Namespace) -> Iterator[Place]:
    """The place that `host` names, logged in to, and left at the end.

    Raises:
        ConfigError: it is no address that we understand.
        ConnectError: the login failed (HostKeyError, AuthError).
    """
    place = _log_in(host, options)
    try:
        yield place
    finally:
        place.close()


def _log_in(host: str, options: argparse.Namespace) -> Place:
    """The place, logged in: what comes then has time of its own, however long a person took to type a password."""
    login = login_options(options)
    place = open_place(host, login)
    if not place.is_remote:
        return place
    connection = make_connection(host, login)
    connection.connect(soon(options.connect_timeout))
    return SshPlace(connection, login)


def soon(timeout_s: float) -> float:
    """A deadline so many seconds from now."""
    return time.monotonic() + timeout_s


def list_servers(place: Place, deadline: float) -> Iterator[tuple[ServerRecord, dict[str, Any]]]:
    """This user's servers there, each with what it says about itself; raises as `Place.list`."""
    for record in place.list(deadline):
        yield record, read_status(place, record)


def read_status(place: Place, record: ServerRecord) -> dict[str, Any]:
    """What that server says; state "no answer" with `why` when it says nothing."""
    try:
        with contextlib.closing(open_link(place, record)) as link:
            return link.status(ASK_TIMEOUT_S)
    except RemoteEnvError as error:
        return {"state": "no answer", "why": str(error)}


def open_link(place: Place, record: ServerRecord) -> ControlLink:
    """A link to ask that server; the caller closes it. ConnectError when it does not answer."""
    deadline = soon(ASK_TIMEOUT_S)
    server = place.attach(record, deadline)
    return ControlLink(server.dial, server.token, deadline, session=None, client="remote-env command")


def short_id(identity: str, ids: Sequence[str]) -> str:
    """The first characters of an id that no other begins with."""
    length = SHORT_ID
    while length < len(identity) and sum(other.startswith(identity[:length]) for other in ids) > 1:
        length += 1
    return identity[:length]


def describe_use(status: dict[str, Any]) -> str:
    """Who holds a server, or since when nobody does."""
    holders = [
        f"{one.get('client') or 'somebody'}{' (its link is cut)' if one.get('cut_off') else ''}"
        for one in status.get("holders", ())
    ]
    if holders:
        return f"held by {', '.join(holders)}"
    return f"idle {show_seconds(status['idle_s'])}" if "idle_s" in status else "?"


def describe_state(status: dict[str, Any]) -> str:
    """What a server does, in a few words: "busy: step, 12 s; 1200 steps"."""
    state, since = status["state"], f"{show_seconds(status['since_s'])}" if "since_s" in status else ""
    if state == "busy":
        detail = f": {', '.join(filter(None, (status.get('call', ''), since)))}"
    elif state == "starting":
        detail = f": {', '.join(filter(None, (status.get('phase', ''), since)))}"
    else:
        why = one_line(str(status.get("why") or status.get("message") or ""))
        detail = f": {why}" if why else ""
    steps = status.get("steps")
    return f"{state}{detail}" + (f"; {steps} step{'s' * (steps != 1)}" if steps else "")


def describe_record(record: ServerRecord) -> str:
    """A server in a few words: id, task, pid, port, age."""
    age = show_seconds(time.time() - record.started) if record.started else "?"
    return f"{record.id} ({one_line(record.task_label)}, pid {record.pid}, port {record.port}, up {age})"


def is_stale(status: dict[str, Any]) -> bool:
    """Whether a server with this status may be ended as left over: held by nobody and not kept, or not answering."""
    return status["state"] == "no answer" or not (status.get("sessions") or status.get("kept"))


def describe_servers(place: Place, deadline: float) -> tuple[str, list[str]]:
    """What runs on a place, in words, and the ids of those that are left over.

    Raises:
        ConnectError, ConnectionLost, DeadlineExceeded: the place cannot be asked.
    """
    found = list(list_servers(place, deadline))
    shown = [f"{describe_record(record)}: {describe_state(status)}, {describe_use(status)}" for record, status in found]
    return "\n".join(shown), [record.id for record, status in found if is_stale(status)]
