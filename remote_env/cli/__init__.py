"""The `remote-env` command: it parses, calls and prints; the work is done by the rooms below."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from remote_env.errors import RemoteEnvError

COMMANDS: tuple[str, ...] = ()  # modules of this package, each with an `add_parsers`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status: 0 when all went well, 1 on an error, 130 after Ctrl-C."""
    options = make_parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except RemoteEnvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of `remote-env` with every command's own."""
    parser = argparse.ArgumentParser(prog="remote-env", description="Look after task servers on other machines.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"{__name__}.{name}").add_parsers(commands)
    return parser
