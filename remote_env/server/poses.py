"""What `remote_env.poses` offers, under the name that backends know it by."""

from remote_env.poses import (
    NORM_TOLERANCE,
    compose,
    conjugate,
    cross,
    in_environment_frame,
    in_world_frame,
    invert,
    multiply,
    normalize,
    rotate,
    velocity_in_environment_frame,
    velocity_of_centre,
    velocity_of_origin,
    wxyz_from_xyzw,
)

__all__ = [
    "NORM_TOLERANCE",
    "compose",
    "conjugate",
    "cross",
    "in_environment_frame",
    "in_world_frame",
    "invert",
    "multiply",
    "normalize",
    "rotate",
    "velocity_in_environment_frame",
    "velocity_of_centre",
    "velocity_of_origin",
    "wxyz_from_xyzw",
]
