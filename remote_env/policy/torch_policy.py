"""A policy that torch runs: TorchScript, or weights with a factory that makes their module.

The module gets the features' tensors one after another, in policy.json's order: states normalised float32, images as
they are in the feature's dtype, texts as a list of str. It returns the actions (B, K, D), or a dict with "actions".
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import ConfigError
from remote_env.policy.checkpoint import Checkpoint, CheckpointPolicy
from remote_env.policy.devices import import_torch, torch_device
from remote_env.policy.factory import call_factory, load_factory
from remote_env.policy.policy import Array, Policy

OUTPUT = "actions"


def load(checkpoint: Checkpoint, weights: Path, *, device: str, dataset_id: str, chunk_size: int | None) -> Policy:
    """The policy that a file of torch holds, on `device`.

    Args:
        checkpoint: its folder, with a policy.json; that names the factory unless the file is TorchScript.
        weights: a .pt, .ts or .pth file, or .safetensors.
        device: as `load_policy`.
        dataset_id: as `load_policy`.
        chunk_size: as `load_policy`.

    Raises:
        ConfigError: torch is missing or cannot use the device, the file is damaged or holds more than tensors, or it
            does not fit what the factory makes.
    """
    torch, where = import_torch(), torch_device(device)
    metadata, normalizer = checkpoint.required_metadata(), checkpoint.normalizer(dataset_id)
    if is_torchscript(weights):
        module = _load_script(torch, weights, where)
    else:
        module = _make_module(torch, checkpoint, weights)
    module = module.to(where).eval()

    def network(batch: Mapping[str, Any]) -> Array:
        with torch.inference_mode():
            result = module(*[_to_torch(torch, batch[name], where) for name in metadata.observation])
            return _actions(torch, result)

    return CheckpointPolicy(network, metadata, normalizer, chunk_size=chunk_size, close=lambda: _free(torch, where))


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: these carry code beside tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _load_script(torch: Any, path: Path, where: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit stays loadable, and its files are about
            return torch.jit.load(str(path), map_location=where)
    except RuntimeError as error:
        raise ConfigError(f"torch {torch.__version__} cannot load {path}: {error}") from error


def _make_module(torch: Any, checkpoint: Checkpoint, weights: Path) -> Any:
    if not checkpoint.factory:
        raise ConfigError(
            f"{weights} holds weights only; write into {checkpoint.folder / 'policy.json'} what makes their module: "
            '"factory": "module:function" or "file.py:function", and "factory_kwargs"'
        )
    function = load_factory(checkpoint.factory, checkpoint.folder)
    module = call_factory(checkpoint.factory, function, {}, checkpoint.factory_kwargs)
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"{checkpoint.factory} made a {type(module).__name__}; it must return a torch.nn.Module")
    try:
        module.load_state_dict(_read_weights(torch, weights))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(f"{weights} does not fit what {checkpoint.factory} makes: {error}") from error
    return module


def _read_weights(torch: Any, path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # Only tensors and plain containers: a pickle that names anything else is refused.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path} is refused: it holds more than tensors, or is damaged: {error}") from error
    except Exception as error:  # whatever its unpickler trips over in a damaged file
        raise ConfigError(
            f"torch {torch.__version__} cannot load {path}, it is damaged or no file of torch: "
            f"{type(error).__name__}: {error}"
        ) from error
    return content["state_dict"] if isinstance(content, dict) and "state_dict" in content else content


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path} needs {error.name!r}, which is not installed: pip install safetensors") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _to_torch(torch: Any, value: Any, where: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return list(value)
    # Arrays that came off a wire may be read-only, which torch warns about.
    return torch.from_numpy(value if value.flags.writeable else value.copy()).to(where)


def _actions(torch: Any, result: Any) -> Array:
    if isinstance(result, dict):
        result = result.get(OUTPUT)
    if not isinstance(result, torch.Tensor):
        raise TypeError(f"the module returned a {type(result).__name__}; it must return a tensor (B, K, D)")
    actions: Array = result.float().cpu().numpy()
    return actions


def _free(torch: Any, where: Any) -> None:
    if where.type == "cuda":
        torch.cuda.empty_cache()
