"""What one captured entity, joint or link becomes in the model."""

from __future__ import annotations

from collections.abc import Mapping as Table
from dataclasses import dataclass, field

from remote_env.replay.mapped_states import SAME_PLACE, Numbers


@dataclass(frozen=True)
class JointTarget:
    """A joint of the model: its position is sign * scale * q + offset [rad or m] of the captured q."""

    name: str
    sign: float = 1.0
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class LinkTarget:
    """A body of the model, and its pose (7,) in the frame of the captured link."""

    name: str
    pose: Numbers = SAME_PLACE


@dataclass(frozen=True)
class EntityMapping:
    """One captured entity.

    Attributes:
        model: root body in the model; None: its root has no body there, but its links may.
        base: (7,) the model's root in the frame of the captured root.
        move_base: whether a fixed root body of the model is put where the captured root is.
        joints: captured name -> joints of the model.
        links: captured name -> bodies of the model.
        ignore_joints: captured name -> why.
        ignore_links: captured name -> why.
    """

    model: str | None
    base: Numbers = SAME_PLACE
    move_base: bool = False
    joints: Table[str, tuple[JointTarget, ...]] = field(default_factory=dict)
    links: Table[str, tuple[LinkTarget, ...]] = field(default_factory=dict)
    ignore_joints: Table[str, str] = field(default_factory=dict)
    ignore_links: Table[str, str] = field(default_factory=dict)
