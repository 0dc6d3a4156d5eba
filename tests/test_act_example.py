"""The road of examples/act as far as it needs no torch, and the checkpoint at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from remote_env.policy.loading import load_policy
from remote_env.policy.observation import ObservationMapping
from remote_env.tasks import register_tasks
from remote_env.tasks.aloha_model import ACTION_NAMES

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "act"
CHECKPOINT = ROOT / "ckpt" / "act_sim_transfer_cube_scripted_zscore_example"
sys.path.insert(0, str(EXAMPLE))

from demonstrations import SMALLEST_STD, load_demonstrations  # noqa: E402


def run(program: str, *arguments: str, home: Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / program), *arguments]
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=90, check=False)


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("act")
    path = folder / "demonstrations.npz"
    done = run("collect.py", "--episodes", "2", "--output", str(path), home=folder)
    assert done.returncode == 0, done.stderr
    assert "2 episodes are in" in " ".join(done.stderr.split())
    return path


def test_demonstrations_are_the_experts_plans_from_seeds_that_no_evaluation_uses(collected: Path) -> None:
    with np.load(collected) as file:
        assert file["states"].shape == (2, 301, 41)
        assert file["actions"].shape == (2, 300, 14)
        assert {file[name].dtype for name in ("states", "actions")} == {np.dtype(np.float32)}
        assert file["seeds"].min() >= 1_000_000
        assert tuple(file["action_names"]) == ACTION_NAMES


def test_a_chunk_is_what_the_plan_holds_from_its_step_on(collected: Path) -> None:
    episodes = load_demonstrations(collected, chunk_size=64)
    with np.load(collected) as file:
        states, actions = file["states"], file["actions"]
    state, chunk = episodes.take(np.array([0, 1]), np.array([10, 299]))
    np.testing.assert_array_equal(state, [states[0, 10], states[1, 299]])
    np.testing.assert_array_equal(chunk[0], actions[0, 10:74])
    np.testing.assert_array_equal(chunk[1], np.repeat(actions[1, -1:], 64, axis=0))  # the last one is held


def test_normalised_numbers_have_mean_zero_and_can_be_told_apart(collected: Path) -> None:
    episodes = load_demonstrations(collected, chunk_size=64)
    normalizer = episodes.normalizer()
    normalized = episodes.normalized(normalizer)
    np.testing.assert_allclose(normalized.states.reshape(-1, 41).mean(axis=0), 0, atol=1e-3)
    moves = episodes.states.reshape(-1, 41).std(axis=0) > SMALLEST_STD
    np.testing.assert_allclose(normalized.states.reshape(-1, 41).std(axis=0)[moves], 1, rtol=1e-3)
    assert normalizer.to_plain()["kind"] == "zscore"


def test_held_out_episodes_are_not_learnt_from(collected: Path) -> None:
    training, validation = load_demonstrations(collected, chunk_size=64).split(0.05, seed=0)
    assert training.num_episodes == validation.num_episodes == 1
    assert not np.array_equal(training.states, validation.states)


def test_the_checkpoint_is_small_and_says_what_it_takes_and_gives() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 4_000_000
    with load_policy(CHECKPOINT) as policy:
        metadata = policy.metadata
    assert (metadata.chunk_size, metadata.control_rate_hz) == (64, 50)
    assert metadata.action_names == ACTION_NAMES
    assert metadata.normalizer == "zscore:sim_transfer_cube_scripted"
    register_tasks()
    with gymnasium.make(metadata.extra["env"], **metadata.extra["env_kwargs"]) as env:
        names = env.get_wrapper_attr("state_names")
        assert metadata.observation["state"].names == names
        ObservationMapping.between(env.observation_space, metadata, state_names=names)


def test_the_checkpoint_passes_the_cube_on(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = run("measure.py", str(CHECKPOINT), "--episodes", "3", "--json", str(figures), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "horizon 64: 3 of 3 = 100.0%" in done.stdout
    assert json.loads(figures.read_text())[0]["failed_seeds"] == []


def test_a_checkpoint_that_is_not_there_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    done = run("measure.py", str(tmp_path / "nowhere"), home=tmp_path)
    assert done.returncode == 1
    assert "error: no policy" in done.stderr
    assert "Traceback" not in done.stderr


WILD = """
import numpy as np
from remote_env.policy import Feature, Policy, PolicyMetadata


class Wild(Policy):
    metadata = PolicyMetadata(
        name="wild",
        observation={"state": Feature("state", (41,))},
        action_names=tuple(map(str, range(14))),
        chunk_size=64,
    )

    def infer(self, observation, *, episode_ids):
        return np.random.default_rng(0).choice(np.float32([-1e6, 1e6]), (1, 64, 14))
"""


def test_a_policy_that_wrecks_the_simulation_fails_and_the_next_episode_begins(tmp_path: Path) -> None:
    (tmp_path / "wild.py").write_text(WILD)
    done = run("measure.py", f"{tmp_path}/wild.py:Wild", "--episodes", "2", home=tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 = 0.0%" in done.stdout
    assert "failed: [0, 1]" in done.stdout


@pytest.mark.parametrize("program", ["train.py", "export.py"])
def test_without_torch_it_says_where_to_read_how_to_get_it(program: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    command = [
        sys.executable,
        "-c",
        f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); "
        f"sys.path.insert(1, {str(EXAMPLE)!r}); sys.argv = [{program!r}]; "
        f"runpy.run_path({str(EXAMPLE / program)!r}, run_name='__main__')",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "error: No module named 'torch'; it takes an environment of its own: see examples/act/README.md\n"
    )
