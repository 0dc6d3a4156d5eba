"""What the command does with odd outputs, accounts and folders, and on a terminal: words, never a traceback."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from leak_check import isolated_home, no_leaks, wait_until
from ssh_server import SshServer, can_have_passwords

sys.path.insert(0, str(Path(__file__).parent))

from command import PROGRAM, TIMEOUT_S, login_words

from remote_env import cli
from remote_env.cli import main, servers
from remote_env.cli.show import port_number, positive_number, whole_number

__all__ = ["isolated_home", "no_leaks"]


def test_an_encoding_without_our_signs_costs_the_signs(ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert main(["doctor", ssh_server.target, "--python", "no-such-python", *login_words(ssh_server)]) == 1
    assert re.search(rb"ok +round trip .* \? 16 bytes", written.getvalue())


@pytest.mark.fault
def test_output_that_cannot_be_written_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([PROGRAM, "ps"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 28] No space left on device\n")


def test_an_output_that_is_closed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["ps"]) == 0
    sys.stdout.close()


def test_an_account_without_a_home_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def expanduser(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", expanduser)
    assert main(["ps"]) == 1
    assert "this account has no home folder: set HOME, or XDG_CACHE_HOME" in capsys.readouterr().err


def test_a_failure_that_nobody_foresaw_is_not_an_empty_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(servers, "list_servers", fail)
    assert main(["ps"]) == 1
    printed, complaints = capsys.readouterr()
    assert printed == ""
    assert complaints == "local: cannot be asked: OSError: [Errno 5] Input/output error\n"


@pytest.mark.parametrize(
    "words", [("doctor", ""), ("doctor", "box", "--config", "/nowhere"), ("ps", "a b", "-i", "/no")]
)
def test_json_is_json_whatever_is_asked(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--json"]) == 1
    printed, complaints = capsys.readouterr()
    assert complaints == ""
    assert json.loads(printed)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["ps", "-p", "99999"], "'99999' is no port; allowed are 1 to 65535"),
        (["logs", "box", "-n", "x"], "'x' is not a whole number above 0"),
        (["ps", "--connect-timeout", "soon"], "'soon' is not a number above 0"),
        (["tunnel", "box"], "name the host and its port"),
        (["tunnel", "box", "99999"], "'99999' is no port; allowed are 1 to 65535"),
        (["tunnel", "box", "--list"], "name no host"),
        (["tunnel", "--list", "--stop", "all"], "not allowed with"),
        (["stop", "box", "3f2a", "--all"], "name sessions, or give --all or --stale"),
    ],
)
def test_words_that_make_no_sense_are_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_numbers_are_read() -> None:
    assert (positive_number("0.5"), whole_number("3"), port_number("22")) == (0.5, 3, 22)


def test_ctrl_c_while_the_words_are_read_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "make_parser", interrupt)
    assert main([]) == 130


# On a terminal


class Terminal:
    """The program on a terminal of its own; what it shows is in `text`."""

    def __init__(self, *words: str) -> None:
        self.descriptor, theirs = pty.openpty()
        self.text = ""
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [str(PROGRAM), *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        self._theirs = theirs

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._theirs)
        os.close(self.descriptor)

    def read_until(self, wanted: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.descriptor], [], [], 0.2)[0]:
                self.text += os.read(self.descriptor, 65536).decode(errors="replace")

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.descriptor)[3] & termios.ECHO)


@pytest.mark.skipif(not can_have_passwords(), reason="giving sshd passwords of its own needs root and mounts")
@pytest.mark.fault
def test_a_password_is_asked_for_in_peace_and_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    with SshServer(password="open sesame") as server:
        words = (server.target, "--known-hosts", str(server.known_hosts), "--config", os.devnull)
        with Terminal("ps", *words) as terminal:
            terminal.read_until("assword:")
            wait_until(lambda: not terminal.echoes, "what is typed is not shown")
            asked = len(terminal.text)
            os.write(terminal.descriptor, b"open sesame\n")
            terminal.read_until("no task server of yours")
            assert "sesame" not in terminal.text
            assert terminal.process.wait(TIMEOUT_S) == 0
            assert terminal.echoes
            assert "asking" in terminal.text[:asked]
        with Terminal("ps", *words) as terminal:
            terminal.read_until("assword:")
            wait_until(lambda: not terminal.echoes, "what is typed is not shown")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.process.wait(TIMEOUT_S) == 130
            assert terminal.echoes
            question = terminal.text.rindex("assword:")
            assert "asking" not in terminal.text[question:]  # no status line runs over the question


def test_advice_names_the_command_s_options(
    ssh_server: SshServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = ["--known-hosts", str(tmp_path / "known_hosts"), "-i", str(ssh_server.identity_file)]
    assert main(["logs", ssh_server.target, *unknown]) == 1
    said = capsys.readouterr().err
    assert "or pass --accept-new-host-key" in said
    assert "accept_new_host_key" not in said
