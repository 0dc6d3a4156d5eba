"""`remote-env doctor` against a real sshd: a well machine, and machines that lack something."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from full_disk import file_size_limit
from leak_check import isolated_home, no_leaks, wait_until
from ssh_server import SshServer

sys.path.insert(0, str(Path(__file__).parent))

from command import FAR_PYTHON, login_words, start

from remote_env.cli import main
from remote_env.cli.link_rows import ClockSample
from remote_env.cli.machine_rows import gpu_row, rendering_row
from remote_env.cli.rows import FAIL, OK, WARN, Where
from remote_env.cli.self_test import RememberingAsk
from remote_env.server import probe
from remote_env.ssh import SecretPrompt

__all__ = ["isolated_home", "no_leaks"]
WHERE = Where("box", "ssh box", "python3")
TEST_OF_ALL = (
    *("login", "shell", "round trip", "transfer", "clock", "forwarding", "interpreter", "processors", "memory"),
    *("cache folder", "temp folder", "home folder", "GPU", "packages", "rendering", "our servers", "self-test"),
)


@pytest.fixture(autouse=True)
def nothing_is_left(ssh_server: SshServer) -> Iterator[None]:
    """After each test no process runs inside a login, and no session is left there."""
    yield
    wait_until(lambda: not ssh_server.processes(), "every process of the doctor has ended")
    assert list(ssh_server.cache.glob("remote-env/sessions/*")) == []


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run the doctor in this process; its rows by name, each failed one with what mends it."""

    def examine(server: SshServer, *words: str, status: int) -> dict[str, Any]:
        assert main(["doctor", server.target, *login_words(server), "--json", *words]) == status
        printed, complaints = capsys.readouterr()
        assert complaints == ""
        told = json.loads(printed)
        assert told["host"] == server.target
        assert all(row["fix"] for row in told["rows"] if row["status"] == "fail")
        assert told["failed"] == sum(row["status"] == "fail" for row in told["rows"])
        return {row["name"]: row for row in told["rows"]}

    return examine


def failed(rows: dict[str, Any]) -> list[str]:
    return [name for name, row in rows.items() if row["status"] == "fail"]


def test_a_well_machine_passes_every_test(ssh_server: SshServer, examine: Callable[..., Any]) -> None:
    rows = examine(ssh_server, "--python", FAR_PYTHON, "--require", "numpy>=1.20", "gymnasium", status=0)
    assert set(rows) == {*TEST_OF_ALL, "require numpy", "require gymnasium"}
    assert failed(rows) == []
    assert "ssh-ed25519" in rows["login"]["found"]
    assert "OpenSSH" in rows["login"]["found"]
    assert re.search(r"[\d.]+ ms p50, [\d.]+ ms p99", rows["round trip"]["found"])
    assert re.search(r"\d+ MB/s there, \d+ MB/s back", rows["transfer"]["found"])
    assert abs(float(rows["clock"]["found"].split()[0])) < 1000.0
    assert FAR_PYTHON in rows["interpreter"]["found"]
    assert "CartPole-v1" in rows["self-test"]["found"]
    assert "steps/s" in rows["self-test"]["found"]


def test_this_machine_is_examined_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "local"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1] if not line.startswith(" ")].count("ok") >= 10
    assert "bit-equal" in lines[-2]
    assert lines[-1].endswith("none failed") or "with a drawback" in lines[-1]


def test_rows_are_plain_lines_in_a_pipe(ssh_server: SshServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", ssh_server.target, "--python", "nowhere/python", *login_words(ssh_server)]) == 1
    printed, complaints = capsys.readouterr()
    assert complaints == ""
    assert "\x1b" not in printed
    lines = printed.splitlines()
    row = next(line for line in lines if line.startswith("FAIL  interpreter"))
    assert "nowhere/python was not found" in row
    assert lines[lines.index(row) + 1].lstrip().startswith("mend: remote-env doctor ssh://")
    assert "skip  self-test" in printed
    assert lines[-1].endswith("mend the first one and run this again")


def test_rows_fit_a_terminal(ssh_server: SshServer) -> None:
    columns = 80
    shown = on_terminal(columns, "doctor", ssh_server.target, "--python", "nowhere/python", *login_words(ssh_server))
    assert "\x1b[" in shown
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rsplit("\r", 1)[-1] for line in shown.split("\r\n")]
    assert max(len(line) for line in lines if "mend:" not in line) <= columns
    assert any(line.startswith("ok   login") for line in lines)
    assert any("mend: remote-env doctor" in line for line in lines)  # in one piece, to be copied


