"""`remote-env eval` and the examples as a user runs them, and what an evaluation leaves to look at."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small import SmallPolicy, task_file

from remote_env import cli
from remote_env.evaluate import Results, evaluate
from remote_env.evaluate.config import make_config
from remote_env.evaluate.policy_host import PolicyHost
from remote_env.replay import replay_episode

pytestmark = pytest.mark.usefixtures("fork_server")
ROOT = Path(__file__).parents[2]
EXPERT = "scripted:aloha-transfer-cube"
SHORT: dict[str, Any] = {"max_steps": 66, "num_rollout": 2, "chunk_size": 64, "video": "first"}  # two inferences


@pytest.fixture
def host(no_leaks: object) -> Iterator[PolicyHost]:
    with contextlib.closing(PolicyHost(SmallPolicy(), max_batch=1, log=lambda _: None)) as host:
        yield host


def run(folder: Path, **settings: Any) -> Results:
    return evaluate(
        make_config(
            {"model": EXPERT, "output_dir": folder, "num_rollout": 1, "num_envs": 1, "plots": False, **settings}
        )
    )


def test_the_command_shows_a_table_and_where_results_are(host, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REMOTE_ENV_TOKEN", host.token)
    words = ["eval", "-m", host.address, "-e", task_file(tmp_path), "--num-rollout", "3", "--num_envs", "1"]
    assert cli.main([*words, "-o", str(tmp_path / "out"), "--video=none", "--seed=1", "-v"]) == 0
    said = capsys.readouterr().out
    assert "2 of 3" not in said  # with -v each episode has a line of its own
    assert "small episode 1 (seed 2): success" in said
    assert "ENVIRONMENT" in said
    assert "1/3 = 33.3 %" in said
    assert str(tmp_path / "out") in said


def test_flags_win_over_the_file(host, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REMOTE_ENV_TOKEN", host.token)
    name, _, port = host.address.rpartition(":")
    path = tmp_path / "eval.yaml"
    path.write_text(
        f"server: {{host: {name}, port: {port}}}\n"
        f"evaluation: {{env: {task_file(tmp_path)}, num_rollout: 5, seed: 3, video: none}}\n"
    )
    words = ["eval", "--config", str(path), "--num_rollout", "1", "-o", str(tmp_path / "out")]
    assert cli.main(words) == 0
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [episode["seed"] for episode in written["episodes"]] == [3]
    assert "1 of 1 episodes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_rolout", "3"], "did you mean --num_rollout?"),
        (["--chunk-sise=3"], "did you mean --chunk-size?"),
        (["--num_rol", "3"], "unrecognized arguments: --num_rol 3"),
        (["--resume", "--fresh"], "not allowed with"),
    ],
)
def test_unknown_flags_are_errors(words, message, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["eval", *words])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_environment_is_one_line_and_status_1(capsys):
    assert cli.main(["eval", "-e", "alhoa"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: -e alhoa: no such environment; did you mean aloha?")
    assert said.count("\n") == 1


def test_a_checkpoint_that_is_not_there_is_told(tmp_path, capsys):
    assert cli.main(["eval", "-m", str(tmp_path / "nothing"), "-o", str(tmp_path / "out")]) == 1
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_flags_of_checkpoints_are_ignored_with_a_warning_at_a_server(host, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("REMOTE_ENV_TOKEN", host.token)
    words = ["eval", "-m", host.address, "-e", task_file(tmp_path), "--num_rollout=1", "--video=none"]
    assert cli.main([*words, "-o", str(tmp_path / "out"), "--device", "cuda", "--dataset_id", "mine"]) == 0
    said = capsys.readouterr().out
    assert "warning: device='cuda' is ignored" in said
    assert "warning: dataset_id='mine' is ignored" in said


def test_the_examples_teach_and_hold_the_client():
    code = "from eval_remote import RemotePolicyClient; print(RemotePolicyClient.__name__); import runpy, sys; "
    code += "sys.argv[1:] = ['--help']; runpy.run_path('eval_sim.py', run_name='__main__')"
    command, folder = [sys.executable, "-c", code], ROOT / "examples"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    name, _, shown = done.stdout.partition("\n")
    assert name == "RemotePolicyClient"
    flags = ("-m", "-e", "--num_rollout", "--num-rollout", "--num_envs", "--chunk_size", "--fps", "--use_spawn")
    for flag in (*flags, "--output_dir", "--dataset_id", "--device", "--seed", "--resume", "--asynchronous", "--video"):
        assert flag in shown
    assert "--token_file" in shown
    assert "--token " not in shown  # everybody who lists processes would read it
    assert "remote-env eval -m localhost:5000" in shown


@pytest.fixture(scope="module")
def here(fork_server, tmp_path_factory):
    """Two episodes of ALOHA in workers of this machine, the first with a video."""
    return run(tmp_path_factory.mktemp("here"), **SHORT)


def test_the_first_episode_is_shown_from_its_scene_states(here):
    (video,) = here.videos
    assert video.name == "aloha_0000_failure.mp4"
    assert video.stat().st_size > 1000
    capture = video.parents[1] / "captures" / "aloha_0000.hdf5"
    report = replay_episode(capture, _model(), processes=1, width=64, height=48)
    assert (report.fidelity.states, report.fidelity.max_position_error_m) == (SHORT["max_steps"] + 1, 0.0)


def _model() -> Any:
    from remote_env.tasks.aloha_model import aloha_model_path

    return aloha_model_path("transfer_cube")


def test_failed_episodes_without_scene_states_are_played_again(host, tmp_path):
    settings = {"model": host.address, "token": host.token, "envs": task_file(tmp_path), "num_rollout": 3}
    results = run(tmp_path / "out", **settings, video="failed")
    assert [video.name for video in results.videos] == ["small_0001_failure.mp4"]
    assert results.notes == ()


def test_fresh_removes_what_was_there_and_nothing_else(host, tmp_path):
    settings = {"model": host.address, "token": host.token, "envs": task_file(tmp_path)}
    run(tmp_path / "out", **settings, video="all")
    (tmp_path / "out" / "mine.txt").touch()
    results = run(tmp_path / "out", **settings, video="none", seed=1, begin="fresh")
    assert [episode.seed for episode in results.episodes] == [1]
    assert list((tmp_path / "out" / "videos").iterdir()) == []
    assert (tmp_path / "out" / "mine.txt").exists()


def test_asking_ahead_runs_every_episode_and_reports_what_it_cost(host, tmp_path):
    settings = {"model": host.address, "token": host.token, "envs": task_file(tmp_path), "video": "none"}
    results = run(tmp_path, **settings, num_rollout=3, asynchronous=True, chunk_size=2)
    assert [episode.length for episode in results.episodes] == [5, 5, 5]
    assert all(episode.details["actions"] == 5 for episode in results.episodes)
    assert results.latencies_ms


def test_the_loop_beside_the_simulator_gives_the_same_to_the_bit(here, tmp_path):
    there = run(tmp_path, **{**SHORT, "video": "none"}, rollout="server")
    assert [episode.outcome for episode in here.episodes] == [episode.outcome for episode in there.episodes]


def test_a_simulator_in_a_server_of_its_own_gives_the_same_to_the_bit(here, tmp_path):
    path = tmp_path / "aloha.yaml"
    path.write_text("env: aloha\nhost: local\n")
    served = run(tmp_path / "served", envs=str(path), **SHORT)
    assert [episode.outcome[1:] for episode in served.episodes] == [episode.outcome[1:] for episode in here.episodes]
    assert len(served.videos) == 1
