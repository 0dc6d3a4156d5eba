"""Write the USD files of the tasks, from primitives alone: `python examples/isaac/make_assets.py` (needs `pxr`).

The files lie in `assets/`, as text; run it again after a change of `arm.py`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from pxr import Gf, Sdf, Usd, UsdGeom, UsdPhysics, UsdShade

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a program, too

from isaac.arm import (
    CUBE_CENTRE_OF_MASS_M,
    CUBE_MASS_KG,
    CUBE_SIZE_M,
    GREY,
    LINKS,
    RED,
    Link,
    Part,
)

ASSETS = Path(__file__).parent / "assets"
FRICTION = 1.2  # rubber on the finger tips, and what it holds


def make_stage(name: str) -> Any:
    """An empty stage with z up, in metres, that will be `assets/<name>.usda`."""
    stage = Usd.Stage.CreateNew(str(ASSETS / f"{name}.usda"))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, f"/{name}")
    stage.SetDefaultPrim(root.GetPrim())
    return stage


def add_body(stage: Any, path: str, position: Any, mass_kg: float, centre_of_mass: Any, inertia: Any) -> None:
    """A rigid body at `position` [m]; `inertia` is the diagonal about its centre of mass [kg m²]."""
    body = UsdGeom.Xform.Define(stage, path)
    UsdGeom.XformCommonAPI(body).SetTranslate(Gf.Vec3d(*position))
    UsdPhysics.RigidBodyAPI.Apply(body.GetPrim())
    mass = UsdPhysics.MassAPI.Apply(body.GetPrim())
    mass.CreateMassAttr(mass_kg)
    mass.CreateCenterOfMassAttr(Gf.Vec3f(*centre_of_mass))
    mass.CreateDiagonalInertiaAttr(Gf.Vec3f(*inertia))
    mass.CreatePrincipalAxesAttr(Gf.Quatf(1.0, 0.0, 0.0, 0.0))


def add_part(stage: Any, path: str, part: Part, material: Any) -> None:
    """A primitive that is seen, and collides if it is solid."""
    if part.kind == "box":
        shape = UsdGeom.Cube.Define(stage, path)
        shape.CreateSizeAttr(1.0)
        shape.CreateExtentAttr([(-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)])
        UsdGeom.XformCommonAPI(shape).SetScale(Gf.Vec3f(*part.size))
    elif part.kind == "sphere":
        shape = UsdGeom.Sphere.Define(stage, path)
        shape.CreateRadiusAttr(part.size[0])
    else:
        shape = UsdGeom.Cylinder.Define(stage, path)
        shape.CreateRadiusAttr(part.size[0])
        shape.CreateHeightAttr(part.size[1])
        shape.CreateAxisAttr(part.axis)
    UsdGeom.XformCommonAPI(shape).SetTranslate(Gf.Vec3d(*part.centre))
    shape.CreateDisplayColorAttr([Gf.Vec3f(*part.colour)])
    if not part.is_solid:
        return
    UsdPhysics.CollisionAPI.Apply(shape.GetPrim())
    binding = UsdShade.MaterialBindingAPI.Apply(shape.GetPrim())
    binding.Bind(material, UsdShade.Tokens.weakerThanDescendants, "physics")


def add_material(stage: Any, path: str) -> Any:
    """A material with friction and no bounce."""
    material = UsdShade.Material.Define(stage, path)
    physics = UsdPhysics.MaterialAPI.Apply(material.GetPrim())
    physics.CreateStaticFrictionAttr(FRICTION)
    physics.CreateDynamicFrictionAttr(FRICTION)
    physics.CreateRestitutionAttr(0.0)
    return material


def add_joint(stage: Any, path: str, link: Link, bodies: tuple[str, str]) -> None:
    """The joint that carries `link`, with a drive whose gains the environment's configuration sets."""
    kind = UsdPhysics.PrismaticJoint if link.is_slide else UsdPhysics.RevoluteJoint
    joint = kind.Define(stage, path)
    joint.CreateAxisAttr(link.axis)
    joint.CreateBody0Rel().SetTargets([bodies[0]])
    joint.CreateBody1Rel().SetTargets([bodies[1]])
    joint.CreateLocalPos0Attr(Gf.Vec3f(*link.origin))
    joint.CreateLocalPos1Attr(Gf.Vec3f(0, 0, 0))
    joint.CreateLocalRot0Attr(Gf.Quatf(1.0, 0.0, 0.0, 0.0))
    joint.CreateLocalRot1Attr(Gf.Quatf(1.0, 0.0, 0.0, 0.0))
    low, high = link.limits if link.is_slide else map(math.degrees, link.limits)
    joint.CreateLowerLimitAttr(low)
    joint.CreateUpperLimitAttr(high)
    drive = UsdPhysics.DriveAPI.Apply(joint.GetPrim(), "linear" if link.is_slide else "angular")
    drive.CreateStiffnessAttr(1.0)
    drive.CreateDampingAttr(0.1)


def box_inertia(mass_kg: float, size: tuple[float, ...]) -> tuple[float, float, float]:
    """Of a homogeneous box with these full lengths, about its centre: m/12 (b² + c²), and so on."""
    x, y, z = (length**2 for length in size)
    return mass_kg * (y + z) / 12, mass_kg * (x + z) / 12, mass_kg * (x + y) / 12


