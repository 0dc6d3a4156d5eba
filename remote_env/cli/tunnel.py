"""`remote-env tunnel`: a local TCP port that leads to a port of a host, for curl, browsers and other programs."""

from __future__ import annotations

import argparse
import time
from typing import Any

from remote_env.cli.health import LOOPBACK, NOT_READY, READY, check_health
from remote_env.cli.show import (
    add_login_options,
    examples,
    login_options,
    one_line,
    port_number,
    print_table,
    show_seconds,
    show_time,
    status_line,
)
from remote_env.cli.tunnel_background import start_in_background
from remote_env.cli.tunnel_holder import Request, TunnelHolder, ended_by_signals
from remote_env.cli.tunnel_records import TunnelRecord, find_record, list_records, stop_tunnel
from remote_env.errors import ConfigError
from remote_env.ssh.tunnel import KINDS

LIST_TIMEOUT_S = 2.0  # how long each far end may take to answer for --list
ALL = "all"
_EXAMPLES = """
examples:
  remote-env tunnel box 8888                    until Ctrl-C
  remote-env tunnel box 8888 --background       until --stop
  remote-env tunnel --list
  remote-env tunnel --stop all
"""


def add_parsers(subparsers: Any) -> None:
    """Add `remote-env tunnel`."""
    parser = subparsers.add_parser(
        "tunnel",
        help="a local port that leads to a port of a host",
        description="Open a TCP port of 127.0.0.1 that leads to HOST's 127.0.0.1:REMOTE_PORT, for other programs.",
        **examples(_EXAMPLES),
    )
    parser.add_argument("host", nargs="?", metavar="HOST", help="box, user@box, ssh://user@box:2222")
    parser.add_argument("remote_port", nargs="?", type=port_number, metavar="REMOTE_PORT", help="the port on HOST")
    parser.add_argument("--local-port", type=port_number, metavar="PORT", help="default REMOTE_PORT, or a free one")
    parser.add_argument("--kind", choices=KINDS, default="channel", help="who carries it (default %(default)s)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--background", action="store_true", help="return when it is open, and leave it running")
    what.add_argument("--list", action="store_true", help="show the tunnels in the background")
    what.add_argument("--stop", metavar=f"ID|{ALL}", help="close a tunnel in the background")
    add_login_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Open, list or stop tunnels."""
    if options.host is not None and (options.list or options.stop is not None):
        options.parser.error("--list and --stop are about tunnels in the background of this machine; name no host")
    if options.list:
        return _list()
    if options.stop is not None:
        return _stop(options.stop)
    if options.host is None or options.remote_port is None:
        options.parser.error("name the host and its port: remote-env tunnel HOST REMOTE_PORT; or use --list, --stop ID")
    if options.host == "local":
        raise ConfigError("no tunnel leads to this machine: its ports are here already")
    request = Request(options.host, options.remote_port, options.local_port or options.remote_port, options.kind)
    return _open_in_background(request, options) if options.background else _open_here(request, options)


def _open_here(request: Request, options: argparse.Namespace) -> int:
    with ended_by_signals() as ending:
        holder = TunnelHolder(request, login_options(options), _say)  # no status line: it may ask for a password
        try:
            _introduce(request, holder.port, holder.health.state, holder.health.words)
            _say("Ctrl-C closes it")
            with status_line(f"{LOOPBACK}:{holder.port} is open") as line:
                since = time.time()

                def show(words: str) -> None:
                    line.update(f"{words}   open since {show_time(since)}")

                show(holder.health.words)
                holder.hold(ending, _say, show)
        finally:
            holder.close()
            _say("closed")
    return 0


def _open_in_background(request: Request, options: argparse.Namespace) -> int:
    opened = start_in_background(request, login_options(options), _say)
    _introduce(request, opened["port"], opened["state"], opened["words"])
    _say(f"tunnel {opened['id']} runs in the background; close it with: remote-env tunnel --stop {opened['id']}")
    return 0


def _introduce(request: Request, port: int, state: str, words: str) -> None:
    """Say where it leads, what is there, and what to run."""
    _say(f"{LOOPBACK}:{port} leads to port {request.remote_port} of {request.host} ({request.kind})")
    _say(words if state in (READY, NOT_READY) else f"open; {words}")
    _say(f"  curl -I http://{LOOPBACK}:{port}/healthz")
    if state in (READY, NOT_READY):
        _say(f'  RemoteEnv("tcp://{LOOPBACK}:{port}")')
        record = f"~/.cache/remote-env/servers/$(uname -n)/{request.remote_port}.json"
        _say(f"    with the server's token in REMOTE_ENV_TOKEN: its record there has it, {record}")
        _say(f"    remote-env ps {request.host} lists your task servers there")
        _say(f"  remote-env eval -m localhost:{port}")
        token = f"$(ssh {request.host} cat '~/.cache/remote-env/policies/{request.remote_port}.token')"
        _say(f"    if it is a policy server: its token comes by  export REMOTE_ENV_TOKEN={token}")


def _say(text: str) -> None:
    print("  " * text.startswith("  ") + one_line(text), flush=True)


def _list() -> int:
    records = list_records()
    if not records:
        _say("no tunnel runs in the background on this machine")
        return 0
    columns = ("ID", "HOST", "REMOTE", "LOCAL", "KIND", "SINCE", "PID", "STATE")
    print_table(columns, [_row(record) for record in records])
    return 0


def _row(record: TunnelRecord) -> list[str]:
    since = f"{show_time(record.started)} ({show_seconds(time.time() - record.started)})"
    state = check_health(record.local_port, LIST_TIMEOUT_S).words
    ports = (str(record.remote_port), f"{LOOPBACK}:{record.local_port}")
    return [record.id, record.host, *ports, record.kind, since, str(record.pid), state]


def _stop(name: str) -> int:
    for record in list_records() if name == ALL else [find_record(name)]:
        stop_tunnel(record)
        _say(f"closed tunnel {record.id} to {record.host} port {record.remote_port}")
    return 0
