"""What checkpoints of any framework have in common: policy.json, normalising, and the checks around a network."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import ConfigError, InputError, PolicyError
from remote_env.policy.normalize import Normalizer, load_normalizer, read_json
from remote_env.policy.policy import KINDS, Array, Chunk, ObservationBatch, Policy, PolicyMetadata
from remote_env.policy.quick_check import QuickCheck

FILE_NAME = "policy.json"
KEYS = (
    *("name", "observation", "action_names", "action_units", "chunk_size", "control_rate_hz", "normalizer"),
    *("dataset_ids", "batches", "has_memory", "extra", "factory", "factory_kwargs"),
)
# Feature name -> normalised (B, …) values; out come normalised actions (B, K, D).
Network = Callable[[Mapping[str, Any]], Array]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder and what its policy.json says.

    Attributes:
        folder: it.
        metadata: from policy.json; None when it has none, or only names a factory.
        factory: "module:function" or "file.py:function"; "" when there is none.
        factory_kwargs: for the factory.
        is_normalized: whether its network takes and gives normalised numbers.
    """

    folder: Path
    metadata: PolicyMetadata | None = None
    factory: str = ""
    factory_kwargs: Mapping[str, Any] = field(default_factory=dict)
    is_normalized: bool = True

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """The checkpoint that lies in `folder`; ConfigError names a fault in its policy.json."""
        path = folder / FILE_NAME
        if not path.exists():
            return cls(folder)
        content = read_json(path)
        if not isinstance(content, dict):
            raise ConfigError(f"{path} holds a {type(content).__name__}; it is an object")
        if unknown := sorted(set(content) - set(KEYS)):
            raise ConfigError(f"{path} has unknown keys {', '.join(unknown)}; there are {', '.join(KEYS)}")
        kwargs = content.get("factory_kwargs", {})
        if not isinstance(kwargs, dict):
            raise ConfigError(f"{path}: factory_kwargs is an object; got {kwargs!r}")
        is_normalized = content.get("normalizer") != "none"
        return cls(folder, _metadata(content, path), str(content.get("factory", "")), kwargs, is_normalized)

    @property
    def name(self) -> str:
        """To show: what policy.json says, or the folder's."""
        return (self.metadata.name if self.metadata else "") or self.folder.resolve().name

    def required_metadata(self) -> PolicyMetadata:
        """The metadata; ConfigError when policy.json does not say what the policy takes and gives."""
        if self.metadata is None:
            raise ConfigError(
                f"{self.folder / FILE_NAME} must say what the policy takes and gives: observation, action_names and "
                "chunk_size (docs/policies.md)"
            )
        return self.metadata

    def normalizer(self, dataset_id: str) -> Normalizer:
        """The normaliser of a dataset; ConfigError as `load_normalizer`."""
        if self.is_normalized:
            return load_normalizer(self.folder, dataset_id)
        if dataset_id:
            raise ConfigError(f"dataset_id={dataset_id!r}: {self.name!r} does not normalise, see its {FILE_NAME}")
        return Normalizer()


class CheckpointPolicy(Policy):
    """A network between checks and a normaliser.

    Args:
        network: normalised batch in, normalised actions (B, K, D) out; what it raises becomes a PolicyError.
        metadata: of the policy; the normaliser's names are filled in.
        normalizer: of the numbers.
        chunk_size: the most actions of a chunk to give; None gives all.
        close: frees what the network holds.

    Raises:
        ConfigError: the normaliser is not of these features.
    """

    def __init__(
        self,
        network: Network,
        metadata: PolicyMetadata,
        normalizer: Normalizer,
        *,
        chunk_size: int | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        normalizer.check(metadata)
        self.metadata = replace(
            metadata,
            normalizer=normalizer.label,
            dataset_ids=normalizer.dataset_ids,
            chunk_size=min(metadata.chunk_size, chunk_size or metadata.chunk_size),
        )
        self._network: Network | None = network
        self._normalizer, self._close = normalizer, close
        self._check = QuickCheck(self.metadata)  # a server has checked already; here it is to cost little
        features = self.metadata.observation.items()
        self._states = [name for name, feature in features if feature.kind == "state"]

    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        """One chunk for each row, as `Policy.infer`."""
        count = self._check(observation)
        if len(episode_ids) != count:
            raise InputError(f"{count} observations came with {len(episode_ids)} episode ids")
        batch = dict(observation)
        for name in self._states:
            batch[name] = self._normalizer.normalize_state(batch[name], name)
        if self.metadata.batches or count == 1:
            return self._checked(self._run(batch), count)
        rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(count)]
        return np.concatenate([self._checked(self._run(row), 1) for row in rows])

    def close(self) -> None:
        """Free the network; may be called again."""
        self._network = None
        if self._close is not None:
            self._close()
            self._close = None

    def _run(self, batch: Mapping[str, Any]) -> Array:
        if self._network is None:
            raise PolicyError(f"{self.metadata.name!r} is closed")
        try:
            return self._network(batch)
        except Exception as error:
            raise PolicyError(
                f"{self.metadata.name!r} raised {type(error).__name__}: {error}",
                remote_traceback=traceback.format_exc(),
            ) from error

    def _checked(self, chunk: Array, count: int) -> Chunk:
        size = self.metadata.action_size
        if chunk.ndim != 3 or len(chunk) != count or chunk.shape[1] < 1 or chunk.shape[2] != size:
            raise PolicyError(
                f"{self.metadata.name!r} gave actions of shape {chunk.shape}; (B, K, D) is ({count}, K, {size})"
            )
        actions = self._normalizer.denormalize_action(chunk[:, : self.metadata.chunk_size])
        if not np.isfinite(actions).all():
            row, step, number = (int(index) for index in np.argwhere(~np.isfinite(actions))[0])
            raise PolicyError(
                f"{self.metadata.name!r} gave {actions[row, step, number]} for {self.metadata.action_names[number]} at "
                f"step {step} of the chunk of observation {row}"
            )
        return np.array(actions, np.float32, order="C")


def _metadata(content: Mapping[str, Any], path: Path) -> PolicyMetadata | None:
    if "factory" in content and "observation" not in content:
        return None
    try:
        metadata = PolicyMetadata.from_plain(content)
    except KeyError as error:
        raise ConfigError(f"{path} lacks {error}; docs/policies.md says what it holds") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not as docs/policies.md says: {error}") from error
    for name, feature in metadata.observation.items():
        if feature.kind not in KINDS:
            raise ConfigError(f"{path}: {name!r} is of kind {feature.kind!r}; there are {', '.join(KINDS)}")
        if len(feature.shape) != {"state": 1, "image": 3, "text": 0}[feature.kind]:
            raise ConfigError(f"{path}: {name!r}, a {feature.kind}, has shape {feature.shape}")
    if not metadata.action_names or metadata.chunk_size < 1:
        raise ConfigError(f"{path} needs action_names and a chunk_size of 1 or more")
    return metadata if metadata.name else replace(metadata, name=path.parent.resolve().name)
