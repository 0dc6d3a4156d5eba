"""Proposals: which captured name is probably which of a model, how sure that is, and a mapping.yaml that says so.

A match is certain where names are equal, equal but for case, or equal behind a prefix that one side puts before
(`_World_envs_env_0_Robot_joint1`, `left/joint1`), and only one name is. Anything else is a guess with a score: it is
shown, and written into the file behind a `#`, but never taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import mujoco

from remote_env.replay.alike import MINIMUM, similarity
from remote_env.replay.compiling import Compiler
from remote_env.replay.mapping import Mapping
from remote_env.replay.targets import EntityMapping, JointTarget, LinkTarget
from remote_env.state import EntityLayout, SceneLayout
from remote_env.tasks.mujoco_scene import MujocoScene
from remote_env.tasks.scene_writing import followed_joints

_BOUNDARIES = "_/.-:|"
_MOSTLY = 0.5  # so many of an entity's parts must be found in one of the model's to say that it is that one


@dataclass(frozen=True)
class Match:
    """One captured name and what it is in the model.

    Attributes:
        captured: in the capture.
        local: in the model.
        kind: "exact", "case", "suffix", "parts" (an entity known by its joints and links) or "guess".
        score: 1 for what is certain, else how alike the names are, 0 to 1.
    """

    captured: str
    local: str
    kind: str
    score: float = 1.0

    @property
    def is_certain(self) -> bool:
        """Whether it may be taken without asking."""
        return self.kind != "guess"


@dataclass(frozen=True)
class EntityProposal:
    """What is proposed for one captured entity.

    Attributes:
        name: of the captured entity.
        entity: its match; None where nothing in the model is like it.
        joints: the matches of its joints.
        links: the matches of its links.
        free_joints: what is left of the model's joints for those of its own that nothing is like.
        unlike_joints: those.
    """

    name: str
    entity: Match | None
    joints: tuple[Match, ...] = ()
    links: tuple[Match, ...] = ()
    free_joints: tuple[str, ...] = ()
    unlike_joints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """A mapping of all that is certain, and the rest to decide.

    Attributes:
        mapping: the certain matches alone.
        entities: every match, guesses too.
        only_captured: what no certain match says of the capture: "entity" or "entity/joint name".
        only_local: the same of what moves in the model.
        missing_links: captured links without a certain body; they are not compared in a replay.
    """

    mapping: Mapping
    entities: tuple[EntityProposal, ...]
    only_captured: tuple[str, ...] = ()
    only_local: tuple[str, ...] = ()
    missing_links: tuple[str, ...] = ()

    @property
    def guesses(self) -> tuple[tuple[str, Match], ...]:
        """("entity", "joint" or "link" and the captured entity, match) of each guess."""
        found: list[tuple[str, Match]] = []
        for entity in self.entities:
            if entity.entity is not None and not entity.entity.is_certain:
                found.append(("entity", entity.entity))
            found += [(f"joint of {entity.name}", match) for match in entity.joints if not match.is_certain]
            found += [(f"link of {entity.name}", match) for match in entity.links if not match.is_certain]
        return tuple(found)

    @property
    def is_complete(self) -> bool:
        """Whether the certain matches are all that a replay needs."""
        return not (self.only_captured or self.only_local)


def propose(layout: SceneLayout, model: mujoco.MjModel) -> Proposal:
    """Which captured names are probably which of `model`.

    Args:
        layout: of the captured states.
        model: the compiled model.

    Raises:
        Unsupported: the model has a ball joint.
    """
    scene = MujocoScene(model)
    homes = _match_entities(layout.entities, scene.layout.entities, scene)
    spare = [entity for entity in scene.layout.entities if entity.name not in {match.local for match in homes.values()}]
    pool = [entity for entity in spare if entity.joint_names]  # where a robot of several root bodies may go on
    taken: set[str] = set()
    entities = []
    for entity in layout.entities:
        found = _match_parts(entity, homes.get(entity.name), scene.layout, pool, taken)
        taken |= {match.local for match in (*found.joints, *found.links)}
        entities.append(found)
    mapping = _certain_mapping(entities, model, scene)
    rest = Compiler(mapping, layout, scene.layout, scene)
    return Proposal(
        mapping, tuple(entities), tuple(rest.only_captured), tuple(rest.only_local), tuple(rest.missing_links)
    )


def _match_entities(
    captured: Sequence[EntityLayout], local: Sequence[EntityLayout], scene: MujocoScene
) -> dict[str, Match]:
    """Captured entity -> its match: by name, then by parts, then by what is alike, then by what is left."""
    names = match_names([entity.name for entity in captured], [entity.name for entity in local])
    theirs, ours = {entity.name: entity for entity in captured}, {entity.name: entity for entity in local}
    found: dict[str, Match] = {}

    def take(matches: Iterable[Match]) -> None:
        for match in matches:
            free = match.captured not in found and match.local not in {other.local for other in found.values()}
            if free and _same_kind(theirs[match.captured], ours[match.local], scene):
                found[match.captured] = match

    take(match for match in names if match.is_certain)
    shares = [Match(entity.name, other.name, "parts", _share(entity, other)) for entity in captured for other in local]
    take(sorted((match for match in shares if match.score >= _MOSTLY), key=lambda match: -match.score))
    take(match for match in names if not match.is_certain)
    take(_only_ones_left(captured, local, found))
    return found


def _same_kind(captured: EntityLayout, local: EntityLayout, scene: MujocoScene) -> bool:
    """An arm is no cube: both have joints, or neither; what has none of its own and moves must float."""
    if captured.joint_names:
        return bool(local.joint_names)
    return not local.joint_names or captured.name == local.name or local.name in scene.floating


def _share(captured: EntityLayout, local: EntityLayout) -> float:
    """How many of a captured entity's joints and links, 0 to 1, are certainly among those of one of the model's."""
    joints = [match for match in match_names(captured.joint_names, local.joint_names) if match.is_certain]
    links = [match for match in match_names(captured.link_names, local.link_names) if match.is_certain]
    total = len(captured.joint_names) + len(captured.link_names)
    return (len(joints) + len(links)) / total if total else 0.0


def _only_ones_left(
    captured: Sequence[EntityLayout], local: Sequence[EntityLayout], found: dict[str, Match]
) -> list[Match]:
    """Where one entity with joints is left on either side, these two; likewise one without."""
    used = {match.local for match in found.values()}
    matches = []
    for jointed in (True, False):
        theirs = [e.name for e in captured if e.name not in found and bool(e.joint_names) == jointed]
        ours = [e.name for e in local if e.name not in used and bool(e.joint_names) == jointed]
        if len(theirs) == len(ours) == 1:
            matches.append(Match(theirs[0], ours[0], "guess", similarity(theirs[0], ours[0])))
    return matches


def _match_parts(
    entity: EntityLayout, home: Match | None, local: SceneLayout, pool: Sequence[EntityLayout], taken: set[str]
) -> EntityProposal:
    if home is None:
        return EntityProposal(entity.name, None)
    places = [local.entity(home.local), *(pool if entity.joint_names else ())]
    joints = [joint for place in places for joint in place.joint_names if joint not in taken]
    links = [link for place in places for link in place.link_names if link not in taken]
    link_matches = match_names(entity.link_names, links)
    if entity.link_names and home.local not in {match.local for match in link_matches if match.is_certain}:
        root = Match(entity.link_names[0], home.local, "parts" if home.is_certain else "guess", home.score)
        link_matches = [root, *(m for m in link_matches if m.local != home.local and m.captured != root.captured)]
    joint_matches = match_names(entity.joint_names, joints)
    free = set(local.entity(home.local).joint_names) - taken - {match.local for match in joint_matches}
    unlike = set(entity.joint_names) - {match.captured for match in joint_matches}
    return EntityProposal(
        entity.name,
        home,
        tuple(joint_matches),
        tuple(link_matches),
        free_joints=tuple(joint for joint in joints if joint in free),
        unlike_joints=tuple(joint for joint in entity.joint_names if joint in unlike),
    )


def match_names(captured: Sequence[str], local: Sequence[str]) -> list[Match]:
    """One match at most for each name of either side: the certain ones first, then guesses, best first."""
    found: dict[str, Match] = {}
    for kind, test in _CERTAIN:
        _add_unique(found, captured, local, kind, test)
    left = [name for name in local if name not in {match.local for match in found.values()}]
    scored = [(similarity(name, other), name, other) for name in captured if name not in found for other in left]
    for score, name, other in sorted(scored, key=lambda entry: -entry[0]):
        used = {match.local for match in found.values()}
        if score >= MINIMUM and name not in found and other not in used:
            found[name] = Match(name, other, "guess", score)
    return [found[name] for name in captured if name in found]


def _add_unique(
    found: dict[str, Match],
    captured: Sequence[str],
    local: Sequence[str],
    kind: str,
    test: Callable[[str, str], bool],
) -> None:
    """Take the pairs for which `test` holds and that have no rival: another pair of either name, as good as they are.

    A pair is better the more pairs have its prefix: of `base_lift` and `lift` behind `robot0_`, each finds its own.
    """
    used = {match.local for match in found.values()}
    theirs = [name for name in captured if name not in found]
    ours = [name for name in local if name not in used]
    pairs = [(name, other) for name in theirs for other in ours if test(name, other)]
    votes = Counter(_prefix(*pair) for pair in pairs)
    for pair in pairs:
        rivals = [other for other in pairs if other != pair and (other[0] == pair[0] or other[1] == pair[1])]
        if all(votes[_prefix(*pair)] > votes[_prefix(*rival)] for rival in rivals):
            found[pair[0]] = Match(*pair, kind)


def _prefix(captured: str, local: str) -> tuple[str, int]:
    """What the longer name has before the shorter, and which side has it."""
    extra = len(local) - len(captured)
    return (local[:extra], 1) if extra > 0 else (captured[:-extra] if extra else "", -1 if extra else 0)


def _is_suffix(captured: str, local: str) -> bool:
    short, long = sorted((captured.casefold(), local.casefold()), key=len)
    return len(short) < len(long) and long.endswith(short) and long[-len(short) - 1] in _BOUNDARIES


_CERTAIN: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    ("exact", lambda captured, local: captured == local),
    ("case", lambda captured, local: captured.casefold() == local.casefold()),
    ("suffix", _is_suffix),
)


def _certain_mapping(entities: Sequence[EntityProposal], model: mujoco.MjModel, scene: MujocoScene) -> Mapping:
    rules = {}
    for entity in entities:
        if entity.entity is not None and entity.entity.is_certain:
            rules[entity.name] = EntityMapping(
                entity.entity.local,
                joints={match.captured: (JointTarget(match.local),) for match in _certain(entity.joints)},
                links={match.captured: (LinkTarget(match.local),) for match in _certain(entity.links)},
            )
    used = {target.name for rule in rules.values() for targets in rule.joints.values() for target in targets}
    return Mapping(rules, ignore_model_joints=_tied_joints(model, scene, used))


def _certain(matches: Iterable[Match]) -> list[Match]:
    return [match for match in matches if match.is_certain]


def _tied_joints(model: mujoco.MjModel, scene: MujocoScene, used: Collection[str]) -> dict[str, str]:
    """Joints that nothing captured sets and that an equality of the model ties to another."""
    tied = {}
    owners = {joint: entity.name for entity in scene.layout.entities for joint in entity.joint_names}
    for joint, other in followed_joints(model).items():
        name, leader = model.joint(joint).name, model.joint(other).name
        if name in owners and name not in used:
            tied[f"{owners[name]}/{name}"] = f"follows {leader} by an equality of the model"
    return tied
