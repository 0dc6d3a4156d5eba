"""Training and exporting of examples/act, with real torch. Run by make test-ecosystem."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "act"


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(EXAMPLE)
    threads = torch.get_num_threads()
    yield importlib.import_module("train")
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six episodes in which every action is what the state says."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((6, 101, 5), np.float32)
    names = {"state_names": [f"s{index}" for index in range(5)], "action_names": ["a", "b"]}
    path = tmp_path / "demonstrations.npz"
    np.savez_compressed(path, states=states, actions=states[:, :-1, :2], seeds=np.arange(6), **names)
    return path


def train(trainer: Any, data: Path, output: Path, *flags: object) -> int:
    where = ["--data", data, "--output-dir", output, "--batch", 32, "--validation", 0.2]
    status: int = trainer.main([str(word) for word in (*where, *flags)])
    return status


@pytest.mark.parametrize("latent_size", [0, 4])
def test_a_policy_is_trained_and_its_losses_are_kept(
    trainer: Any, data: Path, tmp_path: Path, latent_size: int
) -> None:
    assert train(trainer, data, tmp_path, "--steps", 12, "--latent-size", latent_size) == 0
    assert (tmp_path / "losses.csv").read_text().startswith("step,training,validation\n12,")
    assert (tmp_path / "losses.png").stat().st_size > 1000


def test_a_trained_policy_is_exported(trainer: Any, data: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    assert train(trainer, data, tmp_path, "--steps", 3) == 0
    flags = ["--policy", tmp_path / "policy.pt", "--output", tmp_path / "checkpoint"]
    command = [sys.executable, str(EXAMPLE / "export.py"), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    normalize = json.loads((tmp_path / "checkpoint" / "normalize.json").read_text())
    (statistics,) = normalize.values()
    assert [len(statistics["state"]["mean"]), len(statistics["action"]["std"])] == [5, 2]
    assert json.loads((tmp_path / "checkpoint" / "policy.json").read_text())["action_names"] == ["a", "b"]


def test_the_same_seed_gives_the_same_policy(trainer: Any, data: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        assert train(trainer, data, tmp_path / name, "--steps", 5, "--seed", seed) == 0
        weights.append(torch.load(tmp_path / name / "policy.pt", weights_only=True)["weights"]["queries"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_ctrl_c_saves_what_was_learnt(
    trainer: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn_step, steps = trainer.learn_step, iter(range(3))

    def interrupted(*arguments: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return learn_step(*arguments)

    monkeypatch.setattr(trainer, "learn_step", interrupted)
    assert train(trainer, data, tmp_path, "--steps", 1000) == 130
    assert (tmp_path / "policy.pt").exists()


def test_missing_demonstrations_are_an_error_that_says_who_makes_them(
    trainer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(trainer, tmp_path / "nothing.npz", tmp_path) == 1
    assert "collect.py makes it" in " ".join(capsys.readouterr().err.split())
