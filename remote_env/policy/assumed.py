"""Features of a policy whose server does not say what it takes: what the task offers, or what the mapping names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from remote_env.errors import ConfigError
from remote_env.policy.matching import checked_options, joined_names, two_columns
from remote_env.policy.policy import Feature, PolicyMetadata
from remote_env.policy.sources import ROOT, Source

# Dialect -> what its clients usually call the instruction.
_TEXT_NAMES = {"openpi": "prompt"}


def is_unknown(metadata: PolicyMetadata) -> bool:
    """Whether the policy's server did not say what it takes."""
    return bool(metadata.extra.get("unknown")) and not metadata.observation


def assumed_metadata(
    metadata: PolicyMetadata, sources: Sequence[Source], given: Mapping[str, Any], instruction: str
) -> tuple[PolicyMetadata, dict[str, Any]]:
    """Metadata with features, and where each of them comes from.

    Args:
        metadata: of the policy, without features.
        sources: what the task offers.
        given: feature -> source, as `ObservationMapping.between`, here with "shape" for what is to be resized; just
            these features are sent. When it is empty, everything is that the task offers, under the task's names.
        instruction: sent as a text, too, unless a text is given.

    Raises:
        ConfigError: a mapping is wrong, or names what the task does not offer.
    """
    options = {name: checked_options(name, value) for name, value in given.items()}
    if not options:
        usable = [source for source in sources if source.kind != "other"]
        options = {_name_of(source): {"from": source.label} for source in usable}
    features = {name: _feature(name, option, sources) for name, option in options.items()}
    if instruction and not any(feature.kind == "text" for feature in features.values()):
        name = _TEXT_NAMES.get(metadata.name.partition("://")[0], "task")
        features[name], options[name] = Feature("text", dtype=""), {"text": instruction}
    return replace(metadata, observation=features), options


def _name_of(source: Source) -> str:
    return source.label if source.label != ROOT else source.kind


def _feature(name: str, options: dict[str, Any], sources: Sequence[Source]) -> Feature:
    if "text" in options:
        return Feature("text", dtype="")
    labels = options.get("from", name)
    found = [source for label in _listed(labels) for source in sources if source.label == label]
    if len(found) != len(_listed(labels)) or found[0].kind == "other":
        offers = [str(source) for source in sources]
        lines = two_columns("the mapping names", [f"{name}: {labels}"], "the task offers", offers)
        raise ConfigError("\n".join([f"{name}: the task offers no {labels!r} that a policy can take", *lines]))
    options["from"] = labels
    shape = tuple(int(size) for size in options.get("shape", ()))
    first = found[0]
    if first.kind == "text":
        return Feature("text", dtype="")
    if first.kind == "image":
        # The same layout; "shape" is then in that layout too.
        return Feature("image", shape or first.shape, first.dtype, layout=first.layout)
    order = options.get("order")
    size = len(order) if isinstance(order, (list, tuple)) else int(np.sum([source.size for source in found]))
    return Feature("state", shape or (size,), names=() if order else joined_names(found))


def _listed(labels: Any) -> list[str]:
    return [labels] if isinstance(labels, str) else list(labels)