def make_robot() -> None:
    """`assets/robot.usda`: the arm of `arm.LINKS`, fixed to the world."""
    stage = make_stage("robot")
    root = stage.GetDefaultPrim()
    UsdPhysics.ArticulationRootAPI.Apply(root)
    for name in ("physxArticulation:enabledSelfCollisions", "newton:selfCollisionEnabled"):
        root.CreateAttribute(name, Sdf.ValueTypeNames.Bool).Set(False)  # the gripper's travel is bounded by its limits
    material = add_material(stage, "/robot/rubber")
    origins: dict[str, tuple[float, ...]] = {"": (0.0, 0.0, 0.0)}
    for link in LINKS:
        origins[link.name] = tuple(a + b for a, b in zip(origins[link.parent], link.origin, strict=True))
        inertia = box_inertia(link.mass_kg, (0.10, 0.10, 0.15))  # about that large, each of them
        add_body(stage, f"/robot/{link.name}", origins[link.name], link.mass_kg, link.centre_of_mass, inertia)
        for index, part in enumerate(link.parts):
            add_part(stage, f"/robot/{link.name}/part_{index}", part, material)
    fixed = UsdPhysics.FixedJoint.Define(stage, "/robot/joints/root_joint")
    fixed.CreateBody1Rel().SetTargets(["/robot/base_link"])
    for link in LINKS[1:]:
        add_joint(stage, f"/robot/joints/{link.joint}", link, (f"/robot/{link.parent}", f"/robot/{link.name}"))
    stage.Save()


def make_cube() -> None:
    """`assets/cube.usda`: what is picked; its centre of mass is not where its frame is."""
    stage = make_stage("cube")
    root = stage.GetDefaultPrim()
    size = (CUBE_SIZE_M,) * 3
    add_body(stage, "/cube", (0, 0, 0), CUBE_MASS_KG, CUBE_CENTRE_OF_MASS_M, box_inertia(CUBE_MASS_KG, size))
    material = add_material(stage, f"{root.GetPath()}/rubber")
    add_part(stage, "/cube/part_0", Part("box", size, (0, 0, 0), RED), material)
    stage.Save()


def make_ground() -> None:
    """`assets/ground.usda`: an endless plane."""
    stage = make_stage("ground")
    plane = UsdGeom.Plane.Define(stage, "/ground/CollisionPlane")
    plane.CreateAxisAttr("Z")
    plane.CreateWidthAttr(100.0)
    plane.CreateLengthAttr(100.0)
    UsdPhysics.CollisionAPI.Apply(plane.GetPrim())
    stage.Save()


def make_cartpole() -> None:
    """`assets/cartpole.usda`: with the names that Isaac Lab's own cart and pole have, and about its size."""
    stage = make_stage("cartpole")
    UsdPhysics.ArticulationRootAPI.Apply(stage.GetDefaultPrim())
    material = add_material(stage, "/cartpole/plain")
    bodies = {
        "rail": ((0.03, 8.0, 0.03), (0, 0, 0), 1.0, GREY),
        "cart": ((0.20, 0.25, 0.20), (0, 0, 0), 1.0, (0.2, 0.4, 0.8)),
        "pole": ((0.04, 0.06, 1.00), (0.12, 0, 0.5), 1.0, (0.9, 0.6, 0.1)),
    }
    for name, (size, position, mass_kg, colour) in bodies.items():
        add_body(stage, f"/cartpole/{name}", position, mass_kg, (0, 0, 0), box_inertia(mass_kg, size))
        add_part(stage, f"/cartpole/{name}/part_0", Part("box", size, (0, 0, 0), colour), material)
    fixed = UsdPhysics.FixedJoint.Define(stage, "/cartpole/joints/root_joint")
    fixed.CreateBody1Rel().SetTargets(["/cartpole/rail"])
    slide = UsdPhysics.PrismaticJoint.Define(stage, "/cartpole/joints/slider_to_cart")
    slide.CreateAxisAttr("Y")
    slide.CreateBody0Rel().SetTargets(["/cartpole/rail"])
    slide.CreateBody1Rel().SetTargets(["/cartpole/cart"])
    slide.CreateLowerLimitAttr(-4.0)
    slide.CreateUpperLimitAttr(4.0)
    UsdPhysics.DriveAPI.Apply(slide.GetPrim(), "linear")
    hinge = UsdPhysics.RevoluteJoint.Define(stage, "/cartpole/joints/cart_to_pole")
    hinge.CreateAxisAttr("X")
    hinge.CreateBody0Rel().SetTargets(["/cartpole/cart"])
    hinge.CreateBody1Rel().SetTargets(["/cartpole/pole"])
    hinge.CreateLocalPos0Attr(Gf.Vec3f(0.12, 0, 0))
    hinge.CreateLocalPos1Attr(Gf.Vec3f(0, 0, -0.5))
    UsdPhysics.DriveAPI.Apply(hinge.GetPrim(), "angular")
    stage.Save()


def main() -> None:
    """Write all of them."""
    ASSETS.mkdir(exist_ok=True)
    for make in (make_robot, make_cube, make_ground, make_cartpole):
        make()
    print(f"written: {', '.join(sorted(path.name for path in ASSETS.glob('*.usda')))}")


if __name__ == "__main__":
    main()
