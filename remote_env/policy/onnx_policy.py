"""A policy that is an ONNX graph: inputs named after features, one output "actions"; runs without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import ConfigError
from remote_env.policy.checkpoint import Checkpoint, CheckpointPolicy
from remote_env.policy.devices import import_onnxruntime, no_provider, onnx_providers
from remote_env.policy.images import cast_image, layout_of
from remote_env.policy.observation import describe_features
from remote_env.policy.policy import Array, Feature, Policy, PolicyMetadata

OUTPUT = "actions"
# A graph up to this size gains nothing from threads that wait for each other [bytes].
_SMALL_GRAPH = 32 * 1024 * 1024
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(string)": "object",
}


def load(checkpoint: Checkpoint, graph: Path, *, device: str, dataset_id: str, chunk_size: int | None) -> Policy:
    """The policy that a graph is, on `device`.

    Args:
        checkpoint: its folder; without a policy.json features and actions are read off the graph.
        graph: the .onnx file.
        device: as `load_policy`.
        dataset_id: as `load_policy`.
        chunk_size: as `load_policy`.

    Raises:
        ConfigError: onnxruntime is missing or cannot use the device, or graph, policy.json and normalize.json do not
            fit each other.
    """
    session = _open_session(graph, device)
    metadata = checkpoint.metadata or _metadata_of(session, checkpoint.name, graph)
    inputs = _checked_inputs(session, metadata, graph)
    metadata = _checked_outputs(session, metadata, graph)

    def network(batch: Mapping[str, Any]) -> Array:
        feed = {name: convert(batch[name]) for name, convert in inputs.items()}
        actions: Array = session.run([OUTPUT], feed)[0]
        return actions

    if _fixed_batch(session):
        metadata = replace(metadata, batches=False)
    return CheckpointPolicy(network, metadata, checkpoint.normalizer(dataset_id), chunk_size=chunk_size)


def _open_session(graph: Path, device: str) -> Any:
    onnxruntime = import_onnxruntime()
    providers = onnx_providers(device)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about its own optimisations
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave the cores to others
    if graph.stat().st_size <= _SMALL_GRAPH:
        options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:  # its exceptions have no base of their own
        raise ConfigError(f"onnxruntime {onnxruntime.__version__} cannot load {graph}: {error}") from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if session.get_providers()[0] != wanted:  # it goes on with the CPU when CUDA's libraries do not load
        raise ConfigError(no_provider(device, session.get_providers()))
    session.disable_fallback()
    return session


def _checked_inputs(session: Any, metadata: PolicyMetadata, graph: Path) -> dict[str, Callable[[Any], Array]]:
    """Input name -> how a feature's values become what the graph takes."""
    inputs = {entry.name: entry for entry in session.get_inputs()}
    if set(inputs) != set(metadata.observation):
        raise ConfigError(
            f"{graph} takes {', '.join(map(_described, inputs.values()))}; policy.json says that the policy takes "
            f"{describe_features(metadata)}: the names must be equal"
        )
    for name, entry in inputs.items():
        _check_shape(entry, (None, *metadata.observation[name].shape), graph)
    return {name: _conversion(entry, metadata.observation[name], graph) for name, entry in inputs.items()}


def _conversion(entry: Any, feature: Feature, graph: Path) -> Callable[[Any], Array]:
    dtype = _DTYPES.get(entry.type)
    if dtype is None or (dtype == "object") != (feature.kind == "text"):
        raise ConfigError(f"{graph}: the input {entry.name} is {entry.type}; the policy's is {feature}")
    if feature.kind == "text":
        return lambda texts: np.array(list(texts), object).reshape(-1)
    if feature.kind == "image":
        return lambda images: cast_image(images, dtype)
    return lambda states: np.ascontiguousarray(states, dtype)


def _checked_outputs(session: Any, metadata: PolicyMetadata, graph: Path) -> PolicyMetadata:
    outputs = {entry.name: entry for entry in session.get_outputs()}
    if OUTPUT not in outputs:
        raise ConfigError(f"{graph} has no output {OUTPUT!r} of shape (B, K, D); it has {', '.join(outputs)}")
    entry = outputs[OUTPUT]
    _check_shape(entry, (None, None, metadata.action_size), graph)
    steps = entry.shape[1]
    if isinstance(steps, int) and steps != metadata.chunk_size:
        raise ConfigError(f"{graph} gives {steps} actions at once; policy.json says chunk_size {metadata.chunk_size}")
    return metadata


def _check_shape(entry: Any, wanted: tuple[int | None, ...], graph: Path) -> None:
    """ConfigError when a size that both sides fix differs; names stand for any size."""
    same = all(
        not isinstance(size, int) or other in (None, size) for size, other in zip(entry.shape, wanted, strict=False)
    )
    if len(entry.shape) != len(wanted) or not same:
        shape = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ConfigError(f"{graph}: {_described(entry)} does not fit policy.json, which makes it ({shape})")


def _fixed_batch(session: Any) -> bool:
    return any(entry.shape[:1] == [1] for entry in session.get_inputs())


def _described(entry: Any) -> str:
    return f"{entry.name} ({', '.join(map(str, entry.shape))}) {entry.type}"


def _metadata_of(session: Any, name: str, graph: Path) -> PolicyMetadata:
    """What can be read off a graph that came without policy.json."""
    features = {entry.name: _feature_of(entry, graph) for entry in session.get_inputs()}
    shape: list[Any] = next((entry.shape for entry in session.get_outputs() if entry.name == OUTPUT), [])
    if len(shape) != 3 or not all(isinstance(size, int) for size in shape[1:]):
        raise ConfigError(
            f"{graph} does not fix how many actions it gives; say so in policy.json: chunk_size, action_names"
        )
    return PolicyMetadata(name, features, tuple(f"action_{index}" for index in range(shape[2])), chunk_size=shape[1])


def _feature_of(entry: Any, graph: Path) -> Feature:
    shape, dtype = tuple(entry.shape[1:]), _DTYPES.get(entry.type, "")
    if dtype == "object" and not shape:
        return Feature("text", dtype="")
    if all(isinstance(size, int) for size in shape):
        if len(shape) == 1 and dtype.startswith("float"):
            return Feature("state", shape)
        if layout := layout_of(shape):
            return Feature("image", shape, "uint8", layout=layout)
    raise ConfigError(f"{graph}: what the input {_described(entry)} is must stand in policy.json")
