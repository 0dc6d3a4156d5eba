"""Which of a task's sources feeds which feature of a policy: by what was given, by name, or since there is no other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remote_env.errors import ConfigError
from remote_env.policy.images import size_of
from remote_env.policy.policy import Feature, PolicyMetadata
from remote_env.policy.sources import Source

GIVEN_KEYS = ("from", "order", "scale", "units", "resize", "text", "shape")


@dataclass(frozen=True)
class Match:
    """What feeds one feature.

    Attributes:
        sources: one; several states one after another; none when `text` is it.
        text: a fixed text.
        given: what the caller said about this feature.
    """

    sources: tuple[Source, ...] = ()
    text: str = ""
    given: Mapping[str, Any] | None = None

    def option(self, key: str, default: Any = None) -> Any:
        """What was given under `key`."""
        return (self.given or {}).get(key, default)


class Matching:
    """Finds a match for every feature, or says all that is wrong at once.

    Args:
        metadata: whose features are wanted.
        sources: what the task offers.
        given: feature -> {"from": …, …}, or the name of a source alone.
        instruction: for text features.
    """

    def __init__(
        self, metadata: PolicyMetadata, sources: Sequence[Source], given: Mapping[str, Any], instruction: str
    ) -> None:
        self.metadata, self.sources, self.instruction = metadata, list(sources), instruction
        self.given = {name: checked_options(name, value) for name, value in given.items()}
        self.matches: dict[str, Match] = {}
        self.faults: dict[str, str] = {}

    def find(self) -> dict[str, Match]:
        """Feature -> Match, for each feature.

        Raises:
            ConfigError: a feature has no source or could have two; the message lists both sides.
        """
        if unknown := sorted(set(self.given) - set(self.metadata.observation)):
            self.faults |= dict.fromkeys(unknown, "the policy has no such feature")
        for step in (self._by_given, self._by_name, self._by_scalars, self._by_text, self._by_elimination):
            for name, feature in self.metadata.observation.items():
                if name not in self.matches and name not in self.faults:
                    step(name, feature)
        if self.faults:
            raise ConfigError(self.explain(self.faults))
        return {name: self.matches[name] for name in self.metadata.observation}

    def explain(self, faults: Mapping[str, str]) -> str:
        """The faults, what the policy takes beside what the task offers, and how to say which is which."""
        lines = [f"the policy {self.metadata.name!r} does not fit the task's observations:"]
        lines += [f"  {name}: {fault}" for name, fault in faults.items()]
        takes = [f"{name} {feature}" for name, feature in self.metadata.observation.items()]
        lines += two_columns("the policy takes", takes, "the task offers", [str(source) for source in self.sources])
        example = next((name for name in faults if name in self.metadata.observation), None)
        if example is not None:
            lines.append(f"say which is which, as in {json.dumps(self._example(example))}")
        return "\n".join(lines)

    def _example(self, name: str) -> dict[str, Any]:
        kind = self.metadata.observation[name].kind
        if kind == "text":
            return {name: {"text": "pick up the cube"}}
        of_kind = [source.label for source in self.sources if source.kind == kind]
        option = {"resize": True} if kind == "image" else {"order": [0, 1, 2]}
        return {name: {"from": of_kind[0] if of_kind else "<name>", **option}}

    def _by_given(self, name: str, feature: Feature) -> None:
        options = self.given.get(name, {})
        if "text" in options:
            self.matches[name] = Match(text=str(options["text"]), given=options)
        elif "from" in options:
            labels = [options["from"]] if isinstance(options["from"], str) else list(options["from"])
            found = [source for label in labels for source in self.sources if source.label == label]
            if len(found) != len(labels):
                unknown = sorted(set(labels) - {source.label for source in found})
                self.faults[name] = f"the task offers no {', '.join(map(repr, unknown))}"
            elif len(found) > 1 and feature.kind != "state":
                self.faults[name] = "only states can be put together from several sources"
            else:
                self._take(name, feature, tuple(found))

    def _by_name(self, name: str, feature: Feature) -> None:
        of_kind = [source for source in self.sources if source.kind == feature.kind]
        exact = [source for source in of_kind if _unified(source.label) == _unified(name)]
        found = exact or [source for source in of_kind if _last(source.label) == _last(name)]
        if len(found) == 1:
            self._take(name, feature, (found[0],))
        elif found:
            self.faults[name] = f"could be {' or '.join(source.label for source in found)}"

    def _by_scalars(self, name: str, feature: Feature) -> None:
        """A state whose numbers the task offers one by one, as robots do: "left_waist.pos" and so on."""
        scalars = {source.label: source for source in self.sources if source.kind == "state" and source.size == 1}
        if feature.kind == "state" and feature.names and set(feature.names) <= set(scalars):
            self._take(name, feature, tuple(scalars[each] for each in feature.names))

    def _by_text(self, name: str, feature: Feature) -> None:
        if feature.kind == "text" and self.instruction:
            self.matches[name] = Match(text=self.instruction)

    def _by_elimination(self, name: str, feature: Feature) -> None:
        used = {source for match in self.matches.values() for source in match.sources}
        free = [source for source in self.sources if source.kind == feature.kind and source not in used]
        found = [source for source in free if self.misfit(name, feature, (source,)) == ""]
        rivals = [other for other in self._unmatched(feature.kind) if other != name and self._fits(other, found)]
        if not found:
            self.faults[name] = self._why_none(name, feature, free)
        elif len(found) > 1:
            self.faults[name] = f"could be {' or '.join(source.label for source in found)}"
        elif rivals:
            self.faults[name] = f"{found[0].label} could also be the source of {', '.join(rivals)}"
        else:
            self._take(name, feature, (found[0],))

    def _unmatched(self, kind: str) -> list[str]:
        features = self.metadata.observation.items()
        return [name for name, feature in features if feature.kind == kind and name not in self.matches]

    def _fits(self, name: str, sources: Sequence[Source]) -> bool:
        feature = self.metadata.observation[name]
        return any(self.misfit(name, feature, (source,)) == "" for source in sources)

    def _why_none(self, name: str, feature: Feature, free: Sequence[Source]) -> str:
        if feature.kind == "text":
            return "the policy needs an instruction and none was given"
        if len(free) == 1:
            return f"{free[0].label} {self.misfit(name, feature, (free[0],))}"
        return f"the task offers no {feature.kind} of this size that is not taken"

    def _take(self, name: str, feature: Feature, sources: tuple[Source, ...]) -> None:
        if fault := self.misfit(name, feature, sources):
            self.faults[name] = f"{' + '.join(source.label for source in sources)} {fault}"
        else:
            self.matches[name] = Match(sources, given=self.given.get(name))

    def misfit(self, name: str, feature: Feature, sources: tuple[Source, ...]) -> str:
        """Why these sources cannot feed the feature; "" when they can."""
        if any(source.kind != feature.kind for source in sources):
            return f"is no {feature.kind}"
        if feature.kind == "image":
            return _image_misfit(feature, sources[0], resize=bool(self.given.get(name, {}).get("resize")))
        return _state_misfit(feature, sources, self.given.get(name, {})) if feature.kind == "state" else ""


def checked_options(name: str, value: Any) -> dict[str, Any]:
    """What was given for one feature, as a dict with known keys; ConfigError otherwise."""
    options = {"from": value} if isinstance(value, (str, list, tuple)) else value
    if not isinstance(options, Mapping):
        raise ConfigError(f"the mapping of {name!r} is a source's name or {{'from': …}}; got {value!r}")
    if unknown := sorted(set(options) - set(GIVEN_KEYS)):
        raise ConfigError(f"the mapping of {name!r} has unknown keys {unknown}; there are {', '.join(GIVEN_KEYS)}")
    order = options.get("order", "as is")
    if order != "as is" and not isinstance(order, (list, tuple)):
        raise ConfigError(f"'order' of {name!r} is a list of indices or names, or 'as is'; got {order!r}")
    return dict(options)


def two_columns(left_title: str, left: Sequence[str], right_title: str, right: Sequence[str]) -> list[str]:
    """Two lists side by side, as lines."""
    rows = [(left_title, right_title)]
    height = max(len(left), len(right))
    rows += [(*pair,) for pair in zip(_padded(left, height), _padded(right, height), strict=True)]
    width = max(len(first) for first, _ in rows) + 3
    return [f"    {first:<{width}}{second}".rstrip() for first, second in rows]


def joined_names(sources: Sequence[Source]) -> tuple[str, ...]:
    """The names of all numbers of these sources; () when those of one are unknown."""
    names: list[str] = []
    for source in sources:
        if not source.names and source.size != 1:
            return ()
        names += source.names or (source.label,)
    return tuple(names)


def _state_misfit(feature: Feature, sources: tuple[Source, ...], options: Mapping[str, Any]) -> str:
    wanted, offered = feature.shape[0], sum(source.size for source in sources)
    if isinstance(options.get("order"), (list, tuple)):
        return ""  # that says which numbers; its entries are checked where it is used
    names = joined_names(sources)
    if feature.names and names and options.get("order") != "as is":
        missing = [name for name in feature.names if name not in names]
        if missing and len(missing) == wanted == offered:
            return f"names none of the policy's numbers ({feature.names[0]}, …); give their order, or 'as is'"
        return f"lacks {', '.join(missing[:8])}{', …' if len(missing) > 8 else ''}" if missing else ""
    return "" if wanted == offered else f"has {offered} numbers, the policy takes {wanted}"


def _image_misfit(feature: Feature, source: Source, *, resize: bool) -> str:
    height, width, channels = size_of(feature.shape, feature.layout or "HWC")
    old_height, old_width, old_channels = source.image_size
    if channels != old_channels:
        return f"has {old_channels} channels, the policy takes {channels}"
    if (height, width) != (old_height, old_width) and not resize:
        return f"is {old_height}×{old_width} and the policy takes {height}×{width}: 'resize': true scales it"
    return ""


def _unified(name: str) -> str:
    return name.replace(".", "/")


def _last(name: str) -> str:
    return _unified(name).rpartition("/")[2]


def _padded(items: Sequence[str], height: int) -> list[str]:
    return [*items, *[""] * (height - len(items))]
