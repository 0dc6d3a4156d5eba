"""IsaacScene: the `SceneState`s of an Isaac Lab scene, of all its environments at once.

On the device a scene is one float32 tensor with a row per environment, in the simulator's own terms (`IsaacScene.raw`),
so that it crosses to the host together with a step's observation. Here it becomes what this project means by a state:
environment frame, quaternions wxyz, velocities of frame origins, float64.

Every scalar joint is a joint here, one that mimics another too; a tendon is part of no state.

Restoring writes root poses, root velocities, joints and the episode's clock, and nothing else: neither a task's own
buffers nor what a solver keeps between steps. Measured with Isaac Lab 3.0.0 and Newton's MuJoCo solver on a CPU:
after a restore every value of the step that follows was within 3.8e-6 (m, rad, m/s, rad/s) of the step after the
original, which is float32's rounding of its largest velocity, contacts included; 25 steps later within 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remote_env import poses
from remote_env.errors import InputError, TaskError
from remote_env.server.isaac.lab import Lab
from remote_env.server.isaac.transfer import to_host
from remote_env.state import POSE_SIZE, VELOCITY_SIZE, EntityLayout, Floats, SceneLayout, SceneState

PREFIX_SIZE = 4  # of a raw row: steps since the episode's start, and the environment's origin x y z [m]
CENTRE_SIZE = 3
MAX_STEPS = 2**31  # what the narrowest of its clocks can count
RAW_ORDER = {"wxyz": (3, 4, 5, 6), "xyzw": (6, 3, 4, 5)}  # where w x y z stand in a raw pose


@dataclass(frozen=True)
class Part:
    """One entity: an articulation, a rigid object, or one object of a collection.

    Attributes:
        layout: its names.
        asset: Isaac Lab's own.
        index: of the object in its collection; None for an asset of its own.
        start: where its block begins in a raw row.
        is_of_centre: whether the raw velocity is of the centre of mass; that then follows the block.
    """

    layout: EntityLayout
    asset: Any
    index: int | None
    start: int
    is_of_centre: bool

    @property
    def raw_size(self) -> int:
        """How many numbers of a raw row are this entity's."""
        return self.layout.size + (CENTRE_SIZE if self.is_of_centre else 0)


