"""A known token through whole lives of servers: it is where it must be, and nowhere else.

Looked through are: the command line, name and environment of every process on the machine all the while, every file
that is left or was ever seen, what is logged, said, raised and shown by either end.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import threading
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leak_check import wait_until
from server_process import HandServer
from ssh_client import ROOT, nothing_is_left, over_ssh
from ssh_server import SshServer

from remote_env import RemoteEnv
from remote_env.cli import main
from remote_env.errors import RemoteEnvError, SessionLost
from remote_env.record import Recorder
from remote_env.server.folder import record_path

__all__ = ["nothing_is_left"]

TOKEN = "5ec2e7" * 10 + "beef"  # made up, and found nowhere else on a machine
NEEDLE = TOKEN.encode()
ACTION = np.zeros(2, np.float32)
TASK = {"env": "tasks_for_tests.misbehaving:OnDemand", "server_env": {"PYTHONPATH": str(ROOT / "tests")}}


class Watch:
    """Looks at every process of the machine, and at the files in some folders, again and again until it is stopped.

    Attributes:
        found: where the token was seen in a process.
        files: each file in which it was seen, with the modes of the file and of its folder.
        rounds: how often everything was looked at.
    """

    def __init__(self, *folders: Path) -> None:
        self.found: set[str] = set()
        self.files: dict[str, tuple[int, int]] = {}
        self.names: set[str] = set()
        self.rounds = 0
        self._folders = folders
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(20)

    def _run(self) -> None:
        while not self._stopping.wait(0.03):
            self.look()

    def look(self) -> None:
        """Once."""
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "comm", "environ"):
                with contextlib.suppress(OSError):
                    if NEEDLE in (process / name).read_bytes():
                        self.found.add(f"{name} of {(process / 'cmdline').read_bytes()!r}")
        for folder in self._folders:
            for path in _files(folder):
                self.names.add(str(path))
                with contextlib.suppress(OSError):
                    if NEEDLE in path.read_bytes():
                        modes = (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode))
                        self.files[str(path)] = modes
        self.rounds += 1


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):  # a folder may vanish meanwhile
        for name in names:
            path = Path(root, name)
            if path.suffix != ".py" and not path.is_socket() and not path.is_fifo():
                yield path


class Said:
    """Collects what a user or a log gets to see."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def note(self, *values: Any) -> None:
        """Keep how each shows itself."""
        self.parts += [f"{value} {value!r}" for value in values]

    def failing(self, call: Callable[[], Any], *kinds: type[Exception]) -> None:
        """Keep all that an error tells."""
        with pytest.raises(kinds or RemoteEnvError) as caught:
            call()
        error: BaseException | None = caught.value
        self.parts.append("".join(traceback.format_exception(caught.value)))
        while error is not None:
            self.note(error, error.args, vars(error))
            error = error.__cause__

    def check(self, *more: str) -> None:
        """Nothing of it holds the token."""
        assert len(self.parts) > 1
        for part in (*self.parts, *more):
            assert TOKEN not in part, part


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every logger's every line, those of libraries too."""
    caplog.set_level(logging.DEBUG)
    for name in ("remote_env", "paramiko"):
        caplog.set_level(logging.DEBUG, name)
    return caplog


def command(*words: str) -> str:
    """All that `remote-env` says."""
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit):
        main(list(words))
    return f"{words[0]}: {output.getvalue()}\n{errors.getvalue()}"


def http(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.headers) + answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return str(error.headers) + error.read().decode()


def check_files(watch: Watch, kinds: tuple[str, ...]) -> None:
    """The token was in such files alone, each for its owner alone, in a folder for its owner alone."""
    assert watch.rounds > 3
    assert not watch.found
    assert watch.files, "the watch has not seen the files that must hold it"
    for path, (mode, folder_mode) in watch.files.items():
        assert any(kind in path for kind in kinds), path
        assert (mode, folder_mode) == (0o600, 0o700), path
    assert not any(TOKEN in name for name in watch.names)