def on_terminal(columns: int, *words: str) -> str:
    """What the program writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    with subprocess.Popen(
        [sys.executable, "-m", "remote_env", *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while data := read_terminal(ours):
            shown += data
        os.close(ours)
        process.wait(10)
    return shown.decode()


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # its other end is closed
        return b""


# What a machine may lack


def test_a_missing_interpreter_and_one_that_is_none(ssh_server: SshServer, examine: Callable[..., Any]) -> None:
    rows = examine(ssh_server, "--python", "no-such-python", status=1)
    assert failed(rows) == ["interpreter"]
    assert "no-such-python was not found" in rows["interpreter"]["found"]
    assert rows["self-test"]["status"] == "skip"
    assert "cannot be executed" in examine(ssh_server, "--python", "/etc/passwd", status=1)["interpreter"]["found"]
    assert "runs no Python program" in examine(ssh_server, "--python", "true", status=1)["interpreter"]["found"]


@pytest.mark.parametrize("version", [(3, 8, 18), (2, 7, 18)])
def test_an_interpreter_that_is_too_old_says_so(
    ssh_server: SshServer, examine: Callable[..., Any], tmp_path: Path, version: tuple[int, ...]
) -> None:
    """A stand-in: the real interpreter, made to believe that it is an old one."""
    old, text = tmp_path / "python", ".".join(map(str, version))
    program = (
        f"import sys, platform; sys.version_info = {(*version, 'final', 0)}; "
        f"sys.version = ' '.join(['{text}', *sys.version.split()[1:]]); "
        f"platform.python_version = lambda: '{text}'; code = sys.argv[2]; sys.argv[1:] = sys.argv[3:]; exec(code)"
    )
    old.write_text(f'#!/bin/sh\nexec {FAR_PYTHON} -c "{program}" "$@"\n')
    old.chmod(0o755)
    rows = examine(ssh_server, "--python", str(old), status=1)
    assert failed(rows) == ["interpreter"]
    assert f"Python {text}" in rows["interpreter"]["found"]
    assert "3.10 or later is needed" in rows["interpreter"]["found"]
    assert "--python" in rows["interpreter"]["fix"]


def test_missing_packages_are_named_with_the_pip_command(
    ssh_server: SshServer, examine: Callable[..., Any], tmp_path: Path
) -> None:
    subprocess.run([FAR_PYTHON, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=60)
    python = str(tmp_path / "bare/bin/python")
    rows = examine(ssh_server, "--python", python, "--require", "torch>=2.4", "nothing; python_version<'3'", status=1)
    assert failed(rows) == ["packages", "require torch"]
    assert "numpy is not installed" in rows["packages"]["found"]
    assert f'{python} -m pip install "numpy>=1.26" "gymnasium>=0.29"' in rows["packages"]["fix"]
    assert "ensurepip" in rows["packages"]["fix"]
    assert "torch>=2.4" in rows["require torch"]["fix"]
    assert "not needed there" in rows["require nothing"]["found"]


def test_a_wrong_version_is_told_and_isaac_when_asked_for(ssh_server: SshServer, examine: Callable[..., Any]) -> None:
    rows = examine(ssh_server, "--python", FAR_PYTHON, "--require", "numpy>=99", "--isaac", status=1)
    assert failed(rows)[0] == "require numpy"
    assert {"Isaac Lab", "Isaac Sim", "Isaac driver", "Vulkan", "Isaac libs", "Isaac licence"} <= set(rows)
    assert re.search(r"numpy [\d.]+ is installed; required: numpy>=99", rows["require numpy"]["found"])
    assert rows["self-test"]["status"] in ("ok", "warn")  # it needs no more than ours


def test_what_is_no_requirement_is_refused_before_the_login(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "nowhere.invalid", "--require", "torch=>2"])
    assert ended.value.code == 2
    assert "'torch=>2' is no requirement" in capsys.readouterr().err


@pytest.mark.fault
def test_forwarding_that_sshd_forbids(examine: Callable[..., Any]) -> None:
    with SshServer(extra_config="AllowTcpForwarding no") as server:
        rows = examine(server, "--python", FAR_PYTHON, status=1)
    assert failed(rows) == ["forwarding"]
    assert "AllowTcpForwarding" in rows["forwarding"]["fix"]
    assert rows["self-test"]["status"] == "skip"


@pytest.mark.fault
def test_a_full_disk(examine: Callable[..., Any]) -> None:
    with contextlib.ExitStack() as stack:
        with file_size_limit(8192):
            server = stack.enter_context(SshServer())
        rows = examine(server, "--python", FAR_PYTHON, status=1)
    assert failed(rows) == ["cache folder"]
    assert "a file cannot be written: File too large" in rows["cache folder"]["found"]
    assert "df -h" in rows["cache folder"]["fix"]
    assert rows["home folder"]["status"] == "warn"


def test_an_account_with_nothing_but_sh(examine: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    force = f'ForceCommand PATH={tmp_path}; export PATH; eval "$SSH_ORIGINAL_COMMAND"'
    with SshServer(extra_config=force) as server:
        rows = examine(server, status=1)
    assert failed(rows) == ["shell", "interpreter"]
    assert "without setsid, tar" in rows["shell"]["found"]
    assert "apt-get install -y coreutils" in rows["shell"]["fix"]


def test_start_up_files_that_talk_and_take_their_time_are_no_measurement(examine: Callable[..., Any]) -> None:
    with SshServer() as server:
        (server.root / "home/.bashrc").write_text("echo Welcome to box; echo 'a quota' >&2; sleep 0.1; printf 12345\n")
        rows = examine(server, "--python", "no-such-python", status=1)
    assert failed(rows) == ["interpreter"]
    assert abs(float(rows["clock"]["found"].split()[0])) < 1000.0
    assert rows["round trip"]["status"] == rows["transfer"]["status"] == "ok"


# The login


def test_a_wrong_host_key_is_one_failed_row(examine: Callable[..., Any]) -> None:
    with SshServer() as server:
        server.known_hosts.write_text(server.known_hosts_line("user_ed25519"))
        rows = examine(server, status=1)
        assert list(rows) == ["login"]
        assert "HAS CHANGED" in rows["login"]["found"]
        assert rows["login"]["fix"].startswith("ssh-keygen -f ")
        server.known_hosts.write_text("")
        rows = examine(server, status=1)
        assert list(rows) == ["login"]
        assert "is not known" in rows["login"]["found"]
        assert rows["login"]["fix"].startswith("ssh -p ")


def test_a_host_that_cannot_be_reached(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "ssh://nobody@127.0.0.1:1"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("FAIL  login           127.0.0.1:1 refused the connection")
    assert "mend: ssh -v -o ConnectTimeout=30 -p 1 nobody@127.0.0.1" in printed


@pytest.mark.fault
def test_an_sshd_that_is_stopped_is_one_failed_row(examine: Callable[..., Any]) -> None:
    with SshServer() as server:
        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
        rows = examine(server, "--connect-timeout", "1", status=1)
        assert time.monotonic() - began < 10.0
        os.kill(server.pid, signal.SIGCONT)
    assert list(rows) == ["login"]
    assert "said nothing in time" in rows["login"]["found"]


@pytest.mark.fault
def test_a_login_that_freezes_in_the_middle_ends_the_tests(examine: Callable[..., Any], tmp_path: Path) -> None:
    """sshd's session stops while the interpreter, which takes for ever, is asked."""
    asked, slow = tmp_path / "asked", tmp_path / "python"
    slow.write_text(f"#!/bin/sh\ntouch {asked}\nexec sleep 600\n")
    slow.chmod(0o755)

    def freeze() -> None:
        wait_until(asked.exists, "the interpreter was started", 30)
        server.signal_connections(signal.SIGSTOP)

    with SshServer() as server:
        freezing = threading.Thread(target=freeze)
        freezing.start()
        rows = examine(server, "--python", str(slow), "--row-timeout", "1.5", status=1)
        freezing.join()
    assert failed(rows)
    assert rows["interpreter"]["found"].endswith("it did not answer in time")


