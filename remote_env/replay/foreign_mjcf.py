"""A capture's own MJCF, which came from elsewhere: left with what poses and looks need, and harmless.

MuJoCo reads whatever file an MJCF names and takes as much memory as it asks for. So what names files or makes many
things of a few words is refused, and what a replay has no use for is left out before MuJoCo sees it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from remote_env.errors import ReplayError

MAX_BYTES = 32 << 20
MAX_ELEMENTS = 20_000
MAX_BODIES = 1_000  # with more MuJoCo gets slow quadratically
MAX_TEXELS = 1 << 26  # of all textures
MAX_HEIGHTS = 1 << 22  # of all height fields
_KEPT = {"compiler", "option", "default", "asset", "worldbody", "contact", "equality", "tendon"}
_LEFT_OUT = {"size", "visual", "statistic", "actuator", "sensor", "keyframe", "custom"}
_REFUSED = {"include", "plugin", "composite", "flexcomp", "replicate", "attach", "model", "skin", "flex"}
_ATTRIBUTES_LEFT_OUT = {  # folders; own numbers, with room for as many in every other; how long collisions are refined
    *("meshdir", "texturedir", "assetdir", "user"),
    *("ccd_iterations", "sdf_iterations", "sdf_initpoints", "octree_maxdepth"),
}


def tamed(mjcf: str) -> str:
    """The MJCF without what a replay does not need.

    Raises:
        ReplayError: it is no MJCF, names files, or asks for more than a scene needs; the message says where.
    """
    if len(mjcf) > MAX_BYTES:
        raise _refusal(f"it has {len(mjcf)} characters; allowed are {MAX_BYTES}")
    if "<!" in mjcf.replace("<!--", ""):
        raise _refusal("it declares a document type or entities, which an MJCF has no use for")
    try:
        root = ET.fromstring(mjcf)  # noqa: S314  # without entities, as made sure of above
    except ET.ParseError as error:
        raise _refusal(f"it is no XML: {error}") from error
    if root.tag != "mujoco":
        raise _refusal(f"its first element is <{root.tag}>, not <mujoco>")
    for section in list(root):
        if section.tag in _LEFT_OUT:
            root.remove(section)
        elif section.tag not in _KEPT:
            raise _refusal(f"<{section.tag}> is not for a scene from elsewhere; allowed are {sorted(_KEPT)}")
    _check_elements(root)
    return ET.tostring(root, encoding="unicode")


def _check_elements(root: ET.Element) -> None:
    texels = heights = bodies = 0
    for count, element in enumerate(root.iter()):
        bodies += element.tag == "body"
        if count >= MAX_ELEMENTS or bodies > MAX_BODIES:
            raise _refusal(f"it has more than {MAX_ELEMENTS} elements or {MAX_BODIES} bodies")
        _check_element(element)
        if element.tag == "texture":
            width = _whole(element, "width")
            texels += width * max(_whole(element, "height"), 6 * width)  # a cube has six faces
        elif element.tag == "hfield":
            heights += _whole(element, "nrow") * _whole(element, "ncol")
    if texels > MAX_TEXELS or heights > MAX_HEIGHTS:
        raise _refusal(
            f"its textures have {texels} pixels and its height fields {heights}; allowed are {MAX_TEXELS} and "
            f"{MAX_HEIGHTS}"
        )


def _check_element(element: ET.Element) -> None:
    name = element.get("name", "")
    if element.tag in _REFUSED or (element.tag == "mesh" and "builtin" in element.attrib):
        raise _refusal(f"<{element.tag}> {name!r} makes things of its own or of other files")
    if element.get("type") == "sdf":
        raise _refusal(f"<{element.tag}> {name!r} is a signed distance field, which plugins make")
    for key in list(element.attrib):
        if key.startswith("file"):
            raise _refusal(f"<{element.tag}> {name!r} reads the file {element.get(key)!r}; meshes do not travel")
        if key in _ATTRIBUTES_LEFT_OUT:
            del element.attrib[key]


def _whole(element: ET.Element, key: str) -> int:
    text = element.get(key, "0").strip()
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise _refusal(f"<{element.tag}> {element.get('name', '')!r} has {key}={text[:40]!r}, no size")
    return int(text)


def _refusal(why: str) -> ReplayError:
    return ReplayError(f"the capture's own MJCF is not used: {why}. Give an MJCF of your own: --model FILE")
