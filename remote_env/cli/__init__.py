"""The `remote-env` command: it parses, calls and prints; the work is done by the rooms below."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from remote_env.errors import RemoteEnvError
from remote_env.protocol.log_text import clean

COMMANDS: tuple[str, ...] = ("doctor", "servers", "tunnel")  # modules of this package, each with an `add_parsers`
EPILOG = """
Begin with a machine that is new to you:   remote-env doctor user@box
See what runs there:                       remote-env ps user@box
Each command explains itself:              remote-env doctor --help

HOST is what ssh takes: box, user@box, ssh://user@box:2222, an alias of ~/.ssh/config; or "local", this machine.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status: 0 when all went well, 1 on an error, 130 after Ctrl-C."""
    options = make_parser().parse_args(arguments)
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what fails there is told by our errors
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except RemoteEnvError as error:
        print(f"error: {clean(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        return 141


def make_parser() -> argparse.ArgumentParser:
    """The parser of `remote-env` with every command's own."""
    from remote_env import __version__

    parser = argparse.ArgumentParser(
        prog="remote-env",
        description="Look after task servers on other machines.",
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
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False
