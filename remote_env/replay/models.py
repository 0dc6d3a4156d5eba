"""Local models: whatever names one, as a compiled `mujoco.MjModel`."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, TypeAlias

import mujoco

from remote_env.errors import ReplayError
from remote_env.state import SceneDescription

Model: TypeAlias = "mujoco.MjModel | str | os.PathLike[str]"
DESCRIPTIONS = "robot_descriptions"
CAPTURE = "capture"


def load_model(model: Model, *, description: SceneDescription | None = None) -> mujoco.MjModel:
    """The compiled model that `model` names.

    Args:
        model: a compiled model; the path of an MJCF (`.xml`), URDF or compiled (`.mjb`) file; `module:function` for a
            function without arguments that returns any of these; `robot_descriptions:<name>` where that package is
            installed; or "capture": made from what the capture itself says of its scene.
        description: what the captured scene looks like.

    Raises:
        ReplayError: there is no such file or function, or MuJoCo does not accept it.
    """
    if isinstance(model, mujoco.MjModel):
        return model
    text = os.fspath(model)
    module, _, name = text.partition(":")
    if name and not Path(text).exists() and module.replace(".", "").isidentifier():
        return _load_described(name) if module == DESCRIPTIONS else load_model(_call(module, name))
    return _load_file(text)


def _load_file(text: str) -> mujoco.MjModel:
    if not Path(text).is_file():
        raise ReplayError(
            f"there is no model file {text!r}; give an MJCF, URDF or .mjb file, module:function, "
            f"{DESCRIPTIONS}:<name>, or capture"
        )
    try:
        if text.endswith(".mjb"):
            return mujoco.MjModel.from_binary_path(text)
        return mujoco.MjModel.from_xml_path(text)
    except ValueError as error:
        raise ReplayError(f"MuJoCo does not load {text!r}: {error}{_mesh_hint(str(error))}") from error


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
    except (ImportError, AttributeError) as error:
        raise ReplayError(f"no model from {module}:{function}: {error}") from error
    return made


def _load_described(name: str) -> mujoco.MjModel:
    """A model of the robot_descriptions package, which fetches it from the network the first time."""
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
    return _load_file(str(path))
