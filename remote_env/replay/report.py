"""FidelityReport: everything that is known about how far a replay is from its capture."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import CaptureError, ReplayError
from remote_env.replay.contacts import LimitViolation, LocalContact
from remote_env.replay.fidelity import Fidelity
from remote_env.replay.time_base import TimeBase
from remote_env.state import Floats

VERSION = 1
CONTACT_DEPTH_M = 1e-3
JSON_NAME, PLOT_NAME = "fidelity.json", "fidelity.png"
_NAMED = 5  # how many links a message names
_WORTH_SAYING = 1e-3  # [rad or m] beyond a joint's range: less is how a solver's soft limits give
_SAID = 3  # how many lines of one kind a person is told


@dataclass(frozen=True)
class Spread:
    """Errors of one kind over an episode.

    Attributes:
        max: the largest.
        rms: root of the mean square.
        worst: which link or joint has the largest; "" where all are exactly 0.
        state: and where; 0 is after reset, t after the t-th action.
    """

    max: float = 0.0
    rms: float = 0.0
    worst: str = ""
    state: int = 0

    @classmethod
    def of(cls, errors: Floats, names: Sequence[str]) -> Spread | None:
        """That of (T, N) errors of N things; None where there are none."""
        if not errors.size:
            return None
        state, column = divmod(int(np.argmax(errors)), errors.shape[1])
        largest, rms = float(errors[state, column]), float(np.sqrt(np.mean(np.square(errors))))
        return cls(largest, rms, names[column], state) if largest > 0 else cls()


@dataclass(frozen=True)
class LinkFidelity:
    """One pose of an entity: its root ("entity") or a link ("entity/link")."""

    name: str
    position_m: Spread
    rotation_rad: Spread


@dataclass(frozen=True)
class EntityFidelity:
    """One entity of the local model; None where it has nothing of that kind that was compared.

    Attributes:
        name: of the entity.
        position_m: over its root and links [m].
        rotation_rad: likewise [rad].
        joint_rad: over its hinges [rad].
        joint_m: over its slides [m].
        links: each pose by itself.
        over_time: kind -> (T,) the largest error at each state.
    """

    name: str
    position_m: Spread | None
    rotation_rad: Spread | None
    joint_rad: Spread | None
    joint_m: Spread | None
    links: tuple[LinkFidelity, ...] = ()
    over_time: Mapping[str, Floats] = field(default_factory=dict, repr=False, compare=False)

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        kinds = ("position_m", "rotation_rad", "joint_rad", "joint_m")
        plain: dict[str, Any] = {kind: _plain(getattr(self, kind)) for kind in kinds}
        plain["links"] = {
            link.name: {"position_m": _plain(link.position_m), "rotation_rad": _plain(link.rotation_rad)}
            for link in self.links
        }
        return plain


def _plain(spread: Spread | None) -> dict[str, Any] | None:
    return dataclasses.asdict(spread) if spread is not None else None


@dataclass(frozen=True)
class FidelityReport:
    """How far a replay is from its capture, entity by entity, and what the local model thinks of it.

    Attributes:
        name: of the capture.
        source: which simulator stated the captured poses.
        states: how many were compared.
        entities: in the order of the capture.
        contacts: bodies that touch in the local model, the deepest first.
        contacts_told: whether the far end told of contacts of its own.
        contact_depth_m: what deeper than counts as a penetration [m].
        limits: joints beyond their range in the local model.
        time_base: of the captured states.
        missing_links: captured links that the local model lacks: not compared.
        left_out: "what": "why", as the mapping has it: not compared.
        hints: what the errors look like, in words.
        fidelity: the largest errors alone.
    """

    name: str
    source: str
    states: int
    entities: tuple[EntityFidelity, ...]
    contacts: tuple[LocalContact, ...]
    contacts_told: bool
    contact_depth_m: float
    limits: tuple[LimitViolation, ...]
    time_base: TimeBase
    missing_links: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    hints: tuple[str, ...] = ()
    fidelity: Fidelity = field(default_factory=Fidelity)

    def worst(self, kind: str) -> Spread:
        """The largest error of "position_m", "rotation_rad", "joint_rad" or "joint_m"; its RMS is over that entity."""
        spreads = [getattr(entity, kind) for entity in self.entities]
        return max((spread for spread in spreads if spread is not None), key=_largest, default=Spread())

    @property
    def penetrations(self) -> tuple[LocalContact, ...]:
        """Contacts deeper than the threshold that the far end did not tell of and that are not there throughout.

        Where the far end tells of no contacts at all, they may have been there, too.
        """
        return tuple(
            contact
            for contact in self.contacts
            if contact.max_depth_m > self.contact_depth_m and not contact.throughout and not contact.is_told
        )

    def check(self, max_error_m: float | None = None, max_error_rad: float | None = None) -> None:
        """Make sure that every pose and joint is within these; None allows any.

        Raises:
            ReplayError: one is not; the message names the worst links and joints, and when. Or nothing was compared.
        """
        if not any(entity.position_m or entity.joint_rad or entity.joint_m for entity in self.entities):
            raise ReplayError(f"{self.name}: not one pose or joint was compared; is everything left out?")
        beyond = [*self._beyond(max_error_m, "m"), *self._beyond(max_error_rad, "rad")]
        if not beyond:
            return
        more = f", and {len(beyond) - _NAMED} more" if len(beyond) > _NAMED else ""
        why = "".join(f". {hint}" for hint in self.hints)
        raise ReplayError(f"{self.name} is not shown as it was captured: {'; '.join(beyond[:_NAMED])}{more}{why}")

    def _beyond(self, limit: float | None, unit: str) -> list[str]:
        if limit is None:
            return []
        found = [spread for spread in self._spreads(unit) if not spread.max <= limit]
        found.sort(key=_largest, reverse=True)
        return [
            f"{spread.worst} is off by {spread.max:.4g} {unit} at state {spread.state} (allowed: {limit:g} {unit})"
            for spread in found
        ]

    def _spreads(self, unit: str) -> Iterator[Spread]:
        for entity in self.entities:
            for link in entity.links:
                yield link.position_m if unit == "m" else link.rotation_rad
            joints = entity.joint_m if unit == "m" else entity.joint_rad
            if joints is not None:
                yield joints

    def lines(self) -> list[str]:
        """What a person wants to know, in a few lines; the first is about the errors."""
        position, rotation = self.worst("position_m"), self.worst("rotation_rad")
        said = [f"largest error {position.max:.3g} m{_where(position)}, {rotation.max:.3g} rad{_where(rotation)}"]
        if self.missing_links:
            said.append(f"not compared, for the model lacks them: {', '.join(self.missing_links)}")
        said += _few([_contact_line(contact, is_told=self.contacts_told) for contact in self.penetrations])
        said += _few(
            [
                f"{limit.joint} is {limit.max_excess:.3g} beyond its range {limit.limits} at state {limit.at_state}"
                for limit in self.limits
                if limit.max_excess > _WORTH_SAYING
            ]
        )
        return said + self.time_base.notes() + list(self.hints)

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        joints = {kind: self.worst(f"joint_{kind}") for kind in ("rad", "m")}
        position, rotation = self.worst("position_m"), self.worst("rotation_rad")
        return {
            "version": VERSION,
            "name": self.name,
            "source": self.source,
            "states": self.states,
            "max_position_error_m": position.max,
            "max_rotation_error_rad": rotation.max,
            "max_joint_error_rad": joints["rad"].max,
            "max_joint_error_m": joints["m"].max,
            "worst_position": position.worst,
            "worst_rotation": rotation.worst,
            "entities": {entity.name: entity.to_plain() for entity in self.entities},
            "missing_links": list(self.missing_links),
            "left_out": dict(self.left_out),
            "contact_depth_m": self.contact_depth_m,
            "contacts_told": self.contacts_told,
            "contacts": [dataclasses.asdict(contact) for contact in self.contacts],
            "penetrations": [dataclasses.asdict(contact) for contact in self.penetrations],
            "joint_limits": [dataclasses.asdict(limit) for limit in self.limits],
            "time_base": self.time_base.to_plain(),
            "hints": list(self.hints),
        }

    def save(self, folder: str | os.PathLike[str], *, plot: bool = True) -> Path:
        """Write `fidelity.png`, then `fidelity.json`, each whole or not at all; gives the latter's path.

        Raises:
            CaptureError: the disk does not take them.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if plot:
                from remote_env.replay.fidelity_plot import draw_fidelity

                _write_whole(folder / PLOT_NAME, draw_fidelity(self))
            text = json.dumps(self.to_plain(), indent=2) + "\n"
            _write_whole(folder / JSON_NAME, text.encode())
        except OSError as error:
            raise CaptureError(f"the fidelity report cannot be written to {folder}: {error.strerror}") from error
        return folder / JSON_NAME


def _largest(spread: Spread) -> float:
    return spread.max


def _where(spread: Spread) -> str:
    return f" ({spread.worst} at state {spread.state})" if spread.max > 0 else ""


def _contact_line(contact: LocalContact, *, is_told: bool) -> str:
    since = "from the start on" if contact.first_state == 0 else f"from state {contact.first_state} on"
    theirs = "which the far end did not tell of" if is_told else "whether they did on the far end is not told"
    return (
        f"in the local model {contact.first} and {contact.second} sink into each other, by "
        f"{contact.max_depth_m * 1000:.2g} mm at state {contact.at_state} ({since}, in {contact.states} states; "
        f"{theirs})"
    )


def _few(lines: list[str]) -> list[str]:
    more = len(lines) - _SAID
    return lines[:_SAID] + ([f"and {more} more of these, in {JSON_NAME}"] if more > 0 else [])


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
