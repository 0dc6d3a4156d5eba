"""URDF files through MuJoCo's own loader, with what it would leave out: the root link, mimic joints, fixed links.

MuJoCo fuses a URDF's root link into the world, fuses links behind fixed joints into their parents, drops `<mimic>` and
the visual shapes, and looks for every mesh by its bare name in one folder. A capture names all of these links. So the
file is given a link above its root, and its compiler flags and mesh paths are stated, before MuJoCo reads it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import mujoco

from remote_env.errors import ReplayError

_WORLD = "world"  # MuJoCo makes the root link its world body, whatever it is called
_FLAGS = {"fusestatic": "false", "discardvisual": "false", "balanceinertia": "true"}


def urdf_spec(path: Path) -> Any:
    """The `mujoco.MjSpec` of a URDF file.

    Raises:
        ReplayError: the file is no URDF, or a mesh is not found.
        ValueError: what MuJoCo says of it.
    """
    try:
        robot = ET.parse(path).getroot()  # noqa: S314  # the user's own model, which MuJoCo parses next
    except ET.ParseError as error:
        raise ReplayError(f"{path} is no XML: {error}") from error
    if robot.tag != "robot":
        raise ReplayError(f"{path} is no URDF: its first element is <{robot.tag}>, not <robot>")
    _add_world(robot, path)
    meshes = _set_flags(robot)
    for mesh in robot.iter("mesh"):
        mesh.set("filename", _mesh_path(mesh.get("filename", ""), path, meshes))
    spec = mujoco.MjSpec.from_string(ET.tostring(robot, encoding="unicode"))
    _add_mimics(spec, robot)
    return spec


def _add_world(robot: ET.Element, path: Path) -> None:
    links = [link.get("name", "") for link in robot.findall("link")]
    children = {child.get("link") for child in robot.findall("joint/child")}
    roots = [link for link in links if link not in children]
    if len(roots) != 1:
        raise ReplayError(f"{path} has {len(roots)} root links ({', '.join(roots) or 'none'}); it must have one")
    if roots[0] == _WORLD:
        return
    ET.SubElement(robot, "link", name=_WORLD)
    joint = ET.SubElement(robot, "joint", name=f"{_WORLD}_to_{roots[0]}", type="fixed")
    ET.SubElement(joint, "parent", link=_WORLD)
    ET.SubElement(joint, "child", link=roots[0])


def _set_flags(robot: ET.Element) -> Path | None:
    """State the compiler's flags that the file leaves open; its own folder of meshes, which is then taken out."""
    own = robot.find("mujoco")
    own = ET.SubElement(robot, "mujoco") if own is None else own
    compiler = own.find("compiler")
    compiler = ET.SubElement(own, "compiler") if compiler is None else compiler
    for name, value in _FLAGS.items():
        compiler.set(name, compiler.get(name, value))
    compiler.set("strippath", "false")
    folder = compiler.attrib.pop("meshdir", "")
    return Path(folder) if folder else None


def _mesh_path(name: str, urdf: Path, meshes: Path | None) -> str:
    """The file that a mesh's name means: in the URDF's own folder of meshes, beside it, or in a ROS package above.

    Raises:
        ReplayError: it is in none of these.
    """
    here = urdf.resolve().parent
    plain = name.removeprefix("file://")
    folders = [here]
    if name.startswith("package://"):
        package, _, plain = name.removeprefix("package://").partition("/")
        if ".." in Path(package, plain).parts or plain.startswith("/"):
            raise ReplayError(f"{urdf}: the mesh {name!r} leads out of its package")
        above_it = [above for above in (here, *here.parents) if above != above.parent]  # packages never lie in the root
        folders = [folder for above in above_it for folder in (above / package, above)]
    tries = [folder / plain for folder in folders]
    if meshes is not None:
        tries = [here / meshes / plain, here / meshes / Path(plain).name, *tries]
    for path in tries:
        if path.is_file():
            return str(path)
    raise ReplayError(
        f"{urdf}: the mesh {name!r} is not there; it was looked for as {', '.join(map(str, tries[:3]))}. Put the "
        'meshes there, or name their folder in the URDF: <mujoco><compiler meshdir="..."/></mujoco>'
    )


def _add_mimics(spec: Any, robot: ET.Element) -> None:
    """A mimic joint is a joint equality: q = multiplier * q_other + offset."""
    for joint in robot.findall("joint"):
        mimic = joint.find("mimic")
        if mimic is None:
            continue
        equality = spec.add_equality(
            type=mujoco.mjtEq.mjEQ_JOINT,
            objtype=mujoco.mjtObj.mjOBJ_JOINT,
            name1=joint.get("name", ""),
            name2=mimic.get("joint", ""),
        )
        coefficients = [float(mimic.get("offset", "0")), float(mimic.get("multiplier", "1")), 0.0, 0.0, 0.0]
        equality.data[:5] = coefficients  # how many numbers there are differs between MuJoCo versions
