"""`remote-env ps`, `attach`, `logs`, `stop`: the task servers of this user on this machine or others."""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from remote_env.cli.asking import (
    ASK_TIMEOUT_S,
    LIST_TIMEOUT_S,
    describe_record,
    describe_state,
    describe_use,
    is_stale,
    list_servers,
    open_link,
    reach,
    read_status,
    short_id,
    soon,
)
from remote_env.cli.show import (
    Line,
    add_login_options,
    examples,
    in_flags,
    print_json,
    print_table,
    show_time,
    status_line,
    terminal_kept,
    whole_number,
)
from remote_env.env.places import Place
from remote_env.env.server import ServerRecord
from remote_env.errors import ConfigError, ConnectionLost, DeadlineExceeded, RemoteEnvError
from remote_env.protocol.log_text import clean
from remote_env.session import ControlLink
from remote_env.session.follow import LogReader, follow_log, open_again

STOP_TIMEOUT_S = 20.0
STATUS_EVERY_S, READ_EVERY_S = 1.0, 0.2
ATTACH_LINES = 20
COLUMNS = ("SESSION", "TASK", "USER", "STARTED", "LAST USE", "STATE", "PORT", "KEPT")

_PS = """
examples:
  remote-env ps                     on this machine
  remote-env ps box1 box2 gpu7      on three others, at once
  remote-env ps box --json | jq -r '.[].servers[].id'

A server ends by itself when nobody has held it for its idle time-out (10 minutes), unless it was kept. SESSION is what
RemoteEnv("box", session="…"), remote-env attach, logs and stop take; its first characters are enough. The exit status
is 1 when a host could not be asked.
"""
_ATTACH = """
examples:
  remote-env attach box             the only server there
  remote-env attach box 3f2a        the one whose session id begins with 3f2a

Prints the line of Python that takes the server, then what it does and its log, until it ends or you press Ctrl-C,
which leaves it running.
"""
_LOGS = """
examples:
  remote-env logs box               the last 100 lines of the only server there
  remote-env logs box 3f2a -n 1000
  remote-env logs box -f | grep -i error

Works while the simulator starts, while it is busy and after it has died. With -f it ends when the server ends.
"""
_STOP = """
examples:
  remote-env stop box 3f2a 77b0     these two
  remote-env stop box --stale       those that nobody holds, unless they were kept; and those that do not answer
  remote-env stop box --all

Each is ended by its record: its process id and the time that process started, so never another process and never
another user's. Their simulators end with them. The exit status is 1 when nothing was ended.
"""


def add_parsers(commands: Any) -> None:
    """Add the four commands."""
    ps = commands.add_parser(
        "ps", help="list your task servers", description="List your task servers on hosts.", **examples(_PS)
    )
    ps.add_argument("hosts", metavar="HOST", nargs="*", default=["local"], help="default: this machine")
    ps.add_argument("--json", action="store_true", help="print JSON")
    ps.set_defaults(run=run_ps)
    attach = commands.add_parser(
        "attach", help="watch a server", description="Watch a server: its state and its log.", **examples(_ATTACH)
    )
    attach.set_defaults(run=run_attach)
    logs = commands.add_parser(
        "logs", help="show a server's log", description="Show a server's log.", **examples(_LOGS)
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on as lines are written, until the server ends")
    logs.add_argument("-n", "--lines", type=whole_number, default=100, metavar="N", help="default %(default)s")
    logs.set_defaults(run=run_logs)
    for parser in (attach, logs):
        parser.add_argument("host", metavar="HOST", help='user@box, an alias of ~/.ssh/config, or "local"')
        parser.add_argument("id", metavar="ID", nargs="?", default="", help="of its session, or how that begins")
    stop = commands.add_parser("stop", help="end servers", description="End your task servers.", **examples(_STOP))
    stop.add_argument("host", metavar="HOST", help='user@box, an alias of ~/.ssh/config, or "local"')
    stop.add_argument("ids", metavar="ID", nargs="*", help="of their sessions, or how those begin")
    which = stop.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="all of yours there")
    which.add_argument("--stale", action="store_true", help="those that nobody holds, and those that do not answer")
    stop.set_defaults(run=run_stop, parser=stop)
    for parser in (ps, attach, logs, stop):
        add_login_options(parser)


