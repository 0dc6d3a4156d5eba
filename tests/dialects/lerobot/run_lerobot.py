"""Run one of LeRobot's programs, unmodified: run_lerobot.py lerobot.async_inference.robot_client --robot.type=…"""

from __future__ import annotations

import runpy
import sys

import simulated_aloha  # noqa: F401  registers the robot
import torchvision_ops  # noqa: F401

if __name__ == "__main__":
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
