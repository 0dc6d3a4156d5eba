"""What a policy is, wherever it runs: observations in, chunks of actions out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Chunk = NDArray[np.float32]
# Feature name -> (B, *shape) array; a text feature is a list of B strings.
ObservationBatch = Mapping[str, Any]
Kind = Literal["state", "image", "text"]
KINDS: tuple[Kind, ...] = ("state", "image", "text")


@dataclass(frozen=True)
class Feature:
    """One input of a policy.

    Attributes:
        kind: "state" (a vector), "image" or "text".
        shape: without the batch: (D,) of a state, (H, W, 3) or (3, H, W) of an image, () of a text.
        dtype: a numpy name: "float32", "uint8"; "" of a text.
        names: of a state's D numbers, when they are known.
        units: of them, likewise, such as "rad" or "m".
        layout: of an image: "HWC" or "CHW"; "" otherwise.
    """

    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    layout: str = ""

    def __str__(self) -> str:
        if self.kind == "text":
            return "text"
        return " ".join(filter(None, [str(self.shape), self.dtype, self.layout]))

    def to_plain(self) -> dict[str, Any]:
        """This feature as a JSON object."""
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "names": list(self.names),
            "units": list(self.units),
            "layout": self.layout,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Feature:
        """The exact opposite of `to_plain`."""
        return cls(
            kind=plain["kind"],
            shape=tuple(int(size) for size in plain.get("shape", ())),
            dtype=str(plain.get("dtype", "float32")),
            names=tuple(str(name) for name in plain.get("names", ())),
            units=tuple(str(unit) for unit in plain.get("units", ())),
            layout=str(plain.get("layout", "")),
        )


@dataclass(frozen=True)
class PolicyMetadata:
    """What a policy takes and gives.

    Attributes:
        name: to show: the checkpoint's folder, or the address it was reached at.
        observation: feature name -> Feature.
        action_names: of the D numbers of an action.
        action_units: of them, such as "rad".
        chunk_size: K, how many actions one inference gives.
        control_rate_hz: at which actions are meant to be applied; 0 when unknown.
        normalizer: how numbers are normalised inside, to show: "zscore:<dataset id>", "minmax:<dataset id>", "none".
        dataset_ids: those that its normaliser knows.
        batches: whether `infer` takes B > 1 with rows of several clients.
        has_memory: whether it remembers earlier observations of an episode, so that `reset` matters.
        extra: whatever else is known, plain JSON; `task` and `env_kwargs` of what it was trained on, for one.
    """

    name: str
    observation: Mapping[str, Feature]
    action_names: tuple[str, ...]
    action_units: tuple[str, ...] = ()
    chunk_size: int = 1
    control_rate_hz: float = 0.0
    normalizer: str = "none"
    dataset_ids: tuple[str, ...] = ()
    batches: bool = True
    has_memory: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def action_size(self) -> int:
        """D, how many numbers an action has."""
        return len(self.action_names)

    def to_plain(self) -> dict[str, Any]:
        """This metadata as a JSON object."""
        return {
            "name": self.name,
            "observation": {name: feature.to_plain() for name, feature in self.observation.items()},
            "action_names": list(self.action_names),
            "action_units": list(self.action_units),
            "chunk_size": self.chunk_size,
            "control_rate_hz": self.control_rate_hz,
            "normalizer": self.normalizer,
            "dataset_ids": list(self.dataset_ids),
            "batches": self.batches,
            "has_memory": self.has_memory,
            "extra": dict(self.extra),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> PolicyMetadata:
        """The exact opposite of `to_plain`; fields that are missing take their defaults."""
        return cls(
            name=str(plain.get("name", "")),
            observation={str(name): Feature.from_plain(value) for name, value in plain["observation"].items()},
            action_names=tuple(str(name) for name in plain["action_names"]),
            action_units=tuple(str(unit) for unit in plain.get("action_units", ())),
            chunk_size=int(plain.get("chunk_size", 1)),
            control_rate_hz=float(plain.get("control_rate_hz", 0.0)),
            normalizer=str(plain.get("normalizer", "none")),
            dataset_ids=tuple(str(name) for name in plain.get("dataset_ids", ())),
            batches=bool(plain.get("batches", True)),
            has_memory=bool(plain.get("has_memory", False)),
            extra=dict(plain.get("extra", {})),
        )


class Policy(abc.ABC):
    """A policy, local or at the other end of a wire.

    Attributes:
        metadata: what it takes and gives.
    """

    metadata: PolicyMetadata

    @abc.abstractmethod
    def infer(self, observation: ObservationBatch, *, episode_ids: Sequence[str]) -> Chunk:
        """The actions to apply from here on.

        Args:
            observation: feature name -> (B, *shape) array in that feature's dtype and layout, raw (normalising is the
                policy's own work); a text feature is a list of B strings. Just the features of `metadata.observation`.
            episode_ids: B names of the episodes that the rows belong to; what a policy remembers, it does per name.

        Returns:
            (B, K, D) float32, C-contiguous and the caller's own; K ≤ `metadata.chunk_size`.

        Raises:
            InputError: the observation is not of these features; nothing ran.
            PolicyError: the policy raised; `remote_traceback` holds where.
        """

    def reset(self, episode_ids: Sequence[str] | None = None) -> None:  # noqa: ARG002  most have no memory
        """Forget what is remembered of these episodes, which begin anew; of all when None."""
        return

    def close(self) -> None:
        """Free what the policy holds; may be called again."""
        return

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
