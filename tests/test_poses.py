"""Conversions of poses and velocities, against rotations known by hand and against MuJoCo's own."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from remote_env import poses
from remote_env.errors import InputError

HALF = np.sqrt(0.5)
# wxyz, and where it turns x, y and z.
KNOWN = {
    "nowhere": ([1, 0, 0, 0], np.eye(3)),
    "a quarter about x": ([HALF, HALF, 0, 0], [[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "a quarter about y": ([HALF, 0, HALF, 0], [[0, 0, -1], [0, 1, 0], [1, 0, 0]]),
    "a quarter about z": ([HALF, 0, 0, HALF], [[0, 1, 0], [-1, 0, 0], [0, 0, 1]]),
    "a third about the diagonal": ([0.5, 0.5, 0.5, 0.5], [[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
    "half about z": ([0, 0, 0, 1], [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]),
}


def random_poses(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(count, 7))
    drawn[:, 3:] /= np.linalg.norm(drawn[:, 3:], axis=1, keepdims=True)
    return drawn


@pytest.mark.parametrize("name", KNOWN)
def test_known_rotations_in_both_conventions(name):
    wxyz, turned = KNOWN[name]
    xyzw = [*wxyz[1:], wxyz[0]]
    assert poses.wxyz_from_xyzw(xyzw).tolist() == list(wxyz)
    np.testing.assert_allclose(poses.rotate(np.array([wxyz] * 3), np.eye(3)), turned, atol=1e-15)
    np.testing.assert_allclose(poses.rotate(poses.wxyz_from_xyzw(xyzw), [1.0, 0, 0]), turned[0], atol=1e-15)
    if name not in ("nowhere", "a third about the diagonal"):  # the one order taken for the other is another rotation
        assert abs(poses.rotate(np.array([xyzw] * 3), np.eye(3)) - turned).max() > 0.5


def test_products_and_rotations_are_mujoco_s():
    first, second = random_poses(50), random_poses(50, seed=1)
    for one, other in zip(first, second, strict=True):
        product, turned = np.zeros(4), np.zeros(3)
        mujoco.mju_mulQuat(product, one[3:], other[3:])
        mujoco.mju_rotVecQuat(turned, other[:3], one[3:])
        np.testing.assert_allclose(poses.multiply(one[3:], other[3:]), product, atol=1e-14)
        np.testing.assert_allclose(poses.rotate(one[3:], other[:3]), turned, atol=1e-14)
    np.testing.assert_array_equal(poses.cross(first[:, :3], second[:, :3]), np.cross(first[:, :3], second[:, :3]))


def test_an_origin_that_is_moved_and_turned():
    origin = [10.0, 20.0, 0.0, HALF, 0, 0, HALF]  # an environment at (10, 20), turned a quarter to the left
    world = [10.0, 21.0, 0.5, HALF, 0, 0, HALF]  # a body 1 m further along the world's y, turned with it
    np.testing.assert_allclose(poses.in_environment_frame(world, origin), [1, 0, 0.5, 1, 0, 0, 0], atol=1e-15)
    np.testing.assert_allclose(poses.in_environment_frame(world, origin[:3]), [0, 1, 0.5, *world[3:]], atol=1e-15)
    velocity = [0.0, 2.0, 0, 0, 3.0, 0]
    np.testing.assert_allclose(poses.velocity_in_environment_frame(velocity, origin), [2, 0, 0, 3, 0, 0], atol=1e-15)


@pytest.mark.parametrize("size", [3, 7])
def test_into_a_frame_and_back_is_where_one_was(size):
    there, origins = random_poses(50), random_poses(50, seed=2)[:, :size]
    back = poses.in_world_frame(poses.in_environment_frame(there, origins), origins)
    np.testing.assert_allclose(back, there, atol=1e-13)
    one = poses.in_environment_frame(there, origins[0])  # one origin for many poses
    np.testing.assert_allclose(one[0], poses.in_environment_frame(there[0], origins[0]), atol=1e-13)


def test_composing_with_the_inverse_gives_nothing():
    there = random_poses(50)
    same = np.array([0.0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(poses.compose(there, poses.invert(there)), np.tile(same, (50, 1)), atol=1e-14)
    np.testing.assert_array_equal(poses.compose(there, same)[:, :3], there[:, :3])


def test_a_velocity_of_an_offset_centre_of_mass_by_hand():
    # A rod about the origin's z at 2 rad/s; its centre lies 0.5 m along its own x, which points along the world's y.
    turned = [HALF, 0, 0, HALF]
    of_centre = [-1.0, 0, 0, 0, 0, 2.0]  # ω × r = (0, 0, 2) × (0, 0.5, 0)
    np.testing.assert_allclose(poses.velocity_of_origin(of_centre, turned, [0.5, 0, 0]), [0, 0, 0, 0, 0, 2], atol=1e-15)
    again = poses.velocity_of_centre([0.0, 0, 0, 0, 0, 2], turned, [0.5, 0, 0])
    np.testing.assert_allclose(again, of_centre, atol=1e-15)


def test_a_velocity_of_an_offset_centre_of_mass_is_mujoco_s():
    body = "<body pos='1 2 3'><freejoint/><geom type='box' size='.1 .2 .3' pos='.4 -.2 .1' euler='10 20 30'/></body>"
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{body}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    data.qpos[3:] = random_poses(1)[0, 3:]
    data.qvel[:] = [0.3, -0.5, 0.7, 1.0, -2.0, 3.0]
    mujoco.mj_forward(model, data)
    velocity = {}
    for kind in (mujoco.mjtObj.mjOBJ_BODY, mujoco.mjtObj.mjOBJ_XBODY):  # of the centre of mass, of the frame's origin
        found = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, kind, 1, found, 0)
        velocity[kind] = np.concatenate([found[3:], found[:3]])
    of_origin = poses.velocity_of_origin(velocity[mujoco.mjtObj.mjOBJ_BODY], data.xquat[1], model.body_ipos[1])
    np.testing.assert_allclose(of_origin, velocity[mujoco.mjtObj.mjOBJ_XBODY], atol=1e-12)


def test_noise_of_float32_is_divided_away_and_nonsense_is_named():
    noisy = np.array([[0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]]) * (1 + 1e-6)
    assert abs(np.linalg.norm(poses.normalize(noisy, "cube"), axis=1) - 1).max() < 1e-15
    for bad, said in (([0, 0, 0, 0], "norm 0"), ([1, 1, 0, 0], r"norm 1\.414"), ([np.nan, 0, 0, 0], "norm nan")):
        with pytest.raises(InputError, match=f"'cube' a quaternion of {said}"):
            poses.normalize([[1, 0, 0, 0], bad], "cube")
