"""A mapping for a model that was made, wholly or in part, from the capture itself: its names are known."""

from __future__ import annotations

import dataclasses

from remote_env.replay.mapping import Mapping
from remote_env.replay.own_scene import FROM_MJCF, FROM_SHAPES, has_added, made_from, own_rule
from remote_env.replay.propose import propose
from remote_env.state import SceneLayout
from remote_env.tasks.mujoco_scene import MujocoScene


def fitting(mapping: Mapping, layout: SceneLayout, scene: MujocoScene) -> Mapping:
    """`mapping`, and what follows from how the model was made; what it says itself is never changed."""
    source = made_from(scene.model)
    if source == FROM_MJCF and not mapping.entities:
        own = propose(layout, scene.model).mapping
        mapping = dataclasses.replace(
            mapping,
            entities=own.entities,
            ignore_model_joints={**own.ignore_model_joints, **mapping.ignore_model_joints},
        )
    known = {entity.name for entity in scene.layout.entities} | set(mapping.entities) | set(mapping.ignore_entities)
    is_ours = has_added(scene.model)
    rules, ignored = dict(mapping.entities), dict(mapping.ignore_entities)
    for entity in layout.entities:
        rule = own_rule(entity, scene.layout) if is_ours and entity.name not in known else None
        if rule is not None:
            rules[entity.name] = rule
        elif source == FROM_SHAPES and entity.name not in known:
            ignored[entity.name] = "the capture tells no primitives of it"
    return dataclasses.replace(mapping, entities=rules, ignore_entities=ignored)
