"""The simulator process: one environment on the main thread, serving one data connection at a time.

It reads its connection directly; the supervisor authenticated it and passed the socket on. What it is doing stands
on the board, where the supervisor reads it without asking.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from remote_env.server.board import CALL_NUMBERS, Board
from remote_env.server.error_text import error_text, sendable
from remote_env.server.folder import read_settings
from remote_env.server.output import forgive_failing_writes
from remote_env.server.requirements import check_requirements
from remote_env.server.stacks import write_stacks_on_demand

REQUIRED = ("numpy", "gymnasium")
# Escaped as JSON, and with the log beside them, they still are a link message.
MAX_FAILURE_TEXT = 8 << 10
MAX_FAILURE_TRACEBACK = 32 << 10


def main(folder: str, channel_descriptor: int, board_descriptor: int, leash_descriptor: int) -> int:
    """Make the task that the session folder's settings name, and serve connections until the channel closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    _hold_leash(leash_descriptor)
    forgive_failing_writes()
    write_stacks_on_demand()
    channel = Channel(socket.socket(fileno=channel_descriptor))
    board = Board(board_descriptor)
    board.begin(CALL_NUMBERS["import"])
    settings = read_settings(Path(folder))
    try:
        loop = _make_loop(settings, channel, board)
    except (Exception, SystemExit) as error:  # noqa: BLE001  a task may raise anything; the client is told what
        traceback.print_exc()
        channel.say(event="failed", **_describe_failure(error))
        return 1
    channel.say(event="ready")
    try:
        while (given := channel.next_connection()) is not None:
            sock, told = given
            loop.serve(sock, int(told["epoch"]), told["resume"])
            channel.say(event="released", connection=told["connection"])
    finally:
        board.begin(CALL_NUMBERS["close"])
        loop.close()
    return 0


def _hold_leash(descriptor: int) -> None:
    """Have the kernel kill this process group when the supervisor's end of the leash closes.

    A task may hold the interpreter for minutes, so that no thread of ours would run; PR_SET_PDEATHSIG is lost behind
    a wrapper script.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return  # Linux only; elsewhere the closed channel ends us between two calls
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(descriptor, 0)
    if poll.poll(0):
        sys.exit("the supervisor was gone before this simulator began")  # no signal comes for what has been


class Channel:
    """The line to the supervisor: JSON lines up, descriptors of connections down."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def say(self, **message: Any) -> None:
        """Tell the supervisor; it may be gone already."""
        try:
            self._sock.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            print("the supervisor is gone", file=sys.stderr, flush=True)

    def next_connection(self) -> tuple[socket.socket, dict[str, Any]] | None:
        """The next data connection, and what the supervisor says of it; None when it wants this process to end."""
        try:
            line, descriptors, _, _ = socket.recv_fds(self._sock, 4096, 1)
        except ConnectionResetError:  # it closed its end with something of ours unread
            return None
        if not line or not descriptors:
            return None
        return socket.socket(fileno=descriptors[0]), json.loads(line)


def _make_loop(settings: dict[str, Any], channel: Channel, board: Board) -> Any:
    channel.say(event="phase", phase="checking")
    _check_interpreter()
    check_requirements(settings.get("requirements") or ())
    channel.say(event="phase", phase="importing")
    _import_package()
    from remote_env.protocol.task import TaskSpec
    from remote_env.server.backend import load_backend
    from remote_env.server.facts import server_facts

    task = TaskSpec.from_plain(settings["task"])
    env = task.env if task.pickled is None else _unpickle(task)
    backend = load_backend(task.simulator)
    backend.num_envs = task.num_envs
    loop_kind = _choose_loop(task)
    channel.say(event="phase", phase="building")
    board.begin(CALL_NUMBERS["make"])
    backend.make(env, task.kwargs)
    rollouts = None
    if task.policy is not None:
        from remote_env.server.rollout import open_rollouts  # nobody else waits for the imports

        rollouts = open_rollouts(task, settings.get("policy_token"), backend, board)
    board.end()
    return loop_kind(backend, board, server_facts(), frozenset(task.allow_calls), rollouts)


def _choose_loop(task: Any) -> Any:
    """The kind of loop that serves the task."""
    if task.num_envs is None:
        from remote_env.server.loop import SimulatorLoop

        return SimulatorLoop
    from remote_env.server.batch_loop import BatchLoop

    if task.policy is not None:
        from remote_env.errors import Unsupported

        raise Unsupported(
            "a policy beside a batch of environments is not supported: leave policy= or num_envs= out, or step the "
            "batch with actions of your own"
        )
    return BatchLoop


def _check_interpreter() -> None:
    """Look for what every task needs.

    Raises:
        ModuleNotFoundError: this interpreter lacks what every task needs; it names all of it.
    """
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"no module named {missing}", name=" and ".join(missing))


def _import_package() -> None:
    """Run the package's `__init__`, which the launcher has left out."""
    package = sys.modules["remote_env"]
    if package.__spec__ is not None and package.__spec__.loader is not None:
        package.__spec__.loader.exec_module(package)


def _unpickle(task: Any) -> Any:
    """The callable that the caller sent along with the settings, over the connection by which it started us."""
    from remote_env.errors import ConfigError

    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if task.pickled_by != here:
        raise ConfigError(
            f"env=<callable {task.env}> was pickled by Python {task.pickled_by}, and {sys.executable} is "
            f"Python {here}; bytecode does not cross minor versions: pass python= with the same version, or "
            "env='module:function'"
        )
    try:
        return pickle.loads(task.pickled)  # noqa: S301  the settings file is its sender's own
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"env=<callable {task.env}> needs {error.name!r}, which {sys.executable} cannot import; install it there"
        ) from error


def _describe_failure(error: BaseException) -> dict[str, Any]:
    kind = type(error).__name__
    message = error_text(error)
    if isinstance(error, ModuleNotFoundError):
        kind, message = "ModuleNotFoundError", f"not installed in {sys.executable}: {error.name}"
    return {
        "kind": kind,
        "message": sendable(message, MAX_FAILURE_TEXT),
        "traceback": sendable(traceback.format_exc(), MAX_FAILURE_TRACEBACK),
    }
