"""Whole evaluations: real workers, a real policy server, the scripted expert on ALOHA."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from server_process import HandServer

from remote_env.errors import ConfigError
from remote_env.evaluate import Results, evaluate
from remote_env.evaluate.config import make_config

EXPERT = "scripted:aloha-transfer-cube"
pytestmark = pytest.mark.usefixtures("fork_server")
CHECKPOINT = Path(__file__).parents[2] / "ckpt" / "act_sim_transfer_cube_scripted_zscore_example"


def run(folder: Path, **settings: Any) -> Results:
    usual = {"model": EXPERT, "output_dir": folder, "num_rollout": 2, "max_steps": 30, "video": "none", "plots": False}
    return evaluate(make_config({**usual, **settings}))


def outcomes(results: Results) -> list[Any]:
    return [episode.outcome for episode in results.episodes]


@pytest.fixture(scope="module")
def five(fork_server, tmp_path_factory):
    """Five episodes, of seeds from 7, by two workers."""
    return run(tmp_path_factory.mktemp("five"), num_rollout=5, num_envs=2, seed=7)


def test_every_episode_is_run_with_its_own_seed(five):
    results = five
    assert results.complete
    assert [episode.index for episode in results.episodes] == [0, 1, 2, 3, 4]
    assert [episode.seed for episode in results.episodes] == [7, 8, 9, 10, 11]
    assert {(episode.length, episode.end) for episode in results.episodes} == {(30, "max_steps")}
    assert len({episode.actions_digest for episode in results.episodes}) == 5
    assert results.load_s > 0
    assert results.client_peak_bytes > 1 << 20
    assert all(len(episode.latencies_ms) == 1 for episode in results.episodes)


def test_results_are_on_disk_as_json_csv_and_plots(tmp_path):
    results = run(tmp_path / "out", max_steps=None, num_rollout=2, plots=True)
    assert [episode.success for episode in results.episodes] == [True, True]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    aloha = written["environments"]["aloha"]
    assert (aloha["successes"], aloha["judged"], aloha["success_rate"]) == (2, 2, 1.0)
    assert aloha["success_interval_95"][1] == 1.0
    assert aloha["return"]["mean"] > 200
    assert written["total"]["latency_ms"].keys() >= {"p50", "p99"}
    assert written.keys() >= {"client_peak_bytes", "load_s", "wall_s", "config", "model"}
    assert written["config"]["seed"] == 0
    rows = list(csv.DictReader((tmp_path / "out" / "episodes.csv").read_text().splitlines()))
    assert [(row["env"], row["episode"], row["seed"], row["success"]) for row in rows] == [
        ("aloha", "0", "0", "1"),
        ("aloha", "1", "1", "1"),
    ]
    assert {path.name for path in results.plots} == {"success.png", "returns.png", "latency.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in results.plots)


def test_a_checkpoint_gives_the_same_episodes_to_the_bit_here_and_at_its_server(tmp_path):
    settings: dict[str, Any] = {"num_rollout": 3, "max_steps": 150}
    local = run(tmp_path / "local", model=str(CHECKPOINT), **settings)
    with HandServer("-m", str(CHECKPOINT), "--device", "cpu", program="start_policy_server.py") as server:
        server.wait_listening()
        remote = run(tmp_path / "remote", model=f"localhost:{server.port}", **settings)
    assert outcomes(local) == outcomes(remote)
    assert len({episode.actions_digest for episode in local.episodes}) == 3
    assert (local.model["kind"], remote.model["kind"]) == ("local", "remote")
    assert "Client #2" in server.output


def test_spawned_workers_give_the_same(five, tmp_path):
    spawned = run(tmp_path, use_spawn=True, num_rollout=1, seed=7)
    assert outcomes(spawned) == outcomes(five)[:1]


def test_several_environments_one_after_another(tmp_path):
    results = run(tmp_path, envs=("aloha", "aloha"), num_rollout=2)
    assert [episode.env for episode in results.episodes] == ["aloha", "aloha", "aloha#2", "aloha#2"]
    assert outcomes(results)[0][1:] == outcomes(results)[2][1:]


def test_an_environment_that_does_not_fit_is_told_with_both_sides(tmp_path):
    with pytest.raises(ConfigError, match="state") as raised:
        run(tmp_path, envs="Pendulum-v1")
    assert "41" in str(raised.value)
    assert "(3,)" in str(raised.value)
