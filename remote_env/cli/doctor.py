"""`remote-env doctor HOST`: tests everything that a RemoteEnv needs of a machine, and names what mends it."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from rich.table import Table
from rich.text import Text

from remote_env.cli import link_rows, machine_rows
from remote_env.cli.asking import describe_servers
from remote_env.cli.isaac_rows import PACKAGES as ISAAC_PACKAGES
from remote_env.cli.isaac_rows import isaac_rows
from remote_env.cli.probing import NOT_EXECUTABLE, NOT_FOUND, TOOLS, Look, ProbeFailed, look_around, probe_parts
from remote_env.cli.rows import FAIL, OK, SKIP, WARN, Row, Where, ssh_command
from remote_env.cli.self_test import RememberingAsk, self_test_row
from remote_env.cli.shells import FarShell, OwnShell, Shell
from remote_env.cli.show import (
    CONSOLE,
    add_login_options,
    examples,
    login_options,
    login_words,
    one_line,
    positive_number,
    print_json,
    status_line,
)
from remote_env.env.local_place import LocalPlace
from remote_env.env.places import Place, make_connection
from remote_env.env.ssh_place import SshPlace
from remote_env.errors import ConfigError, ConnectionLost, DeadlineExceeded, RemoteEnvError

NAME_WIDTH = 16
NEXT = {"interpreter": "the machine", "gpu": "packages", "packages": "rendering", "rendering": "Isaac's needs"}
NEEDED_TO_START = ("forwarding", "shell", "interpreter", "packages", "cache folder")
STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red", SKIP: "dim"}
EPILOG = """
examples:
  remote-env doctor user@box
  remote-env doctor user@box --python '~/IsaacLab/isaaclab.sh -p' --isaac
  remote-env doctor user@box --python 'conda run -n rl python' --require 'torch>=2.4' mujoco
  remote-env doctor node7 --via login
  remote-env doctor user@box --launch 'docker exec -i isaac' --python /isaac-sim/python.sh
  remote-env doctor local --python /opt/sim/bin/python
  remote-env doctor user@box --json | jq '.rows[] | select(.status == "fail")'

Each row is one test: ok, warn (it works, with a drawback), FAIL, skip (not tested, since another row failed). Below a
row that is not well stands what mends it. The exit status is 1 when a row failed. Nothing is left there but the
uploaded far end (~/.cache/remote-env/farend), which the next start uses.

--isaac adds what Isaac Sim and Isaac Lab need before a first run: versions, driver, Vulkan, libraries, licence, disk,
shader cache. These checks were never run on a machine with Isaac Sim; they follow NVIDIA's documentation.
"""


def add_parsers(commands: Any) -> None:
    """Add `doctor`."""
    parser = commands.add_parser(
        "doctor",
        help="test everything that a machine needs, and say what mends it",
        description="Test everything that a RemoteEnv needs of a machine: the login, the link, the interpreter and its "
        "packages, GPU, rendering, disk, memory, clock, and a server of ours that runs a small task.",
        **examples(EPILOG),
    )
    parser.add_argument("host", metavar="HOST", help='user@box, an alias of ~/.ssh/config, or "local"')
    parser.add_argument("--python", metavar="CMD", help="the interpreter's command line there (default python3)")
    parser.add_argument("--launch", metavar="PREFIX", help="what leads into the container or job where it lives")
    parser.add_argument("--launch-host", metavar="NAME", help="where the ports of what --launch starts are reached")
    parser.add_argument("--require", metavar="SPEC", nargs="+", action="extend", default=[], help="packages (PEP 508)")
    parser.add_argument("--tunnel", default="channel", help="how the self-test is reached (default channel)")
    parser.add_argument(
        "--row-timeout", type=positive_number, default=90.0, metavar="S", help="for one test (default %(default)g s)"
    )
    parser.add_argument("--isaac", action="store_true", help="also test what Isaac Sim and Isaac Lab need")
    parser.add_argument("--json", action="store_true", help="print JSON at the end instead of a table")
    add_login_options(parser)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Examine the machine and print each row as it is known; 1 when one failed."""
    required = [_read_requirement(options.parser, text) for text in options.require]
    rows: list[Row] = []
    with contextlib.nullcontext(_Silent()) if options.json else status_line("") as line:
        for row in _Examination(options, required, line.update).rows():
            rows.append(row)
            if not options.json:
                _print_row(row)
    failed = sum(row.status == FAIL for row in rows)
    if options.json:
        print_json({"host": options.host, "failed": failed, "rows": [row.to_plain() for row in rows]})
    else:
        print(_summary(rows))
    return 1 if failed else 0


