"""normalize.json: the numbers of each dataset, between a task's units and what a network was trained on.

    {"<dataset id>": {"kind": "zscore", "state": {"mean": […], "std": […]}, "action": {"mean": […], "std": […]}},
     "<another>":    {"kind": "minmax", "state": {"min": […], "max": […]},  "action": {"min": […], "max": […]}}}

z-score is (x - mean) / std; min–max puts min at -1 and max at 1. Both are float32 arithmetic. A policy with several
states has an entry of each one's name; with one, it may be called "state" whatever the feature's name is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env.errors import ConfigError
from remote_env.policy.policy import Array, PolicyMetadata

FILE_NAME = "normalize.json"
# Kind -> the two lists that an entry has.
KINDS = {"zscore": ("mean", "std"), "minmax": ("min", "max")}
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Range:
    """Numbers x become (x - centre) / scale.

    Attributes:
        centre: (D,) float32.
        scale: (D,) float32, none of them 0.
    """

    centre: Floats
    scale: Floats

    def normalize(self, values: Array) -> Floats:
        """(…, D) in the task's units, normalised."""
        with np.errstate(over="ignore"):  # what overflows is refused as not finite later on
            result: Floats = (values.astype(np.float32, copy=False) - self.centre) / self.scale
        return result

    def denormalize(self, values: Array) -> Floats:
        """The opposite of `normalize`, but for rounding."""
        with np.errstate(over="ignore"):
            result: Floats = values.astype(np.float32, copy=False) * self.scale + self.centre
        return result


class Normalizer:
    """How one dataset's numbers are normalised; without `ranges` not at all.

    Args:
        ranges: by name of a feature; "action" is the actions'.
        kind: "zscore", "minmax" or "none".
        dataset_id: whose numbers these are.
        dataset_ids: all that the file has.
    """

    def __init__(
        self,
        ranges: Mapping[str, Range] | None = None,
        *,
        kind: str = "none",
        dataset_id: str = "",
        dataset_ids: tuple[str, ...] = (),
    ) -> None:
        self.kind, self.dataset_id, self.dataset_ids = kind, dataset_id, dataset_ids
        self._ranges = dict(ranges or {})

    @property
    def label(self) -> str:
        """To show: "zscore:<dataset id>", or "none"."""
        return f"{self.kind}:{self.dataset_id}" if self._ranges else "none"

    def normalize_state(self, values: Array, feature: str = "state") -> Floats:
        """(…, D) numbers of a state feature as the network takes them, float32."""
        found = self._range_of(feature)
        return values.astype(np.float32, copy=False) if found is None else found.normalize(values)

    def normalize_action(self, values: Array) -> Floats:
        """(…, D) actions as the network gives them, float32; for training."""
        found = self._ranges.get("action")
        return values.astype(np.float32, copy=False) if found is None else found.normalize(values)

    def denormalize_action(self, values: Array) -> Floats:
        """(…, D) actions of the network in the task's units, float32."""
        found = self._ranges.get("action")
        return values.astype(np.float32, copy=False) if found is None else found.denormalize(values)

    def check(self, metadata: PolicyMetadata) -> None:
        """ConfigError when a state or the actions lack numbers, or have another length than the policy's."""
        if not self._ranges:
            return
        sizes = {name: feature.shape[0] for name, feature in metadata.observation.items() if feature.kind == "state"}
        where = f"{FILE_NAME} of {metadata.name!r}, dataset {self.dataset_id!r}"
        if "state" in self._ranges and len(sizes) > 1 and "state" not in sizes:
            raise ConfigError(f"{where}: 'state' could be any of {', '.join(sizes)}; name the entries so")
        for name, size in {**sizes, "action": metadata.action_size}.items():
            found = self._range_of(name)
            if found is None:
                raise ConfigError(f"{where} has no entry {name!r}; it has {', '.join(self._ranges)}")
            if len(found.centre) != size:
                raise ConfigError(f"{where}: {name!r} has {len(found.centre)} numbers, the policy's has {size}")

    def _range_of(self, feature: str) -> Range | None:
        return self._ranges.get(feature) or (self._ranges.get("state") if feature != "action" else None)


def load_normalizer(folder: str | Path, dataset_id: str = "") -> Normalizer:
    """The normaliser of a checkpoint's folder.

    Args:
        folder: normalize.json lies in it, or beside it (runs often share one among their checkpoints).
        dataset_id: whose numbers to take; "" takes the first.

    Raises:
        ConfigError: there is no such file (the message names every place), no such dataset, or a fault in it.
    """
    path = find_normalize_file(Path(folder).expanduser())
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path} is no object of dataset ids; it is {{dataset id: {{kind, state, action}}}}")
    chosen = dataset_id or next(iter(content))
    if chosen not in content:
        raise ConfigError(f"{path} has no dataset {chosen!r}; it has {', '.join(content)}")
    entry = content[chosen]
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind not in KINDS:
        raise ConfigError(f"{path}, dataset {chosen!r}: kind is {kind!r}; allowed are {', '.join(KINDS)}")
    where = f"{path}, dataset {chosen!r}"
    ranges = {
        name: _read_range(numbers, kind, f"{where}, {name!r}") for name, numbers in entry.items() if name != "kind"
    }
    return Normalizer(ranges, kind=kind, dataset_id=chosen, dataset_ids=tuple(content))


def find_normalize_file(folder: Path) -> Path:
    """Where normalize.json is: in the folder, or in the one above; ConfigError names both when in neither."""
    places = [folder.resolve() / FILE_NAME, folder.resolve().parent / FILE_NAME]
    for place in places:
        if place.is_file():
            return place
    looked = "".join(f"\n  {place}" for place in places)
    raise ConfigError(
        f"no {FILE_NAME} for the checkpoint {folder}; looked for{looked}\n"
        "copy it there from where the policy was trained; if its network takes raw numbers and gives raw actions, "
        'write "normalizer": "none" into its policy.json'
    )


def read_json(path: Path) -> Any:
    """What a JSON file holds; ConfigError when it cannot be read, or is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _read_range(numbers: Any, kind: str, where: str) -> Range:
    keys = KINDS[kind]
    if not isinstance(numbers, dict) or not set(keys) <= set(numbers):
        raise ConfigError(f"{where}: {kind} needs the lists {' and '.join(keys)}")
    first, second = (_floats(numbers[key], f"{where}, {key!r}") for key in keys)
    if len(first) != len(second):
        raise ConfigError(f"{where}: {keys[0]!r} has {len(first)} numbers, {keys[1]!r} {len(second)}")
    half = np.float32(0.5)
    found = Range(first, second) if kind == "zscore" else Range((first + second) * half, (second - first) * half)
    if bad := [index for index, scale in enumerate(found.scale) if scale <= 0]:
        what = "'std' is not above 0" if kind == "zscore" else "'max' is not above 'min'"
        raise ConfigError(
            f"{where}: {what} at {', '.join(map(str, bad[:8]))}{', …' if len(bad) > 8 else ''} (of {len(first)}): this "
            "number did not vary in the dataset; write the floor that the training used, often 0.01"
        )
    return found


def _floats(values: Any, where: str) -> Floats:
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(values, np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} is no list of numbers: {error}") from error
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ConfigError(f"{where} is no list of finite numbers")
    return array
