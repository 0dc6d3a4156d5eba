"""A start that can be watched: its phases, what it requires, and its death in each of them, told at once."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from leak_check import is_alive, wait_until
from server_process import BareClient, ServerProcess

from remote_env.errors import ConfigError
from remote_env.protocol import frames
from remote_env.protocol.handshake import pack_link
from remote_env.server.requirements import MissingRequirements, check_requirements

TASK = "tasks_for_tests.slow:Slow"
PHASES = ["starting", "checking", "importing", "building"]


@contextmanager
def started(build: str = "", **settings: Any) -> Iterator[ServerProcess]:
    """A server that listens; its simulator has only just been started."""
    server = ServerProcess(settings.pop("env", TASK), {"build": build} if build else {}, **settings)
    try:
        yield server.wait_listening()
    finally:
        server.stop()


def events_until(client: BareClient, state: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while not found or found[-1]["state"] != state:
        header, message = client.recv()
        assert header.type == frames.EVENT
        found.append(message)
    return found


def test_each_phase_is_told_with_its_age_and_the_log(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with started(f"say:loading the stage;until:{gate}") as server, BareClient(server) as client:
        client.shake_hands(session="new")
        wait_until(lambda: client.ask(frames.STATUS).get("phase") == "building", "it builds")
        wait_until(lambda: client.ask(frames.STATUS)["last_line"] == "loading the stage", "the log is told")
        status = client.ask(frames.STATUS)
        assert 0 <= status["since_s"] <= status["age_s"] <= status["uptime_s"]
        assert status["log_tail"].endswith("loading the stage")
        gate.touch()
        client.wait_event("ready")


def test_the_phases_come_in_order(tmp_path: Path) -> None:
    with started(f"until:{tmp_path / 'gate'}") as server, BareClient(server) as client:
        client.shake_hands(session="new")
        (tmp_path / "gate").touch()
        seen = list(dict.fromkeys(event.get("phase", "") for event in events_until(client, "ready")))
        # Two that end within one turn of the supervisor are told as the later one.
        assert seen == [*(phase for phase in PHASES if phase in seen), ""]
        assert "building" in seen


@pytest.mark.parametrize(
    ("deed", "why", "detail"),
    [
        ("exit", "it exited with status 3 while building", {"exit_status": 3}),
        ("segv", "it was killed by SIGSEGV while building", {"signal": "SIGSEGV"}),
        ("kill", "it was killed by SIGKILL while building", {"signal": "SIGKILL"}),
    ],
)
def test_death_while_building_is_told_at_once(tmp_path: Path, deed: str, why: str, detail: dict[str, Any]) -> None:
    gate = tmp_path / "gate"
    with started(f"bar:20;until:{gate};{deed}") as server, BareClient(server) as client:
        client.shake_hands(session="new")
        wait_until(lambda: client.ask(frames.STATUS).get("phase") == "building", "it builds")
        gate.touch()
        dead = client.wait_event("dead")  # unasked
        assert dead["why"].partition(":")[0] == why
        assert dead["phase"] == "building"
        assert detail.items() <= dead.items()
        assert "loading: 100%|" in dead["log_tail"]
        assert "loading:   0%|" not in dead["log_tail"]
        assert f"not ready: {dead['why']}" in server.http("/healthz")


@pytest.mark.parametrize("phase", ["starting", "importing"])
def test_death_before_the_task_is_told_at_once(phase: str, tmp_path: Path) -> None:
    # A module that blocks its import stands for a slow one; before Python runs, a shell does.
    env = "tasks_for_tests.slow:Slow"
    settings: dict[str, Any] = {}
    if phase == "importing":
        (tmp_path / "slow_import.py").write_text("import time\ntime.sleep(60)\n")
        settings, env = {"python_path": [str(tmp_path)]}, "slow_import:make"
    with started(env=env, **settings) as server, BareClient(server) as client:
        client.shake_hands(session="new")
        pid = client.ask(frames.STATUS)["pid"]
        if phase == "importing":
            wait_until(lambda: client.ask(frames.STATUS)["phase"] == phase, "it imports")
        os.kill(pid, signal.SIGKILL)
        dead = client.wait_event("dead")
        assert "it was killed by SIGKILL while " in dead["why"]
        assert dead["phase"] in PHASES if phase == "starting" else dead["phase"] == phase
        assert dead["killed_by"].startswith(("not by this server", "probably", "by the out"))


def test_a_failure_of_whatever_size_is_told_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "wordy.py").write_text(
        "class Wordy(Exception):\n"
        "    def __str__(self):\n"
        "        return '\\U0001f600\\udcff' * (1 << 20)\n"
        "def make():\n"
        "    print('\\U0001f600' * (1 << 20), flush=True)\n"
        "    raise Wordy\n"
    )
    with started(env="wordy:make", python_path=[str(tmp_path)]) as server, BareClient(server) as client:
        client.shake_hands(session="new")
        failed = client.wait_event("failed")
        assert failed["kind"] == "Wordy"
        assert re.search(r"… \d+ characters …", failed["message"])
        client.send(pack_link(frames.STATUS, {}))
        header, status = client.recv()
        while header.type != frames.REPLY:
            header, status = client.recv()
        assert status["message"] == failed["message"]
        assert header.body_size < frames.MAX_LINK_BODY_SIZE


def test_a_failure_that_cannot_be_printed_is_told(tmp_path: Path) -> None:
    (tmp_path / "mute.py").write_text(
        "class Mute(Exception):\n    def __str__(self):\n        return 1 / 0\ndef make():\n    raise Mute\n"
    )
    with started(env="mute:make", python_path=[str(tmp_path)]) as server, BareClient(server) as client:
        client.shake_hands(session="new")
        failed = client.wait_event("failed")
        assert failed["message"] == "(its text cannot be had: ZeroDivisionError)"


def test_death_when_ready_names_the_call(tmp_path: Path) -> None:
    with started() as server, BareClient(server) as client:
        client.shake_hands(session="new")
        client.wait_event("ready")
        os.kill(client.ask(frames.STATUS)["pid"], signal.SIGTERM)
        dead = client.wait_event("dead")
        assert dead["why"] == "it was killed by SIGTERM"
        assert dead["call"] == "nothing"
        assert client.ask(frames.STATUS)["why"] == dead["why"]


def test_missing_requirements_are_named_with_the_command() -> None:
    wanted = [
        "numpy>=99",
        "no-such-package[extra]>=1",
        "gymnasium",
        "x; python_version < '3'",
        "numpy @ https://x.org/a",
    ]
    with started(requirements=wanted) as server, BareClient(server) as client:
        client.shake_hands(session="new")
        failed = client.wait_event("failed")
        assert failed["kind"] == "MissingRequirements"
        assert failed["phase"] == "checking"
        assert "numpy>=99 (" in failed["message"]
        assert "no-such-package[extra]>=1 (not installed)" in failed["message"]
        command = f"{sys.executable} -m pip install 'numpy>=99' 'no-such-package[extra]>=1'"
        assert failed["message"].endswith(command)
        assert "MissingRequirements in checking" in server.http("/healthz")
        pid = failed["pid"]
        wait_until(lambda: not is_alive(pid), "the simulator ends")


def test_requirements_that_are_met() -> None:
    check_requirements(["numpy", "NumPy >= 1.26", "gymnasium!=0.1", "x ; extra == 'y'"])
    check_requirements(["# as in a file", "", "numpy>=1.26  # why", "gymnasium\n"])


def test_what_is_no_requirement_is_said() -> None:
    for wrong in ("numpy =", "-r more.txt", "git+https://example.org/x", "x; python_version ~= '3'"):
        with pytest.raises(ConfigError, match=f"has {re.escape(repr(wrong))}, which is no requirement"):
            check_requirements([wrong])
    with pytest.raises(MissingRequirements, match="not installed"):
        check_requirements(["no-such-package"])