class IsaacScene:
    """Reads and writes the scene of an environment.

    Args:
        env: unwrapped; with `scene`, `step_dt`, `episode_length_buf`.
        lab: the version's own ways: `Lab3` or `Lab2`.
        source: the simulator and version, for the layout.
    """

    def __init__(self, env: Any, lab: Lab, source: str) -> None:
        self._env, self._lab = env, lab
        self.parts = _find_parts(env.scene, lab)
        self.layout = SceneLayout(tuple(part.layout for part in self.parts), source)
        self._columns, self._positions, self._quaternions = self._compile(RAW_ORDER[lab.quaternion_order])
        self._owners = [
            part.layout.name for part in self.parts for _ in range(1 + len(part.layout.link_names))
        ]  # of each pose

    def raw(self) -> Any:
        """The scenes of all environments as they are: (N, raw size) float32 on the device, in memory of its own."""
        import torch

        env, count = self._env, self._env.num_envs
        steps = env.episode_length_buf.reshape(count, 1).to(torch.float32)
        pieces = [steps, env.scene.env_origins.to(steps.device, torch.float32)]
        for part in self.parts:
            pieces += [piece.reshape(count, -1).to(torch.float32) for piece in self._pieces(part)]
        return torch.cat(pieces, dim=1)

    def values(self, raw: NDArray[np.float32]) -> Floats:
        """States from raw rows.

        Args:
            raw: (K, raw size), brought to the host.

        Returns:
            (K, layout.size) float64, of memory of its own.

        Raises:
            TaskError: a pose is not one, as when the physics has diverged; the message names the entity.
        """
        wide = raw.astype(np.float64)
        values: Floats = wide[:, self._columns]
        values[:, 0] *= self._env.step_dt
        values[:, self._positions] -= wide[:, None, 1:PREFIX_SIZE]
        values[:, self._quaternions] = self._normalized(values[:, self._quaternions])
        for part in self.parts:
            if part.is_of_centre:
                self._move_velocity(part, wide, values)
        return values

    def write(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """Put environments into states, row by row.

        Raises:
            InputError: the states are of another scene; the message lists what differs. Nothing was written.
        """
        self.check(layout, values, env_ids)
        import torch

        env = self._env
        ids = torch.as_tensor(np.asarray(env_ids, np.int64), device=env.device)
        origins = to_host(env.scene.env_origins[ids]).astype(np.float64)
        blocks = {part.layout.name: _block_by_name(part.layout, layout, values) for part in self.parts}
        for part in self.parts:
            if part.index is None:
                self._write_asset(part, blocks[part.layout.name], origins, ids)
        for collection in dict.fromkeys(part.asset for part in self.parts if part.index is not None):
            self._write_collection(collection, blocks, origins, ids)
        steps = np.rint(values[:, 0] / env.step_dt).astype(np.int64)
        env.episode_length_buf[ids] = torch.as_tensor(steps, device=env.device).to(env.episode_length_buf.dtype)
        env.scene.write_data_to_sim()
        env.sim.forward()

    def check(self, layout: SceneLayout, values: Floats, env_ids: Sequence[int]) -> None:
        """Raise InputError unless these are states of this scene for environments that there are."""
        count = self._env.num_envs
        if any(not 0 <= int(index) < count for index in env_ids) or len(set(env_ids)) != len(env_ids):
            raise InputError(f"env_ids={list(env_ids)}: each from 0 to {count - 1}, and none twice")
        if values.shape != (len(env_ids), layout.size):
            raise InputError(
                f"states of shape {values.shape}; for {len(env_ids)} environments: {(len(env_ids), layout.size)}"
            )
        # As the simulator will have them: what float32 cannot hold would become infinite there.
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(values.astype(np.float32)).all()
        if not is_finite:
            raise InputError("the states to restore hold values that are not finite, or too large for float32")
        theirs = {entity.name: entity for entity in layout.entities}
        ours = {part.layout.name: part.layout for part in self.parts}
        wrong = [f"{name} is missing" for name in ours.keys() - theirs.keys()]
        wrong += [f"{name} is none of this scene's" for name in theirs.keys() - ours.keys()]
        for name in ours.keys() & theirs.keys():
            differing = set(ours[name].joint_names) ^ set(theirs[name].joint_names)
            wrong += [f"{name}/{joint} is only on one side" for joint in sorted(differing)]
        if wrong:
            raise InputError(f"the states to restore are of another scene: {'; '.join(sorted(wrong))}")
        steps = values[:, 0] / self._env.step_dt
        if not ((steps > -0.5) & (steps < MAX_STEPS)).all():
            raise InputError(
                f"the states to restore are at {values[:, 0].tolist()} s; an episode's clock begins at 0 s"
            )
        for row in values:
            SceneState(layout, row).check()

    def _pieces(self, part: Part) -> list[Any]:
        """The tensors of one entity's raw block, each with a row per environment."""
        data, lab = part.asset.data, self._lab
        if part.index is not None:
            pose, velocity = (tensor[:, part.index] for tensor in lab.objects(data))
            return [pose, velocity, pose]
        joints = lab.joints(data) if part.layout.joint_names else ()
        centre = [lab.root_centre(data)] if part.is_of_centre else []
        return [lab.root_pose(data), lab.root_velocity(data), *joints, lab.body_poses(data), *centre]

    def _compile(self, order: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Which raw column each value comes from, and where positions (P, 3) and quaternions (P, 4) are in a state."""
        columns, positions, quaternions = [0], [], []
        for part in self.parts:
            at = self.layout.offsets[part.layout.name]
            size, links = part.layout.size, len(part.layout.link_names)
            block = np.arange(part.start, part.start + size)
            starts = [0, *(size - POSE_SIZE * (links - index) for index in range(links))]
            for start in starts:
                block[start + 3 : start + POSE_SIZE] = [part.start + start + offset for offset in order]
                positions.append(np.arange(at + start, at + start + 3))
                quaternions.append(np.arange(at + start + 3, at + start + POSE_SIZE))
            columns += block.tolist()
        shape = (-1, 3)
        return (
            np.asarray(columns, np.intp),
            np.asarray(positions, np.intp).reshape(shape),
            np.asarray(quaternions, np.intp).reshape(-1, 4),
        )

    def _normalized(self, quaternions: Floats) -> Floats:
        """(K, P, 4) unit quaternions; TaskError names the entity whose is none."""
        try:
            return poses.normalize(quaternions, "the scene")
        except InputError:
            for index, owner in enumerate(self._owners):
                try:
                    poses.normalize(quaternions[:, index], owner)
                except InputError as error:
                    raise TaskError(f"{error}; its physics has diverged: reset() starts anew") from error
            raise

    def _move_velocity(self, part: Part, wide: Floats, values: Floats) -> None:
        """From the centre of mass to the frame's origin."""
        at = self.layout.offsets[part.layout.name]
        pose, velocity = slice(at + 3, at + POSE_SIZE), slice(at + POSE_SIZE, at + POSE_SIZE + VELOCITY_SIZE)
        end = part.start + part.raw_size
        values[:, velocity] = poses.velocity_of_origin(
            values[:, velocity], values[:, pose], wide[:, end - CENTRE_SIZE : end]
        )

    def _raw_poses(self, block: Floats, origins: Floats) -> Floats:
        """(K, 7) poses in the world and in the simulator's own order."""
        world = poses.in_world_frame(block[:, :POSE_SIZE], origins)
        if self._lab.quaternion_order == "xyzw":
            world[:, 3:] = np.roll(world[:, 3:], -1, axis=-1)
        return world

    def _tensor(self, values: Floats) -> Any:
        import torch

        return torch.as_tensor(np.ascontiguousarray(values, np.float32), device=self._env.device)

    def _write_asset(self, part: Part, block: Floats, origins: Floats, ids: Any) -> None:
        velocity = block[:, POSE_SIZE : POSE_SIZE + VELOCITY_SIZE]
        if part.is_of_centre:
            centres = to_host(self._lab.root_centre(part.asset.data)[ids]).astype(np.float64)
            velocity = poses.velocity_of_centre(velocity, block[:, 3:POSE_SIZE], centres)
        self._lab.write_root(part.asset, self._tensor(self._raw_poses(block, origins)), self._tensor(velocity), ids)
        joints = len(part.layout.joint_names)
        if joints:
            start = POSE_SIZE + VELOCITY_SIZE
            positions, velocities = block[:, start : start + joints], block[:, start + joints : start + 2 * joints]
            self._lab.write_joints(part.asset, self._tensor(positions), self._tensor(velocities), ids)

    def _write_collection(self, collection: Any, blocks: dict[str, Floats], origins: Floats, ids: Any) -> None:
        members = [blocks[part.layout.name] for part in self.parts if part.asset is collection]
        placed = np.stack([self._raw_poses(block, origins) for block in members], axis=1)
        moving = np.stack([block[:, POSE_SIZE : POSE_SIZE + VELOCITY_SIZE] for block in members], axis=1)
        self._lab.write_objects(collection, self._tensor(placed), self._tensor(moving), ids)


def _block_by_name(part: EntityLayout, layout: SceneLayout, values: Floats) -> Floats:
    """(K, 13 + 2 J) root pose, root velocity and joints of one entity, its joints in `part`'s order."""
    theirs = layout.entity(part.name)
    at, root, count = layout.offsets[part.name], POSE_SIZE + VELOCITY_SIZE, len(theirs.joint_names)
    joints = np.asarray([theirs.joint_names.index(name) for name in part.joint_names], np.intp) + root
    return values[:, at + np.concatenate([np.arange(root), joints, joints + count])]


def _find_parts(scene: Any, lab: Lab) -> list[Part]:
    """The scene's entities: articulations, rigid objects, objects of collections; each kind in the scene's order."""
    taken = {*scene.articulations, *scene.rigid_objects}
    named: list[tuple[EntityLayout, Any, int | None]] = []
    for name, asset in (*scene.articulations.items(), *scene.rigid_objects.items()):
        joints = tuple(getattr(asset, "joint_names", ()))
        named.append((EntityLayout(name, joints, tuple(asset.body_names)), asset, None))
    for name, collection in getattr(scene, "rigid_object_collections", {}).items():
        for member, part in enumerate(lab.object_names(collection)):
            entity = f"{name}/{part}" if part in taken else part
            taken.add(entity)
            named.append((EntityLayout(entity, (), (part,)), collection, member))
    parts, start = [], PREFIX_SIZE
    for layout, asset, index in named:
        is_of_centre = index is None and lab.is_velocity_of_centre(asset.data)
        parts.append(Part(layout, asset, index, start, is_of_centre))
        start += parts[-1].raw_size
    return parts
