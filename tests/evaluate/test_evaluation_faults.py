"""What is killed, cut, stopped or full in an evaluation: a clear error, what was done is kept, and it continues."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from full_disk import file_size_limit
from leak_check import wait_until
from server_process import ServerProcess, serving
from small import HERE, SmallPolicy, task_file

from remote_env.errors import CaptureError, ConnectError, ConnectionLost, DeadlineExceeded, PolicyError, TaskError
from remote_env.evaluate import Results, evaluate
from remote_env.evaluate.config import make_config
from remote_env.evaluate.episodes import EpisodeResult
from remote_env.evaluate.policy_host import PolicyHost
from remote_env.evaluate.pool import bare_start
from remote_env.evaluate.telling import Silent

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("fork_server")]

ROOT = Path(__file__).parents[2]


class Listener(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.said: list[str] = []
        self.on_episode: Any = lambda result: None

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, result: EpisodeResult) -> None:
        self.on_episode(result)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def host(no_leaks: object) -> Iterator[PolicyHost]:
    with contextlib.closing(PolicyHost(SmallPolicy(), max_batch=1, log=lambda _: None)) as host:
        yield host


def run(host: PolicyHost, task: str, folder: Path, listener: Listener, **settings: Any) -> Results:
    usual = {"model": host.address, "token": host.token, "envs": task, "output_dir": folder, "num_rollout": 6}
    return evaluate(make_config({**usual, "video": "none", "plots": False, **settings}), listener)


def ledger_keys(folder: Path) -> set[int]:
    lines = (folder / "episodes.jsonl").read_text().splitlines()[1:]
    return {json.loads(line)["index"] for line in lines}


def test_the_episode_of_a_killed_worker_is_run_again_and_told(host, tmp_path, listener):
    task = task_file(tmp_path, fault="kill", at_seed=3, once=tmp_path / "once")
    results = run(host, task, tmp_path / "out", listener)
    assert results.complete
    assert [episode.attempts for episode in results.episodes] == [1, 1, 1, 2, 1, 1]
    assert listener.warnings == [
        "small, episode 3 (seed 3): the worker was killed by SIGKILL; the episode is run again"
    ]


def test_an_episode_that_kills_two_workers_ends_the_evaluation(host, tmp_path, listener):
    task = task_file(tmp_path, fault="kill", at_seed=4)
    with pytest.raises(TaskError, match=r"episode 4 .* was killed by SIGKILL, 2 times") as raised:
        run(host, task, tmp_path / "out", listener)
    assert "about to kill" in str(raised.value)
    assert ledger_keys(tmp_path / "out") & {0, 1, 2, 3}  # the other worker may be slow, at one of them
    assert any("the same again with -o" in line for line in listener.said)


def test_an_environment_that_raises_ends_the_evaluation_and_a_second_run_goes_on(host, tmp_path, listener):
    task = task_file(tmp_path, fault="raise", at_seed=3, once=tmp_path / "once")
    with pytest.raises(TaskError, match="small, episode 3: RuntimeError: the gripper fell off") as raised:
        run(host, task, tmp_path / "out", listener, num_envs=1)
    assert "in _fail" in raised.value.remote_traceback
    assert ledger_keys(tmp_path / "out") == {0, 1, 2}
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (written["complete"], written["total"]["episodes"], written["planned"]) == (False, 3, 6)
    results = run(host, task, tmp_path / "out", listener, num_envs=1, begin="resume")
    assert results.complete
    assert results.run_now == 3
    straight = run(host, task, tmp_path / "straight", listener)
    assert [each.outcome for each in results.episodes] == [each.outcome for each in straight.episodes]


def test_an_episode_that_the_task_gives_up_has_failed_and_the_others_are_run(host, tmp_path, listener):
    task = task_file(tmp_path, fault="give up", at_seed=2)
    results = run(host, task, tmp_path / "out", listener, num_envs=1, num_rollout=4)
    assert results.complete
    given_up = results.episodes[2]
    assert (given_up.success, given_up.length, given_up.end) == (False, 1, "error")
    assert [episode.end for episode in results.episodes[:2]] == ["truncated"] * 2
    assert listener.warnings == ["small, episode 2 (seed 2): failed after 1 steps: the simulation became unstable"]


def test_an_episode_that_hangs_is_ended_and_tried_once_more(host, tmp_path, listener):
    task = task_file(tmp_path, fault="hang", at_seed=1, once=tmp_path / "once")
    results = run(host, task, tmp_path / "out", listener, episode_timeout_s=2.0, num_rollout=2)
    assert results.complete
    assert results.episodes[1].attempts == 2
    assert "took longer than 2 s" in listener.warnings[0]


def test_an_episode_that_always_hangs_is_an_error(host, tmp_path, listener):
    task = task_file(tmp_path, fault="hang", at_seed=1)
    with pytest.raises(DeadlineExceeded, match=r"took longer than 0\.3 s, 2 times"):
        run(host, task, tmp_path / "out", listener, episode_timeout_s=0.3, num_rollout=1, seed=1)


def test_a_policy_that_raises_ends_the_evaluation_with_its_traceback(tmp_path, listener):
    host = PolicyHost(SmallPolicy(fails=True), max_batch=1, log=lambda _: None)
    with contextlib.closing(host), pytest.raises(PolicyError, match="the weights are gone") as raised:
        run(host, task_file(tmp_path), tmp_path / "out", listener)
    assert "in infer" in raised.value.remote_traceback


def test_a_policy_server_that_is_gone_ends_the_evaluation_and_what_was_done_is_kept(tmp_path, listener):
    host = PolicyHost(SmallPolicy(), max_batch=1, log=lambda _: None)
    listener.on_episode = lambda result: host.close() if result.index == 2 else None
    with pytest.raises((ConnectionLost, ConnectError), match=r"127\.0\.0\.1"):
        run(host, task_file(tmp_path), tmp_path / "out", listener, num_envs=1, num_rollout=300, reconnect_timeout_s=0.3)
    assert ledger_keys(tmp_path / "out") >= {0, 1, 2}
    assert any("the same again with -o" in line for line in listener.said)


@pytest.fixture
def task_server(no_leaks: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    with serving(f"{HERE}:make", max_sessions=1) as server:
        monkeypatch.setenv("REMOTE_ENV_TOKEN", server.token)
        yield server


def test_a_task_server_with_fewer_sessions_is_used_as_far_as_it_goes(host, task_server, tmp_path, listener):
    results = run(host, f"localhost:{task_server.port}", tmp_path / "out", listener, num_rollout=8, num_envs=3)
    assert results.complete
    assert len({episode.index for episode in results.episodes}) == 8
    assert {episode.attempts for episode in results.episodes} == {1}
    assert "session(s) of this server are taken" in listener.warnings[-1]
    assert "going on with 1 side by side" in listener.warnings[-1]


def test_no_task_server_is_told(host, tmp_path, listener):
    with pytest.raises(ConnectError, match=r"127\.0\.0\.1:9"):
        run(host, "127.0.0.1:9", tmp_path / "out", listener)


def test_no_policy_server_is_told_before_anything_starts(tmp_path, listener):
    with pytest.raises(ConnectError, match="127"):
        evaluate(make_config({"model": "127.0.0.1:9", "token": "0" * 64, "output_dir": tmp_path / "out"}), listener)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_and_the_episodes_before_are_kept(host, tmp_path, listener):
    task, out = task_file(tmp_path), tmp_path / "out"
    run(host, task, out, listener, num_rollout=2)
    room = (out / "episodes.jsonl").stat().st_size + 100
    with file_size_limit(room), pytest.raises(CaptureError, match=r"episodes\.jsonl cannot be written.*make room"):
        run(host, task, out, listener)
    results = run(host, task, out, listener)  # the torn line is run again
    assert results.complete
    assert results.run_now == 4


def started(host: PolicyHost, folder: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "remote_env", "eval", "-m", host.address, "-e", "small.yaml", "-o", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REMOTE_ENV_TOKEN": host.token}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        [*command, "--video=none", "--no_plots", *flags],
        cwd=folder,
        env=environment,
        text=True,
        start_new_session=True,
        **pipes,
    )


def wait_for_episodes(folder: Path, count: int) -> None:
    ledger = folder / "out" / "episodes.jsonl"
    wait_until(lambda: ledger.exists() and len(ledger.read_text().splitlines()) > count, "episodes", 60.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_a_stopped_command_has_done_is_kept_and_no_process_is_left(host, tmp_path, listener, number):
    task_file(tmp_path)
    with started(host, tmp_path, "--num_rollout=20000") as process:
        wait_for_episodes(tmp_path, 2)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal's Ctrl-C
        else:
            process.kill()
        said, _ = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130, said
        assert "the same again with -o out goes on there" in said
        assert "Traceback" not in said
    wait_until(lambda: not group_lives(process.pid), "the group's end", 20.0)
    assert list(Path(tempfile.gettempdir()).glob("pymp-*")) == []  # multiprocessing's, with a socket
    if number == signal.SIGINT:
        return
    done = len(ledger_keys(tmp_path / "out"))
    results = run(host, str(tmp_path / "small.yaml"), tmp_path / "out", listener, num_rollout=done + 1, begin="resume")
    assert (results.complete, results.run_now) == (True, 1)
    assert f"{done} of {done + 1} episodes are in {tmp_path}/out/episodes.jsonl already" in listener.said


def test_a_worker_that_starts_is_spared_ctrl_c_and_the_program():
    main = sys.modules["__main__"]
    with bare_start():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert not hasattr(sys.modules["__main__"], "__file__")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert sys.modules["__main__"] is main


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
