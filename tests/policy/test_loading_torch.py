"""TorchScript, and weights with a factory. Where torch is not installed, that this is said."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remote_env.errors import ConfigError, PolicyError
from remote_env.policy import load_policy

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")

NETWORK = """
import torch

class Network(torch.nn.Module):
    def __init__(self, steps: int = 4):
        super().__init__()
        self.linear = torch.nn.Linear(3, steps * 2)
        self.steps = steps

    def forward(self, state: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
        light = camera.to(torch.float32).mean(dim=[1, 2, 3]).reshape(-1, 1, 1)
        return self.linear(state).reshape(-1, self.steps, 2) + light

class Wrapped(Network):
    def forward(self, state, camera):
        return {"actions": super().forward(state, camera)}

class Wrong(Network):
    def forward(self, state, camera):
        return "no tensor"

def make(steps=4):
    return Network(steps)

def make_wrapped():
    return Wrapped()

def make_wrong():
    return Wrong()

def make_number():
    return 5
"""
POLICY = {
    "observation": {
        "state": {"kind": "state", "shape": [3], "dtype": "float32"},
        "camera": {"kind": "image", "shape": [2, 2, 3], "dtype": "uint8", "layout": "HWC"},
    },
    "action_names": ["x", "y"],
    "chunk_size": 4,
    "normalizer": "none",
    "factory": "network.py:make",
}
BATCH = {"state": np.arange(6, dtype=np.float32).reshape(2, 3), "camera": np.full((2, 2, 2, 3), 7, np.uint8)}
IDS = ["a", "b"]


def write(folder: Path, **changes: Any) -> None:
    (folder / "network.py").write_text(NETWORK)
    content = {name: value for name, value in {**POLICY, **changes}.items() if value is not None}
    (folder / "policy.json").write_text(json.dumps(content))


def network(folder: Path) -> Any:
    import torch

    scope: dict[str, Any] = {"__name__": "network_for_tests"}
    exec(compile(NETWORK, str(folder / "network.py"), "exec"), scope)
    torch.manual_seed(0)
    return scope["Network"]()


def expected(module: Any) -> Any:
    import torch

    with torch.inference_mode():
        return module(*[torch.from_numpy(value) for value in BATCH.values()]).numpy()


@needs_torch
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("factory", ["network.py:make", "network.py:make_wrapped"])
def test_weights_with_a_factory(tmp_path: Path, nested: bool, factory: str) -> None:
    import torch

    write(tmp_path, factory=factory)
    module = network(tmp_path)
    weights = module.state_dict()
    torch.save({"state_dict": weights, "step": 5} if nested else weights, tmp_path / "policy.pt")
    with load_policy(tmp_path) as policy:
        chunk = policy.infer(BATCH, episode_ids=IDS)
        np.testing.assert_array_equal(chunk, expected(module))
        assert chunk.dtype == np.float32
        alone = policy.infer({name: value[1:] for name, value in BATCH.items()}, episode_ids=["b"])
    np.testing.assert_allclose(alone, chunk[1:], rtol=1e-5)


@needs_torch
@pytest.mark.parametrize("name", ["policy.pt", "policy.ts"])
def test_torchscript_needs_no_factory(tmp_path: Path, name: str) -> None:
    import torch

    write(tmp_path, factory=None)
    # TorchScript reads the module's source, so it must be a file that inspect finds.
    spec = importlib.util.spec_from_file_location("network_for_tests", tmp_path / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(made, tuple(torch.from_numpy(value) for value in BATCH.values())).save(str(tmp_path / name))
    (tmp_path / "network.py").unlink()
    with load_policy(tmp_path, chunk_size=3) as policy:
        np.testing.assert_allclose(policy.infer(BATCH, episode_ids=IDS), expected(made)[:, :3], rtol=1e-6)


@needs_torch
def test_a_read_only_observation_is_taken_without_a_warning(tmp_path: Path) -> None:
    import torch

    write(tmp_path)
    torch.save(network(tmp_path).state_dict(), tmp_path / "policy.pt")
    batch = {name: value.copy() for name, value in BATCH.items()}
    for value in batch.values():
        value.flags.writeable = False
    assert load_policy(tmp_path).infer(batch, episode_ids=IDS).shape == (2, 4, 2)


@needs_torch
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": None}, 'holds weights only; write into .*policy.json.* "factory": "module:function"'),
        ({"factory": "network.py:make_number"}, r"made a int; it must return a torch\.nn\.Module"),
        ({"factory_kwargs": {"steps": 9}}, "does not fit what network.py:make makes: .*size mismatch"),
        ({"observation": None}, "must say what the policy takes and gives"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    import torch

    write(tmp_path, **changes)
    torch.save(network(tmp_path).state_dict(), tmp_path / "policy.pt")
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_policy(tmp_path)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.path}",))


@needs_torch
def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    import torch

    write(tmp_path)
    torch.save({"weights": Hostile(tmp_path / "ran")}, tmp_path / "policy.pt")
    with pytest.raises(ConfigError, match="is refused: it holds more than tensors"):
        load_policy(tmp_path)
    assert not (tmp_path / "ran").exists()


@needs_torch
@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_damaged_file_is_said_to_be(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / "policy.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"policy\.pt"):
        load_policy(tmp_path)


@needs_torch
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps"])
def test_no_other_device_than_asked(tmp_path: Path, device: str) -> None:
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has such a device")
    write(tmp_path)
    torch.save(network(tmp_path).state_dict(), tmp_path / "policy.pt")
    with pytest.raises(ConfigError, match=rf"device='{device}': .*can use cpu here: run it with --device cpu"):
        load_policy(tmp_path, device=device)


@needs_torch
def test_what_the_module_raises_comes_with_its_traceback(tmp_path: Path) -> None:
    import torch

    write(tmp_path, factory="network.py:make_wrong")
    torch.save(network(tmp_path).state_dict(), tmp_path / "policy.pt")
    with pytest.raises(PolicyError, match="returned a str; it must return a tensor") as raised:
        load_policy(tmp_path).infer(BATCH, episode_ids=IDS)
    assert "torch_policy.py" in raised.value.remote_traceback


@needs_torch
def test_safetensors(tmp_path: Path) -> None:
    import torch

    write(tmp_path)
    module = network(tmp_path)
    path = tmp_path / "model.safetensors"
    if importlib.util.find_spec("safetensors") is None:
        path.write_bytes(b"")
        with pytest.raises(ConfigError, match="pip install safetensors"):
            load_policy(tmp_path)
        return
    from safetensors.torch import save_file

    save_file(module.state_dict(), path)
    np.testing.assert_array_equal(load_policy(tmp_path).infer(BATCH, episode_ids=IDS), expected(module))
    path.write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(tmp_path)
    assert torch.is_grad_enabled()


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
def test_without_torch_it_is_said_what_to_install(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "policy.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match="needs 'torch', which is not installed here: pip install torch, or export"):
        load_policy(tmp_path)