# ps


@dataclass
class _Listing:
    """What one host answered.

    Attributes:
        host: as the caller named it.
        servers: each record with its status.
        error: why it could not be asked, "" when it could.
    """

    host: str
    servers: list[tuple[ServerRecord, dict[str, Any]]] = field(default_factory=list)
    error: str = ""


def run_ps(options: argparse.Namespace) -> int:
    """List the servers of each host; 1 when one could not be asked."""
    listings = [_Listing(host) for host in dict.fromkeys(options.hosts)]
    threads = [threading.Thread(target=_list_host, args=(one, options), daemon=True) for one in listings]
    with terminal_kept(), status_line(f"asking {', '.join(one.host for one in listings)}"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if options.json:
        print_json([_listing_to_plain(one) for one in listings])
    else:
        _print_listings(listings)
    return 1 if any(one.error for one in listings) else 0


def _list_host(listing: _Listing, options: argparse.Namespace) -> None:
    try:
        with reach(listing.host, options) as place:
            listing.servers = list(list_servers(place, soon(LIST_TIMEOUT_S)))
    except RemoteEnvError as error:
        listing.error = in_flags(error)
    except Exception as error:  # noqa: BLE001  in a thread nobody else would tell, and the host would seem to have none
        listing.error = f"{type(error).__name__}: {error}"


def _print_listings(listings: Sequence[_Listing]) -> None:
    several = len(listings) > 1
    rows = []
    for listing in listings:
        host = [listing.host] if several else []
        ids = [record.id for record, _ in listing.servers]
        rows += [[*host, *_cells(record, status, ids)] for record, status in listing.servers]
    if rows:
        print_table([*(["HOST"] if several else []), *COLUMNS], rows)
    for listing in listings:
        if listing.error:
            print(f"{listing.host}: cannot be asked: {clean(listing.error)}", file=sys.stderr)
        elif not listing.servers:
            print(f"{_named(listing.host)}: no task server of yours")


def _named(host: str) -> str:
    return "this machine" if host == "local" else host


def _cells(record: ServerRecord, status: dict[str, Any], ids: Sequence[str]) -> list[str]:
    kept = "yes" if status.get("kept") else ""
    started = show_time(record.started)
    return [
        short_id(record.id, ids),
        record.task_label,
        record.user,
        started,
        describe_use(status),
        describe_state(status),
        str(record.port),
        kept,
    ]


def _listing_to_plain(listing: _Listing) -> dict[str, Any]:
    return {
        "host": listing.host,
        "error": listing.error or None,
        "servers": [
            {**{name: value for name, value in record.to_plain().items() if name != "token"}, "status": status}
            for record, status in listing.servers
        ],
    }


# attach and logs


def run_attach(options: argparse.Namespace) -> int:
    """Show a server's state and log until it ends, or until Ctrl-C, which leaves it running."""
    with reach(options.host, options) as place:
        record = _choose(place, options)
        print(f'RemoteEnv("{options.host}", session="{record.id}")', flush=True)
        try:
            with status_line("") as line:
                _watch(lambda: open_link(place, record), line)
        except ConnectionLost:
            print(f"{record.id} has ended")
            return 0
        except KeyboardInterrupt:
            print(f"{record.id} runs on")
            return 0


def _watch(open_one: Callable[[], ControlLink], line: Line) -> NoReturn:
    """Print the log as it grows, over another link when one breaks; ConnectionLost when the server ends."""
    link = open_one()
    try:
        tail = link.log_tail(ATTACH_LINES)
        _print_log(tail.text)
        reader = LogReader(link, tail.next)
        while True:
            try:
                _watch_link(link, reader, line)
            except ConnectionLost:
                link.close()
                again = open_again(open_one)
                if again is None:
                    raise
                reader.link = link = again
    finally:
        link.close()


def _watch_link(link: ControlLink, reader: LogReader, line: Line) -> NoReturn:
    status_at, last = 0.0, ""
    while True:
        for text in reader.read(soon(ASK_TIMEOUT_S)):
            _print_log(text)
        if time.monotonic() >= status_at:
            status = link.status(ASK_TIMEOUT_S)
            line.update(f"{describe_state(status)}; {describe_use(status)}")
            if not sys.stdout.isatty() and status["state"] != last:
                print(f"-- {describe_state(status)}; {describe_use(status)}", flush=True)
            status_at, last = soon(STATUS_EVERY_S), status["state"]
        time.sleep(READ_EVERY_S)


def _print_log(text: str) -> None:
    shown = clean(text)
    if shown.strip():
        print(shown.rstrip("\n"), flush=True)


def run_logs(options: argparse.Namespace) -> int:
    """Print the end of a server's log, and go on with `--follow`."""
    with reach(options.host, options) as place:
        record = _choose(place, options)
        if options.follow:
            lines: Any = follow_log(lambda: open_link(place, record), lines=options.lines)
            with contextlib.closing(lines):
                for line in lines:
                    _print_log(line)
            print(f"-- {record.id} has ended", file=sys.stderr)
            return 0
        log = _read_log(place, record, options.lines)
        _print_log(log)
        if not log.strip():
            hint = "its log is empty; a server that was started by hand writes to its own terminal"
            print(f"-- {record.id}: {hint}", file=sys.stderr)
    return 0


def _read_log(place: Place, record: ServerRecord, lines: int) -> str:
    """The end of its log, from the file when it does not answer."""
    try:
        with contextlib.closing(open_link(place, record)) as link:
            return link.logs(lines)
    except (RemoteEnvError, DeadlineExceeded):
        return place.read_tail(f"{record.session_folder}/log", lines, soon(LIST_TIMEOUT_S))


def _choose(place: Place, options: argparse.Namespace) -> ServerRecord:
    """The server that the caller means; ConfigError lists what runs when that is not one."""
    records = place.list(soon(LIST_TIMEOUT_S))
    matching = [record for record in records if record.id.startswith(options.id)]
    if len(matching) == 1:
        return matching[0]
    raise ConfigError(_not_one(options.id, matching, records, options.host))


def _not_one(wanted: str, matching: Sequence[ServerRecord], records: Sequence[ServerRecord], host: str) -> str:
    if not records:
        return f"no task server of yours runs on {_named(host)}; RemoteEnv starts one"
    if not matching:
        return f"no session there begins with {wanted!r}; {_list_records(records)}"
    what = (
        f"{len(matching)} sessions begin with {wanted!r}" if wanted else f"{len(matching)} servers of yours run there"
    )
    return f"{what}; name one: {_list_records(matching)}"


def _list_records(records: Sequence[ServerRecord]) -> str:
    return "there run: " + ", ".join(describe_record(record) for record in records)


# stop


def run_stop(options: argparse.Namespace) -> int:
    """End servers and say which; 1 when none was ended, or one could not be."""
    if options.ids and (options.all or options.stale):
        options.parser.error("name sessions, or give --all or --stale")
    with reach(options.host, options) as place:
        records = place.list(soon(LIST_TIMEOUT_S))
        doomed = _doomed(place, records, options)
        if not doomed:
            where = _named(options.host)
            print(
                f"nothing to end on {where}; {_list_records(records) if records else 'no server of yours runs there'}"
            )
            return 1
        return max([_stop(place, record) for record in doomed])


def _doomed(place: Place, records: Sequence[ServerRecord], options: argparse.Namespace) -> list[ServerRecord]:
    if options.all:
        return list(records)
    if options.stale:
        return [record for record in records if is_stale(read_status(place, record))]
    found: dict[str, ServerRecord] = {}
    for wanted in options.ids or [""]:
        matching = [record for record in records if record.id.startswith(wanted)]
        if len(matching) > 1 or (records and not matching):
            raise ConfigError(_not_one(wanted, matching, records, options.host))
        found |= {record.id: record for record in matching}
    return list(found.values())


def _stop(place: Place, record: ServerRecord) -> int:
    try:
        place.stop(record, soon(STOP_TIMEOUT_S))
    except RemoteEnvError as error:
        print(f"error: {describe_record(record)} could not be ended: {error}", file=sys.stderr)
        return 1
    print(f"ended {describe_record(record)}")
    return 0
