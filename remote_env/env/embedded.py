"""A server process that we start on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from remote_env.env.records import cache_folder, stop_local
from remote_env.env.server import STOP_TIMEOUT_S, Progress, ServerRecord
from remote_env.errors import DeadlineExceeded, StartError
from remote_env.private_files import make_private_folder
from remote_env.protocol.log_text import clean, last_line

LAUNCHER = Path(__file__).parents[1] / "server" / "launch.py"
POLL_S = 0.002
TOLD_EVERY_S = 0.25
MAX_UNIX_PATH = 100  # bytes; the kernels' own limits are 107 on Linux and 103 on macOS


class EmbeddedServer:
    """A server that ends with its starter, in a private temporary folder that goes with it.

    Args:
        python: the interpreter, as a command line.
        settings: what its settings.json holds.
    """

    def __init__(self, python: str, settings: dict[str, Any]) -> None:
        self._folder = self._make_folder()
        self._process: subprocess.Popen[bytes] | None = None
        self._leash = -1
        self._last_line = ""
        self._last_told = 0.0
        try:
            self._launch(python, settings)
        except BaseException:
            self.stop(time.monotonic() + STOP_TIMEOUT_S)
            raise

    def _make_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="remote-env-"))

    def _launch(self, python: str, settings: dict[str, Any]) -> None:
        settings = {**settings, "listen": settings["listen"] or self._default_address()}
        descriptors = self._hold_leash(settings)
        try:
            path = self._folder / "settings.json"
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(settings, file)
            command = [*split_command(python), str(LAUNCHER), str(self._folder)]
            with (self._folder / "log").open("ab") as log:  # to append: the server may cut its log
                self._process = subprocess.Popen(  # noqa: S603  the interpreter is the caller's to name
                    self._wrapped(command),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in our terminal is ours to handle
                    pass_fds=descriptors,
                )
        except OSError as error:
            raise StartError(
                f"python={python!r} cannot be run on this machine ({error}); pass python= with an interpreter that can",
                phase="starting",
            ) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _hold_leash(self, settings: dict[str, Any]) -> tuple[int, ...]:
        """Keep one end of a pipe; the server ends when nobody does. What it has to inherit."""
        if os.name != "posix":
            return ()
        theirs, self._leash = os.pipe()
        settings["leash_fd"] = theirs
        return (theirs,)

    def _wrapped(self, command: list[str]) -> list[str]:
        return command

    def _default_address(self) -> dict[str, Any]:
        path = str(self._folder / "socket")
        if hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= MAX_UNIX_PATH:
            return {"unix": path}
        return {"tcp": ["127.0.0.1", 0]}

    def wait_ready(self, deadline: float, on_progress: Progress) -> dict[str, Any]:
        """What the server says once it listens.

        Raises:
            StartError: it failed, or ended without a word; `log_tail` holds its last lines.
            DeadlineExceeded: neither came in time.
        """
        ready, failed = self._folder / "ready.json", self._folder / "failed.json"
        while time.monotonic() < deadline:
            if ready.exists():
                return dict(json.loads(ready.read_text()))
            status = self._exit_status()
            if failed.exists():
                failure = json.loads(failed.read_text())
                raise StartError(failure["message"], kind=failure["kind"], **self._evidence())
            if status is not None:
                raise _ended(status, self._evidence())
            self._tell(on_progress)
            time.sleep(POLL_S)
        raise DeadlineExceeded(
            "the embedded server did not start in time; is this machine overloaded? Its last log line: "
            f"{last_line(self.log_tail(5)) or '(none)'}",
            phase="starting",
        )

    def _exit_status(self) -> int | None:
        """How the process ended, None while it runs."""
        return None if self._process is None else self._process.poll()

    def _evidence(self) -> dict[str, Any]:
        return {"log_tail": clean(self.log_tail(40)), "phase": "starting"}

    def _tell(self, on_progress: Progress) -> None:
        if time.monotonic() - self._last_told < TOLD_EVERY_S:
            return
        line, self._last_told = last_line(self.log_tail(5)), time.monotonic()
        if line and line != self._last_line:
            self._last_line = line
            on_progress("starting", line)

    def log_tail(self, lines: int) -> str:
        """The last `lines` lines of its log; "" once the folder is gone."""
        path = self._folder / "log"
        try:
            return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def let_go(self) -> None:
        """Close our end of its leash: it ends when no process holds one."""
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1

    def stop(self, deadline: float) -> None:
        """End it: by its leash, and by force at the deadline; then remove its folder."""
        self.let_go()
        if self._process is not None:
            try:
                self._process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                # All of its process group, for `python` may be a wrapper; the simulators die by their leashes.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL) if os.name == "posix" else self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


class StandingServer(EmbeddedServer):
    """A server that goes on without its starter, in a session folder of this user's cache; on a TCP port."""

    def _make_folder(self) -> Path:
        folder = cache_folder() / "sessions" / secrets.token_hex(8)
        make_private_folder(folder)
        return folder

    def _hold_leash(self, settings: dict[str, Any]) -> tuple[int, ...]:
        del settings
        return ()

    def _default_address(self) -> dict[str, Any]:
        return {"tcp": ["127.0.0.1", 0]}

    def _wrapped(self, command: list[str]) -> list[str]:
        # The shell waits for it, so that its end is ours to see while it starts; later nobody waits for it.
        return ["/bin/sh", "-c", '"$@" & wait $!', "remote-env", *command]

    def wait_ready(self, deadline: float, on_progress: Progress) -> dict[str, Any]:
        """See `EmbeddedServer.wait_ready`; from then on it is on its own."""
        ready = super().wait_ready(deadline, on_progress)
        self._record = ServerRecord(
            id=self._folder.name,
            port=int(ready["listen"]["tcp"][1]),
            pid=int(ready["pid"]),
            start_time=str(ready["start_time"]),
            token="",
            session_folder=str(self._folder),
        )
        self._end_shell(signal.SIGKILL)
        return ready

    def _end_shell(self, number: int) -> None:
        """End the shell alone; the server, whose parent it was, is the system's then."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait()

    def stop(self, deadline: float) -> None:
        """End it, by force if need be; then remove its folder."""
        if hasattr(self, "_record"):
            stop_local(self._record, deadline)
        elif self._process is not None:  # it never came up: it and the shell are one process group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _ended(status: int, evidence: dict[str, Any]) -> StartError:
    """The error of a server that ended without a word."""
    number = -status if status < 0 else status - 128 if status > 128 else 0  # of a signal, also behind a shell
    name = signal.Signals(number).name if number in set(signal.Signals) else ""
    how = f"was killed by {name}" if name else f"ended with status {status}"
    details = {"exit_status": None if name else status, "signal": name or None}
    return StartError(f"the embedded server {how}:\n{evidence['log_tail']}", **details, **evidence)


def split_command(python: str) -> list[str]:
    """A local interpreter as an argument list: a path that exists is one word, anything else is a command line."""
    import shlex

    if Path(python).expanduser().exists():
        return [str(Path(python).expanduser())]
    words = shlex.split(python)
    return [str(Path(words[0]).expanduser()), *words[1:]] if words else [python]
