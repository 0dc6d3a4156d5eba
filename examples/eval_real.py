"""Evaluate a policy on a robot: anything with LeRobot's robot interface; without one, on a simulated robot.

python examples/eval_real.py --robot_config agilex_aloha --task agilex_transfer_cube -m localhost:5000
"""

from __future__ import annotations

import sys
from pathlib import Path

from remote_env.cli.eval_robot import main

HERE = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.exit(main(folders=(Path("configs"), HERE.parent / "configs", HERE)))
