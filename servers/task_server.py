"""Serve a Gymnasium task by hand, on this machine, for clients that attach.

    python servers/task_server.py --env CartPole-v1 --port 8888
    python servers/task_server.py --env my_tasks:make_env --kwargs '{"size": 3}' --port 8888

Then, on this machine or over SSH from another:

    RemoteEnv(port=8888)          RemoteEnv("user@this-machine", 8888)

To serve a task of your own, copy this file, write `make_env`, and leave out --env.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installing

from remote_env.protocol.handshake import new_token
from remote_env.protocol.task import TaskSpec
from remote_env.server import supervisor
from remote_env.server.folder import remove_folder, write_atomically


def make_env(**_kwargs: Any) -> Any:
    """Make the task that is served when --env is not given: replace the body with your own."""
    raise SystemExit("nothing to serve: name a task with --env, or write make_env() in a copy of this file")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--env", help="a registered id, module:id, module:function or file.py:function")
    add("--kwargs", type=_json_object, default={}, metavar="JSON", help="keyword arguments for the task")
    add("--port", type=_port, default=8888, help="TCP port to listen on (default 8888)")
    add("--host", default="127.0.0.1", help="address to listen on; anything beyond loopback needs --insecure")
    add("--insecure", action="store_true", help="listen beyond loopback; the traffic is authenticated, not encrypted")
    add("--simulator", default="gymnasium", help="the backend: gymnasium, or module:Class (default gymnasium)")
    add(
        "--max-sessions",
        type=_positive,
        default=1,
        help="clients at once, each with a simulator of its own (default 1)",
    )
    add("--allow-call", action="append", default=[], metavar="NAME", help="open an attribute or method to clients")
    return parser.parse_args(arguments)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("give a JSON object, such as '{\"size\": 3}'")
    return value


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError("give a port from 1 to 65535, or 0 for any that is free")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError("give a whole number, at least 1")
    return int(text)


def main() -> int:
    """Serve until Ctrl-C."""
    options = parse_arguments()
    token = os.environ.pop("REMOTE_ENV_TOKEN", None) or new_token()
    if len(token) < 32:
        print("REMOTE_ENV_TOKEN is shorter than 32 characters; make one: openssl rand -hex 32", file=sys.stderr)
        return 1
    task = TaskSpec(
        env=options.env or f"{Path(__file__).resolve()}:make_env",
        kwargs=options.kwargs,
        simulator=options.simulator,
        allow_calls=tuple(options.allow_call),
    )
    folder = Path(tempfile.mkdtemp(prefix="remote-env-"))
    settings = {
        "token": token,
        "listen": {"tcp": [options.host, options.port]},
        "insecure": options.insecure,
        "task": task.to_plain(),
        "digest": task.digest,
        "max_sessions": options.max_sessions,
        "idle_timeout_s": float("inf"),
        "python_path": [str(Path.cwd())],
        "stop_on_failure": True,
    }
    write_atomically(folder / "settings.json", settings)
    try:
        return supervisor.main(str(folder))
    finally:
        remove_folder(folder)


if __name__ == "__main__":
    sys.exit(main())
