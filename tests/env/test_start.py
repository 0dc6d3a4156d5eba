"""A start can be watched, and one that fails says where it was, how it ended, and its last words."""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from leak_check import wait_until

from remote_env import RemoteEnv
from remote_env.env.progress import StartProgress
from remote_env.errors import DeadlineExceeded, StartError

TASK = "tasks_for_tests.misbehaving:OnDemand"
ROOT = Path(__file__).resolve().parents[2]


def test_the_phases_are_told_in_order_and_once(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    with caplog.at_level(logging.INFO, "remote_env"), RemoteEnv(env="CartPole-v1", on_progress=told.append):
        pass
    phases = [text.partition(":")[0] for text in told]
    assert phases[:3] == ["connecting", "uploading", "starting"]
    assert phases[-1] == "ready"
    assert all(one != other for one, other in itertools.pairwise(told))
    assert [record.message for record in caplog.records if record.message in told] == told


def test_a_death_while_building_is_told_within_a_second(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal, time\n"
        "def make_env(how):\n"
        "    print('\\x1b[31mloading\\x1b[0m 10 %\\rloading 100 %', flush=True)\n"
        "    for _ in range(30): print('waiting for the renderer', flush=True)\n"
        "    open(how + '.dying', 'w').close()\n"
        "    os._exit(3) if how.endswith('exit') else os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for how, status, name in (("exit", 3, None), ("kill", None, "SIGKILL")):
        env = RemoteEnv(server_script=script, env_kwargs={"how": str(tmp_path / how)})
        with pytest.raises(StartError, match=r"the simulator died while starting: .* while building") as caught:
            env.start()
        assert time.time() - (tmp_path / f"{how}.dying").stat().st_mtime < 1.0 + 1.0  # one to be told, one to clean up
        error = caught.value
        assert (error.phase, error.exit_status, error.signal) == ("building", status, name)
        assert "loading 100 %" in error.log_tail
        assert "10 %\r" not in error.log_tail
        assert "\x1b" not in error.log_tail
        assert "… repeated 29 times" in error.log_tail


def test_an_interpreter_that_dies_is_a_start_error_with_its_status() -> None:
    for python, status, name in (("/bin/false", 1, None), ("/bin/sh -c 'kill -9 $$'", None, "SIGKILL")):
        with pytest.raises(StartError, match="the embedded server") as caught:
            RemoteEnv(env="CartPole-v1", python=python).start()
        assert (caught.value.phase, caught.value.exit_status, caught.value.signal) == ("starting", status, name)


def test_a_start_that_is_late_says_its_phase_and_last_line(isolated_home: Path) -> None:
    never = isolated_home / "never"
    script = isolated_home / "late.py"
    script.write_text(
        "import time\ndef make_env():\n    print('compiling shaders: 3 of 400', flush=True)\n"
        f"    import os\n    while not os.path.exists({str(never)!r}): time.sleep(0.01)\n"
    )
    env = RemoteEnv(server_script=script, start_timeout_s=2.5)
    with pytest.raises(
        DeadlineExceeded,
        match=r"still building after \d+ s; its last log line: compiling shaders: 3 of 400\. .*start_t",
    ) as caught:
        env.start()
    assert (caught.value.phase, caught.value.last_line) == ("building", "compiling shaders: 3 of 400")
    assert env.status() == {"state": "not started"}
    script.unlink()


def test_a_deadline_elsewhere_in_a_start_is_explained_too() -> None:
    progress = StartProgress("task on box", 1.0)
    progress.report("uploading", "3 MB")
    told = progress.explain(DeadlineExceeded("box did not answer in time"))
    assert re.search(
        r"box did not answer in time \(after 0 s, in the phase 'uploading'; last log line: 3 MB", str(told)
    )
    assert told.phase == "uploading"


def test_missing_requirements_are_named_with_what_installs_them() -> None:
    env = RemoteEnv(env="CartPole-v1", requirements=["numpy>=1", "no-such-package-of-ours>=2", "gymnasium>=99"])
    with pytest.raises(StartError, match=r"no-such-package-of-ours.*gymnasium.*pip install") as caught:
        env.start()
    assert caught.value.phase == "checking"
    with RemoteEnv(env="CartPole-v1", requirements=["numpy>=1", "gymnasium"]) as env:
        env.reset(seed=0)


# The status line


def run_on_a_terminal(code: str, *, columns: int, stdout: Any = None) -> str:
    """What `code` writes to standard error when that is a terminal of this width."""
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=stdout, stderr=theirs, env=environment)
    os.close(theirs)
    written = io.BytesIO()
    try:
        while chunk := os.read(ours, 65536):
            written.write(chunk)
    except OSError:
        pass  # the terminal's end, as Linux tells it
    finally:
        os.close(ours)
    assert done.wait(30) == 0
    return written.getvalue().decode()


def test_a_terminal_shows_one_line_that_is_removed() -> None:
    code = (
        "from remote_env import RemoteEnv\nimport time\n"
        "from remote_env.env.progress import StartProgress\n"
        "with StartProgress('a task on box', 60.0) as progress:\n"
        "    progress.report('building', 'compiling [bold]shaders[/] ' + 'x' * 300)\n"
        "    time.sleep(0.7)\n"
    )
    shown = run_on_a_terminal(code, columns=60)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "a task on box: building, 0 s · compiling [bold]shaders[/]" in plain
    assert shown.count("building") <= 6  # not more than a few times a second
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 60
    assert shown.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h"))  # the line is erased, the cursor is back


def test_what_is_printed_meanwhile_goes_where_it_should(tmp_path: Path) -> None:
    code = (
        "from remote_env.env.progress import StartProgress\n"
        "with StartProgress('a task on box', 60.0, on_progress=print) as progress:\n"
        "    progress.report('building')\n"
    )
    with (tmp_path / "out").open("w") as out:
        run_on_a_terminal(code, columns=60, stdout=out)
    assert (tmp_path / "out").read_text() == "building\n"


def test_a_question_for_a_secret_is_not_drawn_over() -> None:
    code = (
        "import sys, time\nfrom remote_env import RemoteEnv\nfrom remote_env.env.progress import REDRAWS_PER_S\n"
        "def ask(prompt):\n"
        "    print('Password: ', end='', file=sys.stderr, flush=True)\n    time.sleep(2 / REDRAWS_PER_S)\n"
        "    print('<typed>', file=sys.stderr, flush=True)\n"
        "env = RemoteEnv('box', env='CartPole-v1', ask_secret=ask)\n"
        "with env._life._reporting():\n    env._life._ask_secret(None)\n"
    )
    shown = run_on_a_terminal(code, columns=60)
    assert "Password: <typed>" in shown
    assert shown.count("connecting") >= 2  # the line was there before, and is again


def test_without_a_terminal_nothing_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    with RemoteEnv(env="CartPole-v1"):
        pass
    assert capfd.readouterr().err == ""


def test_a_start_can_be_asked_about_from_another_thread(isolated_home: Path) -> None:
    import threading

    gate = isolated_home / "gate"
    env = RemoteEnv(env=TASK, env_kwargs={"init": f"until:{gate}"})
    thread = threading.Thread(target=env.start)
    thread.start()
    wait_until(lambda: env.status().get("phase") == "building", "the task is being built")
    assert env.status()["state"] == "starting"
    gate.touch()
    thread.join(20)
    assert env.status()["state"] == "ready"
    env.close()
    gate.unlink()