def _read_requirement(parser: argparse.ArgumentParser, text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        parser.error(f"--require {text!r} is no requirement ({one_line(str(error))}); write 'torch>=2.4'")


class _Silent:
    def update(self, text: str) -> None:
        """Nothing but JSON is printed."""


class _Examination:
    """One machine's tests, in an order in which each builds on what was found before.

    Args:
        options: the command line's.
        required: what `--require` named.
        tell: told what is tested just now.
    """

    def __init__(
        self, options: argparse.Namespace, required: Sequence[Requirement], tell: Callable[[str], None]
    ) -> None:
        self._options, self._required, self._tell = options, required, tell
        self._is_local = options.host == "local"
        default = sys.executable if self._is_local else "python3"
        self._where = Where(options.host, "", options.python or default, options.launch or "", login_words(options))
        self._told: dict[str, Any] = {}
        self._is_fit = True  # whether a server can be expected to start

    def rows(self) -> Iterator[Row]:
        """Each row, as it is known."""
        try:
            yield from self._rows()
        except ConfigError as error:
            yield Row("address", FAIL, str(error), "correct the address or the options: remote-env doctor --help")
        except RemoteEnvError as error:
            fix = self._where.command("uptime") + "   # does it answer?"
            yield Row("connection", FAIL, f"the tests ended here: {error}", fix)

    def _rows(self) -> Iterator[Row]:
        if self._is_local:
            place = LocalPlace(python=self._options.python)
            look = self._look_around(OwnShell())
            yield self._note(self._shell_row(look))
            yield from self._examine(OwnShell(), look, place)
            return
        ask = RememberingAsk(login_options(self._options).ask_secret)
        options = replace(login_options(self._options), ask_secret=ask)
        connection = make_connection(self._options.host, options)
        self._where = replace(self._where, login=ssh_command(connection.login, self._options))
        try:
            yield from self._examine_far(connection, SshPlace(connection, options), ask)
        finally:
            connection.close()

    def _examine_far(self, connection: Any, place: Place, ask: RememberingAsk) -> Iterator[Row]:
        where, timeout_s = self._where, self._options.connect_timeout
        self._tell(f"logging in to {connection.description}")
        row = link_rows.login_row(connection, where, time.monotonic() + timeout_s, timeout_s)
        yield row
        if row.status == FAIL:
            return
        ask.reuse()
        shell = FarShell(connection)
        look = self._look_around(shell)
        yield self._note(self._shell_row(look))
        tests: list[tuple[str, tuple[str, ...], Callable[[], Row]]] = [
            ("round trip", ("cat",), lambda: link_rows.round_trip_row(connection, self._soon())),
            ("transfer", ("wc", "head"), lambda: link_rows.transfer_row(connection, self._soon())),
            ("clock", ("date",), lambda: link_rows.clock_row(connection, where, self._soon())),
            ("forwarding", (), lambda: link_rows.forwarding_row(connection, where, self._soon())),
        ]
        for name, tools, test in tests:
            self._tell(f"testing: {name}")
            missing = [tool for tool in tools if tool in look.missing]
            yield Row(name, SKIP, f"not tested: there is no {missing[0]}") if missing else self._note(test())
        yield from self._examine(shell, look, place, ask)

    def _look_around(self, shell: Shell) -> Look:
        self._tell("looking around")
        return look_around(shell, self._soon())

    def _soon(self) -> float:
        return time.monotonic() + float(self._options.row_timeout)

    def _examine(self, shell: Shell, look: Look, place: Place, ask: RememberingAsk | None = None) -> Iterator[Row]:
        yield from self._probe(shell, look)
        yield Row("our servers", SKIP, "not tested: mend the shell first") if look.missing else self._servers_row(place)
        if not self._is_fit:
            yield Row("self-test", SKIP, "not tested: mend first what failed above")
            return
        self._tell("self-test")
        yield self_test_row(self._where, self._arguments(ask), self._tell)

    def _shell_row(self, look: Look) -> Row:
        if not look.is_complete:
            fix = self._where.command("echo it works") + "   # it must print just that"
            return Row("shell", FAIL, "sh did not run our script; the account needs a shell that runs commands", fix)
        if look.missing:
            fix = self._where.command(
                f"sudo apt-get install -y {' '.join(sorted({TOOLS[tool] for tool in look.missing}))}"
            )
            return Row("shell", FAIL, f"{look.system or 'sh'}, without {', '.join(look.missing)}", fix)
        return Row("shell", OK, f"{look.system}; sh, {', '.join(TOOLS)}")

    def _note(self, row: Row) -> Row:
        self._is_fit = self._is_fit and not (row.status == FAIL and row.name in NEEDED_TO_START)
        return row

    # The probe

    def _probe(self, shell: Shell, look: Look) -> Iterator[Row]:
        self._tell(f"starting {self._where.python}")
        names = ["numpy", "gymnasium", *(one.name for one in self._required)]
        names += ISAAC_PACKAGES if self._options.isaac else ()
        began, done = time.monotonic(), []
        try:
            for part, facts in probe_parts(
                shell,
                python=self._where.python,
                launch=self._where.launch,
                packages=names,
                isaac=self._options.isaac,
                timeout_s=self._options.row_timeout,
            ):
                self._tell(f"{self._where.python}: {NEXT.get(part, part)}")
                done.append(part)
                yield from map(self._note, self._judge(part, facts, look, time.monotonic() - began))
        except ProbeFailed as failure:
            yield self._note(self._failed_row(failure, look, done))

    def _judge(self, part: str, facts: Any, look: Look, elapsed_s: float) -> Iterator[Row]:
        where = self._where
        if part == "interpreter":
            self._told["markers"] = facts["markers"]
            yield machine_rows.interpreter_row(facts, where, elapsed_s, look.pythons)
            return
        told = facts.get("told")
        self._told[part] = told
        if part == "machine":
            yield from machine_rows.machine_rows(told, where)
        elif part == "folders":
            yield from machine_rows.folder_rows(told, where)
        elif part == "gpu":
            yield machine_rows.gpu_row(told, where)
        elif part == "packages":
            yield from machine_rows.package_rows(told, self._told["markers"], self._required, where)
        elif part == "rendering":
            yield machine_rows.rendering_row(told, where)
        elif part == "isaac":
            yield from isaac_rows(told, self._told["packages"]["versions"], self._told["gpu"], where)

    def _failed_row(self, failure: ProbeFailed, look: Look, done: Sequence[str]) -> Row:
        where = self._where
        others = machine_rows.other_interpreter(where, [] if where.launch else look.pythons)
        said = f"; it said: {one_line(failure.output)[-300:]}" if failure.output else ""
        if done:
            found = f"{where.python} ended after it had told of {done[-1]}: {failure}{said}"
            return Row(
                "interpreter", FAIL, found, where.inside(f"{where.python} -X faulthandler -c 'import numpy, gymnasium'")
            )
        if failure.version:
            return Row("interpreter", FAIL, f"{failure}; 3.10 or later is needed", others)
        if failure.status in (NOT_FOUND, NOT_EXECUTABLE):
            what = "was not found" if failure.status == NOT_FOUND else "cannot be executed"
            return Row("interpreter", FAIL, f"{where.python} {what}{said}", others)
        return Row("interpreter", FAIL, f"{where.python} runs no Python program: {failure}{said}", others)

    # Our own servers

    def _servers_row(self, place: Place) -> Row:
        self._tell("looking for servers of ours")
        try:
            text, idle = describe_servers(place, self._soon())
        except RemoteEnvError as error:
            if isinstance(error, (ConnectionLost, DeadlineExceeded)):
                raise
            fix = self._where.command("ls -la ${XDG_CACHE_HOME:-~/.cache}/remote-env")
            return Row("our servers", FAIL, str(error), fix)
        if not idle:
            return Row("our servers", OK, text or "none runs there")
        return Row("our servers", WARN, text, self._where.ours("stop", *idle))

    def _arguments(self, ask: RememberingAsk | None) -> dict[str, Any]:
        options = self._options
        if self._is_local:
            return {"host": "local", "python": options.python}
        login = login_options(options)
        return {
            "host": options.host,
            "python": self._where.python,
            "launch": options.launch,
            "launch_host": options.launch_host,
            "tunnel": options.tunnel,
            "ask_secret": ask,
            "via": login.via,
            "ssh_port": login.ssh_port,
            "identity_file": login.identity_file,
            "accept_new_host_key": login.accept_new_host_key,
            "known_hosts_file": login.known_hosts_file,
            "ssh_config_file": login.ssh_config_file,
            "connect_timeout_s": login.connect_timeout_s,
        }


def _print_row(row: Row) -> None:
    lines, fix = [one_line(line) for line in row.found.splitlines() if line.strip()], one_line(row.fix)
    if not sys.stdout.isatty():
        indent = " " * (6 + NAME_WIDTH)
        print(f"{row.status:<6}{row.name:<{NAME_WIDTH - 1}} " + f"\n{indent}".join(lines))
        if fix:
            print(f"{indent}mend: {fix}")
        sys.stdout.flush()
        return
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=4)
    table.add_column(width=NAME_WIDTH)
    table.add_column(overflow="fold")
    table.add_row(Text(row.status, STYLES[row.status]), row.name, Text("\n".join(lines)))
    CONSOLE.print(table)
    if fix:  # as one line, however long, so that it can be copied
        CONSOLE.print(Text.assemble("     ", ("mend: ", "dim"), (fix, "cyan")), soft_wrap=True)


def _summary(rows: Sequence[Row]) -> str:
    counts = {status: sum(row.status == status for row in rows) for status in (FAIL, WARN, SKIP)}
    tests = f"{len(rows)} test{'s' * (len(rows) != 1)}"
    if not counts[FAIL]:
        more = f", {counts[WARN]} with a drawback" if counts[WARN] else ""
        return f"{tests}, none failed{more}"
    skipped = f", {counts[SKIP]} not done" if counts[SKIP] else ""
    return f"{tests}, {counts[FAIL]} failed{skipped}: mend the first one and run this again"
