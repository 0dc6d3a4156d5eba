"""Mapping: which name of a capture is which name of a local model, and how its numbers are changed on the way.

version: 1
origin: {position: [0, 0, 0], quaternion: [1, 0, 0, 0]}   # the environment's frame in the model's world
entities:
  robot:                        # name in the capture
    model: arm                  # root body in the model (default: the same name; null: the root has no body there)
    base: {position: [0, 0, 0], quaternion: [1, 0, 0, 0]}   # the model's root in the frame of the captured root
    move_base: false            # true: the model's fixed root body is put where the capture's root is
    joints:                     # q_model = sign * scale * q + offset; a list sets several joints of the model
      panda_joint1: {name: joint1, sign: -1, scale: 1.0, offset: 0.0}
      panda_joint2: joint2
    links: {panda_hand: hand}   # or {name: hand, position: [..], quaternion: [..]}, in the frame of the captured link
    ignore_joints: {finger2: "follows finger1"}
    ignore_links: {sensor: "has no body here"}
ignore: {entities: {table: "..."}, model_entities: {lamp: "..."}, model_joints: {arm/finger2: "..."}}
add_missing: false              # true: what the model lacks is added from the capture's own shapes

Whatever it does not name keeps its name and its numbers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping as Table
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from remote_env.errors import ConfigError
from remote_env.replay.compiling import Compiler
from remote_env.replay.mapped_states import SAME_PLACE, MappedStates, Numbers
from remote_env.replay.mapping_file import (
    plain_entity,
    pose_entry,
    read_entity,
    read_flag,
    read_pose,
    read_reasons,
    read_table,
    read_yaml,
    said,
)
from remote_env.replay.targets import EntityMapping
from remote_env.state import SceneLayout
from remote_env.tasks.mujoco_scene import MujocoScene

VERSION = 1
MappingLike: TypeAlias = "Mapping | Table[str, Any] | str | os.PathLike[str] | None"


@dataclass(frozen=True)
class Mapping:
    """A whole mapping; the one without entries takes every name as it is.

    Attributes:
        entities: captured name -> what becomes of it.
        ignore_entities: captured name -> why it is left out.
        ignore_model_entities: root body that moves in the model and not in the capture -> why.
        ignore_model_joints: "entity/joint" of the model that the capture does not set -> why.
        origin: (7,) the environment's frame in the model's world.
        add_missing: whether what the model lacks is added from the capture's own shapes.
    """

    entities: Table[str, EntityMapping] = field(default_factory=dict)
    ignore_entities: Table[str, str] = field(default_factory=dict)
    ignore_model_entities: Table[str, str] = field(default_factory=dict)
    ignore_model_joints: Table[str, str] = field(default_factory=dict)
    origin: Numbers = SAME_PLACE
    add_missing: bool = False

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mapping:
        """The mapping that a YAML file holds.

        Raises:
            ConfigError: there is no such file, it is no YAML, or it is no mapping; the message says where.
        """
        path = Path(path)
        try:
            return cls.from_plain(read_yaml(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_plain(cls, plain: Any) -> Mapping:
        """The mapping of plain dicts, lists, strings and numbers, as in the file.

        Raises:
            ConfigError: a key is unknown, missing or of another kind; the message says which.
        """
        table = read_table(plain, "", ("version", "origin", "entities", "ignore", "add_missing"))
        if table.get("version") != VERSION:
            raise ConfigError(f"version is {said(table.get('version'))}; this remote_env reads version {VERSION}")
        ignore = read_table(table.get("ignore"), "ignore", ("entities", "model_entities", "model_joints"))
        entities = read_table(table.get("entities"), "entities")
        return cls(
            {name: read_entity(name, entry) for name, entry in entities.items()},
            read_reasons(ignore.get("entities"), "ignore.entities"),
            read_reasons(ignore.get("model_entities"), "ignore.model_entities"),
            read_reasons(ignore.get("model_joints"), "ignore.model_joints"),
            read_pose(table.get("origin"), "origin"),
            read_flag(table.get("add_missing"), "add_missing"),
        )

    def to_plain(self) -> dict[str, Any]:
        """The exact opposite of `from_plain`; what is as by default is left out."""
        ignore = {
            "entities": dict(self.ignore_entities),
            "model_entities": dict(self.ignore_model_entities),
            "model_joints": dict(self.ignore_model_joints),
        }
        plain: dict[str, Any] = {"version": VERSION}
        plain |= pose_entry("origin", self.origin)
        plain["entities"] = {name: plain_entity(entity) for name, entity in self.entities.items()}
        plain |= {"ignore": {key: table for key, table in ignore.items() if table}} if any(ignore.values()) else {}
        return plain | ({"add_missing": True} if self.add_missing else {})

    def compile(self, captured: SceneLayout, local: SceneLayout, *, scene: MujocoScene | None = None) -> MappedStates:
        """What turns states of `captured` into states of a model.

        Args:
            captured: of the states.
            local: of the model, as `MujocoScene.layout`.
            scene: that of the model, which also knows what moves and where it stands at rest; None: what has joints
                moves.

        Raises:
            ReplayError: names do not match; the message lists every one, on both sides, and what they may have meant.
        """
        return Compiler(self, captured, local, scene).result()


def as_mapping(mapping: MappingLike) -> Mapping:
    """The mapping itself, of plain values, of a file; None: the one that takes every name as it is."""
    if mapping is None:
        return Mapping()
    if isinstance(mapping, Mapping):
        return mapping
    return Mapping.from_plain(mapping) if isinstance(mapping, Table) else Mapping.load(mapping)
