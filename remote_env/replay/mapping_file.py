"""The parts of a mapping as plain values, checked one by one, and back."""

from __future__ import annotations

import collections
import reprlib
from collections.abc import Callable, Collection, Hashable
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

import numpy as np

from remote_env.errors import ConfigError
from remote_env.poses import NORM_TOLERANCE
from remote_env.replay.alike import did_you_mean
from remote_env.replay.mapped_states import SAME_PLACE, Numbers
from remote_env.replay.targets import EntityMapping, JointTarget, LinkTarget

MAX_CHARACTERS = 1 << 20
MAX_SAID = 200  # characters
MAX_NUMBER = 1e100  # beyond, arithmetic with a pose is not finite any more


def said(plain: Any) -> str:
    """A value in a message: YAML's references make much of little."""
    text = reprlib.repr(plain)
    return text if len(text) <= MAX_SAID else f"{text[: MAX_SAID - 1]}…"


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; ConfigError when there is none, or a key stands twice in one place."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice; plain YAML keeps the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            counts = collections.Counter(key for key in keys if isinstance(key, Hashable))
            twice = [key for key, count in counts.items() if count > 1]
            if twice:
                raise ConfigError(f"line {node.start_mark.line + 1}: {twice[0]!r} stands twice in one place")
            return super().construct_mapping(node, deep)

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(f"a mapping has up to {MAX_CHARACTERS} characters; this has more")
        return yaml.load(text, Loader)  # noqa: S506  # it is a SafeLoader
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"there is no mapping to read ({error.strerror}); make one with: remote-env map") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a number too long
        raise ConfigError(f"this is no YAML: {' '.join(str(error).split())}") from error


def read_entity(name: str, plain: Any) -> EntityMapping:
    """One entry of `entities`; the name of a model entity alone will do."""
    where = f"entities.{name}"
    keys = ("model", "base", "move_base", "joints", "links", "ignore_joints", "ignore_links")
    table = read_table({"model": plain} if isinstance(plain, str) else plain, where, keys)
    joints, links = f"{where}.joints", f"{where}.links"
    return EntityMapping(
        None if "model" in table and table["model"] is None else _text(table.get("model", name), f"{where}.model"),
        read_pose(table.get("base"), f"{where}.base"),
        read_flag(table.get("move_base"), f"{where}.move_base"),
        _targets(table.get("joints"), joints, _joint),
        _targets(table.get("links"), links, _link),
        read_reasons(table.get("ignore_joints"), f"{where}.ignore_joints"),
        read_reasons(table.get("ignore_links"), f"{where}.ignore_links"),
    )


def _targets(plain: Any, where: str, make: Callable[[Any, str], Any]) -> dict[str, tuple[Any, ...]]:
    targets = {}
    for name, entries in read_table(plain, where).items():
        if entries in ([], None):
            raise ConfigError(f"{where}.{name} names nothing; to leave it out, give the reason under ignore_…")
        listed = entries if isinstance(entries, list) else [entries]
        targets[name] = tuple(make(entry, f"{where}.{name}") for entry in listed)
    return targets


def _joint(plain: Any, where: str) -> JointTarget:
    if isinstance(plain, str):
        return JointTarget(plain)
    table = read_table(plain, where, ("name", "sign", "scale", "offset"))
    sign, scale = _number(table.get("sign", 1), f"{where}.sign"), _number(table.get("scale", 1), f"{where}.scale")
    if sign not in (1.0, -1.0):
        raise ConfigError(f"{where}.sign is {sign}; allowed are 1 and -1 (a factor is the scale)")
    if scale <= 0:
        raise ConfigError(f"{where}.scale is {scale}; it must be above 0 (a reversed joint has sign: -1)")
    return JointTarget(
        _text(table.get("name"), f"{where}.name"), sign, scale, _number(table.get("offset", 0), f"{where}.offset")
    )


def _link(plain: Any, where: str) -> LinkTarget:
    if isinstance(plain, str):
        return LinkTarget(plain)
    table = read_table(plain, where, ("name", "position", "quaternion"))
    pose = read_pose({key: value for key, value in table.items() if key != "name"}, where)
    return LinkTarget(_text(table.get("name"), f"{where}.name"), pose)


