"""`python=` as a command line: wrappers, activation scripts, spaces and quotes, and how soon their death is told."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_server import SshServer

from remote_env.errors import StartError
from remote_env.ssh import ServerHandle, SshConnection, ship_far_end, start_server

sys.path.insert(0, str(Path(__file__).parent))

from stand_in import write_package

LIMIT_S = 15.0

# As `isaaclab.sh -p`: prints, sets things up, runs its Python as a child, and passes its status on.
_ISAACLAB = """#!/usr/bin/env bash
echo "[INFO] Using python from: {python}"
while [[ $# -gt 0 ]]; do
  case "$1" in -p|--python) shift; {python} "$@"; status=$?; break ;; *) echo "unknown $1"; exit 2 ;; esac
done
echo "[INFO] left with $status"
exit $status
"""

# A stand-in for conda's `run`: it collects all that its command prints, and shows it only once that has ended, as
# `conda run` does without --no-capture-output; and it passes the status on.
_CONDA = """#!/bin/sh
[ "$1" = run ] && [ "$2" = -n ] || {{ echo "usage: conda run -n NAME COMMAND" >&2; exit 2; }}
[ "$3" = isaac ] || {{ echo "EnvironmentLocationNotFound: Not a conda environment: $3" >&2; exit 1; }}
shift 3
[ "$1" = python ] && {{ shift; set -- {python} "$@"; }}
said=$("$@" 2>&1)
status=$?
printf '%s\\n' "$said"
[ "$status" -eq 0 ] || echo "ERROR conda.cli.main_run:execute(127): \\`conda run $*\\` failed." >&2
exit $status
"""


def soon(seconds: float = LIMIT_S) -> float:
    return time.monotonic() + seconds


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("far_end"))


@pytest.fixture(scope="module")
def server() -> Iterator[SshServer]:
    with SshServer() as server:
        yield server


@pytest.fixture
def connection(server: SshServer, package: Path) -> Iterator[SshConnection]:
    with SshConnection(server.target, **server.login) as connection:
        ship_far_end(connection, soon(), source=package)
        yield connection
        deadline = soon()
        while server.processes():
            assert time.monotonic() < deadline, "something of a session still runs"
            time.sleep(0.02)
        assert list(server.cache.glob("remote-env/sessions/*")) == []


def start(connection: SshConnection, package: Path, python: str, mode: str = "serve") -> ServerHandle:
    settings = {"task": {"mode": mode, "kind": ""}}
    return start_server(connection, settings, python=python, deadline=soon(), source=package)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.format(python=shlex.quote(sys.executable)))
    path.chmod(0o755)
    return path


def isaaclab(folder: Path, _: SshServer) -> str:
    return f"{write(folder / 'isaaclab.sh', _ISAACLAB)} -p"


def isaaclab_at_home(_: Path, server: SshServer) -> str:
    write(server.root / "home" / "isaac lab" / "it's.sh", _ISAACLAB)
    return "~/'isaac lab'/it\\'s.sh -p"


def conda(folder: Path, _: SshServer) -> str:
    write(folder / "conda", _CONDA)
    return f"PATH={folder}:$PATH; conda run -n isaac python"


def activation(folder: Path, _: SshServer) -> str:
    write(folder / "my env.sh", "source_only_bash_knows=(a b)\nexport MY_PYTHON={python}\n")
    return f"source '{folder}/my env.sh' && \"$MY_PYTHON\" -u"


def linked_with_spaces(folder: Path, _: SshServer) -> str:
    link = folder / 'a "python" with $pecial characters'
    link.symlink_to(sys.executable)
    return shlex.quote(str(link))


COMMAND_LINES = [isaaclab, isaaclab_at_home, conda, activation, linked_with_spaces]
Maker = Callable[[Path, SshServer], str]


@pytest.mark.parametrize("make", COMMAND_LINES)
def test_a_command_line_serves_and_ends_with_its_server(
    connection: SshConnection, server: SshServer, package: Path, tmp_path: Path, make: Maker
) -> None:
    handle = start(connection, package, make(tmp_path, server))
    stream = connection.open_port(handle.port, soon())
    stream.send_all([b"hello"], soon())
    back = bytearray(5)
    stream.recv_exactly_into(memoryview(back), soon())
    assert back == b"hello"
    stream.close()
    handle.stop(soon())


@pytest.mark.parametrize("make", [isaaclab, conda])
def test_the_death_of_what_a_wrapper_runs_is_told_soon_with_its_last_words(
    connection: SshConnection, server: SshServer, package: Path, tmp_path: Path, make: Maker
) -> None:
    python = make(tmp_path, server)
    begun = time.monotonic()
    with pytest.raises(StartError, match="exit status 7") as caught:
        start(connection, package, python, "die")
    assert time.monotonic() - begun < LIMIT_S / 3  # 0.3 s on a calm machine, with the start
    assert "ImportError: no module named the_task" in caught.value.log_tail
    assert caught.value.exit_status == 7


@pytest.mark.parametrize("trap", ["", "trap '' TERM\n"])
def test_a_wrapper_that_outlives_its_python_is_ended_and_told_soon(
    connection: SshConnection, package: Path, tmp_path: Path, trap: str
) -> None:
    wrapper = write(tmp_path / "wrapper.sh", "#!/bin/sh\n" + trap + '{python} "$@"\nsleep 600\nsleep 600\n')
    begun = time.monotonic()
    with pytest.raises(StartError, match="ended while it started, and what") as caught:
        start(connection, package, str(wrapper), "die")
    assert time.monotonic() - begun < LIMIT_S / 3
    assert "ImportError: no module named the_task" in caught.value.log_tail
    assert (caught.value.exit_status, caught.value.phase) == (None, "starting")


def test_a_refusal_behind_a_wrapper_that_lingers_is_told_in_its_words(
    connection: SshConnection, package: Path, tmp_path: Path
) -> None:
    wrapper = write(tmp_path / "wrapper.sh", '#!/bin/sh\n{python} "$@"\nsleep 600\n')
    with pytest.raises(StartError, match="cannot listen"):
        start(connection, package, str(wrapper), "refuse")


def test_a_wrapper_that_is_killed_while_it_starts_is_told_by_its_signal(
    connection: SshConnection, server: SshServer, package: Path, tmp_path: Path
) -> None:
    wrapper = write(tmp_path / "wrapper.sh", "#!/bin/sh\necho loading\nkill -s BUS $$\n")
    with pytest.raises(StartError, match=r"killed by signal 7 \(SIGBUS\)") as caught:
        start(connection, package, str(wrapper))
    assert caught.value.signal == "SIGBUS"
    assert caught.value.log_tail.startswith("loading")


def test_an_environment_that_conda_does_not_know_is_told_in_its_words(
    connection: SshConnection, server: SshServer, package: Path, tmp_path: Path
) -> None:
    python = conda(tmp_path, server).replace("isaac", "isac")
    with pytest.raises(StartError, match="exit status 1") as caught:
        start(connection, package, python)
    assert "Not a conda environment: isac" in str(caught.value)


def test_a_log_is_shown_as_a_terminal_would_leave_it(
    connection: SshConnection, server: SshServer, package: Path, tmp_path: Path
) -> None:
    text = "printf '\\033[31mred\\033[0m\\n10%%\\r50%%\\r100%%\\n'; for i in 1 2 3; do echo same; done; exit 3\n"
    wrapper = write(tmp_path / "noisy.sh", "#!/bin/sh\n")
    wrapper.write_text(f"#!/bin/sh\n{text}")
    with pytest.raises(StartError) as caught:
        start(connection, package, str(wrapper))
    assert caught.value.log_tail.splitlines() == ["red", "100%", "same", "… repeated 2 times"]


def simulator_environment(folder: Path) -> list[bytes]:
    """Of the first simulator; empty as long as there is none, which starts a moment after its server is ready."""
    try:
        pid = int((folder / "simulators").read_text().split()[0])
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return []


def test_the_real_server_gets_variables_and_its_working_folder(server: SshServer, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    variables = {"MY_NAME": 'it\'s $HOME "quoted" \\ é'}
    settings: dict[str, Any] = {"task": {"env": "CartPole-v1"}, "max_sessions": 1, "idle_timeout_s": 60.0}
    settings |= {"env": variables, "cwd": str(folder), "python_path": [], "leash_fd": None}
    python = f"{shlex.quote(str(isaaclab(tmp_path, server).removesuffix(' -p')))} -p"
    with SshConnection(server.target, **server.login) as connection:
        handle = start_server(connection, settings, python=python, deadline=soon(30.0))
        try:
            assert Path(f"/proc/{handle.pid}/cwd").readlink() == folder
            wanted, deadline = f"MY_NAME={variables['MY_NAME']}".encode(), soon()
            while wanted not in simulator_environment(Path(handle.session_folder)):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            handle.stop(soon())
        with pytest.raises(ProcessLookupError):
            os.kill(handle.pid, signal.SIGCONT)
