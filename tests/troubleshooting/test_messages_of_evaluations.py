"""What an evaluation tells that stops, goes on, or is not what was meant."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import forkserver, util
from pathlib import Path

import pytest
from leak_check import start_fork_server, wait_until
from quotes import ROOT, produces
from small import SmallPolicy, task_file

from remote_env.cli import main
from remote_env.evaluate import evaluate
from remote_env.evaluate.config import DEFAULT_MODEL, make_config
from remote_env.evaluate.ledger import claim_folder
from remote_env.evaluate.model import find_model
from remote_env.evaluate.policy_host import PolicyHost

util.get_temp_dir()  # multiprocessing's own, which is removed when the interpreter ends
Evaluate = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def fork_server(isolated_home: Path) -> Iterator[None]:
    """Multiprocessing's fork server lives as long as the interpreter; here as long as this module's home."""
    start_fork_server()
    yield
    forkserver._forkserver._stop()


@pytest.fixture
def host(no_leaks: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[PolicyHost]:
    """A small policy, made for 30 Hz, at a server."""
    policy = SmallPolicy()
    policy.metadata = replace(policy.metadata, control_rate_hz=30.0)
    with contextlib.closing(PolicyHost(policy, max_batch=1, log=lambda _: None)) as host:
        monkeypatch.setenv("REMOTE_ENV_TOKEN", host.token)
        yield host


def words_for(host: PolicyHost, task: str, folder: Path) -> list[str]:
    words = ["eval", "-m", host.address, "-e", task, "-o", str(folder), "--num_rollout=1", "--num_envs=1"]
    return [*words, "--video=none", "--no_plots"]


@pytest.fixture
def evaluated(host: PolicyHost, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """The line with these words that `remote-env eval` prints."""

    def run(task: str, words: str, *flags: str) -> str:
        main([*words_for(host, task, tmp_path / "out"), *flags])
        output, complaints = capsys.readouterr()
        return next(line for line in (output + complaints).splitlines() if words in line)

    return run


@produces("ConfigError: -e …: no such environment; did you mean …? Bundled are: …")
def test_an_environment_that_there_is_not() -> None:
    evaluate(make_config({"envs": "alhoa"}))


@produces("ConfigError: another evaluation writes into … now; wait for its end, or give another -o")
def test_two_evaluations_at_once_in_one_folder(tmp_path: Path) -> None:
    with claim_folder(tmp_path, "continue"), claim_folder(tmp_path, "continue"):
        pass


@produces("ConfigError: no -m is given, and the default …, which comes with the repository, is not in …; …")
def test_the_default_checkpoint_outside_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_env.evaluate.model.__file__", str(tmp_path / "a" / "b" / "model.py"))
    monkeypatch.chdir(tmp_path)
    find_model(DEFAULT_MODEL)


@produces("warning: …, episode … (seed …): failed after … steps: …")
def test_an_episode_that_the_task_gives_up(evaluated: Evaluate, tmp_path: Path) -> str:
    return evaluated(task_file(tmp_path, fault="give up", at_seed=0), "failed after")


@produces(
    "ConfigError: … holds another evaluation: …. Give another -o, or --fresh to remove what is there and begin anew"
)
def test_another_evaluation_in_the_same_folder(host: PolicyHost, evaluated: Evaluate, tmp_path: Path) -> None:
    task = task_file(tmp_path)
    assert "3 of 3" in evaluated(task, "3 of 3", "--num_rollout=3")
    given = {"model": host.address, "envs": task, "output_dir": tmp_path / "out", "seed": 7}
    evaluate(make_config(given))


@produces("ConfigError: --resume: … holds no episodes.jsonl to go on with; …")
def test_nothing_to_resume(host: PolicyHost, tmp_path: Path) -> None:
    given = {"model": host.address, "envs": task_file(tmp_path), "output_dir": tmp_path / "out", "begin": "resume"}
    evaluate(make_config(given))


@produces("warning: …, episode … (seed …): the worker was killed by …; the episode is run again")
def test_a_worker_that_is_killed(evaluated: Evaluate, tmp_path: Path) -> str:
    task = task_file(tmp_path, fault="kill", at_seed=0, once=tmp_path / "once")
    return evaluated(task, "the worker was killed")


@produces("TaskError: …: the worker was killed by …, 2 times. It said last (…workers.log): …")
def test_an_episode_that_kills_its_workers(host: PolicyHost, tmp_path: Path) -> None:
    given = {"model": host.address, "envs": task_file(tmp_path, fault="kill", at_seed=0), "num_rollout": 1}
    evaluate(make_config({**given, "output_dir": tmp_path / "out", "video": "none", "plots": False}))


@produces("stopped: … of … episodes are kept; the same again with -o … goes on there")
def test_an_evaluation_that_is_interrupted(host: PolicyHost, tmp_path: Path) -> str:
    command = [sys.executable, "-m", "remote_env", *words_for(host, task_file(tmp_path), tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*command, "--num_rollout=20000"], cwd=ROOT, start_new_session=True, **pipes) as process:
        ledger = tmp_path / "out" / "episodes.jsonl"
        wait_until(lambda: ledger.exists() and ledger.read_text().count("\n") > 2, "episodes", 30.0)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C
        said, _ = process.communicate(timeout=30)
    return next((line for line in said.splitlines() if line.startswith("stopped")), said)


@produces("warning: the policy was made for … Hz and --fps is …")
def test_another_rate(evaluated: Evaluate, tmp_path: Path) -> str:
    return evaluated(task_file(tmp_path), "was made for")


@produces("warning: device='…' is ignored: the policy at … runs where its server put it")
def test_a_device_for_a_server(evaluated: Evaluate, tmp_path: Path) -> str:
    return evaluated(task_file(tmp_path), "is ignored", "--device", "cuda")
