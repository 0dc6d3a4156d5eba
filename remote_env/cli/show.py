"""What the commands share: how to log in, and how to print, on a terminal or into a pipe.

Into a pipe go plain lines: no colour, no box, nothing cut off. What a host says is cleaned of control characters before
it reaches a terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from remote_env.env.places import PlaceOptions
from remote_env.protocol.log_text import clean

GAP = "  "
SIZE_STEP = 1024
SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
CONSOLE = Console(highlight=False)  # of whatever stdout is at the moment
_asking = threading.Lock()  # several hosts may ask for a password at once
_lines: list[Any] = []  # the status lines that are shown


# Our options, by the argument of `RemoteEnv` that each sets.
FLAGS = {
    "ssh_port": "--port",
    "identity_file": "--identity-file",
    "via": "--via",
    "accept_new_host_key": "--accept-new-host-key",
    "python": "--python",
    "launch": "--launch",
}


def in_flags(error: BaseException, flags: Mapping[str, str] = FLAGS) -> str:
    """An error's message with a command's flags where it names arguments of `RemoteEnv`."""
    named = rf"\b({'|'.join(flags)})=(?:True\b|…)?(?=(.?))"
    return re.sub(named, lambda found: flags[found[1]] + " " * bool(re.match(r"[\w'\"]", found[2])), str(error))


class Prompt(Protocol):
    """What a login asks a person for; `remote_env.ssh.SecretPrompt` is one."""

    @property
    def text(self) -> str:
        """The question."""

    @property
    def echo(self) -> bool:
        """Whether the answer may be seen."""

    @property
    def target(self) -> str:
        """For whom it is, such as `user@box:22`."""


def add_login_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to log in; `login_options` reads them."""
    group = parser.add_argument_group("login", "~/.ssh/config is honoured; what is given here wins")
    group.add_argument("-p", "--port", dest="ssh_port", type=port_number, metavar="PORT", help="SSH port (default 22)")
    group.add_argument("-i", "--identity-file", metavar="FILE", help="private key to log in with")
    group.add_argument("--via", metavar="HOST[,HOST]", help="log in through these jump hosts, as ssh -J does")
    group.add_argument(
        "--accept-new-host-key",
        action="store_true",
        help="trust a host never seen before and write its key down; a changed key is refused all the same",
    )
    group.add_argument("--config", metavar="FILE", help="SSH configuration (default ~/.ssh/config)")
    group.add_argument("--known-hosts", metavar="FILE", help="known host keys (default ~/.ssh/known_hosts)")
    group.add_argument(
        "--connect-timeout",
        type=positive_number,
        default=30.0,
        metavar="SECONDS",
        help="how long a login may take (default %(default)g)",
    )


def login_options(options: argparse.Namespace, **more: Any) -> PlaceOptions:
    """How to reach a host, as `add_login_options` has read it; `more` are further fields of PlaceOptions."""
    return PlaceOptions(
        ssh_port=options.ssh_port,
        identity_file=options.identity_file,
        via=options.via,
        accept_new_host_key=options.accept_new_host_key,
        ssh_config_file=options.config,
        known_hosts_file=options.known_hosts,
        connect_timeout_s=options.connect_timeout,
        ask_secret=ask_secret if sys.stdin is not None and sys.stdin.isatty() else None,
        **more,
    )


def login_words(options: argparse.Namespace) -> tuple[str, ...]:
    """The words of the command line that `login_options` reads, for another of our commands."""
    flags = (
        ("-p", options.ssh_port),
        ("-i", options.identity_file),
        ("--via", options.via),
        ("--config", options.config),
        ("--known-hosts", options.known_hosts),
    )
    return tuple(str(word) for flag, value in flags if value is not None for word in (flag, value))


def ask_secret(prompt: Prompt) -> str | None:
    """What the person at the terminal types: unseen unless the host allows it; None after Ctrl-D."""
    question = f"{prompt.target}: {clean(prompt.text).strip()} "
    with _asking, _status_hidden(), contextlib.suppress(EOFError):
        if not prompt.echo:
            return getpass.getpass(question)
        print(question, end="", file=sys.stderr, flush=True)
        return input()
    return None


def positive_number(text: str) -> float:
    """A number above zero, for argparse."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def whole_number(text: str) -> int:
    """A whole number above zero, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def port_number(text: str) -> int:
    """A TCP port, for argparse."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; allowed are 1 to 65535")
    return int(text)


def examples(text: str) -> dict[str, Any]:
    """Arguments for `add_parser`: an epilog that keeps its lines."""
    return {"epilog": text.strip("\n"), "formatter_class": argparse.RawDescriptionHelpFormatter}


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a heading; on a terminal long cells wrap, into a pipe each row is one line."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain([list(columns), *cells])
        return
    table = Table(box=None, pad_edge=False, padding=(0, len(GAP), 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    CONSOLE.print(table)


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Line(Protocol):
    """A status line."""

    def update(self, text: str) -> None:
        """Show `text` instead."""


class _Unseen:
    def update(self, text: str) -> None:
        """Into a pipe goes no status line."""


class _Shown:
    def __init__(self, status: Any) -> None:
        self._status = status

    def update(self, text: str) -> None:
        shown = Text(one_line(text))
        shown.truncate(max(CONSOLE.width - 4, 1), overflow="ellipsis")  # a line that wraps would not be wiped
        self._status.update(shown)


@contextlib.contextmanager
def status_line(text: str) -> Iterator[Line]:
    """A line that says what happens just now, below everything printed; none unless stdout is a terminal."""
    if not sys.stdout.isatty():
        yield _Unseen()
        return
    with CONSOLE.status("") as status:
        line = _Shown(status)
        line.update(text)
        _lines.append(status)
        try:
            yield line
        finally:
            _lines.remove(status)


@contextlib.contextmanager
def _status_hidden() -> Iterator[None]:
    """No status line runs over a question meanwhile."""
    hidden = list(_lines)
    for status in hidden:
        status.stop()
    try:
        yield
    finally:
        for status in hidden:
            if status in _lines:
                status.start()


@contextlib.contextmanager
def terminal_kept() -> Iterator[None]:
    """Afterwards the terminal echoes as before, also when a thread that asks for a password is left behind."""
    if os.name != "posix" or sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def one_line(text: str) -> str:
    """Text from elsewhere as one line without control characters."""
    return " ".join(clean(text).split())


def show_seconds(seconds: float) -> str:
    """A length of time for people: "4 s", "3 min", "2 h 5 min", "3 d 4 h"."""
    minutes, hours, days = (int(max(seconds, 0.0) // unit) for unit in (60, 3600, 86400))
    if not minutes:
        return f"{max(seconds, 0.0):.0f} s"
    if not hours:
        return f"{minutes} min"
    if not days:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def show_bytes(size: float) -> str:
    """A size for people: "730 MiB", "12.3 GiB"."""
    power = 0
    while abs(size) >= SIZE_STEP and power < len(SIZE_UNITS) - 1:
        size, power = size / SIZE_STEP, power + 1
    return f"{size:.{0 if power < 2 or abs(size) >= 100 else 1}f} {SIZE_UNITS[power]}"


def show_time(unix_s: float) -> str:
    """A moment for people, in this machine's own time zone: "09:31" of today, else "11-20 09:31"; "?" when unknown."""
    if not unix_s:
        return "?"
    moment, now = time.localtime(unix_s), time.localtime()
    is_today = moment[:3] == now[:3]
    return time.strftime("%H:%M" if is_today else "%m-%d %H:%M", moment)
