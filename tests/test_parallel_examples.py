"""The examples that train here and validate there, and that collect with several servers at once."""

from __future__ import annotations

import csv
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from leak_check import PATIENCE_S, isolated_home, no_leaks

from remote_env.record import Episode, read_episode

__all__ = ["isolated_home", "no_leaks"]

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import collect_parallel
import train_local_validate_remote as training
from replay_tasks import Task


def train(folder: Path, *words: str) -> int:
    short = ["--updates", "2", "--every", "1", "--directions", "3", "--episodes", "3"]
    return training.main(["--env", "CartPole-v1", *short, "--output-dir", str(folder), *words])


def collect(folder: Path, *words: str) -> int:
    return collect_parallel.main(
        ["--task", "CartPole-v1", "--no-states", "--episodes", "5", "--output-dir", str(folder), *words]
    )


def captured(folder: Path) -> dict[int | None, Episode]:
    """The captures by their seed; each seed is there once."""
    episodes = [read_episode(path) for path in sorted(folder.rglob("*.hdf5"))]
    found = {episode.info.seed: episode for episode in episodes}
    assert len(found) == len(episodes)
    return found


# Training


def test_an_interruption_before_the_first_validation_keeps_what_was_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_unused: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "compare", interrupt)
    assert train(tmp_path) == training.INTERRUPTED
    with np.load(tmp_path / "policy.npz") as saved:
        assert np.abs(saved["weights"]).max() > 0


def test_a_policy_that_is_trained_here_does_there_what_it_does_here(tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    with (tmp_path / "validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["update"] for row in rows] == ["1", "2"]
    assert all(row["remote_return"] == row["local_return"] for row in rows)
    with np.load(tmp_path / "policy.npz") as file:
        assert file["weights"].shape == (5, 2)


def test_the_search_finds_a_policy() -> None:
    with gymnasium.make("CartPole-v1") as env:
        learner = training.Learner(env, 8, seed=1)
        for _ in range(3):
            learner.update()
        policy = training.linear_policy(learner.weights(), env.action_space)
        returns = [training.run_episode(env, policy, seed)[0] for seed in range(5)]
    assert np.mean(returns) > 100  # at random 20


def test_tasks_that_a_linear_policy_cannot_do_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--env", "FrozenLake-v1") == 1
    assert "needs observations that are a vector" in capsys.readouterr().err
    assert train(tmp_path, "--env", "NoSuchTask-v0") == 1
    assert "--env NoSuchTask-v0 cannot be made on this machine" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_task_there_has_to_take_the_same_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--remote-env", "Acrobot-v1") == 1
    assert "error: the actions are Discrete(2) here and Discrete(3) there" in capsys.readouterr().err


# Collecting


def test_an_episode_depends_on_its_seed_alone_not_on_the_server(tmp_path: Path) -> None:
    assert collect(tmp_path / "two", "--servers", "2", "--seed", "7") == 0
    assert collect(tmp_path / "one", "--servers", "1", "--seed", "7") == 0
    several, alone = captured(tmp_path / "two"), captured(tmp_path / "one")
    assert set(several) == set(alone) == set(range(7, 12))
    for seed, episode in alone.items():
        np.testing.assert_array_equal(several[seed].actions, episode.actions)
        np.testing.assert_array_equal(several[seed].rewards, episode.rewards)


def test_servers_are_told_apart_by_their_number_in_host_and_port() -> None:
    options = collect_parallel.parse(["--host", "server{i}", "--port", "8888"])
    collectors = [collect_parallel.make_collector(options, Task("CartPole-v1"), number) for number in range(4)]
    arguments = [one.env._arguments for one in collectors]
    assert [(each.host, each.port) for each in arguments] == [(f"server{i}", 8888 + i) for i in range(4)]


@pytest.mark.fault
def test_the_episode_of_a_server_that_is_lost_is_run_by_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = collect_parallel.parse(["--no-states", "--output-dir", str(tmp_path)])
    work, is_killed = collect_parallel.Work(range(4)), threading.Event()

    def expert(_state: Any, _seed: int) -> Any:
        def act(_observation: Any, step: int) -> int:
            if threading.current_thread().name != "server0":
                assert is_killed.wait(PATIENCE_S)
            elif step == 2:
                os.kill(collectors[0].env.status()["pid"], signal.SIGKILL)
                is_killed.set()
            return step % 2

        return act

    task = Task("CartPole-v1", make_expert=lambda: expert)
    collectors = [collect_parallel.make_collector(options, task, number) for number in range(2)]
    collect_parallel.collect(collectors, task, work, options)
    assert work.left == 0
    assert set(captured(tmp_path)) == set(range(4))
    assert (collectors[0].episodes, collectors[1].episodes) == (0, 4)
    assert "server 0 is left out: the simulator is gone: it was killed by SIGKILL" in capsys.readouterr().err


def test_a_stop_leaves_whole_episodes_alone(tmp_path: Path) -> None:
    options = collect_parallel.parse(["--no-states", "--output-dir", str(tmp_path)])
    work = collect_parallel.Work(range(9))

    def expert(_state: Any, seed: int) -> Any:
        def act(_observation: Any, step: int) -> int:
            if (seed, step) == (2, 3):
                work.stop()
            return step % 2

        return act

    task = Task("CartPole-v1", make_expert=lambda: expert)
    collectors = [collect_parallel.make_collector(options, task, 0)]
    collect_parallel.collect(collectors, task, work, options)
    assert (collectors[0].episodes, work.left) == (2, 7)
    assert set(captured(tmp_path)) == {0, 1}
