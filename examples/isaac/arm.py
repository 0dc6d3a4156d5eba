"""The arm and the cube in numbers: what `make_assets` writes into USD files and what the expert computes with. Pure.

Six joints, two fingers. At zero the arm stands straight up and every link's frame has the axes of the world; lengths
in metres, angles in radians, masses in kilograms.
"""

from __future__ import annotations

from dataclasses import dataclass

CUBE_SIZE_M = 0.04
CUBE_MASS_KG = 0.08
CUBE_CENTRE_OF_MASS_M = (0.004, 0.0, -0.003)  # off the frame's origin: velocities of the two differ

SHOULDER_HEIGHT_M = 0.22  # of the lift axis above the table
UPPER_ARM_M = 0.30  # lift axis to elbow axis
FOREARM_M = 0.26  # elbow axis to wrist axis
TOOL_M = 0.17  # wrist axis to the point between the finger tips
FINGER_TRAVEL_M = 0.04
MAX_GAP_M = 2 * FINGER_TRAVEL_M
PAD_RADIUS_M = 0.006

ORANGE, GREY, DARK, BLUE, RED = (
    (0.90, 0.42, 0.12),
    (0.72, 0.74, 0.77),
    (0.16, 0.17, 0.20),
    (0.2, 0.4, 0.8),
    (0.8, 0.13, 0.12),
)

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """One primitive of a link.

    Attributes:
        kind: "box", "cylinder" or "sphere".
        size: full lengths x y z; of a cylinder radius and length; of a sphere its radius.
        centre: in the link's frame.
        axis: of a cylinder: "X", "Y" or "Z".
        colour: red, green, blue in 0 to 1.
    """

    kind: str
    size: tuple[float, ...]
    centre: Triple
    colour: Triple
    axis: str = "Z"
    is_solid: bool = True


@dataclass(frozen=True)
class Link:
    """One body and the joint that carries it.

    Attributes:
        name: of the body.
        parent: name of the body that carries it, "" for the root.
        origin: of its frame in the parent's frame at joint position 0.
        joint: name of the joint, "" for the root, which is fixed to the world.
        axis: of the joint, "X", "Y" or "Z".
        is_slide: whether the joint slides [m] instead of turning [rad].
        limits: lowest and highest joint position.
        mass_kg: of the body.
        centre_of_mass: in the link's frame.
        parts: what it looks like and collides as.
    """

    name: str
    parent: str
    origin: Triple
    joint: str
    axis: str
    limits: tuple[float, float]
    mass_kg: float
    centre_of_mass: Triple
    parts: tuple[Part, ...]
    is_slide: bool = False


def _finger(side: int) -> tuple[Part, ...]:
    """A blade that is seen, and four round pads that touch.

    MuJoCo-Warp finds contacts of boxes with boxes by an iteration in single precision, in which a held cube jumps by
    several degrees; those of spheres with boxes are exact.
    """
    blade = Part("box", (0.022, 0.012, 0.08), (0, side * 0.010, 0.04), BLUE, is_solid=False)
    places = [(x, side * PAD_RADIUS_M, z) for x in (-0.007, 0.007) for z in (0.058, 0.074)]
    return (blade, *(Part("sphere", (PAD_RADIUS_M,), place, DARK) for place in places))


LINKS = (
    Link(
        "base_link", "", (0, 0, 0), "", "Z", (0, 0), 4.0, (0.0, 0.0, 0.05),
        (Part("cylinder", (0.075, 0.02), (0, 0, 0.01), DARK), Part("cylinder", (0.055, 0.10), (0, 0, 0.07), GREY)),
    ),
    Link(
        "shoulder_link", "base_link", (0, 0, 0.12), "shoulder_pan_joint", "Z", (-2.8, 2.8), 2.0, (0.0, 0.015, 0.07),
        (Part("cylinder", (0.05, 0.05), (0, 0, 0.025), ORANGE),
         Part("cylinder", (0.045, 0.12), (0, 0, 0.10), DARK, "Y")),
    ),
    Link(
        "upper_arm_link", "shoulder_link", (0, 0, 0.10), "shoulder_lift_joint", "Y", (-2.0, 2.0), 1.6,
        (0.01, 0.02, 0.14), (Part("box", (0.06, 0.06, 0.26), (0, 0, 0.15), ORANGE),),
    ),
    Link(
        "elbow_link", "upper_arm_link", (0, 0, 0.30), "elbow_joint", "Y", (-2.5, 2.5), 0.7, (0.0, -0.01, 0.01),
        (Part("cylinder", (0.04, 0.10), (0, 0, 0), DARK, "Y"),),
    ),
    Link(
        "forearm_link", "elbow_link", (0, 0, 0.05), "forearm_roll_joint", "Z", (-2.9, 2.9), 0.8, (0.008, 0.0, 0.08),
        (Part("box", (0.05, 0.05, 0.17), (0, 0, 0.085), ORANGE),),
    ),
    Link(
        "wrist_link", "forearm_link", (0, 0, 0.21), "wrist_pitch_joint", "Y", (-2.2, 2.2), 0.4, (0.0, 0.01, 0.01),
        (Part("cylinder", (0.03, 0.07), (0, 0, 0), DARK, "Y"),),
    ),
    Link(
        "hand_link", "wrist_link", (0, 0, 0.05), "hand_roll_joint", "Z", (-3.1, 3.1), 0.4, (0.012, 0.0, 0.025),
        (Part("cylinder", (0.025, 0.03), (0, 0, -0.005), GREY), Part("box", (0.05, 0.14, 0.04), (0, 0, 0.03), GREY)),
    ),
    Link(
        "finger_left_link", "hand_link", (0, 0, 0.05), "finger_left_joint", "Y", (0.0, FINGER_TRAVEL_M),
        0.06, (0.0, 0.01, 0.04), _finger(1), True,
    ),
    Link(
        "finger_right_link", "hand_link", (0, 0, 0.05), "finger_right_joint", "Y", (-FINGER_TRAVEL_M, 0.0),
        0.06, (0.0, -0.01, 0.04), _finger(-1), True,
    ),
)  # fmt: skip

ARM_JOINTS = tuple(link.joint for link in LINKS if link.joint and not link.is_slide)
FINGER_JOINTS = ("finger_left_joint", "finger_right_joint")
HOME = (0.0, -0.35, 1.75, 0.5, 1.45, 0.3)  # [rad], of ARM_JOINTS
