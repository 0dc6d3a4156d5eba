"""The flags by which each example reaches a machine, and our errors in their words."""

from __future__ import annotations

import argparse
import sys
from typing import Any

# Each flag, by the argument of RemoteEnv that it sets.
_FLAGS = {
    "port": "--port",
    "python": "--python",
    "ssh_port": "--ssh-port",
    "identity_file": "--identity",
    "accept_new_host_key": "--accept-new-host-key",
    "via": "--via",
    "tunnel": "--tunnel",
    "launch": "--launch",
    "keep": "--keep",
    "reuse": "--reuse",
}


def add_login_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the simulator runs."""
    where = parser.add_argument_group("where the simulator runs")
    where.add_argument("--host", help="user@box, ssh://user@box:2222 or tcp://127.0.0.1:8888; default: this machine")
    where.add_argument("--port", type=int, help="the task server's port on the host; default: start one on a free port")
    where.add_argument("--python", help="the interpreter that serves there, as a command line; default: python3")
    where.add_argument("--ssh-port", type=int, help="the SSH port; default: ~/.ssh/config, else 22")
    where.add_argument("--identity", dest="identity_file", metavar="FILE", help="private key file to log in with")
    where.add_argument("--accept-new-host-key", action="store_true", help="trust a host never seen before")
    where.add_argument("--via", metavar="HOST", help="a login node through which the host is reached")
    where.add_argument("--tunnel", choices=("channel", "openssh", "sshtunnel"), default="channel")
    where.add_argument("--launch", metavar="COMMAND", help='runs the server there, as in "docker exec -i isaac"')
    where.add_argument("--keep", action="store_true", help="leave the server running, warm, for the next run")
    where.add_argument("--reuse", action="store_true", help="take a warm server of the same task, if there is one")


def login_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `RemoteEnv` is to be told, besides `host`."""
    from remote_env.cli.show import ask_secret  # asks for passwords and one-time codes

    asks = {"ask_secret": ask_secret} if sys.stdin.isatty() else {}
    return {**{name: getattr(options, name) for name in _FLAGS}, **asks}


def in_flags(error: BaseException) -> str:
    """An error's message with our flags where it names arguments of `RemoteEnv`."""
    from remote_env.cli import show

    return show.in_flags(error, _FLAGS)
