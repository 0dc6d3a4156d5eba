"""Inverse kinematics against MuJoCo's own forward kinematics."""

from __future__ import annotations

import numpy as np
import pytest

from remote_env.tasks.aloha_model import aloha_model_path, load_model
from remote_env.tasks.kinematics import ArmKinematics

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")


@pytest.fixture(scope="module")
def arm() -> ArmKinematics:
    model = load_model(aloha_model_path("transfer_cube"))
    names = [f"vx300s_right/{joint}" for joint in JOINTS]
    return ArmKinematics(model, names, "vx300s_right/gripper_link", (0.14, 0.0, 0.0))


def test_solve_finds_poses_that_joints_can_make(arm: ArmKinematics) -> None:
    rng = np.random.default_rng(0)
    middle = np.array([0.0, -0.4, 0.8, 0.0, 0.6, 0.0])
    for _ in range(20):
        position, orientation = arm.tool_pose(middle + rng.uniform(-0.3, 0.3, 6))
        joints, error = arm.solve(position, orientation, middle)
        assert error < 1e-4
        found, facing = arm.tool_pose(joints)
        np.testing.assert_allclose(found, position, atol=1e-4)
        assert abs(facing @ orientation) > 1 - 1e-8


def test_out_of_reach_leaves_an_error_and_keeps_the_limits(arm: ArmKinematics) -> None:
    joints, error = arm.solve(np.array([5.0, 0.5, 0.2]), np.array([1.0, 0, 0, 0]), np.zeros(6), iterations=50)
    assert error > 1.0
    limits = np.array([arm.model.joint(f"vx300s_right/{joint}").range for joint in JOINTS])
    assert (limits[:, 0] <= joints).all()
    assert (joints <= limits[:, 1]).all()
