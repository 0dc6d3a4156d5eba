"""The `remote-env` command: it parses, calls and prints; the work is done by the rooms below."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from remote_env.errors import RemoteEnvError
from remote_env.protocol.log_text import clean

COMMANDS = (
    "bench",
    "doctor",
    "eval",
    "servers",
    "tunnel",
    "replay",
    "captures",
    "map",
)  # modules of this package, each with an `add_parsers`
EPILOG = """
Begin with a machine that is new to you:   remote-env doctor user@box
See what runs there:                       remote-env ps user@box
See where the time of a step goes:         remote-env bench user@box --env CartPole-v1
Each command explains itself:              remote-env doctor --help

HOST is what ssh takes: box, user@box, ssh://user@box:2222, an alias of ~/.ssh/config; or "local", this machine.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status: 0 when all went well, 1 on an error, 130 after Ctrl-C."""
    _prepare_output()
    try:
        return _run(arguments)
    except RemoteEnvError as error:
        from remote_env.cli.show import in_flags

        print(f"error: {clean(in_flags(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # such as `| head`
        _discard_output()
        return 141
    except OSError as error:  # such as output into a full disk
        _discard_output()
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = make_parser().parse_args(arguments)
        logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what fails there is told by our errors
        return int(options.run(options))
    finally:
        sys.stdout.flush()  # now, while what prevents it can still be told


def _prepare_output() -> None:
    """Have any text be written, whatever the encoding of a pipe or a terminal; a closed output takes it too."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  as long as we live
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_output() -> None:
    """Throw away what could not be written: Python would try, and complain, once more at its end."""
    with contextlib.suppress(OSError, ValueError):  # it is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `remote-env` with every command's own."""
    from remote_env import __version__

    parser = argparse.ArgumentParser(
        prog="remote-env",
        description="Look after task servers on other machines, evaluate policies, replay captures.",
        epilog=EPILOG.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"remote-env {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name in COMMANDS:
        importlib.import_module(f"{__name__}.{name}").add_parsers(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """A command's parser: options may stand between its words, as in `logs box -f 3f2a`."""

    _is_mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `ArgumentParser.parse_known_intermixed_args`, which calls this again."""
        if self._is_mixing:
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False
        if any(word.startswith("-") for word in unknown):
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return found, unknown

    def _meant(self, unknown: Sequence[str]) -> str:
        flags = [flag for flag in self._option_string_actions if flag.startswith("--")]
        named = (word.partition("=")[0] for word in unknown if word.startswith("--"))
        close = [flag for word in named for flag in difflib.get_close_matches(word, flags, 1)]
        return f"; did you mean {', '.join(close)}?" if close else ""
