"""load_policy: whatever a path or a name stands for, as a Policy that runs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remote_env.errors import ConfigError
from remote_env.policy.checkpoint import Checkpoint
from remote_env.policy.devices import check_cpu, parse_device
from remote_env.policy.factory import call_factory, is_factory, load_factory, takes
from remote_env.policy.policy import Policy
from remote_env.policy.scripted import PREFIX, SCRIPTED, ScriptedPolicy
from remote_env.policy.shortened import ShortenedPolicy

_TORCH_SUFFIXES = (".pt", ".ts", ".pth", ".safetensors")
# What is taken when a folder holds several files of one kind.
_USUAL_NAMES = ("policy.onnx", "policy.ts", "policy.pt", "policy.pth", "model.safetensors")
_FORMS = """a policy is one of
  a folder with policy.onnx and normalize.json
  a folder with policy.pt (TorchScript), or weights and a policy.json that names a factory
  a LeRobot pretrained folder (config.json and model.safetensors)
  module:function or file.py:function, which makes a Policy
  {scripted}
  host:port or dialect://host:port of a policy server"""


def load_policy(
    path_or_name: str | Path, *, dataset_id: str = "", device: str = "cpu", chunk_size: int | None = None
) -> Policy:
    """The policy that a path or a name stands for, loaded and ready.

    Args:
        path_or_name: a checkpoint's folder or one of its files, a factory of your own ("module:function" or
            "file.py:function", which returns a Policy), or a scripted policy ("scripted:aloha-transfer-cube").
        dataset_id: whose statistics normalise; "" takes the first of normalize.json.
        device: "cpu", "cuda", "cuda:N" or "mps"; never another one than this.
        chunk_size: the most actions that one inference gives; None gives as many as the policy has.

    Raises:
        ConfigError: there is no such policy, what it holds does not fit, or it cannot run here as asked.
    """
    text = str(path_or_name)
    parse_device(device)
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(f"chunk_size={chunk_size}: a chunk has at least one action")
    options: dict[str, Any] = {"dataset_id": dataset_id, "device": device, "chunk_size": chunk_size}
    path = Path(text).expanduser()
    if path.is_dir():
        return _load_folder(path, options)
    if path.is_file():
        return _load_file(Checkpoint.read(path.parent), path, options)
    if text.startswith(PREFIX):
        return _load_scripted(text, **options)
    if is_factory(text):
        return _call_policy_factory(text, Path(), options, {})
    raise ConfigError(f"no policy {text!r}: there is no {path.absolute()}; {_forms()}")


def _load_folder(folder: Path, options: dict[str, Any]) -> Policy:
    checkpoint = Checkpoint.read(folder)
    is_lerobot = (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
    if is_lerobot and not (folder / "policy.json").exists():
        from remote_env.policy import lerobot_policy

        policy: Policy = lerobot_policy.load(folder, **options)
        return policy
    files = sorted(path for path in folder.iterdir() if path.suffix in (".onnx", *_TORCH_SUFFIXES))
    if not files and checkpoint.factory:
        return _call_policy_factory(checkpoint.factory, folder, options, checkpoint.factory_kwargs)
    if not files:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise ConfigError(f"{folder.absolute()} is no checkpoint, it holds {held}; {_forms()}")
    return _load_file(checkpoint, _chosen(folder, files), options)


def _chosen(folder: Path, files: list[Path]) -> Path:
    usual = [folder / name for name in _USUAL_NAMES if folder / name in files]
    if len(files) > 1 and not usual:
        names = ", ".join(path.name for path in files)
        raise ConfigError(f"{folder.absolute()} holds {names}; name the one that is meant: {files[0]}")
    return (usual or files)[0]


def _load_file(checkpoint: Checkpoint, path: Path, options: dict[str, Any]) -> Policy:
    if path.suffix == ".onnx":
        from remote_env.policy import onnx_policy

        return onnx_policy.load(checkpoint, path, **options)
    if path.suffix in _TORCH_SUFFIXES:
        from remote_env.policy import torch_policy

        return torch_policy.load(checkpoint, path, **options)
    raise ConfigError(f"{path} is no checkpoint's file ({', '.join(('.onnx', *_TORCH_SUFFIXES))}); {_forms()}")


def _load_scripted(name: str, *, dataset_id: str, device: str, chunk_size: int | None) -> Policy:
    check_cpu(device, f"{name!r}")
    if dataset_id:
        raise ConfigError(f"dataset_id={dataset_id!r}: {name!r} does not normalise")
    return ScriptedPolicy(name, chunk_size=chunk_size)


def _call_policy_factory(text: str, folder: Path, options: dict[str, Any], given: Any) -> Policy:
    function = load_factory(text, folder)
    wanted = [name for name, usual in (("device", "cpu"), ("dataset_id", "")) if options[name] != usual]
    if unheard := [name for name in wanted if not takes(function, name)]:
        raise ConfigError(
            f"{text} takes no {' and no '.join(unheard)}, but {unheard[0]}={options[unheard[0]]!r} was given"
        )
    policy = call_factory(text, function, options, given)
    if isinstance(policy, Policy):
        most = options["chunk_size"]
        return ShortenedPolicy(policy, most) if most and policy.metadata.chunk_size > most else policy
    raise ConfigError(f"{text} made a {type(policy).__name__}; it must return a remote_env.policy.Policy")


def _forms() -> str:
    return _FORMS.format(scripted=" or ".join(SCRIPTED))