@pytest.mark.fault
@pytest.mark.parametrize("moment", ["probe", "self-test"])
def test_ctrl_c_leaves_nothing(ssh_server: SshServer, tmp_path: Path, moment: str) -> None:
    asked, slow = tmp_path / "asked", tmp_path / "python"
    waits = "exec sleep 600" if moment == "probe" else f'exec {FAR_PYTHON} "$@"'
    slow.write_text(f"#!/bin/sh\ntouch {asked}\n{waits}\n")
    slow.chmod(0o755)
    sessions = ssh_server.cache / "remote-env/sessions"
    with start("doctor", ssh_server.target, "--python", slow, *login_words(ssh_server)) as process:
        wait_until(asked.exists, "the interpreter was started")
        if moment == "self-test":
            wait_until(lambda: list(sessions.glob("*/ready.json")), "the self-test's server listens", 30)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=30)
    assert process.returncode == 130
    assert complaints == ""


# What the probe tells, judged


def test_the_probe_can_be_read_by_old_interpreters() -> None:
    ast.parse(Path(probe.__file__).read_text(), feature_version=(3, 6))


def test_a_gpu_is_described_and_a_broken_driver_fails() -> None:
    gpu = {
        "name": "NVIDIA H200",
        "driver_version": "580.65.06",
        "memory.total": "143771",
        "memory.free": "143000",
        "utilization.gpu": "0",
    }
    row = gpu_row({"found": [gpu], "error": ""}, WHERE)
    assert (row.status, row.found) == (OK, "NVIDIA H200, 140 GiB free of 140 GiB, 0 % busy, driver 580.65.06")
    error = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    assert gpu_row({"found": [], "error": error}, WHERE).status == FAIL
    assert gpu_row({"found": [], "error": "there is no nvidia-smi"}, WHERE).status == OK


