"""A tunnel in a process of its own that outlives the command: `python -m remote_env.cli.tunnel_background`.

The two talk in JSON lines until the tunnel is open: the command sends what is wanted and answers what a login asks;
the process says what happens, and at last {"ready": …} or {"failed": …}. From then on it writes to its log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from remote_env.cli.tunnel_holder import Request, TunnelHolder, ended_by_signals
from remote_env.cli.tunnel_records import TunnelRecord, create_log, new_id, remove_record, write_record
from remote_env.env.places import PlaceOptions
from remote_env.errors import ConnectError, RemoteEnvError
from remote_env.server.process import process_start_time

END_TIMEOUT_S = 5.0
_FILES = ("identity_file", "known_hosts_file", "ssh_config_file")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a login asks; see `remote_env.cli.show.Prompt`."""

    kind: str
    text: str
    echo: bool
    target: str


# The command's half


def start_in_background(request: Request, options: PlaceOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Open the tunnel in a process of its own; what it says of itself once it is open: id, port, state, words.

    Raises:
        RemoteEnvError: it could not be opened; nothing is left.
    """
    name = new_id()
    with create_log(name) as log:
        process = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", __spec__.name, name, f"{request.host}:{request.remote_port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            return _converse(process, log, name, request, options, say)
        except BaseException:
            _end(process)
            remove_record(name)
            raise
        finally:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # it has ended
                        stream.close()


def _converse(
    process: subprocess.Popen[str],
    log: BinaryIO,
    name: str,
    request: Request,
    options: PlaceOptions,
    say: Callable[[str], None],
) -> dict[str, Any]:
    to, heard = process.stdin, process.stdout
    with contextlib.suppress(BrokenPipeError):  # it has ended already, and its log says why
        _send(to, {"request": dataclasses.asdict(request), "options": _plain(options)})
    for line in heard or ():
        message = json.loads(line)
        if "ask" in message:
            _send(to, {"answer": options.ask_secret(Prompt(**message["ask"])) if options.ask_secret else None})
        elif "say" in message:
            say(message["say"])
        elif "failed" in message:
            raise ConnectError(message["failed"])
        else:
            process.returncode = 0  # it lives on without us: nothing to wait for
            return {"id": name, **message["ready"]}
    status = process.wait(END_TIMEOUT_S)
    log.seek(0)
    tail = log.read().decode(errors="replace")[-2000:]
    raise ConnectError(f"the tunnel's process ended with status {status} before it was open:\n{tail}")


def _send(stream: IO[str] | None, message: dict[str, Any]) -> None:
    if stream is not None:
        stream.write(json.dumps(message) + "\n")
        stream.flush()


def _plain(options: PlaceOptions) -> dict[str, Any]:
    """The options as JSON; files by their whole paths, since the process leaves this folder."""
    plain = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    plain["ask_secret"] = options.ask_secret is not None
    for name in _FILES:
        if plain[name] is not None:
            plain[name] = str(Path(plain[name]).expanduser().absolute())
    return plain


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# The process's half


def main() -> int:
    """Be the process: open the tunnel, tell so, and hold it until SIGTERM."""
    name = sys.argv[1]
    with ended_by_signals() as ending:
        message = json.loads(sys.stdin.readline())
        request, asker = Request(**message["request"]), _Asker()
        try:
            with contextlib.closing(TunnelHolder(request, _options(message["options"], asker), _say)) as holder:
                asker.is_answered = False
                _announce(name, request, holder)
                holder.hold(ending, _log)
        except RemoteEnvError as error:
            _send(sys.stdout, {"failed": str(error)})
            return 1
        finally:
            remove_record(name)
    return 0


def _options(plain: dict[str, Any], asker: _Asker) -> PlaceOptions:
    return PlaceOptions(**{**plain, "ask_secret": asker if plain["ask_secret"] else None})


class _Asker:
    """Has the command ask while it is there; afterwards passwords and passphrases are answered as before.

    Answers to keyboard-interactive are not: one-time codes, of which each attempt with an old one counts as wrong.

    Attributes:
        is_answered: the command is there.
    """

    def __init__(self) -> None:
        self.is_answered = True
        self._known: dict[tuple[str, str], str | None] = {}

    def __call__(self, prompt: Any) -> str | None:
        key = prompt.target, prompt.text
        if self.is_answered:
            question = {name: getattr(prompt, name) for name in ("kind", "text", "echo", "target")}
            _send(sys.stdout, {"ask": question})
            answer: str | None = json.loads(sys.stdin.readline() or '{"answer": null}')["answer"]
            if prompt.kind != "keyboard-interactive":
                self._known[key] = answer
            return answer
        return self._known.get(key)


def _say(text: str) -> None:
    _send(sys.stdout, {"say": text})


def _announce(name: str, request: Request, holder: TunnelHolder) -> None:
    """Write the record, tell the command, and let go of it."""
    pid = os.getpid()
    record = TunnelRecord(
        id=name,
        host=request.host,
        kind=request.kind,
        remote_port=request.remote_port,
        local_port=holder.port,
        pid=pid,
        start_time=process_start_time(pid),
        node=platform.node(),
        started=time.time(),
    )
    write_record(record)
    health = holder.health
    _send(sys.stdout, {"ready": {"port": holder.port, "state": health.state, "words": health.words}})
    os.chdir("/")
    with open(os.devnull) as nothing:  # noqa: PTH123  a descriptor is wanted
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)  # the log
    sys.stdout = sys.stderr
    _log(f"open: 127.0.0.1:{holder.port} leads to port {request.remote_port} of {request.host}; {health.words}")


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk costs lines of the log, not the tunnel
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
