"""A mapping, a captured layout and a model's layout into `MappedStates`, or into one message with all that is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from remote_env.errors import ReplayError
from remote_env.replay.alike import closest, did_you_mean
from remote_env.replay.mapped_states import SAME_PLACE, Block, JointSource, MappedStates, PoseSource
from remote_env.replay.targets import EntityMapping, JointTarget, LinkTarget
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, EntityLayout, SceneLayout
from remote_env.tasks.mujoco_scene import MujocoScene

if TYPE_CHECKING:
    from remote_env.replay.mapping import Mapping

HINT = (
    "Replay with the model that was simulated, or one with the same names, or say which name is which: "
    "remote-env map CAPTURE MODEL -o mapping.yaml"
)


class Compiler:
    """Works a mapping through; each method notes what is wrong and goes on, so that one message says all.

    Args:
        mapping: as written.
        captured: of the states.
        local: of the model.
        scene: the model's scene, which also knows what moves and where it stands at rest; None: what has joints moves.

    Attributes:
        blocks: the model's entity -> where its values come from.
        faults: what the mapping says and what cannot be.
        only_captured: "entity" or "entity/joint name" that the model lacks.
        only_local: the same of the model, where the capture says nothing of it.
        missing_links: captured links that the model lacks.
    """

    def __init__(
        self, mapping: Mapping, captured: SceneLayout, local: SceneLayout, scene: MujocoScene | None = None
    ) -> None:
        self._mapping, self._captured, self._scene = mapping, captured, scene
        self._locals = {entity.name: entity for entity in local.entities}
        self._joint_owners = {joint: entity.name for entity in local.entities for joint in entity.joint_names}
        self._link_owners = {link: entity.name for entity in local.entities for link in entity.link_names}
        self.blocks: dict[str, Block] = {}
        self._homes: dict[str, str] = {}  # model entity -> the captured one whose root it has
        self._names: dict[str, str] = {}
        self.faults: list[str] = []
        self.only_captured: list[str] = []
        self.only_local: list[str] = []
        self.missing_links: list[str] = []
        self._work()

    def result(self) -> MappedStates:
        """The mapping to work with; ReplayError with everything that is wrong."""
        if self.faults or self.only_captured or self.only_local:
            raise ReplayError(self.message())
        return MappedStates(
            self._captured,
            self.blocks,
            origin=self._mapping.origin,
            moved=frozenset(self._moved()),
            captured_names=self._names,
            missing_links=tuple(self.missing_links),
        )

    def message(self) -> str:
        """All that is wrong, on both sides."""
        source = self._captured.source or "an unnamed source"
        parts = [f"the capture (of {source}) does not fit the local model"]
        if self.faults:
            parts[0] = (
                f"the mapping does not fit the capture (of {source}) and the local model: {'; '.join(self.faults)}"
            )
        if self.only_captured or self.only_local or not self.faults:
            parts.append(
                f"only in the capture: {', '.join(self.only_captured) or 'nothing'}; only in the model: "
                f"{', '.join(self.only_local) or 'nothing'}; links only in the capture: "
                f"{', '.join(self.missing_links) or 'none'}"
            )
        alike = ", ".join(self._alike())
        return ": ".join(parts) + (f"; alike: {alike}" if alike else "") + f". {HINT}"

    def _alike(self) -> Iterator[str]:
        for name in self.only_captured:
            same_kind = [other for other in self.only_local if ("/joint " in other) == ("/joint " in name)]
            found = closest(name, same_kind)
            if found:
                yield f"{name} = {found[0]}?"

    def _work(self) -> None:
        self._check_known()
        for entity in self._captured.entities:
            if entity.name not in self._mapping.ignore_entities:
                self._add_entity(entity)
        self._add_roots()
        self._find_only_local()

    def _check_known(self) -> None:
        """Every name that the mapping gives must be there: a typing error would otherwise do nothing, silently."""
        captured = [entity.name for entity in self._captured.entities]
        for where, names in (
            ("entities", self._mapping.entities),
            ("ignore.entities", self._mapping.ignore_entities),
        ):
            for name in names:
                if name not in captured:
                    self.faults.append(f"{where}.{name}: the capture has no such entity{did_you_mean(name, captured)}")
        for name in self._mapping.ignore_model_entities:
            if name not in self._locals:
                known = did_you_mean(name, list(self._locals))
                self.faults.append(f"ignore.model_entities.{name}: the model has no such entity{known}")
        joints = [f"{owner}/{joint}" for joint, owner in self._joint_owners.items()]
        for name in self._mapping.ignore_model_joints:
            if name not in joints:
                self.faults.append(
                    f"ignore.model_joints.{name}: the model has no such joint{did_you_mean(name, joints)}"
                )

    def _add_entity(self, entity: EntityLayout) -> None:
        rule = self._rule(entity)
        if rule.model is not None and rule.model not in self._locals:
            self._note_lost(entity)
            return
        if rule.model is not None:
            self._add_home(entity, rule, rule.model)
        self._check_parts(entity, rule)
        self._add_joints(entity, rule)
        self._add_links(entity, rule)

    def _rule(self, entity: EntityLayout) -> EntityMapping:
        return self._mapping.entities.get(entity.name) or EntityMapping(entity.name)

    def _note_lost(self, entity: EntityLayout) -> None:
        rule = self._mapping.entities.get(entity.name)
        if rule is None:
            self.only_captured.append(entity.name)
        else:
            known = did_you_mean(str(rule.model), list(self._locals))
            self.faults.append(f"entities.{entity.name}.model: the model has no entity {rule.model!r}{known}")
        self.missing_links += [entity.name, *(f"{entity.name}/{link}" for link in entity.link_names)]

    def _add_home(self, entity: EntityLayout, rule: EntityMapping, home: str) -> None:
        if home in self._homes:
            self.faults.append(f"the entities {self._homes[home]!r} and {entity.name!r} are both mapped to {home!r}")
            return
        self._homes[home] = entity.name
        start = self._captured.offsets[entity.name]
        self._block(home).root = PoseSource(start, start + POSE_SIZE, rule.base)
        if home != entity.name:
            self._names[home] = entity.name

    def _block(self, name: str) -> Block:
        return self.blocks.setdefault(name, Block())

    def _check_parts(self, entity: EntityLayout, rule: EntityMapping) -> None:
        where = f"entities.{entity.name}"
        for key, names, known in (
            ("joints", rule.joints, entity.joint_names),
            ("ignore_joints", rule.ignore_joints, entity.joint_names),
            ("links", rule.links, entity.link_names),
            ("ignore_links", rule.ignore_links, entity.link_names),
        ):
            kind = key.removeprefix("ignore_")
            for name in names:
                if name not in known:
                    told = did_you_mean(name, known)
                    self.faults.append(
                        f"{where}.{key}.{name}: the captured {entity.name!r} has no such {kind[:-1]}{told}"
                    )
            if key == kind:
                both = sorted(set(names) & set(rule.ignore_joints if kind == "joints" else rule.ignore_links))
                self.faults += [f"{where}: {name} is both mapped and ignored" for name in both]

    def _add_joints(self, entity: EntityLayout, rule: EntityMapping) -> None:
        position = self._captured.offsets[entity.name] + POSE_SIZE + VELOCITY_SIZE
        for index, joint in enumerate(entity.joint_names):
            if joint in rule.ignore_joints:
                continue
            place = position + index
            for target in rule.joints.get(joint, ()):
                self._add_joint(entity, joint, target, place)
            if joint not in rule.joints:
                self._keep_joint(entity, rule, joint, place)

    def _keep_joint(self, entity: EntityLayout, rule: EntityMapping, joint: str, place: int) -> None:
        """A joint that the mapping does not name is the one of the same name in the same entity."""
        if rule.model is not None and joint in self._locals[rule.model].joint_names:
            self._add_joint(entity, joint, JointTarget(joint), place)
        else:
            self.only_captured.append(f"{entity.name}/joint {joint}")

    def _add_joint(self, entity: EntityLayout, joint: str, target: JointTarget, place: int) -> None:
        where = f"entities.{entity.name}.joints.{joint}"
        owner = self._joint_owners.get(target.name)
        if owner is None:
            known = did_you_mean(target.name, list(self._joint_owners))
            self.faults.append(f"{where}: the model has no joint {target.name!r}{known}")
            return
        joints = self._block(owner).joints
        if target.name in joints:
            self.faults.append(f"{where}: the model's joint {target.name!r} is set by another captured joint, too")
            return
        factor = target.sign * target.scale
        joints[target.name] = JointSource(place, place + len(entity.joint_names), factor, target.offset)
        self._note_name(f"{owner}/{target.name}", f"{entity.name}/{joint}")

    def _note_name(self, local: str, captured: str) -> None:
        if local != captured:
            self._names[local] = captured

    def _add_links(self, entity: EntityLayout, rule: EntityMapping) -> None:
        first = self._captured.offsets[entity.name] + POSE_SIZE + VELOCITY_SIZE + 2 * len(entity.joint_names)
        for index, link in enumerate(entity.link_names):
            if link in rule.ignore_links:
                continue
            start = first + POSE_SIZE * index
            for target in rule.links.get(link, ()):
                self._add_link(entity, link, target, start, rule)
            if link not in rule.links:
                self._keep_link(entity, rule, link, start, is_root=index == 0)

    def _keep_link(self, entity: EntityLayout, rule: EntityMapping, link: str, start: int, *, is_root: bool) -> None:
        if rule.model is None:
            self.missing_links.append(f"{entity.name}/{link}")
            return
        home = self._locals[rule.model]
        if link in home.link_names:
            self._add_link(entity, link, LinkTarget(link), start, rule)
        elif is_root and entity.name in self._mapping.entities:
            self._add_link(entity, link, LinkTarget(rule.model), start, rule)
        else:
            self._block(rule.model).links[link] = PoseSource(start)  # named, so that a report can say what is missing
            self.missing_links.append(f"{entity.name}/{link}")

    def _add_link(self, entity: EntityLayout, link: str, target: LinkTarget, start: int, rule: EntityMapping) -> None:
        where = f"entities.{entity.name}.links.{link}"
        owner = self._link_owners.get(target.name)
        if owner is None:
            known = did_you_mean(target.name, list(self._link_owners))
            self.faults.append(f"{where}: the model has no body {target.name!r}{known}")
            return
        block = self._block(owner)
        if target.name in block.links:
            self.faults.append(f"{where}: the model's body {target.name!r} has another captured link, too")
            return
        is_home_root = target.name == owner == rule.model
        pose = rule.base if is_home_root and target.pose == SAME_PLACE else target.pose
        block.links[target.name] = PoseSource(start, pose=pose)
        self._note_name(f"{owner}/{target.name}", f"{entity.name}/{link}")

    def _add_roots(self) -> None:
        """What no captured root became: a link that is mapped to its root body, or where the model itself puts it."""
        for name, block in self.blocks.items():
            if block.root is not None:
                continue
            block.root = block.links.get(name) or self._resting(name)
            if block.root is None:
                self.faults.append(
                    f"no captured root or link says where the model's {name!r} is: map an entity to it, or a link to "
                    "its root body"
                )

    def _resting(self, name: str) -> PoseSource | None:
        if self._scene is None or name in self._scene.floating:
            return None
        return PoseSource(-1, pose=self._scene.rest_pose(name))

    def _moving(self) -> set[str]:
        if self._scene is not None:
            return set(self._scene.moving)
        return {name for name, entity in self._locals.items() if entity.joint_names}

    def _find_only_local(self) -> None:
        moving = self._moving()
        for name, entity in self._locals.items():
            block = self.blocks.get(name)
            if block is None:
                if name in moving and name not in self._mapping.ignore_model_entities:
                    self.only_local.append(name)
                continue
            if name in self._mapping.ignore_model_entities:
                self.faults.append(f"ignore.model_entities.{name}: it is mapped, too")
            self._find_only_local_joints(entity, block)

    def _find_only_local_joints(self, entity: EntityLayout, block: Block) -> None:
        for joint in entity.joint_names:
            ignored = f"{entity.name}/{joint}" in self._mapping.ignore_model_joints
            if joint in block.joints and ignored:
                self.faults.append(f"ignore.model_joints.{entity.name}/{joint}: it is mapped, too")
            elif joint not in block.joints and not ignored:
                self.only_local.append(f"{entity.name}/joint {joint}")

    def _moved(self) -> Iterator[str]:
        for name, captured in self._homes.items():
            rule = self._mapping.entities.get(captured)
            if rule is not None and rule.move_base:
                yield name
