"""A LeRobot pretrained folder as a policy, run by LeRobot itself; what it takes can be read without LeRobot."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import ConfigError
from remote_env.policy.checkpoint import CheckpointPolicy
from remote_env.policy.devices import import_torch, torch_device
from remote_env.policy.normalize import Normalizer, read_json
from remote_env.policy.policy import Array, Feature, Policy, PolicyMetadata

CONFIG = "config.json"
TASK = "task"
_READ_TEXT = {"smolvla", "pi0", "pi05", "pi0_fast", "groot", "xvla", "wall_x"}  # policy types that take an instruction
_NO_LEROBOT = (
    "{folder} is a LeRobot checkpoint and {name!r} is not installed here: pip install 'lerobot>=0.4' (several GB), or "
    "export the policy to ONNX, which runs without"
)


def describe(folder: str | Path) -> PolicyMetadata:
    """What the policy of a LeRobot pretrained folder takes and gives, from its config.json alone.

    Images are (H, W, 3) uint8 and states float32, as they come; normalising is the policy's own work.

    Raises:
        ConfigError: the folder holds no such file, or one of another kind.
    """
    path = Path(folder).expanduser() / CONFIG
    content = read_json(path)
    try:
        inputs, outputs = content["input_features"], content["output_features"]
        observation = {name: _feature(name, value) for name, value in inputs.items()}
        (actions,) = outputs["action"]["shape"]
        chunk_size = int(content.get("chunk_size") or content.get("n_action_steps") or 1)
        kind = str(content["type"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is no LeRobot policy's config.json: {type(error).__name__}: {error}") from error
    if kind in _READ_TEXT:
        observation[TASK] = Feature("text", dtype="")
    return PolicyMetadata(
        path.parent.resolve().name,
        observation,
        tuple(f"action{index}" for index in range(int(actions))),
        chunk_size=chunk_size,
        extra={"lerobot": kind, "observation_steps": int(content.get("n_obs_steps") or 1)},
    )


def load(folder: Path, *, device: str, dataset_id: str, chunk_size: int | None) -> Policy:
    """The policy of a LeRobot pretrained folder, with the processors that lie beside it, on `device`.

    Args:
        folder: with config.json, model.safetensors and the processors that LeRobot saves since 0.4.
        device: as `load_policy`.
        dataset_id: must be "": what normalises is part of the checkpoint.
        chunk_size: as `load_policy`.

    Raises:
        ConfigError: LeRobot or torch is missing or cannot load it, or the policy needs several observations at once.
    """
    metadata = describe(folder)
    if dataset_id:
        raise ConfigError(f"dataset_id={dataset_id!r}: a LeRobot checkpoint normalises by itself and knows no others")
    if metadata.extra["observation_steps"] != 1:
        steps = metadata.extra["observation_steps"]
        raise ConfigError(f"{folder} infers from {steps} observations at once; policies of one are loaded")
    if importlib.util.find_spec("lerobot") is None:
        raise ConfigError(_NO_LEROBOT.format(folder=folder, name="lerobot"))
    torch, where = import_torch(), torch_device(device)
    model, before, after = _load_parts(folder, where)

    def network(batch: Mapping[str, Any]) -> Array:
        with torch.inference_mode():
            chunk = model.predict_action_chunk(before(_to_lerobot(torch, batch, metadata)))
            steps = [after(chunk[:, step]) for step in range(chunk.shape[1])]
            result: Array = torch.stack(steps, dim=1).to("cpu", torch.float32).numpy()
            return result

    return CheckpointPolicy(network, metadata, Normalizer(), chunk_size=chunk_size)


def _load_parts(folder: Path, where: Any) -> tuple[Any, Any, Any]:
    """The model and what works before and after it."""
    try:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    except ModuleNotFoundError as error:
        raise ConfigError(_NO_LEROBOT.format(folder=folder, name=error.name)) from error
    device = {"device_processor": {"device": str(where)}}
    try:
        config = PreTrainedConfig.from_pretrained(folder)
        config.device = str(where)
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # the checkpoint has its own; these would be downloaded first
        model = get_policy_class(config.type).from_pretrained(folder, config=config)
        before, after = make_pre_post_processors(
            model.config,
            pretrained_path=str(folder),
            preprocessor_overrides=device,
            postprocessor_overrides=device,
        )
    except Exception as error:
        raise ConfigError(f"LeRobot cannot load {folder}: {type(error).__name__}: {error}") from error
    return model.to(where).eval(), before, after


def _to_lerobot(torch: Any, batch: Mapping[str, Any], metadata: PolicyMetadata) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for name, feature in metadata.observation.items():
        value = batch[name]
        if feature.kind == "text":
            converted[name] = list(value)
        elif feature.kind == "image":
            image = np.ascontiguousarray(np.moveaxis(value, -1, 1), np.float32)
            converted[name] = torch.from_numpy(image) / 255
        else:
            converted[name] = torch.from_numpy(np.array(value))
    return converted


def _feature(name: str, value: Any) -> Feature:
    kind, shape = value["type"], tuple(int(size) for size in value["shape"])
    if kind == "VISUAL" and len(shape) == 3:
        return Feature("image", (*shape[1:], shape[0]), "uint8", layout="HWC")
    if kind in ("STATE", "ENV") and len(shape) == 1:
        return Feature("state", shape)
    raise ValueError(f"the feature {name!r} of type {kind} and shape {shape}")
