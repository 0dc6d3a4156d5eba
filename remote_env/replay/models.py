"""Local models: whatever names one, as a compiled `mujoco.MjModel`."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import mujoco

from remote_env.errors import ReplayError
from remote_env.replay.mapping import Mapping
from remote_env.replay.own_scene import REFUSALS, add_shapes, body_name, compile_spec, make_own_model
from remote_env.replay.urdf import urdf_spec
from remote_env.state import SceneDescription

Model: TypeAlias = "mujoco.MjModel | mujoco.MjSpec | str | os.PathLike[str]"
DESCRIPTIONS = "robot_descriptions"
CAPTURE = "capture"


def load_model(
    model: Model, *, description: SceneDescription | None = None, mapping: Mapping | None = None
) -> mujoco.MjModel:
    """The compiled model that `model` names.

    Args:
        model: a compiled model; the path of an MJCF (`.xml`), URDF or compiled (`.mjb`) file; `module:function` for a
            function without arguments that returns any of these; `robot_descriptions:<name>` where that package is
            installed; or "capture": made from what the capture itself says of its scene.
        description: what the captured scene looks like; "capture" needs it, and a mapping with `add_missing`.
        mapping: where it says `add_missing`, what the model lacks is added from the description's primitives.

    Raises:
        ReplayError: there is no such file or function, or MuJoCo does not accept it.
    """
    found = _find(model, description)
    if mapping is not None and mapping.add_missing:
        return _with_missing(found, mapping, description)
    if isinstance(found, mujoco.MjModel):
        return found
    return compile_spec(found, "the MjSpec") if isinstance(found, mujoco.MjSpec) else _load_file(found)


def _find(model: Any, description: SceneDescription | None) -> Any:
    """An MjModel, an MjSpec, or the path of an existing file."""
    if isinstance(model, (mujoco.MjModel, mujoco.MjSpec)):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise ReplayError(f"a model is an MjModel, an MjSpec or what names one, not {type(model).__name__}")
    text = os.fspath(model)
    if text == CAPTURE:
        return make_own_model(description)
    module, _, name = text.partition(":")
    if name and not Path(text).exists() and module.replace(".", "").isidentifier():
        return _find(_described(name) if module == DESCRIPTIONS else _call(module, name), description)
    if not Path(text).is_file():
        raise ReplayError(
            f"there is no model file {text!r}; give an MJCF, URDF or .mjb file, module:function, "
            f"{DESCRIPTIONS}:<name>, or capture"
        )
    return Path(text)


def _load_file(path: Path) -> mujoco.MjModel:
    with _told(path):
        if path.suffix == ".mjb":
            return mujoco.MjModel.from_binary_path(str(path))
        if path.suffix.lower() == ".urdf":
            return urdf_spec(path).compile()
        return mujoco.MjModel.from_xml_path(str(path))


def _with_missing(found: Any, mapping: Mapping, description: SceneDescription | None) -> mujoco.MjModel:
    """The model and, from the description's primitives, the entities that it lacks."""
    base = found if isinstance(found, mujoco.MjModel) else load_model(found)
    entities = _missing_entities(base, mapping, description)
    if not entities or description is None:
        return base
    if isinstance(found, mujoco.MjModel) or (isinstance(found, Path) and found.suffix == ".mjb"):
        raise ReplayError(
            f"add_missing cannot add {', '.join(entities)} to a compiled model; give the file that it was compiled from"
        )
    spec = found
    if isinstance(found, Path):
        with _told(found):
            spec = urdf_spec(found) if found.suffix.lower() == ".urdf" else mujoco.MjSpec.from_file(str(found))
    add_shapes(spec, description.shapes, entities)
    return compile_spec(spec, "the model with what was added from the capture's shapes")


def _missing_entities(model: mujoco.MjModel, mapping: Mapping, description: SceneDescription | None) -> tuple[str, ...]:
    if description is None or not description.shapes:
        raise ReplayError("add_missing adds from the capture's own primitives, and this one tells of none")
    drawn = dict.fromkeys((shape.entity, shape.link) for shape in description.shapes)
    known = {model.body(index).name for index in range(1, model.nbody) if model.body_parentid[index] == 0}
    settled = known | set(mapping.entities) | set(mapping.ignore_entities)
    left = [entity for entity, link in drawn if entity not in settled and body_name(entity, link) not in known]
    return tuple(dict.fromkeys(left))


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What MuJoCo says of a file becomes a ReplayError."""
    try:
        yield
    except ReplayError:
        raise
    except REFUSALS as error:
        raise ReplayError(f"MuJoCo does not load {str(path)!r}: {error}{_mesh_hint(str(error))}") from error


def _mesh_hint(message: str) -> str:
    if "Error opening file" not in message and "resource" not in message.lower():
        return ""
    return (
        ". Its meshes are looked for beside it, or where its <compiler meshdir=…> (in a URDF: <mujoco><compiler "
        "meshdir=…/></mujoco>) says"
    )


def _call(module: str, function: str) -> Model:
    try:
        made: Model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:  # TypeError: it wants arguments
        raise ReplayError(f"no model from {module}:{function}: {error}") from error
    return made


def _described(name: str) -> str:
    """The file of a model of the robot_descriptions package, which fetches it from the network the first time."""
    try:
        package: Any = importlib.import_module(DESCRIPTIONS)
    except ImportError as error:
        raise ReplayError(
            f"{DESCRIPTIONS}:{name} needs a package that is not installed here: pip install {DESCRIPTIONS}"
        ) from error
    try:
        found = importlib.import_module(f"{package.__name__}.{name}")
    except ImportError as error:
        raise ReplayError(f"{DESCRIPTIONS} has no {name!r} ({error}); such as panda_mj_description") from error
    path = getattr(found, "MJCF_PATH", None) or getattr(found, "URDF_PATH", None)
    if path is None:
        raise ReplayError(f"{DESCRIPTIONS}:{name} has neither an MJCF nor a URDF")
    return str(path)