def read_table(plain: Any, where: str, allowed: Collection[str] | None = None) -> dict[str, Any]:
    """A table with text for keys, of the `allowed` ones if given; nothing is an empty one but for the whole."""
    plain = {} if plain is None and where else plain
    if not isinstance(plain, Table):
        raise ConfigError(f"{where or 'a mapping'} must be a table of names, not {said(plain)}")
    for key in plain:
        if not isinstance(key, str):
            raise ConfigError(f"{where or 'a mapping'}: the name {said(key)} is no text; put it in quotes")
        if allowed is not None and key not in allowed:
            raise ConfigError(f"unknown key {f'{where}.{key}'.lstrip('.')}{did_you_mean(key, allowed)}")
    return dict(plain)


def read_reasons(plain: Any, where: str) -> dict[str, str]:
    """A table of names and why each is left out."""
    table = read_table(plain, where)
    for name, reason in table.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ConfigError(f'{where}.{name} needs a reason, as {name}: "why it is left out"; got {said(reason)}')
    return table


def read_pose(plain: Any, where: str) -> Numbers:
    """(7,) of a table with `position` and `quaternion`, both of which may be left out."""
    table = read_table(plain, where, ("position", "quaternion"))
    position = _numbers(table.get("position", SAME_PLACE[:3]), 3, f"{where}.position")
    quaternion = np.array(_numbers(table.get("quaternion", SAME_PLACE[3:]), 4, f"{where}.quaternion"))
    norm = float(np.linalg.norm(quaternion))
    if abs(norm - 1.0) > NORM_TOLERANCE:
        raise ConfigError(f"{where}.quaternion has norm {norm:.4g}; it must be 1, in the order w, x, y, z")
    return (*position, *(float(value) for value in quaternion / norm))


def _numbers(plain: Any, count: int, where: str) -> Numbers:
    if not isinstance(plain, (list, tuple)) or len(plain) != count:
        raise ConfigError(f"{where} must be {count} numbers, not {said(plain)}")
    return tuple(_number(value, where) for value in plain)


def _number(plain: Any, where: str) -> float:
    if isinstance(plain, bool) or not isinstance(plain, (int, float)) or not abs(plain) <= MAX_NUMBER:
        raise ConfigError(f"{where} must be a finite number, not {said(plain)}")
    return float(plain)


def _text(plain: Any, where: str) -> str:
    if not isinstance(plain, str) or not plain:
        raise ConfigError(f"{where} must be a name, not {said(plain)}")
    return plain


def read_flag(plain: Any, where: str) -> bool:
    """True or false; nothing is false."""
    if plain not in (None, True, False):
        raise ConfigError(f"{where} must be true or false, not {said(plain)}")
    return bool(plain)


def plain_entity(entity: EntityMapping) -> dict[str, Any]:
    """The opposite of `read_entity`."""
    plain: dict[str, Any] = {"model": entity.model}
    plain |= pose_entry("base", entity.base) | ({"move_base": True} if entity.move_base else {})
    joints = {joint: _one_or_more([_plain_joint(t) for t in targets]) for joint, targets in entity.joints.items()}
    links = {link: _one_or_more([_plain_link(t) for t in targets]) for link, targets in entity.links.items()}
    tables = {"joints": joints, "links": links}
    tables |= {"ignore_joints": dict(entity.ignore_joints), "ignore_links": dict(entity.ignore_links)}
    return plain | {key: table for key, table in tables.items() if table}


def _one_or_more(targets: list[Any]) -> Any:
    return targets[0] if len(targets) == 1 else targets


def _plain_joint(target: JointTarget) -> Any:
    changed = {
        key: value
        for key, value, default in (
            ("sign", target.sign, 1.0),
            ("scale", target.scale, 1.0),
            ("offset", target.offset, 0.0),
        )
        if value != default
    }
    return {"name": target.name, **changed} if changed else target.name


def _plain_link(target: LinkTarget) -> Any:
    return target.name if target.pose == SAME_PLACE else {"name": target.name, **_plain_pose(target.pose)}


def pose_entry(key: str, pose: Numbers) -> dict[str, Any]:
    """A pose under its key, or nothing where it is the default."""
    return {} if pose == SAME_PLACE else {key: _plain_pose(pose)}


def _plain_pose(pose: Numbers) -> dict[str, list[float]]:
    return {"position": list(pose[:3]), "quaternion": list(pose[3:])}
