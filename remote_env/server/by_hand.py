"""What the programs that serve a task by hand share: words of their command lines, and serving until Ctrl-C."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.protocol.handshake import new_token
from remote_env.protocol.task import TaskSpec
from remote_env.server import supervisor
from remote_env.server.folder import cache_folder, remove_folder, write_atomically


def add_listening_flags(parser: argparse.ArgumentParser) -> None:
    """Add where to listen, and what clients may call."""
    add = parser.add_argument
    add("--port", type=port, default=8888, help="TCP port to listen on (default 8888)")
    add("--host", default="127.0.0.1", help="address to listen on; anything beyond loopback needs --insecure")
    add("--insecure", action="store_true", help="listen beyond loopback; the traffic is authenticated, not encrypted")
    add("--allow-call", action="append", default=[], metavar="NAME", help="open an attribute or method to clients")


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that a flag was given."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("give a JSON object, such as '{\"size\": 3}'")
    return value


def port(text: str) -> int:
    """The TCP port that a flag was given."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("give a port from 1 to 65535, or 0 for any that is free")
    return int(text)


def positive(text: str) -> int:
    """The whole number from 1 on that a flag was given."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError("give a whole number, at least 1")
    return int(text)


def serve(make_task: Callable[[], TaskSpec], options: argparse.Namespace, *, max_sessions: int) -> int:
    """Serve a task until Ctrl-C; the program's exit status.

    The tokens of clients and of a policy's server are taken out of the environment: REMOTE_ENV_TOKEN and
    REMOTE_ENV_POLICY_TOKEN.

    Args:
        make_task: what to serve; its ConfigError is printed.
        options: with those of `add_listening_flags`.
        max_sessions: clients at once.
    """
    token = os.environ.pop("REMOTE_ENV_TOKEN", None) or new_token()
    if len(token) < 32:
        print("REMOTE_ENV_TOKEN is shorter than 32 characters; make one: openssl rand -hex 32", file=sys.stderr)
        return 1
    try:
        task = make_task()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    # Where clients' servers have theirs too, so that `remote-env stop` takes it for one.
    folder = cache_folder() / "sessions" / secrets.token_hex(8)
    for made in (folder.parents[1], folder.parent, folder):
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = {
        "token": token,
        "listen": {"tcp": [options.host, options.port]},
        "insecure": options.insecure,
        "task": task.to_plain(),
        "digest": task.digest,
        "policy_token": os.environ.pop("REMOTE_ENV_POLICY_TOKEN", None),
        "max_sessions": max_sessions,
        "idle_timeout_s": float("inf"),
        "python_path": [str(Path.cwd())],
        "stop_on_failure": True,
    }
    write_atomically(folder / "settings.json", settings)
    try:
        return supervisor.main(str(folder))
    finally:
        remove_folder(folder)