def test_no_way_to_render_is_a_drawback_with_the_packages() -> None:
    ways = {
        "egl": {"renderer": "", "error": "libEGL.so.1: cannot open shared object file"},
        "osmesa": {"renderer": "", "error": "libOSMesa.so.8: cannot open shared object file"},
    }
    row = rendering_row({"ways": ways, "by_mujoco": False}, WHERE)
    assert row.status == WARN
    assert row.fix == "ssh box 'sudo apt-get install -y libegl1 libopengl0 libgl1-mesa-dri libosmesa6'"
    ways["osmesa"] = {"renderer": "llvmpipe", "error": ""}
    assert rendering_row({"ways": ways, "by_mujoco": False}, WHERE).status == OK


def test_the_clock_offset_is_that_of_ntp() -> None:
    sample = ClockSample(sent=10.0, told=13.01, received=10.02)
    assert sample.offset == pytest.approx(3.0)
    assert sample.uncertainty == pytest.approx(0.01)
    coarse = ClockSample(sent=10.2, told=10.0, received=10.2, resolution=1.0)
    assert abs(coarse.offset) <= coarse.uncertainty


def test_a_password_is_asked_for_once_and_a_code_twice() -> None:
    asked: list[str] = []

    def answer(prompt: Any) -> str:
        asked.append(prompt.kind)
        return "secret"

    ask = RememberingAsk(answer)
    prompts = [SecretPrompt(kind, "?", False, "a@b:22") for kind in ("password", "keyboard-interactive")]
    assert [ask(prompt) for prompt in prompts] == ["secret", "secret"]
    ask.reuse()
    assert [ask(prompt) for prompt in prompts] == ["secret", "secret"]
    assert asked == ["password", "keyboard-interactive", "keyboard-interactive"]
    ask(prompts[0])  # it was refused this time
    assert asked[-1] == "password"