@pytest.mark.fault
def test_a_whole_life_over_ssh(
    ssh_server: SshServer,
    isolated_home: Path,
    said: Said,
    everything_logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("remote_env.env.starting.new_token", lambda: TOKEN)
    monkeypatch.setenv("COLUMNS", "200")
    login = ["-i", str(ssh_server.identity_file), "--known-hosts", str(ssh_server.known_hosts)]
    login += ["--config", str(ssh_server.config)]
    progress: list[str] = []
    with Watch(ssh_server.cache, isolated_home, ssh_server.root / "home") as watch:
        env = over_ssh(ssh_server, keep=True, on_progress=progress.append, **TASK)
        try:
            env.reset(seed=0)
            env.step(ACTION)
            [record] = env.setup_tunnel().list(_soon())
            assert record.token == TOKEN  # the life that is looked through is this one's
            said.note(env, env.unwrapped, env.spec, env.setup_tunnel(), record, env.status(), env.metadata)
            said.note(http(record.port, "/metrics"), http(record.port, "/healthz"), http(record.port, "/other"))
            env.call("plan", "raise")
            said.failing(lambda: env.step(ACTION))
            env.reset()
            env.call("plan", "segv")
            said.failing(lambda: env.step(ACTION), SessionLost)
            said.note(http(record.port, "/healthz"))
            said.note(list(env.logs()))
            for words in (("ps",), ("ps", "--json"), ("logs",), ("doctor", "--python", "nowhere/python")):
                place = [words[0], ssh_server.target, *words[1:], *login]
                said.note(command(*place))
            said.failing(lambda: over_ssh(ssh_server, record.port, token="0" * 64).start())
        finally:
            env.close()
            said.note(command("stop", ssh_server.target, "--all", *login))
        said.note(env)
        wait_until(lambda: not ssh_server.processes(), "everything has ended there")
        watch.look()
    said.check(everything_logged.text, *progress)
    assert len(everything_logged.records) > 20
    check_files(watch, ("/settings.json", "/servers/"))
    left = [path for folder in (ssh_server.cache, isolated_home) for path in _files(folder)]
    assert not [path for path in left if NEEDLE in path.read_bytes()]
    # What was uploaded lies in a folder for its owner alone.
    assert stat.S_IMODE((ssh_server.cache / "remote-env").stat().st_mode) == 0o700


def _soon() -> float:
    import time

    return time.monotonic() + 20


def test_a_server_by_hand_that_was_given_its_token(isolated_home: Path, said: Said, tmp_path: Path) -> None:
    """The program's own environment holds it, as its caller has made it; none of its children's does."""
    with Watch(isolated_home, tmp_path) as watch, HandServer("--env", TASK["env"], REMOTE_ENV_TOKEN=TOKEN) as server:
        server.wait_listening()
        with RemoteEnv(port=server.port) as env:
            recorder = Recorder(tmp_path, rate_hz=50.0, task="on demand", host=str(env.status()))
            recorder.start(*env.reset())
            recorder.record(ACTION, *env.step(ACTION))
            assert NEEDLE not in recorder.finish().read_bytes()
            said.note(env, env.spec, env.status(), http(server.port, "/metrics"))
            env.call("plan", "raise")
            said.failing(lambda: env.step(ACTION))
            assert NEEDLE not in Path(f"/proc/{env.status()['pid']}/environ").read_bytes()
        record = record_path(server.port)
        assert TOKEN in record.read_text()
    said.check(server.output)
    assert watch.found <= {f"environ of {line!r}" for line in _command_lines(server)}
    check_files_only(watch)


def _command_lines(server: HandServer) -> set[bytes]:
    return {b"\0".join(os.fsencode(word) for word in server.process.args) + b"\0"}


def check_files_only(watch: Watch) -> None:
    watch.found.clear()
    check_files(watch, ("/settings.json", "/servers/"))


def test_a_client_believes_no_record_that_others_can_reach() -> None:
    with HandServer("--env", "CartPole-v1") as server:
        server.wait_listening()
        record = record_path(server.port)
        for mode in (0o644, 0o602):
            record.chmod(mode)
            with pytest.raises(RemoteEnvError, match=f"mode is {mode:04o}.* chmod go-rwx {record}"):
                RemoteEnv(port=server.port).start()
        record.chmod(0o600)
        with RemoteEnv(port=server.port) as env:
            env.reset()


def test_a_server_leaves_no_token_in_a_folder_that_others_can_reach() -> None:
    folder = record_path(1).parent
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    try:
        with HandServer("--env", "CartPole-v1") as server:
            assert server.process.wait(20) == 1
        assert f"its mode is 0755) and holds a token; make it private: chmod go-rwx {folder}" in server.output
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o700)


@pytest.mark.parametrize("way", ["token=", "environment"])
def test_a_token_that_is_wrong_is_shown_by_neither_end(
    way: str, said: Said, everything_logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HandServer("--env", "CartPole-v1") as server:
        server.wait_listening()
        if way == "environment":
            record_path(server.port).unlink()
            monkeypatch.setenv("REMOTE_ENV_TOKEN", TOKEN)
        env = RemoteEnv(port=server.port, token=TOKEN if way == "token=" else None)
        said.failing(env.start)
        said.note(env, env.spec)
    said.check(server.output, everything_logged.text)
